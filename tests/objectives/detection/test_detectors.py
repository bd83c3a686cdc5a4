"""Objectives of detectors: whole batches of the originals, devices, padding, images without objects."""

import dataclasses
import functools

import jax
import numpy as np
import pytest

from kdjax.models.detectors import DetectorOutput
from kdjax.objectives import LD, METHODS, PKD, DenseClassKD, GFLLoss, RegionImitation, TaskIntegration, bind
from kdjax.objectives.detection.locations import locate, valuable
from kdjax.reduction import group_losses
from kdjax.types import Batch, Clock, Context, DataInfo
from tests.golden_cases import cases, nhwc
from tests.losses.computing import computing_in

GFL, DISTILLED = cases("gfl_loss"), cases("ld_loss")
MOST = 1 + max(len(x) for case in GFL + DISTILLED for name, x in case.inputs.items() if name.startswith("label_"))


def output(case, real, prefix=""):
    """What a network of the case says; `prefix` "t" is the teacher."""
    h = case.hyper
    maps = {
        name: [nhwc(case.inputs[f"{prefix}{name}_{i}"]) for i in range(len(h["strides"]))] for name in ("cls", "reg")
    }
    flat = lambda x: x.reshape(len(x), -1, x.shape[-1])
    edges = np.concatenate([flat(x) for x in maps["reg"]], axis=1)
    names = {"": "x", "t": "tx"}
    features = [
        nhwc(case.inputs[f"{names[prefix]}_{i}"])
        if f"{names[prefix]}_{i}" in case.inputs
        else np.zeros((*x.shape[:3], 1), np.float32)
        for i, x in enumerate(maps["cls"])
    ]
    return DetectorOutput(
        logits=real(np.concatenate([flat(x) for x in maps["cls"]], axis=1)),
        edge_logits=real(edges.reshape(*edges.shape[:2], 4, -1)),
        features=tuple(map(real, features)), strides=tuple(h["strides"]), anchor_scale=float(h["octave_base_scale"]),
    )  # fmt: skip


def batch(case):
    """Objects padded to more than any image has; padding holds nan."""
    images = len(case.hyper["image_hw"])
    boxes, labels = np.full((images, MOST, 4), np.nan, np.float32), np.full((images, MOST), -1, np.int32)
    for i in range(images):
        count = len(case.inputs[f"label_{i}"])
        boxes[i, :count], labels[i, :count] = case.inputs[f"gt_{i}"], case.inputs[f"label_{i}"]
    targets = {"boxes": boxes, "labels": labels, "size": np.array(case.hyper["image_hw"], np.int32)}
    return Batch.of(np.zeros((images, 1)), targets)


def losses_of(case, h, teacher):
    """The objective of a case, with its weights."""
    found = GFLLoss(
        box={"GIoULoss": "giou", "CIoULoss": "ciou"}[h.get("box_loss", "GIoULoss")], box_weight=h["box_weight"],
        edge_weight=h["dfl_weight"], topk=h["topk"], floor=1e-6 if teacher else 1e-30,
    )  # fmt: skip
    if not teacher:
        return found
    images = float(len(h["image_hw"]))
    options = {"topk": h["topk"]}
    found += h["loss_ld"]["w"] * LD(temperature=h["loss_ld"]["T"], images_per_device=images, **options)
    found += h["loss_ld_vlr"]["w"] * LD(
        temperature=h["loss_ld_vlr"]["T"], region="valuable", images_per_device=images, **options
    )
    found += h["loss_kd"]["w"] * DenseClassKD(temperature=h["loss_kd"]["T"], **options)
    if h["im_weight"]:
        found += h["im_weight"] * RegionImitation(region=h["imitation"], **options)
    return found


def evaluated(objective, student, teacher, batch):
    """`(total, terms, gradients by logits and edges)`."""
    data = DataInfo(student.logits.shape[-1], targets=("labels", "boxes", "size"))
    bound = bind(objective, student, teacher, data)
    params, state = bound.init(jax.random.key(0))

    @jax.jit
    @functools.partial(jax.value_and_grad, has_aux=True)
    def total(parts):
        said = dataclasses.replace(student, **parts)
        ctx = Context(said, teacher, batch, Clock(10).at(0))
        terms, _ = bound.apply(params, state, ctx, train=True)
        return sum(group_losses(terms).values()), terms

    (value, terms), grads = total(
        {"logits": student.logits, "edge_logits": student.edge_logits, "features": student.features}
    )
    return jax.device_get((value, terms, grads))


@functools.partial(jax.jit, static_argnames="topk")
def located(student, rows, *, topk):
    """`(labels of the locations, the valuable region)`."""
    found = locate(student, rows, topk=topk)
    return found.labels, valuable(found, rows, topk=topk)


def sums(terms, name):
    return sum(t.weight * t.sum / np.maximum(t.count, 1) for n, t in terms.items() if n.startswith(name))


@pytest.mark.parametrize(
    ("case", "precision"), [*((case, "f64") for case in GFL + DISTILLED), (GFL[0], "f32"), (DISTILLED[0], "f32")]
)
def test_whole_batches_golden(case, precision):
    """Total, every term, and gradients. A batch without objects is nan in the original's box terms, and 0 here."""
    with computing_in(precision) as real:
        student, teacher = output(case, real), output(case, real, "t") if "tcls_0" in case.inputs else None
        value, terms, grads = evaluated(losses_of(case, case.hyper, teacher), student, teacher, batch(case))
        labels, region = located(student, batch(case), topk=case.hyper["topk"])
    np.testing.assert_array_equal(labels, case.outputs["f64"]["lab"])
    levels = range(len(case.hyper["strides"]))
    add = lambda name: sum(np.nan_to_num(case.outputs["f64"][f"{name}_{i}"]) for i in levels)
    rtol = {"f64": 1e-8, "f32": 1e-4}[precision]
    wanted = {
        "gfl_loss/classes": add("loss_cls"),
        "gfl_loss/boxes": add("loss_bbox"),
        "gfl_loss/edges": add("loss_dfl"),
    }
    if teacher is not None:
        np.testing.assert_allclose(region, case.outputs["f64"]["vlr"], rtol=1e-5, atol=1e-6)
        wanted |= {"ld": add("loss_ld"), "ld_2": add("loss_ld_vlr"), "dense_class_kd": add("loss_kd")}
        wanted |= {"region_imitation": add("loss_im")} if case.hyper["im_weight"] else {}
        terms = {("ld_main" if n == "ld" else n): t for n, t in terms.items()}
        wanted["ld_main"] = wanted.pop("ld")
        total = 1e-6 * terms["gfl_loss/boxes"].count  # the original adds 1e-6 to it, where ours is at least that
        for name in ("gfl_loss/boxes", "gfl_loss/edges"):
            wanted[name] = wanted[name] * (total + 1e-6) / total
    for name, expected in wanted.items():
        np.testing.assert_allclose(sums(terms, name), expected, rtol=rtol, atol=1e-7, err_msg=name)
    np.testing.assert_allclose(value, sum(wanted.values()), rtol=rtol)
    ends = np.cumsum(student.grid.sizes)[:-1]
    for name, field in (("cls", "logits"), ("reg", "edge_logits")):
        parts = np.split(np.asarray(grads[field]).reshape(*grads[field].shape[:2], -1), ends, axis=1)
        for i in levels:
            expected = nhwc(case.grads["f64"][f"{name}_{i}"])
            if not np.isfinite(expected).all():
                assert np.isfinite(parts[i]).all()
                continue
            np.testing.assert_allclose(
                parts[i], expected.reshape(parts[i].shape), rtol=100 * rtol, atol=1e-6 * np.abs(expected).max() + 1e-9
            )


# --- every objective at once: devices, padding, extremes ---

EVERY = (
    GFLLoss() + LD() + LD(region="valuable") + DenseClassKD() + RegionImitation() + PKD() + TaskIntegration()
    + RegionImitation(region="inside") + RegionImitation(region="all") + DenseClassKD(region="valuable")
)  # fmt: skip
SIZES, CLASSES, BINS, OBJECTS = ((4, 5), (2, 3)), 3, 5, 3


def said(rng, rows, width):
    count = sum(h * w for h, w in SIZES)
    draw = lambda *shape: rng.standard_normal((rows, *shape)).astype(np.float32)
    return DetectorOutput(
        logits=draw(count, CLASSES), edge_logits=draw(count, 4, BINS), features=tuple(draw(*size, width) for size in SIZES),
        strides=(8, 16), anchor_scale=4.0,
    )  # fmt: skip


def made(rng, rows):
    low = rng.uniform(0, 24, (rows, OBJECTS, 2))
    boxes = np.concatenate([low, low + rng.uniform(4, 20, low.shape)], axis=-1).astype(np.float32)
    labels = rng.integers(0, CLASSES, (rows, OBJECTS)).astype(np.int32)
    labels[:, -1] = -1
    return {"boxes": boxes, "labels": labels}


@functools.cache
def everything(axis=None):
    """`(student, teacher, batch) -> (total over devices, its gradients by the student's output)`; and the parts' names."""
    rng = np.random.default_rng(0)
    bound = bind(EVERY, said(rng, 2, 4), said(rng, 2, 6), DataInfo(CLASSES, targets=("labels", "boxes")))
    params, state = bound.init(jax.random.key(0))

    def whole(student, teacher, batch):
        def total(student):
            terms, _ = bound.apply(
                params, state, Context(student, teacher, batch, Clock(10).at(0), axis=axis), train=True
            )
            return sum(group_losses(terms, axis).values())

        value, gradient = jax.value_and_grad(total)(student)
        return (value if axis is None else jax.lax.psum(value, axis)), gradient

    return (jax.jit(whole) if axis is None else jax.pmap(whole, axis)), list(bound.parts)


def test_padding_and_devices_change_nothing():
    """Rows that do not count hold nan, and boxes; eight rows of which six count are six, on four devices as on one."""
    rng = np.random.default_rng(1)
    student, teacher, targets = said(rng, 8, 4), said(rng, 8, 6), made(rng, 8)
    kept = np.array([1, 1, 0, 1, 1, 1, 0, 1], bool)
    bad = lambda x: np.where(kept.reshape(-1, *[1] * (x.ndim - 1)), x, np.nan)
    student, teacher = jax.tree.map(bad, (student, teacher))
    batch = Batch.of(np.zeros((8, 1)), targets, where=kept)
    run, _ = everything()
    value, gradient = jax.device_get(run(student, teacher, batch))
    few = lambda tree: jax.tree.map(lambda x: np.asarray(x)[kept], tree)
    alone, its = jax.device_get(run(*few((student, teacher, batch))))
    np.testing.assert_allclose(value, alone, rtol=1e-5)
    spread = jax.tree.map(lambda x: np.reshape(x, (4, 2, *np.shape(x)[1:])), (student, teacher, batch))
    mapped, over = jax.device_get(everything("data")[0](*spread))
    np.testing.assert_allclose(mapped, np.full(4, value), rtol=1e-5)
    for one, few_, many in zip(*map(jax.tree.leaves, (gradient, its, over)), strict=True):
        assert np.isfinite(one).all() and not one[~kept].any()
        np.testing.assert_allclose(one[kept], few_, rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(many.reshape(one.shape), one, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("what", ["nothing", "no area", "outside", "sure", "equal"])
def test_extremes_are_finite(what):
    rng = np.random.default_rng(2)
    student, teacher, targets = said(rng, 8, 4), said(rng, 8, 6), made(rng, 8)
    if what == "nothing":
        targets["labels"][:] = -1
        targets["boxes"][:] = np.nan
    elif what == "no area":
        targets["boxes"][..., 2:] = targets["boxes"][..., :2]
    elif what == "outside":
        targets["boxes"] += 1e4
    elif what == "sure":
        student = jax.tree.map(lambda x: 1e3 * x, student)
    else:
        teacher = dataclasses.replace(student, features=teacher.features)
    value, gradient = everything()[0](student, teacher, Batch.of(np.zeros((8, 1)), targets, where=np.ones(8, bool)))
    assert np.isfinite(value) and all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))


def test_what_is_asked_is_refused_in_words():
    rng = np.random.default_rng(0)
    student, data = said(rng, 2, 4), DataInfo(CLASSES, targets=("labels", "boxes"))
    other = dataclasses.replace(said(rng, 2, 4), features=said(rng, 2, 4).features[:1])
    with pytest.raises(ValueError, match=r"maps of \[\(4, 5\), \(2, 3\)\] \(student\) and \[\(4, 5\)\] \(teacher\)"):
        bind(PKD(), student, other, data)
    coarse = dataclasses.replace(said(rng, 2, 4), edge_logits=np.zeros((2, 26, 4, 9), np.float32))
    with pytest.raises(ValueError, match=r"LD compares edge_logits .* gives \[26, 4, 5\] and the teacher \[26, 4, 9\]"):
        bind(LD(), student, coarse, data)
    with pytest.raises(ValueError, match="learns from targets called 'boxes', and the data has labels"):
        bind(GFLLoss(), student, None, DataInfo(CLASSES))
    assert {
        "detector", "ld", "ld_vlr", "dense_kd", "imitation", "pkd", "tid", "retinanet", "fcos", "atss", "retinanet_ld", "fcos_ld",
        "atss_ld", "ssd", "dicod", "crops",
    } == {name for name, entry in METHODS.items() if entry.family == "detection"}  # fmt: skip

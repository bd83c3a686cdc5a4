"""Objectives of detectors: whole batches of the originals, devices, padding, images without objects."""

import dataclasses
import functools

import jax
import numpy as np
import pytest

from kdjax.models.detectors import DetectorOutput
from kdjax.objectives import LD, DenseClassKD, GFLLoss, RegionImitation, bind
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
        found = locate(student, batch(case), topk=case.hyper["topk"])
        region = valuable(found, batch(case), topk=case.hyper["topk"])
    np.testing.assert_array_equal(found.labels, case.outputs["f64"]["lab"])
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
    ends = np.cumsum(found.sizes)[:-1]
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

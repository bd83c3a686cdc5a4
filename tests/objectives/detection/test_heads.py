"""RetinaNet, FCOS and ATSS: torchvision's losses, the released terms of localization distillation, and every head's extremes."""

import dataclasses
import functools

import jax
import numpy as np
import pytest

from kdjax.models.detectors import DetectorOutput
from kdjax.models.detectors.output import octave_shapes
from kdjax.objectives import (
    LD,
    ATSSLoss,
    DenseClassKD,
    FCOSLoss,
    GFLLoss,
    RegionImitation,
    RetinaNetLoss,
    TaskIntegration,
    bind,
)
from kdjax.objectives.detection import centred, localization, locations, retinanet
from kdjax.objectives.detection.locations import Locations
from kdjax.reduction import group_losses
from kdjax.types import Batch, Clock, Context, DataInfo
from tests.golden_cases import cases, nhwc
from tests.losses.computing import computing_in

PRECISIONS = pytest.mark.parametrize("precision", ["f64", pytest.param("f32", marks=pytest.mark.slow)])
PARTS = ("logits", "edge_logits", "regression", "centreness", "features")


def evaluated(objective, student, teacher, batch, classes):
    """`(total, terms, gradients by what the student says)`."""
    bound = bind(objective, student, teacher, DataInfo(classes, targets=tuple(batch.targets)))
    params, state = bound.init(jax.random.key(0))

    @jax.jit
    @functools.partial(jax.value_and_grad, has_aux=True)
    def total(parts, teacher, batch):
        ctx = Context(dataclasses.replace(student, **parts), teacher, batch, Clock(10).at(0))
        terms, _ = bound.apply(params, state, ctx, train=True)
        return sum(group_losses(terms).values()), terms

    said = {name: getattr(student, name) for name in PARTS}
    (value, terms), gradients = total(said, teacher, batch)
    return jax.device_get((value, terms, gradients))


def sums(terms, name):
    return sum(t.weight * t.sum / np.maximum(t.count, 1) for n, t in terms.items() if n.startswith(name))


# --- torchvision's losses, assignment included ---


def levels_of(anchors):
    """`(sizes, strides, shapes)` of anchors listed level by level, row by row, location by location."""
    centres, sides = (anchors[:, :2] + anchors[:, 2:]) / 2, anchors[:, 2:] - anchors[:, :2]
    several = int(np.argmax(np.any(centres != centres[0], axis=1)))
    shapes = [tuple(map(tuple, sides[i : i + several].tolist())) for i in range(0, len(anchors), several)]
    firsts = [i for i, shape in enumerate(shapes) if i == 0 or shape != shapes[i - 1]]
    sizes, strides = [], []
    for first, end in zip(firsts, [*firsts[1:], len(shapes)], strict=True):
        x, y = (np.unique(centres[several * first : several * end, i]) for i in (0, 1))
        sizes.append((len(y), len(x)))
        strides.append(int(x[1] - x[0]))
    return tuple(sizes), tuple(strides), tuple(shapes[i] for i in firsts)


def of_torchvision(case, real):
    h, kind = case.hyper, "retinanet" if "fg_iou" in case.hyper else "fcos"
    sizes, strides, shapes = levels_of(case.inputs["anchors"])
    centred_ = {"centreness": real(case.inputs["bbox_ctrness"][..., 0])} if kind == "fcos" else {}
    rows = len(case.inputs["cls_logits"])
    student = DetectorOutput(
        logits=real(case.inputs["cls_logits"]), regression=real(case.inputs["bbox_regression"]),
        features=tuple(np.zeros((rows, *size, 1), np.float32) for size in sizes), strides=strides, head=kind,
        anchor_shapes=shapes if kind == "retinanet" else (), deviations=(1.0,) * 4 if kind == "retinanet" else (), **centred_,
    )  # fmt: skip
    objective = RetinaNetLoss() if kind == "retinanet" else FCOSLoss(weighted=False)
    boxes, labels = np.full((rows, 6, 4), np.nan, np.float32), np.full((rows, 6), -1, np.int32)
    for i in range(rows):
        count = len(case.inputs[f"label_{i}"])
        boxes[i, :count], labels[i, :count] = case.inputs[f"gt_{i}"], case.inputs[f"label_{i}"]
    return student, objective, Batch.of(np.zeros((rows, 1)), {"boxes": boxes, "labels": labels}), h["num_classes"]


@PRECISIONS
@pytest.mark.parametrize("case", cases("tv_heads"), ids=repr)
def test_torchvision_golden(case, precision):
    with computing_in(precision) as real:
        student, objective, batch, classes = of_torchvision(case, real)
        if student.head == "retinanet":
            np.testing.assert_array_equal(student.grid.anchors, case.inputs["anchors"])
        value, terms, gradients = evaluated(objective, student, None, batch, classes)
    case.check(value, "out", "loss", precision)
    name = {"retinanet": "retina_net_loss", "fcos": "fcos_loss"}[student.head]
    names = {"classes": "classification", "boxes": "bbox_regression", "centreness": "bbox_ctrness"}
    for ours, theirs in names.items():
        if f"loss_{theirs}" in case.outputs["f64"]:
            case.check(sums(terms, f"{name}/{ours}"), "out", f"loss_{theirs}", precision)
    for ours, theirs in {"logits": "cls_logits", "regression": "bbox_regression", "centreness": "bbox_ctrness"}.items():
        if theirs not in case.grads["f64"]:
            continue
        found = np.asarray(gradients[ours]).reshape(case.grads["f64"][theirs].shape)
        single = case.grads["f64"][theirs].dtype == np.float32  # stored so where there are many
        tolerance = {"rtol": 1e-6, "atol": 1e-9} if single and precision == "f64" else case.tolerance("grad", precision)
        np.testing.assert_allclose(found, case.grads["f64"][theirs], err_msg=ours, **tolerance)


# --- localization distillation on one level, as released ---


def of_release(case, real):
    """`(student, teacher, objective, locations, vlr)` of a case."""
    h, kind = case.hyper, {"retina": "retinanet"}.get(case.id.split("_")[0], case.id.split("_")[0])
    classes, bins, stride = h["num_classes"], h["reg_max"] + 1, h["stride"]
    cls, reg, tcls, treg = (nhwc(case.inputs[name]) for name in ("cls", "reg", "tcls", "treg"))
    rows, *size = cls.shape[:3]
    several = cls.shape[-1] // classes
    centreness = real(case.inputs["ctr"].reshape(rows, -1)) if "ctr" in case.inputs else None

    def output(classes_, edges):
        return DetectorOutput(
            logits=real(classes_.reshape(rows, -1, classes)), edge_logits=real(edges.reshape(rows, -1, 4, bins)),
            features=(np.zeros((rows, *size, 1), np.float32),), strides=(stride,), head=kind, centreness=centreness,
            anchor_shapes=octave_shapes((stride,), 4.0) if several > 1 else (),
        )  # fmt: skip

    labels, count = case.inputs["labels"], size[0] * size[1]
    targets, positive = case.inputs["targets"], labels < classes
    if kind == "fcos":
        points = case.inputs["points"][:count]
        anchors, boxes = np.tile(points, 2), np.tile(points, 2)[None] + targets * np.array([-1, -1, 1, 1])
    else:
        anchors, boxes = case.inputs["anchors"][0], targets
        points = (anchors[:, :2] + anchors[:, 2:]) / 2
    found = Locations(
        real(points), real(np.full(len(points), stride)), real(anchors), (count * several,), (count,),
        np.ones(labels.shape, bool), labels, real(boxes), positive, np.zeros(labels.shape, bool), labels > classes,
        np.zeros_like(labels),
    )  # fmt: skip
    central = float(case.outputs["f64"].get("centerness_sum", 1.0))  # which the original divides boxes by later
    loss = {
        "retinanet": RetinaNetLoss(box="giou", per_image=False, box_weight=h["box_weight"]),
        "fcos": FCOSLoss(box_weight=central * h["box_weight"]), "atss": ATSSLoss(box_weight=central * h["box_weight"]),
    }[kind]  # fmt: skip
    options = {
        "temperature": h["ld"]["T"],
        "images_per_device": float(rows),
        "joint_edges": h.get("joint_edges", False),
    }
    objective = (
        loss + h["ld"]["w"] * LD(**options) + 4 * h["vlr_factor"] * h["ld"]["w"] * LD(region="valuable", **options)
        + h["kd"]["w"] * DenseClassKD(temperature=h["kd"]["T"])
    )  # fmt: skip
    vlr = real(case.inputs["vlr"]) if "vlr" in case.inputs else None
    return output(cls, reg), output(tcls, treg), objective, found, vlr


@PRECISIONS
@pytest.mark.parametrize("case", cases("ld_variants"), ids=repr)
def test_released_heads_golden(case, precision, monkeypatch):
    with computing_in(precision) as real:
        student, teacher, objective, found, vlr = of_release(case, real)
        for module in (localization, centred, retinanet):
            monkeypatch.setattr(module, "locate", lambda *_, **__: found)
        monkeypatch.setattr(locations, "valuable", lambda *_, **__: vlr)
        objects = {
            "boxes": np.zeros((len(found.labels), 1, 4), np.float32),
            "labels": -np.ones((len(found.labels), 1), np.int32),
        }
        batch = Batch.of(np.zeros((len(found.labels), 1)), objects)
        value, terms, gradients = evaluated(objective, student, teacher, batch, case.hyper["num_classes"])
    case.check(value, "out", "loss", precision)
    first = next(iter(terms)).partition("/")[0]
    wanted = {"classes": "cls", "boxes": "bbox", "centreness": "centerness"}
    wanted = {f"{first}/{ours}": theirs for ours, theirs in wanted.items() if f"{first}/{ours}" in terms}
    for ours, theirs in (wanted | {"ld_2": "ld_vlr", "dense_class_kd": "kd"}).items():
        case.check(sums(terms, ours), "out", f"loss_{theirs}", precision)
    case.check(terms["ld"].weight * terms["ld"].sum / terms["ld"].count, "out", "loss_ld", precision)
    for ours, theirs in {"logits": "cls", "edge_logits": "reg", "centreness": "ctr"}.items():
        if theirs in case.grads["f64"]:
            expected = nhwc(case.grads["f64"][theirs])
            single = expected.dtype == np.float32  # stored so where there are many
            close = {"rtol": 1e-6, "atol": 1e-9} if single and precision == "f64" else case.tolerance("grad", precision)
            np.testing.assert_allclose(gradients[ours].reshape(expected.shape), expected, err_msg=ours, **close)


# --- every head at once: devices, padding, extremes ---

SIZES, CLASSES, BINS, OBJECTS = ((4, 5), (2, 3)), 3, 5, 3
TAUGHT = LD() + LD(region="valuable") + DenseClassKD()
KINDS = {
    "retinanet_edges": RetinaNetLoss(box="giou", per_image=False) + TAUGHT + RegionImitation() + LD(joint_edges=True),
    "fcos_edges": FCOSLoss() + TAUGHT,
    "atss_edges": ATSSLoss() + TAUGHT,
    "retinanet": RetinaNetLoss() + TaskIntegration(),
    "fcos": FCOSLoss(weighted=False),
    "atss": ATSSLoss(),
}


def said(rng, rows, kind):
    """What a network of a kind says."""
    head, edges = kind.removesuffix("_edges"), kind.endswith("_edges")
    several = 9 if head == "retinanet" else 1
    count = several * sum(h * w for h, w in SIZES)
    draw = lambda *shape: rng.standard_normal((rows, *shape)).astype(np.float32)
    deviations = {"retinanet": (1.0,) * 4, "atss": (0.1, 0.1, 0.2, 0.2)}.get(head, ())
    return DetectorOutput(
        logits=draw(count, CLASSES), edge_logits=draw(count, 4, BINS) if edges else None,
        regression=None if edges else np.abs(draw(count, 4)), features=tuple(draw(*size, 4) for size in SIZES),
        centreness=None if head == "retinanet" else draw(count), strides=(8, 16), anchor_scale=4.0, head=head,
        anchor_shapes=octave_shapes((8, 16), 2.0) if several > 1 else (), offset=0.5 if head == "fcos" else 0.0,
        deviations=() if edges else deviations,
    )  # fmt: skip


def made(rng, rows):
    low = rng.uniform(0, 24, (rows, OBJECTS, 2))
    boxes = np.concatenate([low, low + rng.uniform(4, 20, low.shape)], axis=-1).astype(np.float32)
    labels = rng.integers(0, CLASSES, (rows, OBJECTS)).astype(np.int32)
    labels[:, -1] = -1
    return {"boxes": boxes, "labels": labels, "size": np.tile(np.array([[32, 40]], np.int32), (rows, 1))}


def both(rng, rows):
    return [{kind: said(rng, rows, kind) for kind in KINDS} for _ in range(2)]


@functools.cache
def everything(axis=None):
    """`(students, teachers, batch) -> (each kind's total over devices, gradients by the students' outputs)`, one program.

    On several devices of heads with distributions alone, which have all terms.
    """
    rng = np.random.default_rng(0)
    bounds = {}
    for kind, objective in KINDS.items():
        if axis and not kind.endswith("_edges"):
            continue
        output = said(rng, 2, kind)
        bound = bind(objective, output, output, DataInfo(CLASSES, targets=("labels", "boxes", "size")))
        bounds[kind] = bound, bound.init(jax.random.key(0))

    def whole(students, teachers, batch):
        def total(students):
            values = {}
            for kind, (bound, (params, state)) in bounds.items():
                ctx = Context(students[kind], teachers[kind], batch, Clock(10).at(0), axis=axis)
                terms, _ = bound.apply(params, state, ctx, train=True)
                values[kind] = sum(group_losses(terms, axis).values())
            return sum(values.values()), values

        (_, values), gradients = jax.value_and_grad(total, has_aux=True)(students)
        return (values if axis is None else jax.lax.psum(values, axis)), gradients

    return jax.jit(whole) if axis is None else jax.pmap(whole, axis)


def with_rows_left_out():
    """`(students, teachers, batch)` of eight rows of which six count; the others hold nan, and boxes."""
    rng = np.random.default_rng(1)
    students, teachers = both(rng, 8)
    kept = np.array([1, 1, 0, 1, 1, 1, 0, 1], bool)
    bad = lambda x: np.where(kept.reshape(-1, *[1] * (x.ndim - 1)), x, np.nan)
    students, teachers = jax.tree.map(bad, (students, teachers))
    return students, teachers, Batch.of(np.zeros((8, 1)), made(rng, 8), where=kept)


def test_padding_changes_nothing():
    """Eight rows of which six count are six, with two of them again as rows that do not count: the shapes stay, and with them the
    program."""
    students, teachers, batch = with_rows_left_out()
    kept = np.asarray(batch.where)
    values, gradients = jax.device_get(everything()(students, teachers, batch))
    rows = np.array([0, 1, 3, 4, 5, 7, 0, 1])
    few = lambda tree: jax.tree.map(lambda x: np.asarray(x)[rows], tree)
    first = dataclasses.replace(few(batch), where=np.arange(8) < 6)
    alone, its = jax.device_get(everything()(few(students), few(teachers), first))
    for kind, value in values.items():
        np.testing.assert_allclose(value, alone[kind], rtol=1e-5, err_msg=kind)
        for one, few_ in zip(*(jax.tree.leaves(x[kind]) for x in (gradients, its)), strict=True):
            assert np.isfinite(one).all() and not one[~kept].any(), kind
            np.testing.assert_allclose(one[kept], few_[:6], rtol=1e-4, atol=1e-6, err_msg=kind)


@pytest.mark.slow  # one more program
def test_devices_change_nothing():
    """On four devices as on one."""
    whole = with_rows_left_out()
    values, gradients = jax.device_get(everything()(*whole))
    spread = jax.tree.map(lambda x: np.reshape(x, (4, 2, *np.shape(x)[1:])), whole)
    distributed = [{k: x[k] for k in x if k.endswith("_edges")} for x in spread[:2]]
    mapped, over = jax.device_get(everything("data")(*distributed, spread[2]))
    for kind, value in mapped.items():
        np.testing.assert_allclose(value, np.full(4, values[kind]), rtol=1e-5, err_msg=kind)
        for one, many in zip(*(jax.tree.leaves(x[kind]) for x in (gradients, over)), strict=True):
            np.testing.assert_allclose(many.reshape(one.shape), one, rtol=1e-4, atol=1e-6, err_msg=kind)
    assert len(mapped) == 3


@pytest.mark.parametrize("what", ["nothing", "no area", "outside", "sure", "equal", "beyond"])
def test_extremes_are_finite(what):
    """Images without objects; objects without area, outside, beyond the image's own size; logits of 1e3; equal networks."""
    rng = np.random.default_rng(2)
    students, teachers = both(rng, 8)
    targets = made(rng, 8)
    if what == "nothing":
        targets["labels"][:] = -1
        targets["boxes"][:] = np.nan
    elif what == "no area":
        targets["boxes"][..., 2:] = targets["boxes"][..., :2]
    elif what == "outside":
        targets["boxes"] += 1e4
    elif what == "sure":
        students = jax.tree.map(lambda x: 1e3 * x, students)
    elif what == "equal":
        teachers = students
    else:
        targets["size"][:] = 1
        targets["boxes"] += 32
    batch = Batch.of(np.zeros((8, 1)), targets, where=np.ones(8, bool))
    values, gradients = jax.device_get(everything()(students, teachers, batch))
    for kind, value in values.items():
        assert np.isfinite(value), kind
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradients[kind])), kind
        assert np.abs(gradients[kind].logits).max() > 0, kind  # background is learned from all the same


def test_what_does_not_fit_is_refused_in_words():
    rng = np.random.default_rng(0)
    data = DataInfo(CLASSES, targets=("labels", "boxes"))
    fcos, atss, retina = (said(rng, 2, kind) for kind in ("fcos_edges", "atss_edges", "retinanet_edges"))
    with pytest.raises(ValueError, match="GFLLoss is for heads of gfl, and the student has one of fcos"):
        bind(GFLLoss(), fcos, None, data)
    with pytest.raises(ValueError, match=r"RetinaNetLoss\(box='l1'\) compares deltas, .* use box='giou'"):
        bind(RetinaNetLoss(), retina, None, data)
    with pytest.raises(ValueError, match="the student's locations are those of fcos and the teacher's those of atss"):
        bind(LD(), fcos, atss, data)
    with pytest.raises(ValueError, match=r"student's head \(atss\) has others than the teacher's \(fcos\)"):
        bind(TaskIntegration(), atss, fcos, data)
    softmax = dataclasses.replace(said(rng, 2, "atss"), background=True)
    with pytest.raises(
        ValueError, match="TaskIntegration scores sigmoids, and this head has a softmax with background"
    ):
        bind(TaskIntegration(), softmax, softmax, data)
    with pytest.raises(ValueError, match=r"reads student\.edge_logits, which the student network does not give"):
        bind(LD(), said(rng, 2, "atss"), atss, data)

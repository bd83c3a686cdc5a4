"""SSD: anchors, loss with its hardest negatives, and detections of the original; masks, and what is finite."""

import dataclasses
import functools

import jax
import numpy as np
import pytest

from kdjax.models.detectors import DetectorOutput
from kdjax.models.detectors.ssd import COCO, VOC, Priors
from kdjax.objectives import SSDLoss, bind
from kdjax.objectives.detection.locations import decoded
from kdjax.reduction import group_losses
from kdjax.tasks.detection.decoding import detect
from kdjax.types import Batch, Clock, Context, DataInfo
from tests.golden_cases import cases, nhwc
from tests.losses.computing import computing_in

BY_ID = {case.id: case for case in cases("ssd")}
LOSSES = [case for name, case in BY_ID.items() if name.startswith("loss")]
PARTS = ("logits", "regression")


def output(case, real):
    """What a network of the case says."""
    priors = BY_ID[case.hyper["priors"]].hyper
    maps = [[nhwc(case.inputs[f"{name}_{i}"]) for i in range(len(priors["strides"]))] for name in ("cls", "reg")]
    flat = lambda x, size: x.reshape(len(x), -1, size)
    return DetectorOutput(
        logits=real(np.concatenate([flat(x, case.hyper["num_classes"] + 1) for x in maps[0]], axis=1)),
        regression=real(np.concatenate([flat(x, 4) for x in maps[1]], axis=1)),
        features=tuple(np.zeros((*x.shape[:3], 1), np.float32) for x in maps[0]), strides=tuple(priors["strides"]), head="ssd",
        anchor_shapes=COCO.shapes, offset=0.5, deviations=tuple(case.hyper.get("stds", (0.1, 0.1, 0.2, 0.2))), background=True,
    )  # fmt: skip


@functools.cache
def run(objective, classes, background=True):
    """`(student, batch) -> (total, terms), gradients`, compiled."""

    def whole(student, batch):
        bound = bind(objective, student, None, DataInfo(classes, targets=("labels", "boxes")))

        def total(parts):
            ctx = Context(dataclasses.replace(student, **parts), None, batch, Clock(10).at(0))
            terms, _ = bound.apply({}, {}, ctx, train=True)
            return sum(group_losses(terms).values()), terms

        return jax.value_and_grad(total, has_aux=True)({name: getattr(student, name) for name in PARTS})

    return jax.jit(whole)


def test_anchors_golden():
    case = BY_ID["priors_coco"]
    h, found = case.hyper, case.outputs["f32"]
    priors = Priors(tuple(h["strides"]), COCO.sizes, tuple(tuple(map(float, r)) for r in h["ratios"]))
    features = tuple(np.zeros((1, *size, 1), np.float32) for size in h["feat_sizes"])
    said = DetectorOutput(
        np.zeros((1, 1, 1)), features=features, strides=priors.strides, anchor_shapes=priors.shapes, offset=0.5
    )
    np.testing.assert_array_equal(COCO.sizes[:-1], found["min_sizes"])
    close = {"rtol": case.advice["f32_rtol_out"], "atol": 1e-4}  # pixels, a few roundings of 300
    np.testing.assert_allclose(said.grid.anchors, found["anchors"], **close)
    assert priors._replace(image=300) == COCO and len(VOC.shapes) == 6


@pytest.mark.parametrize("precision", ["f64", "f32"])
@pytest.mark.parametrize("case", LOSSES, ids=repr)
def test_losses_golden(case, precision):
    h = case.hyper
    rows, most = len(case.inputs["cls_0"]), 4
    boxes, labels = np.full((rows, most, 4), np.nan, np.float32), np.full((rows, most), -1, np.int32)
    for i in range(rows):
        count = len(case.inputs[f"label_{i}"])
        boxes[i, :count], labels[i, :count] = case.inputs[f"gt_{i}"], case.inputs[f"label_{i}"]
    batch = Batch.of(np.zeros((rows, 1)), {"boxes": boxes, "labels": labels})
    objective = SSDLoss(negatives=float(h["neg_pos_ratio"]), beta=h["smoothl1_beta"])
    with computing_in(precision) as real:
        student = output(case, real)
        (value, terms), gradients = jax.device_get(run(objective, h["num_classes"])(student, batch))
    case.check(value, "out", "loss", precision)
    for ours, theirs in (("classes", "cls"), ("boxes", "bbox")):
        term = terms[f"ssd_loss/{ours}"]
        wanted = sum(float(np.sum(case.outputs["f64"][f"loss_{theirs}_{i}"])) for i in range(rows))
        np.testing.assert_allclose(term.sum / term.count, wanted, **case.tolerance("out", precision))
    ends = np.cumsum([h * w * len(s) for (h, w), s in zip(student.sizes, student.shapes, strict=True)])[:-1]
    for ours, theirs in (("logits", "cls"), ("regression", "reg")):
        for i, found in enumerate(np.split(gradients[ours], ends, axis=1)):
            wanted = case.grads["f64"][f"{theirs}_{i}"]
            single = wanted.dtype == np.float32 and precision == "f64"  # stored so where there are many
            close = {"rtol": 1e-6, "atol": 1e-9} if single else case.tolerance("grad", precision)
            wanted = nhwc(wanted)
            np.testing.assert_allclose(found.reshape(wanted.shape), wanted, err_msg=f"{theirs}_{i}", **close)


@pytest.mark.parametrize("case", [BY_ID["post"]], ids=repr)
def test_detections_golden(case):
    """Boxes of equal scores may change places: compared by score, then as sets of boxes that agree."""
    h = case.hyper
    with computing_in("f64") as real:
        student = output(case, real)
        grid, rows = student.grid, len(student.logits)
        found = detect(
            student.logits, decoded(student, grid), None, None, np.full((rows, 2), 300), level_sizes=grid.sizes,
            score_threshold=h["score_thr"], iou_threshold=h["iou_threshold"], candidates=h["nms_pre"],
            max_detections=h["max_per_img"], rule="locations", background=True,
        )  # fmt: skip
        found = jax.device_get(found)
    wanted, labels = case.outputs["f64"]["det"], case.outputs["f64"]["lab"]
    ours = np.concatenate([found.boxes[0], found.scores[0][:, None]], axis=1)[: len(wanted)]
    order = lambda rows, labels: np.lexsort((rows[:, 1], rows[:, 0], labels, np.round(rows[:, 4], 9)))
    mine, theirs = order(ours, found.labels[0][: len(wanted)]), order(wanted, labels)
    np.testing.assert_allclose(ours[mine], wanted[theirs], rtol=1e-7, atol=1e-7)
    np.testing.assert_array_equal(found.labels[0][: len(wanted)][mine], labels[theirs])


# --- masks and extremes, of both kinds of classes, in one program each ---

SHAPES = (((8.0, 8.0), (16.0, 8.0)), ((16.0, 16.0),))
SIZES, CLASSES = ((4, 5), (2, 3)), 3


def said(rng, rows, background):
    count = 2 * 20 + 6
    draw = lambda *shape: rng.standard_normal((rows, *shape)).astype(np.float32)
    return DetectorOutput(
        logits=draw(count, CLASSES + background), regression=draw(count, 4), features=tuple(draw(*s, 2) for s in SIZES),
        strides=(8, 16), head="ssd", anchor_shapes=SHAPES, offset=0.5, deviations=(0.1, 0.1, 0.2, 0.2), background=background,
    )  # fmt: skip


def made(rng, rows):
    low = rng.uniform(0, 24, (rows, 3, 2))
    boxes = np.concatenate([low, low + rng.uniform(4, 16, low.shape)], axis=-1).astype(np.float32)
    labels = rng.integers(0, CLASSES, (rows, 3)).astype(np.int32)
    labels[:, -1] = -1
    return {"boxes": boxes, "labels": labels}


@pytest.mark.parametrize("background", [True, False])
def test_rows_that_do_not_count_and_extremes(background):
    rng = np.random.default_rng(3)
    student, targets = said(rng, 6, background), made(rng, 6)
    program = run(SSDLoss(), CLASSES)
    call = lambda student, targets, kept: jax.device_get(
        program(student, Batch.of(np.zeros((6, 1)), targets, where=kept))
    )
    kept = np.array([1, 0, 1, 1, 0, 1], bool)
    bad = jax.tree.map(lambda x: np.where(kept.reshape(-1, *[1] * (x.ndim - 1)), x, np.nan), student)
    (value, _), gradients = call(bad, targets, kept)
    rows = np.array([0, 2, 3, 5, 0, 0])
    few = lambda tree: jax.tree.map(lambda x: x[rows], tree)
    (alone, _), its = call(few(student), few(targets), np.arange(6) < 4)
    np.testing.assert_allclose(value, alone, rtol=1e-5)
    for name, gradient in gradients.items():
        np.testing.assert_allclose(gradient[kept], its[name][:4], rtol=1e-4, atol=1e-6)
        assert not gradient[~kept].any() and np.isfinite(gradient).all()
    every = np.ones(6, bool)
    nothing = {"boxes": np.full_like(targets["boxes"], np.nan), "labels": np.full_like(targets["labels"], -1)}
    (value, _), gradients = call(student, nothing, every)
    assert value == 0 and not any(g.any() for g in gradients.values())
    flat = targets["boxes"].copy()
    flat[..., 2:] = flat[..., :2]
    for boxes, scale in ((flat, 1), (targets["boxes"] + 1e4, 1), (targets["boxes"], 1e3)):
        (value, _), gradients = call(jax.tree.map(lambda x, s=scale: s * x, student), targets | {"boxes": boxes}, every)
        assert np.isfinite(value) and all(np.isfinite(g).all() for g in gradients.values())

"""From outputs to detections: those of both generations of mmdetection, and what only shapes in motion show."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdjax.losses import anchor_grid
from kdjax.tasks.detection.decoding import detect
from tests.golden_cases import cases, nhwc
from tests.losses.computing import computing_in

CASES = cases("gfl_post")
RULES = {"v2": "locations", "v3": "pairs"}


def of(case):
    """The case whose inputs it takes."""
    if case.inputs:
        return case
    return next(other for other in CASES if repr(other) == repr(case).replace("_v3", "_v2"))


def maps(case):
    """Class logits `[B, H, W, C]` and edge logits `[B, H, W, 4, K]` of every level."""
    inputs = of(case).inputs
    both = [[nhwc(inputs[f"{name}_{i}"]) for i in range(len(case.hyper["strides"]))] for name in ("cls", "reg")]
    return [(cls, reg.reshape(*reg.shape[:3], 4, -1)) for cls, reg in zip(*both, strict=True)]


def largest(of_map):
    return np.max([[of_map(*level) for level in maps(case)] for case in CASES], axis=0)


# All cases in one shape, so that they share programs: further images, locations and classes hold nan, further bins -inf.
BATCH, CLASSES, BINS = (
    largest(f).max() for f in (lambda c, e: len(c), lambda c, e: c.shape[3], lambda c, e: e.shape[4])
)
LEVELS = tuple(int(n) for n in largest(lambda cls, _: cls.shape[1] * cls.shape[2]))
MOST = max(case.hyper["max_per_img"] for case in CASES)


def padded(array, shape, value):
    return np.pad(array, [(0, n - old) for n, old in zip(shape, array.shape, strict=True)], constant_values=value)


def arguments(case, real):
    """The arrays that `detect` takes."""
    sizes = [cls.shape[1:3] for cls, _ in maps(case)]
    logits, edges, points, strides = [], [], [], []
    anchors = [
        np.asarray(anchor_grid([size], [stride])) for size, stride in zip(sizes, case.hyper["strides"], strict=True)
    ]
    for (cls, reg), boxes, stride, count in zip(maps(case), anchors, case.hyper["strides"], LEVELS, strict=True):
        cls, reg = cls.reshape(len(cls), -1, cls.shape[-1]), reg.reshape(len(reg), -1, *reg.shape[3:])
        logits.append(padded(cls, (BATCH, count, CLASSES), np.nan))
        edges.append(padded(reg, (BATCH, count, 4, BINS), -np.inf))
        points.append(padded((boxes[:, :2] + boxes[:, 2:]) / 2, (count, 2), 0))
        strides.append(np.full(count, stride))
    scale = [1.0, 1.0] if case.hyper["scale_factor"] is None else case.hyper["scale_factor"][:2]
    sizes = padded(np.array(case.hyper["image_hw"]), (BATCH, 2), 1)
    flat = np.concatenate(edges, axis=1).reshape(BATCH, -1, 4 * BINS)
    arrays = (
        np.concatenate(logits, axis=1),
        flat,
        np.concatenate(points),
        np.concatenate(strides),
        sizes,
        [scale] * BATCH,
    )
    return [real(array) for array in arrays]


@pytest.mark.parametrize("precision", ["f64", "f32"])
@pytest.mark.parametrize("case", CASES, ids=repr)
def test_golden(case, precision):
    hyper = case.hyper
    with computing_in(precision) as real:
        found = detect(
            *arguments(case, real), level_sizes=LEVELS, score_threshold=hyper["score_thr"], candidates=hyper["nms_pre"],
            iou_threshold=hyper["nms"]["iou_threshold"], max_detections=MOST, rule=RULES[case.id[-2:]],
        )  # fmt: skip
        found = jax.tree.map(lambda x: np.asarray(x)[:, : hyper["max_per_img"]], found)
        for image in range(len(hyper["image_hw"])):
            labels = case.outputs[precision][f"lab_{image}"]
            rest = len(labels)
            np.testing.assert_array_equal(found.labels[image, :rest], labels)
            both = np.concatenate([found.boxes[image], found.scores[image][:, None]], axis=-1)
            case.check(both[:rest], "out", f"det_{image}", precision)
            for array, nothing in zip(found, (0, 0, -1, -1), strict=True):
                np.testing.assert_array_equal(array[image, rest:], nothing)


def test_the_cases_tell_the_rules_apart_and_some_find_nothing():
    found = {case.id: len(case.outputs["f64"]["lab_0"]) for case in CASES}
    assert min(found.values()) == 0 and any(found[i] != found[i.replace("_v2", "_v3")] for i in found)


POINTS, STRIDES = np.array([[8.0, 8], [24, 8], [16, 16]]), np.array([8.0, 8, 16])
SIZES = np.array([[32, 40]])
find = lambda *arrays, **more: detect(*arrays, level_sizes=(2, 1), max_detections=5, **more)


def test_logits_of_edges_and_their_distances_are_one():
    rng = np.random.default_rng(0)
    logits, edges = rng.normal(size=(1, 3, 2)), rng.normal(size=(1, 3, 4, 5)).astype(np.float32)
    distances = (np.exp(edges) / np.exp(edges).sum(-1, keepdims=True)) @ np.arange(5)
    one = find(logits, edges.reshape(1, 3, 20), POINTS, STRIDES, SIZES)
    other = find(logits, distances, POINTS, STRIDES, SIZES)
    assert (one.scores > 0).all()
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), one, other)


def test_boxes_are_cut_to_their_image_and_scaled_back():
    logits, distances = np.full((2, 3, 1), -9.0), np.full((2, 3, 4), 1.5)
    logits[:, 2] = 3
    sizes, scales = np.array([[32, 40], [20, 33]]), np.array([[2.0, 4], [1, 1]])
    found = find(logits, distances, POINTS, STRIDES, sizes, scales)
    np.testing.assert_allclose(found.boxes[:, 0], [[0, 0, 20, 8], [0, 0, 33, 20]])
    np.testing.assert_array_equal(found.labels, [[0, -1, -1, -1, -1]] * 2)
    np.testing.assert_array_equal(found.boxes[:, 1:], 0)


def test_extremes_are_no_detections_and_spread_to_no_other():
    logits = np.array([[[np.nan, 2.0], [-np.inf, -np.inf], [np.inf, 1.0]]])
    distances = np.full((1, 3, 4), 0.5)
    found = find(logits, distances, POINTS, STRIDES, SIZES)
    np.testing.assert_array_equal(found.labels, [[0, 1, 1, -1, -1]])
    assert np.isfinite(found.boxes).all() and found.scores[0, 0] == 1
    gone = find(
        logits, np.where(np.arange(3)[:, None] == 2, [0.5, np.nan, np.inf, 0.5], distances), POINTS, STRIDES, SIZES
    )
    np.testing.assert_array_equal(gone.labels, [[1, -1, -1, -1, -1]])
    half = find(logits.astype(jnp.bfloat16), distances.astype(jnp.bfloat16), POINTS, STRIDES, SIZES)
    assert half.scores.dtype == half.boxes.dtype == jnp.float32
    np.testing.assert_array_equal(half.labels, found.labels)


def test_refuses_what_does_not_fit():
    logits, distances = np.zeros((1, 3, 2)), np.zeros((1, 3, 4))
    with pytest.raises(ValueError, match=r"edges has shape \(1, 3, 6\); it must be \[1, 3\] with 4 or 4 K"):
        find(logits, np.zeros((1, 3, 6)), POINTS, STRIDES, SIZES)
    with pytest.raises(ValueError, match=r"points has shape \(2, 2\); class_logits \(1, 3, 2\) asks for \(3, 2\)"):
        find(logits, distances, POINTS[:2], STRIDES, SIZES)
    with pytest.raises(ValueError, match=r"scale_factors has shape \(1, 4\)"):
        find(logits, distances, POINTS, STRIDES, SIZES, np.ones((1, 4)))
    with pytest.raises(ValueError, match="level_sizes adds up to 2, there are 3"):
        detect(logits, distances, POINTS, STRIDES, SIZES, level_sizes=(1, 1))
    with pytest.raises(ValueError, match="rule is 'best'"):
        find(logits, distances, POINTS, STRIDES, SIZES, rule="best")
    with pytest.raises(TypeError, match="class_logits is int"):
        find(logits.astype(int), distances, POINTS, STRIDES, SIZES)
    with pytest.raises(ValueError, match=r"class_logits has shape \(3, 2\)"):
        find(logits[0], distances, POINTS, STRIDES, SIZES)


def test_a_detection_says_of_which_level_it_is():
    """Locations 0 and 1 are of the first, 2 of the second; two are sure enough."""
    boxes = np.array([[[0, 0, 8, 8], [40, 0, 48, 8], [0, 16, 32, 48]]], np.float32)
    logits = np.array([[[-9.0], [1.0], [2.0]]], np.float32)
    found = detect(logits, boxes, None, None, np.array([[64, 64]]), level_sizes=(2, 1), max_detections=3)
    np.testing.assert_array_equal(found.levels, [[1, 0, -1]])
    np.testing.assert_array_equal(found.boxes[0, :2], boxes[0, [2, 1]])

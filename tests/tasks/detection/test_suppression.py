"""Suppression: the indices of torchvision, a plain loop, and what is no box."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdjax.tasks.detection.suppression import nms, take
from tests.golden_cases import cases
from tests.losses.computing import computing_in

CASES = cases("nms")
MOST = max(len(case.inputs["scores"]) for case in CASES)
run = jax.jit(nms, static_argnames=("iou_threshold", "max_detections"))


def padded(case, real):
    """All cases in one shape: rows of nan that score -inf are no boxes."""
    rows = MOST - len(case.inputs["scores"])
    filled = lambda name, value: np.concatenate(
        [case.inputs[name], np.full((rows, *case.inputs[name].shape[1:]), value, case.inputs[name].dtype)]
    )
    return real(filled("boxes", np.nan)), real(filled("scores", -np.inf)), filled("labels", 0)


@pytest.mark.parametrize("precision", ["f64", "f32"])
@pytest.mark.parametrize("case", CASES, ids=repr)
def test_golden(case, precision):
    with computing_in(precision) as real:
        boxes, scores, labels = padded(case, real)
        settings = {"iou_threshold": case.hyper["iou_threshold"], "max_detections": MOST}
        expected = case.outputs[precision]
        check(run(boxes, scores, 0 * labels, **settings), expected["keep"])
        keep, each = run(boxes, scores, labels, **settings), expected["keep_each"]
        check(np.sort(keep)[::-1], np.sort(each)[::-1])
        check(
            keep, sorted(each, key=lambda i: (-case.inputs["scores"][i], i))
        )  # torchvision merges classes in any order
        if set(expected["keep_tv"]) == set(each):  # else its offsets let classes overlap
            check(keep, expected["keep_tv"])


def check(keep, expected):
    np.testing.assert_array_equal(keep[: len(expected)], expected)
    np.testing.assert_array_equal(keep[len(expected) :], -1)


def test_most_cases_say_the_order_by_class():
    assert sum(set(case.outputs["f64"]["keep_tv"]) == set(case.outputs["f64"]["keep_each"]) for case in CASES) > 2


def plain(boxes, scores, labels, threshold, most):
    """The definition, in float64."""
    kept, left = [], sorted(np.flatnonzero(scores > -np.inf), key=lambda i: -scores[i])
    while left and len(kept) < most:
        best = left.pop(0)
        kept.append(best)
        left = [i for i in left if labels[i] != labels[best] or iou(boxes[i], boxes[best]) <= threshold]
    return np.array(kept + [-1] * (most - len(kept)))


def iou(a, b):
    a, b = np.float64(a), np.float64(b)
    width, height = np.maximum(np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2]), 0)
    union = np.prod(a[2:] - a[:2]) + np.prod(b[2:] - b[:2]) - width * height
    return width * height / union if union > 0 else 0.0


def images(count=3, rows=80):
    """Boxes on whole pixels with many equal scores; of one image most are no boxes."""
    rng = np.random.default_rng(3)
    corner = rng.integers(-20, 40, (count, rows, 2))
    boxes = np.concatenate([corner, corner + rng.integers(0, 30, (count, rows, 2))], axis=-1).astype(np.float32)
    scores = (rng.integers(1, 6, (count, rows)) / 5).astype(np.float32)
    scores[0, 4:] = -np.inf
    return boxes, scores, rng.integers(0, 3, (count, rows))


@pytest.mark.parametrize("most", [6, 80])
def test_a_batch_is_suppressed_image_by_image(most):
    boxes, scores, labels = images()
    keep = run(boxes, scores, labels, iou_threshold=0.35, max_detections=most)
    expected = [plain(*image, 0.35, most) for image in zip(boxes, scores, labels, strict=True)]
    np.testing.assert_array_equal(keep, expected)
    assert (np.array(expected)[0] == -1).any()
    one = run(boxes[1], scores[1], labels[1], iou_threshold=0.35, max_detections=most)
    np.testing.assert_array_equal(one, expected[1])


def test_an_overlap_that_is_the_nearest_float_of_the_threshold():
    """6 of 10 pixels: 0.6 in float32 is above the number 0.6, so that it suppresses; 5 of 10 is 0.5 and does not."""
    boxes = np.array([[0, 0, 10, 1], [0, 0, 6, 1], [0, 0, 5, 1]], np.float32)
    scores = np.array([0.9, 0.8, 0.7], np.float32)
    np.testing.assert_array_equal(run(boxes, scores, iou_threshold=0.6, max_detections=2), [0, 2])
    np.testing.assert_array_equal(run(boxes[::2], scores[::2], iou_threshold=0.5, max_detections=2), [0, 1])
    traced = jax.jit(lambda t: nms(boxes, scores, iou_threshold=t, max_detections=3))
    np.testing.assert_array_equal(traced(0.55), [0, 2, -1])


def test_what_is_no_box_and_boxes_that_are_empty():
    boxes = np.array([[0, 0, 9, 9], [5, 5, 5, 9], [5, 5, 5, 9], [np.nan] * 4, [0, 0, 9, 9], [0, 0, 9, 9]], np.float32)
    scores = np.array([0.1, 0.5, 0.4, 0.3, np.nan, -np.inf], np.float32)
    keep = functools.partial(run, iou_threshold=0.0, max_detections=6)
    np.testing.assert_array_equal(keep(boxes, scores), [1, 2, 3, 0, -1, -1])
    np.testing.assert_array_equal(keep(boxes, scores * np.nan), [-1] * 6)
    np.testing.assert_array_equal(keep(boxes[:0], scores[:0]), [-1] * 6)
    negative = keep(boxes, np.array([-1, -3, -2, -4, np.inf, -np.inf], np.float32))
    np.testing.assert_array_equal(negative, [4, 2, 1, 3, -1, -1])


def test_rows_are_taken_at_what_is_kept():
    keep, values = jnp.array([[2, -1], [0, 1]]), jnp.arange(12.0).reshape(2, 3, 2)
    np.testing.assert_array_equal(take(keep, values, 9), [[[4, 5], [9, 9]], [[6, 7], [8, 9]]])
    np.testing.assert_array_equal(take(keep, values[..., 0], -1), [[4, -1], [6, 8]])
    np.testing.assert_array_equal(take(-jnp.ones((1, 2), int), values[:1, :0], 0), np.zeros((1, 2, 2)))


def test_refuses_what_does_not_fit():
    boxes, scores, labels = images()
    with pytest.raises(ValueError, match=r"scores has shape \(80,\), there are boxes \(3, 80\)"):
        nms(boxes, scores[0], labels)
    with pytest.raises(ValueError, match=r"boxes has shape \(3, 80\); it must be"):
        nms(scores, scores)
    with pytest.raises(ValueError, match="max_detections is 0"):
        nms(boxes, scores, max_detections=0)
    with pytest.raises(TypeError, match="must be floating point"):
        nms(boxes.astype(int), scores)

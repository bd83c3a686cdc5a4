"""Assignment by overlap and by points: against plain loops and the original's matches of SSD; and at the edges."""

import jax
import numpy as np
import pytest

from kdjax import losses
from tests.golden_cases import cases
from tests.losses.computing import computing_in

MATCHES = [case for case in cases("ssd") if case.id.startswith("match")]
PRIORS = next(case for case in cases("ssd") if case.id == "priors_coco").outputs["f32"]["anchors"]
MOST = 1 + max(len(case.inputs["gt"]) for case in MATCHES)
by_overlap = jax.jit(losses.overlap_assign, static_argnames=("best", "positive", "negative"))
by_points = jax.jit(losses.point_assign)


def padded(boxes, most):
    """Objects and their mask; padding holds nan."""
    rest = np.full((most - len(boxes), 4), np.nan, np.float32)
    return np.concatenate([boxes, rest]).astype(np.float32), np.arange(most) < len(boxes)


@pytest.mark.parametrize("precision", ["f64", "f32"])
@pytest.mark.parametrize("case", MATCHES, ids=repr)
def test_matches_golden(case, precision):
    h = case.hyper
    with computing_in(precision) as real:
        gts, there = padded(case.inputs["gt"], MOST)
        index, overlap = by_overlap(
            real(PRIORS), real(gts), there, positive=h["pos_iou_thr"], negative=h["neg_iou_thr"],
            best="all" if h["gt_max_assign_all"] else "first",
        )  # fmt: skip
        np.testing.assert_array_equal(index + 1, case.outputs["f64"]["assigned_gt"])
        case.check(overlap.sum(), "out", "max_overlap_sum", precision)


def iou(a, b):
    sides = np.maximum(np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2]), 0)
    area = lambda x: (x[2] - x[0]) * (x[3] - x[1])
    return sides[0] * sides[1] / max(area(a) + area(b) - sides[0] * sides[1], 1e-6)


def plain_overlap(anchors, boxes, best, positive=0.5, negative=0.4):
    table = np.array([[iou(anchor, box) for anchor in anchors] for box in boxes])
    index = np.full(len(anchors), -1)
    for a in range(len(anchors)):
        top = table[:, a].max()
        index[a] = table[:, a].argmax() if top >= positive else -1 if top < negative else -2
    for g, row in enumerate(table):
        for a in np.flatnonzero((row == row.max()) & (row > 0))[: 1 if best == "first" else None]:
            index[a] = table[:, a].argmax() if best == "own" else g
    return index


@pytest.mark.parametrize("best", ["own", "all", "first"])
def test_overlap_is_the_plain_loop(best):
    """Objects on a grid, so that anchors are equally good; two of one best anchor, two hardly overlapped, one not at all."""
    grid = np.stack(np.meshgrid(np.arange(6), np.arange(4)), -1).reshape(-1, 2) * 8.0
    anchors = np.concatenate([grid - 8, grid + 8], -1).astype(np.float32)
    boxes = np.array(
        [[0, 0, 16, 16], [1, 1, 15, 15], [10, 0, 26, 16], [30, 12, 34, 15], [36, 26, 39, 29], [90, 90, 99, 99]]
    )
    boxes = boxes.astype(np.float32)
    gts, there = padded(boxes, 7)
    index, overlap = by_overlap(anchors, gts, there, best=best)
    wanted = plain_overlap(anchors, boxes, best)
    np.testing.assert_array_equal(index, wanted)
    assert {-2, -1, 2, 3, 4} <= set(wanted.tolist()) and 5 not in wanted
    assert (0 in wanted) == (best == "own")  # whose best anchor is the next object's too
    np.testing.assert_allclose(overlap, [max(iou(a, b) for b in boxes) for a in anchors], rtol=1e-6)
    mask = np.arange(len(anchors)) % 2 == 0
    halved, _ = by_overlap(anchors, gts, there, best=best, anchor_mask=mask)
    np.testing.assert_array_equal(np.asarray(halved)[mask], plain_overlap(anchors[mask], boxes, best))
    assert (np.asarray(halved)[~mask] == -1).all()


def plain_points(points, boxes, reach, ranges):
    index, inside = np.full(len(points), -1), np.zeros(len(points), bool)
    for i, (x, y) in enumerate(points):
        smallest = np.inf
        for g, (left, top, right, bottom) in enumerate(boxes):
            distances = (x - left, y - top, right - x, bottom - y)
            inside[i] |= min(distances) > 0
            near = abs(x - (left + right) / 2) < reach[i] and abs(y - (top + bottom) / 2) < reach[i]
            fits = ranges[i][0] <= max(distances) <= ranges[i][1]
            area = (right - left) * (bottom - top)
            if min(distances) > 0 and near and fits and area < smallest:
                index[i], smallest = g, area
    return index, inside


def test_points_are_the_plain_loop():
    rng = np.random.default_rng(0)
    points = np.concatenate([np.stack(np.meshgrid(np.arange(n), np.arange(n)), -1).reshape(-1, 2) * s + s / 2
                             for n, s in ((8, 8), (4, 16), (2, 32))]).astype(np.float32)  # fmt: skip
    strides = np.repeat([8.0, 16.0, 32.0], [64, 16, 4]).astype(np.float32)
    ranges = np.stack([np.where(strides == 8, 0, 2 * strides), np.where(strides == 32, np.inf, 4 * strides)], -1)
    low = rng.uniform(0, 40, (7, 2))
    boxes = np.concatenate([low, low + rng.uniform(3, 40, (7, 2))], -1).astype(np.float32)
    gts, there = padded(boxes, 8)
    index, inside = by_points(points, gts, there, reach=1.5 * strides, ranges=ranges)
    wanted, within = plain_points(points, boxes, 1.5 * strides, ranges)
    np.testing.assert_array_equal(index, wanted)
    np.testing.assert_array_equal(inside, within)
    assert len(set(wanted.tolist())) > 4 and (within & (wanted < 0)).any()
    none, outside = by_points(points, gts, np.zeros(8, bool), reach=1.5 * strides, ranges=ranges)
    assert (np.asarray(none) == -1).all() and not np.asarray(outside).any()


def test_what_does_not_fit_is_refused():
    anchors, there = np.zeros((2, 4), np.float32), np.ones(2, bool)
    with pytest.raises(ValueError, match='best is \'last\'; use "own", "all" or "first"'):
        losses.overlap_assign(anchors, anchors, there, best="last")
    with pytest.raises(ValueError, match=r"negative is 0\.6, above positive 0\.5"):
        losses.overlap_assign(anchors, anchors, there, negative=0.6)
    with pytest.raises(ValueError, match=r"reach has shape \(3,\).* one and two numbers a point"):
        losses.point_assign(anchors[:, :2], anchors, there, reach=np.zeros(3), ranges=np.zeros((2, 2)))

"""ATSS assignment and the valuable localization region: against the original implementation and a plain loop."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from kdjax import losses
from tests.golden_cases import cases
from tests.losses.computing import compiled, computing_in

losses = compiled(losses)

PRECISIONS = pytest.mark.parametrize("precision", ["f64", "f32"])
CASES = cases("det_atss")
WITH_REGION = cases("det_atss", symbol="ATSSAssigner.assign, get_vlr_region")  # the reference has none without objects
assign = jax.jit(losses.atss_assign, static_argnames=("level_sizes", "topk"))
threshold = jax.jit(losses.atss_threshold, static_argnames=("level_sizes", "topk"))
overlaps_of = jax.jit(losses.pairwise_box_iou, static_argnames="kind")
region = jax.jit(losses.vlr_weights, static_argnames=("level_sizes", "topk", "overlap", "below_threshold"))
MOST = 1 + max(len(case.inputs["gt"]) for case in CASES)  # objects an image is padded to


def levels(case):
    return tuple(int(size) for name, size in case.inputs.items() if name.startswith("num_level_"))


def padded(case, real):
    """Objects and their mask; padding holds nan."""
    gts = case.inputs["gt"]
    rest = np.full((MOST - len(gts), 4), np.nan, np.float32)
    return real(np.concatenate([gts, rest])), np.arange(MOST) < len(gts)


@PRECISIONS
@pytest.mark.parametrize("case", CASES, ids=repr)
def test_assignment_golden(case, precision):
    with computing_in(precision) as real:
        # A case without objects has no topk, which then makes no difference.
        anchors, topk = real(case.inputs["anchors"]), case.hyper.get("topk", 9)
        index, iou = assign(anchors, *padded(case, real), level_sizes=levels(case), topk=topk)
        # The reference counts objects from 1.
        np.testing.assert_array_equal(index + 1, case.outputs[precision]["assigned_gt"])
        positive = index >= 0
        assert len(case.inputs["gt"]) or not positive.any()
        labels = np.append(case.inputs["gt_label"], -1)[np.asarray(index)]
        np.testing.assert_array_equal(labels, case.outputs[precision]["assigned_label"])
        if "max_overlap" in case.outputs[precision]:
            case.check(jnp.where(positive, iou, -1e8), "out", "max_overlap", precision)
        np.testing.assert_array_equal(iou[~positive], 0)


@PRECISIONS
@pytest.mark.parametrize("overlap, name", [("iof_centre", "vlr"), ("diou", "vlr_true_diou")])
@pytest.mark.parametrize("case", WITH_REGION, ids=repr)
def test_region_golden(case, overlap, name, precision):
    with computing_in(precision) as real:
        anchors, topk = real(case.inputs["anchors"]), case.hyper["topk"]
        weights = region(anchors, *padded(case, real), level_sizes=levels(case), topk=topk, overlap=overlap)
        assert (weights > 0).any() == (case.outputs[precision][name] > 0).any()
        case.check(weights, "out", name, precision)


def test_the_cases_have_positives_and_regions():
    assert any((case.outputs["f64"]["assigned_gt"] > 0).any() for case in CASES)
    for name in ("vlr", "vlr_true_diou"):
        assert any((case.outputs["f64"][name] > 0).any() for case in WITH_REGION)


# --- against a plain loop over objects and levels ---

SIZES, STRIDES = [(4, 5), (2, 3)], [8, 16]
LEVELS = tuple(h * w for h, w in SIZES)
ANCHORS = np.asarray(losses.anchor_grid(SIZES, STRIDES, scale=4))
GTS = np.array([[3.0, 2.0, 29.5, 20.0], [10.0, 4.0, 33.0, 30.5], [0.0, 0.0, 5.0, 5.5]], np.float32)
NOT_ALL = np.arange(sum(LEVELS)) % 5 != 2


def plain_iou(a, b):
    width, height = (np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2])).clip(0)
    return width * height / (np.prod(a[2:] - a[:2]) + np.prod(b[2:] - b[:2]) - width * height)


def plain_candidates(gt, topk, kept):
    """Indices of the nearest kept anchors of each level."""
    centres, wanted = (ANCHORS[:, :2] + ANCHORS[:, 2:]) / 2, (gt[:2] + gt[2:]) / 2
    found, start = [], 0
    for size in LEVELS:
        own = [a for a in range(start, start + size) if kept[a]]
        found += sorted(own, key=lambda a: np.sum((np.float64(centres[a]) - wanted) ** 2))[:topk]
        start += size
    return found


@pytest.mark.parametrize("kept", [np.ones(sum(LEVELS), bool), NOT_ALL], ids=["all", "some"])
def test_threshold_and_positives_are_those_of_a_plain_loop(kept):
    topk, best, thresholds = 3, np.full(sum(LEVELS), -1), []
    best_iou = np.zeros(sum(LEVELS))
    for g, gt in enumerate(np.float64(GTS)):
        found = plain_candidates(gt, topk, kept)
        overlaps = [plain_iou(np.float64(ANCHORS[a]), gt) for a in found]
        thresholds.append(np.mean(overlaps) + np.std(overlaps, ddof=1))
        for a, iou in zip(found, overlaps, strict=True):
            x, y = (ANCHORS[a, :2] + ANCHORS[a, 2:]) / 2
            inside = min(x - gt[0], y - gt[1], gt[2] - x, gt[3] - y) > 0.01
            if inside and iou >= thresholds[-1] and iou > best_iou[a]:
                best[a], best_iou[a] = g, iou
    assert (best >= 0).any()
    actual = threshold(ANCHORS, GTS, LEVELS, topk, anchor_mask=kept)
    np.testing.assert_allclose(actual, thresholds, rtol=1e-5)
    index, iou = assign(ANCHORS, GTS, np.ones(3, bool), LEVELS, topk=topk, anchor_mask=kept)
    np.testing.assert_array_equal(index, best)
    np.testing.assert_allclose(iou, best_iou, rtol=1e-5)
    # The whole of a level that has fewer anchors than topk.
    whole = threshold(ANCHORS, GTS, LEVELS, topk=50, anchor_mask=kept)
    overlaps = np.array([[plain_iou(np.float64(a), np.float64(g)) for a in ANCHORS[kept]] for g in GTS])
    np.testing.assert_allclose(whole, overlaps.mean(1) + overlaps.std(1, ddof=1), rtol=1e-5)


@pytest.mark.parametrize("overlap", ["iof_centre", "diou", "iou"])
@pytest.mark.parametrize("below", [True, False])
def test_region_is_a_band_of_the_overlap(overlap, below):
    mask = np.array([True, False, True])
    weights = region(ANCHORS, GTS, mask, LEVELS, topk=3, overlap=overlap, below_threshold=below, anchor_mask=NOT_ALL)
    thresholds = threshold(ANCHORS, GTS, LEVELS, 3, anchor_mask=NOT_ALL)
    measure = np.asarray(overlaps_of(ANCHORS, GTS, kind=overlap))
    iou = np.asarray(overlaps_of(ANCHORS, GTS, kind="iou"))
    thresholds = np.asarray(thresholds)
    expected = np.zeros(sum(LEVELS))
    for a in np.flatnonzero(NOT_ALL):
        for g in (0, 2):
            if measure[a, g] >= 0.25 * thresholds[g] and (measure[a, g] < thresholds[g] or not below):
                expected[a] = max(expected[a], iou[a, g])
    assert (expected > 0).any()
    np.testing.assert_allclose(weights, expected, rtol=1e-6)


def test_gamma_of_one_leaves_nothing():
    assert (region(ANCHORS, GTS, np.ones(3, bool), LEVELS, topk=3, gamma=1.0) == 0).all()
    wide = region(ANCHORS, GTS, np.ones(3, bool), LEVELS, topk=3, gamma=0.0) > 0
    narrow = region(ANCHORS, GTS, np.ones(3, bool), LEVELS, topk=3, gamma=0.5) > 0
    assert wide.sum() > narrow.sum() > 0 and (wide | ~narrow).all()


# --- padding, empty images, batches ---


def test_padding_and_batches_change_nothing():
    full = np.ones(3, bool)
    padding = np.array([[np.nan] * 4, ANCHORS[7], [np.inf, 0, -np.inf, 0]], np.float32)
    more, mask = np.concatenate([padding, GTS]), np.array([False] * 3 + [True] * 3)
    index, iou = assign(ANCHORS, GTS, full, LEVELS, topk=3)
    later, later_iou = assign(ANCHORS, more, mask, LEVELS, topk=3)
    np.testing.assert_array_equal(jnp.where(later >= 0, later - 3, -1), index)
    np.testing.assert_array_equal(later_iou, iou)
    weights = region(ANCHORS, GTS, full, LEVELS, topk=3)
    np.testing.assert_array_equal(region(ANCHORS, more, mask, LEVELS, topk=3), weights)
    images, masks = np.stack([more, more]), np.stack([mask, np.zeros(6, bool)])
    both = jax.jit(jax.vmap(lambda g, m: losses.vlr_weights(ANCHORS, g, m, LEVELS, topk=3)))(images, masks)
    np.testing.assert_allclose(both, [weights, 0 * weights], rtol=1e-6)
    both, _ = jax.jit(jax.vmap(lambda g, m: losses.atss_assign(ANCHORS, g, m, LEVELS, topk=3)))(images, masks)
    np.testing.assert_array_equal(both, [later, 0 * later - 1])


def test_images_spread_over_devices_are_assigned_where_they_are():
    rows = NamedSharding(jax.make_mesh((8,), ("images",), axis_types=(AxisType.Auto,)), PartitionSpec("images"))
    gts, masks = jax.device_put((np.stack([GTS] * 8), np.ones((8, 3), bool)), rows)
    each = lambda g, m: (losses.vlr_weights(ANCHORS, g, m, LEVELS), losses.atss_assign(ANCHORS, g, m, LEVELS))
    program = jax.jit(jax.vmap(each), out_shardings=rows).lower(gts, masks).compile().as_text()
    assert not re.findall("all-gather|all-reduce|all-to-all|collective-permute", program)


def test_an_image_without_objects():
    none = np.zeros((0, 4), np.float32), np.zeros(0, bool)
    index, iou = assign(ANCHORS, *none, LEVELS)
    np.testing.assert_array_equal(index, -1)
    np.testing.assert_array_equal(iou, 0)
    np.testing.assert_array_equal(region(ANCHORS, *none, LEVELS), 0)
    assert threshold(ANCHORS, none[0], LEVELS).shape == (0,)


def test_empty_boxes_single_candidates_and_no_anchor_left():
    points = np.array([[8.0, 8.0, 8.0, 8.0], [9.0, 9.0, 3.0, 3.0]], np.float32)
    for result in (
        assign(ANCHORS, points, np.ones(2, bool), LEVELS)[0] + 1,
        region(ANCHORS, points, np.ones(2, bool), LEVELS),
    ):
        np.testing.assert_array_equal(result, 0)
    # One candidate has no spread: it is its own threshold.
    index, iou = assign(ANCHORS[:1], ANCHORS[:1] + 1, np.ones(1, bool), (1,))
    assert index[0] == 0
    np.testing.assert_allclose(threshold(ANCHORS[:1], ANCHORS[:1] + 1, (1,)), iou, rtol=1e-6)
    gone = np.zeros(sum(LEVELS), bool)
    assert (assign(ANCHORS, GTS, np.ones(3, bool), LEVELS, topk=3, anchor_mask=gone)[0] == -1).all()
    assert (region(ANCHORS, GTS, np.ones(3, bool), LEVELS, topk=3, anchor_mask=gone) == 0).all()


def test_of_anchors_equally_near_the_first_are_candidates():
    """Four anchors as near to the object's centre, the last two larger: the first two alone count, of equal IoU."""
    centres, half = np.array([[0, 0], [8, 0], [0, 8], [8, 8]]), np.array([[4], [4], [8], [8]])
    anchors = np.concatenate([centres - half, centres + half], axis=-1).astype(np.float32)
    object_ = np.array([[0.0, 0.0, 8.0, 8.0]], np.float32)
    np.testing.assert_allclose(threshold(anchors, object_, (4,), 2), 16 / 112, rtol=1e-6)
    four = np.array([16 / 112] * 2 + [64 / 256] * 2)
    np.testing.assert_allclose(threshold(anchors, object_, (4,), 4), four.mean() + four.std(ddof=1), rtol=1e-6)


def test_nothing_is_learned_from_an_assignment():
    by_gt = jax.jit(jax.grad(lambda g: losses.vlr_weights(ANCHORS, g, np.ones(3, bool), LEVELS, topk=3).sum()))(GTS)
    np.testing.assert_array_equal(by_gt, 0)
    by_gt = jax.jit(jax.grad(lambda g: losses.atss_assign(ANCHORS, g, np.ones(3, bool), LEVELS, topk=3)[1].sum()))(GTS)
    np.testing.assert_array_equal(by_gt, 0)


def test_refuses_what_does_not_fit():
    full = np.ones(3, bool)
    with pytest.raises(ValueError, match="level_sizes adds up to 20, there are 26 anchors"):
        losses.atss_assign(ANCHORS, GTS, full, [20])
    with pytest.raises(ValueError, match=r"gt_mask has shape \(2,\), gts 3 boxes"):
        losses.vlr_weights(ANCHORS, GTS, full[:2], LEVELS)
    with pytest.raises(ValueError, match=r"anchor_mask has shape \(3,\), anchors 26 boxes"):
        losses.vlr_weights(ANCHORS, GTS, full, LEVELS, anchor_mask=full)
    with pytest.raises(ValueError, match="topk is 0"):
        losses.atss_threshold(ANCHORS, GTS, LEVELS, 0)
    with pytest.raises(ValueError, match="overlap is 'giou'"):
        losses.vlr_weights(ANCHORS, GTS, full, LEVELS, overlap="giou")
    with pytest.raises(ValueError, match=r"must be \[A, 4\] and \[G, 4\] of one image"):
        losses.atss_assign(ANCHORS, GTS[None], full, LEVELS)

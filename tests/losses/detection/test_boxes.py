"""Overlaps of boxes, distances and anchors: against the original implementation, and at their edges."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdjax import losses
from tests.golden_cases import cases
from tests.losses.computing import compiled, computing_in

losses = compiled(losses)

PRECISIONS = pytest.mark.parametrize("precision", ["f64", "f32"])
KINDS = ["iou", "iof", "giou", "diou", "ciou", "iof_centre"]
box_iou = jax.jit(losses.box_iou, static_argnames="kind")
pairwise_box_iou = jax.jit(losses.pairwise_box_iou, static_argnames="kind")
box_regression = jax.jit(losses.box_regression, static_argnames="kind")
LOSSES = {f"{kind}_loss": kind for kind in ("iou", "giou", "diou", "ciou")}


@functools.partial(jax.jit, static_argnums=0, static_argnames="kind")
def with_gradient(function, boxes, others, **kind):
    """The values of each pair, and the gradient of their sum by `boxes`."""
    values, pull = jax.vjp(lambda b: function(b, others, **kind), boxes)
    return values, pull(jnp.ones_like(values))[0]


@PRECISIONS
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("case", cases("det_iou", symbol="bbox_overlaps, diou_loss, ciou_loss"), ids=repr)
def test_pairwise_overlaps_golden(case, kind, precision):
    name = {"iof_centre": "ld_diou_asis"}.get(kind, kind)
    with computing_in(precision) as real:
        actual = pairwise_box_iou(real(case.inputs["a"]), real(case.inputs["b"]), kind=kind)
        if precision == "f64":
            case.check(actual, "out", name, precision)
        else:  # the reference's own CIoU of equal boxes is nan, and the case has no relative tolerance
            expected = case.outputs["f64"][name]
            assert actual.dtype == jnp.float32
            np.testing.assert_allclose(actual, expected, rtol=2e-5, atol=4e-6)


@PRECISIONS
@pytest.mark.parametrize("case", [c for c in cases("det_iou") if c.symbol in LOSSES], ids=repr)
def test_box_regression_golden(case, precision):
    with computing_in(precision) as real:
        predicted, targets = real(case.inputs["pred"]), real(case.inputs["target"])
        values, gradient = with_gradient(losses.box_regression, predicted, targets, kind=LOSSES[case.symbol])
        case.check(values, "out", "elem", precision)
        case.check(jnp.sum(values), "out", "loss", precision)
        case.check(gradient, "grad", "pred", precision)


@PRECISIONS
@pytest.mark.parametrize("case", cases("det_iou", symbol="GIoULoss"), ids=repr)
def test_weighted_giou_golden(case, precision):
    with computing_in(precision) as real:

        def weighted(boxes):
            values = losses.box_regression(boxes, real(case.inputs["target"]))
            return case.hyper["loss_weight"] * jnp.sum(real(case.inputs["weight"]) * values) / case.hyper["avg_factor"]

        value, gradient = jax.jit(jax.value_and_grad(weighted))(real(case.inputs["pred"]))
        case.check(value, "out", "loss", precision)
        case.check(gradient, "grad", "pred", precision)


@PRECISIONS
@pytest.mark.parametrize("case", cases("det_dfl", symbol="distance2bbox, bbox2distance"), ids=repr)
def test_distances_golden(case, precision):
    with computing_in(precision) as real:
        points, distances = real(case.inputs["points"]), real(case.inputs["distance"])
        boxes = jax.jit(losses.distance2bbox)(points, distances)
        case.check(boxes, "out", "boxes", precision)
        cut = losses.distance2bbox(points, distances, max_shape=tuple(case.hyper["max_shape"]))
        case.check(cut, "out", "boxes_clipped", precision)
        back = losses.bbox2distance(points, boxes, max_distance=case.hyper["max_dis"], margin=case.hyper["eps"])
        case.check(back, "out", "back", precision)
        whole = losses.bbox2distance(points, boxes)
        np.testing.assert_allclose(whole, distances, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("case", cases("det_anchors"), ids=repr)
def test_anchors_golden(case):
    anchors = losses.anchor_grid(case.hyper["feat_sizes"], case.hyper["strides"], scale=case.hyper["octave_base_scale"])
    assert anchors.dtype == jnp.float32
    np.testing.assert_array_equal(anchors, case.outputs["f32"]["anchors"])


# --- what the definitions promise ---

UNIT = [0.0, 0.0, 2.0, 1.0]


@pytest.mark.parametrize(
    "other, expected",
    [
        # inside, half the area: IoU 1/2; centres 1/2 apart, diagonal^2 5; the shapes are a 2:1 box and a square
        ([0.0, 0.0, 1.0, 1.0], {"iou": 0.5, "iof": 0.5, "giou": 0.5, "diou": 0.45, "iof_centre": 0.45}),
        # touching: the enclosing box is full
        ([2.0, 0.0, 4.0, 1.0], {"iou": 0.0, "iof": 0.0, "giou": 0.0, "diou": -4 / 17, "ciou": -4 / 17}),
        # far apart: union 4 in an enclosing 6
        ([4.0, 0.0, 6.0, 1.0], {"iou": 0.0, "giou": -1 / 3, "diou": -16 / 37}),
        ([-2.0, -2.0, 4.0, 4.0], {"iou": 2 / 36, "iof": 1.0, "giou": 2 / 36, "iof_centre": 1 - 0.25 / 72}),
    ],
)
def test_overlaps_by_hand(other, expected):
    for kind, value in expected.items():
        actual = box_iou(jnp.array(UNIT), jnp.array(other), kind=kind)
        np.testing.assert_allclose(actual, value, rtol=1e-5, atol=1e-7, err_msg=kind)


def test_ciou_adds_the_difference_of_shapes():
    boxes, others = jnp.array(UNIT), jnp.array([0.0, 0.0, 1.0, 1.0])
    v = 4 / np.pi**2 * (np.arctan(1) - np.arctan(2)) ** 2
    np.testing.assert_allclose(box_iou(boxes, others, kind="ciou"), 0.45 - v**2 / (0.5 + v), rtol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_a_box_covers_itself_and_pairs_are_the_aligned_ones(kind):
    boxes = jnp.array([UNIT, [5.0, 5.0, 9.0, 6.0], [-3.0, -1.0, 1.0, 7.0]])
    values, gradient = with_gradient(losses.box_iou, boxes, boxes, kind=kind)
    np.testing.assert_allclose(values, 1, rtol=1e-6)
    assert np.isfinite(gradient).all()
    pairs = losses.pairwise_box_iou(boxes[None], boxes[None, :2], kind=kind)
    assert pairs.shape == (1, 3, 2)
    np.testing.assert_array_equal(pairs[0, 2, 1], losses.box_iou(boxes[2], boxes[1], kind=kind))
    np.testing.assert_array_equal(jax.vmap(lambda b: losses.box_iou(b, boxes[1], kind=kind))(boxes), pairs[0, :, 1])


EMPTY = [[1.0, 1.0, 1.0, 1.0], [3.0, 3.0, 1.0, 1.0], [0.0, 0.0, 2.0, 0.0], [0.0, 0.0, 0.0, 2.0], [5.0, 0.0, 4.0, 1.0]]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("others", [[UNIT] * 5, EMPTY], ids=["with a box", "with themselves"])
def test_empty_boxes_share_nothing_and_are_finite(kind, others):
    for boxes, against in (EMPTY, others), (others, EMPTY):
        values, gradient = with_gradient(losses.box_iou, jnp.array(boxes), jnp.array(against), kind=kind)
        assert np.isfinite(values).all() and np.isfinite(gradient).all()
        if kind in ("iou", "iof"):
            np.testing.assert_array_equal(values, 0)
        assert (values <= 1e-6).all() and (values >= -1.5).all()


def test_boxes_of_ten_thousand_and_half_types():
    boxes = jnp.array([[-1e4, -1e4, 1e4, 1e4]])
    for kind in KINDS:
        np.testing.assert_allclose(box_iou(boxes, boxes, kind=kind), 1, rtol=1e-5)
        half = box_iou(jnp.array([UNIT], jnp.bfloat16), jnp.array([UNIT], jnp.bfloat16), kind=kind)
        assert half.dtype == jnp.float32


def test_box_regression_teaches_the_prediction_alone():
    boxes, targets = jnp.array([UNIT]), jnp.array([[0.5, 0.25, 2.0, 3.0]])
    ours, theirs = jax.jit(jax.grad(lambda b, t: losses.box_regression(b, t).sum(), argnums=(0, 1)))(boxes, targets)
    np.testing.assert_array_equal(theirs, 0)
    # Nearer to the target with every step against the gradient.
    assert box_regression(boxes - 0.1 * ours, targets) < box_regression(boxes, targets)


def test_refuses_what_is_no_box():
    with pytest.raises(ValueError, match=r"boxes has shape \(3,\); it must be \[..., 4\]"):
        losses.box_iou(jnp.zeros(3), jnp.zeros(4))
    with pytest.raises(TypeError, match="others must be floating point"):
        losses.box_iou(jnp.zeros(4), jnp.zeros(4, int))
    with pytest.raises(ValueError, match="do not broadcast: give one box for each, or use pairwise_box_iou"):
        losses.box_iou(jnp.zeros((2, 4)), jnp.zeros((3, 4)))
    with pytest.raises(ValueError, match="kind is 'IoU'; use one of iou, iof"):
        losses.box_iou(jnp.zeros(4), jnp.zeros(4), kind="IoU")
    with pytest.raises(ValueError, match="kind is 'iof'; use \"iou\""):
        losses.box_regression(jnp.zeros(4), jnp.zeros(4), kind="iof")
    with pytest.raises(ValueError, match=r"distances has leading axes \(3,\), points \(2,\)"):
        losses.distance2bbox(jnp.zeros((2, 2)), jnp.zeros((3, 4)))
    with pytest.raises(ValueError, match=r"points has shape \(2, 3\)"):
        losses.bbox2distance(jnp.zeros((2, 3)), jnp.zeros((2, 4)))
    with pytest.raises(ValueError, match="There are 1 sizes and 2 strides"):
        losses.anchor_grid([(1, 1)], [8, 16])

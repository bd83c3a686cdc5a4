"""Focal loss, deltas of anchors and centreness: against formulas, the original's coder, and at the edges."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdjax import losses
from tests.golden_cases import cases
from tests.losses.computing import computing_in, draw, values_and_gradient

CODER = [case for case in cases("ssd") if case.id == "coder"]


@pytest.mark.parametrize("precision", ["f64", "f32"])
@pytest.mark.parametrize("case", CODER, ids=repr)
def test_deltas_golden(case, precision):
    deviations, (height, width) = tuple(case.hyper["stds"]), case.hyper["max_shape"]
    with computing_in(precision) as real:
        anchors, gts, deltas = (real(case.inputs[name]) for name in ("anchors", "gt", "delta"))
        case.check(losses.encode_deltas(anchors, gts, deviations=deviations), "out", "encoded", precision)
        found = losses.decode_deltas(anchors, deltas, deviations=deviations)
        case.check(found, "out", "decoded", precision)
        limit = jnp.broadcast_to(real([width, height] * 2), found.shape)
        case.check(jnp.clip(found, 0, limit), "out", "clipped", precision)


def test_deltas_are_undone_and_finite():
    low = np.abs(draw(1, 6, 2))
    anchors, boxes = (np.concatenate([low, low + 1 + np.abs(draw(i, 6, 2))], -1) for i in (2, 3))
    deviations = (0.1, 0.1, 0.2, 0.2)
    deltas = losses.encode_deltas(anchors, boxes, deviations=deviations)
    np.testing.assert_allclose(
        losses.decode_deltas(anchors, deltas, deviations=deviations), boxes, rtol=1e-4, atol=1e-4
    )
    empty = boxes.copy()
    empty[:, 2:] = empty[:, :2]
    values, gradient = values_and_gradient(lambda d: losses.decode_deltas(anchors, d), np.full((6, 4), 1e4, np.float32))
    assert np.isfinite(losses.encode_deltas(anchors, empty)).all() and np.isfinite(values).all()
    assert not gradient[:, 2:].any()
    with pytest.raises(ValueError, match=r"deviations is \(0, 1, 1, 1\); give four numbers above 0"):
        losses.decode_deltas(anchors, anchors, deviations=(0, 1, 1, 1))


@pytest.mark.parametrize(("alpha", "gamma"), [(0.25, 2.0), (0.6, 0.0), (0.25, 0.5)])
def test_focal_is_its_formula(alpha, gamma):
    """Values, and the gradient by differences; -1 and C are background."""
    logits, labels = draw(4, 5, 3), np.array([0, 2, 3, -1, 1])
    values, gradient = values_and_gradient(losses.sigmoid_focal, logits, labels, alpha=alpha, gamma=gamma)

    def plain(z):
        p, y = 1 / (1 + np.exp(-z)), np.eye(4)[labels][:, :3] * (labels >= 0)[:, None]
        each = np.where(y > 0, alpha * (1 - p) ** gamma * -np.log(p), (1 - alpha) * p**gamma * -np.log(1 - p))
        return each.sum(-1)

    wide = np.float64(logits)
    np.testing.assert_allclose(values, plain(wide), rtol=2e-5)
    for row, column in np.ndindex(*logits.shape):
        step = np.zeros_like(wide)
        step[row, column] = 1e-5
        slope = (plain(wide + step).sum() - plain(wide - step).sum()) / 2e-5
        np.testing.assert_allclose(gradient[row, column], slope, rtol=1e-3, atol=1e-6)


def test_focal_at_the_edges():
    """Logits of 1e4, and a class that is excluded, which costs nothing unless it is the label."""
    logits = np.array([[1e4, -1e4], [-1e4, 1e4], [-np.inf, 0.0]], np.float32)
    labels = np.array([0, 0, 1])
    values, gradient = values_and_gradient(losses.sigmoid_focal, logits, labels, gamma=0.5)
    np.testing.assert_allclose(values[:2], [0.0, 0.25 * 1e4 + 0.75 * 1e4], rtol=1e-6)
    np.testing.assert_allclose(values[2], losses.sigmoid_focal(logits[2, 1:], jnp.array(0), gamma=0.5), rtol=1e-6)
    assert np.isfinite(gradient).all()
    assert losses.sigmoid_focal(logits[2], jnp.array(0)) == np.inf


def test_centreness():
    points = np.array([[5.0, 5.0], [2.0, 5.0], [0.0, 5.0], [11.0, 5.0], [1.0, 1.0]], np.float32)
    boxes = np.tile(np.array([[0.0, 0.0, 10.0, 10.0]], np.float32), (5, 1))
    boxes[4] = 1.0  # of no area
    found, gradient = values_and_gradient(losses.centreness, points, boxes)
    np.testing.assert_allclose(found, [1.0, 0.5, 0.0, 0.0, 0.0], rtol=1e-6)
    assert not gradient.any()
    assert not jax.grad(lambda b: losses.centreness(points, b).sum())(boxes).any()

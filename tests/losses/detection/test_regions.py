"""Where features are imitated, and how much each place counts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdjax import losses
from tests.losses.computing import compiled, draw

losses = compiled(losses)

STUDENT, TEACHER = draw(80, 5, 3), draw(81, 5, 3)
MASKS = np.array([[1, 1, 0, 0, 0], [0, 1, 0, 1, 0], [0, 0, 0, 0, 0]], bool)
WEIGHTS = np.array([2.0, 0.5, 7.0], np.float32)


def test_scores_at_and_between_the_thresholds():
    iou = jnp.array([0.9, 0.5, 0.49, 0.41, 0.4, 0.0])
    match = jnp.array([1.0, 2.0, 1.0, 0.5, 1.0, 3.0])
    scores = losses.tid_scores(iou, match, tau_pos=0.5, tau_neg=0.4)
    np.testing.assert_allclose(scores, [2.0, 4.0, 1.5, 0.75, 0.4, 1.2], rtol=1e-6)
    others = jax.jit(lambda i, m, p: losses.tid_scores(i, m, tau_pos=p, tau_neg=0.4, levels=(3.0, 2.0, 1.0)))
    np.testing.assert_allclose(others(iou, match, 0.45), [3.0, 6.0, 3.0, 1.0, 1.0, 3.0], rtol=1e-6)
    # Equal thresholds leave no middle.
    np.testing.assert_allclose(losses.tid_scores(iou[:3], match[:3], tau_pos=0.5, tau_neg=0.5), [2, 4, 0.4], rtol=1e-6)


def test_nothing_is_learned_from_scores():
    both = jax.grad(lambda i, m: losses.tid_scores(i, m, tau_pos=0.5, tau_neg=0.4).sum(), argnums=(0, 1))
    for gradient in both(jnp.array([0.6, 0.1]), jnp.ones(2)):
        np.testing.assert_array_equal(gradient, 0)


def plain_imitation(student, teacher, masks, weights):
    each = np.sum((np.float64(student) - teacher) ** 2, axis=-1)
    return sum(w * each[m].mean() for m, w in zip(masks, weights, strict=True) if m.any())


def test_imitation_is_its_formula_and_teaches_the_student_alone():
    loss = lambda s, t, w: losses.region_weighted_imitation(s, t, MASKS, w)
    value, (ours, theirs, by_weight) = jax.value_and_grad(loss, (0, 1, 2))(STUDENT, TEACHER, WEIGHTS)
    np.testing.assert_allclose(value, plain_imitation(STUDENT, TEACHER, MASKS, WEIGHTS), rtol=1e-6)
    shares = (MASKS * WEIGHTS[:, None] / np.maximum(MASKS.sum(1), 1)[:, None]).sum(0)
    np.testing.assert_allclose(ours, 2 * shares[:, None] * (STUDENT - TEACHER), rtol=1e-5)
    np.testing.assert_array_equal(theirs, 0)
    each = np.sum((STUDENT - TEACHER) ** 2, -1)
    np.testing.assert_allclose(by_weight, [each[:2].mean(), each[[1, 3]].mean(), 0], rtol=1e-5)
    value, gradient = jax.value_and_grad(loss)(TEACHER, TEACHER, WEIGHTS)
    assert value == 0
    np.testing.assert_array_equal(gradient, 0)


def test_places_outside_every_region_may_hold_anything():
    loss = lambda s, t: losses.region_weighted_imitation(s, t, MASKS, WEIGHTS)
    expected, gradient = jax.value_and_grad(loss)(STUDENT, TEACHER)
    student, teacher = STUDENT.copy(), TEACHER.copy()
    student[[2, 4]], teacher[[2, 4]] = np.nan, np.inf
    value, spoilt = jax.value_and_grad(loss)(student, teacher)
    np.testing.assert_array_equal(value, expected)
    np.testing.assert_array_equal(spoilt, gradient)
    assert losses.region_weighted_imitation(student, teacher, np.zeros((3, 5)), WEIGHTS) == 0


def test_imitation_by_shares_and_of_a_batch():
    shares = np.array([[0.1, 0.3, 0.0, 0.0, 0.0]], np.float32)
    each = np.sum((STUDENT - TEACHER) ** 2, -1)
    value = losses.region_weighted_imitation(STUDENT, TEACHER, shares, jnp.ones(1))
    np.testing.assert_allclose(value, (0.1 * each[0] + 0.3 * each[1]) / 0.4, rtol=1e-5)
    batch = np.stack([STUDENT, TEACHER]), np.stack([TEACHER, TEACHER]), np.stack([MASKS, MASKS])
    expected = [losses.region_weighted_imitation(STUDENT, TEACHER, MASKS, WEIGHTS), 0]
    np.testing.assert_allclose(losses.region_weighted_imitation(*batch, WEIGHTS), expected, rtol=1e-6)
    mapped = jax.jit(jax.vmap(lambda *image: losses.region_weighted_imitation(*image, WEIGHTS)))(*batch)
    np.testing.assert_allclose(mapped, expected, rtol=1e-6)
    half = losses.region_weighted_imitation(STUDENT.astype(jnp.bfloat16), TEACHER.astype(jnp.bfloat16), MASKS, WEIGHTS)
    assert half.dtype == jnp.float32
    np.testing.assert_allclose(half, expected[0], rtol=0.05)


# --- regions around objects ---

ANCHORS = losses.anchor_grid([(4, 4), (2, 2)], [8, 16], scale=2)
GTS = np.array([[3.0, 2.0, 17.0, 13.0], [20.0, 18.0, 40.0, 40.0]], np.float32)


@pytest.mark.parametrize("kind", ["finegrained", "inside"])
def test_region_of_a_plain_loop(kind):
    iou = np.asarray(losses.pairwise_box_iou(ANCHORS, GTS))
    centres = np.asarray(ANCHORS[:, :2] + ANCHORS[:, 2:]) / 2
    expected = np.zeros(len(ANCHORS), bool)
    for g, (left, top, right, bottom) in enumerate(GTS):
        for a, (x, y) in enumerate(centres):
            inside = left < x < right and top < y < bottom
            expected[a] |= inside if kind == "inside" else iou[a, g] > 0.5 * iou[:, g].max()
    assert 0 < expected.sum() < len(expected)
    region = losses.imitation_region(ANCHORS, GTS, np.ones(2, bool), kind=kind)
    np.testing.assert_array_equal(region, expected)
    padded, mask = (
        np.concatenate([[[np.nan] * 4, [0, 0, 32, 32]], GTS]).astype(np.float32),
        np.array([0, 0, 1, 1], bool),
    )
    np.testing.assert_array_equal(losses.imitation_region(ANCHORS, padded, mask, kind=kind), expected)
    images = np.stack([padded, padded]), np.stack([mask, 0 * mask > 0])
    both = jax.jit(jax.vmap(lambda g, m: losses.imitation_region(ANCHORS, g, m, kind=kind)))(*images)
    np.testing.assert_array_equal(both, [expected, 0 * expected])
    assert not losses.imitation_region(ANCHORS, GTS[:0], np.ones(0, bool), kind=kind).any()


def test_a_larger_share_is_a_smaller_region():
    sizes = [losses.imitation_region(ANCHORS, GTS, np.ones(2, bool), share=s).sum() for s in (0.0, 0.5, 0.9, 1.0)]
    assert sizes[0] > sizes[1] >= sizes[2] > sizes[3] == 0


def test_refuses_what_does_not_fit():
    with pytest.raises(ValueError, match=r"both must be \[..., N, D\]: project the student's"):
        losses.region_weighted_imitation(STUDENT, TEACHER[:, :2], MASKS, WEIGHTS)
    with pytest.raises(ValueError, match=r"masks has shape \(3, 5\); it must be \(2, 5\)"):
        losses.region_weighted_imitation(STUDENT, TEACHER, MASKS, WEIGHTS[:2])
    with pytest.raises(ValueError, match=r"weights has shape \(\); it must be \[M\]"):
        losses.region_weighted_imitation(STUDENT, TEACHER, MASKS, 1.0)
    with pytest.raises(ValueError, match=r"tau_neg is 0\.6, above tau_pos 0\.5"):
        losses.tid_scores(jnp.ones(2), jnp.ones(2), tau_pos=0.5, tau_neg=0.6)
    with pytest.raises(ValueError, match="levels has 2 scores"):
        losses.tid_scores(jnp.ones(2), jnp.ones(2), tau_pos=0.5, tau_neg=0.4, levels=(1.0, 0.0))
    with pytest.raises(ValueError, match=r"cls_match_score has shape \(3,\), iou_max \(2,\)"):
        losses.tid_scores(jnp.ones(2), jnp.ones(3), tau_pos=0.5, tau_neg=0.4)
    with pytest.raises(ValueError, match="kind is 'gibox'"):
        losses.imitation_region(ANCHORS, GTS, np.ones(2, bool), kind="gibox")
    with pytest.raises(ValueError, match=r"gt_mask has shape \(1,\); it must be \(2,\)"):
        losses.imitation_region(ANCHORS, GTS, np.ones(1, bool))

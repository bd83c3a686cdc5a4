"""What measures say of networks that diverged, of labels that are none, and of confidences that tie."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdjax import analysis

RNG = np.random.default_rng(0)
TEACHER, STUDENT = (jnp.asarray(RNG.normal(size=(60, 4)), jnp.float32) for _ in range(2))
LABELS = jnp.asarray(RNG.integers(0, 4, 60))
LOST = STUDENT.at[7, 2].set(jnp.nan)
OF_LABELS = {
    "nll": analysis.nll, "brier": analysis.brier, "ece": analysis.ece,
    "adaptive": lambda logits, labels: analysis.ece(logits, labels, adaptive=True),
}  # fmt: skip
SHARES = ("when_right", "same_errors", "teacher_errors")


@pytest.mark.parametrize("one", [LOST, jnp.full_like(STUDENT, jnp.nan)], ids=["one row", "all rows"])
def test_a_diverged_network_is_like_none(one):
    measure = jax.jit(analysis.functional_similarity)
    assert all(np.isfinite(value) for value in measure(STUDENT, TEACHER, LABELS).values())
    for pair in ((one, TEACHER), (TEACHER, one), (one, one)):
        for name, value in measure(*pair).items():
            assert np.isnan(value) and value.dtype == jnp.float32, name
    for measure in OF_LABELS.values():
        assert np.isnan(jax.jit(measure)(one, LABELS)) and np.isfinite(measure(STUDENT, LABELS))
    same = lambda z: z
    assert np.isnan(analysis.fooling_rate(same, STUDENT, one)) and np.isnan(analysis.fooling_rate(same, one, STUDENT))
    assert np.isnan(jax.jit(lambda z: analysis.invariance(same, z, z))(one))


def test_only_rows_that_count_do():
    """The teacher has row 7 right, or wrong: the student's nan spoils the share of these alone."""
    best = jnp.argmax(TEACHER[7])
    right = analysis.agreement_by_correctness(LOST, TEACHER, LABELS.at[7].set(best))
    assert [np.isnan(right[name]) for name in SHARES] == [True, False, False]
    wrong = analysis.agreement_by_correctness(LOST, TEACHER, LABELS.at[7].set((best + 1) % 4))
    assert [np.isnan(wrong[name]) for name in SHARES] == [False, True, False]
    lost = analysis.agreement_by_correctness(TEACHER, LOST, LABELS)
    assert all(np.isnan(lost[name]) for name in SHARES)
    others = jnp.arange(60) != 7
    assert analysis.fooling_rate(lambda z: z, LOST, LOST, where=others) == 0
    with pytest.raises(ValueError, match="give one bool an example"):
        analysis.fooling_rate(lambda z: z, LOST, LOST, where=others[:, None])
    shape, texture = jnp.zeros(60, int).at[7].set(1), jnp.ones(60, int)
    assert np.isfinite(analysis.shape_share(LOST, shape, texture)), "shape and texture of row 7 are one class"
    assert np.isnan(analysis.shape_share(LOST, shape, 2 * texture))
    maps = jnp.asarray(RNG.uniform(size=(3, 4, 2, 2)), jnp.float32)
    assert np.isnan(analysis.closer_share(maps[0], maps[1].at[0, 0, 0].set(jnp.nan), maps[2]))


@pytest.mark.parametrize("name", [*OF_LABELS, "by_correctness"])
def test_labels_are_a_class_a_row(name):
    split = lambda logits, labels: analysis.agreement_by_correctness(logits, TEACHER, labels)["same_errors"]
    measure = OF_LABELS.get(name, split)
    assert np.isfinite(measure(STUDENT, LABELS.astype(jnp.uint8)))
    for labels in (LABELS[:, None], LABELS[:1], LABELS[:30]):
        with pytest.raises(ValueError, match="one class index for each row"):
            measure(STUDENT, labels)
    with pytest.raises(TypeError, match="labels must be integer"):
        measure(STUDENT, LABELS.astype(jnp.float32))
    for outside in (-1, 4):
        assert np.isnan(jax.jit(measure)(STUDENT, LABELS.at[3].set(outside)))


def test_adaptive_bins_do_not_see_the_order_of_examples():
    """All are as confident: in one bin, whose accuracy is what it is."""
    logits = jnp.tile(jnp.log(jnp.array([[0.9, 0.1]])), (100, 1))
    labels = jnp.asarray(np.repeat([0, 1], 50))
    for order in (np.arange(100), np.arange(100)[::-1], RNG.permutation(100)):
        found = analysis.ece(logits, labels[order], bins=4, adaptive=True)
        np.testing.assert_allclose(found, 0.4, rtol=1e-5)
    apart = jnp.stack([jnp.linspace(0.1, 5, 100), jnp.zeros(100)], axis=1)
    confidence = np.asarray(jax.nn.softmax(apart)[:, 0])
    gaps = (np.asarray(labels == 0) - confidence).reshape(4, 25)
    found = analysis.ece(apart, labels, bins=4, adaptive=True)
    np.testing.assert_allclose(found, np.abs(gaps.mean(1)).mean(), rtol=1e-4, err_msg="25 each where none tie")

"""Noise-contrastive estimation against its formula in float64, at its extremes, and the scores of bank rows."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdjax import losses
from kdjax.losses.relations.contrastive import unit_rows
from tests.losses.computing import compiled, computing_in, draw, mean_and_gradient

losses, unit_rows = map(compiled, (losses, unit_rows))

EXACT = {"rtol": 1e-10, "atol": 1e-13}
POSITIVE, NEGATIVES = draw(1, 6), draw(2, 6, 5)
KEPT = np.random.default_rng(3).random((6, 5)) < 0.6
KEPT[2] = False


def formula(positive, negatives, num_examples, z=1.0, epsilon=1e-7):
    """The quotients as the paper and its code write them, in NumPy float64."""
    p, q = (np.exp(np.float64(x)) / z for x in (positive, negatives))
    noise = negatives.shape[-1] / num_examples
    return -np.log(p / (p + noise + epsilon)) - np.sum(np.log(noise / (q + noise + epsilon)), axis=-1)


# --- the loss ---


@pytest.mark.parametrize(("num_examples", "epsilon"), [(7, 1e-7), (40, 1e-7), (1000, 0.3), (40, 0.0)])
def test_nce_is_its_formula(num_examples, epsilon):
    with computing_in("f64") as real:
        z = np.exp(2.5)
        options = {"num_examples": num_examples, "log_normalizer": 2.5, "epsilon": epsilon}
        values = losses.nce(real(POSITIVE), real(NEGATIVES), **options)
        np.testing.assert_allclose(values, formula(POSITIVE, NEGATIVES, num_examples, z, epsilon), **EXACT)
        assert np.all(np.asarray(values) > 0)
        by_positive, by_negatives = jax.grad(lambda p, n: losses.nce(p, n, **options).sum(), (0, 1))(
            real(POSITIVE), real(NEGATIVES)
        )
        chance = lambda a: 1 / (1 + (5 / num_examples + epsilon) * z * np.exp(-np.float64(a)))
        np.testing.assert_allclose(by_positive, chance(POSITIVE) - 1, **EXACT)
        np.testing.assert_allclose(by_negatives, chance(NEGATIVES), **EXACT)


def test_leading_axes_and_a_normalizer_for_each():
    with computing_in("f64") as real:
        log_z = real(np.arange(6.0))
        values = losses.nce(real(POSITIVE), real(NEGATIVES), num_examples=9, log_normalizer=log_z)
        shaped = losses.nce(
            real(POSITIVE).reshape(2, 3),
            real(NEGATIVES).reshape(2, 3, 5),
            num_examples=9,
            log_normalizer=log_z.reshape(2, 3),
        )
        np.testing.assert_array_equal(shaped.reshape(6), values)
        for i in range(6):
            expected = formula(POSITIVE[i : i + 1], NEGATIVES[i : i + 1], 9, np.exp(i))
            np.testing.assert_allclose(values[i : i + 1], expected, **EXACT)


@pytest.mark.parametrize("junk", [0.0, 1e30, np.nan, np.inf, -np.inf])
def test_a_negative_that_is_left_out_is_as_if_it_were_not_there(junk):
    with computing_in("f64") as real:
        given = np.where(KEPT, NEGATIVES, junk)
        loss = lambda n: losses.nce(real(POSITIVE), n, num_examples=9, where=KEPT)
        values, pull = jax.vjp(loss, real(given))
        (gradient,) = pull(jnp.ones(6))
        np.testing.assert_array_equal(gradient[~KEPT], 0)
        for i in range(6):
            alone = real(NEGATIVES[i : i + 1, KEPT[i]])
            fewer = lambda n, i=i: losses.nce(real(POSITIVE[i : i + 1]), n, num_examples=9)
            np.testing.assert_allclose(values[i : i + 1], fewer(alone), **EXACT)
            expected = jax.grad(lambda n, fewer=fewer: fewer(n).sum())(alone)
            np.testing.assert_allclose(gradient[i, KEPT[i]], expected[0], **EXACT)


def test_without_negatives_the_positive_is_told_from_epsilon():
    with computing_in("f64") as real:
        values = losses.nce(real(POSITIVE), jnp.zeros((6, 0)), num_examples=9, epsilon=0.1)
        np.testing.assert_allclose(values, np.log1p(0.1 / np.exp(np.float64(POSITIVE))), **EXACT)
        nothing, pull = jax.vjp(lambda p: losses.nce(p, jnp.zeros((6, 0)), num_examples=9, epsilon=0.0), real(POSITIVE))
        np.testing.assert_array_equal(nothing, 0)
        np.testing.assert_array_equal(pull(jnp.ones(6))[0], 0)


@pytest.mark.parametrize("precision", ["f64", "f32"])
def test_scores_of_any_size_have_their_value_and_slope(precision):
    """Lines far out; exp(1e4) is no float of any kind."""
    with computing_in(precision) as real:
        positive = real([1e4, -1e4, -1e4, 1e4, -1e30])
        negatives = real([[-1e4], [1e4], [-np.inf], [1e4], [1e30]])
        loss = lambda p, n: losses.nce(p, n, num_examples=4, log_normalizer=real(3.0)).sum()
        values = losses.nce(positive, negatives, num_examples=4, log_normalizer=real(3.0))
        bottom = np.log(0.25 + 1e-7)
        excess = bottom - np.log(0.25)
        line = 1e4 - 3 - bottom + excess
        expected = [excess, 1e4 + 3 + bottom + line, 1e4 + 3 + bottom + excess, line, 2e30]
        np.testing.assert_allclose(values, expected, rtol=1e-6 if precision == "f32" else 1e-12, atol=1e-7)
        by_positive, by_negatives = jax.grad(loss, (0, 1))(positive, negatives)
        np.testing.assert_array_equal(by_positive, [0, -1, -1, 0, -1])
        np.testing.assert_array_equal(by_negatives[:, 0], [0, 1, 0, 1, 1])


def test_many_negatives_in_float32():
    """16384 terms of about 1e-4 each."""
    positive, negatives = draw(4, 3), draw(5, 3, 16384)
    values = losses.nce(positive, negatives, num_examples=50_000, log_normalizer=15.0)
    np.testing.assert_allclose(values, formula(positive, negatives, 50_000, np.exp(15.0)), rtol=2e-6)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_half_types_are_computed_in_float32(dtype):
    positive, negatives = jnp.asarray(POSITIVE, dtype), jnp.asarray(NEGATIVES, dtype)
    values = losses.nce(positive, negatives, num_examples=9)
    assert values.dtype == jnp.float32
    np.testing.assert_allclose(values, formula(positive, negatives, 9), rtol=1e-5)


def test_a_mask_may_be_of_0_and_1():
    values = [losses.nce(POSITIVE, NEGATIVES, num_examples=9, where=KEPT.astype(kind)) for kind in (bool, np.float32)]
    np.testing.assert_array_equal(*values)


def test_nce_refuses_what_does_not_fit():
    with pytest.raises(ValueError, match=r"negatives has shape \(5, 5\), positive \(6,\)"):
        losses.nce(POSITIVE, NEGATIVES[:5], num_examples=9)
    with pytest.raises(ValueError, match=r"where has shape \(6,\), negatives \(6, 5\)"):
        losses.nce(POSITIVE, NEGATIVES, num_examples=9, where=KEPT[:, 0])
    with pytest.raises(ValueError, match="num_examples is 0"):
        losses.nce(POSITIVE, NEGATIVES, num_examples=0)
    with pytest.raises(ValueError, match="epsilon is -1"):
        losses.nce(POSITIVE, NEGATIVES, num_examples=9, epsilon=-1.0)
    with pytest.raises(ValueError, match=r"log_normalizer has shape \(3,\)"):
        losses.nce(POSITIVE, NEGATIVES, num_examples=9, log_normalizer=jnp.zeros(3))
    with pytest.raises(TypeError, match="positive must be floating point"):
        losses.nce(POSITIVE.astype(int), NEGATIVES, num_examples=9)


# --- its constant ---

ROWS = np.array([True, False, True, True, False, True])


def log_z(positive, negatives, kept, num_examples):
    scores = np.concatenate([np.float64(positive)[:, None][ROWS].ravel(), np.float64(negatives)[ROWS][kept[ROWS]]])
    return np.log(np.mean(np.exp(scores)) * num_examples)


@pytest.mark.parametrize("junk", [0.0, np.nan, np.inf])
def test_the_normalizer_is_the_mean_over_all_scores_that_count(junk):
    with computing_in("f64") as real:
        positive = np.where(ROWS, POSITIVE, junk)
        negatives = np.where(ROWS[:, None] & KEPT, NEGATIVES, junk)
        found = losses.nce_normalizer(real(positive), real(negatives), num_examples=40, where=KEPT, rows=ROWS)
        np.testing.assert_allclose(found, log_z(POSITIVE, NEGATIVES, KEPT, 40), **EXACT)
        everything = losses.nce_normalizer(real(POSITIVE[ROWS]), real(NEGATIVES[ROWS]), num_examples=40)
        expected = log_z(POSITIVE, NEGATIVES, np.ones_like(KEPT), 40)
        np.testing.assert_allclose(everything, expected, **EXACT)


def test_the_normalizer_of_nothing_of_large_scores_and_its_gradient():
    normalizer = functools.partial(losses.nce_normalizer, num_examples=8)
    assert normalizer(POSITIVE, NEGATIVES, rows=np.zeros(6, bool)) == 0
    shifted = normalizer(POSITIVE + 1e4, NEGATIVES + 1e4)
    np.testing.assert_allclose(shifted, normalizer(POSITIVE, NEGATIVES) + 1e4, rtol=1e-6)
    gradient = jax.grad(lambda p, n: normalizer(p, n), (0, 1))(POSITIVE, NEGATIVES)
    assert max(np.abs(g).max() for g in gradient) == 0
    with pytest.raises(ValueError, match="one score for each example of a batch"):
        normalizer(POSITIVE.reshape(2, 3), NEGATIVES.reshape(2, 3, 5))


def test_with_the_normalizer_the_mean_of_chances_is_that_of_noise():
    """N P averages to 1, which is what Z is for."""
    found = losses.nce_normalizer(POSITIVE, NEGATIVES, num_examples=40)
    scores = np.concatenate([POSITIVE[:, None], NEGATIVES], axis=1)
    np.testing.assert_allclose(np.mean(40 * np.exp(scores - found)), 1, rtol=1e-5)


def test_the_normalizer_is_that_of_the_global_batch_on_every_device():
    positive, negatives, rows = draw(6, 16), draw(7, 16, 3), np.arange(16) % 3 > 0
    rows[2:4] = False  # the second device has no row
    whole = losses.nce_normalizer(positive, negatives, num_examples=40, rows=rows)
    split = [x.reshape(8, 2, *x.shape[1:]) for x in (positive, negatives, rows)]
    found = jax.pmap(
        lambda p, n, r: losses.nce_normalizer(p, n, num_examples=40, rows=r, axis_name="data"), axis_name="data"
    )(*split)
    np.testing.assert_array_equal(found, np.full(8, found[0]))
    np.testing.assert_allclose(found[0], whole, rtol=1e-6)


# --- scores ---

EMBEDDINGS, BANK = draw(8, 4, 3), draw(9, 10, 3)
FEW = np.array([[1], [9], [0], [4]])
MANY = np.random.default_rng(10).integers(0, 10, (4, 12))


@pytest.mark.parametrize("candidates", [FEW, MANY], ids=["choose rows", "choose scores"])
def test_scores_of_candidates(candidates):
    with computing_in("f64") as real:
        rows = np.float64(BANK)[candidates]
        weights = np.float64(draw(11, *candidates.shape))
        scores = losses.candidate_scores(real(EMBEDDINGS), real(BANK), candidates)
        np.testing.assert_allclose(scores, np.einsum("bd,bkd->bk", np.float64(EMBEDDINGS), rows), **EXACT)
        by_embeddings, by_bank = jax.grad(
            lambda e, b: jnp.sum(weights * losses.candidate_scores(e, b, candidates)), (0, 1)
        )(real(EMBEDDINGS), real(BANK))
        np.testing.assert_allclose(by_embeddings, np.einsum("bk,bkd->bd", weights, rows), **EXACT)
        np.testing.assert_array_equal(by_bank, 0)


def test_scores_of_candidates_for_all():
    scores = losses.candidate_scores(EMBEDDINGS, BANK, MANY[0])
    each = losses.candidate_scores(EMBEDDINGS, BANK, np.broadcast_to(MANY[0], MANY.shape))
    np.testing.assert_allclose(scores, each, rtol=1e-6, atol=1e-6)


BEYOND = np.array([[3, -1], [10, 2], [0, 1], [2, 99]])


@pytest.mark.parametrize("candidates", [BEYOND, np.tile(BEYOND, 4)], ids=["choose rows", "choose scores"])
def test_a_row_that_is_not_there_is_nan_and_harms_nobody(candidates):
    outside = (candidates < 0) | (candidates >= 10)
    scores, pull = jax.vjp(lambda e: losses.candidate_scores(e, BANK, candidates), EMBEDDINGS)
    np.testing.assert_array_equal(np.isnan(scores), outside)
    (gradient,) = pull(jnp.where(outside, 0.0, 1.0))
    assert np.all(np.isfinite(gradient))
    np.testing.assert_array_equal(np.isnan(losses.candidate_scores(EMBEDDINGS, BANK, candidates[0]))[0], outside[0])


def test_scores_refuse_what_does_not_fit():
    with pytest.raises(ValueError, match=r"embeddings has shape \(4, 3\), bank \(10, 2\)"):
        losses.candidate_scores(EMBEDDINGS, BANK[:, :2], FEW)
    with pytest.raises(ValueError, match=r"candidates has shape \(3, 12\) for 4 embeddings"):
        losses.candidate_scores(EMBEDDINGS, BANK, MANY[:3])
    with pytest.raises(TypeError, match="candidates must be integers"):
        losses.candidate_scores(EMBEDDINGS, BANK, FEW.astype(np.float32))


@pytest.mark.parametrize("size", [1.0, 1e-30, 1e30])
def test_unit_rows_of_any_size(size):
    rows = np.float32(size) * draw(12, 4, 3)
    rows[2] = 0
    units, gradient = unit_rows(jnp.asarray(rows)), jax.grad(lambda x: jnp.sum(unit_rows(x) ** 3))(jnp.asarray(rows))
    length = np.linalg.norm(np.float64(rows), axis=1, keepdims=True)
    expected = np.float64(rows) / np.where(length == 0, 1, length)
    np.testing.assert_allclose(units, expected, rtol=1e-6)
    by_units = 3 * expected**2
    by_rows = (by_units - expected * np.sum(by_units * expected, axis=1, keepdims=True)) / np.where(
        length == 0, 1, length
    )
    by_rows[2] = 0
    np.testing.assert_allclose(gradient, by_rows, rtol=1e-4, atol=1e-6 / size)


def test_a_step_down_the_gradient_tells_the_positive_apart():
    with computing_in("f64") as real:
        loss = lambda e: losses.nce(
            losses.candidate_scores(unit_rows(e), real(BANK), FEW)[:, 0],
            losses.candidate_scores(unit_rows(e), real(BANK), MANY),
            num_examples=10,
            log_normalizer=2.0,
        )
        value, gradient = mean_and_gradient(loss, real(EMBEDDINGS))
        assert mean_and_gradient(loss, real(EMBEDDINGS) - 0.01 * gradient)[0] < value

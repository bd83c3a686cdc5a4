"""What is particular to pkt, cc, cc_neighbours and ickd: their formulas in plain NumPy, scales, edges.

What all losses between examples have in common is in test_relational_rows.py.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdjax import losses
from tests.losses.computing import compiled, computing_in, draw, mean_and_gradient

losses = compiled(losses)

STUDENT, TEACHER = draw(50, 8, 2, 3), draw(51, 8, 7)
KEPT = np.array([True, False, True, True, False, True, True, True])
EXACT = {"rtol": 1e-10, "atol": 1e-14}


# --- pkt ---


def neighbourhoods(features):
    rows = np.float64(features).reshape(len(features), -1)
    unit = rows / (np.linalg.norm(rows, axis=1, keepdims=True) + 1e-7)
    found = 1 + unit @ unit.T
    return found / found.sum(1, keepdims=True)


def pkt_rows(student, teacher):
    p, q = neighbourhoods(teacher), neighbourhoods(student)
    return np.mean(p * np.log((p + 1e-7) / (q + 1e-7)), axis=1)


def test_pkt_is_the_divergence_of_neighbourhoods_over_the_batch():
    with computing_in("f64") as real:
        values = losses.pkt(real(STUDENT), real(TEACHER))
        np.testing.assert_allclose(values, pkt_rows(STUDENT, TEACHER), **EXACT)
        each = np.linspace(1, 9, 8)[:, None]  # no cosine sees the length of a feature
        np.testing.assert_allclose(losses.pkt(real(STUDENT.reshape(8, 6)), real(TEACHER) * each), values, rtol=1e-6)


@pytest.mark.parametrize("scale", [1e-2, 1e4])
def test_pkt_in_float32_at_any_scale(scale):
    student = np.float32(scale * STUDENT)
    values, pull = jax.vjp(lambda s: losses.pkt(s, TEACHER), jnp.asarray(student))
    np.testing.assert_allclose(values, pkt_rows(student, TEACHER), rtol=1e-4, atol=1e-7)
    _, same = jax.vjp(lambda s: losses.pkt(s, TEACHER), jnp.asarray(STUDENT))
    np.testing.assert_allclose(scale * pull(jnp.ones(8))[0], same(jnp.ones(8))[0], rtol=1e-3, atol=1e-7)


@pytest.mark.parametrize(("precision", "rtol"), [("f64", 1e-6), ("f32", 3e-2)])
def test_pkt_of_opposite_features_is_finite(precision, rtol):
    """A cosine of -1, below which rounding may fall, is a probability of 0; beside 1e-7 its last digit counts."""
    line = np.float32(np.outer([1, -1, 3, -7], TEACHER[0]))
    with computing_in(precision) as real:
        for student, teacher in (line, TEACHER[:4]), (TEACHER[:4], line):
            value, gradient = mean_and_gradient(losses.pkt, real(student), real(teacher))
            np.testing.assert_allclose(value, pkt_rows(student, teacher).mean(), rtol=rtol)
            assert np.isfinite(gradient).all()


# --- cc ---


def series(features, gamma, order):
    unit = np.float64(features).reshape(len(features), -1)
    unit = unit / np.linalg.norm(unit, axis=1, keepdims=True)
    terms = [(2 * gamma * unit @ unit.T) ** p / math.factorial(p) for p in range(order + 1)]
    return math.exp(-2 * gamma) * np.sum(terms, axis=0)


@pytest.mark.parametrize(("gamma", "order"), [(0.4, 2), (1.3, 5), (0.7, 0)])
def test_cc_is_the_frobenius_norm_of_kernels(gamma, order):
    with computing_in("f64") as real:
        values = losses.cc(real(STUDENT), real(TEACHER), gamma=gamma, order=order)
        gap = series(STUDENT, gamma, order) - series(TEACHER, gamma, order)
        np.testing.assert_allclose(values, np.mean(gap**2, axis=1), **EXACT)
        if (gamma, order) == (0.4, 2):
            np.testing.assert_array_equal(losses.cc(real(STUDENT), real(TEACHER)), values)
            flat = real(STUDENT.reshape(8, 6))
            unit = (
                flat / jnp.linalg.norm(flat, axis=1, keepdims=True),
                real(TEACHER) / jnp.linalg.norm(real(TEACHER), axis=1, keepdims=True),
            )
            np.testing.assert_allclose(losses.cc(*unit, normalize=False), values, **EXACT)


def test_cc_refuses_what_is_no_kernel():
    with pytest.raises(ValueError, match="gamma is 0; it must be above 0"):
        losses.cc(STUDENT, TEACHER, gamma=0)
    with pytest.raises(ValueError, match="order is -1; it must be at least 0"):
        losses.cc(STUDENT, TEACHER, order=-1)


# --- cc_neighbours ---


def neighbours(student, teacher):
    gaps = np.abs(np.float64(student) - np.float64(teacher))
    count = len(gaps)
    return np.append(np.sum(gaps[:-1] * gaps[1:], axis=1), 0) * count / (count - 1)


def test_cc_neighbours_is_the_mean_over_pairs_of_neighbours():
    student, teacher = TEACHER, draw(53, 8, 7)
    with computing_in("f64") as real:
        values = losses.cc_neighbours(real(student), real(teacher))
        np.testing.assert_allclose(values, neighbours(student, teacher), **EXACT)
        gaps = np.abs(np.float64(student) - np.float64(teacher))
        np.testing.assert_allclose(values.mean(), np.mean(np.sum(gaps[:-1] * gaps[1:], axis=1)), **EXACT)
        masked = losses.cc_neighbours(real(student), real(teacher), where=KEPT)
        np.testing.assert_allclose(masked[KEPT], neighbours(student[KEPT], teacher[KEPT]), **EXACT)
        by_both = jax.grad(lambda s, t: losses.cc_neighbours(s, t).mean(), argnums=(0, 1))(real(student), real(teacher))
        np.testing.assert_allclose(by_both[0], -by_both[1], **EXACT)
        around = np.pad(gaps, ((1, 1), (0, 0)))
        expected = np.sign(np.float64(student) - np.float64(teacher)) * (around[:-2] + around[2:]) / 7
        np.testing.assert_allclose(by_both[0], expected, **EXACT)


def test_cc_neighbours_has_slope_0_where_the_embeddings_meet():
    student = TEACHER.copy()
    student[1:, :3] += 1
    gradient = jax.grad(lambda s: losses.cc_neighbours(s, TEACHER).sum())(student)
    np.testing.assert_array_equal(gradient[0], 0)
    np.testing.assert_array_equal(gradient[:, 3:], 0)
    assert np.abs(gradient[1:, :3]).min() > 0.1


def test_cc_neighbours_refuses_what_does_not_fit():
    with pytest.raises(ValueError, match=r"student_embeddings is \(8, 6\), teacher_embeddings \(8, 7\): both must be"):
        losses.cc_neighbours(STUDENT.reshape(8, 6), TEACHER)
    with pytest.raises(ValueError, match="both must be"):
        losses.cc_neighbours(STUDENT, STUDENT)


# --- ickd ---

MAP, TEACHER_MAP = draw(54, 3, 2, 2, 4), draw(55, 3, 3, 1, 4)


def channel_rows(features):
    rows = np.float64(features).reshape(len(features), -1, features.shape[-1])
    gram = np.einsum("bpc,bpd->bcd", rows, rows)
    return gram / np.maximum(np.linalg.norm(gram, axis=2, keepdims=True), 1e-12)


def test_ickd_looks_at_one_example_at_a_time():
    with computing_in("f64") as real:
        values = losses.ickd(real(MAP), real(TEACHER_MAP))
        np.testing.assert_allclose(
            values, np.sum((channel_rows(MAP) - channel_rows(TEACHER_MAP)) ** 2, (1, 2)) / 4, **EXACT
        )
        for i in range(3):
            np.testing.assert_allclose(
                losses.ickd(real(MAP[i : i + 1]), real(TEACHER_MAP[i : i + 1])), values[i : i + 1], **EXACT
            )
        each = np.array([1e-3, 1.0, 1e3]).reshape(3, 1, 1, 1)  # of each example, a stretch is no change
        np.testing.assert_allclose(losses.ickd(real(MAP) * each, real(TEACHER_MAP) / each), values, **EXACT)
        step = np.float64(draw(56, *MAP.shape)) * 1e-6
        gradient = jax.grad(lambda s: losses.ickd(s, real(TEACHER_MAP)).sum())(real(MAP))
        ends = [np.sum((channel_rows(MAP + sign * step) - channel_rows(TEACHER_MAP)) ** 2) / 4 for sign in (1, -1)]
        np.testing.assert_allclose(np.sum(gradient * step), (ends[0] - ends[1]) / 2, rtol=1e-6)


def test_ickd_of_equals_and_of_channels_without_activation():
    by_student, by_teacher = jax.grad(lambda s, t: losses.ickd(s, t).sum(), argnums=(0, 1))(MAP, TEACHER_MAP)
    np.testing.assert_array_equal(by_teacher, 0)
    assert np.abs(by_student).max() > 1e-3
    value, gradient = mean_and_gradient(losses.ickd, jnp.asarray(MAP), jnp.asarray(MAP))
    np.testing.assert_allclose(value, 0, atol=1e-12)
    np.testing.assert_allclose(gradient, 0, atol=1e-6)
    dead = MAP.copy()
    dead[..., 1] = 0
    dead[2] = 0
    value, gradient = mean_and_gradient(losses.ickd, jnp.asarray(dead), jnp.asarray(TEACHER_MAP))
    expected = np.sum((channel_rows(dead) - channel_rows(TEACHER_MAP)) ** 2, (1, 2)) / 4
    np.testing.assert_allclose(value, expected.mean(), rtol=1e-5)
    assert expected[2] == pytest.approx(1) and np.abs(gradient).max() < 10
    np.testing.assert_array_equal(gradient[2], 0)
    assert np.abs(gradient[:2, ..., 1]).min() > 1e-6, "a column of the other channels' rows"


def test_ickd_of_single_positions_half_types_and_large_maps():
    np.testing.assert_allclose(
        losses.ickd(MAP[:, :1, :1], TEACHER_MAP[:, 0, 0]), losses.ickd(MAP[:, :1, 0], TEACHER_MAP[:, :1])
    )
    halves = jnp.asarray(100 * MAP, jnp.float16), jnp.asarray(100 * TEACHER_MAP, jnp.float16)
    values = losses.ickd(*halves)  # products past the largest float16
    assert values.dtype == jnp.float32
    np.testing.assert_allclose(values, losses.ickd(MAP, TEACHER_MAP), rtol=1e-2)
    large, gradient = mean_and_gradient(losses.ickd, jnp.asarray(1e4 * MAP), jnp.asarray(TEACHER_MAP))
    value, same = mean_and_gradient(losses.ickd, jnp.asarray(MAP), jnp.asarray(TEACHER_MAP))
    np.testing.assert_allclose(large, value, rtol=1e-5)
    np.testing.assert_allclose(1e4 * gradient, same, rtol=1e-3, atol=1e-6)


def test_ickd_refuses_what_does_not_fit():
    with pytest.raises(
        ValueError, match=r"student_features is \(3, 2, 2, 4\), teacher_features \(3, 3, 1, 3\): .*project"
    ):
        losses.ickd(MAP, TEACHER_MAP[..., :3])
    with pytest.raises(ValueError, match="teacher_features has 2 examples, student_features 3"):
        losses.ickd(MAP, TEACHER_MAP[:2])

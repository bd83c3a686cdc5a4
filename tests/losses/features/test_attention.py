"""at, ft and nst: their formulas in NumPy and their identities."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdjax.losses.features import attention
from tests.losses.computing import compiled, computing_in, draw

attention = compiled(attention)

STUDENT, TEACHER = draw(220, 3, 2, 4, 3), draw(221, 3, 2, 4, 5)
EXACT = {"rtol": 1e-10, "atol": 1e-13}


def unit(vectors):
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def activity(maps, p):
    return unit(np.mean(np.float64(maps) ** p, axis=-1).reshape(len(maps), -1))


@pytest.mark.parametrize("p", [1, 2, 3, 4])
def test_formulas_of_at_and_ft(p):
    gap = activity(STUDENT, p) - activity(TEACHER, p)
    with computing_in("f64") as real:
        student, teacher = real(STUDENT), real(TEACHER)
        np.testing.assert_allclose(attention.at(student, teacher, p=p), (gap**2).mean(1), **EXACT)
        np.testing.assert_allclose(
            attention.at(student, teacher, p=p, squared=False), np.linalg.norm(gap, axis=1), **EXACT
        )
        np.testing.assert_allclose(attention.ft(student, teacher, p1=p), np.abs(gap).mean(1), **EXACT)
        np.testing.assert_allclose(attention.ft(student, teacher, p1=p, p2=4), (gap**4).mean(1), **EXACT)
        np.testing.assert_allclose(attention.ft(student, teacher, p1=p, p2=3), np.abs(gap**3).mean(1), **EXACT)


def test_at_sees_neither_the_scale_nor_the_order_of_channels():
    with computing_in("f64") as real:
        values = attention.at(real(STUDENT), real(TEACHER))
        np.testing.assert_allclose(attention.at(-7 * real(STUDENT), 0.1 * real(TEACHER)[..., ::-1]), values, **EXACT)
        gradient = jax.grad(lambda s: attention.at(s, real(TEACHER)).sum())(real(STUDENT))
        np.testing.assert_allclose(np.sum(gradient * STUDENT, axis=(1, 2, 3)), 0, atol=1e-12)
        assert np.abs(gradient).max() > 1e-3


def test_at_is_largest_where_the_two_look_elsewhere():
    here, there = np.zeros((1, 2, 2, 1), np.float32), np.zeros((1, 2, 2, 3), np.float32)
    here[0, 0, 0], there[0, 1, 1, 2] = 5, -1
    np.testing.assert_allclose(attention.at(here, there), [2 / 4])
    np.testing.assert_allclose(attention.at(here, there, squared=False), [2**0.5], rtol=1e-6)
    np.testing.assert_allclose(attention.ft(here, there), [2 / 4])


def test_a_difference_of_zero_has_no_slope_in_ft():
    """As in the reference; the size of a difference has slope one at zero in some libraries."""
    student, teacher = jnp.ones((1, 1, 2, 1)), jnp.ones((1, 1, 2, 2))
    _, pull = jax.vjp(lambda s: attention.ft(s, teacher), student)
    np.testing.assert_array_equal(pull(jnp.ones(1))[0], 0)


def test_nst_is_the_distance_of_the_mean_outer_products():
    """A polynomial kernel of the second degree is the inner product of outer products."""

    def mean_outer(maps):
        samples = unit(np.float64(maps).reshape(len(maps), -1, maps.shape[-1]).swapaxes(1, 2))
        return np.einsum("bkp,bkq->bpq", samples, samples) / maps.shape[-1]

    expected = np.sum((mean_outer(STUDENT) - mean_outer(TEACHER)) ** 2, axis=(1, 2))
    with computing_in("f64") as real:
        np.testing.assert_allclose(attention.nst(real(STUDENT), real(TEACHER)), expected, **EXACT)
        scaled = real(STUDENT) * real(np.array([2.0, -3.0, 0.1])).reshape(1, 1, 1, 3)
        np.testing.assert_allclose(attention.nst(scaled, real(TEACHER)), expected, **EXACT)
        twice = jnp.concatenate([real(STUDENT), -real(STUDENT)], axis=-1)  # the same samples twice over
        np.testing.assert_allclose(attention.nst(twice, real(TEACHER)), expected, **EXACT)


def test_a_channel_without_activation_is_a_sample_of_zeros():
    student = STUDENT.copy()
    student[..., 1] = 0
    values, pull = jax.vjp(lambda s: attention.nst(s, TEACHER), student)
    assert np.isfinite(values).all()
    gradient = pull(jnp.ones(3))[0]
    np.testing.assert_array_equal(gradient[..., 1], 0)
    assert np.abs(gradient[..., 0]).max() > 1e-3

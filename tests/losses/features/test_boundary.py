"""ab: what it asks of each response."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdjax.losses import ab
from tests.losses.computing import compiled, computing_in, draw

ab = compiled(ab)

STUDENT, TEACHER = draw(230, 3, 2, 4, 3, scale=1.5), draw(231, 3, 2, 4, 3)


def reference(student, teacher, margin):
    """`[B]` values and the gradient of their sum, response by response, as the released code has its cases."""
    value, slope = np.zeros(student.shape), np.zeros(student.shape)
    for i, (s, t) in enumerate(zip(np.float64(student).flat, np.float64(teacher).flat, strict=True)):
        if t <= 0 and s > -margin:
            value.flat[i], slope.flat[i] = (s + margin) ** 2, 2 * (s + margin)
        elif t > 0 and s <= margin:
            value.flat[i], slope.flat[i] = (s - margin) ** 2, 2 * (s - margin)
    return value.sum((1, 2, 3)), slope


@pytest.mark.parametrize("margin", [0.0, 1.0, 2.5])
def test_responses_on_the_wrong_side_or_within_the_margin_are_pulled(margin):
    teacher = TEACHER.copy()
    teacher[0, 0] = 0  # a response of zero is off
    values, slopes = reference(STUDENT, teacher, margin)
    with computing_in("f64") as real:
        found, pull = jax.vjp(lambda s: ab(s, real(teacher), margin=margin), real(STUDENT))
        np.testing.assert_allclose(found, values, rtol=1e-12)
        np.testing.assert_allclose(pull(jnp.ones(3, found.dtype))[0], slopes, rtol=1e-12, atol=1e-13)


def test_only_the_side_of_the_teacher_matters():
    np.testing.assert_array_equal(ab(STUDENT, 100 * TEACHER), ab(STUDENT, TEACHER))
    beyond = np.where(TEACHER > 0, 1.0, -1.0).astype(np.float32)
    values, pull = jax.vjp(lambda s: ab(s, TEACHER), beyond)
    np.testing.assert_array_equal(values, 0)
    np.testing.assert_array_equal(pull(jnp.ones(3))[0], 0)


def test_the_margin_may_be_traced():
    np.testing.assert_allclose(jax.jit(lambda m: ab(STUDENT, TEACHER, margin=m))(2.0), ab(STUDENT, TEACHER, margin=2.0))

"""fitnet against the reference implementation and its formula."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdjax import losses
from tests.golden_cases import cases, nhwc
from tests.losses.computing import computing_in, draw, mean_and_gradient


@pytest.mark.parametrize("precision", ["f64", "f32"])
@pytest.mark.parametrize("case", [c for c in cases("fitnet") if "projected" in c.outputs["f64"]], ids=repr)
def test_fitnet_golden(case, precision):
    """The distance alone, from the reference's own projection."""
    projected, teacher = nhwc(case.outputs["f64"]["projected"]), nhwc(case.inputs["teacher"])
    with computing_in(precision) as real:
        value, gradient = mean_and_gradient(losses.fitnet, real(projected), real(teacher))
        case.check(value, "out", "loss", precision)
        expected = 2 * (projected - teacher) / teacher.size
        np.testing.assert_allclose(gradient, expected, rtol=1e-12 if precision == "f64" else 2e-5, atol=1e-8)


@pytest.mark.parametrize("shape", [(3,), (3, 4), (3, 2, 2, 4)])
def test_fitnet_is_the_mean_over_each_example(shape):
    student, teacher = draw(40, *shape), draw(41, *shape)
    values = losses.fitnet(student, teacher)
    expected = [np.mean((np.float64(s) - t) ** 2) for s, t in zip(student, teacher, strict=True)]
    np.testing.assert_allclose(values, expected, rtol=1e-5)
    np.testing.assert_allclose(jax.jit(losses.fitnet)(student, teacher), values, rtol=1e-6)


def test_fitnet_teaches_only_the_student_and_not_once_equal():
    student, teacher = draw(42, 3, 4), draw(43, 3, 4)
    by_teacher = jax.grad(lambda t: losses.fitnet(student, t).sum())(teacher)
    np.testing.assert_array_equal(by_teacher, 0)
    value, gradient = mean_and_gradient(losses.fitnet, jnp.asarray(teacher), jnp.asarray(teacher))
    assert value == 0
    np.testing.assert_array_equal(gradient, 0)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_fitnet_of_half_types_is_computed_in_float32(dtype):
    """Squares of 300 are past the largest float16."""
    student, teacher = jnp.asarray(draw(44, 3, 4, scale=300), dtype), jnp.asarray(draw(45, 3, 4), dtype)
    values = losses.fitnet(student, teacher)
    assert values.dtype == jnp.float32
    np.testing.assert_array_equal(values, losses.fitnet(student.astype(jnp.float32), teacher.astype(jnp.float32)))
    assert np.isfinite(values).all()


def test_fitnet_refuses_what_does_not_fit():
    with pytest.raises(ValueError, match="project the student's features to the teacher's shape first"):
        losses.fitnet(jnp.zeros((2, 4)), jnp.zeros((2, 5)))
    with pytest.raises(ValueError, match="teacher_features has 3 examples, student_features 2"):
        losses.fitnet(jnp.zeros((2, 4)), jnp.zeros((3, 4)))
    with pytest.raises(TypeError, match="student_features must be floating point"):
        losses.fitnet(jnp.zeros((2, 4), int), jnp.zeros((2, 4)))
    with pytest.raises(ValueError, match=r"student_features must be \[B, ...\], examples first"):
        losses.fitnet(jnp.float32(0), jnp.float32(0))

"""ofd and its margin against the reference, the cases of its definition, and an integral."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdjax import losses
from tests.golden_cases import cases
from tests.losses.computing import compiled, computing_in, draw, mean_and_gradient

losses = compiled(losses)

STUDENT, TEACHER = draw(300, 3, 4, 4, 5), draw(301, 3, 4, 4, 5)
MARGIN = -np.abs(draw(302, 5))


def by_cases(student, teacher, margin):
    """Value `[B]` and gradient of its mean, in NumPy float64, position by position."""
    student, teacher, margin = np.float64(student), np.float64(teacher), np.float64(margin)
    values, gradient = np.zeros(len(student)), np.zeros(student.shape)
    for place in np.ndindex(student.shape):
        s, t, m = student[place], teacher[place], margin[place[-1]]
        gap = s - t if t > 0 else max(s - max(t, m), 0.0)
        values[place[0]] += gap**2
        gradient[place] = 2 * gap / len(student)
    return values, gradient


def mean_of_negatives(scale, bias):
    """Of a normal variable, by the trapezoid rule over twelve deviations either side, as far as that is negative."""
    points = np.linspace(bias - 12 * scale, min(bias + 12 * scale, 0.0), 200_001)
    density = np.exp(-(((points - bias) / scale) ** 2) / 2)
    return np.trapezoid(points * density, points) / np.trapezoid(density, points)


@pytest.mark.parametrize("precision", ["f64", "f32"])
@pytest.mark.parametrize("case", cases("ofd"), ids=repr)
def test_margin_golden(case, precision):
    with computing_in(precision) as real:
        for i in range(sum(name.startswith("bn_bias") for name in case.inputs)):
            margin = losses.ofd_margin(real(case.inputs[f"bn_weight_{i}"]), real(case.inputs[f"bn_bias_{i}"]))
            case.check(margin[None, :, None, None], "out", f"margin_{i}", precision)


@pytest.mark.parametrize("ratio", [-30.0, -5.0, -1.0, 0.0, 0.5, 2.0, 3.0])
def test_margin_is_the_mean_of_the_negative_values(ratio):
    with computing_in("f64") as real:
        margin = losses.ofd_margin(real([0.7, -0.7]), real([0.7 * ratio] * 2))
        np.testing.assert_allclose(margin, mean_of_negatives(0.7, 0.7 * ratio), rtol=1e-7)
    single = losses.ofd_margin(jnp.float32([0.7]), jnp.float32([0.7 * ratio]))
    np.testing.assert_allclose(single, mean_of_negatives(0.7, 0.7 * ratio), rtol=2e-5)


def test_margin_where_hardly_anything_is_negative_and_at_the_extremes():
    """One in a thousand is 3.0902 deviations away. Beyond it the released code takes three deviations."""
    scale = jnp.float32([1, 1, 2, 1e-30, 1e-30, 1e30, 0, 0, 0, 1e-38, -1e-38])
    bias = jnp.float32([3.08, 3.1, 50, 1e30, -1e30, 1, -2, 0, 2, 1e38, -1e38])
    margin = losses.ofd_margin(scale, bias)
    assert -0.4 < margin[0] < -0.2
    expected = [-3, -6, -3e-30, -1e30, -1e30 * math.sqrt(2 / math.pi), -2, 0, 0, -3e-38, -1e38]
    np.testing.assert_allclose(margin[1:], expected, rtol=1e-5, atol=1e-37)
    assert margin.dtype == jnp.float32 and (margin <= 0).all()
    np.testing.assert_array_equal(jax.grad(lambda s: losses.ofd_margin(s, bias).sum())(scale), 0)
    np.testing.assert_array_equal(jax.grad(lambda b: losses.ofd_margin(scale, b).sum())(bias), 0)


def test_ofd_is_its_definition():
    values, gradient = by_cases(STUDENT, TEACHER, MARGIN)
    branches = [TEACHER > 0, (TEACHER <= 0) & (TEACHER > MARGIN), TEACHER <= MARGIN]
    assert min(np.sum(branch & (gradient != 0)) for branch in branches) > 5
    with computing_in("f64") as real:
        np.testing.assert_allclose(losses.ofd(real(STUDENT), real(TEACHER), real(MARGIN)), values, rtol=1e-12)
        _, found = mean_and_gradient(losses.ofd, real(STUDENT), real(TEACHER), real(MARGIN))
        np.testing.assert_allclose(found, gradient, rtol=1e-12, atol=1e-14)
    value, found = mean_and_gradient(losses.ofd, jnp.asarray(STUDENT), TEACHER, MARGIN)
    np.testing.assert_allclose(value, values.mean(), rtol=1e-5)
    np.testing.assert_allclose(found, gradient, rtol=1e-5, atol=1e-5)


def test_ofd_on_the_borders_of_its_cases():
    """Equal to the teacher, at the margin, a teacher at 0 and at the margin."""
    teacher = np.float32([1.0, 0.0, 0.0, -1.0, -1.0, -3.0, -3.0]).reshape(1, 1, 1, 7)
    student = np.float32([1.0, 0.0, -5.0, -1.0, 0.5, -1.0, -0.5]).reshape(1, 1, 1, 7)
    value, gradient = mean_and_gradient(losses.ofd, jnp.asarray(student), teacher, np.full(7, -1.0, np.float32))
    np.testing.assert_allclose(value, 1.5**2 + 0.5**2)
    np.testing.assert_allclose(gradient.reshape(7), [0, 0, 0, 0, 3, 0, 1])


@pytest.mark.parametrize("size", [(8, 8), (2, 2), (7, 3), (1, 9)])
def test_ofd_brings_the_teacher_to_the_size_of_the_student(size):
    teacher = draw(303, 3, *size, 5)
    with computing_in("f64") as real:
        found = losses.ofd(real(STUDENT), real(teacher), real(MARGIN))
        pooled = losses.adaptive_average_pool(real(teacher), (4, 4))
        np.testing.assert_allclose(found, by_cases(STUDENT, pooled, MARGIN)[0], rtol=1e-12)


def test_ofd_teaches_only_the_student_and_not_once_equal():
    gradients = jax.grad(lambda *inputs: losses.ofd(*inputs).sum(), argnums=(0, 1, 2))(STUDENT, TEACHER, MARGIN)
    assert np.abs(gradients[0]).max() > 1
    np.testing.assert_array_equal(gradients[1], 0)
    np.testing.assert_array_equal(gradients[2], 0)
    value, gradient = mean_and_gradient(losses.ofd, jnp.asarray(TEACHER), TEACHER, MARGIN)
    assert value == 0
    np.testing.assert_array_equal(gradient, 0)


def test_ofd_of_extremes_and_of_rows_that_are_no_numbers():
    student, teacher = 1e4 * np.sign(STUDENT), 1e4 * np.sign(TEACHER)
    values, gradient = by_cases(student, teacher, MARGIN)
    value, found = mean_and_gradient(losses.ofd, jnp.asarray(student), teacher, MARGIN)
    np.testing.assert_allclose(value, values.mean(), rtol=1e-6)
    np.testing.assert_allclose(found, gradient, rtol=1e-6)
    teacher = TEACHER.copy()
    teacher[1] = np.nan
    values = losses.ofd(STUDENT, teacher, MARGIN)
    np.testing.assert_allclose(values[::2], by_cases(STUDENT[::2], TEACHER[::2], MARGIN)[0], rtol=1e-5)
    # Where the batch's mask leaves the row out, its gradient is 0.
    gradient = jax.grad(lambda s: jnp.sum(losses.ofd(s, teacher, MARGIN)[::2]))(STUDENT)
    np.testing.assert_array_equal(gradient[1], 0)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_ofd_of_half_types_is_computed_in_float32(dtype):
    student, teacher = jnp.asarray(100 * STUDENT, dtype), jnp.asarray(TEACHER, dtype)
    values = losses.ofd(student, teacher, jnp.asarray(MARGIN, dtype))
    assert values.dtype == losses.ofd_margin(student[0, 0, 0], student[0, 0, 0]).dtype == jnp.float32
    margin = jnp.asarray(MARGIN, dtype).astype(jnp.float32)
    expected = losses.ofd(student.astype(jnp.float32), teacher.astype(jnp.float32), margin)
    np.testing.assert_array_equal(values, expected)
    assert np.isfinite(values).all() and values.max() > 7e4


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match=r"margin \(4,\): give \[B, H, W, K\] of both"):
        losses.ofd(STUDENT, TEACHER, MARGIN[:4])
    with pytest.raises(ValueError, match=r"teacher_preactivations \(3, 4, 4, 4\)"):
        losses.ofd(STUDENT, TEACHER[..., :4], MARGIN)
    with pytest.raises(ValueError, match="teacher_features has 2 examples, student_features 3"):
        losses.ofd(STUDENT, TEACHER[:2], MARGIN)
    with pytest.raises(TypeError, match="margin must be floating point"):
        losses.ofd(STUDENT, TEACHER, np.zeros(5, int))
    with pytest.raises(ValueError, match=r"scale has shape \(2,\), bias \(3,\)"):
        losses.ofd_margin(jnp.ones(2), jnp.ones(3))

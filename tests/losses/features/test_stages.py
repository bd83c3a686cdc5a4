"""fitnet against the reference implementation and its formula."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdjax import losses
from tests.golden_cases import cases, nhwc
from tests.losses.computing import compiled, computing_in, draw, mean_and_gradient

losses = compiled(losses)


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


# --- masked generation, variational information, channels as distributions ---

MAPS = draw(46, 3, 2, 3, 4), draw(47, 3, 2, 3, 4)
EXACT = {"rtol": 1e-10, "atol": 1e-13}


def test_mgd_is_the_sum_over_each_example():
    """No released numbers; against the formula in NumPy."""
    generated, teacher = MAPS
    gap = np.float64(generated) - teacher
    with computing_in("f64") as real:
        values, pull = jax.vjp(lambda g: losses.mgd(g, real(teacher)), real(generated))
        np.testing.assert_allclose(values, np.sum(gap**2, axis=(1, 2, 3)), **EXACT)
        np.testing.assert_allclose(pull(jnp.ones(3, values.dtype))[0], 2 * gap, **EXACT)
        np.testing.assert_allclose(values, 24 * losses.fitnet(real(generated), real(teacher)), **EXACT)
    with pytest.raises(ValueError, match="project the student's features to the teacher's shape first"):
        losses.mgd(generated, teacher[:, :1])


@pytest.mark.parametrize("shape", [(), (4,), (3, 1, 1, 1), (3, 2, 3, 4)])
def test_vid_is_minus_the_log_likelihood(shape):
    """But for `log(2 pi) / 2`; its gradients by the mean and by the variance too."""
    mean, teacher = (np.float64(x) for x in MAPS)
    variance = np.exp(np.float64(draw(48, *shape, scale=1.0)))
    full = np.broadcast_to(variance, mean.shape)
    expected = (0.5 * ((mean - teacher) ** 2 / full + np.log(full))).mean((1, 2, 3))
    by_variance = 0.5 * (1 / full - (mean - teacher) ** 2 / full**2) / 24
    axes = tuple(i for i in range(4) if i < 4 - len(shape) or np.shape(variance)[i - 4 + len(shape)] == 1)
    with computing_in("f64") as real:
        values, pull = jax.vjp(lambda m, v: losses.vid(m, real(teacher), v), real(mean), real(variance))
        np.testing.assert_allclose(values, expected, **EXACT)
        slopes = pull(jnp.ones(3, values.dtype))
        np.testing.assert_allclose(slopes[0], (mean - teacher) / full / 24, **EXACT)
        np.testing.assert_allclose(slopes[1], by_variance.sum(axes).reshape(shape), **EXACT)


def test_vid_asks_for_the_variance_that_there_is():
    """Lowest, at a given error, where the variance is the squared error; the gradient by the mean is divided by it."""
    mean, teacher = np.full((1, 4), 3.0, np.float32), np.zeros((1, 4), np.float32)
    slope = jax.grad(lambda v: losses.vid(mean, teacher, v).sum())
    np.testing.assert_allclose(slope(jnp.full(4, 9.0)), 0, atol=1e-8)
    assert np.all(slope(jnp.full(4, 8.0)) < 0) and np.all(slope(jnp.full(4, 10.0)) > 0)


def test_vid_refuses_what_does_not_fit():
    mean, teacher = MAPS
    with pytest.raises(ValueError, match=r"variance has shape \(3,\), which does not broadcast to the features"):
        losses.vid(mean, teacher, np.ones(3, np.float32))
    with pytest.raises(ValueError, match="predicted_mean has shape"):
        losses.vid(mean[..., :2], teacher, np.ones(4, np.float32))
    with pytest.raises(TypeError, match="variance must be floating point"):
        losses.vid(mean, teacher, 1)


def channel_probabilities(maps, temperature):
    """`[B, HW, K]`: every channel sums to one over the positions."""
    scaled = np.float64(maps).reshape(len(maps), -1, maps.shape[-1]) / temperature
    return np.exp(scaled - np.logaddexp.reduce(scaled, axis=1, keepdims=True))


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_cwd_is_the_mean_divergence_of_the_channels(temperature):
    """No released numbers; against the formula in NumPy, value and gradient."""
    student, teacher = MAPS
    ours, theirs = (channel_probabilities(maps, temperature) for maps in MAPS)
    expected = temperature**2 * np.sum(theirs * np.log(theirs / ours), axis=1).mean(1)
    slope = temperature * (ours - theirs).reshape(student.shape) / 4
    with computing_in("f64") as real:
        loss = lambda s, t: losses.cwd(s, t, temperature=temperature)
        values, pull = jax.vjp(lambda s: loss(s, real(teacher)), real(student))
        np.testing.assert_allclose(values, expected, **EXACT)
        np.testing.assert_allclose(pull(jnp.ones(3, values.dtype))[0], slope, **EXACT)
        # A channel's level does not matter, the order of positions neither.
        level = real(draw(49, 3, 1, 1, 4))
        np.testing.assert_allclose(loss(real(student) + level, real(teacher) - level), values, **EXACT)
        np.testing.assert_allclose(loss(real(student)[:, ::-1], real(teacher)[:, ::-1]), values, **EXACT)


def test_cwd_of_sure_channels_and_of_a_temperature_for_each():
    student, teacher = np.zeros((1, 1, 2, 1), np.float32), np.zeros((1, 1, 2, 1), np.float32)
    student[0, 0, 0], teacher[0, 0, 1] = 1e4, 1e4
    values, pull = jax.vjp(lambda s: losses.cwd(s, teacher, temperature=1.0), student)
    np.testing.assert_allclose(values, 1e4)
    np.testing.assert_allclose(pull(jnp.ones(1))[0].ravel(), [1, -1])
    maps = MAPS[0], MAPS[1]
    by_channel = losses.cwd(*maps, temperature=jnp.array([1.0, 1.0, 4.0, 4.0]))
    halves = [losses.cwd(*(x[..., c] for x in maps), temperature=t) for c, t in ((slice(2), 1.0), (slice(2, 4), 4.0))]
    np.testing.assert_allclose(by_channel, sum(halves) / 2, rtol=1e-5)
    with pytest.raises(ValueError, match=r"temperature is 0\.0"):
        losses.cwd(*maps, temperature=0.0)

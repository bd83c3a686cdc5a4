"""simkd and srrl by their formulas. The reference's numbers are compared with their objectives."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdjax import losses
from tests.losses.computing import compiled, computing_in, draw, mean_and_gradient

losses = compiled(losses)

MAP, TARGET = draw(340, 3, 4, 4, 5), draw(341, 3, 4, 4, 5)
LOGITS, TEACHER = draw(342, 3, 6), draw(343, 3, 6)


def means(x):
    return np.float64(x).mean(tuple(range(1, x.ndim - 1)))


def test_simkd_is_the_mean_square_and_pools_the_teacher():
    with computing_in("f64") as real:
        expected = np.mean((np.float64(MAP) - TARGET) ** 2, (1, 2, 3))
        value, gradient = mean_and_gradient(losses.simkd, real(MAP), real(TARGET))
        np.testing.assert_allclose(value, expected.mean(), rtol=1e-12)
        np.testing.assert_allclose(gradient, 2 * (np.float64(MAP) - TARGET) / MAP.size, rtol=1e-12)
        np.testing.assert_allclose(losses.simkd(real(MAP), real(TARGET)), expected, rtol=1e-12)
        wide = np.repeat(np.repeat(TARGET, 2, 1), 2, 2)
        np.testing.assert_allclose(losses.simkd(real(MAP), real(wide)), expected, rtol=1e-12)
        np.testing.assert_allclose(
            losses.simkd(real(MAP[:, :1, :1]), real(TARGET)),
            np.mean((np.float64(MAP[:, 0, 0]) - means(TARGET)) ** 2, 1), rtol=1e-12,
        )  # fmt: skip


@pytest.mark.parametrize("ours", [MAP, MAP[:, 0], MAP[:, 0, 0]], ids=["map", "row", "vector"])
@pytest.mark.parametrize("theirs", [TARGET, TARGET[:, :3, :2], TARGET[:, 0, 0]], ids=["map", "smaller", "vector"])
def test_srrl_compares_means_over_positions_and_logits(ours, theirs):
    expected = np.mean((means(ours) - means(theirs)) ** 2, 1) + np.mean((np.float64(LOGITS) - TEACHER) ** 2, 1)
    with computing_in("f64") as real:
        found = losses.srrl(real(ours), real(theirs), real(LOGITS), real(TEACHER))
        np.testing.assert_allclose(found, expected, rtol=1e-12)
        gradient = jax.grad(lambda s: losses.srrl(s, real(theirs), real(LOGITS), real(TEACHER)).sum())(real(ours))
        by_mean = 2 * (means(ours) - means(theirs)) / 5 / (ours[0].size / 5)
        shape = (3,) + (1,) * (ours.ndim - 2) + (5,)
        np.testing.assert_allclose(gradient, np.broadcast_to(by_mean.reshape(shape), ours.shape), rtol=1e-10)
    np.testing.assert_allclose(losses.srrl(ours, theirs, LOGITS, TEACHER), expected, rtol=1e-5)


def test_neither_teaches_the_teacher_nor_once_equal():
    loss = lambda f, t, z, y: jnp.sum(losses.srrl(f, t, z, y))
    gradients = jax.grad(loss, argnums=(0, 1, 2, 3))(MAP, TARGET, LOGITS, TEACHER)
    np.testing.assert_allclose(gradients[2], 2 * (LOGITS - TEACHER) / 6, rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(gradients[1], 0)
    np.testing.assert_array_equal(gradients[3], 0)
    np.testing.assert_array_equal(jax.grad(lambda t: losses.simkd(MAP, t).sum())(TARGET), 0)
    value, gradient = mean_and_gradient(losses.srrl, jnp.asarray(TARGET), TARGET, TEACHER, TEACHER)
    assert value == 0
    np.testing.assert_array_equal(gradient, 0)
    assert losses.simkd(TARGET, TARGET).max() == 0


def test_a_class_that_the_teacher_does_not_know_is_left_out():
    teacher, logits = TEACHER.copy(), LOGITS.copy()
    teacher[:, 2] = logits[:, 2] = -np.inf
    others = np.arange(6) != 2
    expected = losses.srrl(MAP, TARGET, LOGITS[:, others], TEACHER[:, others])
    np.testing.assert_allclose(losses.srrl(MAP, TARGET, logits, teacher), expected, rtol=1e-6)
    gradient = jax.grad(lambda z: losses.srrl(MAP, TARGET, z, teacher).sum())(logits)
    np.testing.assert_allclose(gradient[:, others], 2 * (LOGITS - TEACHER)[:, others] / 5, rtol=1e-5)
    np.testing.assert_array_equal(gradient[:, 2], 0)


def test_extremes_and_half_types():
    big, low = 1e4 * np.sign(MAP), -1e4 * np.sign(MAP)
    rounding = MAP[0].size * np.finfo(np.float32).eps  # of a sum of so many, in whatever order
    np.testing.assert_allclose(losses.simkd(big, low), 4e8, rtol=rounding)
    np.testing.assert_allclose(
        losses.srrl(big[:, 0, 0], low[:, 0, 0], 1e4 * np.sign(LOGITS), -1e4 * np.sign(LOGITS)), 8e8, rtol=1e-6
    )
    for dtype in (jnp.bfloat16, jnp.float16):
        half = [jnp.asarray(300 * x, dtype) for x in (MAP, TARGET, LOGITS, TEACHER)]
        wide = [x.astype(jnp.float32) for x in half]
        for loss, count in ((losses.simkd, 2), (losses.srrl, 4)):
            values = loss(*half[:count])
            assert values.dtype == jnp.float32
            np.testing.assert_array_equal(values, loss(*wide[:count]))
            assert np.isfinite(values).all()


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="project the student's to the teacher's channels first"):
        losses.simkd(MAP, TARGET[..., :4])
    with pytest.raises(ValueError, match=r"both must be \[B, H, W, K\]"):
        losses.simkd(MAP[:, 0], TARGET[:, 0])
    with pytest.raises(ValueError, match="connect the student's to the teacher's channels first"):
        losses.srrl(MAP, TARGET[..., :4], LOGITS, TEACHER)
    with pytest.raises(ValueError, match="has 5 classes, student_logits 6"):
        losses.srrl(MAP, TARGET, LOGITS, TEACHER[:, :5])
    with pytest.raises(ValueError, match="teacher_features has 2 examples, student_features 3"):
        losses.simkd(MAP, TARGET[:2])
    with pytest.raises(TypeError, match="teacher_features must be floating point"):
        losses.simkd(MAP, TARGET.astype(int))

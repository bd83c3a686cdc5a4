"""affinity_kd where features vanish, coincide, are equal to the teacher's, huge or tiny."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdjax import losses
from kdjax.losses import affinity_grid, affinity_kd
from kdjax.losses.relations.affinity_parts import AFFINITIES, NORMALIZATIONS
from tests.losses.computing import compiled, computing_in, draw, mean_and_gradient

affinity_kd = compiled(affinity_kd)

ROWS = 4
STUDENT, TEACHER = draw(90, ROWS, 2, scale=1.0), draw(91, ROWS, 3, scale=1.0)


def several_losses(student, teacher, affinity, normalization):
    chosen = [
        choice
        for choice in affinity_grid()
        if (choice["affinity"], choice["normalization"]) == (affinity, normalization)
    ]
    chosen = [choice for choice in chosen if choice["loss"] in ("smooth_l1", "cosine", "kl")]
    return sum(jnp.sum(losses.affinity_kd(student, teacher, **choice, sigma=2.0)) for choice in chosen)


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
def test_features_without_length_or_difference_have_finite_gradients(normalization):
    """Operation by operation: the same few are compiled once for all combinations."""
    silent, alike, one_dead = np.zeros_like(STUDENT), np.full_like(STUDENT, 0.3), STUDENT.copy()
    one_dead[1] = 0
    one_dead[3] = one_dead[2]
    students, teachers = jnp.stack([silent, alike, one_dead]), jnp.stack([TEACHER, np.zeros_like(TEACHER), TEACHER])
    for affinity in AFFINITIES:
        loss = functools.partial(several_losses, affinity=affinity, normalization=normalization)
        value, gradient = jax.vmap(jax.value_and_grad(loss))(students, teachers)
        assert np.isfinite(value).all() and np.isfinite(gradient).all(), (affinity, normalization)
        assert np.abs(gradient).max() < 1e8


def test_equal_entries_have_no_zscore():
    """Their deviation is what rounding leaves."""
    with computing_in("f32"):
        alike = jnp.full((7, 3), 0.1)
        for teacher in (alike, draw(93, 7, 3)):
            value, gradient = mean_and_gradient(zscore, alike, jnp.asarray(teacher))
            expected = 0.0 if teacher is alike else 1.0  # the mean square of a z-score
            np.testing.assert_allclose(value, expected, atol=1e-6)
            np.testing.assert_array_equal(gradient, 0)


def zscore(student, teacher):
    return affinity_kd(student, teacher, affinity="dot", normalization="zscore", loss="mse")


def softmax_of_products(student, teacher):
    return affinity_kd(student, teacher, affinity="dot", normalization="row_softmax", loss="kl")


def test_rows_that_are_certain_keep_their_divergence_in_float32():
    """A student that is certain of the wrong neighbour: the divergence is a difference of logits, far from underflow."""
    student = jnp.array([[100.0, 0.0], [0.0, 100.0], [0.0, -1.0]])
    teacher = jnp.array([[0.0, 1.0], [0.0, 100.0], [1.0, 0.0]])
    value = softmax_of_products(student, teacher)
    # Row 0: the student says itself, by 1e4; the teacher says row 1, by 99.
    np.testing.assert_allclose(value[0], 1e4 / 3, rtol=1e-6)
    gradient = jax.grad(lambda s: softmax_of_products(s, teacher)[0])(student)
    np.testing.assert_allclose(gradient[0], [200 / 3, -100 / 3], rtol=1e-6)
    np.testing.assert_allclose(gradient[1], [-100 / 3, 0], rtol=1e-6)


@pytest.mark.parametrize("scale", [1e-2, 1e4])
def test_scale_free_choices_in_float32(scale):
    student = np.float32(scale * STUDENT)
    for choice in (
        {"affinity": "dot", "normalization": "frobenius", "loss": "mse"},
        {"affinity": "dot", "normalization": "row_l2", "loss": "cosine"},
        {"affinity": "sq_l2", "normalization": "zscore", "loss": "mse"},
        {"affinity": "l2", "normalization": "row_sum", "loss": "kl"},
    ):
        step = jax.value_and_grad(lambda s, choice=choice: jnp.mean(affinity_kd(s, TEACHER, **choice, epsilon=0.0)))
        value, gradient = step(jnp.asarray(student))
        expected, slope = step(jnp.asarray(STUDENT))
        np.testing.assert_allclose(value, expected, rtol=1e-4)
        np.testing.assert_allclose(scale * gradient, slope, rtol=1e-3, atol=1e-5)
        assert np.abs(slope).max() > 1e-3


@pytest.mark.parametrize("loss", ["l1", "smooth_l1", "mse", "cosine"])
def test_a_student_that_equals_its_teacher_has_nothing_to_learn(loss):
    """The absolute value too has slope 0 there."""
    corners = jnp.array([[1.0, 0.0], [0.0, 2.0], [1.0, 1.0]])
    value, gradient = jax.value_and_grad(lambda s: affinity_kd(s, corners, affinity="dot", loss=loss).sum())(corners)
    np.testing.assert_allclose(value, 0, atol=1e-6)
    np.testing.assert_allclose(gradient, 0, atol=1e-6)

"""second_order_kd, weighted_repr and fisher_diag: the quadratic form, its relation to kd, and its edges."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdjax.losses.logits.logit import kd, logit_mse
from kdjax.losses.logits.second_order import fisher_diag, second_order_kd, weighted_repr
from tests.losses import numpy_reference as reference
from tests.losses.computing import compiled, computing_in, draw, mean_and_gradient

kd, logit_mse, fisher_diag, second_order_kd, weighted_repr = map(
    compiled, (kd, logit_mse, fisher_diag, second_order_kd, weighted_repr)
)

PRECISIONS = pytest.mark.parametrize("precision", ["f64", "f32"])
STUDENT, TEACHER = draw(140, 6, 5), draw(141, 6, 5)
HEAD = draw(142, 4, 5, scale=1.0)
Z = draw(143, 6, 4)


def numpy_second_order(student, teacher):
    """`[...]` values and `[..., C]` gradients of their sum."""
    p, gap = reference.softmax(teacher), np.float64(student) - np.float64(teacher)
    centred = gap - np.sum(p * gap, axis=-1, keepdims=True)
    return 0.5 * np.sum(p * centred**2, axis=-1), p * centred


@PRECISIONS
@pytest.mark.parametrize("scale", [1e-3, 3.0, 1e4])
def test_second_order_kd_is_half_a_variance(scale, precision):
    # A teacher of ordinary doubts far from its student, so that the variance is large too.
    student, teacher = draw(144, 6, 5, scale=scale), draw(145, 6, 5, scale=min(scale, 3.0))
    values, gradients = numpy_second_order(student, teacher)
    tolerance = {"rtol": 1e-10} if precision == "f64" else {"rtol": 2e-5, "atol": 1e-6 * min(scale, 1)}
    with computing_in(precision) as real:
        value, gradient = mean_and_gradient(second_order_kd, real(student), real(teacher))
    np.testing.assert_allclose(value, values.mean(), rtol=tolerance["rtol"])
    np.testing.assert_allclose(gradient, gradients / 6, **tolerance, err_msg=f"{scale}")
    student, teacher = draw(144, 6, 5, scale=scale), draw(145, 6, 5, scale=scale)
    values, gradients = numpy_second_order(student, teacher)
    with computing_in(precision) as real:
        value, gradient = mean_and_gradient(second_order_kd, real(student), real(teacher))
    tolerance["atol"] = 1e-12 if precision == "f64" else 1e-6
    np.testing.assert_allclose(value, values.mean(), **tolerance)
    np.testing.assert_allclose(gradient, gradients / 6, **tolerance)


def test_it_is_kd_for_small_gaps():
    gap = draw(146, 6, 5)
    with computing_in("f64") as real:
        for norm, within in ((0.1, 0.05), (1e-3, 5e-4)):
            student = real(TEACHER) + norm * gap / np.linalg.norm(np.float64(gap), axis=-1, keepdims=True)
            exact = kd(student, real(TEACHER), temperature=1.0)
            np.testing.assert_allclose(second_order_kd(student, real(TEACHER)), exact, rtol=within)
        by_hessian = jax.hessian(lambda s: kd(s, real(TEACHER[0]), temperature=1.0))(real(TEACHER[0]))
        quadratic = 0.5 * real(gap[0]) @ by_hessian @ real(gap[0])
        np.testing.assert_allclose(second_order_kd(real(TEACHER + gap)[0], real(TEACHER[0])), quadratic, rtol=1e-6)


def test_it_sees_no_shift_and_is_centred_matching_for_a_teacher_without_opinion():
    shifted = second_order_kd(np.round(STUDENT * 8) / 8 + 8192, np.round(TEACHER * 8) / 8)
    np.testing.assert_allclose(
        shifted, second_order_kd(np.round(STUDENT * 8) / 8, np.round(TEACHER * 8) / 8), rtol=1e-6
    )
    value, gradient = mean_and_gradient(second_order_kd, jnp.asarray(TEACHER) + 8192, jnp.asarray(TEACHER) + 8192)
    np.testing.assert_array_equal(value, 0)
    np.testing.assert_array_equal(gradient, 0)
    flat = np.full_like(TEACHER, 3.0)
    np.testing.assert_allclose(
        second_order_kd(STUDENT, flat), logit_mse(STUDENT, flat, center=True, class_reduction="mean"), rtol=1e-5
    )


def test_second_order_kd_and_excluded_classes():
    student, teacher, kept = STUDENT.copy(), TEACHER.copy(), [0, 1, 2, 4]
    teacher[:, 3] = -np.inf
    values, gradients = numpy_second_order(STUDENT[:, kept], TEACHER[:, kept])
    for ours in (STUDENT[:, 3], -np.inf):
        student[:, 3] = ours
        value, gradient = mean_and_gradient(second_order_kd, jnp.asarray(student), jnp.asarray(teacher))
        np.testing.assert_allclose(value, values.mean(), rtol=1e-5)
        np.testing.assert_allclose(gradient[:, kept], gradients / 6, rtol=2e-5, atol=1e-6)
        np.testing.assert_array_equal(gradient[:, 3], 0)
    value, gradient = mean_and_gradient(second_order_kd, jnp.asarray(student), jnp.asarray(TEACHER))
    assert value == jnp.inf and np.isfinite(gradient).all()
    # A class whose probability rounds to nothing: no cost, whatever the student does there.
    value, gradient = mean_and_gradient(
        second_order_kd, jnp.array([[1.0, -1.0, -jnp.inf]]), jnp.array([[0.0, 0.0, -1e4]])
    )
    np.testing.assert_allclose(value, 0.5, rtol=1e-6)
    np.testing.assert_allclose(gradient, [[0.5, -0.5, 0.0]], rtol=1e-6)


def test_shapes_types_and_the_constant_teacher():
    values = second_order_kd(STUDENT, TEACHER)
    assert values.shape == (6,) and values.dtype == jnp.float32
    np.testing.assert_allclose(
        second_order_kd(STUDENT.reshape(2, 3, 5), TEACHER.reshape(2, 3, 5)).reshape(6), values, rtol=1e-6
    )
    by_student, by_teacher = jax.grad(lambda s, t: second_order_kd(s, t).sum(), argnums=(0, 1))(STUDENT, TEACHER)
    np.testing.assert_array_equal(by_teacher, 0)
    assert np.abs(by_student).max() > 1e-3
    half = jnp.asarray(STUDENT, jnp.bfloat16), jnp.asarray(TEACHER, jnp.bfloat16)
    np.testing.assert_array_equal(second_order_kd(*half), second_order_kd(*(x.astype(jnp.float32) for x in half)))
    np.testing.assert_array_equal(second_order_kd(STUDENT[:, :1], TEACHER[:, :1]), 0)


# --- weighted representations ---


@PRECISIONS
def test_weighted_repr_is_a_weighted_sum_of_squares(precision):
    student, teacher, weight = draw(147, 6, 2, 3), draw(148, 6, 2, 3), np.abs(draw(149, 6, 2, 3))
    gap = np.float64(student) - np.float64(teacher)
    rtol = 1e-12 if precision == "f64" else 1e-5
    with computing_in(precision) as real:
        for w, ours in (weight, weight), (weight[0], weight[0]), (weight[:1, :1], weight[:1, :1]), (1.0, None):
            given = None if ours is None else real(ours)
            value, gradient = mean_and_gradient(weighted_repr, real(student), real(teacher), given)
            np.testing.assert_allclose(value, np.sum(w * gap**2) / 6, rtol=rtol)
            np.testing.assert_allclose(gradient, 2 * w * gap / 6, rtol=rtol, atol=1e-7)
        values = weighted_repr(real(student), real(teacher), real(weight))
        assert values.shape == (6,)
        np.testing.assert_allclose(values, np.sum(weight * gap**2, axis=(1, 2)), rtol=rtol)


def test_weighted_repr_teacher_and_weight_are_constants():
    weight = jnp.asarray(np.abs(draw(149, 6, 5)))
    gradients = jax.grad(lambda s, t, w: weighted_repr(s, t, w).sum(), argnums=(0, 1, 2))(STUDENT, TEACHER, weight)
    assert np.abs(gradients[0]).min() > 0
    np.testing.assert_array_equal(gradients[1], 0)
    np.testing.assert_array_equal(gradients[2], 0)
    half = jnp.asarray(STUDENT, jnp.bfloat16), jnp.asarray(TEACHER, jnp.bfloat16)
    assert weighted_repr(*half).dtype == jnp.float32
    np.testing.assert_array_equal(weighted_repr(STUDENT, STUDENT), 0)


def test_weighted_repr_compares_nothing_where_the_weight_is_zero():
    student, teacher, weight = STUDENT.copy(), TEACHER.copy(), np.ones(5, np.float32)
    teacher[:, 3] = student[:3, 3] = -np.inf
    weight[3] = 0
    value, gradient = mean_and_gradient(weighted_repr, jnp.asarray(student), jnp.asarray(teacher), jnp.asarray(weight))
    kept = [0, 1, 2, 4]
    gap = np.float64(STUDENT[:, kept]) - TEACHER[:, kept]
    np.testing.assert_allclose(value, np.sum(gap**2) / 6, rtol=1e-5)
    np.testing.assert_allclose(gradient[:, kept], 2 * gap / 6, rtol=1e-5)
    np.testing.assert_array_equal(gradient[:, 3], 0)


def test_weighted_repr_refuses_what_does_not_fit():
    with pytest.raises(ValueError, match=r"teacher_z has shape \(6, 4\), student_z \(6, 5\)"):
        weighted_repr(STUDENT, TEACHER[:, :4])
    with pytest.raises(ValueError, match=r"weight has shape \(4,\), which does not broadcast to \(6, 5\)"):
        weighted_repr(STUDENT, TEACHER, jnp.ones(4))
    with pytest.raises(TypeError, match="student_z must be floating point"):
        weighted_repr(STUDENT.astype(int), TEACHER)


# --- Fisher information ---


def identity(z):
    return z


def linear(z):
    return z @ HEAD


def numpy_fisher(z):
    """`[B, D]` for the linear head: the score of class y is its column of weights less the average column."""
    p, head = reference.softmax(np.float64(z) @ HEAD), np.float64(HEAD)
    scores = head.T[None] - (p @ head.T)[:, None]
    return np.einsum("by,byd->bd", p, scores**2), scores


@PRECISIONS
def test_exact_fisher(precision):
    rtol = 1e-10 if precision == "f64" else 2e-5
    with computing_in(precision) as real:
        p = reference.softmax(TEACHER)
        of_logits = fisher_diag(identity, real(TEACHER))
        np.testing.assert_allclose(of_logits, p * (1 - p), rtol=rtol, atol=1e-7 if precision == "f32" else 0)
        np.testing.assert_allclose(fisher_diag(linear, real(Z)), numpy_fisher(Z)[0], rtol=rtol, atol=1e-7)
        # A representation of any rank.
        maps = fisher_diag(lambda z: z.reshape(z.shape[0], 4) @ HEAD, real(Z).reshape(6, 2, 2, 1))
        np.testing.assert_allclose(maps.reshape(6, 4), numpy_fisher(Z)[0], rtol=rtol, atol=1e-7)


def test_fisher_weighted_matching_is_the_diagonal_of_second_order_kd():
    with computing_in("f64") as real:
        student, teacher = real(STUDENT), real(TEACHER)
        weighted = weighted_repr(student, teacher, fisher_diag(identity, teacher))
    p, gap = reference.softmax(TEACHER), np.float64(STUDENT) - np.float64(TEACHER)
    np.testing.assert_allclose(weighted, np.sum(p * (1 - p) * gap**2, axis=-1), rtol=1e-10)


def test_sampled_fisher_is_the_square_of_one_score_and_right_on_average():
    exact, scores = numpy_fisher(Z)
    keys = jax.random.split(jax.random.key(0), 4000)
    samples = np.asarray(jax.jit(jax.vmap(lambda k: fisher_diag(linear, Z, mode="sampled", key=k)))(keys))
    nearest = np.abs(samples[:50, :, None] - scores[None] ** 2).max(axis=-1).min(axis=-1)
    np.testing.assert_allclose(nearest, 0, atol=1e-5)
    error = samples.std(axis=0) / np.sqrt(4000)
    assert np.all(np.abs(samples.mean(axis=0) - exact) < 5 * error + 1e-6)
    assert len(np.unique(samples[:, 0, 0].round(4))) > 1


def test_fisher_is_a_constant_and_finite_at_any_size():
    def through(z, weights):
        return fisher_diag(lambda z: z @ weights, z).sum()

    for gradient in jax.grad(through, argnums=(0, 1))(Z, HEAD):
        np.testing.assert_array_equal(gradient, 0)
    huge = draw(150, 6, 5, scale=1e4)
    p = reference.softmax(huge)
    np.testing.assert_allclose(fisher_diag(identity, huge), p * (1 - p), atol=1e-6)
    excluded = TEACHER.copy()
    excluded[:, 3] = -np.inf
    p = reference.softmax(excluded)
    np.testing.assert_allclose(fisher_diag(identity, excluded), p * (1 - p), rtol=2e-5, atol=1e-7)
    sampled = fisher_diag(identity, excluded, mode="sampled", key=jax.random.key(3))
    np.testing.assert_array_equal(sampled[:, 3], 0)
    assert np.isfinite(sampled).all()
    assert fisher_diag(identity, jnp.asarray(TEACHER, jnp.bfloat16)).dtype == jnp.float32


def test_fisher_refuses_what_does_not_fit():
    with pytest.raises(ValueError, match="mode is 'empirical'"):
        fisher_diag(identity, TEACHER, mode="empirical")
    with pytest.raises(ValueError, match="give key="):
        fisher_diag(identity, TEACHER, mode="sampled")
    with pytest.raises(ValueError, match=r"teacher_head_fn gives \(6, 1, 5\) for \(6, 5\)"):
        fisher_diag(lambda z: z[:, None], TEACHER)

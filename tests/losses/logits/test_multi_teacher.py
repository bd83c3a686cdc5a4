"""multi_teacher_kd, ensemble_logits and random_teacher_logits: what they promise, and their edges."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdjax.losses.logits.logit import kd
from kdjax.losses.logits.multi_teacher import ensemble_logits, multi_teacher_kd, random_teacher_logits
from tests.losses import numpy_reference as reference
from tests.losses.computing import compiled, computing_in, draw, mean_and_gradient

kd, ensemble_logits, multi_teacher_kd, random_teacher_logits = map(
    compiled, (kd, ensemble_logits, multi_teacher_kd, random_teacher_logits)
)

STUDENT, TEACHERS = draw(120, 6, 5), draw(121, 6, 3, 5)
WEIGHTS = np.array([0.5, 0.2, 1.3], np.float32)


# --- several teachers ---


@pytest.mark.parametrize("precision", ["f64", "f32"])
@pytest.mark.parametrize("scale", [1.0, 1e4])
def test_multi_teacher_kd_is_a_weighted_sum_of_kd(precision, scale):
    student, teachers, weights = scale * STUDENT, scale * TEACHERS, np.float64(WEIGHTS)
    each = [reference.kd(student, teachers[:, k], 2.0) for k in range(3)]
    slopes = [reference.kd_gradient(student, teachers[:, k], 2.0) for k in range(3)]
    tolerance = {"rtol": 1e-9, "atol": 1e-10} if precision == "f64" else {"rtol": 2e-5, "atol": 1e-6}
    with computing_in(precision) as real:
        value, gradient = mean_and_gradient(
            multi_teacher_kd, real(student), real(teachers), weights=real(weights), temperature=2.0
        )
        np.testing.assert_allclose(value, np.einsum("k,kb->", weights, each) / 6, **tolerance)
        np.testing.assert_allclose(gradient, np.einsum("k,kbc->bc", weights, slopes) / 6, **tolerance)
        uniform = multi_teacher_kd(real(student), real(teachers), temperature=2.0)
        np.testing.assert_allclose(uniform, np.mean(each, axis=0), **tolerance)


def test_its_gradient_is_that_of_the_average_teacher():
    with computing_in("f64") as real:
        average = np.log(np.mean(reference.softmax(TEACHERS, 2.0), axis=1)) * 2.0
        many = jax.grad(lambda s: multi_teacher_kd(s, real(TEACHERS), temperature=2.0).sum())(real(STUDENT))
        one = jax.grad(lambda s: kd(s, real(average), temperature=2.0).sum())(real(STUDENT))
    np.testing.assert_allclose(many, one, rtol=1e-10, atol=1e-12)


def test_one_teacher_is_kd_and_equal_ones_teach_nothing():
    one = multi_teacher_kd(STUDENT, TEACHERS[:, :1], temperature=3.0)
    np.testing.assert_allclose(one, kd(STUDENT, TEACHERS[:, 0], temperature=3.0), rtol=1e-6)
    np.testing.assert_array_equal(multi_teacher_kd(STUDENT, np.stack([STUDENT] * 2, axis=1)), 0)


def test_weights_and_temperature_by_example_and_more_axes():
    weights, temperatures = np.abs(draw(122, 6, 3)), np.array([0.5, 1.0, 2.0, 4.0, 8.0, 16.0], np.float32)
    values = multi_teacher_kd(STUDENT, TEACHERS, weights=weights, temperature=temperatures)
    for i in 1, 4:
        expected = [reference.kd(STUDENT[i], t, np.float64(temperatures[i])) for t in TEACHERS[i]]
        np.testing.assert_allclose(values[i], weights[i] @ np.array(expected), rtol=1e-4)
    grid = multi_teacher_kd(
        STUDENT.reshape(2, 3, 5),
        TEACHERS.reshape(2, 3, 3, 5),
        weights=weights.reshape(2, 3, 3),
        temperature=temperatures.reshape(2, 3),
    )
    np.testing.assert_allclose(grid.reshape(6), values, rtol=1e-6)
    row = multi_teacher_kd(STUDENT[1], TEACHERS[1], weights=weights[1], temperature=1.0)
    np.testing.assert_allclose(row, values[1], rtol=1e-5)


def test_teachers_are_constants_and_half_types_computed_in_float32():
    by_student, by_teachers, by_weights = jax.grad(
        lambda s, t, w: multi_teacher_kd(s, t, weights=w).sum(), argnums=(0, 1, 2)
    )(STUDENT, TEACHERS, WEIGHTS)
    np.testing.assert_array_equal(by_teachers, 0)
    assert np.abs(by_student).min() > 0
    each = [reference.kd(STUDENT, TEACHERS[:, k], 4.0).sum() for k in range(3)]
    np.testing.assert_allclose(by_weights, each, rtol=1e-5)
    half = jnp.asarray(STUDENT, jnp.bfloat16), jnp.asarray(TEACHERS, jnp.bfloat16)
    assert multi_teacher_kd(*half).dtype == jnp.float32
    np.testing.assert_array_equal(multi_teacher_kd(*half), multi_teacher_kd(*(x.astype(jnp.float32) for x in half)))


def test_excluded_classes_and_a_teacher_without_weight():
    student, teachers = STUDENT.copy(), TEACHERS.copy()
    student[:, 3] = teachers[:, 0, 3] = -np.inf  # the other teachers believe in class 3
    assert np.all(multi_teacher_kd(student, teachers) == np.inf)
    value, gradient = mean_and_gradient(
        multi_teacher_kd, jnp.asarray(student), jnp.asarray(teachers), weights=jnp.array([1.0, 0.0, 0.0])
    )
    kept = [0, 1, 2, 4]
    np.testing.assert_allclose(value, reference.kd(STUDENT[:, kept], TEACHERS[:, 0, kept], 4.0).mean(), rtol=1e-5)
    assert np.isfinite(gradient).all()
    np.testing.assert_array_equal(gradient[:, 3], 0)


def test_multi_teacher_kd_refuses_what_does_not_fit():
    for teachers in TEACHERS[:, 0], TEACHERS[:, :, :4], TEACHERS[:4], TEACHERS.transpose(1, 0, 2):
        with pytest.raises(ValueError, match=r"teacher_logits has shape .* give \[..., M, C\] for \[..., C\]"):
            multi_teacher_kd(STUDENT, teachers)
    with pytest.raises(ValueError, match="no teacher"):
        multi_teacher_kd(STUDENT, TEACHERS[:, :0])
    with pytest.raises(ValueError, match=r"weights has shape \(2,\)"):
        multi_teacher_kd(STUDENT, TEACHERS, weights=jnp.ones(2))


# --- an ensemble ---


@pytest.mark.parametrize("precision", ["f64", "f32"])
@pytest.mark.parametrize("scale", [1.0, 1e4])
def test_ensemble_is_the_log_of_the_average(precision, scale):
    members = draw(123, 3, 6, 5, scale=scale)
    log_p = reference.log_softmax(members)
    expected = np.logaddexp.reduce(log_p, axis=0) - np.log(3)
    with computing_in(precision) as real:
        ours = ensemble_logits(real(members))
        tolerance = {"rtol": 1e-12, "atol": 1e-15} if precision == "f64" else {"rtol": 2e-6, "atol": 1e-6}
        np.testing.assert_allclose(ours, expected, **tolerance)
        np.testing.assert_allclose(np.exp(ours).sum(-1), 1, rtol=1e-5)
        moved = ensemble_logits(real(members.transpose(1, 0, 2)), axis=-2)
        np.testing.assert_array_equal(moved, ours)
        _, pull = jax.vjp(ensemble_logits, real(members))
        cotangent = draw(124, 6, 5)
        (gradient,) = pull(real(cotangent))
    # d/dz_m of log mean softmax: the member's share in each class, less its pull on all.
    share = np.exp(log_p - np.logaddexp.reduce(log_p, axis=0)) * cotangent
    by_hand = share - np.exp(log_p) * share.sum(-1, keepdims=True)
    np.testing.assert_allclose(gradient, by_hand, rtol=1e-9 if precision == "f64" else 1e-4, atol=1e-5)


def test_an_ensemble_of_one_or_of_equals_is_that_member():
    np.testing.assert_allclose(ensemble_logits(STUDENT[None]), reference.log_softmax(STUDENT), rtol=1e-5)
    np.testing.assert_allclose(ensemble_logits(np.stack([STUDENT] * 4)), reference.log_softmax(STUDENT), rtol=1e-5)


def test_a_class_is_out_only_where_all_members_exclude_it():
    members = draw(125, 2, 1, 3)
    members[:, :, 0] = -np.inf
    members[1, :, 1] = -np.inf
    values, pull = jax.vjp(ensemble_logits, jnp.asarray(members))
    assert values[0, 0] == -np.inf
    np.testing.assert_allclose(values[0, 1], reference.log_softmax(members[0])[0, 1] - np.log(2), rtol=1e-5)
    assert np.isfinite(pull(jnp.ones((1, 3)))[0]).all()


def test_ensemble_types_and_refusals():
    assert ensemble_logits(jnp.zeros((2, 3), jnp.bfloat16)).dtype == jnp.float32
    for axis in (-1, 2, 3, -4):
        with pytest.raises(ValueError, match=rf"axis is {axis}"):
            ensemble_logits(jnp.zeros((2, 3, 4)), axis=axis)
    with pytest.raises(ValueError, match="at least one member"):
        ensemble_logits(jnp.zeros((0, 3, 4)))


# --- no teacher ---


def test_random_teacher_logits_are_gaussian_noise():
    key = jax.random.key(0)
    noise = random_teacher_logits(key, (200, 50), 3.0)
    assert noise.shape == (200, 50) and noise.dtype == jnp.float32
    np.testing.assert_allclose([noise.mean(), noise.std()], [0, 3], atol=0.1)
    np.testing.assert_allclose(np.mean(np.abs(noise) < 3), 0.6827, atol=0.02)
    np.testing.assert_allclose(random_teacher_logits(key, (200, 50)), noise / 3, rtol=1e-6)
    np.testing.assert_array_equal(jax.jit(lambda s: random_teacher_logits(key, (2, 3), s))(0.0), 0)
    assert np.any(random_teacher_logits(jax.random.key(1), (200, 50), 3.0) != noise)
    with jax.enable_x64(True):
        assert random_teacher_logits(key, (2, 3)).dtype == jnp.float32

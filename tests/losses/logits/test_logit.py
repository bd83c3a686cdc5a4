"""kd, logit_mse and hard_label against their formulas, at their edges, and what they refuse."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from kdjax import losses
from tests.losses import numpy_reference as reference
from tests.losses.computing import compiled, computing_in, draw, mean_and_gradient, values_and_gradient

losses = compiled(losses)

PRECISIONS = pytest.mark.parametrize("precision", ["f64", "f32"])
STUDENT, TEACHER = draw(0, 6, 5), draw(1, 6, 5)
LABELS = np.array([0, 1, 2, 3, 4, 2])
# Float32 on ordinary logits against float64 on the same numbers.
CLOSE = {"rtol": 2e-5, "atol": 2e-6}


# --- what the formulas promise ---


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_kd_gradient_is_temperature_times_difference_of_probabilities(temperature):
    with computing_in("f64") as real:
        gradient = jax.grad(lambda s: losses.kd(s, real(TEACHER), temperature=temperature).sum())(real(STUDENT))
        expected = reference.kd_gradient(STUDENT, TEACHER, temperature)
        np.testing.assert_allclose(gradient, expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("temperature", [1e3, 1e4])
def test_kd_at_high_temperature_is_centred_logit_matching(temperature):
    with computing_in("f64") as real:
        student, teacher = real(draw(20, 6, 5, scale=1.0)), real(draw(21, 6, 5, scale=1.0))
        warm, warm_gradient = mean_and_gradient(losses.kd, student, teacher, temperature=temperature)
        matched, matched_gradient = jax.value_and_grad(
            lambda s: losses.logit_mse(s, teacher, center=True, class_reduction="mean").mean()
        )(student)
        # The first term left out is of order 1 / T.
        np.testing.assert_allclose(warm, matched, rtol=1 / temperature)
        np.testing.assert_allclose(
            warm_gradient, matched_gradient, atol=2 / temperature * np.abs(matched_gradient).max()
        )
        shift = np.mean(student - teacher, axis=-1)
        plain = losses.logit_mse(student, teacher, class_reduction="mean").mean()
        np.testing.assert_allclose(plain - matched, np.mean(shift**2) / 2, rtol=1e-12)


def test_kd_at_low_temperature_is_training_on_the_teachers_choice():
    temperature = 1e-2
    with computing_in("f64") as real:
        teacher = real(TEACHER.argsort(axis=-1).argsort(axis=-1))  # ranks: the choice leads by one
        cold, cold_gradient = jax.value_and_grad(
            lambda s: losses.kd(s, teacher, temperature=temperature, scale_by_t2=False).sum()
        )(real(STUDENT))
        hard, hard_gradient = jax.value_and_grad(lambda s: losses.hard_label(s / temperature, teacher).sum())(
            real(STUDENT)
        )
        assert hard > 100  # the two disagree somewhere, or nothing is compared
        np.testing.assert_allclose(cold, hard, rtol=1e-10)
        np.testing.assert_allclose(cold_gradient, hard_gradient, atol=1e-10 * np.abs(hard_gradient).max())


def test_kd_is_label_smoothing_by_the_teacher():
    share = 0.3
    with computing_in("f64") as real:
        student, teacher = real(STUDENT), real(TEACHER)
        probabilities = jax.nn.softmax(teacher)
        soft = losses.kd(student, teacher, temperature=1.0) + losses.predictive_entropy(teacher)
        two_terms = (1 - share) * losses.cross_entropy(student, labels=LABELS) + share * soft
        mixed = (1 - share) * jax.nn.one_hot(LABELS, 5, dtype=student.dtype) + share * probabilities
        np.testing.assert_allclose(two_terms, losses.cross_entropy_with_targets(student, mixed), rtol=1e-12)


def test_kd_keeps_its_gradient_at_twenty_nats_of_disagreement():
    student, teacher = jnp.array([[20.0, 0.0]]), jnp.array([[-40.0, 0.0]])
    value, gradient = mean_and_gradient(losses.kd, student, teacher, temperature=1.0)
    np.testing.assert_allclose(value, 20.0, rtol=1e-6)
    np.testing.assert_allclose(gradient, [[1.0, -1.0]], rtol=1e-6)


def test_logit_mse_by_hand():
    student, teacher = jnp.array([[3.0, 1.0, 0.0]]), jnp.array([[0.0, 1.0, 0.0]])
    assert losses.logit_mse(student, teacher) == 4.5
    assert losses.logit_mse(student, teacher, class_reduction="mean") == 1.5
    assert losses.logit_mse(student, teacher, center=True) == 3.0
    assert losses.logit_mse(student, teacher, center=True, class_reduction="mean") == 1.0


def test_hard_label_takes_the_first_of_tied_classes():
    student = jnp.array([[3.0, 1.0, 0.0]])
    tied = losses.hard_label(student, jnp.array([[0.0, 7.0, 7.0]]))
    np.testing.assert_array_equal(tied, losses.cross_entropy(student, labels=jnp.array([1])))


# --- edges ---


def test_kd_where_both_networks_exclude_a_class_is_kd_without_it():
    student, teacher = STUDENT.copy(), TEACHER.copy()
    student[:, 3] = teacher[:, 3] = -np.inf
    value, gradient = mean_and_gradient(losses.kd, jnp.asarray(student), jnp.asarray(teacher), temperature=2.0)
    kept = [0, 1, 2, 4]
    np.testing.assert_allclose(value, reference.kd(STUDENT[:, kept], TEACHER[:, kept], 2.0).mean(), **CLOSE)
    np.testing.assert_allclose(
        gradient[:, kept], reference.kd_gradient(STUDENT[:, kept], TEACHER[:, kept], 2.0) / 6, **CLOSE
    )
    np.testing.assert_array_equal(gradient[:, 3], 0)
    by_temperature = jax.grad(lambda t: losses.kd(jnp.asarray(student), jnp.asarray(teacher), temperature=t).mean())(
        2.0
    )
    slope = reference.kd_temperature_gradient(STUDENT[:, kept], TEACHER[:, kept], 2.0).mean()
    np.testing.assert_allclose(by_temperature, slope, rtol=1e-4)


def test_a_class_that_only_the_teacher_excludes():
    teacher = TEACHER.copy()
    teacher[:, 3] = -np.inf
    value, gradient = mean_and_gradient(losses.kd, jnp.asarray(STUDENT), jnp.asarray(teacher), temperature=2.0)
    np.testing.assert_allclose(value, reference.kd(STUDENT, teacher, 2.0).mean(), **CLOSE)
    np.testing.assert_allclose(gradient, reference.kd_gradient(STUDENT, teacher, 2.0) / 6, **CLOSE)
    value, gradient = mean_and_gradient(losses.logit_mse, jnp.asarray(STUDENT), jnp.asarray(teacher))
    kept = [0, 1, 2, 4]
    gap = np.float64(STUDENT[:, kept]) - TEACHER[:, kept]
    np.testing.assert_allclose(value, np.mean(np.sum(gap**2, -1) / 2), **CLOSE)
    np.testing.assert_allclose(gradient[:, kept], gap / 6, **CLOSE)
    np.testing.assert_array_equal(gradient[:, 3], 0)


def test_a_class_that_only_the_student_excludes_costs_infinitely_and_leaves_a_finite_gradient():
    student = jnp.array([[0.0, -jnp.inf]])
    value, gradient = mean_and_gradient(losses.kd, student, jnp.zeros((1, 2)), temperature=1.0)
    assert value == jnp.inf
    assert np.isfinite(gradient).all()


@PRECISIONS
@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_logits_of_ten_thousand(temperature, precision):
    student, teacher = draw(2, 6, 5, scale=1e4), draw(3, 6, 5, scale=1e4)
    tolerance = {"rtol": 1e-10, "atol": 1e-10} if precision == "f64" else {"rtol": 2e-5, "atol": 1e-6}
    with computing_in(precision) as real:
        value, gradient = mean_and_gradient(losses.kd, real(student), real(teacher), temperature=temperature)
        np.testing.assert_allclose(value, reference.kd(student, teacher, temperature).mean(), **tolerance)
        np.testing.assert_allclose(gradient, reference.kd_gradient(student, teacher, temperature) / 6, **tolerance)


def test_constant_rows_teach_nothing_but_uniformity():
    constant = jnp.full((2, 4), 7.0)
    np.testing.assert_array_equal(losses.kd(constant, constant - 9.0), 0)
    value = losses.kd(jnp.array([[1.0, 0.0, 0.0, 0.0]]), constant[:1], temperature=1.0)
    np.testing.assert_allclose(value, np.log((np.e + 3) / 4) - 0.25, rtol=1e-5)


def test_temperature_may_differ_by_example():
    temperatures = np.array([0.5, 1.0, 2.0, 4.0, 8.0, 16.0], np.float32)
    expected = [reference.kd(s, t, np.float64(k)) for s, t, k in zip(STUDENT, TEACHER, temperatures, strict=True)]
    np.testing.assert_allclose(losses.kd(STUDENT, TEACHER, temperature=temperatures), expected, rtol=2e-4)
    tokens = STUDENT.reshape(2, 3, 5), TEACHER.reshape(2, 3, 5)
    by_column = losses.kd(*tokens, temperature=temperatures[:3])
    expected = losses.kd(STUDENT, TEACHER, temperature=np.tile(temperatures[:3], 2))
    np.testing.assert_allclose(by_column.reshape(6), expected, rtol=1e-6)


# --- values drawn at random, at one shape ---

SCORES = arrays(np.float64, (2, 3), elements=st.floats(-1e4, 1e4, allow_subnormal=False))


@settings(max_examples=40, deadline=None, derandomize=True)
@given(SCORES, SCORES, st.floats(0.5, 20.0))
def test_any_logits(student, teacher, temperature):
    with computing_in("f64") as real:
        whole, found = values_and_gradient(losses.kd, real(student), real(teacher), temperature=temperature)
        tolerance = {"rtol": 1e-9, "atol": 1e-8}  # T^2 times the rounding of logits of 1e4
        np.testing.assert_allclose(whole, reference.kd(student, teacher, temperature), **tolerance)
        np.testing.assert_allclose(found, reference.kd_gradient(student, teacher, temperature), **tolerance)
        assert whole.min() >= -1e-9


# --- refusals ---


def test_refuses_what_does_not_fit():
    logits = jnp.zeros((4, 3))
    with pytest.raises(ValueError, match="teacher_logits has 5 classes, student_logits 3: select the classes"):
        losses.kd(logits, jnp.zeros((4, 5)))
    with pytest.raises(ValueError, match=r"teacher_logits has leading axes \(1,\), student_logits \(4,\)"):
        losses.logit_mse(logits, jnp.zeros((1, 3)))
    with pytest.raises(TypeError, match="teacher_logits must be floating point"):
        losses.hard_label(logits, jnp.zeros((4, 3), int))
    with pytest.raises(ValueError, match=r"student_logits must be .* with at least one class"):
        losses.kd(jnp.zeros((4, 0)), jnp.zeros((4, 0)))
    for temperature in (0, -1.0, float("inf"), float("nan"), np.float32(0)):
        with pytest.raises(ValueError, match=r"temperature is .* must be above 0"):
            losses.kd(logits, logits, temperature=temperature)
    with pytest.raises(ValueError, match=r"temperature has shape \(4, 1\), which does not broadcast"):
        losses.kd(logits, logits, temperature=jnp.ones((4, 1)))
    with pytest.raises(ValueError, match="class_reduction is 'batchmean'"):
        losses.logit_mse(logits, logits, class_reduction="batchmean")

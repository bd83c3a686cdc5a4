"""Cross-entropies, smoothing, entropy and the skew-Jensen family against their definitions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from kdjax import losses
from kdjax.losses import logspace
from kdjax.losses.logits.regularization import MANY, SKEW_LIMIT
from tests.golden_cases import cases
from tests.losses import numpy_reference as reference
from tests.losses.computing import compiled, computing_in, draw, mean_and_gradient

losses = compiled(losses)

PRECISIONS = pytest.mark.parametrize("precision", ["f64", "f32"])
STUDENT = draw(30, 6, 5)
LABELS = np.array([3, 0, 1, 4, 2, 2])
ONE_HOT = np.eye(5)[LABELS]
EXACT = {"rtol": 1e-12, "atol": 1e-14}


def token_cross_entropy(student, teacher, labels):
    """Soft cross-entropy over the tokens that are not ignored, of classes that the student has."""
    targets = jnp.where(jnp.isinf(student), 0, jax.nn.softmax(teacher))
    kept = labels != -100
    values = losses.cross_entropy_with_targets(student, targets)
    return jnp.sum(jnp.where(kept, values, 0)) / jnp.sum(kept)


@PRECISIONS
@pytest.mark.parametrize("case", cases("distillm", symbol="forward_kl"), ids=repr)
def test_cross_entropy_with_targets_golden(case, precision):
    with computing_in(precision) as real:
        value, gradient = mean_and_gradient(
            token_cross_entropy, real(case.inputs["student"]), real(case.inputs["teacher"]), case.inputs["label"]
        )
        case.check(value, "out", "loss", precision)
        case.check(gradient, "grad", "student", precision)


def test_cross_entropy():
    with computing_in("f64") as real:
        value, gradient = mean_and_gradient(losses.cross_entropy, real(STUDENT), labels=LABELS)
        np.testing.assert_allclose(value, -reference.log_softmax(STUDENT)[np.arange(6), LABELS].mean(), **EXACT)
        np.testing.assert_allclose(gradient, (reference.softmax(STUDENT) - ONE_HOT) / 6, **EXACT)
        soft = losses.cross_entropy_with_targets(real(STUDENT), real(ONE_HOT))
        np.testing.assert_allclose(soft, losses.cross_entropy(real(STUDENT), labels=LABELS), **EXACT)


@pytest.mark.parametrize("precision", ["f64", "f32"])
def test_the_written_out_derivative_is_that_of_the_formula(precision):
    """Of many classes, extremes, classes out and labels that are none: values to the last bit, both kinds of derivative."""
    by_formula = lambda z, labels: -logspace.pick(logspace.log_softmax(z), logspace.one_hot(labels, z.shape[-1]))
    with computing_in(precision) as real:
        z = np.array(draw(31, 7, MANY + 1))
        z[1, 5], z[2, :9], z[3], z[4, 3] = 1e4, -np.inf, -np.inf, -1e4
        z, labels = real(z), jnp.array([3, 5, 4, 0, 3, -1, MANY + 1])
        assert jnp.array_equal(losses.cross_entropy(z, labels=labels), by_formula(z, labels), equal_nan=True)
        tolerance = {"rtol": 1e-12, "atol": 1e-15} if precision == "f64" else {"rtol": 1e-5, "atol": 1e-7}
        pulled = [jax.vjp(f, z)[1](real(np.arange(1.0, 8)))[0] for f in (
            lambda z: losses.cross_entropy(z, labels=labels), lambda z: by_formula(z, labels))]  # fmt: skip
        np.testing.assert_allclose(*pulled, **tolerance)
        assert np.all(pulled[0][jnp.array([2, 3, 5, 6])] == 0)
        forward = [jax.jvp(f, (z[:2],), (jnp.ones_like(z[:2]).at[:, 7].set(3),))[1] for f in (
            lambda z: losses.cross_entropy(z, labels=labels[:2]), lambda z: by_formula(z, labels[:2]))]  # fmt: skip
        np.testing.assert_allclose(*forward, **tolerance)


def test_a_target_of_zero_weighs_nothing_and_targets_are_constants():
    student = jnp.array([[0.0, 0.0, -jnp.inf]])
    targets = jnp.array([[0.25, 0.75, 0.0]])
    by_student, by_targets = jax.grad(lambda s, t: losses.cross_entropy_with_targets(s, t).sum(), argnums=(0, 1))(
        student, targets
    )
    np.testing.assert_allclose(losses.cross_entropy_with_targets(student, targets), np.log(2), rtol=1e-6)
    np.testing.assert_allclose(by_student, [[0.25, -0.25, 0.0]], rtol=1e-6)
    np.testing.assert_array_equal(by_targets, 0)


@pytest.mark.parametrize("over_all_classes", [True, False])
def test_label_smoothing_is_cross_entropy_with_smoothed_targets(over_all_classes):
    share = 0.3
    spread = np.full((6, 5), share / 5) if over_all_classes else (1 - ONE_HOT) * share / 4
    targets = (1 - share) * ONE_HOT + spread
    with computing_in("f64") as real:
        value, gradient = mean_and_gradient(
            lambda s, y, eps: losses.label_smoothing_xent(
                s, labels=y, smoothing=eps, over_all_classes=over_all_classes
            ),
            real(STUDENT),
            LABELS,
            share,
        )
        np.testing.assert_allclose(value, -(targets * reference.log_softmax(STUDENT)).sum(-1).mean(), **EXACT)
        np.testing.assert_allclose(gradient, (reference.softmax(STUDENT) - targets) / 6, **EXACT)


def test_label_smoothing_is_a_pull_towards_uniformity():
    share, uniform = 0.3, np.full((6, 5), np.log(1 / 5))
    with computing_in("f64") as real:
        values = losses.label_smoothing_xent(real(STUDENT), labels=LABELS, smoothing=share)
        hard = losses.cross_entropy(real(STUDENT), labels=LABELS)
        divergence = reference.kl(uniform, reference.log_softmax(STUDENT))
        np.testing.assert_allclose(values, (1 - share) * hard + share * (divergence + np.log(5)), **EXACT)
        # Moving a share of 4/5 of it to the other four classes is the same target.
        others = losses.label_smoothing_xent(
            real(STUDENT), labels=LABELS, smoothing=share * 4 / 5, over_all_classes=False
        )
        np.testing.assert_allclose(others, values, **EXACT)


def test_no_smoothing_is_cross_entropy_even_beside_an_excluded_class():
    student = STUDENT.copy()
    student[:, 0], labels = -np.inf, np.array([3, 1, 1, 4, 2, 2])
    hard = losses.cross_entropy(student, labels=labels)
    assert np.isfinite(hard).all()
    np.testing.assert_array_equal(losses.label_smoothing_xent(student, labels=labels, smoothing=0.0), hard)
    value, gradient = mean_and_gradient(losses.label_smoothing_xent, jnp.asarray(student), labels=labels, smoothing=0.1)
    assert value == jnp.inf
    assert np.isfinite(gradient).all()


def test_smoothing_and_penalty_may_differ_by_example():
    shares = np.linspace(0, 1, 6, dtype=np.float32)
    each = [losses.label_smoothing_xent(STUDENT[i], labels=LABELS[i], smoothing=shares[i]) for i in range(6)]
    np.testing.assert_allclose(losses.label_smoothing_xent(STUDENT, labels=LABELS, smoothing=shares), each, rtol=1e-6)
    each = [losses.confidence_penalty(STUDENT[i], beta=shares[i]) for i in range(6)]
    np.testing.assert_allclose(losses.confidence_penalty(STUDENT, beta=shares), each, rtol=1e-6)


def test_confidence_penalty_is_a_divergence_from_uniformity():
    uniform = np.full((6, 5), np.log(1 / 5))
    with computing_in("f64") as real:
        value, gradient = mean_and_gradient(losses.confidence_penalty, real(STUDENT), beta=0.5)
        log_p = reference.log_softmax(STUDENT)
        np.testing.assert_allclose(value, 0.5 * np.mean(reference.kl(log_p, uniform) - np.log(5)), **EXACT)
        entropy = -(np.exp(log_p) * log_p).sum(-1)
        np.testing.assert_allclose(losses.predictive_entropy(real(STUDENT)), entropy, **EXACT)
        np.testing.assert_allclose(gradient, 0.5 * np.exp(log_p) * (log_p + entropy[:, None]) / 6, **EXACT)


def test_entropy_runs_from_sure_to_uniform():
    sure, uniform = jnp.array([1e4, 0.0, 0.0, 0.0]), jnp.full(4, -1e4)
    np.testing.assert_allclose(losses.predictive_entropy(jnp.stack([sure, uniform])), [0, np.log(4)], rtol=1e-6)


# --- skew-Jensen ---

UNIFORM = np.full((6, 5), 1 / 5)
PROBABILITIES = reference.softmax(STUDENT)


@PRECISIONS
@pytest.mark.parametrize("alpha", [2e-4, 0.01, 0.3, 0.5, 0.9, 1 - 2e-4])
def test_skew_jensen_is_its_quotient(alpha, precision):
    with computing_in(precision) as real:
        value = losses.skew_jensen(real(UNIFORM), real(PROBABILITIES), alpha=alpha)
        expected = np.float64(reference.skew_jensen(UNIFORM, PROBABILITIES, alpha))
        np.testing.assert_allclose(value, expected, rtol=1e-10 if precision == "f64" else 2e-5)
        mirrored = losses.skew_jensen(real(PROBABILITIES), real(UNIFORM), alpha=1 - alpha)
        np.testing.assert_allclose(value, mirrored, rtol=1e-10 if precision == "f64" else 2e-4)


@PRECISIONS
def test_skew_jensen_limits_are_the_two_regularisers(precision):
    uniform, log_p = np.log(UNIFORM), np.log(PROBABILITIES)
    penalty, smoothing = reference.kl(log_p, uniform), reference.kl(uniform, log_p)
    assert np.abs(penalty - smoothing).min() > 1e-2  # or the two ends could be told from one another by nothing
    with computing_in(precision) as real:
        u, p = real(UNIFORM), real(PROBABILITIES)
        tolerance = EXACT if precision == "f64" else {"rtol": 2e-6, "atol": 1e-7}
        np.testing.assert_allclose(losses.skew_jensen(u, p, alpha=0.0), penalty, **tolerance)
        np.testing.assert_allclose(losses.skew_jensen(u, p, alpha=1.0), smoothing, **tolerance)
        both = losses.skew_jensen(u[:2], p[:2], alpha=real([0.0, 1.0]))
        np.testing.assert_allclose(both, [penalty[0], smoothing[1]], **tolerance)


@pytest.mark.parametrize("end", [0.0, 1.0])
def test_skew_jensen_is_continuous_across_the_switch(end):
    with computing_in("f64") as real:
        u, p = real(UNIFORM), real(reference.softmax(draw(31, 6, 5, scale=1.0)))

        def near(distance):
            alpha = real(abs(end - distance))
            return jax.value_and_grad(lambda q: losses.skew_jensen(u, q, alpha=alpha).sum())(p)

        inside, outside, further = near(0.99 * SKEW_LIMIT), near(1.01 * SKEW_LIMIT), near(2.02 * SKEW_LIMIT)
        limit = near(0.0)
        np.testing.assert_array_equal(inside[0], limit[0])
        for there, beyond, at in zip(outside, further, limit, strict=True):
            step, double = np.abs(there - at), np.abs(beyond - at)
            assert 0 < step.max() < 2e-2 * np.abs(at).max()
            # What is left at the switch is the slope of the function, not a jump: it halves with the distance.
            np.testing.assert_allclose(step.max(), double.max() / 2, rtol=0.1)


def test_skew_jensen_with_classes_that_one_side_lacks():
    p, q = jnp.array([[0.5, 0.5, 0.0, 0.0]]), jnp.array([[0.0, 0.6, 0.4, 0.0]])
    value, gradients = jax.value_and_grad(lambda a, b: losses.skew_jensen(a, b, alpha=0.3).sum(), argnums=(0, 1))(p, q)
    np.testing.assert_allclose(value, np.float64(reference.skew_jensen(p, q, 0.3)[0]), rtol=1e-5)
    assert np.isfinite(gradients).all()
    assert losses.skew_jensen(p, q, alpha=0.0) == jnp.inf
    assert losses.skew_jensen(p, q, alpha=1.0) == jnp.inf
    contained = jnp.array([[0.5, 0.5, 0.0, 0.0]]), jnp.array([[0.25, 0.5, 0.25, 0.0]])
    np.testing.assert_allclose(losses.skew_jensen(*contained, alpha=1.0), 0.5 * np.log(2), rtol=1e-6)


@pytest.mark.parametrize("alpha", [0.0, 1e-3, 0.5, 1.0])
def test_skew_jensen_of_equal_distributions_is_zero(alpha):
    p = jnp.asarray(PROBABILITIES, jnp.float32)
    value, gradient = mean_and_gradient(losses.skew_jensen, p, p, alpha=alpha)
    assert value == 0
    np.testing.assert_allclose(gradient, 0, atol=1e-6)


WEIGHTS = arrays(np.float64, (2, 4), elements=st.floats(0, 1, allow_subnormal=False))


@settings(max_examples=40, deadline=None, derandomize=True)
@given(WEIGHTS, WEIGHTS, st.floats(2 * SKEW_LIMIT, 1 - 2 * SKEW_LIMIT))
def test_any_distributions(p, q, alpha):
    p, q = (x + (x.sum(-1, keepdims=True) == 0) for x in (p, q))
    p, q = (x / x.sum(-1, keepdims=True) for x in (p, q))
    with computing_in("f64") as real:
        value = losses.skew_jensen(real(p), real(q), alpha=real(alpha))
        assert value.min() >= -1e-15
        np.testing.assert_allclose(value, np.float64(reference.skew_jensen(p, q, alpha)), rtol=1e-9, atol=1e-11)


def test_refuses_what_does_not_fit():
    logits = jnp.zeros((4, 3))
    with pytest.raises(ValueError, match=r"smoothing is 1\.5; it must be at least 0 and at most 1"):
        losses.label_smoothing_xent(logits, labels=jnp.zeros(4, int), smoothing=1.5)
    with pytest.raises(ValueError, match=r"alpha is -0\.1; it must be at least 0 and at most 1"):
        losses.skew_jensen(logits, logits, alpha=-0.1)
    with pytest.raises(ValueError, match="q has 2 classes, p 3"):
        losses.skew_jensen(logits, logits[:, :2], alpha=0.5)
    with pytest.raises(ValueError, match="targets has 2 classes, student_logits 3"):
        losses.cross_entropy_with_targets(logits, logits[:, :2])
    with pytest.raises(TypeError, match=r"labels must be integer .* give probabilities to cross_entropy_with_targets"):
        losses.cross_entropy(logits, labels=logits)
    with pytest.raises(ValueError, match=r"labels has shape \(4, 1\), student_logits leading axes \(4,\)"):
        losses.cross_entropy(logits, labels=jnp.zeros((4, 1), int))
    with pytest.raises(ValueError, match=r"beta has shape \(2, 4\)"):
        losses.confidence_penalty(logits, beta=jnp.ones((2, 4)))
    with pytest.raises(TypeError, match="logits must be floating point"):
        losses.predictive_entropy(jnp.zeros((4, 3), int))

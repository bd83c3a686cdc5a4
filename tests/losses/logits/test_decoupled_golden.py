"""dkd, rld and nkd against the numbers of the original implementations, values and gradients."""

import jax.numpy as jnp
import numpy as np
import pytest

from kdjax.losses.logits.decoupled import dkd, nkd, rld
from tests.golden_cases import cases
from tests.losses import numpy_reference as reference
from tests.losses.computing import compiled, computing_in, mean_and_gradient

dkd, nkd, rld = map(compiled, (dkd, nkd, rld))

PRECISIONS = pytest.mark.parametrize("precision", ["f64", "f32"])


# The formulas in NumPy, one row at a time, with classes removed instead of masked: values and gradients of their sum.


def dkd_by_rows(student, teacher, labels, *, alpha=1.0, beta=8.0, temperature=4.0):
    target, rest = reference.dkd_parts(student, teacher, labels, temperature)
    gradient = reference.dkd_gradient(student, teacher, labels, alpha=alpha, beta=beta, temperature=temperature)
    return alpha * target + beta * rest, gradient


def rld_by_rows(student, teacher, labels, *, alpha=1.0, beta=8.0, temperature=4.0, alpha_temperature=None):
    own = temperature if alpha_temperature is None else alpha_temperature
    values, gradients = [], []
    for s, t, y in zip(np.float64(student), np.float64(teacher), labels, strict=True):
        pair = []
        for z, c in (t, t.argmax()), (s, y):
            log_p = reference.log_softmax(z, own)
            pair.append(np.array([log_p[c], np.logaddexp.reduce(np.delete(log_p, c))]))
        value = alpha * own**2 * reference.kl(*pair)
        is_label = np.arange(len(s)) == y
        others = reference.softmax(np.where(is_label, -np.inf, s), own)
        # The two-class divergence moves p_s(y); the other classes share the opposite pull.
        gradient = alpha * own * (np.exp(pair[1][0]) - np.exp(pair[0][0])) * (is_label - others)
        below = t < t[y]
        if np.isfinite(t[below]).any():
            value += beta * reference.kd(s[below], t[below], temperature)
            gradient[below] += beta * reference.kd_gradient(s[below], t[below], temperature)
        values.append(value)
        gradients.append(gradient)
    return np.array(values), np.array(gradients)


def nkd_by_rows(student, teacher, labels, *, gamma=1.5, temperature=1.0):
    values, gradients = [], []
    for s, t, y in zip(np.float64(student), np.float64(teacher), labels, strict=True):
        trust = reference.softmax(t)[y]
        is_label = np.arange(len(s)) == y
        value = -trust * reference.log_softmax(s)[y]
        gradient = trust * (reference.softmax(s) - is_label)
        if len(s) > 1:
            q_t, log_q = reference.softmax(t[~is_label], temperature), reference.log_softmax(s[~is_label], temperature)
            value -= gamma * temperature**2 * np.sum(q_t[q_t > 0] * log_q[q_t > 0])
            gradient[~is_label] += gamma * temperature * (np.exp(log_q) - q_t)
        values.append(value)
        gradients.append(gradient)
    return np.array(values), np.array(gradients)


def tolerance(precision):
    """Ours in `precision` against the formula in float64, which is there where the reference has no finite numbers."""
    return {"rtol": 1e-8, "atol": 1e-12} if precision == "f64" else {"rtol": 2e-5, "atol": 1e-6}


@PRECISIONS
@pytest.mark.parametrize("case", cases("dkd"), ids=repr)
def test_dkd_golden(case, precision):
    student, teacher, labels = (case.inputs[name] for name in ("student", "teacher", "label"))
    with computing_in(precision) as real:
        value, gradient = mean_and_gradient(dkd, real(student), real(teacher), labels, **case.hyper)
        if case.finite[precision]:
            case.check(value, "out", "loss", precision)
            case.check(gradient, "grad", "student", precision)
    values, gradients = dkd_by_rows(student, teacher, labels, **case.hyper)
    np.testing.assert_allclose(value, values.mean(), **tolerance(precision))
    np.testing.assert_allclose(gradient, gradients / len(labels), **tolerance(precision))


def standardised(logits):
    """Rows less their mean, over their unbiased standard deviation: what the released code calls `logit_stand`."""
    deviation = jnp.std(logits, axis=-1, ddof=1, keepdims=True)
    return (logits - jnp.mean(logits, axis=-1, keepdims=True)) / (1e-7 + deviation)


def rld_of_standardised(student, teacher, labels, **hyper):
    return rld(standardised(student), standardised(teacher), labels, **hyper)


@PRECISIONS
@pytest.mark.parametrize("case", cases("rld"), ids=repr)
def test_rld_golden(case, precision):
    student, teacher, labels = (case.inputs[name] for name in ("student", "teacher", "label"))
    hyper = dict(case.hyper)
    loss = rld_of_standardised if hyper.pop("logit_stand") else rld
    with computing_in(precision) as real:
        value, gradient = mean_and_gradient(loss, real(student), real(teacher), labels, **hyper)
        if case.finite[precision]:
            case.check(value, "out", "loss", precision)
            case.check(gradient, "grad", "student", precision)
    if loss is rld:
        values, gradients = rld_by_rows(student, teacher, labels, **hyper)
        np.testing.assert_allclose(value, values.mean(), **tolerance(precision))
        np.testing.assert_allclose(gradient, gradients / len(labels), **tolerance(precision))


@PRECISIONS
@pytest.mark.parametrize("case", cases("nkd"), ids=repr)
def test_nkd_golden(case, precision):
    student, teacher, labels = (case.inputs[name] for name in ("student", "teacher", "label"))
    with computing_in(precision) as real:
        labels = real(labels) if labels.ndim == 2 else labels
        hyper = {"gamma": case.hyper["gamma"], "temperature": case.hyper["temp"]}
        value, gradient = mean_and_gradient(nkd, real(student), real(teacher), labels, **hyper)
        case.check(value, "out", "loss", precision)
        case.check(gradient, "grad", "student", precision)

"""The divergences against the numbers of DistiLLM, TRL's GKD and Liger's references, values and gradients."""

import functools

import jax.numpy as jnp
import numpy as np
import pytest

from kdjax.losses.tokens import divergences
from tests.golden_cases import cases
from tests.losses.computing import compiled, computing_in, mean_and_gradient
from tests.losses.tokens.test_divergences import numpy_divergence

divergences = compiled(divergences)

PRECISIONS = pytest.mark.parametrize("precision", ["f64", "f32"])
IGNORED = -100  # of no case's own: the convention of all of them


def token_mean(name, student, teacher, labels, **hyper):
    """The released reduction: the sum over tokens with a label, over their number."""
    kept = labels != IGNORED
    return jnp.sum(jnp.where(kept, getattr(divergences, name)(student, teacher, **hyper), 0)) / jnp.sum(kept)


def distillm_forward(student, teacher, labels):
    return token_mean("forward_kl", student, teacher, labels, cross_entropy_form=True)


def distillm_reverse(student, teacher, labels):
    return token_mean("reverse_kl", student, teacher, labels)


def distillm_symmetric(student, teacher, labels, lam):
    """With the teacher's entropy, by which the released forward KL is larger."""
    entropy = distillm_forward(student, teacher, labels) - token_mean("forward_kl", student, teacher, labels)
    return token_mean("symmetric_kl", student, teacher, labels, alpha=lam) + (1 - lam) * entropy


def distillm_js(student, teacher, labels, lam):
    """Its share is the student's."""
    return token_mean("jsd", student, teacher, labels, beta=1 - lam)


def distillm_tv(student, teacher, labels):
    return token_mean("tvd", student, teacher, labels)


def distillm_skewed_forward(student, teacher, labels, lam):
    return token_mean("skew_fkl", student, teacher, labels, alpha=lam, cross_entropy_form=True)


def distillm_skewed_reverse(student, teacher, labels, lam):
    return token_mean("skew_rkl", student, teacher, labels, alpha=lam)


DISTILLM = {
    "forward_kl": distillm_forward,
    "reverse_kl": distillm_reverse,
    "symmetric_kl": distillm_symmetric,
    "js_distance": distillm_js,
    "tv_distance": distillm_tv,
    "skewed_forward_kl": distillm_skewed_forward,
    "skewed_reverse_kl": distillm_skewed_reverse,
}
# What each is in the formulas of the other test, where the reference is not finite.
FORMULAS = {
    "forward_kl": lambda lam: ("forward_kl", {"cross_entropy_form": True}),
    "tv_distance": lambda lam: ("tvd", {}),
    "reverse_kl": lambda lam: ("reverse_kl", {}),
    "symmetric_kl": lambda lam: ("symmetric_kl", {"alpha": lam}),
    "js_distance": lambda lam: ("jsd", {"beta": 1 - lam}),
    "skewed_forward_kl": lambda lam: ("skew_fkl", {"alpha": lam, "cross_entropy_form": True}),
    "skewed_reverse_kl": lambda lam: ("skew_rkl", {"alpha": lam}),
}


def by_formula(name, hyper, student, teacher, labels):
    """(mean over the kept tokens, its gradient), in NumPy float64."""
    kept = labels != IGNORED
    with np.errstate(invalid="ignore"):
        values, gradient = numpy_divergence(name, student, teacher, **hyper)
    count = max(kept.sum(), 1)
    return values[kept].sum() / count, np.where(kept[..., None], gradient, 0.0) / count


def close(actual, expected, precision):
    actual = np.asarray(actual)
    assert actual.dtype == {"f64": np.float64, "f32": np.float32}[precision]
    tolerance = {"rtol": 1e-8, "atol": 1e-12} if precision == "f64" else {"rtol": 2e-5, "atol": 1e-6}
    scale = max(1.0, np.abs(expected).max()) if precision == "f32" else 1.0
    np.testing.assert_allclose(actual, expected, tolerance["rtol"], tolerance["atol"] * scale)


def test_every_symbol_of_distillm_is_covered():
    assert {case.symbol for case in cases("distillm")} == set(DISTILLM)


@PRECISIONS
@pytest.mark.parametrize("case", cases("distillm"), ids=repr)
def test_distillm_golden(case, precision):
    student, teacher, labels = (case.inputs[name] for name in ("student", "teacher", "label"))
    with computing_in(precision) as real:
        loss = DISTILLM[case.symbol]
        value, gradient = mean_and_gradient(loss, real(student), real(teacher), labels, **case.hyper)
        if case.finite[precision]:
            case.check(value, "out", "loss", precision)
            case.check(gradient, "grad", "student", precision)
            return
    expected, expected_gradient = by_formula(*FORMULAS[case.symbol](case.hyper.get("lam")), student, teacher, labels)
    if case.symbol == "symmetric_kl":
        plain, _ = by_formula("forward_kl", {}, student, teacher, labels)
        whole, _ = by_formula("forward_kl", {"cross_entropy_form": True}, student, teacher, labels)
        expected += (1 - case.hyper["lam"]) * (whole - plain)
    close(value, expected, precision)
    close(gradient, expected_gradient, precision)
    reference = case.outputs["f64"]["loss"]
    if np.isfinite(reference):  # the value alone is a target, where only the gradient is nan
        np.testing.assert_allclose(expected, reference, rtol=1e-8)


def gkd(student, teacher, labels, divisor, **hyper):
    values = divergences.jsd(student, teacher, **hyper)
    return jnp.sum(values if labels is None else jnp.where(labels != IGNORED, values, 0)) / divisor


def gkd_divisor(case):
    """What the released reduction divides the sum over the tokens by."""
    student, labels = case.inputs["student"], case.inputs.get("label")
    tokens = student[..., 0].size if labels is None else np.sum(labels != IGNORED)
    divisor = {
        # Without labels the reference divides by the first axis alone, and its mean is over the vocabulary too.
        "batchmean": len(student) if labels is None else max(tokens, 1),
        "sum": 1,
        "mean": max(tokens, 1) * student.shape[-1],
    }[case.hyper["reduction"]]
    return float(divisor)


@PRECISIONS
@pytest.mark.parametrize("case", cases("gkd"), ids=repr)
def test_gkd_golden(case, precision):
    student, teacher, labels = (case.inputs.get(name) for name in ("student", "teacher", "label"))
    hyper = {"beta": case.hyper["beta"], "temperature": case.hyper.get("temperature", 1.0)}
    with computing_in(precision) as real:
        value, gradient = mean_and_gradient(gkd, real(student), real(teacher), labels, gkd_divisor(case), **hyper)
        if case.finite["f64"]:
            case.check(value, "out", "loss", precision)
            case.check(gradient, "grad", "student", precision)
            return
    counted = np.zeros(student.shape[:-1], int) if labels is None else labels
    expected, expected_gradient = by_formula("jsd", hyper, student, teacher, counted)
    share = max(np.sum(counted != IGNORED), 1) / gkd_divisor(case)
    close(value, share * expected, precision)
    close(gradient, share * expected_gradient, precision)


def liger(name, student, teacher, labels, divisor, **hyper):
    values = getattr(divergences, name)(student, teacher, **hyper)
    return jnp.sum(jnp.where(labels != IGNORED, values, 0)) / divisor


liger_jsd, liger_tvd = functools.partial(liger, "jsd"), functools.partial(liger, "tvd")


def nearly(case, actual, expected, kind, precision):
    """As close as the inputs allow in float64: their float32 probabilities do not sum to 1 exactly, ours do."""
    tolerance = case.tolerance(kind, "f32") if precision == "f32" else {"rtol": 2e-7, "atol": 2e-8}
    np.testing.assert_allclose(actual, expected, **tolerance)


@PRECISIONS
@pytest.mark.parametrize("case", cases("liger_ref", symbol="JSD"), ids=repr)
def test_liger_jsd_golden(case, precision):
    student, teacher, labels = (case.inputs[name] for name in ("log_q", "log_p", "label"))
    kept = labels != IGNORED
    with computing_in(precision) as real:
        value, gradient = mean_and_gradient(
            liger_jsd, real(student), real(teacher), labels, float(max(kept.sum(), 1)), beta=case.hyper["beta"]
        )
    if not case.finite[precision]:
        expected, expected_gradient = by_formula("jsd", case.hyper, student, teacher, labels)
        close(value, expected, precision)
        close(gradient, expected_gradient, precision)
        return
    nearly(case, value, case.outputs["f64"]["loss"], "out", precision)
    # The reference differentiates by the log-probabilities, as if they were free.
    free = case.grads["f64"]["log_q"]
    p_s = np.exp(np.float64(student))
    projected = free - p_s * free.sum(axis=-1, keepdims=True)
    nearly(case, gradient, projected, "grad", precision)


@PRECISIONS
@pytest.mark.parametrize("case", cases("liger_ref", symbol="TorchTVDLoss"), ids=repr)
def test_liger_tvd_golden(case, precision):
    student, teacher, labels = (np.float64(case.inputs[name]) for name in ("p", "q", "label"))
    kept = max(np.sum(labels != IGNORED), 1)
    divisor = {"batchmean": kept, "sum": 1, "mean": kept * student.shape[-1]}[case.hyper["reduction"]]
    # A probability of 0 by a logit that is not -inf, since that would take the token out.
    logits = (np.where(p > 0, np.log(np.where(p > 0, p, 1)), -1e4) for p in (student, teacher))
    with computing_in(precision) as real:
        value, gradient = mean_and_gradient(liger_tvd, *map(real, logits), labels, float(divisor))
    assert case.finite["f64"]  # probabilities between 0 and 1 give nothing else
    nearly(case, value, case.outputs["f64"]["loss"], "out", precision)
    free = case.grads["f64"]["p"]
    projected = student * (free - np.sum(student * free, axis=-1, keepdims=True))
    nearly(case, gradient, projected, "grad", precision)

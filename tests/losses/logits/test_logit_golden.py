"""kd against the numbers of the original implementations, values and gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdjax import losses
from tests.golden_cases import cases
from tests.losses import numpy_reference as reference
from tests.losses.computing import compiled, computing_in, mean_and_gradient
from tests.losses.tokens.test_divergences_golden import IGNORED, gkd_divisor

losses = compiled(losses)

PRECISIONS = pytest.mark.parametrize("precision", ["f64", "f32"])


@PRECISIONS
@pytest.mark.parametrize("case", cases("kd", symbol="kd_loss"), ids=repr)
def test_kd_golden(case, precision):
    with computing_in(precision) as real:
        value, gradient = mean_and_gradient(
            losses.kd, real(case.inputs["student"]), real(case.inputs["teacher"]), temperature=case.hyper["temperature"]
        )
        case.check(value, "out", "loss", precision)
        case.check(gradient, "grad", "student", precision)


def benchmark_total(student, teacher, labels, ce_weight, kd_weight, temperature):
    hard, soft = losses.cross_entropy(student, labels=labels), losses.kd(student, teacher, temperature=temperature)
    return ce_weight * hard + kd_weight * soft


@PRECISIONS
@pytest.mark.parametrize("case", [c for c in cases("kd") if "ce_weight" in c.hyper], ids=repr)
def test_cross_entropy_and_kd_golden(case, precision):
    with computing_in(precision) as real:
        student, teacher, labels = real(case.inputs["student"]), real(case.inputs["teacher"]), case.inputs["label"]
        value, gradient = mean_and_gradient(benchmark_total, student, teacher, labels, **case.hyper)
        case.check(value, "out", "loss", precision)
        case.check(gradient, "grad", "student", precision)
        for name, other in ("loss_ce", "kd_weight"), ("loss_kd", "ce_weight"):
            part, _ = mean_and_gradient(benchmark_total, student, teacher, labels, **case.hyper | {other: 0.0})
            case.check(part, "out", name, precision)


def token_kl(student, teacher, labels, divisor, temperature):
    """KL without T^2 over the tokens that are not ignored, on `[batch, length, vocabulary]` logits."""
    values = losses.kd(student, teacher, temperature=temperature, scale_by_t2=False)
    return jnp.sum(values if labels is None else jnp.where(labels != IGNORED, values, 0)) / divisor


@PRECISIONS
@pytest.mark.parametrize("case", [c for c in cases("gkd") if c.hyper["beta"] == 0.0], ids=repr)
def test_kd_without_t2_golden(case, precision):
    with computing_in(precision) as real:
        value, gradient = mean_and_gradient(
            token_kl,
            real(case.inputs["student"]),
            real(case.inputs["teacher"]),
            case.inputs.get("label"),
            gkd_divisor(case),
            temperature=case.hyper.get("temperature", 1.0),
        )
        case.check(value, "out", "loss", precision)
        case.check(gradient, "grad", "student", precision)


@PRECISIONS
@pytest.mark.parametrize(
    "case",
    [c for c in cases("rld_baselines", symbol="swap + kd_loss") if not c.hyper["logit_stand"]],
    ids=repr,
)
def test_kd_with_swapped_teacher_golden(case, precision):
    with computing_in(precision) as real:
        teacher = reference.swap_label_to_top(case.inputs["teacher"], case.inputs["label"])
        value, gradient = mean_and_gradient(
            losses.kd, real(case.inputs["student"]), real(teacher), temperature=case.hyper["temperature"]
        )
        case.check(value, "out", "loss", precision)
        case.check(gradient, "grad", "student", precision)


def learned_temperature(theta, hyper):
    return hyper["t_start"] + hyper["t_end"] * jax.nn.sigmoid(theta)


def kd_by_theta(theta, student, teacher, hyper):
    return jnp.mean(losses.kd(student, teacher, temperature=learned_temperature(theta, hyper)))


@PRECISIONS
@pytest.mark.parametrize("case", [c for c in cases("ctkd") if "t_start" in c.hyper], ids=repr)
def test_kd_learned_temperature_golden(case, precision):
    with computing_in(precision) as real:
        student, teacher = real(case.inputs["student"]), real(case.inputs["teacher"])
        theta = real(case.params["global_T"][0])
        by_theta, by_student = jax.jit(jax.grad(kd_by_theta, argnums=(0, 1)))(theta, student, teacher, case.hyper)
        value = jax.jit(kd_by_theta)(theta, student, teacher, case.hyper)
        temperature = learned_temperature(np.float64(case.params["global_T"][0]), case.hyper)
        case.check(value, "out", "loss", precision)
        case.check(by_student, "grad", "student", precision)
        reversed_gradient = case.hyper["lambda_"] * by_theta[None]
        if case.finite[precision]:
            case.check(reversed_gradient, "gparam", "global_T", precision)
        else:  # the reference sends nan into its temperature
            slope = reference.kd_temperature_gradient(case.inputs["student"], case.inputs["teacher"], temperature)
            sigmoid = (temperature - case.hyper["t_start"]) / case.hyper["t_end"]
            expected = case.hyper["lambda_"] * slope.mean() * case.hyper["t_end"] * sigmoid * (1 - sigmoid)
            np.testing.assert_allclose(reversed_gradient, [expected], rtol=1e-8 if precision == "f64" else 2e-5)

"""TAID and stored top-k teachers against the numbers of the original implementations."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdjax.losses.tokens import sequence, topk
from tests.golden_cases import PRECISIONS, cases
from tests.losses.computing import computing_in, mean_and_gradient

both = pytest.mark.parametrize("precision", PRECISIONS)
MISSING = {"zero": "renormalize", "symmetric_uniform": "other_bucket"}  # by the name that DistillKit has for it


def taid(student, teacher, mask, t):
    return jnp.sum(jnp.where(mask, sequence.taid(student, teacher, t=t), 0)) / jnp.sum(mask)


@both
@pytest.mark.parametrize("case", cases("taid", symbol="TAID.compute_loss"), ids=repr)
def test_taid_golden(case, precision):
    student, teacher, mask = (case.inputs[name] for name in ("student", "teacher", "mask"))
    with computing_in(precision) as real:
        value, gradient = mean_and_gradient(taid, real(student), real(teacher), mask != 0, real(case.hyper["t"]))
    case.check(value, "out", "loss", precision)
    case.check(gradient, "grad", "student", precision)


@both
@pytest.mark.parametrize("case", cases("taid", symbol="TAID.update_t"), ids=repr)
def test_taid_moves_on_golden(case, precision):
    hyper = {name: case.hyper[name] for name in ("t_start", "t_end", "alpha", "beta")}
    if case.hyper["disable_adaptive"]:
        hyper["alpha"] = 0.0  # nothing is added to the schedule
    with computing_in(precision) as real:

        def step(state, given):
            loss, number = given
            state = sequence.taid_update(state, loss, number, case.hyper["total_steps"], **hyper)
            return state, (state.t, state.momentum)

        start = sequence.taid_init(hyper["t_start"])
        if precision == "f64":
            start = start._replace(t=real(hyper["t_start"]), momentum=real(0), previous_loss=real(0))
        losses = case.inputs["losses"]
        _, (t, momentum) = jax.lax.scan(step, start, (real(losses), np.arange(len(losses))))
    case.check(t, "out", "t", precision)
    case.check(momentum, "out", "momentum", precision)


def stored(student, ids, values, mask, **hyper):
    return jnp.sum(topk.topk_kl(student, ids, values, mask, **hyper))


@both
@pytest.mark.parametrize("case", cases("topk_kl"), ids=repr)
def test_topk_kl_golden(case, precision):
    student, ids, values, mask = (case.inputs[name] for name in ("student", "ids", "values", "mask"))
    hyper = {"missing": MISSING[case.hyper["missing"]], "temperature": case.hyper["temperature"]}
    assert case.hyper["eps"] == topk.LEAST_OTHER
    with computing_in(precision) as real:
        run = jax.jit(jax.value_and_grad(lambda x: stored(x, ids, real(values), mask, **hyper)))
        value, gradient = run(real(student))
    case.check(value, "out", "loss", precision)
    case.check(gradient, "grad", "student", precision)

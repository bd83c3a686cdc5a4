"""CRD against the reference: loss, gradients of inputs and parameters, constants, and the banks after the step."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdjax.models.functional import functionalise
from kdjax.objectives.relations import banks
from kdjax.objectives.relations.contrastive import Contrast
from tests.golden_cases import cases
from tests.losses.computing import computing_in

CASES = cases("crd")
PARAMETERS = {
    "embed_s.linear.weight": ("student_embed", "kernel"),
    "embed_s.linear.bias": ("student_embed", "bias"),
    "embed_t.linear.weight": ("teacher_embed", "kernel"),
    "embed_t.linear.bias": ("teacher_embed", "bias"),
}


def run(case, precision):
    """`(loss, gradients by parameters and inputs, state after)` of a case, whose rows of negatives are given."""
    with computing_in(precision) as real:
        hyper, given = case.hyper, case.inputs
        student, teacher = real(given["student"]), real(given["teacher"])
        table = banks.candidates_by_class(None, hyper["n_data"])
        module = functionalise(
            lambda rngs: Contrast(student.shape[1], teacher.shape[1], table, hyper["K"], hyper["dim"], rngs=rngs)
        )
        params = {"student_embed": {}, "teacher_embed": {}}
        for name, (side, leaf) in PARAMETERS.items():
            params[side][leaf] = real(case.params[name].T)
        _, state = module.init(jax.random.key(0))
        pad = lambda bank: real(np.pad(bank, ((0, len(state["student_bank"]) - len(bank)), (0, 0)), constant_values=7))
        known = bool(np.all(given["Z"] > 0))
        state |= {
            "student_bank": pad(given["memory_v1"]),
            "teacher_bank": pad(given["memory_v2"]),
            "log_normalizer": real(np.log(np.abs(np.float64(given["Z"])))),
            "normalized": jnp.asarray(known),
        }
        positive, negatives = given["contrast_idx"][:, 0], given["contrast_idx"][:, 1:]

        def loss(params, student, teacher):
            values, after = module.call(
                params, state,
                lambda m: m(
                    student, teacher, given["index"], positive, negatives, temperature=hyper["temperature"],
                    momentum=hyper["momentum"],
                ),
                train=True,
            )  # fmt: skip
            return jnp.mean(values), after

        step = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True))
        (value, after), gradients = step(params, student, teacher)
        return value, gradients, after


@pytest.mark.parametrize("precision", ["f64", "f32"])
@pytest.mark.parametrize("case", CASES, ids=repr)
def test_golden(case, precision):
    value, (by_params, by_student, by_teacher), after = run(case, precision)
    case.check(value, "out", "loss", precision)
    np.testing.assert_allclose(value, case.outputs["f64"]["loss"], rtol=1e-8 if precision == "f64" else 2e-6)
    case.check(by_student, "grad", "student", precision)
    case.check(by_teacher, "grad", "teacher", precision)
    for name, (side, leaf) in PARAMETERS.items():
        case.check(by_params[side][leaf].T, "gparam", name, precision)
    size = case.hyper["n_data"]
    for ours, theirs in ("student_bank", "memory_v1"), ("teacher_bank", "memory_v2"):
        written = np.flatnonzero(
            np.any(np.asarray(after[ours]) != np.asarray(run_state(case, ours, precision)), axis=1)
        )
        np.testing.assert_array_equal(written, np.unique(case.inputs["index"]))
        # The tolerance of the case is that of its largest output, Z, in float32.
        expected = case.outputs["f64"][theirs]
        tolerance = {"rtol": 1e-8, "atol": 1e-12} if precision == "f64" else {"rtol": 2e-5, "atol": 1e-6}
        np.testing.assert_allclose(after[ours][:size], expected, **tolerance)
        np.testing.assert_array_equal(after[ours][size:], 7, "rows of nobody are left alone")
    assert after["normalized"]
    tolerance = 1e-8 if precision == "f64" else 2e-5
    np.testing.assert_allclose(np.exp(after["log_normalizer"]), case.outputs["f64"]["Z"], rtol=tolerance)


def run_state(case, bank, precision):
    name = {"student_bank": "memory_v1", "teacher_bank": "memory_v2"}[bank]
    size = -(-case.hyper["n_data"] // banks.ROWS) * banks.ROWS
    stored = np.full((size, case.hyper["dim"]), 7, {"f64": np.float64, "f32": np.float32}[precision])
    stored[: case.hyper["n_data"]] = case.inputs[name]
    return stored


def test_the_cases_set_the_constants_and_keep_them():
    assert {bool(np.all(case.inputs["Z"] < 0)) for case in CASES} == {True, False}

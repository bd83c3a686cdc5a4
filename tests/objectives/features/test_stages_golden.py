"""VID, factor transfer and SRD against their reference implementations, modules included.

Value, gradients of features and of every parameter, and the statistics of every BatchNorm after the step.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdjax import losses
from kdjax.objectives import FT, SRD, VID, Paraphrase, bind
from kdjax.types import Batch, Clock, Context, DataInfo, ModelOutput
from tests.golden_cases import cases, nchw, nhwc
from tests.losses.computing import computing_in
from tests.objectives.features.golden_modules import check, classes, run, variables

PRECISIONS = pytest.mark.parametrize("precision", ["f64", "f32"])


def one_map(inputs, role):
    return ModelOutput(features=(inputs[role],))


def bound_to(objective, case, outputs):
    inputs = {name: nhwc(value) for name, value in case.inputs.items()}
    teacher = outputs(inputs, "teacher")
    student = outputs(inputs, "student") if "student" in inputs else teacher
    return bind(objective, student, teacher, DataInfo(classes(case)))


# --- VID ---


@PRECISIONS
@pytest.mark.parametrize("case", cases("vid"), ids=repr)
def test_vid_golden(case, precision):
    """With the gradient of the variances, which one of the two benchmark codes trains."""
    places = {f"regressor.{2 * i}": f"stages/0/layers/{i}" for i in range(3)} | {"": "stages/0"}
    check(case, run(case, bound_to(VID(stages=(0,)), case, one_map), places, one_map, precision), precision)


def test_vid_starts_at_a_variance_of_five():
    case = next(case for case in cases("vid") if case.hyper["init_pred_var"] == 5)
    bound = bound_to(VID(stages=(0,)), case, one_map)
    params, state = bound.init(jax.random.key(0))
    log_scale = params["vid"]["stages"]["0"]["log_scale"]
    np.testing.assert_allclose(np.log1p(np.exp(np.float64(log_scale))) + case.hyper["eps"], 5, rtol=1e-6)
    assert not jax.tree.leaves(state)
    fixed = bound_to(VID(stages=(0,), learn_variance=False), case, one_map)
    params, state = fixed.init(jax.random.key(0))
    assert set(params["vid"]["stages"]["0"]) == {"layers"}
    np.testing.assert_array_equal(state["vid"]["stages"]["0"]["log_scale"], log_scale)


# --- factor transfer ---


ENCODER = {f"{3 * i}": f"convs/{i}" for i in range(3)} | {f"{3 * i + 1}": f"norms/{i}" for i in range(3)}
TRANSLATOR = {f"0.encoder.{theirs}": f"translator/{ours}" for theirs, ours in ENCODER.items()}


@PRECISIONS
@pytest.mark.parametrize("case", cases("ft", symbol="Translator, Paraphraser, FactorTransfer"), ids=repr)
def test_ft_golden(case, precision):
    """Its paraphraser is state, from the case; its gradients are the translator's and the student's."""
    bound = bound_to(FT(rate=case.hyper["k"], p1=case.hyper["p1"], p2=case.hyper["p2"]), case, one_map)
    paraphraser = {f"1.encoder.{3 * i}": f"encoder/convs/{i}" for i in range(3)}
    with computing_in(precision) as real:
        own, _ = variables(case, paraphraser, real)
        params, state = variables(case, TRANSLATOR, real)
        _, fresh = bound.init(jax.random.key(0))
        state["paraphraser"] = {**fresh["ft"]["paraphraser"], **own}
        student, teacher = real(nhwc(case.inputs["student"])), real(nhwc(case.inputs["teacher"]))

        def loss(params, student):
            ctx = context(ModelOutput(features=(student,)), ModelOutput(features=(teacher,)))
            terms, after = bound.apply({"ft": params}, {"ft": state}, ctx, train=True)
            return terms["ft"].sum / terms["ft"].count, after["ft"]

        found = jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))(params, student)
        (value, after), (by_params, by_student) = found
        case.check(value, "out", "loss", precision)
        jax.tree.map(np.testing.assert_array_equal, after["paraphraser"], state["paraphraser"])
        flat = flat_names(by_params["translator"]), flat_names(after["translator"])
        moved = {name: array for found in flat for name, array in found.items()}
        wanted = case.gparams["f64"] | {"student": case.grads["f64"]["student"]}
        for name, expected in (wanted | case.buffer_after["f64"]).items():
            if name in case.buffer_after["f64"]:
                case.check(moved[name], "buffer_after", name, precision)
                continue
            gradient = nchw(by_student) if name == "student" else moved[name]
            if precision == "f64":
                case.check(gradient, "grad" if name == "student" else "gparam", name, precision)
            # To the largest entry: single entries cancel, those of a bias before a BatchNorm altogether.
            index = name.split(".")
            before_norm = index[-1] == "bias" and index[-2] in ("0", "3", "6")
            scale = case.gparams["f64"][f"0.encoder.{int(index[-2]) + 1}.bias"] if before_norm else expected
            np.testing.assert_allclose(gradient, expected, rtol=0, atol=1e-5 * np.abs(scale).max(), err_msg=name)


def flat_names(tree):
    """`{"0.encoder.3.weight": ...}` of a stack's tree, as the reference has the arrays."""
    found = {}
    names = {"kernel": "weight", "scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}
    for kind, offset in (("convs", 0), ("norms", 1)):
        for i, leaves in tree.get(kind, {}).items():
            for name, array in leaves.items():
                array = np.asarray(array)
                array = array.transpose(3, 2, 0, 1) if array.ndim == 4 else array
                found[f"0.encoder.{3 * int(i) + offset}.{names[name]}"] = array
    return found


def context(student, teacher, **more):
    rows = jax.tree.leaves(student or teacher)[0].shape[0]
    return Context(
        student=student, teacher=teacher, batch=Batch.of(np.zeros(rows), np.zeros(rows, np.int32)),
        progress=Clock().at(0), **more,
    )  # fmt: skip


@PRECISIONS
@pytest.mark.parametrize("case", cases("ft", symbol="Paraphraser (stage 1: MSE(reconstruction, input))"), ids=repr)
def test_paraphrase_golden(case, precision):
    """The decoder's transposed convolutions are convolutions with the kernel turned by half, in and out exchanged."""
    bound = bound_to(Paraphrase(rate=case.hyper["k"]), case, one_map)

    def turned(name, array):
        if array.ndim < 4:
            return array
        return array[:, :, ::-1, ::-1].swapaxes(0, 1) if name.startswith("decoder") else array

    case = dataclasses.replace(
        case,
        params={name: turned(name, array) for name, array in case.params.items()},
        gparams={
            kind: {name: turned(name, array) for name, array in found.items()} for kind, found in case.gparams.items()
        },
    )
    places = {f"{half}.{3 * i}": f"paraphraser/{half}/convs/{i}" for half in ("encoder", "decoder") for i in range(3)}
    with computing_in(precision) as real:
        params, _ = variables(case, places, real)
        teacher = ModelOutput(features=(real(nhwc(case.inputs["teacher"])),))

        def loss(params):
            terms, _ = bound.apply({"paraphrase": params}, {"paraphrase": {}}, context(None, teacher), train=True)
            return terms["paraphrase"].sum / terms["paraphrase"].count

        value, gradients = jax.jit(jax.value_and_grad(loss))(params)
        case.check(value, "out", "loss", precision)
        for half in ("encoder", "decoder"):
            for i, leaves in gradients["paraphraser"][half]["convs"].items():
                case.check(leaves["bias"], "gparam", f"{half}.{3 * int(i)}.bias", precision)
                kernel = np.asarray(leaves["kernel"]).transpose(3, 2, 0, 1)
                case.check(kernel, "gparam", f"{half}.{3 * int(i)}.weight", precision)


# --- the whole released loss of SRD ---


@PRECISIONS
@pytest.mark.parametrize("case", cases("srd", symbol="OurDistillationLoss.forward"), ids=repr)
def test_srd_and_kd_are_the_released_total(case, precision):
    """The logarithm by its weight, and the divergence at its temperature; the embedding is the pooled map."""
    pooled = lambda inputs, role: ModelOutput(embedding=inputs[role].mean((1, 2)))
    bound = bound_to(case.hyper["rep_weight"] * SRD(), case, pooled)
    with computing_in(precision) as real:
        inputs = {name: real(nhwc(value)) for name, value in case.inputs.items()}
        params, _ = variables(case, {"embed": ""}, real)
        params = params[""]

        def loss(params, student, student_logits):
            ctx = context(pooled({"student": student}, "student"), pooled(inputs, "teacher"))
            term = bound.apply({"srd": params}, {"srd": {}}, ctx, train=True)[0]["srd"]
            kd = losses.kd(student_logits, inputs["teacher_logits"], temperature=case.hyper["T"])
            return term.weight * term.sum / term.count + jnp.mean(kd)

        value, (by_params, by_student, by_logits) = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2)))(
            params, inputs["student"], inputs["student_logits"]
        )
        case.check(value, "out", "loss", precision)
        found = {"student": nchw(by_student), "student_logits": by_logits, "embed.weight": by_params["kernel"].T}
        expected = case.grads["f64"] | case.gparams["f64"]
        assert set(found) | {"embed.bias"} == set(expected)
        for name, gradient in found.items():
            scale = np.abs(expected[name]).max()
            within = (1e-9 if precision == "f64" else 2e-5) * scale
            np.testing.assert_allclose(gradient, expected[name], rtol=0, atol=within, err_msg=name)
        np.testing.assert_allclose(by_params["bias"], 0, atol=1e-5)

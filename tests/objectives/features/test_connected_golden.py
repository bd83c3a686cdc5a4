"""OFD, ReviewKD, SemCKD, SRRL and SimKD against their reference implementations, modules included.

Value, gradients of features and of every parameter, and the statistics of every BatchNorm after the step.
"""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from kdjax.objectives import OFD, SRRL, ReviewKD, SemCKD, SimKD, bind
from kdjax.types import DataInfo, ModelOutput
from tests.golden_cases import cases, nchw, nhwc
from tests.losses.computing import computing_in
from tests.objectives.features.golden_modules import check, classes, run, variables

PRECISIONS = pytest.mark.parametrize("precision", ["f64", "f32"])


def bound_to(objective, case, outputs):
    inputs = {name: nhwc(value) for name, value in case.inputs.items()}
    return bind(objective, outputs(inputs, "student"), outputs(inputs, "teacher"), DataInfo(classes(case)))


def stages(inputs, role):
    return tuple(value for name, value in inputs.items() if name.startswith(f"{role}_") and name[-1].isdigit())


# --- OFD ---


def preactivations(inputs, role):
    return ModelOutput(preactivations=stages(inputs, role))


@PRECISIONS
@pytest.mark.parametrize("case", cases("ofd"), ids=repr)
def test_ofd_golden(case, precision):
    count = len(case.stages("student"))
    places = {
        f"connectors.{i}.{j}": f"stages/{i}/{part}" for i in range(count) for j, part in enumerate(("conv", "norm"))
    }

    def norms(real):
        return lambda part: tuple(
            (real(case.inputs[f"bn_weight_{i}"]), real(case.inputs[f"bn_bias_{i}"])) for i in range(count)
        )

    bound = bound_to(OFD(stages=tuple(range(count))), case, preactivations)
    check(case, run(case, bound, places, preactivations, precision, norms), precision)


# --- ReviewKD ---


def reviewed(inputs, role):
    """The stem is read by neither side."""
    maps = stages(inputs, role)
    return ModelOutput(features=maps, preactivations=maps, embedding=inputs[f"pooled_{role}"])


@PRECISIONS
@pytest.mark.parametrize("case", cases("reviewkd", symbol="ReviewKD.forward_train loss_kd"), ids=repr)
def test_reviewkd_golden(case, precision):
    """The reference keeps the levels from the last to the first."""
    count = len(case.stages("student"))  # as many levels: the first stage is none, the pooled vector is one
    parts = {
        "conv1.0": "embed/conv",
        "conv1.1": "embed/norm",
        "att_conv.0": "gate",
        "conv2.0": "out/conv",
        "conv2.1": "out/norm",
    }
    places = {
        f"abfs.{i}.{ours}": f"levels/{count - 1 - i}/{theirs}" for i in range(count) for ours, theirs in parts.items()
    }
    factor = case.hyper["weight"] * min(case.hyper["epoch"] / case.hyper["warmup"], 1.0)
    objective = factor * ReviewKD(stages=tuple(range(1, count)))
    check(case, run(case, bound_to(objective, case, reviewed), places, reviewed, precision), precision)


# --- SemCKD ---


def features(inputs, role):
    return ModelOutput(features=stages(inputs, role))


SEMCKD = {"0": "first/conv", "1": "first/norm", "3": "second/conv", "4": "second/norm", "6": "last"}


@PRECISIONS
@pytest.mark.parametrize("case", cases("semckd"), ids=repr)
def test_semckd_golden(case, precision):
    student_stages, teacher_stages = (tuple(range(len(case.stages(role)))) for role in ("student", "teacher"))
    embeddings = [(f"query_{i}", f"queries/{i}") for i in student_stages]
    embeddings += [(f"key_{i}", f"keys/{i}") for i in teacher_stages]
    places = {
        f"{theirs}.{a}": f"{ours}/{b}"
        for theirs, ours in embeddings
        for a, b in (("linear1", "hidden"), ("linear2", "out"))
    }
    places |= {f"regressor{i}{j}.regressor.{n}": f"projectors/{i}/{j}/{part}"
               for i in student_stages for j in teacher_stages for n, part in SEMCKD.items()}  # fmt: skip
    assert case.hyper["feat_dim"] == len(
        case.inputs["student_0"]
    )  # the rows of the batch, of which the objective knows
    objective = SemCKD(
        student_stages=student_stages,
        teacher_stages=teacher_stages,
        temperature=case.hyper["soft"],
        factor=case.hyper["factor"],
    )
    bound = bound_to(objective, case, features)
    unused = tuple(f"{theirs}.regressor" for theirs, _ in embeddings)  # a branch that the reference never runs
    check(case, run(case, bound, places, features, precision), precision, unused)
    with computing_in(precision) as real:
        maps = [[real(x) for x in case.stages(role)] for role in ("student", "teacher")]
        attend = lambda module: module.attention(*maps, None, None, objective.temperature)
        attention, _ = bound.modules["semckd"].call(*variables(case, places, real), attend, train=True)
        case.check(attention, "out", "attention", precision)
    assert all(np.abs(value).max() == 0 for name, value in case.gparams["f64"].items() if name.startswith(unused))


# --- SRRL and SimKD ---


def classifier(case):
    def call(real):
        weight, bias = (real(case.params[f"cls_t.{name}"]) for name in ("weight", "bias"))
        return lambda part, x: {"classify": lambda x: x @ weight.T + bias[None]}[part](x)

    return call


def vectors(inputs, role):
    """The embeddings as they are, and as maps of three positions with that mean."""
    embedding = inputs[role]
    spread = jnp.asarray([1.0, -3.0, 2.0], embedding.dtype)[None, :, None, None]
    return ModelOutput(
        logits=inputs.get("teacher_logits"), embedding=embedding, features=(embedding[:, None, None, :] + spread,)
    )


CONNECTOR = {"core.transfer.0": "conv", "core.transfer.1": "norm"}


@PRECISIONS
@pytest.mark.parametrize("case", cases("srrl"), ids=repr)
def test_srrl_golden(case, precision):
    bound = bound_to(SRRL(form="pooled"), case, vectors)
    check(case, run(case, bound, CONNECTOR, vectors, precision, classifier(case)), precision)


@PRECISIONS
@pytest.mark.parametrize("case", cases("srrl"), ids=repr)
def test_srrl_on_maps_of_one_position_is_that_on_vectors(case, precision):
    one = lambda inputs, role: dataclasses.replace(vectors(inputs, role), features=(inputs[role][:, None, None, :],))
    check(case, run(case, bound_to(SRRL(), case, one), CONNECTOR, one, precision, classifier(case)), precision)


def last_map(inputs, role):
    return ModelOutput(features=(inputs[role],))


PROJECTOR = {"0": "first/conv", "1": "first/norm", "3": "second/conv", "4": "second/norm", "6": "last", "7": "norm"}


@PRECISIONS
@pytest.mark.parametrize("case", cases("simkd"), ids=repr)
def test_simkd_golden(case, precision):
    places = {f"core.transfer.{n}": f"bottleneck/{part}" for n, part in PROJECTOR.items()}
    objective = SimKD(factor=case.hyper["factor"])
    bound = bound_to(objective, case, last_map)
    check(case, run(case, bound, places, last_map, precision, classifier(case)), precision)
    with computing_in(precision) as real:
        maps = nhwc(case.inputs["student"])
        student = ModelOutput(logits=real(np.zeros((len(maps), classes(case)))), features=(real(maps),))
        deployed = lambda module: (
            objective.deploy(module, student, classifier(case)(real)),
            module(student.features[-1]),
        )
        output, projected = bound.modules["simkd"].call(*variables(case, places, real), deployed, train=True)[0]
        case.check(output.logits, "out", "logits", precision)
        case.check(nchw(projected), "out", "projected", precision)
        np.testing.assert_allclose(output.embedding, np.mean(projected, (1, 2)), rtol=1e-5)

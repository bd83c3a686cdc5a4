"""What is deployed: the student alone, or with a module and the part of the teacher that an objective leaves on it."""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from kdjax.objectives import KD, CrossEntropy, Objective, bind
from kdjax.reduction import per_example
from kdjax.training import Variables, init_state, make_runner, make_step
from kdjax.training.deployment import deploy
from kdjax.training.optimizers import SGD, build
from kdjax.types import Clock, DataInfo
from tests.training.toy import CLASSES, shapes, toy, toy_batch

STUDENT, TEACHER = toy(3), toy(5)
INPUTS = jax.ShapeDtypeStruct(toy_batch().inputs.shape, np.float32)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reuse(Objective):
    """The student's embedding, projected to the teacher's, which the teacher's classifier reads."""

    reads: ClassVar = ("student.embedding", "teacher.embedding")
    trains: ClassVar = "a projector"
    deploys: ClassVar = True

    def build(self, student, teacher, data, rngs):
        return nnx.Linear(student.embedding.shape[-1], teacher.embedding.shape[-1], rngs=rngs)

    def terms(self, module, ctx):
        gap = module(ctx.student.embedding) - ctx.teacher.embedding
        return per_example(jnp.mean(gap**2, axis=-1), ctx.batch.where)

    def deploy(self, module, output, teacher_call):
        return dataclasses.replace(output, logits=teacher_call("classify", module(output.embedding)))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Moving(KD):
    """KD from a teacher whose statistics go on."""

    teacher_mode: ClassVar = "train"


def prepared(objective, form="jit", devices=1, ema=False):
    bound = bind(objective, shapes(STUDENT), shapes(TEACHER), DataInfo(CLASSES))
    optimizer = build(SGD(learning_rate=0.1), Clock(), bound)
    teacher = Variables(*TEACHER.init(jax.random.key(7)))
    runner = make_runner(form, jax.devices()[:devices])
    statistics = teacher.state if bound.teacher_mode == "train" else None
    state = init_state(STUDENT, bound, optimizer, seed=1, ema=ema, teacher_state=statistics)
    step = make_step(STUDENT, TEACHER, bound, optimizer, axis=runner.axis, ema_decay=0.5 if ema else None)
    return bound, runner, runner.compile(step, donate=False), state, teacher


@pytest.mark.parametrize("ema", [False, True])
def test_what_is_deployed_says_what_it_is_made_of(ema):
    bound, runner, step, state, teacher = prepared(0.5 * CrossEntropy() + Reuse(), ema=ema)
    deployment = deploy(STUDENT, TEACHER, bound, INPUTS)
    for _ in range(2):
        state, _ = step(state, teacher, runner.place_batch(toy_batch()))
    variables = deployment.variables(state, teacher)
    batch = toy_batch()
    said, _ = deployment.network.apply(variables.params, variables.state, batch.inputs, train=False)
    params, statistics = (state.ema["params"], state.ema["state"]) if ema else (state.params, state.state)
    own, _ = STUDENT.apply(params["student"], statistics["student"], batch.inputs, train=False)
    projector = params["objective"]["reuse"]
    assert ema == bool(np.any(projector["kernel"] != state.params["objective"]["reuse"]["kernel"]))
    projected = own.embedding @ projector["kernel"] + projector["bias"][None]
    expected = TEACHER.parts["classify"](teacher.params, teacher.state, projected)
    np.testing.assert_allclose(said.logits, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(said.embedding, own.embedding)


def test_of_the_teacher_only_what_is_read_is_kept():
    bound, _, _, state, teacher = prepared(Reuse())
    variables = deploy(STUDENT, TEACHER, bound, INPUTS).variables(state, teacher)
    assert set(variables.params["teacher"]) == {"classifier/kernel", "classifier/bias"}
    assert variables.state["teacher"] == {}


def test_its_shapes_are_those_of_its_variables():
    """So that it can be loaded again."""
    bound, _, _, state, teacher = prepared(Reuse())
    deployment = deploy(STUDENT, TEACHER, bound, INPUTS)
    template = jax.eval_shape(deployment.network.init, jax.random.key(0))
    variables = deployment.variables(state, teacher)
    expected = jax.tree.map(lambda x: (x.shape, x.dtype), (variables.params, variables.state))
    assert jax.tree.map(lambda x: (x.shape, x.dtype), template) == expected


def test_without_such_an_objective_it_is_the_student():
    bound, _, _, state, _ = prepared(CrossEntropy() + KD())
    deployment = deploy(STUDENT, TEACHER, bound, INPUTS)
    assert deployment.network is STUDENT
    assert deployment.variables(state) == Variables(state.params["student"], state.state["student"])


def test_it_is_not_trained_and_two_do_not_deploy():
    bound, _, _, state, teacher = prepared(Reuse())
    deployment = deploy(STUDENT, TEACHER, bound, INPUTS)
    variables = deployment.variables(state, teacher)
    with pytest.raises(ValueError, match="is deployed with its reuse behind it and is not trained further"):
        deployment.network.apply(variables.params, variables.state, toy_batch().inputs, train=True)
    with pytest.raises(ValueError, match="Reuse and Reuse: each leaves something of its own"):
        _ = bind(Reuse() + Reuse(), shapes(STUDENT), shapes(TEACHER), DataInfo(CLASSES)).deployed


@pytest.mark.parametrize(("form", "devices"), [("jit", 1), ("jit", 8), ("pmap", 8)])
def test_the_statistics_of_a_moving_teacher_are_kept_in_the_state(form, devices):
    bound, runner, step, state, teacher = prepared(Moving(), form, devices)
    assert bound.teacher_mode == "train"
    before = jax.tree.map(np.array, teacher.state)
    state, frozen, batch = runner.place(state), runner.place(teacher), runner.place_batch(toy_batch())
    after, metrics = step(state, frozen, batch)
    _, expected = TEACHER.apply(teacher.params, teacher.state, toy_batch().inputs, train=True)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), after.state["teacher"], expected)
    jax.tree.map(np.testing.assert_array_equal, before, jax.tree.map(np.array, frozen.state))
    said, _ = TEACHER.apply(teacher.params, teacher.state, toy_batch().inputs, train=True)
    student, _ = STUDENT.apply(state.params["student"], state.state["student"], toy_batch().inputs, train=True)
    agreed = np.argmax(said.logits, -1) == np.argmax(student.logits, -1)
    assert metrics["agreement"][0] == np.sum(agreed & np.asarray(toy_batch().where))


def test_a_moving_teacher_needs_its_statistics_at_first():
    bound = bind(Moving(), shapes(STUDENT), shapes(TEACHER), DataInfo(CLASSES))
    with pytest.raises(ValueError, match=r"pass teacher_state=teacher\.state"):
        init_state(STUDENT, bound, build(SGD(), Clock(), bound), seed=0)


def test_a_part_that_the_teacher_does_not_have_is_said():
    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Calls(Objective):
        reads: ClassVar = ("student.embedding", "teacher.logits")

        def terms(self, module, ctx):
            return per_example(ctx.teacher_call("norms", ctx.student.embedding), ctx.batch.where)

    _, runner, step, state, teacher = prepared(Calls())
    with pytest.raises(
        ValueError, match=r"calls the part 'norms' of the teacher .*, which has classify; name the method"
    ):
        step(state, teacher, runner.place_batch(toy_batch()))


def test_a_moving_average_needs_its_decay():
    _, runner, step, state, teacher = prepared(KD())
    with pytest.raises(ValueError, match="make the step with ema_decay="):
        step(dataclasses.replace(state, ema=state.params["student"]), teacher, runner.place_batch(toy_batch()))

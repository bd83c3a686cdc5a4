"""The teacher's gradient as a control variate: KD exactly for a linear model, the formula for others, unbiased on request.

Float64, plain SGD with learning rate 1, so that a step moves the parameters by exactly its gradient.
"""

import dataclasses
import functools
import itertools
import re
import types

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdjax.objectives import KD, ControlVariate, CrossEntropy, HardLabel, bind
from kdjax.schedules import Linear, steps
from kdjax.training import Variables, init_state, make_runner, make_step
from kdjax.training.optimizers import SGD, build
from kdjax.training.step import as_given, make_teacher_gradient
from kdjax.types import Batch, Clock, DataInfo, ModelOutput, Network
from tests.training.toy import toy, toy_batch

FORMS = {"jit 1": ("jit", 1), "jit 8": ("jit", 8), "pmap": ("pmap", 8)}
EXACT = {"rtol": 1e-9, "atol": 1e-13}
CLASSES, ROWS = 5, 16
BATCHES = 4


def network(*sizes):
    """Layers with tanh between, as plain functions."""

    def init(key):
        keys = jax.random.split(key, len(sizes))
        layers = zip(keys, sizes, (*sizes[1:], CLASSES), strict=True)
        weights = [jax.random.normal(key, (a, b)) for key, a, b in layers]
        return {"weights": weights, "bias": jax.random.normal(jax.random.fold_in(key, 1), (CLASSES,))}, {}

    def apply(params, state, inputs, *, train, rngs=None, axis=None):
        return ModelOutput(logits=logits_of(params, inputs)), state

    return Network(init, apply, name=f"layers{sizes}")


def logits_of(params, x):
    *hidden, last = params["weights"]
    for weights in hidden:
        x = jnp.tanh(x @ weights)
    return x @ last + params["bias"][None]


LINEAR, DEEP = network(4), network(4, 3)


def to64(tree):
    """Where float64 is switched on."""
    wide = jax.dtypes.canonicalize_dtype(np.float64)
    return jax.tree.map(lambda x: x.astype(wide) if x.dtype == jnp.float32 else x, tree)


def rows_of(number, labelled=None):
    """A batch with as many labelled rows as `labelled` says; every row is labelled otherwise. Three rows do not exist."""
    rng = np.random.default_rng(number)
    where = np.ones(ROWS, bool)
    where[-3:] = False
    return Batch.of(
        rng.standard_normal((ROWS, 4)), rng.integers(0, CLASSES, ROWS).astype(np.int32), where=where,
        labelled=np.ones(ROWS, bool) if labelled is None else np.arange(ROWS) < labelled,
    )  # fmt: skip


def setup(objective, student, form="jit 1", *, clock=Clock(), sample=(4,), teacher=None):
    """`(runner, state, teacher's variables, bound, step)`; the teacher has other weights of the same kind."""
    kind, devices = FORMS[form]
    runner = make_runner(kind, jax.devices()[:devices])
    teacher = teacher or student
    outputs = [
        jax.eval_shape(lambda net=net: net.apply(*net.init(jax.random.key(0)), jnp.ones((2, *sample)), train=False)[0])
        for net in (student, teacher)
    ]
    bound = bind(objective, *outputs, DataInfo(CLASSES))
    optimizer = build(SGD(learning_rate=1.0, momentum=0.0), clock, bound)
    state = to64(init_state(student, bound, optimizer, seed=1))
    variables = to64(Variables(*teacher.init(jax.random.key(7))))
    return runner, state, variables, bound, make_step(student, teacher, bound, optimizer, clock=clock, axis=runner.axis)


def gradient_of_a_step(objective, batch, student=LINEAR, *, mean=None, number=0, **options):
    """`(gradient, parameters before, the teacher's parameters)`."""
    runner, state, variables, _, step = setup(objective, student, **options)
    variables = dataclasses.replace(variables, gradient=mean)
    state = dataclasses.replace(state, step=jnp.int32(number))
    after, _ = runner.compile(step, donate=False)(
        runner.place(state), runner.place(variables), runner.place_batch(batch)
    )
    gradient = jax.tree.map(jnp.subtract, state.params["student"], after.params["student"])
    return jax.device_get((gradient, state.params["student"], variables.params))


def cross_entropy(params, batch):
    log_p = jax.nn.log_softmax(logits_of(params, batch.inputs))
    counts = batch.where & batch.labelled
    return -jnp.sum(log_p[jnp.arange(len(log_p)), batch.labels] * counts) / jnp.sum(counts)


def divergence(params, teacher, batch):
    log_p, log_q = (jax.nn.log_softmax(logits_of(values, batch.inputs)) for values in (params, teacher))
    return jnp.sum(jnp.sum(jnp.exp(log_q) * (log_q - log_p), -1) * batch.where) / jnp.sum(batch.where)


def distillation(params, teacher, batch, strength):
    """Gradient of the mixture that a linear model's control variate is."""

    def loss(params):
        return (1 - strength) * cross_entropy(params, batch) + strength * divergence(params, teacher, batch)

    return jax.grad(loss)(params)


def corrected(params, teacher, batch, strength):
    """The definition: the task's gradient less a share of the same at the teacher's weights."""
    own, other = jax.grad(cross_entropy)(params, batch), jax.grad(cross_entropy)(teacher, batch)
    return jax.tree.map(lambda g, t: g - strength * t, own, other)


def largest(a, b):
    return max(jax.tree.leaves(jax.tree.map(lambda x, y: np.abs(x - y).max(), a, b)))


METHOD = CrossEntropy() + ControlVariate(strength=0.7)


def test_for_a_linear_model_it_is_distillation():
    """Against the formula, and against KD in the same step."""
    with jax.enable_x64(True):
        batch = rows_of(0)
        gradient, before, teacher = gradient_of_a_step(METHOD, batch)
        chex.assert_trees_all_close(gradient, distillation(before, teacher, batch, 0.7), **EXACT)
        mixture, *_ = gradient_of_a_step(0.3 * CrossEntropy() + 0.7 * KD(temperature=1.0), batch)
        chex.assert_trees_all_close(gradient, mixture, **EXACT)
        assert largest(gradient, jax.grad(cross_entropy)(before, batch)) > 1e-2


def test_for_two_layers_it_is_not():
    with jax.enable_x64(True):
        batch = rows_of(0)
        gradient, before, teacher = gradient_of_a_step(METHOD, batch, DEEP)
        chex.assert_trees_all_close(gradient, corrected(before, teacher, batch, 0.7), **EXACT)
        assert largest(gradient, distillation(before, teacher, batch, 0.7)) > 1e-2


def test_the_task_alone_is_subtracted_over_labelled_rows():
    """Beside a distillation loss, whose own gradient at the teacher is not zero."""
    with jax.enable_x64(True):
        batch = rows_of(0, labelled=6)
        gradient, before, teacher = gradient_of_a_step(METHOD + 0.5 * HardLabel(), batch, DEEP)
        top = jnp.argmax(logits_of(teacher, batch.inputs), axis=-1)

        def hard(params):
            return cross_entropy(params, dataclasses.replace(batch, targets=top, labelled=batch.where))

        expected = jax.tree.map(
            lambda a, b: a + 0.5 * b, corrected(before, teacher, batch, 0.7), jax.grad(hard)(before)
        )
        chex.assert_trees_all_close(gradient, expected, **EXACT)
        assert largest(jax.grad(hard)(teacher), jax.tree.map(jnp.zeros_like, teacher)) > 1e-2


@pytest.mark.parametrize(("number", "strength"), [(0, 0.0), (1, 0.25), (4, 1.0)])
def test_the_strength_follows_its_schedule(number, strength):
    with jax.enable_x64(True):
        batch = rows_of(0)
        objective = CrossEntropy() + ControlVariate(strength=Linear(0.0, 1.0, steps(4)))
        clock = Clock(total_steps=8)
        gradient, before, teacher = gradient_of_a_step(objective, batch, DEEP, clock=clock, number=number)
        chex.assert_trees_all_close(gradient, corrected(before, teacher, batch, strength), **EXACT)


def test_a_student_that_is_its_teacher_stays():
    """At strength 1 and without the mean."""
    with jax.enable_x64(True):
        runner, state, variables, _, step = setup(CrossEntropy() + ControlVariate(strength=1.0), DEEP)
        state = dataclasses.replace(state, params={**state.params, "student": variables.params})
        after, metrics = runner.compile(step, donate=False)(state, variables, rows_of(0))
        chex.assert_trees_all_close(after.params["student"], variables.params, rtol=0, atol=1e-15)
        assert metrics["gradient_norm"][0] < 1e-14 and metrics["loss"][0] > 0.1


# --- the unbiased form ---

UNBIASED = CrossEntropy() + ControlVariate(strength=0.7, unbiased=True)
COUNTS = (13, 2, 7, 1)  # labelled rows of each batch


def data():
    return [rows_of(10 + number, labelled) for number, labelled in zip(range(BATCHES), COUNTS, strict=True)]


def whole(params):
    """Gradient of the mean over every labelled row there is."""
    together = jax.tree.map(lambda *parts: jnp.concatenate(parts), *data())
    return jax.grad(cross_entropy)(params, together)


def average(gradients):
    total = sum(COUNTS)
    return jax.tree.map(lambda *leaves: sum(n * g for n, g in zip(COUNTS, leaves, strict=True)) / total, *gradients)


def mean_at_the_teacher(form):
    """By `make_teacher_gradient`, batch by batch, with the counts it gives."""
    runner, state, variables, bound, _ = setup(UNBIASED, DEEP, form)
    compiled = runner.compile(make_teacher_gradient(DEEP, bound, axis=runner.axis), donate=False)
    state, variables = runner.place(state), runner.place(variables)
    found = [compiled(state, variables, runner.place_batch(batch)) for batch in data()]
    assert [int(count) for _, count in found] == list(COUNTS)
    return jax.device_get(average([gradient for gradient, _ in found])), jax.device_get(variables.params)


@pytest.mark.parametrize("form", ["jit 1", "jit 8", "pmap"])
def test_the_teachers_gradient_averages_to_that_of_all_the_data(form):
    """Batches with more labels count for more."""
    with jax.enable_x64(True):
        mean, teacher = mean_at_the_teacher(form)
        chex.assert_trees_all_close(mean, whole(teacher), **EXACT)
        plain = jax.tree.map(lambda *g: sum(g) / 4, *[jax.grad(cross_entropy)(teacher, batch) for batch in data()])
        assert largest(plain, mean) > 1e-2, "the counts would not matter"


def test_a_program_prepares_its_teacher_so():
    """By one pass over its batches; and leaves it alone where nothing asks for the mean."""
    ready_teacher = pytest.importorskip("kdjax.experiment.phase").ready_teacher
    compiled = pytest.importorskip("kdjax.experiment.compiled").Compiled
    with jax.enable_x64(True):
        runner, state, variables, bound, _ = setup(UNBIASED, DEEP)
        endless = types.SimpleNamespace(iterate=lambda start, stop: itertools.islice(itertools.cycle(data()), stop))
        networks = types.SimpleNamespace(objective=bound, student=DEEP, freezer=None)
        clock = Clock(9, 4, ROWS, BATCHES)
        step = types.SimpleNamespace(
            networks=networks, runner=runner, clock=clock, views=as_given, moved=None, fresh_state=lambda *seeds: state
        )
        step.with_mean_gradient = functools.partial(compiled.with_mean_gradient, step)
        feeding = types.SimpleNamespace(pipeline=lambda data_seed, inputs: endless)
        program = types.SimpleNamespace(networks=networks, compiled=step, feeding=feeding)
        phase = types.SimpleNamespace(name="student", teachers=("teacher",))
        finished = {"teacher": types.SimpleNamespace(network=variables, result={"hash": "0"})}
        ready, _ = ready_teacher(program, phase, finished, 0)
        chex.assert_trees_all_close(ready.gradient, whole(variables.params), **EXACT)
        networks.objective = setup(METHOD, DEEP)[3]
        assert ready_teacher(program, phase, finished, 0)[0] is variables


def test_the_unbiased_form_adds_the_mean_and_is_right_on_average():
    with jax.enable_x64(True):
        mean, _ = mean_at_the_teacher("jit 1")
        runner, state, variables, _, step = setup(UNBIASED, DEEP)
        compiled = runner.compile(step, donate=False)
        variables = dataclasses.replace(variables, gradient=mean)
        before, gradients = state.params["student"], []
        for batch in data():
            after, _ = compiled(state, variables, batch)
            gradients.append(jax.tree.map(jnp.subtract, before, after.params["student"]))
            biased = corrected(before, variables.params, batch, 0.7)
            expected = jax.tree.map(lambda g, m: g + 0.7 * m, biased, whole(variables.params))
            chex.assert_trees_all_close(gradients[-1], expected, **EXACT)
        chex.assert_trees_all_close(average(gradients), whole(before), **EXACT)
        assert largest(mean, jax.tree.map(jnp.zeros_like, mean)) > 1e-2, "the biased form would do as well"


def test_the_unbiased_form_asks_for_the_mean():
    _, state, variables, bound, step = setup(UNBIASED, LINEAR)
    assert bound.parts["control_variate"].corrects_over_data
    with pytest.raises(
        ValueError, match="needs the teacher's mean gradient over the data; give the teacher as Variables"
    ):
        jax.eval_shape(step, state, variables, rows_of(0))


def test_the_biased_form_does_not_read_it():
    with jax.enable_x64(True):
        mean = jax.tree.map(jnp.ones_like, to64(LINEAR.init(jax.random.key(0))[0]))
        chex.assert_trees_all_equal(
            gradient_of_a_step(METHOD, rows_of(0), mean=mean), gradient_of_a_step(METHOD, rows_of(0))
        )


# --- networks ---


@pytest.mark.parametrize(("student", "teacher"), [(LINEAR, DEEP), (network(4, 3), network(4, 6))])
def test_networks_that_differ_are_refused(student, teacher):
    message = (
        f"both must be the same network; they are {student.name} and {teacher.name}: make them alike, width included"
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        setup(METHOD, student, teacher=teacher)


def test_a_missing_teacher_is_refused():
    output = ModelOutput(logits=jnp.ones((2, CLASSES)))
    with pytest.raises(ValueError, match=r"reads teacher\.gradient, but there is no teacher"):
        bind(METHOD, output, None, DataInfo(CLASSES))


@functools.cache
def with_batch_norm(form):
    """One step of a convolutional network, the unbiased form, uneven masks: `(after, metrics)` and what it began with."""
    with jax.enable_x64(True):
        objective = CrossEntropy() + 0.5 * KD() + ControlVariate(strength=0.6, unbiased=True)
        runner, state, variables, _, step = setup(objective, toy(3), form, sample=(6, 6, 2))
        mean = jax.tree.map(lambda x: 0.01 * x, variables.params)
        placed = runner.place(dataclasses.replace(variables, gradient=mean))
        kept = jax.tree.map(np.array, (state.params, state.state, variables))
        batch = toy_batch(dtype=np.float64)
        after, metrics = runner.compile(step)(runner.place(state), placed, runner.place_batch(batch))
        chex.assert_trees_all_equal(
            jax.tree.map(np.asarray, (placed.params, placed.state)), (kept[2].params, kept[2].state)
        )
        return jax.device_get((after.params, after.state, metrics)), kept


@pytest.mark.parametrize("form", ["jit 8", "pmap"])
def test_devices_make_no_difference(form):
    chex.assert_trees_all_close(with_batch_norm(form)[0], with_batch_norm("jit 1")[0], rtol=1e-9, atol=1e-12)


def test_the_gradient_at_the_teacher_is_taken_in_training():
    """With the statistics of the batch, as in the released code; but neither network keeps what that leaves behind: the
    student's statistics are those of its own pass, and the teacher's stay."""
    (params, state, _), (before, statistics, variables) = with_batch_norm("jit 1")
    network, batch = toy(3), toy_batch(dtype=np.float64)
    with jax.enable_x64(True):
        counts = batch.where & batch.labelled
        soft = jax.nn.softmax(network.apply(variables.params, variables.state, batch.inputs, train=False)[0].logits / 4)

        def said(params, train=True):
            return network.apply(params, variables.state, batch.inputs, train=train)[0].logits

        def task(params, train=True):
            log_p = jax.nn.log_softmax(said(params, train))
            return -jnp.sum(log_p[np.arange(16), batch.labels] * counts) / counts.sum()

        def student(params):
            apart = -jnp.sum(soft * jax.nn.log_softmax(said(params) / 4), -1)
            return task(params) + 0.5 * 16 * jnp.sum(apart * batch.where) / batch.where.sum()

        own, other = jax.jit(jax.grad(student))(before["student"]), jax.jit(jax.grad(task))(variables.params)
        expected = jax.tree.map(lambda g, t, m: g - 0.6 * t + 0.6 * 0.01 * m, own, other, variables.params)
        found = jax.tree.map(np.subtract, before["student"], params["student"])
        chex.assert_trees_all_close(found, expected, rtol=1e-9, atol=1e-12)
        quiet = jax.jit(jax.grad(lambda params: task(params, train=False)))(variables.params)
        assert largest(other, quiet) > 1e-3, "the mode would not matter"
        _, moved = network.apply(before["student"], statistics["student"], batch.inputs, train=True)
        chex.assert_trees_all_close(state["student"], moved, rtol=1e-9, atol=1e-12)

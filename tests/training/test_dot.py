"""The distillation-oriented optimizer against a trajectory written from the rule, and in the step."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdjax.objectives import DHKD, KD, ControlVariate, CrossEntropy, FitNet, bind
from kdjax.training import Variables, init_state, make_runner, make_step
from kdjax.training.optimizers import DOT, SGD, GroupedTransformation, build
from kdjax.types import Batch, Clock, DataInfo, ModelOutput, Network
from tests.training.trajectory import Listed, student_only, trajectory

FORMS = {"jit 1": ("jit", 1), "jit 8": ("jit", 8), "pmap": ("pmap", 8)}
OUTPUT = ModelOutput(logits=jnp.zeros((2, 5)), features=(jnp.zeros((2, 4, 4, 3)),), embedding=jnp.zeros((2, 4)))
LABELS_AND_KD = bind(CrossEntropy() + KD(), OUTPUT, OUTPUT, DataInfo(5))
WITH_FITNET = bind(CrossEntropy() + FitNet(stage=0), OUTPUT, OUTPUT, DataInfo(5))


def rule(weights, gradients, rates, *, momentum, delta, decay):
    """The two buffers in NumPy: the task's decays the weights and forgets faster; one learning rate outside."""
    task, distill, seen = np.zeros_like(weights), np.zeros_like(weights), []
    for (of_task, of_distill), rate in zip(gradients, rates, strict=True):
        task = (momentum - delta) * task + of_task + decay * weights
        distill = (momentum + delta) * distill + of_distill
        weights = weights - rate * (task + distill)
        seen.append(weights)
    return np.stack(seen)


RATES = (0.1, 0.1, 0.1, 0.01, 0.01, 0.001)


@pytest.mark.parametrize(("delta", "decay"), [(0.075, 0.0), (0.05, 0.02), (-0.05, 0.02)])
def test_the_trajectory_is_that_of_the_rule(delta, decay):
    """The learning rate drops twice while both buffers are warm."""
    rng = np.random.default_rng(0)
    start, gradients = rng.standard_normal(7), rng.standard_normal((6, 2, 7))
    optimizer = DOT(learning_rate=Listed(RATES), momentum=0.9, delta=delta, weight_decay=decay)
    with jax.enable_x64(True):
        grouped = [{"task": student_only(t), "distill": student_only(d)} for t, d in jnp.asarray(gradients)]
        seen = trajectory(optimizer, student_only(jnp.asarray(start)), grouped, objective=LABELS_AND_KD)
    expected = rule(start, gradients, RATES, momentum=0.9, delta=delta, decay=decay)
    np.testing.assert_allclose(np.stack([weights["student"]["w"] for weights in seen]), expected, rtol=1e-12)


def test_the_defaults_are_those_of_the_paper_on_cifar_100():
    """A task buffer of 0.825 and a distillation buffer of 0.975."""
    gradients = [{"task": student_only(jnp.ones(1)), "distill": student_only(jnp.zeros(1))}] * 2
    first, second = trajectory(DOT(learning_rate=1.0), student_only(jnp.zeros(1)), gradients, objective=LABELS_AND_KD)
    np.testing.assert_allclose(second["student"]["w"] - first["student"]["w"], -1.825, rtol=1e-6)
    swapped = [{"task": g["distill"], "distill": g["task"]} for g in gradients]
    first, second = trajectory(DOT(learning_rate=1.0), student_only(jnp.zeros(1)), swapped, objective=LABELS_AND_KD)
    np.testing.assert_allclose(second["student"]["w"] - first["student"]["w"], -1.975, rtol=1e-6)


def test_a_drop_of_the_learning_rate_acts_at_once():
    optimizer = DOT(learning_rate=Listed((1.0, 1.0, 0.0)))
    gradients = [{"task": student_only(jnp.ones(1)), "distill": student_only(jnp.ones(1))}] * 3
    _, second, third = trajectory(optimizer, student_only(jnp.zeros(1)), gradients, objective=LABELS_AND_KD)
    assert third["student"]["w"] == second["student"]["w"] != 0


def whole_numbers(bound, seed):
    """Gradients that are computed with exactly in float32, and weights."""
    rng = np.random.default_rng(seed)
    objective = bound.init(jax.random.key(0))[0]
    tree = {"student": {"w": jnp.zeros((2, 3)), "bias": jnp.zeros(3)}, "objective": objective}
    return jax.tree.map(lambda x: jnp.asarray(rng.integers(-8, 9, x.shape), jnp.float32), tree)


@pytest.mark.parametrize("vectors", [True, False])
def test_without_a_difference_it_is_sgd_to_the_last_bit(vectors):
    """Of the sum of the gradients, the objective's own modules and weight decay included."""
    start = whole_numbers(WITH_FITNET, 0)
    grouped = [{"task": whole_numbers(WITH_FITNET, 2 * i + 1), "distill": whole_numbers(WITH_FITNET, 2 * i + 2)}
               for i in range(3)]  # fmt: skip
    summed = [jax.tree.map(jnp.add, g["task"], g["distill"]) for g in grouped]
    options = {"learning_rate": 0.5, "momentum": 0.5, "weight_decay": 0.25, "decay_vectors": vectors}
    found = trajectory(DOT(delta=0.0, **options), start, grouped, objective=WITH_FITNET)
    chex.assert_trees_all_equal(found, trajectory(SGD(**options), start, summed, objective=WITH_FITNET))
    other = trajectory(DOT(delta=0.125, **options), start, grouped, objective=WITH_FITNET)
    assert np.any(other[2]["student"]["w"] != found[2]["student"]["w"])


def test_the_objectives_own_parameters_keep_the_plain_momentum():
    start = whole_numbers(WITH_FITNET, 0)
    grouped = [{"task": whole_numbers(WITH_FITNET, 2 * i + 1), "distill": whole_numbers(WITH_FITNET, 2 * i + 2)}
               for i in range(3)]  # fmt: skip
    options = {"learning_rate": 0.5, "momentum": 0.5, "weight_decay": 0.25}
    plain, apart = (trajectory(DOT(delta=d, **options), start, grouped, objective=WITH_FITNET) for d in (0.0, 0.25))
    chex.assert_trees_all_equal(plain[2]["objective"], apart[2]["objective"])
    for leaf, other in zip(jax.tree.leaves(plain[2]["student"]), jax.tree.leaves(apart[2]["student"]), strict=True):
        assert np.any(leaf != other)


def test_a_group_that_is_missing_is_zero():
    """An objective of the labels alone, or of the teacher alone."""
    task = student_only(jnp.asarray([1.0, -2.0]))
    none = jax.tree.map(jnp.zeros_like, task)
    for group, other in (("task", "distill"), ("distill", "task")):
        found, expected = (
            trajectory(DOT(learning_rate=0.5), task, [gradient] * 3, objective=LABELS_AND_KD)
            for gradient in ({group: task}, {group: task, other: none})
        )
        chex.assert_trees_all_equal(found, expected)


def test_clipping_is_refused():
    with pytest.raises(ValueError, match="DOT cannot clip: it takes several gradients; set clip=0"):
        build(DOT(clip=1.0), Clock(), LABELS_AND_KD)
    assert isinstance(build(DOT(), Clock(), LABELS_AND_KD), GroupedTransformation)
    assert not isinstance(build(SGD(), Clock(), LABELS_AND_KD), GroupedTransformation)


# --- in the step ---


def logits_of(params, x):
    return jnp.tanh(x @ params["v"]) @ params["w"]


def layers(width):
    def init(key):
        draw = jax.random.normal
        return {"v": draw(key, (4, width)), "w": draw(jax.random.fold_in(key, 1), (width, 5))}, {}

    def apply(params, state, inputs, *, train, rngs=None, axis=None):
        return ModelOutput(logits=logits_of(params, inputs), embedding=inputs), state

    return Network(init, apply)


STUDENT, TEACHER = layers(3), layers(6)
METHOD = CrossEntropy() + 2.0 * KD(temperature=3.0)


def batch(number):
    rng = np.random.default_rng(number)
    rows = np.arange(16)
    return Batch.of(
        rng.standard_normal((16, 4)), rng.integers(0, 5, 16).astype(np.int32), where=rows < 13, labelled=rows > 4
    )


@functools.cache
def three_steps(optimizer, form="jit 1"):
    """Weights before and after every step, and the norms of the gradients."""
    kind, devices = FORMS[form]
    runner = make_runner(kind, jax.devices()[:devices])
    with jax.enable_x64(True):
        step, state, variables = parts(METHOD, optimizer, axis=runner.axis)
        compiled = runner.compile(step)
        state, variables, seen, norms = runner.place(state), runner.place(variables), [state.params["student"]], []
        seen = jax.tree.map(np.array, seen)
        for number in range(3):
            state, metrics = compiled(state, variables, runner.place_batch(batch(number)))
            seen.append(jax.tree.map(np.array, state.params["student"]))
            norms.append(float(metrics["gradient_norm"][0]))
    return seen, norms


def parts(objective, optimizer, student=STUDENT, teacher=TEACHER, axis=None):
    bound = bind(objective, OUTPUT, OUTPUT, DataInfo(5))
    transformation = build(optimizer, Clock(), bound)
    step = make_step(student, teacher, bound, transformation, axis=axis)
    wide = lambda tree: jax.tree.map(lambda x: x.astype(jnp.float64) if x.dtype == jnp.float32 else x, tree)
    state = wide(init_state(student, bound, transformation, seed=1))
    return step, state, wide(Variables(*teacher.init(jax.random.key(7))))


def gradients_of(params, number):
    """Of the labels and of the distillation, each written out."""
    rows = batch(number)
    labelled = rows.where & rows.labelled
    teacher = logits_of(jax.tree.map(lambda x: x.astype(jnp.float64), TEACHER.init(jax.random.key(7))[0]), rows.inputs)

    def task(params):
        log_p = jax.nn.log_softmax(logits_of(params, rows.inputs))
        return -jnp.sum(log_p[np.arange(16), rows.labels] * labelled) / labelled.sum()

    def distill(params):
        log_p, log_q = (jax.nn.log_softmax(z / 3.0) for z in (logits_of(params, rows.inputs), teacher))
        return 2.0 * 9.0 * jnp.sum(jnp.sum(jnp.exp(log_q) * (log_q - log_p), -1) * rows.where) / rows.where.sum()

    return jax.device_get((jax.grad(task)(params), jax.grad(distill)(params)))


MINE = DOT(learning_rate=Listed((0.3, 0.3, 0.03)), weight_decay=0.1, delta=0.075)


@pytest.mark.parametrize("form", FORMS)
def test_a_step_gives_each_group_its_own_buffer(form):
    """Every group summed over all devices, with an uneven mask."""
    found, norms = three_steps(MINE, form)
    with jax.enable_x64(True):
        weights = found[0]
        task, distill = (jax.tree.map(np.zeros_like, weights) for _ in range(2))
        for number, rate in enumerate((0.3, 0.3, 0.03)):
            of_task, of_distill = gradients_of(weights, number)
            norm = np.sqrt(sum(np.sum((of_task[k] + of_distill[k]) ** 2) for k in weights))
            np.testing.assert_allclose(norms[number], norm, rtol=1e-9)
            task = {k: 0.825 * task[k] + of_task[k] + 0.1 * weights[k] for k in weights}
            distill = {k: 0.975 * distill[k] + of_distill[k] for k in weights}
            weights = {k: weights[k] - rate * (task[k] + distill[k]) for k in weights}
            chex.assert_trees_all_close(found[number + 1], weights, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("form", ["jit 8", "pmap"])
def test_devices_make_no_difference(form):
    chex.assert_trees_all_close(three_steps(MINE, form), three_steps(MINE), rtol=1e-9, atol=1e-12)


def test_without_a_difference_a_step_is_that_of_sgd():
    options = {"learning_rate": 0.3, "weight_decay": 0.1}
    found, expected = three_steps(DOT(delta=0.0, **options)), three_steps(SGD(**options))
    chex.assert_trees_all_close(found, expected, rtol=1e-9, atol=1e-12)
    assert np.abs(three_steps(MINE)[0][2]["w"] - found[0][2]["w"]).max() > 1e-3, "the difference would not matter"


@pytest.mark.parametrize("objective", [DHKD(align=True), ControlVariate()])
def test_objectives_that_treat_the_gradients_themselves_are_refused(objective):
    with (
        jax.enable_x64(True),
        pytest.raises(
            ValueError, match="each treat the gradients of the groups in their own way; use another optimizer"
        ),
    ):
        parts(CrossEntropy() + objective, DOT(), STUDENT, STUDENT)


def test_other_objectives_with_modules_of_their_own_are_not():
    with jax.enable_x64(True):
        step, state, variables = parts(CrossEntropy() + DHKD(head="linear"), DOT(learning_rate=1.0))
        after, _ = jax.jit(step)(state, variables, batch(0))
        moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), state.params, after.params)
        assert min(jax.tree.leaves(moved)) > 1e-4

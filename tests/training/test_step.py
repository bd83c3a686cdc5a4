"""What one step does: gradients by group, no recompilation, donation, collectives, the moving average, masks, the teacher.

Gradients are read off the parameters: plain SGD with learning rate 1 moves them by exactly the gradient. They are compared
with `jax.grad` of a loss written out without kdjax's step, binding or reduction.
"""

import contextlib
import dataclasses
import functools
import warnings
from typing import ClassVar, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from kdjax import losses
from kdjax.models import from_nnx
from kdjax.objectives import DKD, KD, SP, CrossEntropy, FitNet, HardLabel, LogitMSE, Objective, bind
from kdjax.reduction import per_example
from kdjax.schedules import Linear, steps
from kdjax.training import Variables, init_state, make_runner, make_step
from kdjax.training.optimizers import SGD, build
from kdjax.types import Batch, Clock, DataInfo, ModelOutput, Network
from tests.training.toy import CLASSES, shapes, toy, toy_batch

FORMS = {"jit 1": ("jit", 1), "jit 8": ("jit", 8), "pmap": ("pmap", 8)}
EXACT = {"rtol": 1e-9, "atol": 1e-12}


class PlainNet(nnx.Module):
    """No BatchNorm: every example for itself."""

    def __init__(self, width, rngs):
        self.conv = nnx.Conv(2, width, (3, 3), strides=2, rngs=rngs)
        self.classifier = nnx.Linear(width, CLASSES, rngs=rngs)

    def __call__(self, x):
        feature = jnp.tanh(self.conv(x))
        embedding = feature.mean((1, 2))
        return ModelOutput(logits=self.classify(embedding), features=(feature,), embedding=embedding)

    def classify(self, embedding):
        return self.classifier(embedding)


def plain(width):
    return from_nnx(lambda rngs: PlainNet(width, rngs), name=f"plain{width}", parts=("classify",))


STUDENT, TEACHER = plain(4), plain(6)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Added(KD):
    """Takes the grouped path, and adds the groups as the ordinary one does."""

    combines = True

    def combine(self, gradients):
        assert sorted(gradients) == ["distill", "task"]
        return jax.tree.map(jnp.add, gradients["task"], gradients["distill"])


@dataclasses.dataclass(frozen=True, kw_only=True)
class Aligned(KD):
    """Not linear: what of the distillation gradient points against the task's is taken away."""

    combines = True

    def combine(self, gradients):
        task, distill = gradients["task"], gradients["distill"]
        along = sum(jax.tree.leaves(jax.tree.map(jnp.vdot, task, distill)))
        square = sum(jax.tree.leaves(jax.tree.map(jnp.vdot, task, task)))
        share = jnp.abs(along) / square
        return jax.tree.map(lambda t, d: t + d - share * t + 5.0 * jnp.square(d), task, distill)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReusedClassifier(Objective):
    """The frozen teacher's classifier reads the student's embedding."""

    reads: ClassVar = ("student.embedding", "teacher.embedding", "labels")

    def terms(self, module, ctx):
        logits = ctx.teacher_call("classify", ctx.student.embedding)
        return per_example(losses.cross_entropy(logits, labels=ctx.batch.labels), ctx.batch.where)


def to64(tree):
    return jax.tree.map(lambda x: x.astype(jnp.float64) if x.dtype == jnp.float32 else x, tree)


def one_step(objective, batch, form="jit 1", student=STUDENT, teacher=TEACHER, dtype=np.float64, **options):
    """Gradient, metrics, and the parameters before, of one step."""
    kind, devices = FORMS[form]
    runner = make_runner(kind, jax.devices()[:devices])
    bound = bind(objective, shapes(student), shapes(teacher), DataInfo(CLASSES))
    optimizer = build(SGD(learning_rate=1.0, momentum=0.0), Clock(), bound)
    cast = to64 if dtype == np.float64 else lambda tree: tree
    state = cast(init_state(student, bound, optimizer, seed=1))
    before = jax.tree.map(np.array, state.params)
    variables = cast(Variables(*teacher.init(jax.random.key(7))))
    step = make_step(student, teacher, bound, optimizer, axis=runner.axis, **options)
    after, metrics = runner.compile(step)(runner.place(state), runner.place(variables), runner.place_batch(batch))
    gradient = jax.tree.map(lambda a, b: a - np.asarray(b), before, after.params)
    return gradient, jax.device_get(metrics), before


def batch64(**changes):
    return dataclasses.replace(toy_batch(dtype=np.float64), **changes)


def task_and_distill(batch, student_params):
    """Gradients of the two means, each written out."""
    teacher_params, _ = to64(TEACHER.init(jax.random.key(7)))
    teacher = TEACHER.apply(teacher_params, {}, batch.inputs, train=False)[0].logits
    labelled = batch.where & batch.labelled

    def task(params):
        log_p = jax.nn.log_softmax(STUDENT.apply(params, {}, batch.inputs, train=True)[0].logits)
        return -jnp.sum(log_p[np.arange(16), batch.labels] * labelled) / labelled.sum()

    def distill(params):
        log_p = jax.nn.log_softmax(STUDENT.apply(params, {}, batch.inputs, train=True)[0].logits / 3.0)
        log_q = jax.nn.log_softmax(teacher / 3.0)
        return 2.0 * 9.0 * jnp.sum(jnp.sum(jnp.exp(log_q) * (log_q - log_p), -1) * batch.where) / batch.where.sum()

    return jax.grad(task)(student_params), jax.grad(distill)(student_params)


@pytest.mark.parametrize(
    ("method", "form"), [(KD, "jit 1"), (Added, "jit 1"), (Aligned, "jit 1"), (Aligned, "jit 8"), (Aligned, "pmap")]
)
def test_gradients_are_those_of_the_formula(method, form):
    """Also of two groups put together by a method of its own, which sees each group summed over all devices."""
    with jax.enable_x64(True):
        batch = batch64()
        gradient, metrics, before = one_step(CrossEntropy() + 2.0 * method(temperature=3.0), batch, form)
        task, distill = task_and_distill(batch, before["student"])
        grouped = {"task": task, "distill": distill}
        expected = Added().combine(grouped) if method is KD else method().combine(grouped)
        chex.assert_trees_all_close(gradient["student"], expected, **EXACT)
        norm = np.sqrt(sum(np.sum(np.square(leaf)) for leaf in jax.tree.leaves(expected)))
        np.testing.assert_allclose(metrics["gradient_norm"][0], norm, **EXACT)


def test_the_combination_is_not_a_sum():
    """Otherwise the comparison above would not tell a combination from none."""
    with jax.enable_x64(True):
        batch = batch64()
        params = to64(STUDENT.init(jax.random.key(0))[0])
        task, distill = task_and_distill(batch, params)
        grouped = {"task": task, "distill": distill}
        gap = jax.tree.map(lambda a, b: np.abs(a - b).max(), Aligned().combine(grouped), Added().combine(grouped))
        assert min(jax.tree.leaves(gap)) > 1e-3


def test_metrics_are_sums_and_counts_of_the_rows_that_count():
    with jax.enable_x64(True):
        batch = batch64()
        _, metrics, before = one_step(CrossEntropy() + 2.0 * KD(temperature=3.0), batch, "jit 8")
        student = np.asarray(STUDENT.apply(before["student"], {}, batch.inputs, train=False)[0].logits)
        teacher_params, _ = to64(TEACHER.init(jax.random.key(7)))
        teacher = np.asarray(TEACHER.apply(teacher_params, {}, batch.inputs, train=False)[0].logits)
    labelled = batch.where & batch.labelled
    hits, same = student.argmax(1) == batch.labels, student.argmax(1) == teacher.argmax(1)
    assert metrics["top1"] == (np.sum(hits & labelled), labelled.sum()) and metrics["top1"][1] == 8
    assert metrics["agreement"] == (np.sum(same & batch.where), batch.where.sum()) and metrics["agreement"][1] == 13
    assert metrics["cross_entropy"][1] == 8 and metrics["kd"][1] == 13
    loss = metrics["cross_entropy"][0] / 8 + 2.0 * metrics["kd"][0] / 13
    np.testing.assert_allclose(metrics["loss"], (loss, 1), **EXACT)


# --- three steps of one compiled function ---


@contextlib.contextmanager
def compilations():
    """A list that grows by one with every program compiled or fetched from the cache of compiled programs."""
    seen = []

    def listen(event, duration, **details):
        if event == "/jax/core/compile/backend_compile_duration":
            seen.append(duration)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield seen
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)


@functools.cache
def three_steps(form):
    """`(record of every step, teacher before, teacher after)`: with BatchNorm, a schedule and a moving average."""
    kind, devices = FORMS[form]
    runner = make_runner(kind, jax.devices()[:devices])
    student, teacher = toy(3), toy(4)
    objective = CrossEntropy() + Linear(0.0, 1.0, steps(4)) * KD() + 0.1 * FitNet(stage=0)
    bound = bind(objective, shapes(student), shapes(teacher), DataInfo(CLASSES))
    clock = Clock(total_steps=4, steps_per_epoch=2, batch_size=16)
    optimizer = build(SGD(learning_rate=Linear(0.1, 0.0)), clock, bound)
    step = make_step(student, teacher, bound, optimizer, clock=clock, axis=runner.axis, ema_decay=0.7)
    compiled = runner.compile(step)
    state = runner.place(init_state(student, bound, optimizer, seed=1, ema=True))
    variables = runner.place(Variables(*teacher.init(jax.random.key(7))))
    teacher_before = jax.tree.map(np.array, variables)
    records = []
    for seed in range(3):
        before = jax.tree.map(np.array, (state.params, state.ema, state.state))
        given, batch = state, runner.place_batch(toy_batch(seed=seed))
        with compilations() as seen, warnings.catch_warnings():
            warnings.simplefilter("error")  # jax warns of arrays that are given up in vain
            state, metrics = jax.block_until_ready(compiled(given, variables, batch))
        records.append(
            Record(
                before=before,
                after=jax.tree.map(np.array, (state.params, state.ema, state.state)),
                given_up=[leaf.is_deleted() for leaf in jax.tree.leaves(given)],
                compilations=len(seen),
                step=int(state.step),
            )
        )
        assert all(np.isfinite(total) for total, _ in metrics.values())
    return records, teacher_before, variables


class Record(NamedTuple):
    before: tuple  # parameters, moving average, state
    after: tuple
    given_up: list[bool]
    compilations: int
    step: int


@pytest.mark.parametrize("form", ["jit 8", "pmap"])
def test_the_second_and_third_step_compile_nothing(form):
    records, *_ = three_steps(form)
    assert [record.compilations > 0 for record in records] == [True, False, False]
    assert [record.step for record in records] == [1, 2, 3]


@pytest.mark.parametrize("form", ["jit 8", "pmap"])
def test_the_state_is_given_up_and_the_teacher_kept(form):
    records, before, variables = three_steps(form)
    assert all(all(record.given_up) for record in records)
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(variables))
    chex.assert_trees_all_equal(jax.tree.map(np.asarray, variables), before)


def test_the_moving_average_follows_its_formula():
    """Of the student's parameters and of its statistics, which are those of the weights that they are used with."""
    records, *_ = three_steps("jit 8")
    first_params, first_average, first_state = records[0].before
    assert first_average["params"]["objective"] == first_average["state"]["objective"] == {}
    chex.assert_trees_all_equal(first_average["params"]["student"], first_params["student"])
    chex.assert_trees_all_equal(first_average["state"]["student"], first_state["student"])
    for record in records:
        average, (params, new_average, state) = record.before[1], record.after
        for part, now in (("params", params["student"]), ("state", state["student"])):
            expected = jax.tree.map(lambda e, p: 0.7 * e + 0.3 * p, average[part]["student"], now)
            chex.assert_trees_all_close(new_average[part]["student"], expected, rtol=1e-6, atol=1e-7)
        gap = jax.tree.map(lambda a, b: np.abs(a - b).max(), new_average["params"]["student"], params["student"])
        assert gap["conv1"]["kernel"] > 1e-4


def test_statistics_of_student_and_projector_move():
    records, *_ = three_steps("jit 8")
    before, after = records[0].before[2], records[0].after[2]
    for path in (("student", "norm1"), ("objective", "fitnet")):
        moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), before[path[0]][path[1]], after[path[0]][path[1]])
        assert min(jax.tree.leaves(moved)) > 1e-4


def test_starting_from_the_teachers_own_weights_leaves_them_alone():
    """Born-again: the student begins as its teacher, but a step that gives the student up does not touch the teacher."""
    network = toy(3)
    bound = bind(KD(), shapes(network), shapes(network), DataInfo(CLASSES))
    variables = Variables(*network.init(jax.random.key(7)))
    start = (variables.params, variables.state)
    state = init_state(network, bound, build(SGD(), Clock(), bound), seed=0, ema=True, start=start)
    given = (state.params["student"], state.state["student"])
    chex.assert_trees_all_equal(given, start)
    for leaf in jax.tree.leaves(given):
        leaf.delete()
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves((variables, state.ema)))


def test_a_step_that_is_left_out_counts_for_the_learning_rate():
    """As it does for every other schedule: after three steps of which one was left out the rate is that of the fourth."""
    network, rates = toy(3), []
    bound = bind(CrossEntropy(), shapes(network), None, DataInfo(CLASSES))
    clock = Clock(total_steps=4, steps_per_epoch=2, batch_size=16)
    optimizer = build(SGD(learning_rate=Linear(0.4, 0.0), momentum=0.0, weight_decay=0.0), clock, bound)
    step = jax.jit(make_step(network, None, bound, optimizer, clock=clock, skip=True))
    state = init_state(network, bound, optimizer, seed=1)
    for seed in range(4):
        batch = toy_batch(seed=seed)
        if seed == 1:
            batch = dataclasses.replace(batch, inputs=batch.inputs * np.nan)
        before = state.params["student"]
        state, metrics = step(state, None, batch)
        moved = optax.tree.norm(jax.tree.map(jnp.subtract, before, state.params["student"]))
        rates.append(float(moved / metrics["gradient_norm"][0]))
    np.testing.assert_allclose(rates, [0.4, np.nan, 0.2, 0.1], rtol=1e-4)


def test_weights_of_half_precision_are_trained_in_the_networks_own_types():
    """Else most values would not move by a small step. What is no float, and what the network itself has short, stays."""
    network = toy(3)
    bound = bind(KD(), shapes(network), shapes(network), DataInfo(CLASSES))
    first = {"w": jnp.zeros(3), "short": jnp.zeros(3, jnp.bfloat16), "count": jnp.zeros((), jnp.int32)}
    network = network._replace(init=lambda key: (first, {"mean": jnp.zeros(3)}))
    w = np.asarray([0.1, 1.0, -3.0])
    params = {"w": w.astype(jnp.bfloat16), "short": jnp.ones(3, jnp.bfloat16), "count": np.int32(7)}
    start = (params, {"mean": w.astype(np.float16)})
    optimizer = build(SGD(), Clock(), bound)
    made = jax.eval_shape(lambda: init_state(network, bound, optimizer, seed=0, ema=True, start=start))
    own = jax.tree.map(lambda x: x.dtype, network.init(None))
    found = lambda params, state: jax.tree.map(lambda x: x.dtype, (params["student"], state["student"]))
    assert found(made.params, made.state) == own
    state = init_state(network, bound, optimizer, seed=0, start=start)
    chex.assert_trees_all_equal(state.params["student"]["w"], params["w"].astype(np.float32))
    chex.assert_trees_all_equal(state.params["student"]["count"], jnp.asarray(7, jnp.int32))
    moved = jax.tree.map(lambda x: x - jnp.asarray(1e-5, x.dtype), state.params["student"]["w"])
    assert (moved != state.params["student"]["w"]).all()


# --- keys and views ---


def test_keys_change_with_the_step_and_views_with_the_epoch():
    """Dropout and objectives follow `seed` and the step; views follow `data_seed` and the pass over the data."""
    seen = []

    def apply(params, state, inputs, *, train, rngs=None, axis=None):
        seen.append(("network" if train else "teacher", inputs.mean(), None if rngs is None else bits(rngs)))
        return ModelOutput(logits=inputs @ params["w"]), state

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Keyed(KD):
        def terms(self, module, ctx):
            seen.append(("objective", None, bits(ctx.key)))
            return super().terms(module, ctx)

    def views(inputs, index, epoch, key):
        seen.append(("views", int(epoch), bits(key)))
        return inputs + epoch

    def bits(key):
        return tuple(jax.random.key_data(key).tolist())

    network = Network(lambda key: ({"w": jnp.eye(3)}, {}), apply)
    bound = bind(Keyed(), ModelOutput(logits=jnp.ones((4, 3))), ModelOutput(logits=jnp.ones((4, 3))), DataInfo(3))
    clock = Clock(total_steps=8, steps_per_epoch=2, steps_per_pass=3)
    optimizer = build(SGD(), clock, bound)
    state = init_state(network, bound, optimizer, seed=5, data_seed=6)
    step = make_step(network, network, bound, optimizer, clock=clock, views=views)
    batch = Batch.of(jnp.zeros((4, 3)), jnp.zeros(4, jnp.int32))
    keys = []
    for number in (0, 1, 3, 1):
        seen.clear()
        step(dataclasses.replace(state, step=jnp.int32(number)), Variables({"w": jnp.eye(3)}, {}), batch)
        assert seen[0] == ("views", number // 3, bits(jax.random.key(6)))
        assert seen[1] == ("teacher", number // 3, None) and seen[2][:2] == ("network", number // 3)
        assert seen[3][0] == "objective" and len(seen) == 4
        keys.append((seen[2][2], seen[3][2]))
    assert keys[3] == keys[1], "the same step draws the same numbers"
    assert len({key for pair in keys for key in pair}) == 6


# --- collectives ---


def compiled_program(objective):
    """Text of the step compiled for eight devices."""
    runner = make_runner()
    bound = bind(objective, shapes(STUDENT), shapes(TEACHER), DataInfo(CLASSES))
    optimizer = build(SGD(learning_rate=0.1), Clock(), bound)
    state = runner.place(init_state(STUDENT, bound, optimizer, seed=1))
    variables = runner.place(Variables(*TEACHER.init(jax.random.key(7))))
    step = runner.compile(make_step(STUDENT, TEACHER, bound, optimizer))
    return step.lower(state, variables, runner.place_batch(toy_batch())).compile().as_text()


def test_per_example_objectives_gather_nothing():
    objective = CrossEntropy() + KD() + DKD() + HardLabel() + LogitMSE() + FitNet(stage=0)
    program = compiled_program(objective)
    assert "all-reduce" in program, "gradients are summed over devices"
    for collective in ("all-gather", "all-to-all", "collective-permute"):
        assert collective not in program


def test_comparing_examples_needs_a_gather():
    """So that the search above can fail."""
    assert "all-gather" in compiled_program(CrossEntropy() + SP())


# --- the teacher ---


def rounded(network, dtype):
    """A network whose output went through bfloat16, and comes out as `dtype`."""

    def apply(*args, **options):
        output, state = network.apply(*args, **options)
        return jax.tree.map(lambda x: x.astype(jnp.bfloat16).astype(dtype), output), state

    return Network(network.init, apply, network.parts)


def test_a_teacher_in_bfloat16_is_computed_with_in_float32():
    objective = CrossEntropy() + KD() + DKD() + LogitMSE() + HardLabel() + FitNet(stage=0) + SP(stage=0)
    half, full = (
        one_step(objective, toy_batch(), teacher=rounded(TEACHER, dtype), dtype=np.float32)
        for dtype in (jnp.bfloat16, jnp.float32)
    )
    chex.assert_trees_all_close(half[:2], full[:2], rtol=1e-5, atol=1e-6)
    assert {leaf.dtype for leaf in jax.tree.leaves(half)} == {np.dtype("float32")}


def test_a_part_of_the_teacher_teaches_through_its_input():
    student, teacher = plain(4), plain(4)
    with jax.enable_x64(True):
        batch = batch64()
        gradient, _, before = one_step(ReusedClassifier(), batch, student=student, teacher=teacher)
        head = to64(teacher.init(jax.random.key(7))[0])["classifier"]

        def loss(params):
            embedding = student.apply(params, {}, batch.inputs, train=True)[0].embedding
            log_p = jax.nn.log_softmax(embedding @ head["kernel"] + head["bias"][None])
            return -jnp.sum(log_p[np.arange(16), batch.labels] * batch.where) / batch.where.sum()

        chex.assert_trees_all_close(gradient["student"], jax.grad(loss)(before["student"]), **EXACT)
    assert np.abs(gradient["student"]["conv"]["kernel"]).max() > 1e-3
    np.testing.assert_array_equal(gradient["student"]["classifier"]["kernel"], 0.0)


def test_nothing_flows_into_the_teacher():
    """Neither the loss nor the new parameters can be differentiated by the teacher's weights: exactly zero."""
    student, teacher = plain(4), plain(4)
    objective = CrossEntropy() + KD() + DKD() + LogitMSE() + FitNet(stage=0) + SP() + ReusedClassifier()
    bound = bind(objective, shapes(student), shapes(teacher), DataInfo(CLASSES))
    optimizer = build(SGD(learning_rate=0.1), Clock(), bound)
    state = init_state(student, bound, optimizer, seed=1)
    step = make_step(student, teacher, bound, optimizer)

    def everything(variables):
        new, metrics = step(state, variables, toy_batch())
        return metrics["loss"][0] + sum(jnp.sum(leaf) for leaf in jax.tree.leaves(new.params))

    gradient = jax.jit(jax.grad(everything))(Variables(*teacher.init(jax.random.key(7))))
    assert len(jax.tree.leaves(gradient)) == 4
    for leaf in jax.tree.leaves(gradient):
        np.testing.assert_array_equal(leaf, 0.0)


def test_a_missing_teacher_is_refused():
    bound = bind(KD(), shapes(STUDENT), shapes(TEACHER), DataInfo(CLASSES))
    with pytest.raises(ValueError, match="reads a teacher, and there is none; pass teacher="):
        make_step(STUDENT, None, bound, build(SGD(), Clock(), bound))


def test_networks_without_logits_can_be_trained_on_features():
    def silent(width):
        return from_nnx(
            lambda rngs: PlainNet(width, rngs), output=lambda output: dataclasses.replace(output, logits=None)
        )

    student, teacher = silent(4), silent(6)
    bound = bind(FitNet(stage=0), shapes(student), shapes(teacher), DataInfo(CLASSES))
    optimizer = build(SGD(), Clock(), bound)
    state = jax.eval_shape(lambda: init_state(student, bound, optimizer, seed=0))
    variables = jax.eval_shape(lambda: Variables(*teacher.init(jax.random.key(0))))
    after, metrics = jax.eval_shape(make_step(student, teacher, bound, optimizer), state, variables, toy_batch())
    chex.assert_trees_all_equal_shapes_and_dtypes(after, state)
    assert set(metrics) == {"loss", "fitnet", "gradient_norm", "finite"}


# --- rows that do not count ---


def test_missing_rows_are_as_if_they_were_not_there():
    with jax.enable_x64(True):
        batch = batch64()
        objective = CrossEntropy() + KD() + DKD() + LogitMSE() + SP()
        rows = np.flatnonzero(batch.where)
        fewer = jax.tree.map(lambda x: x[rows], batch)
        gradient, metrics, _ = one_step(objective, batch)
        expected, expected_metrics, _ = one_step(objective, fewer)
        chex.assert_trees_all_close((gradient, metrics), (expected, expected_metrics), **EXACT)


def test_unlabelled_rows_teach_by_the_teacher_alone():
    """Cross-entropy over the labelled rows only, KD over all: the sum of two steps on the two sets of rows."""
    with jax.enable_x64(True):
        batch = batch64(where=np.ones(16, bool))
        rows = np.flatnonzero(batch.labelled)
        both, *_ = one_step(CrossEntropy() + KD(), batch)
        task, *_ = one_step(CrossEntropy(), jax.tree.map(lambda x: x[rows], batch))
        distill, *_ = one_step(KD(), batch)
        chex.assert_trees_all_close(both, jax.tree.map(np.add, task, distill), **EXACT)


@pytest.mark.parametrize("mask", ["labelled", "where"])
def test_a_batch_in_which_no_row_counts_gives_zero(mask):
    """Zero, and finite: no division by the empty count."""
    batch = dataclasses.replace(toy_batch(), **{mask: np.zeros(16, bool)})
    objective = CrossEntropy() + (0.0 if mask == "labelled" else 1.0) * (KD() + DKD() + SP())
    gradient, metrics, _ = one_step(objective, batch, "jit 8", dtype=np.float32)
    for leaf in jax.tree.leaves(gradient):
        np.testing.assert_array_equal(leaf, 0.0)
    assert metrics["loss"] == (0.0, 1.0) and metrics["cross_entropy"] == (0.0, 0.0) and metrics["top1"] == (0.0, 0.0)
    assert metrics["gradient_norm"][0] == 0.0


@pytest.mark.parametrize(("made", "needed"), [("jit", "pmap"), ("pmap", "jit")])
def test_a_step_made_for_another_runner_is_refused(made, needed):
    """Compiled all the same, it would train with one device's gradients, and nothing would show."""
    network = toy(2)
    bound = bind(CrossEntropy(), shapes(network), None, DataInfo(CLASSES))
    step = make_step(network, None, bound, optax.sgd(0.1), axis=make_runner(made).axis)
    with pytest.raises(ValueError, match="make it with make_step"):
        make_runner(needed).compile(step)


@pytest.mark.parametrize("kind", ["jit", "pmap"])
def test_a_batch_that_does_not_divide_is_refused(kind):
    with pytest.raises(ValueError, match="batch_size=13 does not divide over 8 devices; use 8 or 16"):
        make_runner(kind).place_batch(toy_batch(13))

"""Objectives that train a head or a temperature: who moves whom, and by how much, against formulas.

Gradients in float64, read off one step of SGD with learning rate 1.
"""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from kdjax import losses
from kdjax.objectives import CTKD, DHKD, KD, USKD, CrossEntropy, bind
from kdjax.schedules import Linear, steps
from kdjax.training import Variables, count_parameters, init_state, make_runner, make_step
from kdjax.training.optimizers import SGD, build
from kdjax.types import Batch, Clock, Context, DataInfo, ModelOutput, Network
from tests.golden_cases import cases
from tests.losses.computing import computing_in

FORMS = {"jit 1": ("jit", 1), "jit 8": ("jit", 8), "pmap": ("pmap", 8)}
EXACT = {"rtol": 1e-9, "atol": 1e-12}
CLASSES, WIDTH = 5, 3


def said(params, x):
    """A feature map `[B, 2, 2, 4]`, an embedding `[B, 3]` and logits."""
    feature = x.reshape(-1, 2, 2, 4)
    embedding = jnp.tanh(feature.mean((1, 2)) @ params["v"])
    return ModelOutput(
        logits=embedding @ params["w"], features=(feature * params["scale"], feature), embedding=embedding
    )


def network(width, gain=1.0):
    def init(key):
        draw = lambda number, *shape: jax.random.normal(jax.random.fold_in(key, number), shape)
        return {"v": draw(0, 4, width), "w": gain * draw(1, width, CLASSES), "scale": jnp.ones((1, 1, 1, 4))}, {}

    return Network(init, lambda params, state, x, **_: (said(params, x), state))


STUDENT, TEACHER = network(WIDTH), network(6, gain=4.0)
OUTPUT = said(STUDENT.init(jax.random.key(0))[0], jnp.ones((2, 16)))


def bound_to(objective):
    return bind(objective, OUTPUT, OUTPUT, DataInfo(CLASSES))


def to64(tree):
    return jax.tree.map(lambda x: x.astype(jnp.float64) if x.dtype == jnp.float32 else x, tree)


def batch(seed=0):
    """Three rows do not exist, and five have no label."""
    rng, rows = np.random.default_rng(seed), np.arange(16)
    return Batch.of(
        rng.standard_normal((16, 16)), rng.integers(0, CLASSES, 16).astype(np.int32), where=rows < 13, labelled=rows > 4
    )


@functools.cache
def one_step(objective, form="jit 1", seed=0, number=0, clock=Clock()):
    """`(gradient, metrics, parameters before)`."""
    kind, devices = FORMS[form]
    runner = make_runner(kind, jax.devices()[:devices])
    bound = bound_to(objective)
    optimizer = build(SGD(learning_rate=1.0, momentum=0.0), clock, bound)
    with jax.enable_x64(True):
        state = to64(init_state(STUDENT, bound, optimizer, seed=1))
        state = type(state)(jnp.int32(number), state.params, state.state, state.opt_state, state.ema, state.keys)
        before = jax.tree.map(np.array, state.params)
        step = make_step(STUDENT, TEACHER, bound, optimizer, clock=clock, axis=runner.axis)
        variables = runner.place(to64(Variables(*TEACHER.init(jax.random.key(7)))))
        after, metrics = runner.compile(step)(runner.place(state), variables, runner.place_batch(batch(seed)))
        gradient = jax.tree.map(lambda a, b: a - np.asarray(b), before, after.params)
        return gradient, jax.device_get(metrics), before


def teacher_logits(seed=0):
    return said(to64(TEACHER.init(jax.random.key(7))[0]), batch(seed).inputs).logits


def mean(values, where):
    return jnp.sum(jnp.where(where, values, 0)) / jnp.sum(where)


def cross_entropy(logits, seed=0):
    rows = batch(seed)
    log_p = jax.nn.log_softmax(logits)
    return mean(-log_p[jnp.arange(16), rows.labels], rows.where & rows.labelled)


def largest(tree):
    return max(np.abs(leaf).max() for leaf in jax.tree.leaves(tree))


# --- dual heads ---


def head_loss(params, seed=0, temperature=2.0):
    """Binary KL of the gaps between the second head's logits and the teacher's, as written in the paper."""
    head = params["objective"]["dhkd"]
    logits = said(params["student"], batch(seed).inputs).embedding @ head["kernel"] + head["bias"][None]
    delta = jax.nn.sigmoid((logits - teacher_logits(seed)) / temperature)
    values = -(temperature**2) * jnp.sum(np.log(2.0) + 0.5 * jnp.log(delta) + 0.5 * jnp.log(1 - delta), -1)
    return mean(values, batch(seed).where)


def task_loss(params, seed=0):
    return cross_entropy(said(params["student"], batch(seed).inputs).logits, seed)


def dhkd(**options):
    return CrossEntropy() + 1.5 * DHKD(head="linear", **options)


def test_each_head_learns_from_its_own_loss():
    """The classifier from the labels alone, the second head from the teacher alone, the rest from both."""
    gradient, metrics, before = one_step(dhkd())
    with jax.enable_x64(True):
        task, distill = jax.grad(task_loss)(before), jax.grad(lambda params: 1.5 * head_loss(params))(before)
        chex.assert_trees_all_close(gradient, jax.tree.map(jnp.add, task, distill), **EXACT)
        chex.assert_trees_all_close(gradient["student"]["w"], task["student"]["w"], **EXACT)
        chex.assert_trees_all_close(gradient["objective"], distill["objective"], **EXACT)
        np.testing.assert_allclose(np.divide(*metrics["dhkd"]), head_loss(before), **EXACT)
    assert largest(distill["student"]["w"]) == largest(task["objective"]) == 0.0
    assert (
        min(largest(gradient["student"]["w"]), largest(gradient["objective"]), largest(distill["student"]["v"])) > 1e-3
    )


# Batches of which the gradients of labels and teacher point against each other, and agree.
CONFLICT, AGREEMENT = 5, 7


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("seed", [CONFLICT, AGREEMENT])
def test_alignment_takes_away_what_points_against_the_labels(seed, form):
    """By one dot product over the student's and the head's parameters together."""
    gradient, metrics, before = one_step(dhkd(align=True), form, seed)
    with jax.enable_x64(True):
        task, back = ravel_pytree(jax.grad(task_loss)(before, seed))
        distill, _ = ravel_pytree(jax.grad(lambda params: 1.5 * head_loss(params, seed))(before))
        along = task @ distill
        assert along < -1e-2 if seed == CONFLICT else along > 1e-2
        if along < 0:
            distill = distill - along / (task @ task) * task
        expected = task + distill
        chex.assert_trees_all_close(gradient, back(expected), **EXACT)
        np.testing.assert_allclose(metrics["gradient_norm"][0], jnp.linalg.norm(expected), **EXACT)


@pytest.mark.parametrize(("seed", "same"), [(CONFLICT, False), (AGREEMENT, True)])
def test_alignment_changes_nothing_where_there_is_no_conflict(seed, same):
    aligned, plain = (one_step(dhkd(align=align), seed=seed)[0] for align in (True, False))
    gap = largest(jax.tree.map(np.subtract, aligned, plain))
    assert gap < 1e-12 if same else gap > 1e-2


def test_alignment_costs_nothing_where_it_is_not_asked_for():
    assert bound_to(dhkd()).combine is None
    assert bound_to(dhkd(align=True)).combine is not None
    with pytest.raises(ValueError, match="DHKD and DHKD: each combines the gradients"):
        assert bound_to(dhkd(align=True) + DHKD(align=True)).combine


def test_alignment_without_labels_is_the_plain_gradient():
    """There is nothing to be aligned with."""
    aligned, plain = (one_step(DHKD(head="linear", align=align))[0] for align in (True, False))
    chex.assert_trees_all_equal(aligned, plain)


@pytest.mark.parametrize(("normalized", "loss"), [(True, losses.binary_kl_norm), (False, losses.binary_kl)])
def test_both_losses_and_the_temperature_reach_the_head(normalized, loss):
    objective = DHKD(head="linear", normalized=normalized, temperature=Linear(1.0, 5.0, steps(4)))
    clock = Clock(total_steps=8)
    _, metrics, before = one_step(objective, number=2, clock=clock)
    with jax.enable_x64(True):
        head = before["objective"]["dhkd"]
        logits = said(before["student"], batch().inputs).embedding @ head["kernel"] + head["bias"][None]
        values = loss(logits, teacher_logits(), temperature=3.0)
        np.testing.assert_allclose(np.divide(*metrics["dhkd"]), mean(values, batch().where), **EXACT)


@functools.cache
def nonlinear():
    """The second head by itself, in float32."""
    module = bound_to(DHKD()).modules["dhkd"]
    return module, *module.init(jax.random.key(3))


def test_the_nonlinear_head_is_the_released_one():
    """Linear to 200, dropout, BatchNorm, ReLU, linear; in evaluation by the running statistics."""
    module, params, state = nonlinear()
    assert jax.tree.map(jnp.shape, params) == {
        "hidden": {"kernel": (WIDTH, 200), "bias": (200,)},
        "norm": {"scale": (200,), "bias": (200,)},
        "out": {"kernel": (200, CLASSES), "bias": (CLASSES,)},
    }
    assert jax.tree.map(jnp.shape, state) == {"norm": {"mean": (200,), "var": (200,)}}
    rng = np.random.default_rng(0)
    params, state = jax.tree.map(lambda x: rng.uniform(0.5, 1.5, x.shape).astype(np.float32), (params, state))
    x = rng.standard_normal((16, WIDTH)).astype(np.float32)
    found, after = module.call(params, state, lambda head: head(x), train=False, key=jax.random.key(0))
    hidden = x @ params["hidden"]["kernel"] + params["hidden"]["bias"]
    normed = (hidden - state["norm"]["mean"]) / np.sqrt(state["norm"]["var"] + 1e-5)
    active = np.maximum(normed * params["norm"]["scale"] + params["norm"]["bias"], 0)
    np.testing.assert_allclose(found, active @ params["out"]["kernel"] + params["out"]["bias"], rtol=1e-4, atol=1e-4)
    assert after is state


def test_the_nonlinear_head_drops_a_tenth_while_training():
    """Before the statistics are taken, which move; by a key, and not in evaluation."""
    module, params, state = nonlinear()
    x = np.random.default_rng(0).standard_normal((64, WIDTH)).astype(np.float32)

    def run(number, train=True):
        stages = lambda head: (head.hidden(x), head.dropout(head.hidden(x)), head(x))
        return module.call(params, state, stages, train=train, key=jax.random.key(number))

    (hidden, dropped, logits), after = run(0)
    kept = np.asarray(dropped != 0)
    assert 0.08 < 1 - kept.mean() < 0.12 and kept.any(0).all()
    np.testing.assert_allclose(dropped[kept], hidden[kept] / 0.9, rtol=1e-5)
    moved = jax.tree.map(lambda a, b: np.abs(a - b).min(), after, state)
    assert min(jax.tree.leaves(moved)) > 0
    plain = 0.9 + 0.1 * np.var(hidden, axis=0, ddof=1)
    assert np.mean(after["norm"]["var"]) > np.mean(plain) + 1e-3, "what is dropped adds to the variance"
    np.testing.assert_array_equal(run(0)[0][2], logits)
    assert np.abs(run(1)[0][2] - logits).max() > 1e-3
    still = run(0, train=False)[0]
    np.testing.assert_array_equal(still[0], still[1])


def test_the_nonlinear_head_keeps_its_statistics_in_the_state():
    bound = bound_to(CrossEntropy() + DHKD())
    optimizer = build(SGD(learning_rate=0.1), Clock(), bound)
    state = init_state(STUDENT, bound, optimizer, seed=1)
    step = jax.jit(make_step(STUDENT, TEACHER, bound, optimizer))
    variables, rows = Variables(*TEACHER.init(jax.random.key(7))), batch()
    rows = type(rows)(rows.inputs.astype(np.float32), rows.labels, rows.index, rows.where, rows.labelled)
    first, metrics = step(state, variables, rows)
    assert list(state.state["objective"]) == ["dhkd"] and "dhkd" not in state.params["student"]
    for before, after in zip(*(jax.tree.leaves(s.state["objective"]) for s in (state, first)), strict=True):
        assert np.abs(before - after).max() > 1e-4
    _, again = step(type(state)(state.step + 1, *list(vars(state).values())[1:]), variables, rows)
    assert again["dhkd"][0] != metrics["dhkd"][0], "every step drops something else"
    assert again["cross_entropy"][0] == metrics["cross_entropy"][0]


# --- a learned temperature ---


def kd_at(theta, student, teacher, where):
    temperature = 1.0 + 20.0 * jax.nn.sigmoid(theta)
    log_s, log_t = (jax.nn.log_softmax(logits / temperature) for logits in (student, teacher))
    return mean(temperature**2 * jnp.sum(jnp.exp(log_t) * (log_t - log_s), -1), where)


@pytest.mark.parametrize("reversal", [-0.3, -1.0, 0.5])
def test_the_temperature_climbs_by_a_share_of_its_gradient(reversal):
    """A step against the reversed gradient makes the loss larger; one along it, smaller. The student's is as ever."""
    gradient, metrics, before = one_step(0.1 * CrossEntropy() + 0.9 * CTKD(reversal=reversal))
    with jax.enable_x64(True):
        theta = before["objective"]["ctkd"]["theta"]
        logits = said(before["student"], batch().inputs).logits

        def value(theta):
            return 0.9 * kd_at(theta, logits, teacher_logits(), batch().where)

        slope = jax.grad(value)(theta)
        assert abs(slope) > 1e-2
        np.testing.assert_allclose(gradient["objective"]["ctkd"]["theta"], reversal * slope, **EXACT)
        after = theta - gradient["objective"]["ctkd"]["theta"]
        assert value(after) > value(theta) if reversal < 0 else value(after) < value(theta)
        np.testing.assert_allclose(0.9 * np.divide(*metrics["ctkd"]), value(1.0), **EXACT)

        def student_loss(params):
            logits = said(params, batch().inputs).logits
            return 0.1 * cross_entropy(logits) + 0.9 * kd_at(1.0, logits, teacher_logits(), batch().where)

        chex.assert_trees_all_close(gradient["student"], jax.grad(student_loss)(before["student"]), **EXACT)


def test_the_temperature_starts_at_15_6():
    """1 + 20 sigmoid(1); the value is that of KD there."""
    temperature = 1 + 20 / (1 + np.exp(-1.0))
    assert round(temperature, 1) == 15.6
    _, learned, _ = one_step(0.1 * CrossEntropy() + 0.9 * CTKD(reversal=-1.0))
    _, fixed, _ = one_step(0.1 * CrossEntropy() + 0.9 * KD(temperature=float(temperature)))
    np.testing.assert_allclose(learned["ctkd"], fixed["kd"], **EXACT)
    np.testing.assert_allclose(learned["loss"], fixed["loss"], **EXACT)


@pytest.mark.parametrize("case", [c for c in cases("ctkd", symbol="Global_T + DistillKL") if c.finite["f64"]], ids=repr)
def test_gradients_of_the_temperature_are_those_of_the_released_code(case):
    with computing_in("f64") as real:
        student, teacher, theta = map(real, (case.inputs["student"], case.inputs["teacher"], case.params["global_T"]))
        rows, count = student.shape
        objective = CTKD(start=case.hyper["t_start"], span=case.hyper["t_end"], reversal=case.hyper["lambda_"])
        bound = bind(objective, *[ModelOutput(logits=student)] * 2, DataInfo(count))
        ctx = Context(
            ModelOutput(logits=student), ModelOutput(logits=teacher),
            Batch.of(np.zeros((rows, 1)), np.zeros(rows, np.int32)), Clock().at(0),
        )  # fmt: skip

        def loss(theta):
            terms, _ = bound.apply({"ctkd": {"theta": theta}}, {"ctkd": {}}, ctx, train=True)
            return terms["ctkd"].sum / terms["ctkd"].count

        value, slope = jax.value_and_grad(loss)(theta[0])
        case.check(value, "out", "loss", "f64")
        case.check(slope[None], "gparam", "global_T", "f64")
        expected = case.outputs["f64"]["loss"], case.gparams["f64"]["global_T"][0]
        if min(map(abs, expected)) > 1e-9:  # elsewhere the two networks agree, and rounding is all there is
            np.testing.assert_allclose((value, slope), expected, rtol=1e-8)


def test_the_reversal_grows_over_ten_epochs():
    """Once an epoch, counted from 1, down to -1; by the formula and by the released code's numbers."""
    clock = Clock(total_steps=100, steps_per_epoch=4)
    found = [float(CTKD().reversal(clock.at(step))) for step in range(60)]
    epoch = np.arange(60) // 4 + 1
    expected = -0.5 * (1 - np.cos(np.pi * np.minimum(epoch, 10) / 10))
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-7)
    released = {"max_value": 0.0, "min_value": -1.0, "num_loops": 10}
    case = next(c for c in cases("ctkd", symbol="CosineDecay / LinearDecay") if c.hyper == released)
    by_epoch = dict(enumerate(found[::4], start=1))
    numbers = dict(zip(case.inputs["epoch"].tolist(), case.outputs["f64"]["cosine"], strict=True))
    both = sorted(by_epoch.keys() & numbers.keys())
    assert len(both) > 10
    np.testing.assert_allclose([by_epoch[e] for e in both], [numbers[e] for e in both], rtol=1e-5, atol=1e-7)


def test_the_schedule_of_the_reversal_is_read():
    clock = Clock(total_steps=100, steps_per_epoch=2)
    full, *_ = one_step(0.1 * CrossEntropy() + 0.9 * CTKD(reversal=-1.0))
    later, *_ = one_step(0.1 * CrossEntropy() + 0.9 * CTKD(), number=9, clock=clock)  # in the fifth epoch
    np.testing.assert_allclose(later["objective"]["ctkd"]["theta"], 0.5 * full["objective"]["ctkd"]["theta"], rtol=1e-6)


# --- a weak head ---


def weak_loss(head, feature):
    """Cross-entropy with labels smoothed by 0.1, of the pooled feature, over labelled rows."""
    rows = batch()
    log_w = jax.nn.log_softmax(feature.mean((1, 2)) @ head["kernel"] + head["bias"][None])
    target = 0.9 * jax.nn.one_hot(rows.labels, CLASSES) + 0.1 / CLASSES
    return mean(-jnp.sum(target * log_w, -1), rows.where & rows.labelled)


def test_the_weak_head_learns_from_smoothed_labels():
    """And the stage that it reads, from it alone."""
    gradient, _, before = one_step(USKD(mu=0.02))
    with jax.enable_x64(True):

        def loss(head, params):
            return 0.02 * weak_loss(head, said(params, batch().inputs).features[0])

        head, student = jax.grad(loss, argnums=(0, 1))(before["objective"]["uskd"], before["student"])
        chex.assert_trees_all_close(gradient["objective"]["uskd"], head, **EXACT)
        chex.assert_trees_all_close(gradient["student"]["scale"], student["scale"], **EXACT)
    assert min(largest(head), largest(student["scale"])) > 1e-4
    assert largest(gradient["student"]["w"]) > 1e-3, "the classifier learns from the other two parts"


def test_without_its_weight_the_weak_head_stays():
    gradient, *_ = one_step(USKD(mu=0.0))
    assert largest(gradient["objective"]) == 0.0 and largest(gradient["student"]["w"]) > 1e-3


@pytest.mark.parametrize("official", [True, False])
def test_the_loss_is_that_of_labelled_rows(official):
    """As if there were no others: the mean of squared probabilities, too, is over them."""
    _, metrics, before = one_step(USKD(alpha=2.0, beta=0.3, mu=0.02, official=official))
    rows = batch()
    where = rows.where & rows.labelled
    with jax.enable_x64(True):
        output = said(before["student"], rows.inputs)
        head = before["objective"]["uskd"]
        weak = output.features[0].mean((1, 2)) @ head["kernel"] + head["bias"][None]
        values = losses.uskd(
            output.logits[where], weak[where], rows.labels[where], alpha=2.0, beta=0.3, mu=0.02, official=official
        )
        np.testing.assert_allclose(np.divide(*metrics["uskd"]), jnp.mean(values), **EXACT)
    assert metrics["uskd"][1] == 8


def test_the_stage_of_the_weak_head_can_be_chosen():
    first, *_ = one_step(USKD(mu=0.02))
    last, *_ = one_step(USKD(mu=0.02, stage=-1))
    assert largest(first["student"]["scale"]) > 1e-4 and largest(last["student"]["scale"]) == 0.0
    with pytest.raises(ValueError, match=r"stage=5, but the student network gives 2 stages of features \(0 to 1\)"):
        bound_to(USKD(stage=5))


# --- all of them ---


@pytest.mark.parametrize("form", ["jit 8", "pmap"])
def test_devices_make_no_difference(form):
    objective = dhkd(align=True) + CTKD(reversal=-0.7) + USKD(mu=0.02)
    found, wanted = one_step(objective, form), one_step(objective)
    chex.assert_trees_all_close(found, wanted, **EXACT)
    assert min(largest(wanted[0]["objective"][name]) for name in ("dhkd", "ctkd", "uskd")) > 1e-4


@pytest.mark.parametrize(
    ("objective", "count"),
    [
        (DHKD(head="linear"), WIDTH * CLASSES + CLASSES),
        (DHKD(), WIDTH * 200 + 200 + 2 * 200 + 200 * CLASSES + CLASSES),
        (CTKD(), 1),
        (USKD(), 4 * CLASSES + CLASSES),
    ],
    ids=["linear head", "nonlinear head", "temperature", "weak head"],
)
def test_what_is_trained_beside_decays_and_is_counted(objective, count):
    """As in torch, where all parameters of an optimizer decay, vectors and the temperature included."""
    bound = bound_to(CrossEntropy() + objective)
    params, _ = bound.init(jax.random.key(0))
    assert count_parameters(params) == count and objective.trains
    mask = bound.decay_mask(params)
    chex.assert_trees_all_equal_structs(mask, params)
    assert all(jax.tree.leaves(mask))
    weights = jax.tree.map(lambda x: jnp.full(x.shape, 3.0), {"student": {"w": jnp.ones(2)}, "objective": params})
    optimizer = build(SGD(learning_rate=0.5, weight_decay=0.1), Clock(), bound)
    still = jax.tree.map(jnp.zeros_like, weights)
    updates, _ = optimizer.update(still, optimizer.init(weights), weights)
    for leaf in jax.tree.leaves(updates):
        np.testing.assert_allclose(leaf, -0.15, rtol=1e-6)


def test_no_head_is_part_of_the_student():
    bound = bound_to(dhkd() + CTKD() + USKD())
    state = init_state(STUDENT, bound, build(SGD(), Clock(), bound), seed=1)
    assert set(state.params["objective"]) == {"dhkd", "ctkd", "uskd"}
    chex.assert_trees_all_equal_shapes(state.params["student"], STUDENT.init(jax.random.key(0))[0])

"""Two students that teach each other: gradients of both by the formula in either order, statistics, metrics, resuming.

Float64. The learning rate of the first step is 1, so that it moves each network by exactly its gradient, which is compared
with `jax.grad` of the loss written out.
"""

import dataclasses
import functools
import types

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdjax.experiment import Phase
from kdjax.experiment.compiled import make_state
from kdjax.objectives import DML, KD, CrossEntropy, bind
from kdjax.schedules import Steps
from kdjax.tasks import Model
from kdjax.training import Variables, init_state, make_runner, make_step
from kdjax.training.mutual import PEER_SEED, join, make_mutual_step, split
from kdjax.training.optimizers import SGD, build
from kdjax.types import Batch, Clock, DataInfo, ModelOutput, MultiView, Network
from tests.training.toy import CLASSES, shapes, toy, toy_batch

FORMS = {"jit 1": ("jit", 1), "jit 8": ("jit", 8), "pmap": ("pmap", 8)}
EXACT = {"rtol": 1e-9, "atol": 1e-12}
NETWORK = toy(3)
SEED = 1
STEPS = 4


def to64(tree):
    return jax.tree.map(lambda x: x.astype(jnp.float64) if x.dtype == jnp.float32 else x, tree)


def two_states(optimizer, bound):
    """The student's with a moving average, and its peer's."""
    student = init_state(NETWORK, bound, optimizer, seed=SEED, data_seed=5, ema=True)
    return student, init_state(NETWORK, bound, optimizer, seed=SEED + PEER_SEED, data_seed=5)


@functools.cache
def train(order, form):
    """States before and after every step, as copies that `resume` can start from, the metrics, and the compiled step."""
    kind, devices = FORMS[form]
    runner = make_runner(kind, jax.devices()[:devices])
    bound = bind(CrossEntropy() + 2.0 * DML(order=order), shapes(NETWORK), None, DataInfo(CLASSES))
    optimizer = build(SGD(learning_rate=Steps(1.0, 0.05, (1,), "steps")), Clock(), bound)
    with jax.enable_x64(True):
        step = make_step(NETWORK, None, bound, optimizer, axis=runner.axis, ema_decay=0.9)
        compiled = runner.compile(make_mutual_step(step, bound.peer_order))
        state = runner.place(to64(join(*two_states(optimizer, bound))))
        states, metrics = [saved(state)], []
        for number in range(STEPS):
            state, seen = compiled(state, None, runner.place_batch(batch(number)))
            states.append(saved(state))
            metrics.append(jax.device_get(seen))
    return states, metrics, (runner, compiled)


def batch(number):
    return toy_batch(seed=number, dtype=np.float64)


def is_key(leaf):
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def saved(state):
    """A copy in NumPy, keys as their data."""
    return jax.tree.map(lambda x: np.array(jax.random.key_data(x) if is_key(x) else x), state)


def restored(copy, like):
    return jax.tree.map(lambda x, old: jax.random.wrap_key_data(x) if is_key(old) else jnp.asarray(x), copy, like)


def losses_of(params, state, peer_params, peer_state, batch):
    """Mean cross-entropy, and mean divergence from what the peer says with the statistics of this batch."""
    logits = NETWORK.apply(params, state, batch.inputs, train=True)[0].logits
    peer = NETWORK.apply(peer_params, peer_state, batch.inputs, train=True)[0].logits
    log_p, log_q = jax.nn.log_softmax(logits), jax.nn.log_softmax(peer)
    labelled = batch.where & batch.labelled
    task = -jnp.sum(log_p[np.arange(16), batch.labels] * labelled) / labelled.sum()
    apart = jnp.sum(jnp.sum(jnp.exp(log_q) * (log_q - log_p), -1) * batch.where) / batch.where.sum()
    return task, apart


def moved(params, state, peer_params, peer_state, batch):
    """The parameters after a step along the gradient of the loss, the peer being a constant."""

    def loss(params):
        task, apart = losses_of(params, state, peer_params, peer_state, batch)
        return task + 2.0 * apart

    return jax.tree.map(jnp.subtract, params, jax.jit(jax.grad(loss))(params))


def halves(state):
    """`(params, statistics)` of the student and of the peer."""
    return (
        (state.params["student"], state.state["student"]),
        (state.params["peer"]["student"], state.state["peer"]["student"]),
    )


@pytest.mark.parametrize("order", ["simultaneous", "sequential"])
def test_both_networks_follow_the_formula(order):
    """The peer is taught by the student of before, or by the one that has just moved; the statistics are not what differs,
    as a network in training is asked with those of the batch."""
    states, *_ = train(order, "jit 1")
    student, peer = halves(states[0])
    (new_student, _), (new_peer, _) = halves(states[1])
    with jax.enable_x64(True):
        expected = moved(*student, *peer, batch(0))
        chex.assert_trees_all_close(new_student, expected, **EXACT)
        teachers = {"simultaneous": student[0], "sequential": expected}
        results = {name: moved(*peer, params, student[1], batch(0)) for name, params in teachers.items()}
        chex.assert_trees_all_close(new_peer, results[order], **EXACT)
    gap = jax.tree.map(lambda a, b: np.abs(a - b).max(), results["simultaneous"], results["sequential"])
    assert gap["conv1"]["kernel"] > 1e-3, "the orders cannot be told apart"


def test_both_networks_move():
    states, *_ = train("sequential", "jit 1")
    for before, after in zip(halves(states[0]), halves(states[1]), strict=True):
        change = jax.tree.map(lambda a, b: np.abs(a - b).max(), before[0], after[0])
        assert change["conv1"]["kernel"] > 1e-3 and change["classifier"]["kernel"] > 1e-3


@pytest.mark.parametrize("order", ["simultaneous", "sequential"])
def test_statistics_are_moved_once_a_step_by_the_networks_own_pass(order):
    states, *_ = train(order, "jit 1")
    with jax.enable_x64(True):
        for before, (_, after) in zip(halves(states[0]), halves(states[1]), strict=True):
            _, expected = NETWORK.apply(*before, batch(0).inputs, train=True)
            chex.assert_trees_all_close(after, expected, **EXACT)


@pytest.mark.parametrize("form", ["jit 8", "pmap"])
def test_devices_make_no_difference(form):
    found, wanted = train("sequential", form), train("sequential", "jit 1")
    chex.assert_trees_all_close((found[0][1], found[1][0]), (wanted[0][1], wanted[1][0]), **EXACT)
    chex.assert_trees_all_close((found[0][3], found[1][2]), (wanted[0][3], wanted[1][2]), rtol=1e-7, atol=1e-9)


def test_metrics_are_those_of_both():
    states, metrics, _ = train("sequential", "jit 1")
    own = {"loss", "cross_entropy", "dml", "top1", "gradient_norm", "finite"}
    assert set(metrics[0]) == own | {f"peer_{name}" for name in own}
    student, peer = halves(states[0])
    after, _ = halves(states[1])
    with jax.enable_x64(True):
        for prefix, pair in (("", (*student, *peer)), ("peer_", (*peer, *after))):
            task, apart = losses_of(*pair, batch(0))
            found = {name: np.divide(*metrics[0][prefix + name]) for name in ("cross_entropy", "dml", "loss")}
            expected = {"cross_entropy": task, "dml": apart, "loss": task + 2.0 * apart}
            chex.assert_trees_all_close(found, {k: np.asarray(v) for k, v in expected.items()}, **EXACT)


def test_a_copy_of_the_state_goes_on_as_the_state():
    """Both networks, both momenta, both keys and the moving average are in it."""
    states, metrics, (runner, compiled) = train("sequential", "jit 1")
    with jax.enable_x64(True):
        like = join(*two_states(*optimizer_and_bound()))
        state, seen = compiled(runner.place(restored(states[3], like)), None, runner.place_batch(batch(3)))
        chex.assert_trees_all_equal((saved(state), jax.device_get(seen)), (states[4], metrics[3]))
    assert states[4].step == 4
    for before, after in zip(jax.tree.leaves(states[3].opt_state), jax.tree.leaves(states[4].opt_state), strict=True):
        assert np.any(before != after), "a momentum or a count stands still"


def optimizer_and_bound():
    bound = bind(CrossEntropy() + DML(), shapes(NETWORK), None, DataInfo(CLASSES))
    return build(SGD(learning_rate=Steps(1.0, 0.05, (1,), "steps")), Clock(), bound), bound


def test_the_student_to_be_deployed_is_the_first_network_alone():
    """It and its moving average have the parameters of one network; all of the peer is under "peer"."""
    states, *_ = train("sequential", "jit 1")
    state, (params, statistics) = states[STEPS], NETWORK.init(jax.random.key(0))
    for tree in (state.params["student"], state.params["peer"]["student"], state.ema["params"]["student"]):
        chex.assert_trees_all_equal_shapes(tree, params)
    for tree in (state.state["student"], state.ema["state"]["student"]):
        chex.assert_trees_all_equal_shapes(tree, statistics)
    assert set(state.params) == set(state.state) == {"student", "objective", "peer"}
    now = {"params": state.params["student"], "state": state.state["student"]}
    before, after = ({part: one.ema[part]["student"] for part in now} for one in (states[STEPS - 1], state))
    chex.assert_trees_all_close(after, jax.tree.map(lambda e, p: 0.9 * e + 0.1 * p, before, now), **EXACT)


# --- two states as one ---


def test_split_undoes_join():
    student, peer = two_states(*optimizer_and_bound())
    peer = dataclasses.replace(peer, opt_state=jax.tree.map(lambda x: x + 1, peer.opt_state))
    both = join(student, peer)
    again = split(both)
    chex.assert_trees_all_equal(jax.tree.map(saved, again), jax.tree.map(saved, (student, peer)))
    assert again[0].ema is not None and again[1].ema is None
    chex.assert_trees_all_equal(saved(join(*again)), saved(both))


def test_the_peer_sees_the_views_of_the_student():
    """Whatever data seed it was made with; its dropout is its own."""
    student, peer = two_states(*optimizer_and_bound())
    _, other = split(join(student, dataclasses.replace(peer, keys={**peer.keys, "data": jax.random.key(99)})))
    assert other.keys["data"] == student.keys["data"] and other.keys["train"] == peer.keys["train"]
    assert other.keys["train"] != student.keys["train"]


def test_two_students_of_one_seed_begin_differently():
    optimizer, bound = optimizer_and_bound()
    networks = types.SimpleNamespace(student=NETWORK, objective=bound, rows=None)
    student, peer = split(make_state(networks, optimizer, Phase(network=Model()), (SEED, 5)))
    expected = [init_state(NETWORK, bound, optimizer, seed=seed, data_seed=5) for seed in (SEED, SEED + PEER_SEED)]
    chex.assert_trees_all_close(
        [state.params for state in (student, peer)], [state.params for state in expected], rtol=1e-6
    )
    kernels = [state.params["student"]["conv1"]["kernel"] for state in (student, peer)]
    assert np.abs(kernels[0] - kernels[1]).min() > 0
    assert student.keys["train"] != peer.keys["train"] and student.keys["data"] == peer.keys["data"]


# --- what the step asks of the peer ---


def test_the_peer_draws_its_own_numbers_at_every_step():
    """As a network in training does: new dropout at each step and for each view, none of it the student's."""
    seen = []

    def apply(params, state, inputs, *, train, rngs=None, axis=None):
        seen.append((train, None if rngs is None else tuple(jax.random.key_data(rngs).tolist())))
        return ModelOutput(logits=inputs @ params["w"]), state

    network = Network(lambda key: ({"w": jnp.eye(3)}, {}), apply)
    output = ModelOutput(logits=jnp.ones((4, 3)))
    bound = bind(DML() + CrossEntropy() + 0.0 * CrossEntropy(view="strong"), output, None, DataInfo(3))
    optimizer = build(SGD(), Clock(), bound)
    state = init_state(network, bound, optimizer, seed=5)
    views = lambda inputs, *_: MultiView({"main": inputs, "strong": inputs})
    step = make_step(network, None, bound, optimizer, views=views)
    for number in (0, 1):
        now = dataclasses.replace(state, step=jnp.int32(number))
        step(now, None, Batch.of(jnp.zeros((4, 3)), jnp.zeros(4, jnp.int32)), Variables({"w": jnp.eye(3)}, {}))
    assert len(seen) == 8 and all(train for train, _ in seen), "each network once a view and step, in training"
    keys = {key for _, key in seen}
    assert None not in keys and len(keys) == 8


def test_a_peer_is_taught_beside_a_teacher():
    """Both read the one frozen teacher."""
    teacher = toy(2)
    bound = bind(KD() + DML(), shapes(NETWORK), shapes(teacher), DataInfo(CLASSES))
    assert bound.needs_peer and bound.needs_teacher
    optimizer = build(SGD(), Clock(), bound)
    step = make_mutual_step(make_step(NETWORK, teacher, bound, optimizer, ema_decay=0.9), bound.peer_order)
    state = jax.eval_shape(lambda: join(*two_states(optimizer, bound)))
    variables = jax.eval_shape(lambda: Variables(*teacher.init(jax.random.key(0))))
    after, metrics = jax.eval_shape(step, state, variables, toy_batch())
    chex.assert_trees_all_equal_shapes_and_dtypes(after, state)
    assert {"kd", "peer_kd", "agreement", "peer_agreement", "dml", "peer_dml"} <= set(metrics)


def test_an_unknown_order_is_refused():
    optimizer, bound = optimizer_and_bound()
    with pytest.raises(ValueError, match='order is \'both\'; use "sequential" or "simultaneous"'):
        make_mutual_step(make_step(NETWORK, None, bound, optimizer), "both")


@pytest.mark.parametrize("order", ["sequential", "simultaneous"])
def test_the_objective_says_the_order(order):
    bound = bind(CrossEntropy() + 2.0 * DML(order=order), shapes(NETWORK), None, DataInfo(CLASSES))
    assert bound.needs_peer and bound.peer_order == order
    assert not bind(CrossEntropy(), shapes(NETWORK), None, DataInfo(CLASSES)).needs_peer


def test_a_step_made_for_another_runner_is_refused():
    optimizer, bound = optimizer_and_bound()
    step = make_mutual_step(make_step(NETWORK, None, bound, optimizer, axis="data"))
    with pytest.raises(ValueError, match="make it with make_step"):
        make_runner("jit").compile(step)

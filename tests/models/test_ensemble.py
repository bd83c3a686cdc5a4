"""Several networks as one: the mean of their probabilities, each one's logits beside, stacked where they are alike."""

import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from kdjax.models import ensemble, from_nnx, join_members, output_shapes
from kdjax.models.zoo.normalization import BatchNorm
from kdjax.objectives import KD, CrossEntropy, MultiTeacherKD, bind
from kdjax.training import Variables, init_state, make_runner, make_step
from kdjax.training.optimizers import SGD, build
from kdjax.types import Batch, Clock, DataInfo, ModelOutput, Network

CLASSES = 5
ROWS = np.random.default_rng(0).standard_normal((16, 4)).astype(np.float32)
SHAPE = jax.ShapeDtypeStruct((16, 4), jnp.float32)
KEYS = [jax.random.key(number) for number in range(3)]


class Net(nnx.Module):
    """With statistics, so that the members' states are told apart."""

    def __init__(self, width, classes, rngs):
        self.hidden = nnx.Linear(4, width, rngs=rngs)
        self.norm = BatchNorm(width, rngs=rngs)
        self.classifier = nnx.Linear(width, classes, rngs=rngs)

    def __call__(self, x):
        hidden = jnp.tanh(self.norm(self.hidden(x)))
        return ModelOutput(logits=self.classifier(hidden), embedding=hidden)


def net(width=3, classes=CLASSES):
    return from_nnx(lambda rngs: Net(width, classes, rngs), name=f"net{width}")


ALIKE = (net(),) * 3
MIXED = (net(3), net(6), net(3))
KINDS = {"alike": ALIKE, "different": MIXED}


def members(networks):
    """`(params, state)` of each, none with the statistics it began with."""
    made = []
    for key, network in zip(KEYS[: len(networks)], networks, strict=True):
        params, state = network.init(key)
        for shift in (0.5, 2.0):
            _, state = network.apply(params, state, 3.0 * ROWS + shift, train=True)
        made.append((params, state))
    return made


def joined(networks):
    """The ensemble's `(params, state)`."""
    return tuple(join_members([member[part] for member in members(networks)]) for part in (0, 1))


def apart(networks):
    """`[M, B, C]`: every member by itself."""
    return np.stack([
        network.apply(*variables, ROWS, train=False)[0].logits
        for network, variables in zip(networks, members(networks), strict=True)
    ])  # fmt: skip


def softmax(logits):
    p = np.exp(np.float64(logits) - np.max(logits, -1, keepdims=True))
    return p / p.sum(-1, keepdims=True)


@pytest.mark.parametrize("kind", KINDS)
def test_the_logits_are_those_of_the_mean_probability(kind):
    """And each member's own stay as they were, in order."""
    networks = KINDS[kind]
    output, state = ensemble(networks).apply(*joined(networks), ROWS, train=False)
    logits = apart(networks)
    np.testing.assert_allclose(output.logits, np.log(softmax(logits).mean(0)), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(output.taps["members"], np.moveaxis(logits, 0, 1), rtol=1e-5, atol=1e-6)
    assert output.taps["members"].shape == (16, 3, CLASSES) and list(output.taps) == ["members"]
    assert output.features == () and output.embedding is None
    chex.assert_trees_all_equal(state, joined(networks)[1])
    assert np.abs(logits[0] - logits[1]).max() > 0.1 and np.abs(logits[0] - logits[2]).max() > 0.1


@pytest.mark.parametrize("kind", KINDS)
def test_every_member_trains_its_own_statistics(kind):
    networks = KINDS[kind]
    _, after = ensemble(networks).apply(*joined(networks), ROWS, train=True)
    expected = [
        network.apply(*variables, ROWS, train=True)[1]
        for network, variables in zip(networks, members(networks), strict=True)
    ]
    chex.assert_trees_all_close(after, join_members(expected), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("kind", "times"), [("alike", 1), ("different", 3)])
def test_members_that_are_one_network_are_one_program(kind, times):
    networks = KINDS[kind]

    def products(network, variables):
        run = lambda x: network.apply(*variables, x, train=False)[0].logits
        return str(jax.make_jaxpr(run)(ROWS)).count("dot_general")

    assert products(networks[0], members(networks)[0]) == 2
    assert products(ensemble(networks), joined(networks)) == 2 * times


def test_networks_of_the_same_shapes_need_not_be_the_same():
    """A network is known by its name too: another nonlinearity has the parameters of this one."""

    def network(name, function):
        init = lambda key: ({"w": jax.random.normal(key, (4, CLASSES))}, {})
        run = lambda params, state, x, **_: (ModelOutput(logits=function(x @ params["w"])), state)
        return Network(init, run, {}, name)

    networks = (network("tanh", jnp.tanh), network("square", jnp.square), network("tanh", jnp.tanh))
    variables = joined(networks)
    assert variables[0]["w"].shape == (3, 4, CLASSES)
    output, state = ensemble(networks).apply(*variables, ROWS, train=False)
    np.testing.assert_allclose(np.moveaxis(output.taps["members"], 1, 0), apart(networks), rtol=1e-5)
    assert state == {}


def test_parameters_may_differ_where_states_do_not():
    """As of networks without any state."""

    def network(width):
        def init(key):
            return {"v": jax.random.normal(key, (4, width)), "w": jax.random.normal(key, (width, CLASSES))}, {}

        run = lambda params, state, x, **_: (ModelOutput(logits=jnp.tanh(x @ params["v"]) @ params["w"]), state)
        return Network(init, run)

    networks = (network(2), network(3))
    params, state = joined(networks)
    assert list(params) == ["0", "1"] and state == {}
    output, after = ensemble(networks).apply(params, state, ROWS, train=True)
    np.testing.assert_allclose(np.moveaxis(output.taps["members"], 1, 0), apart(networks), rtol=1e-5, atol=1e-6)
    assert after == {}
    chex.assert_trees_all_equal_shapes(ensemble(networks).init(KEYS[0]), (params, state))


def test_fresh_members_differ():
    for networks in KINDS.values():
        both = ensemble(networks)
        output, _ = both.apply(*both.init(KEYS[0]), ROWS, train=False)
        logits = np.moveaxis(output.taps["members"], 1, 0)
        assert min(np.abs(logits[0] - logits[1]).max(), np.abs(logits[0] - logits[2]).max()) > 0.1


def test_members_in_bfloat16_are_averaged_in_float32():
    logits = jnp.asarray([[[4.0, 0.0, 1.0]], [[3.0, 2.0, 0.5]]], jnp.bfloat16)
    network = Network(
        lambda key: ({"z": logits[0]}, {}), lambda params, state, x, **_: (ModelOutput(params["z"]), state)
    )
    output, _ = ensemble([network] * 2).apply({"z": logits}, {}, ROWS[:1], train=False)
    assert output.logits.dtype == jnp.float32
    np.testing.assert_allclose(output.logits, np.log(softmax(logits).mean(0)), rtol=1e-6, atol=1e-6)


def test_a_class_that_no_member_knows_stays_out():
    logits = jnp.asarray([[[0.0, -jnp.inf, -jnp.inf]], [[0.0, 0.0, -jnp.inf]]])
    network = Network(
        lambda key: ({"z": logits[0]}, {}), lambda params, state, x, **_: (ModelOutput(params["z"]), state)
    )
    output, _ = ensemble([network] * 2).apply({"z": logits}, {}, ROWS[:1], train=False)
    np.testing.assert_allclose(np.exp(output.logits), [[0.75, 0.25, 0.0]], rtol=1e-6)


def test_networks_of_one_name_and_shape_may_compute_different_things():
    first, second = net(), net()
    negated = second._replace(apply=lambda *args, **kw: negate(*second.apply(*args, **kw)))
    networks = (first, negated)
    output, _ = ensemble(networks).apply(*joined(networks), ROWS, train=False)
    for i, (network, own) in enumerate(zip(networks, members(networks), strict=True)):
        expected = network.apply(*own, ROWS, train=False)[0].logits
        np.testing.assert_allclose(output.taps["members"][:, i], expected, rtol=1e-5, atol=1e-6)


def negate(output, state):
    return dataclasses.replace(output, logits=-output.logits), state


def test_one_network_is_an_ensemble_of_one():
    (network,) = networks = (net(),)
    output, _ = ensemble(networks).apply(*joined(networks), ROWS, train=False)
    np.testing.assert_allclose(output.logits, jax.nn.log_softmax(apart((network,))[0]), rtol=1e-5, atol=1e-6)


def test_different_classes_are_refused():
    with pytest.raises(ValueError, match="members of the ensemble have 5, 7 classes; they must have the same"):
        output_shapes(ensemble((net(), net(classes=7))), SHAPE)


def test_an_ensemble_of_none_is_refused():
    with pytest.raises(ValueError, match="An ensemble needs at least one network; give it some"):
        ensemble([])


def test_names():
    assert ensemble(ALIKE).name == "3 × net3"
    assert ensemble(MIXED).name == "net3 + net6 + net3"


def test_variables_are_stacked_if_alike_and_numbered_if_not():
    one, two = {"a": {"w": jnp.zeros((2, 3))}}, {"a": {"w": jnp.ones((2, 3))}}
    np.testing.assert_array_equal(join_members([one, two])["a"]["w"], np.stack([np.zeros((2, 3)), np.ones((2, 3))]))
    for other in ({"a": {"w": jnp.ones((3, 2))}}, {"b": {"w": jnp.ones((2, 3))}}, {"a": {"w": jnp.ones((2, 3), int)}}):
        assert join_members([one, other]) == {"0": one, "1": other}
    assert join_members([{}, {}]) == {}, "states of networks without any"


# --- as a teacher ---


@functools.cache
def one_step(objective, kind="alike", form=("jit", 1)):
    """`(gradient, metrics, the student's logits before)` of one step of SGD with learning rate 1."""
    runner = make_runner(form[0], jax.devices()[: form[1]])
    student, teacher = net(2), ensemble(KINDS[kind])
    bound = bind(objective, output_shapes(student, SHAPE), output_shapes(teacher, SHAPE), DataInfo(CLASSES))
    optimizer = build(SGD(learning_rate=1.0, momentum=0.0), Clock(), bound)
    state = init_state(student, bound, optimizer, seed=1)
    before = jax.tree.map(np.array, state.params)
    logits = np.asarray(student.apply(state.params["student"], state.state["student"], ROWS, train=True)[0].logits)
    step = runner.compile(make_step(student, teacher, bound, optimizer, axis=runner.axis))
    batch = Batch.of(ROWS, np.zeros(16, np.int32), where=np.arange(16) < 13)
    after, metrics = step(runner.place(state), runner.place(Variables(*joined(KINDS[kind]))), runner.place_batch(batch))
    return jax.tree.map(lambda a, b: a - np.asarray(b), before, after.params), jax.device_get(metrics), logits


def divergence(probabilities, logits, temperature):
    """`T² KL(p ‖ softmax(z / T))` of each row."""
    other = np.log(softmax(logits / temperature))
    return temperature**2 * np.sum(probabilities * (np.log(probabilities) - other), -1)


@pytest.mark.parametrize("kind", KINDS)
def test_kd_reads_the_mean_probability(kind):
    """A temperature softens the mean, not the members."""
    _, metrics, logits = one_step(KD(temperature=3.0), kind)
    mean = softmax(apart(KINDS[kind])).mean(0)
    soft = softmax(np.log(mean) / 3.0)
    np.testing.assert_allclose(np.divide(*metrics["kd"]), divergence(soft, logits, 3.0)[:13].mean(), rtol=1e-4)
    agree = (mean.argmax(1) == logits.argmax(1))[:13]
    assert metrics["agreement"] == (agree.sum(), 13)


@pytest.mark.parametrize("weights", [(), (0.5, 0.25, 1.0)])
def test_each_teacher_counts_by_its_weight(weights):
    _, metrics, logits = one_step(MultiTeacherKD(temperature=2.0, weights=weights))
    each = [divergence(softmax(z / 2.0), logits, 2.0)[:13].mean() for z in apart(ALIKE)]
    expected = np.dot(weights or (1 / 3,) * 3, each)
    np.testing.assert_allclose(np.divide(*metrics["multi_teacher_kd"]), expected, rtol=1e-4)
    assert abs(each[0] - each[1]) > 1e-3 and abs(each[0] - each[2]) > 1e-3


@pytest.mark.parametrize("form", [("jit", 8), ("pmap", 8)])
def test_devices_make_no_difference(form):
    objective = CrossEntropy() + KD() + MultiTeacherKD(temperature=2.0, weights=(0.5, 0.25, 1.0))
    (gradient, metrics, _), (expected, wanted, _) = one_step(objective, form=form), one_step(objective)
    chex.assert_trees_all_close((gradient, metrics), (expected, wanted), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("teacher", "count"), [(ensemble(ALIKE), 3), (net(), 1)])
def test_a_wrong_number_of_weights_is_refused(teacher, count):
    outputs = output_shapes(net(2), SHAPE), output_shapes(teacher, SHAPE)
    with pytest.raises(ValueError, match=f"has 2 weights and {count} teachers; give one a teacher"):
        bind(MultiTeacherKD(weights=(0.5, 0.5)), *outputs, DataInfo(CLASSES))
    bind(MultiTeacherKD(weights=(0.5,) * count), *outputs, DataInfo(CLASSES))


def test_a_teacher_alone_is_one_of_one():
    objective = MultiTeacherKD(temperature=2.0)
    student = output_shapes(net(2), SHAPE)
    bound = bind(objective, student, output_shapes(net(), SHAPE), DataInfo(CLASSES))
    optimizer = build(SGD(), Clock(), bound)
    state = init_state(net(2), bound, optimizer, seed=1)
    step = make_step(net(2), net(), bound, optimizer)
    logits = net(2).apply(state.params["student"], state.state["student"], ROWS, train=True)[0].logits
    _, metrics = jax.jit(step)(state, Variables(*members(ALIKE)[0]), Batch.of(ROWS, np.zeros(16, np.int32)))
    expected = divergence(softmax(apart(ALIKE)[0] / 2.0), np.asarray(logits), 2.0).mean()
    np.testing.assert_allclose(np.divide(*metrics["multi_teacher_kd"]), expected, rtol=1e-4)

"""Anybody's model as a Network: Flax NNX, Flax Linen, a plain function; taps, dropout and BatchNorm in each."""

import functools

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.sharding import PartitionSpec

from kdjax.models import as_output, from_apply, from_linen, from_nnx, output_shapes
from kdjax.models.functional import functionalise
from kdjax.training import make_runner
from kdjax.types import ModelOutput

DEVICES = 8
ROWS = np.random.default_rng(0).standard_normal((4, 3)).astype(np.float32)
ROW_SHAPE = jax.ShapeDtypeStruct((4, 3), jnp.float32)
KEY = jax.random.key(0)


class Nested(nnx.Module):
    """Lists in lists, with a module that can be made to run twice."""

    def __init__(self, rngs, twice=False):
        self.layers = nnx.List(
            [nnx.Linear(3, 4, rngs=rngs), nnx.List([nnx.Linear(4, 4, rngs=rngs)]), nnx.Linear(4, 5, rngs=rngs)]
        )
        self.tower = nnx.Sequential(nnx.Linear(4, 4, rngs=rngs), jax.nn.tanh)
        self.twice = twice

    def __call__(self, x):
        x = jax.nn.tanh(self.layers[0](x))
        x = self.layers[1][0](x)
        x = self.tower(self.tower(x) if self.twice else x)
        return self.classify(x)

    def classify(self, x):
        return self.layers[2](x)


class LinenNet(nn.Module):
    """A block by name, a list, dropout and BatchNorm; `train` is passed."""

    axis_name: str | None = None

    @nn.compact
    def __call__(self, x, train):
        x = nn.BatchNorm(use_running_average=not train, momentum=0.9, axis_name=self.axis_name, name="norm")(x)
        x = nn.tanh(nn.Dense(4, name="hidden")(x))
        return nn.Dense(5, name="classifier")(nn.Dropout(0.5, deterministic=not train)(x))


def dense(x, params):
    """A linear layer in NumPy."""
    return np.asarray(x) @ np.asarray(params["kernel"]) + np.asarray(params["bias"])


# --- NNX ---


def test_a_constructor_gives_fresh_weights_by_the_key():
    network = from_nnx(Nested)
    params, state = network.init(KEY)
    assert state == {}
    chex.assert_trees_all_equal(network.init(KEY), (params, state))
    other, _ = network.init(jax.random.key(1))
    assert np.any(other["layers"]["0"]["kernel"] != params["layers"]["0"]["kernel"])
    expected = Nested(nnx.Rngs(KEY))(ROWS)
    output, _ = network.apply(params, state, ROWS, train=False)
    np.testing.assert_allclose(output.logits, expected, rtol=1e-6)


def test_keys_are_strings_throughout():
    """Also for the children of lists, so that checkpoints, path rules and sorting agree."""
    params, _ = from_nnx(Nested).init(KEY)
    assert params["layers"]["1"]["0"]["kernel"].shape == (4, 4)
    assert params["tower"]["layers"]["0"]["bias"].shape == (4,)
    paths = jax.tree_util.tree_leaves_with_path(params)
    assert all(type(part.key) is str for path, _ in paths for part in path)
    assert len(paths) == 8


def test_a_module_gives_its_own_weights_whatever_the_key():
    module = Nested(nnx.Rngs(3))
    network = from_nnx(module)
    params, _ = network.init(KEY)
    np.testing.assert_array_equal(params["layers"]["0"]["kernel"], module.layers[0].kernel[...])
    chex.assert_trees_all_equal(network.init(jax.random.key(9))[0], params)
    output, _ = network.apply(params, {}, ROWS, train=False)
    np.testing.assert_allclose(output.logits, module(ROWS), rtol=1e-6)


def test_weights_of_a_module_are_those_when_the_network_was_made():
    module = Nested(nnx.Rngs(3))
    network = from_nnx(module)
    before, _ = network.init(KEY)
    module.layers[0].kernel[...] = jnp.zeros((3, 4))
    chex.assert_trees_all_equal(network.init(KEY)[0], before)


def trained_for_a_step(network):
    """One step that gives its state's memory up, as the runners' do."""
    runner = make_runner("jit")

    def step(variables, _, x):
        def loss(params):
            output, state = network.apply(params, variables[1], x, train=True, rngs=KEY)
            return jnp.sum(jnp.square(output.logits)), state

        gradients, state = jax.grad(loss, has_aux=True)(variables[0])
        return optax.apply_updates(variables[0], jax.tree.map(lambda g: -0.1 * g, gradients)), state

    start = network.init(KEY)
    before = jax.tree.map(np.array, start)
    x = np.concatenate([ROWS, ROWS])
    after = runner.compile(step)(runner.place(start), None, runner.place_batch(x))
    assert all(np.any(a != b) for a, b in zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True))
    return before


def test_training_leaves_the_users_nnx_module_alone():
    """Neither its values nor its memory: a step may give up the arrays it was given."""

    class Normed(nnx.Module):
        def __init__(self, rngs):
            self.norm = nnx.BatchNorm(3, rngs=rngs)
            self.linear = nnx.Linear(3, 5, rngs=rngs)

        def __call__(self, x):
            return self.linear(self.norm(x))

    module = Normed(nnx.Rngs(0))
    module.norm.bias[...] = jnp.ones(3)
    params, state = trained_for_a_step(from_nnx(module))
    np.testing.assert_array_equal(module.linear.kernel[...], params["linear"]["kernel"])
    np.testing.assert_array_equal(module.norm.bias[...], params["norm"]["bias"])
    np.testing.assert_array_equal(module.norm.mean[...], state["norm"]["mean"])
    assert module.norm.axis_name is None and not module.norm.use_running_average


def test_training_leaves_the_users_linen_variables_alone():
    variables = LinenNet().init(KEY, ROWS, train=False)
    start = trained_for_a_step(from_linen(LinenNet(), ROW_SHAPE, variables=variables))
    chex.assert_trees_all_equal(jax.tree.map(np.asarray, variables), {"params": start[0], **start[1]})


def test_training_leaves_the_users_parameters_alone():
    params = {"w": jnp.asarray(ROWS.T @ ROWS)}
    start = trained_for_a_step(from_apply(lambda p, x: x @ p["w"], params))
    np.testing.assert_array_equal(params["w"], start[0]["w"])


def test_names_for_reports():
    assert from_nnx(Nested).name == "Nested" and from_nnx(Nested(nnx.Rngs(0))).name == "Nested"
    assert from_nnx(Nested, name="small").name == "small"
    assert from_linen(LinenNet(), ROW_SHAPE).name == "LinenNet"
    assert from_apply(np.tanh, init=lambda key: {}).name == "tanh"


def test_parts_run_in_evaluation_mode():
    class WithDropout(Nested):
        def __init__(self, rngs):
            super().__init__(rngs)
            self.dropout = nnx.Dropout(0.5, rngs=rngs)

        def classify(self, x):
            return super().classify(self.dropout(x))

    network = from_nnx(WithDropout, parts=("classify",))
    params, state = network.init(KEY)
    embedding = jnp.ones((2, 4))
    expected = dense(embedding, params["layers"]["2"])
    assert set(network.parts) == {"classify"}
    np.testing.assert_allclose(network.parts["classify"](params, state, embedding), expected, rtol=1e-6)
    assert from_nnx(WithDropout).parts == {}


def test_what_a_module_notes_down_is_no_state():
    """`sow` adds variables while the model runs; the state keeps its structure, so that nothing compiles anew."""

    class Sowing(nnx.Module):
        def __init__(self, rngs):
            self.norm = nnx.BatchNorm(3, rngs=rngs)

        def __call__(self, x):
            y = self.norm(x)
            self.noted = nnx.Intermediate(y)
            return y

    network = from_nnx(Sowing)
    params, state = network.init(KEY)
    _, after = network.apply(params, state, ROWS, train=True)
    chex.assert_trees_all_equal_shapes_and_dtypes(after, state)
    assert np.any(after["norm"]["mean"] != state["norm"]["mean"])


# --- outputs ---


def test_forms_of_output():
    logits, feature = jnp.ones((2, 3)), jnp.zeros((2, 4, 4, 1))
    full = ModelOutput(logits=logits, embedding=logits)
    assert as_output(full) is full
    assert as_output(logits).logits is logits and as_output(logits).features == ()
    for pair in ((logits, (feature, feature)), (logits, [feature, feature]), [logits, (feature, feature)]):
        assert as_output(pair).logits is logits and as_output(pair).features == (feature, feature)
    assert as_output((logits, feature)).features == (feature,)


@pytest.mark.parametrize("raw", [{"logits": 1}, None, (1, 2, 3)])
def test_another_output_is_refused_with_the_mend(raw):
    with pytest.raises(TypeError, match=f"returned a {type(raw).__name__}; .*pass output=function_that_makes_one"):
        as_output(raw)


def test_output_of_ones_own():
    network = from_apply(
        lambda params, x: {"scores": x, "hidden": 2 * x},
        init=lambda key: {},
        output=lambda raw: ModelOutput(logits=raw["scores"], embedding=raw["hidden"]),
    )
    output, _ = network.apply({}, {}, ROWS, train=True)
    np.testing.assert_array_equal(output.embedding, 2 * ROWS)


# --- a plain function ---


def test_apply_with_trained_or_fresh_parameters():
    def apply(params, x):
        return x @ params["w"]

    trained = from_apply(apply, {"w": np.eye(3, dtype=np.float32)})
    params, state = trained.init(KEY)
    assert isinstance(params["w"], jax.Array) and state == {}
    output, after = trained.apply(params, state, ROWS, train=True, rngs=KEY, axis="data")
    np.testing.assert_array_equal(output.logits, ROWS)
    assert after == {}
    fresh = from_apply(apply, init=lambda key: {"w": jax.random.normal(key, (3, 3))})
    np.testing.assert_array_equal(fresh.init(KEY)[0]["w"], jax.random.normal(KEY, (3, 3)))
    assert from_apply(lambda params, x: x, {}).init(KEY) == ({}, {})


def test_both_or_neither_is_refused():
    for options in ({}, {"params": {}, "init": lambda key: {}}):
        with pytest.raises(ValueError, match=r"either params= .* or init="):
            from_apply(lambda params, x: x, **options)


# --- Linen ---


def test_linen_with_batch_statistics_and_dropout():
    network = from_linen(LinenNet(), ROW_SHAPE)
    params, state = network.init(KEY)
    assert set(params) == {"norm", "hidden", "classifier"} and set(state) == {"batch_stats"}
    variables = {"params": params, **state}
    output, after = network.apply(params, state, ROWS, train=False)
    np.testing.assert_array_equal(output.logits, LinenNet().apply(variables, ROWS, train=False))
    assert after is state
    output, after = network.apply(params, state, ROWS, train=True, rngs=KEY)
    expected, changed = LinenNet().apply(variables, ROWS, train=True, rngs={"dropout": KEY}, mutable=["batch_stats"])
    np.testing.assert_array_equal(output.logits, expected)
    chex.assert_trees_all_equal(after, dict(changed))
    np.testing.assert_allclose(after["batch_stats"]["norm"]["mean"], 0.1 * ROWS.mean(0), rtol=1e-5)


def test_linen_with_trained_variables():
    variables = LinenNet().init(jax.random.key(5), ROWS, train=False)
    network = from_linen(LinenNet(), ROW_SHAPE, variables=variables)
    params, state = network.init(KEY)
    chex.assert_trees_all_equal({"params": params, **state}, dict(variables))


def test_linen_without_a_train_argument():
    network = from_linen(nn.Dense(5), ROW_SHAPE)
    params, state = network.init(KEY)
    assert state == {}
    for train in (False, True):
        output, after = network.apply(params, state, ROWS, train=train)
        np.testing.assert_allclose(output.logits, dense(ROWS, params), rtol=1e-5, atol=1e-6)
        assert after == {}


def test_linen_with_a_deterministic_argument():
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x, deterministic):
            return nn.Dropout(0.5)(x, deterministic=deterministic)

    network = from_linen(WithDense(Net()), ROW_SHAPE)
    params, state = network.init(KEY)
    quiet, _ = network.apply(params, state, ROWS, train=False)
    loud, _ = network.apply(params, state, ROWS, train=True, rngs=KEY)
    assert np.any(quiet.logits != loud.logits)


class WithDense(nn.Module):
    inner: nn.Module

    @nn.compact
    def __call__(self, x, deterministic):
        return nn.Dense(5)(self.inner(x, deterministic))


# --- taps ---


class Tower(nn.Module):
    def setup(self):
        self.layers = [nn.Dense(3), nn.Dense(5)]

    def __call__(self, x):
        return self.layers[1](self.layers[0](x))


class LinenTwice(nn.Module):
    @nn.compact
    def __call__(self, x):
        shared = nn.Dense(3, name="shared")
        return Tower(name="tower")(shared(shared(x)))


def test_taps_by_path_in_nnx():
    taps = {"first": "layers/0", "inner": "layers/1/0", "tower": "tower", "head": "layers/2"}
    network = from_nnx(Nested, taps=taps)
    params, state = network.init(KEY)
    output, _ = network.apply(params, state, ROWS, train=False)
    assert set(output.taps) == set(taps)
    first = dense(ROWS, params["layers"]["0"])
    np.testing.assert_allclose(output.taps["first"], first, rtol=1e-5, atol=1e-6)
    inner = dense(np.tanh(first), params["layers"]["1"]["0"])
    np.testing.assert_allclose(output.taps["inner"], inner, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(output.taps["head"], output.logits)
    assert output.taps["tower"].shape == (4, 4)


def test_taps_by_path_in_linen():
    network = from_linen(LinenTwice(), ROW_SHAPE, taps={"a": "tower/layers_0", "b": "tower"})
    params, state = network.init(KEY)
    for train in (False, True):
        output, after = network.apply(params, state, ROWS, train=train)
        np.testing.assert_array_equal(output.taps["b"], output.logits)
        expected = dense(output.taps["a"], params["tower"]["layers_1"])
        np.testing.assert_allclose(output.logits, expected, rtol=1e-5, atol=1e-6)
        assert after == {}


def test_taps_are_added_to_those_the_model_gives():
    class Own(nnx.Module):
        def __init__(self, rngs):
            self.linear = nnx.Linear(3, 5, rngs=rngs)

        def __call__(self, x):
            return ModelOutput(logits=self.linear(x), taps={"input": x})

    network = from_nnx(Own, taps={"out": "linear"})
    output, _ = network.apply(*network.init(KEY), ROWS, train=False)
    assert set(output.taps) == {"input", "out"}


def tapped(kind, path):
    """A network with a tap, and one without."""
    if kind == "nnx":
        return from_nnx(Nested, taps={"tap": path}), from_nnx(Nested)
    return from_linen(LinenNet(), ROW_SHAPE, taps={"tap": path}), from_linen(LinenNet(), ROW_SHAPE)


@pytest.mark.parametrize(("kind", "path"), [("nnx", "layers/1/0"), ("linen", "hidden")])
def test_gradients_are_the_same_with_taps_and_flow_through_them(kind, path):
    with_tap, without = tapped(kind, path)
    params, state = with_tap.init(KEY)

    def loss(network, params):
        output, after = network.apply(params, state, ROWS, train=True, rngs=KEY)
        return jnp.sum(jnp.sin(output.logits)), after

    gradients = [
        jax.jit(jax.value_and_grad(functools.partial(loss, network), has_aux=True)) for network in (with_tap, without)
    ]
    chex.assert_trees_all_equal(*(gradient(params) for gradient in gradients))

    def of_the_tap(params):
        return jnp.sum(with_tap.apply(params, state, ROWS, train=True, rngs=KEY)[0].taps["tap"])

    gradient = jax.jit(jax.grad(of_the_tap))(params)
    tapped_layer, later = (
        (gradient["layers"]["1"]["0"], gradient["layers"]["2"])
        if kind == "nnx"
        else (gradient["hidden"], gradient["classifier"])
    )
    np.testing.assert_allclose(tapped_layer["bias"], 4.0)  # one a row
    np.testing.assert_array_equal(later["kernel"], 0.0)


@pytest.mark.parametrize(
    ("network", "near"),
    [
        (lambda: from_nnx(Nested, taps={"a": "layer/1/0"}), "No module at 'layer/1/0' in Nested; there are layers/1/0"),
        (lambda: from_nnx(Nested, taps={"a": "layers/7"}), "No module at 'layers/7' in Nested; there are layers/"),
        (lambda: from_nnx(Nested, taps={"a": "zzz"}), "No module at 'zzz' in Nested; there are layers"),
        (lambda: from_linen(LinenTwice(), ROW_SHAPE, taps={"a": "tower/layer_1"}), "there are tower/layers_1"),
        (lambda: from_linen(LinenTwice(), ROW_SHAPE, taps={"a": "zzz"}), "in the model; there are shared, tower"),
    ],
)
def test_a_wrong_path_is_answered_with_the_nearest(network, near):
    with pytest.raises(ValueError, match=near):
        output_shapes(network(), ROW_SHAPE)


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (
            lambda: from_nnx(lambda rngs: Nested(rngs, twice=True), taps={"t": "tower"}),
            "Tap 't': .* 'tower' ran 2 times",
        ),
        (lambda: from_linen(LinenTwice(), ROW_SHAPE, taps={"t": "shared"}), "Tap 't': .* 'shared' ran 2 times"),
    ],
)
def test_a_module_that_runs_twice_is_refused(network, message):
    with pytest.raises(ValueError, match=message):
        output_shapes(network(), ROW_SHAPE)


def test_a_module_that_does_not_run_is_refused():
    class Idle(nnx.Module):
        def __init__(self, rngs):
            self.idle = nnx.Linear(3, 3, rngs=rngs)

        def __call__(self, x):
            return x

    with pytest.raises(ValueError, match="'idle' ran 0 times"):
        output_shapes(from_nnx(Idle, taps={"t": "idle"}), ROW_SHAPE)


def test_taps_leave_the_users_module_alone():
    module = Nested(nnx.Rngs(0))
    network = from_nnx(module, taps={"a": "layers/0"})
    network.apply(*network.init(KEY), ROWS, train=False)
    assert type(module.layers[0]) is nnx.Linear


# --- dropout ---


class NnxDropout(nnx.Module):
    def __init__(self, rngs):
        self.first = nnx.Dropout(0.5, rngs=rngs)
        self.second = nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, x):
        return self.first(x), self.second(x)


class LinenDropout(nn.Module):
    @nn.compact
    def __call__(self, x, train):
        layer = functools.partial(nn.Dropout, 0.5, deterministic=not train)
        return layer()(nn.Dense(1, name="unused")(x)[:, :0].sum() + x), layer()(x)


def pair(raw):
    return ModelOutput(logits=raw[0], taps={"second": raw[1]})


@pytest.mark.parametrize(
    "network",
    [from_nnx(NnxDropout, output=pair), from_linen(LinenDropout(), np.ones((1, 200), np.float32), output=pair)],
    ids=["nnx", "linen"],
)
def test_dropout_follows_the_key(network):
    x = jnp.ones((1, 200))
    params, state = network.init(KEY)

    def masks(**options):
        output, _ = network.apply(params, state, x, train=True, **options)
        return np.array([output.logits, output.taps["second"]]) > 0

    same, again, other = masks(rngs=KEY), masks(rngs=KEY), masks(rngs=jax.random.key(1))
    np.testing.assert_array_equal(same, again)
    assert 50 < np.sum(same[0] != other[0]) < 150
    assert 50 < np.sum(same[0] != same[1]) < 150, "two layers draw the same mask"
    assert 50 < np.sum(same[0]) < 150
    for key in (None, KEY, jax.random.key(1)):
        output, _ = network.apply(params, state, x, train=False, rngs=key)
        np.testing.assert_array_equal(output.logits, x)
    assert "dropout" not in str(jax.tree.structure((params, state))).lower()


@pytest.mark.parametrize(
    "network",
    [from_nnx(NnxDropout, output=pair), from_linen(LinenDropout(), np.ones((1, 200), np.float32), output=pair)],
    ids=["nnx", "linen"],
)
def test_devices_drop_different_values(network):
    params, state = network.init(KEY)
    apply = jax.pmap(lambda x: network.apply(params, state, x, train=True, rngs=KEY, axis="data")[0].logits > 0, "data")
    kept = np.asarray(apply(jnp.ones((DEVICES, 1, 200))))
    assert len({row.tobytes() for row in kept}) == DEVICES


# --- BatchNorm ---


class NnxNormed(nnx.Module):
    def __init__(self, rngs):
        self.norm = nnx.BatchNorm(3, momentum=0.9, rngs=rngs)
        self.classifier = nnx.Linear(3, 5, rngs=rngs)

    def __call__(self, x):
        return self.classifier(jnp.tanh(self.norm(x)))


class LinenNormed(nn.Module):
    axis_name: str | None = "built with another axis"

    @nn.compact
    def __call__(self, x, train):
        norm = nn.BatchNorm(use_running_average=not train, momentum=0.9, axis_name=self.axis_name, name="norm")
        return nn.Dense(5, name="classifier")(jnp.tanh(norm(x)))


def normed(kind):
    """The network, and the same float64 parameters and statistics for either kind."""
    rng = np.random.default_rng(3)
    params = {
        "norm": {"scale": 1 + rng.random(3), "bias": rng.standard_normal(3)},
        "classifier": {"kernel": rng.standard_normal((3, 5)), "bias": rng.standard_normal(5)},
    }
    norm = {"norm": {"mean": rng.standard_normal(3), "var": 1 + rng.random(3)}}
    if kind == "nnx":
        return from_nnx(NnxNormed), params, norm
    return from_linen(LinenNormed(), ROW_SHAPE), params, {"batch_stats": norm}


@functools.cache
def normed_step(kind, how):
    """`(logits, gradients, statistics)` of a training step on 16 rows, in float64."""
    network, params, state = normed(kind)
    x = 3 * np.random.default_rng(4).standard_normal((2 * DEVICES, 3)) + 1
    pull = np.random.default_rng(5).standard_normal((2 * DEVICES, 5))

    def step(params, x, pull, axis=None):
        def loss(params):
            output, after = network.apply(params, state, x, train=True, axis=axis)
            return jnp.sum(pull * output.logits), (output.logits, after)

        gradients, (logits, after) = jax.grad(loss, has_aux=True)(params)
        gradients = gradients if axis is None else jax.lax.psum(gradients, axis)
        after = after.get("batch_stats", after)
        return logits, (gradients, after)

    with jax.enable_x64(True):
        if how == "one device":
            return jax.device_get(jax.jit(step)(params, x, pull))
        none, rows = PartitionSpec(), PartitionSpec("data")
        mapped = jax.shard_map(
            functools.partial(step, axis="data"), mesh=make_runner().mesh,
            in_specs=(none, rows, rows), out_specs=(rows, none), check_vma=False,
        )  # fmt: skip
        return jax.device_get(jax.jit(mapped)(params, x, pull))


@pytest.mark.parametrize("other", [("nnx", "eight devices"), ("linen", "one device"), ("linen", "eight devices")])
def test_batch_statistics_are_those_of_the_whole_batch(other):
    """A stock `nnx.BatchNorm` and a Linen one give the same outputs, gradients and statistics on one device and eight."""
    chex.assert_trees_all_close(normed_step(*other), normed_step("nnx", "one device"), rtol=1e-10, atol=1e-12)


def test_the_comparison_is_of_nontrivial_numbers():
    logits, (gradients, after) = normed_step("nnx", "one device")
    assert min(np.abs(leaf).max() for leaf in jax.tree.leaves(gradients)) > 1e-2
    x = 3 * np.random.default_rng(4).standard_normal((2 * DEVICES, 3)) + 1
    _, _, state = normed("nnx")
    np.testing.assert_allclose(after["norm"]["mean"], 0.9 * state["norm"]["mean"] + 0.1 * x.mean(0), rtol=1e-10)
    assert logits.std() > 0.1


@pytest.mark.parametrize("kind", ["nnx", "linen"])
def test_statistics_change_only_while_training(kind):
    network = normed(kind)[0]
    params, state = network.init(KEY)
    output, after = network.apply(params, state, ROWS, train=False)
    assert after is state
    chex.assert_trees_all_equal(network.apply(params, state, ROWS, train=False)[0], output)
    trained, after = network.apply(params, state, ROWS, train=True)
    assert np.abs(trained.logits - output.logits).max() > 1e-3
    assert all(np.all(a != b) for a, b in zip(jax.tree.leaves(after), jax.tree.leaves(state), strict=True))


# --- shapes ---


def test_shapes_compute_nothing():
    """A model of 4 TB passes, and so does an initialiser that cannot run."""

    class Huge(nnx.Module):
        def __init__(self, rngs):
            self.linear = nnx.Linear(1_000_000, 1_000_000, rngs=rngs)

        def __call__(self, x):
            return self.linear(x), (x[:, None, :7],)

    shapes = output_shapes(from_nnx(Huge), jax.ShapeDtypeStruct((2, 1_000_000), jnp.float32))
    assert shapes.logits.shape == (2, 1_000_000) and shapes.features[0].shape == (2, 1, 7)
    huge = from_linen(nn.Dense(1_000_000), jax.ShapeDtypeStruct((2, 1_000_000), jnp.bfloat16))
    assert output_shapes(huge, jax.ShapeDtypeStruct((2, 1_000_000), jnp.bfloat16)).logits.shape == (2, 1_000_000)


def test_a_module_is_read_once_and_made_once_a_key():
    """`functionalise` traces a constructor to learn its structure, and runs it only in `init`."""
    made = []

    def build(rngs):
        module = nnx.Linear(3, 5, rngs=rngs)
        made.append(isinstance(module.kernel[...], jax.core.Tracer))
        return module

    network = functionalise(build)
    assert made == [True]
    network.init(KEY)
    assert made == [True, False]


def test_linen_modules_with_other_names_for_training_inputs_and_streams():
    class Named(nn.Module):
        @nn.compact
        def __call__(self, inputs, training=False):
            noise = jax.random.normal(self.make_rng("noise"), (1, 3)) if training else jnp.zeros((1, 3))
            return nn.Dense(3)(inputs["a"]) + nn.Dense(3)(inputs["b"]) + noise

    inputs = {"a": jnp.ones((2, 4)), "b": jnp.ones((2, 5))}
    network = from_linen(Named(), inputs)
    params, state = network.init(jax.random.key(0))
    still, _ = network.apply(params, state, inputs, train=False)
    moved, _ = network.apply(params, state, inputs, train=True, rngs=jax.random.key(1))
    assert still.logits.shape == (2, 3) and not jnp.allclose(still.logits, moved.logits)

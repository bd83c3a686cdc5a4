"""NNX models as other people write them: arrays as attributes, streams in the call, layers in loops, shared and few weights."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from kdjax.models import from_nnx, module_paths, output_shapes

X = np.random.default_rng(0).standard_normal((2, 4)).astype(np.float32)
KEY = jax.random.key(0)


class Constants(nnx.Module):
    """Arrays that are plain attributes, here, in a list, and in a submodule."""

    def __init__(self, rngs, inner=None):
        self.linear = nnx.Linear(4, 4, rngs=rngs)
        self.mean, self.std = jnp.ones(4), np.full(4, 2.0, np.float32)
        self.tables = nnx.List([jnp.arange(4)])
        self.inner = inner

    def __call__(self, x):
        y = self.linear((x - self.mean[None]) / self.std[None]) + self.tables[0][None]
        return y if self.inner is None else self.inner(y)


@pytest.mark.parametrize("at_hand", [True, False])
def test_plain_arrays_are_state(at_hand):
    def build(rngs):
        return Constants(rngs, Constants(rngs))

    network = from_nnx(build(nnx.Rngs(KEY)) if at_hand else build)
    params, state = jax.jit(network.init)(KEY)
    assert set(params) == {"linear", "inner"} and set(params["inner"]) == {"linear"}
    constants = {"mean": np.ones(4), "std": np.full(4, 2.0), "tables": {"0": np.arange(4)}}
    chex.assert_trees_all_equal(state, {**constants, "inner": constants})
    for train in (True, False):
        output, after = network.apply(params, state, X, train=train)
        np.testing.assert_allclose(output.logits, build(nnx.Rngs(KEY))(X), rtol=1e-5)
        chex.assert_trees_all_equal(after, state)


class Streams(nnx.Module):
    """Both keyword-only: the stream of the constructor, and that of the call."""

    def __init__(self, width=4, *, rngs):
        self.linear, self.drop = nnx.Linear(4, width, rngs=rngs), nnx.Dropout(0.5)

    def __call__(self, x, *, rngs):
        return self.drop(self.linear(x), rngs=rngs)


def test_a_stream_of_the_call_is_the_steps():
    network = from_nnx(Streams)
    params, state = network.init(KEY)

    def said(key, train=True):
        return np.asarray(network.apply(params, state, X, train=train, rngs=key)[0].logits)

    np.testing.assert_array_equal(said(KEY), said(KEY))
    assert np.any(said(KEY) != said(jax.random.key(1))) and np.any(said(KEY) == 0)
    np.testing.assert_array_equal(said(KEY, train=False), said(None, train=False))
    assert from_nnx(functools.partial(Streams, 3)).init(KEY)[0]["linear"]["kernel"].shape == (4, 3)


def test_a_constructor_that_wants_more_is_refused():
    class Wants(nnx.Module):
        def __init__(self, width, rngs):
            pass

    with pytest.raises(
        TypeError, match=r"Wants cannot be made from rngs alone \(missing .*'width'\); pass lambda rngs: Wants"
    ):
        from_nnx(Wants)


def test_other_kinds_of_model_are_refused():
    from flax import linen

    class Holder:
        module = linen.Dense(3)

    for model in (linen.Dense(3), Holder(), 3):
        with pytest.raises(TypeError, match="from_nnx takes an nnx"):
            from_nnx(model)


class PlainLists(nnx.Module, pytree=False):
    def __init__(self, rngs):
        self.layers = [nnx.Linear(4, 4, rngs=rngs), nnx.Linear(4, 4, rngs=rngs)]
        self.heads = {"a": nnx.Linear(4, 3, rngs=rngs)}

    def __call__(self, x):
        for layer in self.layers:
            x = layer(x)
        return self.heads["a"](x)


def test_plain_lists_and_dicts_of_modules():
    module = PlainLists(nnx.Rngs(0))
    network = from_nnx(module, features=("layers/0", "layers/1"), embedding="heads/a:input")
    params, state = network.init(None)
    output, _ = network.apply(params, state, X, train=False)
    np.testing.assert_allclose(output.logits, module(X), rtol=1e-6)
    np.testing.assert_allclose(output.features[0], module.layers[0](X), rtol=1e-6)
    np.testing.assert_array_equal(output.features[1], output.embedding)


class Tied(nnx.Module):
    def __init__(self, rngs):
        self.first = nnx.Linear(4, 4, rngs=rngs)
        self.second = nnx.Linear(4, 4, rngs=rngs)
        self.second.kernel = self.first.kernel

    def __call__(self, x):
        return self.second(self.first(x))


def test_a_shared_parameter_is_one_with_one_gradient():
    network = from_nnx(Tied)
    params, state = network.init(KEY)
    assert set(params["second"]) == {"bias"}
    gradient = jax.grad(lambda p: network.apply(p, state, X, train=True)[0].logits.sum())(params)
    kernel, ones = params["first"]["kernel"], np.ones((2, 4), np.float32)
    both = X.T @ (ones @ kernel.T) + (X @ kernel).T @ ones
    np.testing.assert_allclose(gradient["first"]["kernel"], both, rtol=1e-4, atol=1e-5)


class Block(nnx.Module):
    def __init__(self, rngs):
        self.linear, self.drop = nnx.Linear(4, 4, rngs=rngs), nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, x):
        return jnp.tanh(self.drop(self.linear(x)))


class Scanned(nnx.Module):
    """Three layers under `nnx.scan`, and one that is computed again in the backward pass."""

    def __init__(self, rngs):
        make = nnx.vmap(Block, in_axes=(0,), out_axes=0)
        self.layers = nnx.split_rngs(splits=3)(make)(rngs)
        self.last = Block(rngs)

    def __call__(self, x):
        x = nnx.scan(lambda layer, x: layer(x), in_axes=(0, nnx.Carry), out_axes=nnx.Carry)(self.layers, x)
        return nnx.remat(lambda block, x: block(x))(self.last, x)


def test_layers_in_a_loop_are_stages_and_train():
    network = from_nnx(Scanned, features="layers", embedding="last/linear", preactivations="last:input")
    params, state = network.init(KEY)
    assert params["layers"]["linear"]["kernel"].shape == (3, 4, 4)

    @jax.jit
    def step(params, key):
        def loss(params):
            output, _ = network.apply(params, state, X, train=True, rngs=key)
            return jnp.sum(output.features[1] * 2), output

        return jax.grad(loss, has_aux=True)(params)

    gradient, output = step(params, KEY)
    assert [x.shape for x in output.features] == [(2, 4)] * 3
    np.testing.assert_array_equal(output.features[2], output.preactivations[0])
    assert np.any(output.features[0] != step(params, jax.random.key(1))[1].features[0]), "dropout under a loop"
    reached = np.abs(gradient["layers"]["linear"]["kernel"]).max((1, 2)) > 0
    np.testing.assert_array_equal(reached, [True, True, False])
    layer = jax.tree.map(lambda x: np.asarray(x[0]), params["layers"]["linear"])
    still, _ = network.apply(params, state, X, train=False)
    np.testing.assert_allclose(still.features[0], np.tanh(X @ layer["kernel"] + layer["bias"]), rtol=1e-5)
    assert module_paths(network, X) == {
        "layers/linear": (2, 4), "layers/drop": (2, 4), "layers": (2, 4), "last/linear": (2, 4), "last/drop": (2, 4),
        "last": (2, 4),
    }  # fmt: skip


class Noise(nnx.Variable):
    pass


class Adapted(nnx.Module):
    def __init__(self, rngs):
        self.linear = nnx.Linear(4, 4, rngs=rngs)
        self.lora = nnx.LoRA(4, 2, 4, base_module=self.linear, rngs=rngs)
        self.scale = Noise(jnp.ones(()))

    def __call__(self, x):
        return self.scale[...] * self.lora(x)


def test_which_variables_are_trained():
    all_of, few = from_nnx(Adapted), from_nnx(Adapted, trainable=nnx.LoRAParam)
    params, state = all_of.init(KEY)
    assert set(params["lora"]) >= {"lora_a", "lora_b"} and set(state) == {"scale"}
    params, state = few.init(KEY)
    assert jax.tree.structure(params) == jax.tree.structure({"lora": {"lora_a": 0, "lora_b": 0}})
    assert state["linear"]["kernel"].shape == (4, 4) and state["scale"] == 1
    output, after = few.apply(params, state, X, train=True)
    np.testing.assert_allclose(output.logits, Adapted(nnx.Rngs(KEY))(X), rtol=1e-5)
    chex.assert_trees_all_equal(after, state)
    with pytest.raises(ValueError, match="selects no variable"):
        from_nnx(Block, trainable=nnx.LoRAParam)


def test_partitioned_parameters_are_arrays():
    class Partitioned(nnx.Module):
        def __init__(self, rngs):
            kernel = nnx.with_partitioning(nnx.initializers.ones_init(), (None, "model"))
            self.linear = nnx.Linear(4, 3, kernel_init=kernel, rngs=rngs)

        def __call__(self, x):
            return self.linear(x)

    with jax.set_mesh(jax.make_mesh((1, 1), ("data", "model"), devices=jax.devices()[:1])):
        at_hand = Partitioned(nnx.Rngs(0))
    for network in (from_nnx(Partitioned), from_nnx(at_hand)):
        params, state = network.init(KEY)
        output, _ = network.apply(params, state, X, train=True)
        np.testing.assert_allclose(output.logits, np.repeat(X.sum(1, keepdims=True), 3, 1), rtol=1e-5)


def test_what_an_earlier_call_noted_is_no_state():
    class Sowing(nnx.Module):
        def __init__(self, rngs):
            self.linear = nnx.Linear(4, 3, rngs=rngs)

        def __call__(self, x):
            self.noted = nnx.Intermediate((*(self.noted.get_value() if hasattr(self, "noted") else ()), x))
            return self.linear(x)

    module = Sowing(nnx.Rngs(0))
    module(X)
    network = from_nnx(module)
    params, state = network.init(KEY)
    assert state == {} and network.apply(params, state, X, train=True)[1] == {}
    assert len(module.noted.get_value()) == 1, "the user's module is left as it is"


def test_several_inputs():
    class Two(nnx.Module):
        def __init__(self, rngs):
            self.linear = nnx.Linear(4, 3, rngs=rngs)

        def __call__(self, ids, mask, train=False):
            return self.linear(ids * mask) + train

    inputs = {"ids": X, "mask": np.ones_like(X)}
    network = from_nnx(Two, call=lambda module, inputs, **mode: module(inputs["ids"], inputs["mask"], **mode))
    params, state = network.init(KEY)
    loud, quiet = (network.apply(params, state, inputs, train=train)[0].logits for train in (True, False))
    np.testing.assert_allclose(loud, quiet + 1, rtol=1e-5)
    assert output_shapes(network, inputs).logits.shape == (2, 3)


def test_parts_are_told_that_they_do_not_train():
    class Told(nnx.Module):
        def __init__(self, rngs):
            self.training = True

        def head(self, x, is_train, *, rngs):
            return x + is_train + self.training + (rngs is not None)

    network = from_nnx(Told, parts=("head",))
    np.testing.assert_array_equal(network.parts["head"](*network.init(KEY), X), X)


def test_parts_are_methods_or_submodules():
    network = from_nnx(PlainLists, parts={"classify": "heads/a", "first": "layers/0"})
    params, state = network.init(KEY)
    head = params["heads"]["a"]
    said = network.parts["classify"](params, state, X)
    np.testing.assert_allclose(said, X @ np.asarray(head["kernel"]) + np.asarray(head["bias"]), rtol=1e-5)
    with pytest.raises(ValueError, match="No module at 'heads/b' in PlainLists; there are heads/a"):
        from_nnx(PlainLists, parts=("heads/b",)).parts["heads/b"](params, state, X)

"""Linen modules as other people write them: partitioned parameters, layers in loops, several inputs, losses noted down."""

import functools

import chex
import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from kdjax.models import from_linen, module_paths, output_shapes

X = np.random.default_rng(0).standard_normal((2, 4)).astype(np.float32)
KEY = jax.random.key(0)


class Boxed(nn.Module):
    """As MaxText and Flax's lm1b: parameters in boxes that name their axes, layers under scan and remat, a loss noted down."""

    layers: int = 3

    @nn.compact
    def __call__(self, x, deterministic=True):
        init = nn.with_logical_partitioning(nn.initializers.lecun_normal(), ("embed", "mlp"))
        x = nn.Dense(4, kernel_init=nn.with_partitioning(nn.initializers.ones, (None, "model")), name="first")(x)

        class Layer(nn.Module):
            @nn.compact
            def __call__(self, x, _):
                y = nn.Dense(4, kernel_init=init, name="dense")(x)
                self.sow("losses", "balance", jnp.mean(y))
                self.sow("intermediates", "size", jnp.mean(y**2))
                return jnp.tanh(y), None

        scan = nn.scan(
            nn.remat(Layer), variable_axes={"params": 0, "intermediates": 0, "losses": 0}, split_rngs={"params": True},
            length=self.layers, metadata_params={nn.PARTITION_NAME: "layers"},
        )  # fmt: skip
        x, _ = scan(name="stack")(x, None)
        x = nn.Dropout(0.5)(x, deterministic=deterministic)
        return nn.Dense(3, name="head")(x)


@functools.cache
def boxed():
    network = from_linen(
        Boxed(), X, features="stack/dense", embedding="head:input", taps={"head": "head"}, losses=("size",)
    )
    return network, network.init(KEY)


def test_boxes_are_opened():
    _network, (params, state) = boxed()
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(params)) and state == {}
    np.testing.assert_array_equal(params["first"]["kernel"], 1)
    assert params["stack"]["dense"]["kernel"].shape == (3, 4, 4)
    variables = flax.core.freeze(Boxed().init({"params": KEY}, X))
    given, _ = from_linen(Boxed(), X, variables=variables).init(None)
    assert isinstance(given, dict) and isinstance(given["stack"], dict)
    chex.assert_trees_all_equal_shapes(given, params)


def test_layers_in_a_loop_and_recomputed_are_stages_and_their_losses_are_added():
    network, (params, state) = boxed()

    @jax.jit
    def step(params):
        def loss(params):
            output, _ = network.apply(params, state, X, train=False)
            return output.losses["balance"], output

        return jax.grad(loss, has_aux=True)(params)

    gradient, output = step(params)
    assert [x.shape for x in output.features] == [(2, 4)] * 3
    x = X @ np.asarray(params["first"]["kernel"])
    for feature, kernel in zip(output.features, np.asarray(params["stack"]["dense"]["kernel"]), strict=True):
        np.testing.assert_allclose(feature, x @ kernel, rtol=1e-4, atol=1e-5)
        x = np.tanh(feature)
    np.testing.assert_allclose(output.embedding, x, rtol=1e-6)
    np.testing.assert_array_equal(output.taps["head"], output.logits)
    np.testing.assert_allclose(output.losses["balance"], sum(np.mean(f) for f in output.features), rtol=1e-5)
    np.testing.assert_allclose(output.losses["size"], sum(np.mean(f**2) for f in output.features), rtol=1e-5)
    np.testing.assert_allclose(gradient["stack"]["dense"]["bias"][2], 0.25, rtol=1e-5)  # mean over four


def test_paths_are_listed_with_shapes_in_the_order_of_running():
    network, _ = boxed()
    paths = module_paths(network, X)
    assert list(paths) == ["first", "stack/dense", "stack", "Dropout_0", "head"]
    assert paths["head"] == (2, 3)


def test_a_loss_that_is_not_noted_is_refused():
    with pytest.raises(ValueError, match="losses= names 'size', and Dense notes nothing of that name"):
        output_shapes(from_linen(nn.Dense(3), X, losses=("size",)), X)


def test_a_loop_that_hands_nothing_out_is_refused():
    class Layer(nn.Module):
        @nn.compact
        def __call__(self, x, _):
            return nn.Dense(4, name="dense")(x), None

    class Looped(nn.Module):
        @nn.compact
        def __call__(self, x):
            scan = nn.scan(Layer, variable_axes={"params": 0}, split_rngs={"params": True}, length=2)
            return scan(name="stack")(x, None)[0]

    with pytest.raises(
        ValueError, match=r"features='stack/dense': the module at 'stack/dense' ran 0 times .* in a loop that"
    ):
        output_shapes(from_linen(Looped(), X, features="stack/dense"), X)


def test_several_inputs_and_a_method_as_a_part():
    class Two(nn.Module):
        def setup(self):
            self.head, self.drop = nn.Dense(3), nn.Dropout(0.5)

        def __call__(self, ids, mask, train=False):
            return self.classify(self.drop(ids * mask, deterministic=not train), train)

        def classify(self, x, train):
            return self.head(self.drop(x, deterministic=not train))

    inputs = {"ids": X, "mask": np.ones_like(X)}
    call = lambda module, inputs, **mode: module(inputs["ids"], inputs["mask"], **mode)
    network = from_linen(Two(), inputs, call=call, parts=("classify", "head"))
    params, state = network.init(KEY)
    quiet, loud = (network.apply(params, state, inputs, train=train, rngs=KEY)[0].logits for train in (False, True))
    assert np.any(quiet != loud)
    for part in network.parts.values():
        np.testing.assert_array_equal(part(params, state, X), quiet)


class Head(nn.Module):
    @nn.compact
    def __call__(self, x, train):
        return nn.Dense(3)(nn.Dropout(0.5)(nn.BatchNorm()(x), deterministic=not train))


class Compact(nn.Module):
    @nn.compact
    def __call__(self, x, train):
        x, _ = nn.scan(Layer, variable_axes={"params": 0}, split_rngs={"params": True}, length=2)(name="stack")(x, None)
        return Head(name="head")(nn.relu(x), train)


class Layer(nn.Module):
    @nn.compact
    def __call__(self, x, _):
        return nn.Dense(4)(x), None


def test_a_part_of_a_compact_module():
    parts = {"classify": "head", "last": "head/Dense_0", "looped": "stack/Dense_0", "wrong": "heat"}
    network = from_linen(Compact(), X, parts=parts, embedding="head:input", taps={"input": "head/Dense_0:input"})
    params, state = network.init(KEY)
    state = jax.tree.map(lambda x: x + 0.5, state)
    output, _ = network.apply(params, state, X, train=False)
    for part, given in (("classify", output.embedding), ("last", output.taps["input"])):
        np.testing.assert_allclose(network.parts[part](params, state, given), output.logits, rtol=1e-6)
    with pytest.raises(ValueError, match="No module at 'heat' in Compact; there are head"):
        network.parts["wrong"](params, state, X)
    with pytest.raises(ValueError, match="The part at 'stack/Dense_0' is one of layers in a loop"):
        network.parts["looped"](params, state, X)


def test_what_is_no_module_is_refused():
    class HuggingFace:
        module = nn.Dense(3)

    with pytest.raises(
        TypeError, match=r"not a HuggingFace; give its \.module, and variables=\{'params': its \.params\}"
    ):
        from_linen(HuggingFace(), X)
    for other in (nn.Dense, nnx.Linear(2, 2, rngs=nnx.Rngs(0))):
        with pytest.raises(TypeError, match=r"not a .*; give an instance, or use from_nnx"):
            from_linen(other, X)
    with pytest.raises(ValueError, match=r"variables has the entries bias, kernel; give \{'params'"):
        from_linen(nn.Dense(3), X, variables=nn.Dense(3).init(KEY, X)["params"])


def test_a_bound_module_brings_its_variables():
    """Unless others are given."""
    variables = nn.Dense(3).init(KEY, X)
    bound, none = nn.Dense(3).bind(variables), {"params": jax.tree.map(jnp.zeros_like, variables["params"])}
    for network, wanted in ((from_linen(bound, X), variables), (from_linen(bound, X, variables=none), none)):
        said = network.apply(*network.init(jax.random.key(5)), X, train=False)[0].logits
        np.testing.assert_allclose(said, nn.Dense(3).apply(wanted, X), rtol=1e-6)


def test_variables_that_lack_a_collection_are_refused():
    class Normed(nn.Module):
        @nn.compact
        def __call__(self, x, train):
            return nn.BatchNorm(use_running_average=not train)(nn.Dense(3)(x))

    given = {"params": Normed().init(KEY, X, False)["params"]}
    with pytest.raises(
        ValueError, match="Normed reads variables that are not among those given, params; give all of them"
    ):
        output_shapes(from_linen(Normed(), X, variables=given), X)


def test_random_numbers_in_evaluation_are_refused():
    class Noisy(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dense(3)(x + jax.random.normal(self.make_rng("noise"), x.shape))

    with pytest.raises(ValueError, match="Noisy draws random numbers in evaluation, where there are none"):
        output_shapes(from_linen(Noisy(), X), X)

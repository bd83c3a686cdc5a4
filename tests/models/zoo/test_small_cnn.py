"""SmallCNN: shapes, growth with width, and that it learns."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from sklearn.datasets import load_digits

from kdjax.models import zoo
from kdjax.models.functional import functionalise
from kdjax.models.zoo.small_cnn import SmallCNN


def shapes(size, **options):
    module = nnx.eval_shape(lambda: SmallCNN(10, rngs=nnx.Rngs(0), **options))
    x = jax.ShapeDtypeStruct((2, size, size, options.get("in_channels", 1)), jnp.float32)
    return module, nnx.eval_shape(lambda module, x: module(x), module, x)


def count(module):
    return sum(v.size for v in jax.tree.leaves(nnx.state(module, nnx.Param)))


@pytest.mark.parametrize(("size", "sides"), [(28, [14, 7, 4]), (8, [4, 2, 1]), (1, [1, 1, 1]), (33, [17, 9, 5])])
def test_shapes(size, sides):
    _, output = shapes(size, width=8)
    assert output.logits.shape == (2, 10)
    assert output.embedding.shape == (2, 32)
    expected = [(2, side, side, width) for side, width in zip(sides, [8, 16, 32], strict=True)]
    assert [f.shape for f in output.features] == expected
    assert [f.shape for f in output.preactivations] == expected


def test_parameters_grow_with_width():
    def by_hand(width, inputs=1):
        widths = [inputs, width, 2 * width, 4 * width]
        convolutions = sum(9 * a * b + 9 * b * b + 4 * b for a, b in itertools.pairwise(widths))
        return convolutions + (4 * width + 1) * 10

    for width in (8, 16, 64):
        assert count(shapes(28, width=width)[0]) == by_hand(width)
    assert count(shapes(28, width=8, in_channels=3)[0]) == by_hand(8, 3)


def test_convolutions_a_stage():
    module, output = shapes(28, width=8, convs_per_stage=1)
    assert count(module) == 6274
    assert [f.shape for f in output.features] == [f.shape for f in shapes(28, width=8)[1].features]


def test_depth_is_the_number_of_stages():
    module, output = shapes(32, width=4, depth=4)
    assert [f.shape[1:] for f in output.features] == [(16, 16, 4), (8, 8, 8), (4, 4, 16), (2, 2, 32)]
    assert module.classifier.kernel.shape == (32, 10)
    with pytest.raises(ValueError, match="depth=0"):
        SmallCNN(10, depth=0, rngs=nnx.Rngs(0))


def test_features_are_activated_preactivations_and_classify_reads_the_embedding():
    module = SmallCNN(5, width=4, rngs=nnx.Rngs(0))
    module.eval()
    output = module(jax.random.normal(jax.random.key(1), (2, 8, 8, 1)))
    for feature, preactivation in zip(output.features, output.preactivations, strict=True):
        np.testing.assert_array_equal(feature, np.maximum(preactivation, 0))
    np.testing.assert_allclose(output.embedding, np.mean(output.features[-1], (1, 2)), rtol=1e-6)
    np.testing.assert_array_equal(module.classify(output.embedding), output.logits)


@pytest.mark.parametrize("convs", [1, 2])
def test_norms_are_those_before_the_last_activation_of_each_stage(convs):
    """Of a BatchNorm in training mode the deviation over the batch is its scale, and the mean its bias."""
    module = SmallCNN(5, width=4, convs_per_stage=convs, rngs=nnx.Rngs(0))
    for i, stage in enumerate(module.stages):
        for j, layer in enumerate(stage):
            layer.norm.scale[...] = -(1.0 + i + 3 * j + jnp.arange(4.0 * 2**i) / 100)
            layer.norm.bias[...] = 10.0 * i + jnp.arange(4.0 * 2**i)
    output = module(jax.random.normal(jax.random.key(1), (4, 16, 16, 1)))
    assert len(module.norms()) == len(output.preactivations) == 3
    for (scale, bias), preactivation in zip(module.norms(), output.preactivations, strict=True):
        np.testing.assert_allclose(np.std(preactivation, (0, 1, 2)), -scale, rtol=1e-2)
        np.testing.assert_allclose(np.mean(preactivation, (0, 1, 2)), bias, atol=1e-2)


def test_half_precision_runs_in_half_precision():
    network = functionalise(lambda rngs: zoo.build("small_cnn", num_classes=3, in_channels=1, rngs=rngs, width=4))
    params, state = jax.jit(network.init)(jax.random.key(0))
    half = jax.tree.map(lambda v: v.astype(jnp.bfloat16), params)
    x = jnp.ones((2, 8, 8, 1), jnp.bfloat16)
    output, after = network.call(half, state, lambda module: module(x), train=True)
    assert {v.dtype for v in jax.tree.leaves(output)} == {jnp.dtype(jnp.bfloat16)}
    assert {v.dtype for v in jax.tree.leaves(after)} == {jnp.dtype(jnp.float32)}


def test_learns_digits():
    """Width 8 (18,482 parameters) reads held-out 8x8 digits after 100 small steps."""
    images, labels = load_digits(return_X_y=True)
    images = jnp.asarray(images.reshape(-1, 8, 8, 1) / 8 - 1, jnp.float32)
    labels = jnp.asarray(labels)
    network = functionalise(lambda rngs: SmallCNN(10, width=8, rngs=rngs))
    params, state = jax.jit(network.init)(jax.random.key(0))
    tx = optax.adam(1e-2)

    @jax.jit
    def step(params, state, opt_state, rows):
        def loss(params):
            output, new_state = network.call(params, state, lambda m: m(images[rows]), train=True)
            return optax.softmax_cross_entropy_with_integer_labels(output.logits, labels[rows]).mean(), new_state

        gradients, state = jax.grad(loss, has_aux=True)(params)
        updates, opt_state = tx.update(gradients, opt_state)
        return optax.apply_updates(params, updates), state, opt_state

    opt_state = tx.init(params)
    rng = np.random.default_rng(0)
    for _ in range(100):
        params, state, opt_state = step(params, state, opt_state, rng.integers(0, 1400, 64))
    output, _ = network.call(params, state, lambda m: m(images[1400:]), train=False)
    accuracy = np.mean(np.argmax(output.logits, 1) == labels[1400:])
    assert accuracy > 0.9

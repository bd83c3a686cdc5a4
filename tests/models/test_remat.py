"""Blocks computed a second time in the backward pass: the same values, with fewer activations kept."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from kdjax.models import Freezer, from_nnx, in_microbatches, zoo
from kdjax.models.rematerialization import Recomputable
from tests.losses.computing import draw

ROWS, SIZE = 16, 8
IMAGES = draw(600, ROWS, SIZE, SIZE, 3, scale=1.0)
TAPS = {"block": "stages/0/0"}
SHAPES = jax.ShapeDtypeStruct(IMAGES.shape, jnp.float32)


def network(remat, name="resnet14", taps=TAPS, **options):
    options = {"num_classes": 5, "in_channels": 3, "width": 2, "remat": remat} | options
    return from_nnx(lambda rngs: zoo.build(name, rngs=rngs, **options), taps=taps, parts=("classify", "norms"))


def loss(network, params, state, images, axis=None):
    """Of all that a network says; the outputs and the state beside it."""
    output, state = network.apply(params, state, images, train=True, axis=axis)
    return sum(jnp.mean(jnp.sin(leaf)) for leaf in jax.tree.leaves(output)), (output, state)


def both(run, name):
    """What `run(network)` gives with and without."""
    return [jax.device_get(run(network(remat, name))) for remat in (True, False)]


def gradient(network, *, wrap=lambda network: network):
    params, state = jax.jit(network.init)(jax.random.key(0))
    return jax.jit(jax.value_and_grad(functools.partial(loss, wrap(network)), has_aux=True))(params, state, IMAGES)


def alike(ours, theirs):
    """To rounding, next to the largest entry of each array."""
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5 * np.abs(b).max() + 1e-12), ours, theirs)


@pytest.mark.parametrize("name", ["resnet14", "small_cnn", "wrn_16_2"])
def test_outputs_gradients_and_statistics_are_the_same(name):
    ours, theirs = both(gradient, name)
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    alike(ours, theirs)
    (_, (_, after)), _ = ours
    before = network(True, name).init(jax.random.key(0))[1]
    assert all((x != y).all() for x, y in zip(*map(jax.tree.leaves, (before, after)), strict=True))


def test_pieces_of_a_batch_are_computed_again_too():
    in_pieces = functools.partial(gradient, wrap=lambda network: in_microbatches(network, 2))
    alike(*both(in_pieces, "resnet8"))


def test_eight_devices_are_one():
    """The statistics of all devices are taken a second time too."""

    def run(network):
        params, state = jax.jit(network.init)(jax.random.key(0))
        split = IMAGES.reshape(8, -1, *IMAGES.shape[1:])
        by_params = jax.value_and_grad(lambda p, x: loss(network, p, state, x, "data"), has_aux=True)
        return jax.pmap(by_params, axis_name="data", in_axes=(None, 0))(params, split)

    alike(*both(run, "resnet8"))


def test_in_evaluation_nothing_changes():
    def run(network):
        params, state = network.init(jax.random.key(0))
        frozen = Freezer(network, SHAPES)
        variables = frozen.convert(params, state)
        return [
            jax.jit(functools.partial(n.apply, train=False))(*given, IMAGES)[0]
            for n, given in ((network, (params, state)), (frozen.network, variables))
        ]

    (ours, frozen), (theirs, _) = both(run, "resnet8")
    alike(ours, theirs)
    alike(frozen, theirs)


def kept(network):
    """Bytes kept from the forward pass for the gradient, parameters included."""
    params, state = jax.eval_shape(network.init, jax.random.key(0))
    back = jax.eval_shape(lambda p, s, x: jax.vjp(lambda q: loss(network, q, s, x)[0], p)[1], params, state, SHAPES)
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(back))


def temporaries(network):
    """Bytes of a compiled gradient's temporaries. XLA for the CPU drops the barriers that keep the second run apart from the
    first, and then takes both for one; this has it leave them."""
    params, state = jax.eval_shape(network.init, jax.random.key(0))
    step = jax.jit(jax.grad(functools.partial(loss, network), has_aux=True)).lower(params, state, SHAPES)
    options = {"xla_disable_hlo_passes": "cse_barrier_expander"}
    return step.compile(compiler_options=options).memory_analysis().temp_size_in_bytes


def test_less_is_kept_for_the_gradient():
    with_remat, without = (kept(network(remat, "resnet20", taps={})) for remat in (True, False))
    assert with_remat < without / 2


def test_a_compiled_step_needs_less_memory():
    with_remat, without = (temporaries(network(remat, "resnet20", taps={})) for remat in (True, False))
    assert with_remat < without / 1.5


def test_a_module_inside_a_block_is_tapped_as_one_outside():
    ours, theirs = (gradient(network(remat, "resnet8", {"conv": "stages/0/0/conv1"})) for remat in (True, False))
    alike(ours, theirs)
    (_, (output, _)), _ = ours
    assert output.taps["conv"].shape == (ROWS, SIZE, SIZE, 2)


def test_a_block_that_says_nothing():
    with pytest.raises(TypeError, match="Recomputable does not say what it computes"):
        Recomputable()(jnp.ones(3))


def test_only_the_blocks_are_switched():
    for remat in (True, False):
        module = nnx.eval_shape(
            lambda remat=remat: zoo.build(
                "resnet8", num_classes=5, in_channels=3, width=2, remat=remat, rngs=nnx.Rngs(0)
            )
        )
        blocks = [part for _, part in nnx.iter_modules(module) if isinstance(part, Recomputable)]
        assert [block.recompute for block in blocks] == 3 * [remat]

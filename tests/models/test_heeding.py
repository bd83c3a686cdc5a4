"""Models that do in training what they do in evaluation are found out, also inside transformations."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from kdjax.models import from_linen, from_nnx
from tests.models.test_modes import KEY, X, refusal


class DeafBlock(nnx.Module):
    def __init__(self, rngs, layer):
        layers = {
            "norm": lambda: nnx.BatchNorm(4, rngs=rngs),
            "drop": lambda: nnx.Dropout(0.5, rngs=rngs),
            "attention": lambda: nnx.MultiHeadAttention(2, 4, dropout_rate=0.5, decode=False, rngs=rngs),
        }
        self.linear, self.layer = nnx.Linear(4, 4, rngs=rngs), layers[layer]()

    def __call__(self, x, quiet):
        told = "use_running_average" if isinstance(self.layer, nnx.BatchNorm) else "deterministic"
        return self.layer(self.linear(x), **{told: quiet})


def looped(quiet, layer, how):
    """Two blocks in a loop, or one inside another transformation, that are told so."""

    def block(module, x):
        return module(x, quiet)

    run = {
        "scan": nnx.scan(block, in_axes=(0, nnx.Carry), out_axes=nnx.Carry),
        "vmap": lambda layers, x: nnx.vmap(block, in_axes=(0, None))(layers, x).sum(0),
        "remat": nnx.remat(block),
        "jit": nnx.jit(block),
    }[how]

    class Net(nnx.Module):
        def __init__(self, rngs):
            if how in ("scan", "vmap"):
                make = nnx.vmap(lambda rngs: DeafBlock(rngs, layer), in_axes=0, out_axes=0)
                self.layers = nnx.split_rngs(splits=2)(make)(rngs)
            else:
                self.layers = DeafBlock(rngs, layer)

        def __call__(self, x):
            return run(self.layers, x)

    return Net


@pytest.mark.parametrize("how", ["scan", "vmap", "remat", "jit"])
def test_nnx_layers_inside_a_transformation_that_do_not_listen_are_found_out(how):
    for layer, said in (("norm", "batch statistics that"), ("drop", "dropout that"), ("attention", "dropout that")):
        assert said in refusal(from_nnx(looped(True, layer, how)))
        heard = from_nnx(looped(False, layer, how))
        jax.eval_shape(lambda k, n=heard: n.apply(*n.init(k), X, train=True, rngs=k), KEY)


class Unusual(nnx.Module):
    """Trains unless it is told otherwise, by an argument of a name that is not known."""

    def __init__(self, layer, rngs):
        self.block = DeafBlock(rngs, layer)

    def __call__(self, x, fit=True):
        return self.block(x, not fit)


@pytest.mark.parametrize(
    ("layer", "said"), [("norm", "moves its batch statistics"), ("drop", "drops"), ("attention", "drops")]
)
def test_a_model_that_trains_in_evaluation_is_found_out(layer, said):
    """It would be evaluated, and teach, so."""
    plain, told = (from_nnx(Unusual(layer, nnx.Rngs(0)), mode=mode) for mode in (None, {"fit": True}))
    x = X if layer != "attention" else X[:, None]
    with pytest.raises(
        ValueError, match=rf"Unusual {said}.* in evaluation; pass mode={{'fit': True}}, the argument's name"
    ):
        jax.eval_shape(lambda k: plain.apply(*plain.init(k), x, train=False), KEY)
    jax.eval_shape(lambda k: told.apply(*told.init(k), x, train=False), KEY)


class OwnStatistics(nn.Module):
    """Batch statistics of a module of one's own."""

    quiet: bool = False

    @nn.compact
    def __call__(self, x, _):
        mean = self.variable("batch_stats", "mean", jnp.zeros, x.shape[-1])
        if not self.quiet:
            mean.value = jnp.mean(x, 0)
        return nn.Dense(4)(x - mean.value[None]), None


@pytest.mark.parametrize("quiet", [True, False])
def test_statistics_of_ones_own_in_a_loop(quiet):
    axes = {"params": 0, "batch_stats": 0}
    loop = nn.scan(OwnStatistics, variable_axes=axes, split_rngs={"params": True}, length=2)(quiet)
    network = from_linen(loop, X, call=lambda module, x: module(x, None)[0])
    if quiet:
        assert "batch statistics that training leaves" in refusal(network)
    else:
        jax.eval_shape(lambda k: network.apply(*network.init(k), X, train=True, rngs=k), KEY)

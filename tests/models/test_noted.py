"""Losses that a model notes by `sow`: one an example stays one an example, also in loops; else nothing is added in silence."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from kdjax.models import from_linen, from_nnx
from kdjax.objectives import AuxiliaryLoss
from kdjax.types import Batch, Clock, Context

X = np.arange(20.0, dtype=np.float32).reshape(5, 4)
KEY = jax.random.key(0)
pytestmark = pytest.mark.filterwarnings("ignore:Using 'Module.sow")
NOTES = {"rows": lambda x: x[:, 0], "number": lambda x: jnp.mean(x), "tokens": lambda x: x}


class Layer(nnx.Module):
    def __init__(self, rngs, kind):
        self.kind, self.scale = kind, nnx.Param(jnp.ones(()))

    def __call__(self, x):
        self.sow(nnx.Intermediate, "own", NOTES[self.kind](x))
        return x + self.scale[...]


def looped(kind, turns):
    class Net(nnx.Module):
        def __init__(self, rngs):
            self.layers = nnx.vmap(lambda rngs: Layer(rngs, kind), axis_size=turns, in_axes=None)(rngs)

        def __call__(self, x):
            return nnx.scan(lambda layer, x: layer(x), in_axes=(0, nnx.Carry), out_axes=nnx.Carry)(self.layers, x)

    return from_nnx(Net, losses=("own",))


class LinenLayer(nn.Module):
    kind: str

    @nn.compact
    def __call__(self, x, _=None):
        self.sow("losses", "own", NOTES[self.kind](x))
        return x + self.param("scale", nn.initializers.ones_init(), ()), None


def looped_linen(kind, turns):
    axes = {"params": 0, "losses": 0}
    loop = nn.scan(LinenLayer, variable_axes=axes, split_rngs={"params": True}, length=turns)(kind)
    return from_linen(loop, X, call=lambda module, x: module(x)[0])


def own_loss(network):
    return jax.eval_shape(lambda k: network.apply(*network.init(k), X, train=True, rngs=k)[0].losses["own"], KEY)


@pytest.mark.parametrize("make", [looped, looped_linen])
def test_what_is_noted_in_a_loop(make):
    network = make("rows", 3)
    output, _ = network.apply(*network.init(KEY), X, train=True, rngs=KEY)
    np.testing.assert_allclose(output.losses["own"], 3 * X[:, 0] + 3)
    assert own_loss(make("rows", 5)).shape == (5,), "as many turns as examples"
    assert own_loss(make("number", 3)).shape == () == own_loss(make("number", 5)).shape
    with pytest.raises(
        ValueError, match=r"notes 'own' of the shape \[5, 4\] beside 5 examples; note a mean over the batch"
    ):
        own_loss(make("tokens", 3))


def test_rows_that_only_fill_up_count_in_none():
    network = from_nnx(lambda rngs: Layer(rngs, "rows"), losses=("own",))
    output, _ = network.apply(*network.init(KEY), X, train=True)
    batch = Batch.of(X, where=np.arange(5) < 3)
    terms = AuxiliaryLoss().terms(None, Context(output, None, batch, Clock().at(0)))
    assert terms["own"].count == 3 and terms["own"].sum == X[:3, 0].sum()

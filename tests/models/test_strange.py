"""Models and labels of odd make: they train as they would alone, or one sentence says what to write."""

import collections

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from flax import nnx

from kdjax.models import from_apply, from_linen, from_nnx, module_paths, output_shapes
from kdjax.objectives import KD, CrossEntropy, LabelSmoothing, bind
from kdjax.training import init_state, make_step
from kdjax.types import Batch, DataInfo

X = np.random.default_rng(0).standard_normal((6, 4)).astype(np.float32)
KEY = jax.random.key(0)
Named, Swapped = collections.namedtuple("Named", "logits cache"), collections.namedtuple("Swapped", "features logits")


class Net(nnx.Module):
    def __init__(self, rngs):
        self.a, self.b = nnx.Linear(4, 3, rngs=rngs), nnx.Linear(4, 3, rngs=rngs)

    def __call__(self, x):
        return self.returned(x)


def returning(function):
    return from_nnx(type("Net", (Net,), {"returned": function}))


RETURNED = {
    "three": (lambda m, x: (m.a(x), m.b(x), x), "returned a tuple; return logits"),
    "named": (lambda m, x: Named(m.a(x), x), "something that has the shape"),
    "swapped": (
        lambda m, x: Swapped(jnp.tile(m.a(x)[:, None], (1, 3, 1)), m.a(x)),
        r"a Swapped; it has features, logits: .*\(logits=raw.logits\)",
    ),
    "complex": (lambda m, x: m.a(x) + 1j * m.b(x), r"logits are complex64 \[6, 3\]; they must be floats \[B, C\]"),
    "predictions": (lambda m, x: jnp.argmax(m.a(x), -1), r"logits are int32 \[6\]; they must be floats"),
    "one a row": (lambda m, x: m.a(x)[:, 0], r"logits are float32 \[6\]; they must be floats \[B, C\]"),
    "a number": (lambda m, x: m.a(x).sum(), r"logits are float32 \[\]; they must be floats"),
    "nothing": (lambda m, x: None, "returned a NoneType"),
}


@pytest.mark.parametrize("kind", RETURNED)
def test_what_is_no_logits_is_refused(kind):
    function, said = RETURNED[kind]
    with pytest.raises(TypeError, match=said):
        output_shapes(returning(function), X)


def trained(network, x=X, labels=None, objective=None, jit=True):
    """Which parameters, and which of the state, a step changes."""
    shapes = jax.eval_shape(lambda k: network.apply(*network.init(k), x, train=False)[0], KEY)
    bound = bind(objective or CrossEntropy(), shapes, None, DataInfo(3))
    step, state = make_step(network, None, bound, optax.sgd(0.1)), init_state(network, bound, optax.sgd(0.1), seed=0)
    batch = Batch.of(x, np.arange(len(x)) % 3 if labels is None else labels)
    after, _ = (jax.jit(step) if jit else lambda *a: jax.eval_shape(step, *a))(state, None, batch)
    moved = lambda a, b: [bool(np.any(x != y)) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)]
    return moved(state.params, after.params) + moved(state.state, after.state) if jit else []


class Stat(nnx.BatchStat):
    pass


class Scale(nnx.Param):
    pass


class Calls(nnx.Variable):
    pass


class Odd(nnx.Module):
    """Variables of its own kinds, modules in nested dicts, one module under two names, a Sequential with dropout."""

    def __init__(self, rngs):
        linear = lambda i, o: nnx.Linear(i, o, rngs=rngs)
        self.scale, self.mean, self.calls = Scale(jnp.ones(4)), Stat(jnp.zeros(4)), Calls(jnp.zeros((), jnp.int32))
        self.heads = nnx.Dict(one=nnx.Dict(two=linear(8, 3)))
        self.first = linear(8, 8)
        self.again = self.first
        self.body = nnx.Sequential(linear(4, 8), nnx.BatchNorm(8, rngs=rngs), nnx.Dropout(0.1, rngs=rngs))

    def __call__(self, x, *, is_training: bool, **unused):
        self.calls[...] += 1
        if is_training:
            self.mean = Stat(x.mean(0))  # another variable in its place
        x = self.body((x - self.mean[...][None]) * self.scale[...][None])
        return self.heads["one"]["two"](self.again(nnx.relu(self.first(x))))


def test_all_that_is_odd_is_trained():
    network = from_nnx(Odd)
    assert all(trained(network))
    assert list(module_paths(network, X))[-2:] == ["again", "heads/one/two"]
    with pytest.raises(ValueError, match="the module at 'again' ran 2 times"):
        output_shapes(from_nnx(Odd, embedding="again"), X)


def test_whole_numbers_are_inputs():
    network = from_nnx(lambda rngs: nnx.Sequential(nnx.Embed(7, 3, rngs=rngs), lambda x: x.mean(1)))
    assert trained(network, np.arange(12).reshape(6, 2) % 7) == [True]


class OwnMethod(nn.Module):
    """Statistics written in a method of another name than the call's, a counter beside, and lists of modules."""

    quiet: bool = False

    def setup(self):
        self.layers, self.part = [nn.Dense(4), nn.Dense(3)], Centred()

    def __call__(self, x, train=False):
        for layer in self.layers:
            x = layer(self.part.centred(x, train and not self.quiet)) if x.shape[-1] == 4 else x
        return x


class Centred(nn.Module):
    def setup(self):
        self.mean = self.variable("batch_stats", "mean", jnp.zeros, 4)
        self.calls = self.variable("counters", "calls", lambda: jnp.zeros((), jnp.int32))

    def centred(self, x, train):
        if train:
            self.mean.value, self.calls.value = x.mean(0), self.calls.value + 1
        return x - self.mean.value[None]


def test_linen_statistics_in_any_method_and_other_collections():
    assert all(trained(from_linen(OwnMethod(), X)))
    with pytest.raises(ValueError, match="batch statistics that training leaves"):
        trained(from_linen(OwnMethod(quiet=True), X), jit=False)


class Counting(nn.Module):
    @nn.compact
    def __call__(self, x):
        calls = self.variable("counters", "calls", lambda: jnp.zeros((), jnp.int32))
        calls.value += 1
        return nn.Dense(3)(x)


class Two(nnx.Module):
    def __init__(self, rngs):
        self.a = nnx.Linear(4, 3, rngs=rngs)

    def __call__(self, ids, mask):
        return self.a(ids * mask)


class NoCall(nnx.Module):
    def __init__(self, rngs):
        self.a, self.drop = nnx.Linear(4, 3, rngs=rngs), nnx.Dropout(0.5, rngs=rngs)

    def forward(self, x, noisy):
        return self.drop(self.a(x), deterministic=not noisy)


def test_calls_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match="Counting writes variables in evaluation, where nothing may change"):
        output_shapes(from_linen(Counting(), X), X)
    with pytest.raises(
        ValueError, match=r"missing a required argument: 'mask'\): its __call__ takes ids, mask; pass call="
    ):
        output_shapes(from_nnx(Two), X)
    with pytest.raises(ValueError, match="NoCall has no __call__; pass call="):
        output_shapes(from_nnx(NoCall), X)
    call = lambda module, x, train: module.forward(x, train)
    network = from_nnx(NoCall, call=call)
    assert list(module_paths(network, X)) == ["a", "drop"]
    jax.eval_shape(lambda k: network.apply(*network.init(k), X, train=True, rngs=k), KEY)


def test_one_logit_and_labels_that_are_none_are_refused():
    one = output_shapes(from_nnx(lambda rngs: nnx.Linear(4, 1, rngs=rngs)), X)
    with pytest.raises(ValueError, match="gives one logit and the data has 2 classes: a softmax of one is always 1"):
        bind(KD(), one, one, DataInfo(2))
    network = from_apply(lambda p, x: x @ p, jnp.ones((4, 3)))
    for objective in (CrossEntropy(), LabelSmoothing()):
        with pytest.raises(
            ValueError, match=r"labels are float32 \[6\] beside logits \[6, 3\]; give classes as integers"
        ):
            trained(network, labels=np.arange(6.0, dtype=np.float32) % 3, objective=objective, jit=False)

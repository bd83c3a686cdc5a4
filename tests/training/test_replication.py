"""What is returned under pmap is the same on every device, or refused."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from flax import nnx
from jax import lax

from kdjax.models import from_linen, from_nnx, output_shapes
from kdjax.objectives import CrossEntropy, bind
from kdjax.training import init_state, make_runner, make_step
from kdjax.training.replication import differing
from kdjax.types import Batch, Clock, DataInfo

ROWS = jax.ShapeDtypeStruct((8, 4, 3), jnp.float32)
HALVES = [[0, 1, 2, 3], [4, 5, 6, 7]]
NUMBER = jax.ShapeDtypeStruct((), jnp.float32)


def drawn(b):
    return jax.random.normal(jax.random.fold_in(jax.random.key(0), lax.axis_index("data")))


def summed(b):
    return lax.psum(b.sum(), "data")


def written(s, b):
    kept = jax.new_ref(s)
    kept[...] = b.mean()
    return kept[...]


# What it gives, and whether that is each device's own.
CASES = {
    "rows": (lambda s, b: b.mean(), True),
    "a sum over all": (lambda s, b: summed(b) + s, False),
    "a mean in groups of devices": (
        lambda s, b: lax.pmean(b.sum(), "data", axis_index_groups=HALVES),
        True,
    ),
    "all rows": (lambda s, b: lax.all_gather(b, "data").std(), False),
    "a place among the devices": (lambda s, b: drawn(b), True),
    "a scan that sums": (lambda s, b: lax.scan(lambda c, x: (c + lax.psum(x.sum(), "data"), x), s, b)[0], False),
    "what a scan goes over": (lambda s, b: lax.scan(lambda c, x: (c + 1, x), s, b)[1], True),
    "a scan's second round": (lambda s, b: lax.scan(lambda c, x: ((c[1], x.sum()), None), (s, s), b)[0][0], True),
    "a loop": (lambda s, b: lax.while_loop(lambda v: v[0] < 3, lambda v: (v[0] + 1, v[1] * 2), (0, s))[1], False),
    "a loop of another length": (lambda s, b: lax.while_loop(lambda v: v < b.sum(), lambda v: v + 1, s), True),
    "a loop that adds rows": (lambda s, b: lax.fori_loop(0, 3, lambda i, v: v + b.sum(), s), True),
    "a choice by all": (lambda s, b: lax.cond(summed(b) > 0, lambda: s, lambda: 2 * s), False),
    "a choice by own rows": (lambda s, b: lax.cond(b.sum() > 0, lambda: s, lambda: 2 * s), True),
    "functions inside": (lambda s, b: jax.jit(jnp.cumsum)(jax.checkpoint(jnp.sin)(lax.pmean(b, "data"))), False),
    "a function of rows inside": (lambda s, b: jax.nn.relu(jax.checkpoint(jnp.sin)(b)), True),
    "a round that overwrites": (
        lambda s, b: lax.fori_loop(0, 3, lambda i, v: lax.pmean(v + b.mean(), "data"), b.mean()),
        False,
    ),
    "no round at all": (lambda s, b: lax.scan(lambda c, x: (lax.pmean(c, "data"), x), b.mean(), b[:0])[0], True),
    "a variable that is written": (lambda s, b: written(s, b), True),
    "barriers": (lambda s, b: lax.optimization_barrier((s, b))[0], False),
}


@pytest.mark.parametrize("name", CASES)
def test_what_differs_between_devices_is_found(name):
    function, own = CASES[name]
    mapped = jax.pmap(lambda s, t, b: {"x": function(s, b), "s": s}, "data", in_axes=(None, None, 0), out_axes=None)
    assert differing(mapped, "data", (NUMBER, None, ROWS)) == ["x"] * own


class Norm(nnx.Module):
    """A layer with statistics of its own, which knows of no axis."""

    def __init__(self):
        self.mean, self.use_running_average = nnx.BatchStat(jnp.zeros(3)), False

    def __call__(self, x):
        if self.use_running_average:
            return x - self.mean[...][None]
        self.mean[...] = x.mean(0)
        return x - x.mean(0, keepdims=True)


class Net(nnx.Module):
    def __init__(self, norm, rngs):
        self.norm, self.out = norm, nnx.Linear(3, 2, rngs=rngs)

    def __call__(self, x):
        return self.out(self.norm(x))


class Codebook(nn.Module):
    @nn.compact
    def __call__(self, x, train=False):
        seen = self.variable("codebook", "mean", jnp.zeros, 3)
        if train and not self.is_initializing():
            seen.value = x.mean(0)
        return nn.Dense(2)(x)


X = np.random.default_rng(0).normal(size=(16, 3)).astype(np.float32)
NETWORKS = {
    "nnx.BatchNorm": (lambda: from_nnx(lambda rngs: Net(nnx.BatchNorm(3, rngs=rngs), rngs)), ""),
    "another norm": (lambda: from_nnx(lambda rngs: Net(Norm(), rngs)), "state/student/norm/mean"),
    "another collection": (lambda: from_linen(Codebook(), X[:2]), "state/student/codebook/mean"),
}


def test_a_single_device_has_all_rows():
    runner = make_runner("pmap", jax.devices()[:1])
    compiled = runner.compile(lambda s, t, b: s + b.index.sum(), donate=False)
    batch = runner.place_batch(Batch.of(X, np.arange(16) % 2, index=np.arange(16)))
    assert compiled(jnp.zeros(()), None, batch) == 120


@pytest.mark.parametrize("name", NETWORKS)
def test_statistics_of_a_device_are_refused_under_pmap_alone(name):
    make, path = NETWORKS[name]
    network = make()
    bound = bind(CrossEntropy(), output_shapes(network, X[:2]), None, DataInfo(2))
    batch = Batch.of(X, np.arange(16) % 2)
    for kind in ("pmap", "jit"):
        runner, optimizer = make_runner(kind), optax.sgd(0.1)
        step = make_step(network, None, bound, optimizer, clock=Clock(8, 4, 16), axis=runner.axis)
        state = runner.place(init_state(network, bound, optimizer, seed=0))
        compiled = runner.compile(step, donate=False)
        if path and kind == "pmap":
            with pytest.raises(
                ValueError, match=f"Under pmap {path} and 1 more would be what the first device makes of its own"
            ):
                compiled(state, None, runner.place_batch(batch))
            continue
        compiled(state, None, runner.place_batch(batch))

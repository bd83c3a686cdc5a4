"""What kdjax/models/README.md prints is true: its example runs, and a Network by hand trains models of Keras, Haiku, Equinox.

Those three are not among kdjax's requirements. They were run with keras 3.15.1, dm-haiku 0.0.17 and equinox 0.13.8.
"""

import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import kdjax.models
from kdjax.models import output_shapes
from kdjax.objectives import KD, CrossEntropy, bind
from kdjax.training import Variables, init_state, make_step
from kdjax.types import Batch, DataInfo

README = (Path(kdjax.models.__file__).parent / "README.md").read_text()
X = np.random.default_rng(0).standard_normal((16, 8)).astype(np.float32)


def block(name):
    return re.search(rf"```python{name}\n(.*?)```", README, flags=re.S).group(1)


def test_the_example_runs_as_printed(capsys):
    code = block("")
    exec(compile(code, "README", "exec"), {})
    assert capsys.readouterr().out.strip() == re.search(r"# (\{.*\})", code).group(1)


def test_weights_go_in_and_out_as_printed(capsys):
    code = block(" weights")
    exec(compile(code, "README", "exec"), {})
    assert capsys.readouterr().out.strip() == re.search(r"# (\[.*\])", code).group(1)


def keras_model(scope, monkeypatch):
    monkeypatch.setenv("KERAS_BACKEND", "jax")
    keras = pytest.importorskip("keras")
    layers = keras.layers
    model = [layers.Input((8,)), layers.Dense(8), layers.BatchNormalization(), layers.Dropout(0.5), layers.Dense(3)]
    return scope["from_keras"](keras.Sequential(model))


def haiku_model(scope, _):
    import haiku as hk

    def forward(x, is_training):
        x = hk.BatchNorm(True, True, 0.9)(hk.Linear(8)(x), is_training=is_training)
        x = hk.dropout(hk.next_rng_key(), 0.5, x) if is_training else x
        return hk.Linear(3)(jax.nn.relu(x))

    return scope["from_haiku"](forward, X)


def equinox_model(scope, _):
    import equinox as eqx

    class Net(eqx.Module):
        first: eqx.nn.Linear
        norm: eqx.nn.BatchNorm
        drop: eqx.nn.Dropout
        last: eqx.nn.Linear

        def __init__(self, key):
            self.first, self.last = eqx.nn.Linear(8, 8, key=key), eqx.nn.Linear(8, 3, key=jax.random.fold_in(key, 1))
            self.norm, self.drop = eqx.nn.BatchNorm(8, "batch", mode="batch"), eqx.nn.Dropout(0.5)

        def __call__(self, x, state, key):
            x, state = self.norm(self.first(x), state)
            return self.last(self.drop(jax.nn.relu(x), key=key)), state

    return scope["from_equinox"](eqx.nn.make_with_state(Net))


@pytest.mark.parametrize(("name", "make"), [("keras", keras_model), ("haiku", haiku_model), ("equinox", equinox_model)])
def test_a_network_by_hand_is_distilled(name, make, monkeypatch):
    if name != "keras":
        pytest.importorskip(name)
    scope = {"jax": jax, "jnp": jnp}
    with jax.numpy_rank_promotion("allow"):  # theirs do it
        exec(compile(block(f" {name}"), "README", "exec"), scope)
        network = make(scope, monkeypatch)
        shapes = output_shapes(network, X)
        bound, optimizer = bind(CrossEntropy() + KD(), shapes, shapes, DataInfo(3)), optax.sgd(0.1)
        state = init_state(network, bound, optimizer, seed=0)
        step = jax.jit(make_step(network, network, bound, optimizer))
        teacher = Variables(*network.init(jax.random.key(1)))
        after, metrics = step(state, teacher, Batch.of(X, np.arange(16) % 3))
        said = network.apply(*network.init(jax.random.key(0)), X, train=False)[0].logits
        noisy = network.apply(*network.init(jax.random.key(0)), X, train=True, rngs=jax.random.key(2))[0].logits
    changed = lambda a, b: [bool(np.any(x != y)) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)]
    assert changed(state.params, after.params).count(False) <= 1  # a bias before a BatchNorm has no gradient
    assert any(changed(state.state["student"], after.state["student"])) and np.any(said != noisy)
    assert np.isfinite(metrics["loss"][0]) and said.shape == (16, 3)

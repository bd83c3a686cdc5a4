"""Mixed precision: short types inside the network, long ones for all that is kept and compared."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx

from kdjax.experiment.compiled import tell_slow_products
from kdjax.experiment.spec import Phase
from kdjax.models import float32_products, from_linen, from_nnx, in_precision
from kdjax.models.zoo.normalization import BatchNorm
from kdjax.objectives import KD, SP, CrossEntropy, bind
from kdjax.training import Variables, init_state, make_runner, make_step
from kdjax.training.optimizers import SGD, build
from kdjax.types import Clock, DataInfo
from tests.training.toy import CLASSES, shapes, toy, toy_batch


def test_the_network_computes_in_the_shorter_type_and_keeps_its_state():
    network, inputs = toy(3), jnp.asarray(toy_batch().inputs)
    params, state = network.init(jax.random.key(0))
    short = in_precision(network, "bfloat16")
    said, after = short.apply(params, state, inputs, train=True)
    exact, expected = network.apply(params, state, inputs, train=True)
    assert {leaf.dtype for leaf in jax.tree.leaves(said)} == {jnp.dtype(jnp.bfloat16)}
    assert {leaf.dtype for leaf in jax.tree.leaves(after)} == {jnp.dtype(jnp.float32)}
    np.testing.assert_allclose(said.logits.astype(np.float32), exact.logits, atol=0.05)
    assert np.abs(said.logits.astype(np.float32) - exact.logits).max() > 1e-4
    for found, wanted in zip(jax.tree.leaves(after), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(found, wanted, rtol=0.02, atol=0.02)
    text = str(jax.make_jaxpr(lambda p: short.apply(p, state, inputs, train=True)[0].logits)(params))
    kinds = [line for line in text.splitlines() if "conv_general_dilated[" in line]
    assert len(kinds) == 2 and all(":bf16[" in line for line in kinds)


def test_a_step_keeps_float32_and_comes_near_the_exact_one():
    student, teacher = toy(3), toy(4)
    bound = bind(CrossEntropy() + KD(temperature=3.0) + SP(), shapes(student), shapes(teacher), DataInfo(CLASSES))
    optimizer = build(SGD(learning_rate=0.1, momentum=0.0), Clock(), bound)
    runner = make_runner("jit", jax.devices()[:1])
    frozen, batch = Variables(*teacher.init(jax.random.key(7))), runner.place_batch(toy_batch())
    results = {}
    for precision in ("float32", "bfloat16"):
        state = init_state(student, bound, optimizer, seed=0)
        step = make_step(in_precision(student, precision), teacher, bound, optimizer)
        after, metrics = runner.compile(step, donate=False)(state, frozen, batch)
        moved = jax.tree.map(lambda a, b: np.asarray(a - b), after.params["student"], state.params["student"])
        results[precision] = moved, float(metrics["loss"][0])
        assert {leaf.dtype for leaf in jax.tree.leaves((after.params, after.state))} == {jnp.dtype(jnp.float32)}
        assert metrics["loss"][0].dtype == jnp.float32
    (exact, loss), (short, near) = results["float32"], results["bfloat16"]
    assert near == pytest.approx(loss, rel=0.02) and near != loss
    flat = lambda tree: np.concatenate([leaf.ravel() for leaf in jax.tree.leaves(tree)])
    assert np.linalg.norm(flat(short) - flat(exact)) < 0.1 * np.linalg.norm(flat(exact))


class Normalised(nnx.Module):
    """kdjax's BatchNorm and Flax's."""

    def __init__(self, rngs):
        self.own = nnx.List([BatchNorm(4), BatchNorm(4, affine=False)])
        self.flax = nnx.BatchNorm(4, rngs=rngs)
        self.head = nnx.Linear(4, 3, rngs=rngs)

    def __call__(self, x):
        return self.head(sum(norm(x) for norm in (*self.own, self.flax)))


def test_scales_and_biases_of_batchnorm_are_not_rounded_and_nor_are_their_gradients():
    network = from_nnx(Normalised)
    assert set(network.float32) == {("own", "0", "scale"), ("own", "0", "bias")}
    params, state = network.init(jax.random.key(0))
    params = jax.tree.map(lambda x: x + 0.001, params)  # no bfloat16
    x = jax.random.normal(jax.random.key(1), (300, 4))
    short = in_precision(network, "bfloat16")

    def total(params):
        return jnp.sum(x[:, :3] * short.apply(params, state, x, train=True)[0].logits)

    assert short.apply(params, state, x, train=True)[0].logits.dtype == jnp.bfloat16
    by = jax.grad(total)(params)
    rounded = lambda x: np.array_equal(x, x.astype(jnp.bfloat16))
    assert not rounded(by["own"]["0"]["scale"]) and not rounded(by["own"]["0"]["bias"])
    assert rounded(by["flax"]["bias"]), "else this test could not fail"


class LinenNet(linen.Module):
    dtype: Any

    @linen.compact
    def __call__(self, x, train):
        x = linen.LayerNorm(dtype=self.dtype)(linen.Dense(4)(x))
        return linen.Dense(3)(x) + linen.Dense(3)(x)


def test_products_that_stay_in_float32_are_counted(capsys):
    """Behind a layer that gives float32, as Flax NNX's BatchNorm does if it is not told a type: it is told."""
    inputs, x = jax.ShapeDtypeStruct((2, 4), jnp.float32), jnp.zeros((2, 4))
    count = lambda network: float32_products(in_precision(network, "bfloat16"), inputs)
    assert count(from_linen(LinenNet(jnp.float32), x)) == (2, 3)
    assert count(from_linen(LinenNet(jnp.bfloat16), x)) == (0, 3)
    assert count(from_nnx(Normalised)) == (0, 1)
    assert float32_products(from_nnx(Normalised), inputs) == (1, 1)
    for network in (from_nnx(Normalised), in_precision(from_linen(LinenNet(jnp.float32), x), "bfloat16")):
        tell_slow_products(network, inputs, Phase(network=None))
    said = capsys.readouterr().err
    assert (
        "2 of 3 convolutions and matrix products of LinenNet take float32, though phase 'student' has precision" in said
    )


def test_float32_is_the_network_itself_and_others_are_refused():
    network = toy(3)
    assert in_precision(network, "float32") is network
    with pytest.raises(ValueError, match="precision='float16'; use 'float32' or 'bfloat16'"):
        in_precision(network, "float16")

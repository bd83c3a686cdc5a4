"""Gradients of kernels as matrix products: equal to XLA's, and used where they gain."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import lax

from kdjax.models import from_nnx, kernel_gradients
from kdjax.training.devices import flops
from kdjax.training.runners import make_runner
from kdjax.types import Batch

CASES = [
    # images, kernel, strides, padding, dilation
    ((7, 9, 7, 3), (3, 3), (1, 1), "SAME", (1, 1)),
    ((6, 8, 8, 3), (3, 3), (2, 2), ((1, 1), (1, 1)), (1, 1)),
    ((6, 9, 8, 3), (3, 3), (2, 1), ((1, 2), (0, 3)), (1, 1)),
    ((4, 9, 8, 3), (3, 3), (1, 2), "VALID", (2, 2)),
    ((4, 8, 8, 5), (1, 1), (2, 2), "VALID", (1, 1)),
    ((4, 7, 9, 2), (2, 5), (1, 1), "SAME", (1, 1)),
    ((1, 6, 6, 3), (3, 3), (1, 1), "SAME", (1, 1)),
]


def gradients(convolve, images, kernel, *settings):
    strides, padding, dilation = settings

    def total(images, kernel):
        out = convolve(
            images, kernel, strides, padding, rhs_dilation=dilation, dimension_numbers=kernel_gradients.LAYOUT
        )
        return jnp.sum(jnp.sin(out.astype(jnp.float32 if out.dtype == jnp.bfloat16 else out.dtype)))

    return jax.jit(jax.grad(total, (0, 1)))(images, kernel)


@pytest.fixture
def few_patches(monkeypatch):
    """Small convolutions count as large ones: of two images' patches at a time, or of one's."""
    monkeypatch.setattr(kernel_gradients, "PATCHES", 2 * 7 * 9 * 9 * 3)
    monkeypatch.setattr(kernel_gradients._Convolution, "is_large", lambda *_: True)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_gradients_are_those_of_xla(case, few_patches):
    (shape, kernel, *settings), random = case, np.random.default_rng(0)
    images, kernel = random.normal(size=shape), random.normal(size=(*kernel, shape[3], 4))
    with jax.enable_x64(True):
        ours = gradients(kernel_gradients.conv_general_dilated, images, kernel, *settings)
        theirs = gradients(lax.conv_general_dilated, images, kernel, *settings)
    for value, right in zip(ours, theirs, strict=True):
        assert value.dtype == np.float64
        np.testing.assert_allclose(value, right, rtol=1e-10, atol=1e-10)


def test_sums_in_bfloat16_have_digits_of_float32(few_patches):
    random = np.random.default_rng(1)
    exact = random.normal(size=(8, 9, 9, 3)), random.normal(size=(3, 3, 3, 4)) / 5
    short = [jnp.asarray(x, jnp.bfloat16) for x in exact]
    settings = (1, 1), "SAME", (1, 1)
    value = gradients(kernel_gradients.conv_general_dilated, *short, *settings)[1]
    right = gradients(lax.conv_general_dilated, *(x.astype(jnp.float32) for x in short), *settings)[1]
    assert value.dtype == jnp.bfloat16
    # The output is rounded before its sine is taken: 2^-9 of it, and the gradient's own rounding.
    assert np.max(np.abs(value - right)) < 0.02 * np.max(np.abs(right))


class Net(nnx.Module):
    def __init__(self, rngs):
        self.first = nnx.Conv(3, 8, (3, 3), rngs=rngs)
        self.grouped = nnx.Conv(8, 8, (3, 3), feature_group_count=2, rngs=rngs)
        self.last = nnx.Linear(8, 4, rngs=rngs)

    def __call__(self, x):
        return self.last(nnx.relu(self.grouped(nnx.relu(self.first(x)))).mean((1, 2)))


def test_a_step_for_one_cpu_device_takes_them_and_others_do_not(monkeypatch):
    monkeypatch.setattr(kernel_gradients, "PATCHES", 2000)
    monkeypatch.setattr(kernel_gradients, "GAINS_FROM", 2000)
    network = from_nnx(Net)
    params, state = network.init(jax.random.key(0))
    images = jax.random.normal(jax.random.key(1), (8, 16, 16, 3))

    def gradient(params, _, batch):
        loss = lambda params: jnp.sum(network.apply(params, state, batch.inputs, train=True)[0].logits ** 2)
        return jax.grad(loss)(params)

    found, in_loops, counted = [], [], []
    for devices in (jax.devices()[:1], jax.devices()[:2]):
        runner = make_runner("jit", devices)
        compiled = runner.compile(gradient, donate=False)
        batch = runner.place_batch(Batch.of(np.asarray(images)))
        in_loops.append("stablehlo.while" in compiled.lower(runner.place(params), {}, batch).as_text())
        counted.append(flops(compiled, runner.place(params), {}, batch))
        found.append(compiled(runner.place(params), {}, batch))
    assert in_loops == [True, False] and counted[0] == pytest.approx(counted[1], rel=1e-4)
    for value, right in zip(*map(jax.tree.leaves, found), strict=True):
        np.testing.assert_allclose(value, right, rtol=2e-4, atol=1e-4)


def test_only_training_within_is_changed(monkeypatch):
    monkeypatch.setattr(kernel_gradients, "PATCHES", 2000)
    monkeypatch.setattr(kernel_gradients, "GAINS_FROM", 2000)
    network, images = from_nnx(Net), jnp.ones((8, 16, 16, 3))
    given = network.init(jax.random.key(0))

    def traced(train):
        return str(jax.make_jaxpr(lambda x: network.apply(*given, x, train=train)[0].logits)(images))

    assert "custom_vjp_call" not in traced(True)
    with kernel_gradients.as_products():
        inside = traced(True)
        assert "custom_vjp_call" not in traced(False)
    assert inside.count("custom_vjp_call[") == 1  # not the one of groups
    assert "custom_vjp_call" not in traced(True)


@pytest.mark.parametrize(
    "change",
    [{"feature_group_count": 3}, {"lhs_dilation": (2, 2)}, {"dimension_numbers": ("NCHW", "OIHW", "NCHW")}, {}],
    ids=str,
)
def test_other_convolutions_are_left_to_xla(change):
    images, kernel = jnp.zeros((3, 3, 3, 3)), jnp.zeros((3, 3, 3 if "feature_group_count" not in change else 1, 3))
    options = {"dimension_numbers": kernel_gradients.LAYOUT, **change}
    convolve = lambda *given: kernel_gradients.conv_general_dilated(*given, (1, 1), ((1, 1), (1, 1)), **options)
    assert "custom_vjp_call" not in str(jax.make_jaxpr(convolve)(images, kernel))  # {}: too small


def test_images_taken_together_divide_the_batch():
    for rows, size in itertools.product((1, 2, 7, 12), (1, 100, 10**9)):
        count = kernel_gradients.images_together(rows, size)
        assert rows % count == 0 and (count == 1 or count * size <= kernel_gradients.PATCHES)

"""Layers of the convolutional networks for small images, and how the originals draw their first weights."""

import functools
import math

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

from kdjax.types import Array

NEAR_ZERO = nnx.initializers.normal(0.01)
ZERO = nnx.initializers.zeros_init()


def convolution(
    in_channels: int,
    channels: int,
    *,
    size: int,
    stride: int = 1,
    groups: int = 1,
    bias: bool = False,
    rngs: nnx.Rngs,
) -> nnx.Conv:
    """A `size`x`size` convolution padded by `size // 2` pixels; its kernel waits for `draw_kernels`, a bias starts at 0."""
    return nnx.Conv(
        in_channels,
        channels,
        (size, size),
        strides=stride,
        padding=((size // 2, size // 2),) * 2,
        feature_group_count=groups,
        use_bias=bias,
        kernel_init=ZERO,
        rngs=rngs,
    )


def linear(in_features: int, out_features: int, *, rngs: nnx.Rngs, kernel_init=None, bias_init=None) -> nnx.Linear:
    """A linear layer that starts as PyTorch's, weight and bias uniform within `1 / sqrt(in_features)` of 0; or as is said."""
    bound = 1 / math.sqrt(in_features)

    def uniform(key, shape, dtype, out_sharding=None):
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return nnx.Linear(
        in_features, out_features, kernel_init=kernel_init or uniform, bias_init=bias_init or uniform, rngs=rngs
    )


def draw_kernels(module: nnx.Module, *, rngs: nnx.Rngs, uniform: bool = False) -> None:
    """Draws every convolution kernel of `module`: normal with variance `2 / (height * width * out_channels)` (Kaiming, fan out);
    or, with `uniform`, within `1 / sqrt(height * width * in_channels / groups)` of 0, which is PyTorch's default.

    All of them are cut from one draw, which compiles several times faster than one draw a layer. The barrier keeps
    XLA from repeating the draw for each piece.
    """
    kernels = [part.kernel for _, part in nnx.iter_modules(module) if isinstance(part, nnx.Conv)]
    sizes = [kernel.size for kernel in kernels]
    shape, key = (sum(sizes),), rngs.params()
    draw = functools.partial(jax.random.uniform, minval=-1.0) if uniform else jax.random.normal
    values = lax.optimization_barrier(draw(key, shape, jnp.float32))
    start = 0
    for kernel, size in zip(kernels, sizes, strict=True):
        height, width, inputs, out_channels = kernel.shape
        scale = 1 / math.sqrt(height * width * inputs) if uniform else math.sqrt(2 / (height * width * out_channels))
        kernel[...] = scale * values[start : start + size].reshape(kernel.shape)
        start += size


def shuffled(x: Array, groups: int) -> Array:
    """`[..., K]` with the channels of so many runs of `K / groups` interleaved: the first of each run, then the second, ..."""
    *rest, channels = x.shape
    parts = jnp.reshape(x, (*rest, groups, channels // groups))
    return jnp.reshape(jnp.swapaxes(parts, -1, -2), x.shape)

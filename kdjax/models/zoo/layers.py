"""Layers that the networks of the zoo share, and how the originals draw their first weights."""

import functools
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

from kdjax.types import Array, ModelOutput

Padding = Literal["torch", "tensorflow"]

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
    padding: Padding = "torch",
    rngs: nnx.Rngs,
) -> nnx.Conv:
    """A `size`x`size` convolution; kernel and bias are zeros, and the kernel waits for `draw`.

    Padding "torch" is `size // 2` pixels on every side; "tensorflow" is its "SAME": as few as the outputs need, which for a
    stride of 2 and an even image is one more below and right than above and left.
    """
    return nnx.Conv(
        in_channels,
        channels,
        (size, size),
        strides=stride,
        padding=((size // 2, size // 2),) * 2 if padding == "torch" else "SAME",
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


def dense(in_features: int, out_features: int, *, rngs: nnx.Rngs, bias: bool = True) -> nnx.Linear:
    """A linear layer whose weights are zeros and wait for `draw`."""
    return nnx.Linear(in_features, out_features, use_bias=bias, kernel_init=ZERO, rngs=rngs)


def fan_out_deviation(part: nnx.Module) -> float | None:
    """Kaiming normal by fan-out, of convolutions alone: `sqrt(2 / (height * width * out_channels))`."""
    if not isinstance(part, nnx.Conv):
        return None
    height, width, _, channels = part.kernel.shape
    return math.sqrt(2 / (height * width * channels))


def fan_in_bound(part: nnx.Module) -> float | None:
    """PyTorch's default, of convolutions alone: uniform within `1 / sqrt(height * width * in_channels / groups)` of 0."""
    return 1 / math.sqrt(math.prod(part.kernel.shape[:3])) if isinstance(part, nnx.Conv) else None


def draw(
    module: nnx.Module, scale: Callable[[nnx.Module], float | None], *, rngs: nnx.Rngs, uniform: bool = False
) -> None:
    """Draws the kernels of a module's convolutions and linear layers: normal, of mean 0; or uniform about 0.

    All are cut from one draw, which compiles several times faster than one draw a layer. The barrier keeps XLA from
    repeating the draw for each piece.

    Args:
      module: whose kernels are drawn.
      scale: the standard deviation for a layer, or with `uniform` the bound; None for one that stays as it is.
      rngs: its "params" stream draws.
      uniform: which distribution.
    """
    layers = [part for _, part in nnx.iter_modules(module) if isinstance(part, nnx.Conv | nnx.Linear)]
    scales = [(layer.kernel, size) for layer in layers if (size := scale(layer)) is not None]
    standard = functools.partial(jax.random.uniform, minval=-1.0) if uniform else jax.random.normal
    values = standard(rngs.params(), (sum(kernel.size for kernel, _ in scales),), jnp.float32)
    values, start = lax.optimization_barrier(values), 0
    for kernel, size in scales:
        kernel.set_value(size * values[start : start + kernel.size].reshape(kernel.shape))
        start += kernel.size


def through(blocks: Iterable[Callable[[Array], Array]], x: Array) -> tuple[Array, Array]:
    """The activation and the preactivation behind blocks that each leave their last ReLU to the caller."""
    for block in blocks:
        preactivation = block(x)
        x = nnx.relu(preactivation)
    return x, preactivation


def pooled(
    features: Sequence[Array], preactivations: Sequence[Array], classify: Callable[[Array], Array]
) -> ModelOutput:
    """The outputs of a network that classifies the mean of its last map over all positions."""
    embedding = jnp.mean(features[-1], axis=(1, 2))
    return ModelOutput(
        logits=classify(embedding), features=tuple(features), preactivations=tuple(preactivations), embedding=embedding
    )


def shuffled(x: Array, groups: int) -> Array:
    """`[..., K]` with the channels of so many runs of `K / groups` interleaved: the first of each run, then the second, ..."""
    *rest, channels = x.shape
    parts = jnp.reshape(x, (*rest, groups, channels // groups))
    return jnp.reshape(jnp.swapaxes(parts, -1, -2), x.shape)

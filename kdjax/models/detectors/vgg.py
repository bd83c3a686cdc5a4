"""The backbone of SSD300: VGG-16 with its linear layers made convolutions, and further maps behind it."""

import itertools

import jax.numpy as jnp
from flax import nnx
from jax import lax

from kdjax.models.zoo.layers import convolution
from kdjax.types import Array

LAYERS = (2, 2, 3, 3, 3)  # of VGG-16, in each stage
# Channels of a further 1x1 convolution, of the 3x3 behind it, which gives a map, and its stride; at stride 1 it has no padding.
FURTHER = ((256, 512, 2), (128, 256, 2), (128, 256, 1), (128, 256, 1))


class Normalised(nnx.Module):
    """Every position to length 1, times a number that each channel learns: Liu et al., ParseNet, 2015, arXiv 1506.04579."""

    def __init__(self, channels: int, scale: float = 20.0):
        self.scale = nnx.Param(jnp.full(channels, scale))

    def __call__(self, x: Array) -> Array:
        """`[B, H, W, K]` to the same shape and dtype; float32 inside for bfloat16 and float16."""
        wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        squared = jnp.sum(jnp.square(wide), axis=-1, keepdims=True)
        some = squared > 0  # the slope of a root is infinite at 0
        length = jnp.where(some, jnp.sqrt(jnp.where(some, squared, 1)), 0) + 1e-10
        return (self.scale[...].astype(wide.dtype)[None, None, None] * wide / length).astype(x.dtype)


class VGGBackbone(nnx.Module):
    """VGG-16 as SSD300 has it: Liu et al., SSD: Single Shot MultiBox Detector, ECCV 2016, arXiv 1512.02325.

    Pools round up; the last has stride 1; the first linear layer is a 3x3 convolution of dilation 6, the second a 1x1. Of 300
    pixels the maps have 38, 19, 10, 5, 3 and 1 positions a side: that of the fourth stage, `Normalised`, that of the second
    linear layer, and four further ones.

    Attributes:
      channels: of the maps that it gives.
    """

    def __init__(self, *, width: int = 64, in_channels: int = 3, rngs: nnx.Rngs):
        """Makes the network: `width` channels in the first stage, 2, 4, 8 and 8 times as many in the others, 16 in the linear
        layers; `rngs`' "params" stream draws the weights, Xavier uniform."""
        widths, before, stages = [width * factor for factor in (1, 2, 4, 8, 8)], in_channels, []
        for count, channels in zip(LAYERS, widths, strict=True):
            sizes = itertools.pairwise([before] + [channels] * count)
            stages.append(nnx.List([convolution(a, b, size=3, bias=True, rngs=rngs) for a, b in sizes]))
            before = channels
        self.stages = nnx.List(stages)
        self.normalised = Normalised(widths[3])
        self.dilated = nnx.Conv(before, 16 * width, (3, 3), padding=((6, 6),) * 2, kernel_dilation=6, rngs=rngs)
        self.linear = convolution(16 * width, 16 * width, size=1, bias=True, rngs=rngs)
        before, further = 16 * width, []
        for narrow, wide, stride in FURTHER:
            narrow, wide = narrow * width // 64, wide * width // 64
            further.append(convolution(before, narrow, size=1, bias=True, rngs=rngs))
            padding = ((1, 1),) * 2 if stride > 1 else "VALID"
            further.append(nnx.Conv(narrow, wide, (3, 3), strides=stride, padding=padding, rngs=rngs))
            before = wide
        self.further = nnx.List(further)
        self.channels = (widths[3], 16 * width, *(wide * width // 64 for _, wide, _ in FURTHER))
        xavier(self, rngs=rngs)

    def __call__(self, x: Array) -> tuple[Array, ...]:
        """`[B, H, W, in_channels]` to the six maps."""
        maps = []
        for number, stage in enumerate(self.stages):
            for layer in stage:
                x = nnx.relu(layer(x))
            if number == 3:
                maps.append(self.normalised(x))
            x = pooled(x, size=3, stride=1) if number == 4 else pooled(x, size=2, stride=2)
        x = nnx.relu(self.linear(nnx.relu(self.dilated(x))))
        maps.append(x)
        for narrow, wide in zip(self.further[::2], self.further[1::2], strict=True):
            x = nnx.relu(wide(nnx.relu(narrow(x))))
            maps.append(x)
        return tuple(maps)


def pooled(x: Array, *, size: int, stride: int) -> Array:
    """The maximum of squares: at stride 1 around every position, at stride 2 of as many as there are, a last half one too."""
    padding = tuple((size // 2, size // 2) if stride == 1 else (0, -x.shape[axis] % stride) for axis in (1, 2))
    return lax.reduce_window(
        x, -jnp.inf, lax.max, (1, size, size, 1), (1, stride, stride, 1), ((0, 0), *padding, (0, 0))
    )


def xavier(module: nnx.Module, *, rngs: nnx.Rngs) -> None:
    """Draws the kernels of a module's convolutions Xavier uniform; biases are 0."""
    draw = nnx.initializers.xavier_uniform()
    for _, layer in nnx.iter_modules(module):
        if isinstance(layer, nnx.Conv):
            layer.kernel.set_value(draw(rngs.params(), layer.kernel.shape, jnp.float32))
            layer.bias.set_value(jnp.zeros_like(layer.bias[...]))

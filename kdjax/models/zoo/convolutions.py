"""What the convolutional networks for ImageNet are made of: convolution with BatchNorm, squeeze-and-excitation, activations."""

from collections.abc import Callable

import jax.numpy as jnp
from flax import nnx

from kdjax.models.zoo.layers import Padding, convolution
from kdjax.models.zoo.normalization import BatchNorm
from kdjax.types import Array

Activation = Callable[[Array], Array]


def identity(x: Array) -> Array:
    """No activation."""
    return x


class ConvNorm(nnx.Module):
    """A convolution without bias, and BatchNorm; the activation is left to the caller."""

    def __init__(
        self,
        in_channels: int,
        channels: int,
        *,
        size: int,
        stride: int = 1,
        groups: int = 1,
        padding: Padding = "torch",
        epsilon: float = 1e-5,
        momentum: float = 0.1,
        rngs: nnx.Rngs,
    ):
        self.conv = convolution(
            in_channels, channels, size=size, stride=stride, groups=groups, padding=padding, rngs=rngs
        )
        self.norm = BatchNorm(channels, momentum=momentum, epsilon=epsilon, rngs=rngs)

    def __call__(self, x: Array) -> Array:
        """`[B, H, W, in_channels]` to `[B, ceil(H / stride), ceil(W / stride), channels]`."""
        return self.norm(self.conv(x))


class SqueezeExcite(nnx.Module):
    """Scales every channel by a number in 0 to 1 that follows from the means of all (Hu et al., CVPR 2018, arXiv 1709.01507).

    Two 1x1 convolutions with bias on the means: `reduce`, `activation`, `expand`, `gate`.
    """

    def __init__(self, channels: int, squeezed: int, *, activation: Activation, gate: Activation, rngs: nnx.Rngs):
        self.reduce = convolution(channels, squeezed, size=1, bias=True, rngs=rngs)
        self.expand = convolution(squeezed, channels, size=1, bias=True, rngs=rngs)
        self.activation, self.gate = activation, gate

    def __call__(self, x: Array) -> Array:
        """`[B, H, W, K]` to the same shape."""
        means = jnp.mean(x, axis=(1, 2), keepdims=True)
        return x * self.gate(self.expand(self.activation(self.reduce(means))))


def relu6(x: Array) -> Array:
    """`min(max(x, 0), 6)`; its slope is 0 at both ends, as PyTorch's."""
    return jnp.where((x > 0) & (x < 6), x, jnp.where(x >= 6, jnp.asarray(6, x.dtype), jnp.asarray(0, x.dtype)))


def hard_sigmoid(x: Array) -> Array:
    """`relu6(x + 3) / 6` (Howard et al., ICCV 2019, arXiv 1905.02244, section 5.2)."""
    return relu6(x + 3) / 6


def hard_swish(x: Array) -> Array:
    """`x * hard_sigmoid(x)`."""
    return x * hard_sigmoid(x)


def divisible(channels: float, by: int = 8) -> int:
    """The multiple of `by` nearest to a number of channels, of which it takes off a tenth at most (MobileNetV2's rule)."""
    rounded = max(by, int(channels + by / 2) // by * by)
    return rounded + by if rounded < 0.9 * channels else rounded

"""Networks of depthwise convolutions and inverted bottlenecks: MobileNetV1 to V3 and EfficientNet are lists of such blocks.

The designs are in `kdjax.models.zoo.mobilenets`. There is no dropout and no stochastic depth.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from kdjax.models.rematerialization import Recomputable
from kdjax.models.zoo.convolutions import Activation, ConvNorm, SqueezeExcite, identity
from kdjax.models.zoo.layers import Padding, dense, draw
from kdjax.types import Array, ModelOutput


class Row(NamedTuple):
    """One block.

    Attributes:
      size: of the depthwise kernel.
      expanded: channels of the depthwise convolution; as many as come in for a block without the 1x1 convolution before it.
      channels: that come out.
      stride: of the depthwise convolution.
      squeezed: channels in the middle of squeeze-and-excitation; 0 for none.
      activation: after the first two convolutions.
    """

    size: int
    expanded: int
    channels: int
    stride: int
    squeezed: int
    activation: Activation


class Design(NamedTuple):
    """A network.

    Attributes:
      stem: channels of the 3x3 convolution at stride 2 that it begins with.
      rows: its blocks.
      head: channels of the 1x1 convolution behind them; 0 for none.
      activation: of stem and head, and of the hidden linear layer.
      hidden: size of a linear layer before the last one; 0 for none.
      squeezing, gate: activations inside squeeze-and-excitation.
      projected: activation behind a block's last convolution, a linear bottleneck's is none.
      residual: whether a block that changes no shape is added to its input.
      padding, epsilon, momentum: see `ConvNorm`.
      fan_of_group: whether fan-out is counted within a group of channels; it is for a depthwise kernel then its positions.
      linear_deviation: of the linear layers' first weights; None for uniform ones within `1 / sqrt(C)`.
    """

    stem: int
    rows: tuple[Row, ...]
    head: int
    activation: Activation
    hidden: int = 0
    squeezing: Activation = nnx.relu
    gate: Activation = jax.nn.sigmoid
    projected: Activation = identity
    residual: bool = True
    padding: Padding = "torch"
    epsilon: float = 1e-5
    momentum: float = 0.1
    fan_of_group: bool = False
    linear_deviation: float | None = 0.01

    def expanding(self) -> tuple[bool, ...]:
        """For each block whether it has the 1x1 convolution before the depthwise one."""
        inputs = (self.stem, *(row.channels for row in self.rows))
        return tuple(row.expanded != before for row, before in zip(self.rows, inputs, strict=False))


class Inverted(Recomputable):
    """1x1 convolution, depthwise convolution, squeeze-and-excitation, 1x1 convolution, as far as there are these; returns the
    value before `projected`."""

    def __init__(self, in_channels: int, row: Row, design: Design, *, rngs: nnx.Rngs):
        options = {"epsilon": design.epsilon, "momentum": design.momentum, "padding": design.padding, "rngs": rngs}
        wide = row.expanded
        self.expand = ConvNorm(in_channels, wide, size=1, **options) if wide != in_channels else None
        self.depthwise = ConvNorm(wide, wide, size=row.size, stride=row.stride, groups=wide, **options)
        inside = {"activation": design.squeezing, "gate": design.gate, "rngs": rngs}
        self.excite = SqueezeExcite(wide, row.squeezed, **inside) if row.squeezed else None
        self.project = ConvNorm(wide, row.channels, size=1, **options)
        self.activation = row.activation
        self.residual = design.residual and row.stride == 1 and in_channels == row.channels

    def forward(self, x: Array) -> Array:
        """`[B, H, W, in_channels]` to `[B, ceil(H / stride), ceil(W / stride), channels]`."""
        y = x if self.expand is None else self.activation(self.expand(x))
        y = self.activation(self.depthwise(y))
        y = y if self.excite is None else self.excite(y)
        y = self.project(y)
        return x + y if self.residual else y


class InvertedNet(nnx.Module):
    """A stem, blocks, a head of 1x1 convolution, global average pool, one or two linear layers."""

    def __init__(self, design: Design, *, num_classes: int, in_channels: int = 3, rngs: nnx.Rngs):
        """Makes the network.

        Args:
          design: its layers.
          num_classes: `C`.
          in_channels: channels of the input image.
          rngs: its "params" stream draws the weights.
        """
        options = {"epsilon": design.epsilon, "momentum": design.momentum, "padding": design.padding, "rngs": rngs}
        self.stem = ConvNorm(in_channels, design.stem, size=3, stride=2, **options)
        inputs = (design.stem, *(row.channels for row in design.rows))
        self.blocks = nnx.List(
            [Inverted(before, row, design, rngs=rngs) for before, row in zip(inputs[:-1], design.rows, strict=True)]
        )
        self.head = ConvNorm(inputs[-1], design.head, size=1, **options) if design.head else None
        pooled = design.head or inputs[-1]
        self.hidden = dense(pooled, design.hidden, rngs=rngs) if design.hidden else None
        self.classifier = dense(design.hidden or pooled, num_classes, rngs=rngs)
        self.activation, self.projected = design.activation, design.projected
        self.strides = tuple(row.stride for row in design.rows)
        draw(self, lambda part: _deviation(part, design), rngs=rngs)
        if design.linear_deviation is None:
            bound = 1 / math.sqrt(num_classes)
            kernel = self.classifier.kernel
            kernel.set_value(jax.random.uniform(rngs.params(), kernel.shape, jnp.float32, -bound, bound))

    def __call__(self, x: Array) -> ModelOutput:
        """The outputs for `[B, H, W, in_channels]` normalised images.

        Features are those of the last block at 1/2, 1/4, 1/8, 1/16 and 1/32 of the image's size (of the stem where no block
        is at 1/2), and of the head, if there is one, after its activation; of a linear bottleneck there is no activation. The
        embedding `[B, D]` is the mean of the last. Preactivations are given where every block ends in ReLU6, before which
        they are: `features[i] == relu6(preactivations[i])`.
        """
        preactivation = self.stem(x)
        x = self.activation(preactivation)
        features, preactivations = [], []
        for block, stride in zip(self.blocks, self.strides, strict=True):
            if stride == 2:
                features.append(x)
                preactivations.append(preactivation)
            preactivation = block(x)
            x = self.projected(preactivation)
        features.append(x)
        preactivations.append(preactivation)
        if self.head is not None:
            x = self.activation(self.head(x))
            features.append(x)
        embedding = jnp.mean(x, axis=(1, 2))
        return ModelOutput(
            logits=self.classify(embedding),
            features=tuple(features),
            preactivations=() if self.projected is identity else tuple(preactivations),
            embedding=embedding,
        )

    def classify(self, embedding: Array) -> Array:
        """Class scores of pooled features, by one linear layer or two: `[..., D]` to `[..., C]`."""
        x = embedding if self.hidden is None else self.activation(self.hidden(embedding))
        return self.classifier(x)


class MobileNetV1(InvertedNet):
    """One whose blocks end in an activation, so that it has `norms`."""

    def norms(self) -> tuple[tuple[Array, Array], ...]:
        """Scale and bias, `[K]` each, of the BatchNorm before the ReLU6 of each of `preactivations`."""
        ends = [i - 1 for i, stride in enumerate(self.strides) if stride == 2] + [len(self.blocks) - 1]
        last = [self.stem.norm if i < 0 else self.blocks[i].project.norm for i in ends]
        return tuple((norm.scale[...], norm.bias[...]) for norm in last)


def _deviation(part: nnx.Module, design: Design) -> float | None:
    if isinstance(part, nnx.Linear):
        return design.linear_deviation
    height, width, _, channels = part.kernel.shape
    groups = part.feature_group_count if design.fan_of_group else 1
    return math.sqrt(2 / (height * width * channels // groups))

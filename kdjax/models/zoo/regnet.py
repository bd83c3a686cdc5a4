"""RegNetY, laid out as timm's and torchvision's.

Radosavovic et al., Designing Network Design Spaces, CVPR 2020, arXiv 2003.13678. There is no dropout and no stochastic depth.
"""

import jax
from flax import nnx

from kdjax.models.rematerialization import Recomputable
from kdjax.models.zoo.convolutions import ConvNorm, SqueezeExcite
from kdjax.models.zoo.layers import dense, draw, fan_out_deviation, pooled, through
from kdjax.types import Array, ModelOutput


class RegNetBlock(Recomputable):
    """1x1, grouped 3x3, squeeze-and-excitation and 1x1 with a shortcut, as wide inside as outside; the sum before the last ReLU.

    Squeezed is to a quarter of the channels that come into the block.
    """

    def __init__(self, in_channels: int, channels: int, *, stride: int, group: int, rngs: nnx.Rngs):
        self.conv1 = ConvNorm(in_channels, channels, size=1, rngs=rngs)
        self.conv2 = ConvNorm(channels, channels, size=3, stride=stride, groups=channels // group, rngs=rngs)
        squeezed = max(round(in_channels / 4), 1)
        self.excite = SqueezeExcite(channels, squeezed, activation=nnx.relu, gate=jax.nn.sigmoid, rngs=rngs)
        self.conv3 = ConvNorm(channels, channels, size=1, rngs=rngs)
        changes = stride != 1 or in_channels != channels
        self.shortcut = ConvNorm(in_channels, channels, size=1, stride=stride, rngs=rngs) if changes else None

    def forward(self, x: Array) -> Array:
        """`[B, H, W, in_channels]` to `[B, ceil(H / stride), ceil(W / stride), channels]`."""
        y = nnx.relu(self.conv1(x))
        y = self.excite(nnx.relu(self.conv2(y)))
        return self.conv3(y) + (x if self.shortcut is None else self.shortcut(x))


class RegNetY(nnx.Module):
    """A 3x3 stem at stride 2, four stages of blocks that begin at stride 2, global average pool, linear."""

    def __init__(
        self,
        blocks: tuple[int, ...],
        widths: tuple[int, ...],
        *,
        group: int,
        num_classes: int,
        stem: int = 32,
        in_channels: int = 3,
        rngs: nnx.Rngs,
    ):
        """Makes the network.

        Args:
          blocks: how many a stage.
          widths: channels of each stage, multiples of `group`.
          group: channels that a 3x3 convolution mixes.
          num_classes: `C`.
          stem: channels of the stem.
          in_channels: channels of the input image.
          rngs: its "params" stream draws the weights.
        """
        self.stem = ConvNorm(in_channels, stem, size=3, stride=2, rngs=rngs)
        stages, before = [], stem
        for count, width in zip(blocks, widths, strict=True):
            made = [RegNetBlock(before, width, stride=2, group=group, rngs=rngs)]
            made += [RegNetBlock(width, width, stride=1, group=group, rngs=rngs) for _ in range(count - 1)]
            stages.append(nnx.List(made))
            before = width
        self.stages = nnx.List(stages)
        self.classifier = dense(before, num_classes, rngs=rngs)
        draw(self, lambda part: 0.01 if isinstance(part, nnx.Linear) else fan_out_deviation(part), rngs=rngs)

    def __call__(self, x: Array) -> ModelOutput:
        """The outputs for `[B, H, W, in_channels]` normalised images.

        Features and preactivations are those of the stem and of the last block of each stage, at 1/2, 1/4, 1/8, 1/16 and
        1/32 of the image's size; `features[i] == relu(preactivations[i])` for all of them. The embedding `[B, D]` is the mean
        of the last.
        """
        preactivations = [self.stem(x)]
        features = [nnx.relu(preactivations[0])]
        for stage in self.stages:
            activation, preactivation = through(stage, features[-1])
            preactivations.append(preactivation)
            features.append(activation)
        return pooled(features, preactivations, self.classify)

    def classify(self, embedding: Array) -> Array:
        """Class scores of pooled features: `[..., D]` to `[..., C]`."""
        return self.classifier(embedding)

    def norms(self) -> tuple[tuple[Array, Array], ...]:
        """Scale and bias, `[K]` each, of the last BatchNorm before the last ReLU of the stem and of each stage, a pair for each
        of `preactivations`; in a stage it is the one of the residual branch."""
        last = (self.stem.norm, *(stage[-1].conv3.norm for stage in self.stages))
        return tuple((norm.scale[...], norm.bias[...]) for norm in last)

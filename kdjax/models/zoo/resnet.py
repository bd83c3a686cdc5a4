"""The ResNets for ImageNet, laid out as torchvision's.

He et al., Deep Residual Learning for Image Recognition, CVPR 2016, arXiv 1512.03385, table 1. As in torchvision, a bottleneck has
its stride at the 3x3 convolution instead of the first 1x1 ("v1.5"). There is no dropout and no stochastic depth.
"""

from flax import nnx

from kdjax.models.rematerialization import Recomputable
from kdjax.models.zoo.convolutions import ConvNorm
from kdjax.models.zoo.layers import draw, fan_out_deviation, linear, pooled, through
from kdjax.types import Array, ModelOutput


class Basic(Recomputable):
    """Two 3x3 convolutions with BatchNorm, and a shortcut; returns the sum before the last ReLU."""

    expansion = 1

    def __init__(self, in_channels: int, width: int, *, stride: int, rngs: nnx.Rngs):
        self.layers = nnx.List(
            [
                ConvNorm(in_channels, width, size=3, stride=stride, rngs=rngs),
                ConvNorm(width, width, size=3, rngs=rngs),
            ]
        )
        self.shortcut = make_shortcut(in_channels, width, stride=stride, rngs=rngs)

    def forward(self, x: Array) -> Array:
        """`[B, H, W, in_channels]` to `[B, ceil(H / stride), ceil(W / stride), expansion * width]`."""
        y = x
        for layer in self.layers[:-1]:
            y = nnx.relu(layer(y))
        return self.layers[-1](y) + (x if self.shortcut is None else self.shortcut(x))


class Bottleneck(Basic):
    """Convolutions 1x1, 3x3 and 1x1 with BatchNorm, the last four times as wide, and a shortcut; the sum before the last ReLU."""

    expansion = 4

    def __init__(self, in_channels: int, width: int, *, stride: int, rngs: nnx.Rngs):
        self.layers = nnx.List(
            [
                ConvNorm(in_channels, width, size=1, rngs=rngs),
                ConvNorm(width, width, size=3, stride=stride, rngs=rngs),
                ConvNorm(width, 4 * width, size=1, rngs=rngs),
            ]
        )
        self.shortcut = make_shortcut(in_channels, 4 * width, stride=stride, rngs=rngs)


def make_shortcut(in_channels: int, channels: int, *, stride: int, rngs: nnx.Rngs) -> ConvNorm | None:
    """A 1x1 convolution with BatchNorm where the stride or the width changes; None for the identity."""
    if stride == 1 and in_channels == channels:
        return None
    return ConvNorm(in_channels, channels, size=1, stride=stride, rngs=rngs)


def make_stages(
    blocks: tuple[int, ...], *, bottleneck: bool, width: int, rngs: nnx.Rngs
) -> tuple[nnx.List, tuple[int, ...]]:
    """The stages behind the stem's pooling, at strides 1, 2, 2, ... and so many blocks each, and how many channels each gives."""
    kind = Bottleneck if bottleneck else Basic
    stages, channels, before = [], [], width
    for stage, count in enumerate(blocks):
        made = []
        for block in range(count):
            stride = 2 if stage > 0 and block == 0 else 1
            made.append(kind(before, width * 2**stage, stride=stride, rngs=rngs))
            before = kind.expansion * width * 2**stage
        stages.append(nnx.List(made))
        channels.append(before)
    return nnx.List(stages), tuple(channels)


def max_pool(x: Array) -> Array:
    """The stem's pooling, 3x3 at stride 2 with a border of nothing: `[B, H, W, K]` to `[B, ceil(H / 2), ceil(W / 2), K]`."""
    return nnx.max_pool(x, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))


class ResNet(nnx.Module):
    """A 7x7 stem at stride 2, max pooling, four stages of blocks at strides 1, 2, 2, 2, global average pool, linear.

    Convolutions start Kaiming normal (fan out), the linear layer as PyTorch's default.
    """

    def __init__(
        self,
        blocks: tuple[int, ...],
        *,
        bottleneck: bool,
        num_classes: int,
        width: int = 64,
        in_channels: int = 3,
        rngs: nnx.Rngs,
    ):
        """Makes the network.

        Args:
          blocks: how many a stage.
          bottleneck: whether these are `Bottleneck`s.
          num_classes: `C`.
          width: channels of the stem, and of the 3x3 convolutions of the first stage; it doubles every stage.
          in_channels: channels of the input image.
          rngs: its "params" stream draws the weights.
        """
        self.stem = ConvNorm(in_channels, width, size=7, stride=2, rngs=rngs)
        self.stages, channels = make_stages(blocks, bottleneck=bottleneck, width=width, rngs=rngs)
        self.classifier = linear(channels[-1], num_classes, rngs=rngs)
        draw(self, fan_out_deviation, rngs=rngs)

    def __call__(self, x: Array) -> ModelOutput:
        """The outputs for `[B, H, W, in_channels]` normalised images.

        Features and preactivations are those of the stem, before it is pooled, and of the last block of each stage, at
        1/2, 1/4, 1/8, 1/16 and 1/32 of the image's size; `features[i] == relu(preactivations[i])` for all of them. The
        embedding `[B, D]` is the mean of the last.
        """
        preactivations = [self.stem(x)]
        features = [nnx.relu(preactivations[0])]
        activation = max_pool(features[0])
        for stage in self.stages:
            activation, preactivation = through(stage, activation)
            preactivations.append(preactivation)
            features.append(activation)
        return pooled(features, preactivations, self.classify)

    def classify(self, embedding: Array) -> Array:
        """Class scores of pooled features: `[..., D]` to `[..., C]`."""
        return self.classifier(embedding)

    def norms(self) -> tuple[tuple[Array, Array], ...]:
        """Scale and bias, `[K]` each, of the last BatchNorm before the last ReLU of the stem and of each stage.

        One pair for each of `preactivations`. In a stage it is the one of the residual branch, to which the shortcut is added.
        """
        last = (self.stem.norm, *(stage[-1].layers[-1].norm for stage in self.stages))
        return tuple((norm.scale[...], norm.bias[...]) for norm in last)

"""ResNet-18 and ResNet-50 for CIFAR: those for ImageNet with a 3x3 stem and no max pool, as in the distillation benchmarks.

He et al., Deep Residual Learning for Image Recognition, CVPR 2016, arXiv 1512.03385; in the form of Tian et al., Contrastive
Representation Distillation, ICLR 2020, arXiv 1910.10699.
"""

from flax import nnx

from kdjax.models.rematerialization import Recomputable
from kdjax.models.zoo.layers import convolution, draw, fan_out_deviation, linear, pooled, through
from kdjax.models.zoo.normalization import BatchNorm
from kdjax.models.zoo.resnet_cifar import BasicBlock
from kdjax.types import Array, ModelOutput

BLOCKS = {18: (2, 2, 2, 2), 50: (3, 4, 6, 3)}


class Bottleneck(Recomputable):
    """A 1x1, a 3x3 and a 1x1 convolution with BatchNorm each and a shortcut; returns the sum *before* the last ReLU.

    The last convolution has four times the channels of the others; the stride is that of the 3x3 one. The shortcut is the
    identity, or a 1x1 convolution with BatchNorm where the stride or the width changes.
    """

    def __init__(self, in_channels: int, channels: int, *, stride: int, rngs: nnx.Rngs):
        self.conv1 = convolution(in_channels, channels, size=1, rngs=rngs)
        self.norm1 = BatchNorm(channels, rngs=rngs)
        self.conv2 = convolution(channels, channels, size=3, stride=stride, rngs=rngs)
        self.norm2 = BatchNorm(channels, rngs=rngs)
        self.conv3 = convolution(channels, 4 * channels, size=1, rngs=rngs)
        self.norm3 = BatchNorm(4 * channels, rngs=rngs)
        changes = stride != 1 or in_channels != 4 * channels
        self.shortcut_conv = (
            convolution(in_channels, 4 * channels, size=1, stride=stride, rngs=rngs) if changes else None
        )
        self.shortcut_norm = BatchNorm(4 * channels, rngs=rngs) if changes else None

    def forward(self, x: Array) -> Array:
        """`[B, H, W, in_channels]` to `[B, ceil(H / stride), ceil(W / stride), 4 channels]`."""
        y = nnx.relu(self.norm1(self.conv1(x)))
        y = nnx.relu(self.norm2(self.conv2(y)))
        y = self.norm3(self.conv3(y))
        return y + (x if self.shortcut_conv is None else self.shortcut_norm(self.shortcut_conv(x)))


class FourStageResNet(nnx.Module):
    """A 3x3 stem, four stages at strides 1, 2, 2, 2, global average pool, linear.

    Convolutions start Kaiming normal (fan out), the linear layer as PyTorch's default; no BatchNorm starts at 0.
    """

    def __init__(self, depth: int, *, num_classes: int, width: int = 64, in_channels: int = 3, rngs: nnx.Rngs):
        """Makes the network.

        Args:
          depth: 18, of basic blocks; or 50, of bottlenecks, whose outputs are four times as wide.
          num_classes: `C`.
          width: channels of the stem and of the blocks of the first stage; those of the others have 2, 4 and 8 times as many.
          in_channels: channels of the input image.
          rngs: its "params" stream draws the weights.
        """
        if depth not in BLOCKS:
            raise ValueError(f"depth must be {' or '.join(map(str, BLOCKS))}, got {depth}")
        block, expansion = (BasicBlock, 1) if depth < 50 else (Bottleneck, 4)
        self.stem_conv = convolution(in_channels, width, size=3, rngs=rngs)
        self.stem_norm = BatchNorm(width, rngs=rngs)
        stages, before = [], width
        for stage, count in enumerate(BLOCKS[depth]):
            channels, blocks = width * 2**stage, []
            for i in range(count):
                blocks.append(block(before, channels, stride=2 if i == 0 < stage else 1, rngs=rngs))
                before = expansion * channels
            stages.append(nnx.List(blocks))
        self.stages = nnx.List(stages)
        self.classifier = linear(before, num_classes, rngs=rngs)
        draw(self, fan_out_deviation, rngs=rngs)

    def __call__(self, x: Array) -> ModelOutput:
        """The outputs for `[B, H, W, in_channels]` normalised images of any size.

        Features and preactivations are those of the stem and of the last block of each stage, `[B, h, w, k]` with h = H, H,
        H/2, H/4, H/8, and `features[i] == relu(preactivations[i])` for all of them; the original repeats `features[0]` as its
        preactivation 0.
        """
        preactivations = [self.stem_norm(self.stem_conv(x))]
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
        """Scale and bias, `[K]` each, of the last BatchNorm before the last ReLU of the stem and of each stage.

        One pair for each of `preactivations`. In a stage it is the one of the residual branch, to which the shortcut is added.
        """
        blocks = [stage[-1] for stage in self.stages]
        last = (self.stem_norm, *(b.norm3 if isinstance(b, Bottleneck) else b.norm2 for b in blocks))
        return tuple((norm.scale[...], norm.bias[...]) for norm in last)

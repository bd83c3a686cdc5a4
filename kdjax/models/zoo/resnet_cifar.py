"""The CIFAR ResNets of the distillation benchmarks, laid out as in their published PyTorch checkpoints.

Two families share one class: `resnet{8,14,20,32,44,56,110}` with 16, 16, 32, 64 channels (He et al., Deep Residual
Learning for Image Recognition, CVPR 2016, arXiv 1512.03385, section 4.2, with 1x1 convolutions where the shape changes)
and `resnet{8,32}x4` with 32, 64, 128, 256 (Tian et al., Contrastive Representation Distillation, ICLR 2020,
arXiv 1910.10699).
"""

from flax import nnx

from kdjax.models.rematerialization import Recomputable
from kdjax.models.zoo.layers import convolution, draw, fan_out_deviation, linear, pooled, through
from kdjax.models.zoo.normalization import BatchNorm
from kdjax.types import Array, ModelOutput


class BasicBlock(Recomputable):
    """Two 3x3 convolutions with BatchNorm and a shortcut; returns the sum *before* the last ReLU.

    The shortcut is the identity, or a 1x1 convolution with BatchNorm where the stride or the width changes.
    """

    def __init__(self, in_channels: int, channels: int, *, stride: int, rngs: nnx.Rngs):
        self.conv1 = convolution(in_channels, channels, size=3, stride=stride, rngs=rngs)
        self.norm1 = BatchNorm(channels, rngs=rngs)
        self.conv2 = convolution(channels, channels, size=3, stride=1, rngs=rngs)
        self.norm2 = BatchNorm(channels, rngs=rngs)
        changes = stride != 1 or in_channels != channels
        self.shortcut_conv = convolution(in_channels, channels, size=1, stride=stride, rngs=rngs) if changes else None
        self.shortcut_norm = BatchNorm(channels, rngs=rngs) if changes else None

    def forward(self, x: Array) -> Array:
        """`[B, H, W, in_channels]` to `[B, ceil(H / stride), ceil(W / stride), channels]`."""
        y = nnx.relu(self.norm1(self.conv1(x)))
        y = self.norm2(self.conv2(y))
        shortcut = x if self.shortcut_conv is None else self.shortcut_norm(self.shortcut_conv(x))
        return y + shortcut


class CifarResNet(nnx.Module):
    """A 3x3 stem, three stages of `(depth - 2) / 6` basic blocks at strides 1, 2, 2, global average pool, linear.

    Convolutions pad one pixel on each side, as in PyTorch ("SAME" pads otherwise at stride 2). They start Kaiming
    normal (fan out), the linear layer as PyTorch's default.

    Equal blocks are not under a scan. On two CPU cores (jax 0.10, batch 8, float32) that compiled the gradient of resnet110 in 10
    instead of 18 s of processor time, that of resnet32 in 8 instead of 5 s; a step took 5.0 instead of 0.65 s and 1.2 instead of
    0.09 s, and gradients changed in their last digits. Also `freeze` folds no normalisation inside a loop.
    """

    def __init__(
        self,
        depth: int,
        *,
        num_classes: int,
        channels: tuple[int, int, int, int] = (16, 16, 32, 64),
        in_channels: int = 3,
        rngs: nnx.Rngs,
    ):
        """Makes the network.

        Args:
          depth: number of layers with weights on the longest path, `6 n + 2`.
          num_classes: `C`.
          channels: width of the stem and of each stage.
          in_channels: channels of the input image.
          rngs: its "params" stream draws the weights.
        """
        if depth < 8 or depth % 6 != 2:
            raise ValueError(f"depth must be 6 n + 2 with n >= 1 (8, 14, 20, ...), got {depth}")
        self.depth = depth
        self.stem_conv = convolution(in_channels, channels[0], size=3, stride=1, rngs=rngs)
        self.stem_norm = BatchNorm(channels[0], rngs=rngs)
        stages = []
        for before, width, stride in zip(channels[:-1], channels[1:], (1, 2, 2), strict=True):
            first = BasicBlock(before, width, stride=stride, rngs=rngs)
            others = [BasicBlock(width, width, stride=1, rngs=rngs) for _ in range((depth - 2) // 6 - 1)]
            stages.append(nnx.List([first, *others]))
        self.stages = nnx.List(stages)
        self.classifier = linear(channels[-1], num_classes, rngs=rngs)
        draw(self, fan_out_deviation, rngs=rngs)

    def __call__(self, x: Array) -> ModelOutput:
        """The outputs for `[B, H, W, in_channels]` normalised images.

        Features and preactivations are those of the stem and of the last block of each stage:
        `[B, H, W, channels[0]]`, `[B, H, W, channels[1]]`, `[B, H/2, W/2, channels[2]]`, `[B, H/4, W/4, channels[3]]`,
        and `features[i] == relu(preactivations[i])` for all of them.
        """
        preactivations = [self.stem_norm(self.stem_conv(x))]
        features = [nnx.relu(preactivations[0])]
        for stage in self.stages:
            activation, preactivation = through(stage, features[-1])
            preactivations.append(preactivation)
            features.append(activation)
        return pooled(features, preactivations, self.classify)

    def classify(self, embedding: Array) -> Array:
        """Class scores of pooled features: `[..., channels[3]]` to `[..., C]`."""
        return self.classifier(embedding)

    def norms(self) -> tuple[tuple[Array, Array], ...]:
        """Scale and bias, `[K]` each, of the last BatchNorm before the last ReLU of the stem and of each stage.

        One pair for each of `preactivations`. In a stage it is the one of the residual branch, to which the shortcut is added.
        """
        last = (self.stem_norm, *(stage[-1].norm2 for stage in self.stages))
        return tuple((norm.scale[...], norm.bias[...]) for norm in last)

"""ShuffleNetV1 and V2 for CIFAR, laid out as in the checkpoints of the distillation benchmarks.

Zhang et al., ShuffleNet: An Extremely Efficient Convolutional Neural Network for Mobile Devices, CVPR 2018, arXiv 1707.01083,
with three groups; Ma et al., ShuffleNet V2: Practical Guidelines for Efficient CNN Architecture Design, ECCV 2018, arXiv
1807.11164; both with the stem of one 1x1 convolution of Tian et al., Contrastive Representation Distillation, ICLR 2020,
arXiv 1910.10699.
"""

from collections.abc import Callable, Sequence

import jax.numpy as jnp
from flax import nnx

from kdjax.models.rematerialization import Recomputable
from kdjax.models.zoo.layers import convolution, draw, fan_in_bound, linear, shuffled
from kdjax.models.zoo.normalization import BatchNorm
from kdjax.types import Array, ModelOutput

STEM, GROUPS = 24, 3


class GroupedUnit(Recomputable):
    """A 1x1 convolution in groups, shuffle, a 3x3 one of each channel by itself, a 1x1 one in groups, with BatchNorm each.

    At stride 1 the input is added; at stride 2 its 3x3 averages (padding counts as zeros) are further channels. Returns the
    result *before* the last ReLU.
    """

    def __init__(self, in_channels: int, channels: int, *, stride: int, first: bool, rngs: nnx.Rngs):
        out, self.stride = channels if stride == 1 else channels - in_channels, stride
        self.groups = 1 if first else GROUPS  # of the first convolution: the stem has few channels
        self.conv1 = convolution(in_channels, out // 4, size=1, groups=self.groups, rngs=rngs)
        self.norm1 = BatchNorm(out // 4, rngs=rngs)
        self.conv2 = convolution(out // 4, out // 4, size=3, stride=stride, groups=out // 4, rngs=rngs)
        self.norm2 = BatchNorm(out // 4, rngs=rngs)
        self.conv3 = convolution(out // 4, out, size=1, groups=GROUPS, rngs=rngs)
        self.norm3 = BatchNorm(out, rngs=rngs)

    def forward(self, x: Array) -> Array:
        """`[B, H, W, in_channels]` to `[B, ceil(H / stride), ceil(W / stride), channels]`."""
        y = shuffled(nnx.relu(self.norm1(self.conv1(x))), self.groups)
        y = nnx.relu(self.norm2(self.conv2(y)))
        y = self.norm3(self.conv3(y))
        if self.stride == 1:
            return y + x
        return jnp.concatenate([y, nnx.avg_pool(x, (3, 3), (2, 2), padding=((1, 1), (1, 1)))], axis=-1)


class SplitUnit(Recomputable):
    """Of half of the channels a 1x1, a 3x3 (of each channel by itself) and a 1x1 convolution; the other half as it is.

    Returns both halves, that one first, *before* the last ReLU and the shuffle. The half as it is was activated before.
    """

    def __init__(self, channels: int, *, rngs: nnx.Rngs):
        self.half = channels // 2
        self.conv1 = convolution(self.half, self.half, size=1, rngs=rngs)
        self.norm1 = BatchNorm(self.half, rngs=rngs)
        self.conv2 = convolution(self.half, self.half, size=3, groups=self.half, rngs=rngs)
        self.norm2 = BatchNorm(self.half, rngs=rngs)
        self.conv3 = convolution(self.half, self.half, size=1, rngs=rngs)
        self.norm3 = BatchNorm(self.half, rngs=rngs)

    def forward(self, x: Array) -> Array:
        """`[B, H, W, channels]` to the same shape."""
        y = nnx.relu(self.norm1(self.conv1(x[..., self.half :])))
        y = self.norm3(self.conv3(self.norm2(self.conv2(y))))
        return jnp.concatenate([x[..., : self.half], y], axis=-1)


class DownUnit(Recomputable):
    """Two branches at stride 2: a 3x3 convolution of each channel by itself and a 1x1 one; and one as in `SplitUnit`.

    Returns the channels of both *before* the last ReLU and the shuffle.
    """

    def __init__(self, in_channels: int, channels: int, *, rngs: nnx.Rngs):
        half = channels // 2
        self.conv1 = convolution(in_channels, in_channels, size=3, stride=2, groups=in_channels, rngs=rngs)
        self.norm1 = BatchNorm(in_channels, rngs=rngs)
        self.conv2 = convolution(in_channels, half, size=1, rngs=rngs)
        self.norm2 = BatchNorm(half, rngs=rngs)
        self.conv3 = convolution(in_channels, half, size=1, rngs=rngs)
        self.norm3 = BatchNorm(half, rngs=rngs)
        self.conv4 = convolution(half, half, size=3, stride=2, groups=half, rngs=rngs)
        self.norm4 = BatchNorm(half, rngs=rngs)
        self.conv5 = convolution(half, half, size=1, rngs=rngs)
        self.norm5 = BatchNorm(half, rngs=rngs)

    def forward(self, x: Array) -> Array:
        """`[B, H, W, in_channels]` to `[B, ceil(H / 2), ceil(W / 2), channels]`."""
        left = self.norm2(self.conv2(self.norm1(self.conv1(x))))
        right = nnx.relu(self.norm3(self.conv3(x)))
        right = self.norm5(self.conv5(self.norm4(self.conv4(right))))
        return jnp.concatenate([left, right], axis=-1)


class _ShuffleNet(nnx.Module):
    """What both have in common: a 1x1 stem of 24 channels, three stages that begin at stride 2, global average pool, linear.

    Convolutions and the linear layer start as PyTorch's default.
    """

    def __init__(
        self, stages: Sequence[Sequence[Recomputable]], *, in_channels: int, stem: int, embedding: int, num_classes: int,
        rngs: nnx.Rngs,
    ):  # fmt: skip
        self.stem_conv = convolution(in_channels, stem, size=1, rngs=rngs)
        self.stem_norm = BatchNorm(stem, rngs=rngs)
        self.stages = nnx.List([nnx.List(units) for units in stages])
        self.classifier = linear(embedding, num_classes, rngs=rngs)

    def _outputs(self, x: Array, after: Callable[[Array], Array], head: Callable[[Array], Array]) -> ModelOutput:
        preactivations = [self.stem_norm(self.stem_conv(x))]
        features = [nnx.relu(preactivations[0])]
        for stage in self.stages:
            x = features[-1]
            for unit in stage:
                preactivation = unit(x)
                x = after(nnx.relu(preactivation))
            preactivations.append(preactivation)
            features.append(x)
        embedding = jnp.mean(head(x), axis=(1, 2))
        return ModelOutput(
            logits=self.classify(embedding),
            features=tuple(features),
            preactivations=tuple(preactivations),
            embedding=embedding,
        )

    def classify(self, embedding: Array) -> Array:
        """Class scores of pooled features: `[..., D]` to `[..., C]`."""
        return self.classifier(embedding)

    def norms(self):
        raise ValueError(
            f"{type(self).__name__} has no BatchNorm of all channels before the last ReLU of a stage, whose scale and bias "
            "norms() would be; take another teacher."
        )


class ShuffleNetV1(_ShuffleNet):
    """Three stages of 4, 8 and 4 units with convolutions in three groups. See `_ShuffleNet` for what is before and after."""

    def __init__(self, *, num_classes: int, width: int = 240, in_channels: int = 3, rngs: nnx.Rngs):
        """Makes the network.

        Args:
          num_classes: `C`.
          width: `K`, channels of the first stage, a multiple of 120; the others have 2 and 4 times as many, the stem a tenth.
          in_channels: channels of the input image.
          rngs: its "params" stream draws the weights.
        """
        if width % 120 or width < 120:
            raise ValueError(f"width must be a multiple of 120, so that all layers divide into 3 groups; got {width}")
        stages, before = [], width // 10
        for stage, units in enumerate((4, 8, 4)):
            channels = width * 2**stage
            first = GroupedUnit(before, channels, stride=2, first=stage == 0, rngs=rngs)
            others = [GroupedUnit(channels, channels, stride=1, first=False, rngs=rngs) for _ in range(units - 1)]
            stages.append([first, *others])
            before = channels
        sizes = {"in_channels": in_channels, "stem": width // 10, "embedding": before, "num_classes": num_classes}
        super().__init__(stages, **sizes, rngs=rngs)
        draw(self, fan_in_bound, rngs=rngs, uniform=True)

    def __call__(self, x: Array) -> ModelOutput:
        """The outputs for `[B, H, W, in_channels]` normalised images of any size.

        Features and preactivations are those of the stem and of the last unit of each stage: `[B, H, W, K/10]`, `[B, H/2,
        W/2, K]`, `[B, H/4, W/4, 2 K]`, `[B, H/8, W/8, 4 K]`, and `features[i] == relu(preactivations[i])` for all of them;
        the original repeats `features[0]` as its preactivation 0. The embedding is `[B, 4 K]`.
        """
        return self._outputs(x, lambda y: y, lambda y: y)


class ShuffleNetV2(_ShuffleNet):
    """Three stages of 4, 8 and 4 units that split their channels, a 1x1 convolution to 1024 channels. See `_ShuffleNet`."""

    def __init__(self, *, num_classes: int, width: int = 116, last: int = 1024, in_channels: int = 3, rngs: nnx.Rngs):
        """Makes the network.

        Args:
          num_classes: `C`.
          width: `K`, channels of the first stage, even; the others have 2 and 4 times as many. Published are 48, 116 and 176.
            The stem has 24 in all.
          last: `D`, channels of the last convolution.
          in_channels: channels of the input image.
          rngs: its "params" stream draws the weights.
        """
        if width % 2 or width < 2:
            raise ValueError(f"width must be even, for units split their channels; got {width}")
        stages, before = [], STEM
        for stage, units in enumerate((4, 8, 4)):
            channels = width * 2**stage
            others = [SplitUnit(channels, rngs=rngs) for _ in range(units - 1)]
            stages.append([DownUnit(before, channels, rngs=rngs), *others])
            before = channels
        sizes = {"in_channels": in_channels, "stem": STEM, "embedding": last, "num_classes": num_classes}
        super().__init__(stages, **sizes, rngs=rngs)
        self.last_conv = convolution(before, last, size=1, rngs=rngs)
        self.last_norm = BatchNorm(last, rngs=rngs)
        draw(self, fan_in_bound, rngs=rngs, uniform=True)

    def __call__(self, x: Array) -> ModelOutput:
        """The outputs for `[B, H, W, in_channels]` normalised images of any size.

        Features and preactivations are those of the stem and of the last unit of each stage: `[B, H, W, 24]`, `[B, H/2, W/2, K]`,
        `[B, H/4, W/4, 2 K]`, `[B, H/8, W/8, 4 K]`. As in the original, features of stages are shuffled after their ReLU and
        preactivations are not: `features[i] == shuffled(relu(preactivations[i]), 2)` there, and without the shuffle of the stem,
        whose features the original repeats as its preactivation 0. The embedding is `[B, D]`.
        """
        return self._outputs(x, lambda y: shuffled(y, 2), lambda y: nnx.relu(self.last_norm(self.last_conv(y))))

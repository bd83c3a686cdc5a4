"""Wide residual networks for CIFAR, laid out as in the checkpoints of the distillation benchmarks.

Zagoruyko and Komodakis, Wide Residual Networks, BMVC 2016, arXiv 1605.07146; `wrn_{16,40}_{1,2}` of Tian et al., Contrastive
Representation Distillation, ICLR 2020, arXiv 1910.10699.
"""

import jax.numpy as jnp
from flax import nnx

from kdjax.models.rematerialization import Recomputable
from kdjax.models.zoo.layers import ZERO, convolution, draw, fan_out_deviation, linear
from kdjax.models.zoo.normalization import BatchNorm
from kdjax.types import Array, ModelOutput


class WideBlock(Recomputable):
    """BatchNorm, ReLU and a 3x3 convolution, twice, and a shortcut, which is added last.

    The shortcut is the identity; where the stride or the width changes it is a 1x1 convolution of the input after the first
    BatchNorm and ReLU.
    """

    def __init__(self, in_channels: int, channels: int, *, stride: int, rngs: nnx.Rngs):
        self.norm1 = BatchNorm(in_channels, rngs=rngs)
        self.conv1 = convolution(in_channels, channels, size=3, stride=stride, rngs=rngs)
        self.norm2 = BatchNorm(channels, rngs=rngs)
        self.conv2 = convolution(channels, channels, size=3, rngs=rngs)
        changes = stride != 1 or in_channels != channels
        self.shortcut = convolution(in_channels, channels, size=1, stride=stride, rngs=rngs) if changes else None

    def forward(self, x: Array | tuple[Array, Array]) -> Array:
        """`[B, H, W, in_channels]`, or that and itself after `norm1`, to `[B, ceil(H / stride), ceil(W / stride), channels]`."""
        x, normalised = x if isinstance(x, tuple) else (x, self.norm1(x))
        activation = nnx.relu(normalised)
        y = self.conv2(nnx.relu(self.norm2(self.conv1(activation))))
        return y + (x if self.shortcut is None else self.shortcut(activation))


class WideResNet(nnx.Module):
    """A 3x3 convolution, three stages of `(depth - 4) / 6` blocks at strides 1, 2, 2, BatchNorm, ReLU, average pool, linear.

    Convolutions start Kaiming normal (fan out), the linear layer as PyTorch's default with a bias of 0. There is no dropout.

    The original normalises the end of each stage once for the next block and once more for its list of preactivations, so that in
    training the running statistics of three layers (the first BatchNorm of stages 2 and 3, and the last one) move twice a
    step: by 0.19 of the way to those of the batch, and by 0.1 in all other layers. Here it is done once, for both uses, and
    they move by 0.1 as the others do. Logits, features, gradients and the statistics of the batch are the same.
    """

    def __init__(
        self,
        depth: int,
        *,
        num_classes: int,
        channels: tuple[int, int, int, int],
        in_channels: int = 3,
        rngs: nnx.Rngs,
    ):
        """Makes the network.

        Args:
          depth: number of layers with weights on the longest path, `6 n + 4`.
          num_classes: `C`.
          channels: width of the first convolution and of each stage.
          in_channels: channels of the input image.
          rngs: its "params" stream draws the weights.
        """
        if depth < 10 or depth % 6 != 4:
            raise ValueError(f"depth must be 6 n + 4 with n >= 1 (10, 16, 22, ...), got {depth}")
        self.stem_conv = convolution(in_channels, channels[0], size=3, rngs=rngs)
        stages = []
        for before, width, stride in zip(channels[:-1], channels[1:], (1, 2, 2), strict=True):
            first = WideBlock(before, width, stride=stride, rngs=rngs)
            others = [WideBlock(width, width, stride=1, rngs=rngs) for _ in range((depth - 4) // 6 - 1)]
            stages.append(nnx.List([first, *others]))
        self.stages = nnx.List(stages)
        self.last_norm = BatchNorm(channels[-1], rngs=rngs)
        self.classifier = linear(channels[-1], num_classes, bias_init=ZERO, rngs=rngs)
        draw(self, fan_out_deviation, rngs=rngs)

    def __call__(self, x: Array) -> ModelOutput:
        """The outputs for `[B, H, W, in_channels]` normalised images of any size.

        Features are the first convolution and the sums at the end of each stage, as the original has them: neither normalised nor
        activated. Preactivations are the same after the BatchNorm that follows, before its ReLU, so
        `features[i] == relu(preactivations[i])` does not hold here. Both are `[B, H, W, channels[0]]`, `[B, H, W, channels[1]]`,
        `[B, H/2, W/2, channels[2]]`, `[B, H/4, W/4, channels[3]]`. The original lists the first convolution itself as the first
        preactivation.
        """
        x = self.stem_conv(x)
        features, preactivations = [x], []
        for stage in self.stages:
            preactivations.append(stage[0].norm1(x))
            x = stage[0]((x, preactivations[-1]))
            for block in stage[1:]:
                x = block(x)
            features.append(x)
        preactivations.append(self.last_norm(x))
        embedding = jnp.mean(nnx.relu(preactivations[-1]), axis=(1, 2))
        return ModelOutput(
            logits=self.classify(embedding),
            features=tuple(features),
            preactivations=tuple(preactivations),
            embedding=embedding,
        )

    def classify(self, embedding: Array) -> Array:
        """Class scores of pooled features: `[..., channels[3]]` to `[..., C]`."""
        return self.classifier(embedding)

    def norms(self) -> tuple[tuple[Array, Array], ...]:
        """Scale and bias, `[K]` each, of the BatchNorm that gives each of `preactivations`."""
        last = (*(stage[0].norm1 for stage in self.stages), self.last_norm)
        return tuple((norm.scale[...], norm.bias[...]) for norm in last)

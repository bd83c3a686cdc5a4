"""MobileNetV2 for CIFAR, laid out as in the checkpoints of the distillation benchmarks.

Sandler et al., MobileNetV2: Inverted Residuals and Linear Bottlenecks, CVPR 2018, arXiv 1801.04381; at half the width with the
strides of Tian et al., Contrastive Representation Distillation, ICLR 2020, arXiv 1910.10699 (`mobile_half`).
"""

import jax.numpy as jnp
from flax import nnx

from kdjax.models.rematerialization import Recomputable
from kdjax.models.zoo.layers import NEAR_ZERO, ZERO, convolution, draw, fan_out_deviation, linear
from kdjax.models.zoo.normalization import BatchNorm
from kdjax.types import Array, ModelOutput

# Expansion (0: the network's), channels at full width, blocks, stride of the first one.
STAGES = ((1, 16, 1, 1), (0, 24, 2, 1), (0, 32, 3, 2), (0, 64, 4, 2), (0, 96, 3, 1), (0, 160, 3, 2), (0, 320, 1, 1))
ENDS = (1, 2, 4, 6)  # the stages whose outputs are features
FULL, LAST = 32, 1280  # channels of the stem at full width, and of the embedding


class InvertedResidual(Recomputable):
    """A 1x1 convolution that widens, a 3x3 one of each channel by itself, and a 1x1 one that narrows, with BatchNorm each.

    ReLU follows the first two. The input is added where its shape is that of the output. Unlike in the paper's own code the first
    convolution is there at an expansion of 1 too, and the activation is ReLU, not ReLU6.
    """

    def __init__(self, in_channels: int, channels: int, *, stride: int, expansion: int, rngs: nnx.Rngs):
        inner = in_channels * expansion
        self.expand_conv = convolution(in_channels, inner, size=1, rngs=rngs)
        self.expand_norm = BatchNorm(inner, rngs=rngs)
        self.depth_conv = convolution(inner, inner, size=3, stride=stride, groups=inner, rngs=rngs)
        self.depth_norm = BatchNorm(inner, rngs=rngs)
        self.project_conv = convolution(inner, channels, size=1, rngs=rngs)
        self.project_norm = BatchNorm(channels, rngs=rngs)
        self.adds = stride == 1 and in_channels == channels

    def forward(self, x: Array) -> Array:
        """`[B, H, W, in_channels]` to `[B, ceil(H / stride), ceil(W / stride), channels]`."""
        y = nnx.relu(self.expand_norm(self.expand_conv(x)))
        y = nnx.relu(self.depth_norm(self.depth_conv(y)))
        y = self.project_norm(self.project_conv(y))
        return x + y if self.adds else y


class CifarMobileNetV2(nnx.Module):
    """A 3x3 stem at stride 2, 17 inverted residual blocks, a 1x1 convolution, global average pool, linear.

    Convolutions start Kaiming normal (fan out, of a convolution by channels all its outputs), the linear layer normal with a
    deviation of 0.01 and a bias of 0.
    """

    def __init__(self, *, num_classes: int, width: int = 16, expansion: int = 6, in_channels: int = 3, rngs: nnx.Rngs):
        """Makes the network.

        Args:
          num_classes: `C`.
          width: channels of the stem, of which full width has 32; the others keep their ratio to it, rounded down. The
            embedding has 1280, and more at more than full width.
          expansion: by how much blocks widen inside; the first one does not.
          in_channels: channels of the input image.
          rngs: its "params" stream draws the weights.
        """
        if width < 2 or expansion < 1:
            raise ValueError(f"width must be at least 2 and expansion 1, got width={width}, expansion={expansion}")
        self.stem_conv = convolution(in_channels, width, size=3, stride=2, rngs=rngs)
        self.stem_norm = BatchNorm(width, rngs=rngs)
        stages, before = [], width
        for own, full, blocks, first_stride in STAGES:
            layers = []
            for stride in (first_stride, *(1 for _ in range(blocks - 1))):
                channels = full * width // FULL
                layers.append(InvertedResidual(before, channels, stride=stride, expansion=own or expansion, rngs=rngs))
                before = channels
            stages.append(nnx.List(layers))
        self.stages = nnx.List(stages)
        last = max(LAST, LAST * width // FULL)
        self.last_conv = convolution(before, last, size=1, rngs=rngs)
        self.last_norm = BatchNorm(last, rngs=rngs)
        self.classifier = linear(last, num_classes, kernel_init=NEAR_ZERO, bias_init=ZERO, rngs=rngs)
        draw(self, fan_out_deviation, rngs=rngs)

    def __call__(self, x: Array) -> ModelOutput:
        """The outputs for `[B, H, W, in_channels]` normalised images of any size.

        Features are the stem after its ReLU and the outputs of stages 2, 3, 5 and 7, `[B, h, w, k]` with h = H/2, H/2, H/4,
        H/8, H/16. Those of stages end in BatchNorm or in a sum, with no ReLU after: they are their own preactivations, and
        `features[i] == relu(preactivations[i])` holds of the stem alone. The original lists no preactivations.
        """
        preactivations = [self.stem_norm(self.stem_conv(x))]
        x = nnx.relu(preactivations[0])
        features = [x]
        for i, stage in enumerate(self.stages):
            for block in stage:
                x = block(x)
            if i in ENDS:
                preactivations.append(x)
                features.append(x)
        embedding = jnp.mean(nnx.relu(self.last_norm(self.last_conv(x))), axis=(1, 2))
        return ModelOutput(
            logits=self.classify(embedding),
            features=tuple(features),
            preactivations=tuple(preactivations),
            embedding=embedding,
        )

    def classify(self, embedding: Array) -> Array:
        """Class scores of pooled features: `[..., 1280]` to `[..., C]`."""
        return self.classifier(embedding)

    def norms(self) -> tuple[tuple[Array, Array], ...]:
        """Scale and bias, `[K]` each, of the last BatchNorm of the stem and of the last block of each stage of features."""
        last = (self.stem_norm, *(self.stages[i][-1].project_norm for i in ENDS))
        return tuple((norm.scale[...], norm.bias[...]) for norm in last)

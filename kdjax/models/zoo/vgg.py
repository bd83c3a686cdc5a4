"""VGG with BatchNorm for CIFAR, laid out as in the checkpoints of the distillation benchmarks.

Simonyan and Zisserman, Very Deep Convolutional Networks for Large-Scale Image Recognition, ICLR 2015, arXiv 1409.1556,
configurations A, B, D, E with BatchNorm and one linear layer; VGG-8, of one convolution a stage, and these forms are from
Tian et al., Contrastive Representation Distillation, ICLR 2020, arXiv 1910.10699.
"""

from flax import nnx

from kdjax.models.rematerialization import Recomputable
from kdjax.models.zoo.layers import NEAR_ZERO, ZERO, convolution, draw, fan_out_deviation, linear, pooled, through
from kdjax.models.zoo.normalization import BatchNorm
from kdjax.types import Array, ModelOutput

DEPTHS = {8: (1, 1, 1, 1, 1), 11: (1, 1, 2, 2, 2), 13: (2, 2, 2, 2, 2), 16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}


class BiasedConvNorm(Recomputable):
    """A 3x3 convolution with bias, and BatchNorm; the ReLU is left to the caller."""

    def __init__(self, in_channels: int, channels: int, *, rngs: nnx.Rngs):
        self.conv = convolution(in_channels, channels, size=3, bias=True, rngs=rngs)
        self.norm = BatchNorm(channels, rngs=rngs)

    def forward(self, x: Array) -> Array:
        """`[B, H, W, in_channels]` to `[B, H, W, channels]`."""
        return self.norm(self.conv(x))


class VGG(nnx.Module):
    """Five stages of 3x3 convolutions with BatchNorm and ReLU, max pools between them, global average pool, linear.

    There is no pool before the last stage, unless the image is 64 high: the original's rule. Convolutions start Kaiming
    normal (fan out) with a bias of 0, the linear layer normal with a deviation of 0.01 and a bias of 0.
    """

    def __init__(self, depth: int, *, num_classes: int, width: int = 64, in_channels: int = 3, rngs: nnx.Rngs):
        """Makes the network.

        Args:
          depth: 8, 11, 13, 16 or 19.
          num_classes: `C`.
          width: `K`, channels of the first stage; the others have 2, 4, 8 and 8 times as many.
          in_channels: channels of the input image.
          rngs: its "params" stream draws the weights.
        """
        if depth not in DEPTHS:
            raise ValueError(f"there is no VGG of depth {depth}; known are {', '.join(map(str, DEPTHS))}")
        stages, before = [], in_channels
        for convolutions, factor in zip(DEPTHS[depth], (1, 2, 4, 8, 8), strict=True):
            layers = []
            for _ in range(convolutions):
                layers.append(BiasedConvNorm(before, factor * width, rngs=rngs))
                before = factor * width
            stages.append(nnx.List(layers))
        self.stages = nnx.List(stages)
        self.classifier = linear(before, num_classes, kernel_init=NEAR_ZERO, bias_init=ZERO, rngs=rngs)
        draw(self, fan_out_deviation, rngs=rngs)

    def __call__(self, x: Array) -> ModelOutput:
        """The outputs for `[B, H, W, in_channels]` normalised images of at least 8 by 8.

        Features and preactivations are those of the last convolution of each stage, before the pool: of K, 2 K, 4 K, 8 K and 8 K
        channels, and H, H // 2, H // 4, H // 8 and H // 8 high (H // 16 for H = 64, see above).
        `features[i] == relu(preactivations[i])` for all of them; the original repeats `features[0]` as its preactivation 0.
        """
        height, width = x.shape[1:3]
        least = 16 if height == 64 else 8
        if min(height, width) < least:
            raise ValueError(
                f"VGG halves its images till {height}x{width} leaves nothing; it takes {least}x{least} or more."
            )
        features, preactivations = [], []
        for i, stage in enumerate(self.stages):
            if 0 < i < 4 or (i == 4 and height == 64):
                x = nnx.max_pool(x, (2, 2), (2, 2))
            x, preactivation = through(stage, x)
            preactivations.append(preactivation)
            features.append(x)
        return pooled(features, preactivations, self.classify)

    def classify(self, embedding: Array) -> Array:
        """Class scores of pooled features: `[..., 8 K]` to `[..., C]`."""
        return self.classifier(embedding)

    def norms(self) -> tuple[tuple[Array, Array], ...]:
        """Scale and bias, `[K]` each, of the BatchNorm that gives each of `preactivations`."""
        return tuple((stage[-1].norm.scale[...], stage[-1].norm.bias[...]) for stage in self.stages)

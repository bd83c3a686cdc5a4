"""A small convolutional network for 28x28 and 8x8 images, quick on a CPU at any width."""

from flax import nnx

from kdjax.models.rematerialization import Recomputable
from kdjax.models.zoo.layers import convolution, draw, fan_out_deviation, linear, pooled, through
from kdjax.models.zoo.normalization import BatchNorm
from kdjax.types import Array, ModelOutput


class ConvNorm(Recomputable):
    """A 3x3 convolution and BatchNorm; the ReLU is left to the caller."""

    def __init__(self, in_channels: int, channels: int, *, stride: int, rngs: nnx.Rngs):
        self.conv = convolution(in_channels, channels, size=3, stride=stride, rngs=rngs)
        self.norm = BatchNorm(channels, rngs=rngs)

    def forward(self, x: Array) -> Array:
        """`[B, H, W, in_channels]` to `[B, ceil(H / stride), ceil(W / stride), channels]`."""
        return self.norm(self.conv(x))


class SmallCNN(nnx.Module):
    """`depth` stages of 3x3 convolutions with BatchNorm and ReLU, global average pool, linear.

    The first convolution of a stage has stride 2. Stage `i` has `width * 2**i` channels, so the number of parameters
    grows with the square of `width`: a teacher of width 32 to 64 and a student of width 8 have the same layers. There
    is no max pooling: its gradient is the slowest operation of such a network on a CPU.
    """

    def __init__(
        self,
        num_classes: int,
        *,
        width: int = 16,
        in_channels: int = 1,
        depth: int = 3,
        convs_per_stage: int = 2,
        rngs: nnx.Rngs,
    ):
        """Makes the network.

        Args:
          num_classes: `C`.
          width: channels of the first stage.
          in_channels: channels of the input image.
          depth: number of stages, each of which halves the image and doubles the channels.
          convs_per_stage: convolutions a stage; 1 is about three times cheaper and learns less.
          rngs: its "params" stream draws the weights.
        """
        if min(width, depth, convs_per_stage) < 1:
            raise ValueError(
                "width, depth and convs_per_stage must be at least 1, "
                f"got width={width}, depth={depth}, convs_per_stage={convs_per_stage}"
            )
        stages, before = [], in_channels
        for stage in range(depth):
            channels = width * 2**stage
            first = ConvNorm(before, channels, stride=2, rngs=rngs)
            others = [ConvNorm(channels, channels, stride=1, rngs=rngs) for _ in range(convs_per_stage - 1)]
            stages.append(nnx.List([first, *others]))
            before = channels
        self.stages = nnx.List(stages)
        self.classifier = linear(before, num_classes, rngs=rngs)
        draw(self, fan_out_deviation, rngs=rngs)

    def __call__(self, x: Array) -> ModelOutput:
        """The outputs for `[B, H, W, in_channels]` images of any size.

        `features[i]` and `preactivations[i]` are those of the end of stage `i`,
        `[B, ceil(H / 2**(i+1)), ceil(W / 2**(i+1)), width * 2**i]`; the embedding is `[B, width * 2**(depth-1)]`.
        """
        features, preactivations = [], []
        for stage in self.stages:
            x, preactivation = through(stage, x)
            preactivations.append(preactivation)
            features.append(x)
        return pooled(features, preactivations, self.classify)

    def classify(self, embedding: Array) -> Array:
        """Class scores of pooled features: `[..., D]` to `[..., C]`."""
        return self.classifier(embedding)

    def norms(self) -> tuple[tuple[Array, Array], ...]:
        """Scale and bias, `[K]` each, of the BatchNorm before the last ReLU of each stage: a pair for each preactivation."""
        return tuple((stage[-1].norm.scale[...], stage[-1].norm.bias[...]) for stage in self.stages)

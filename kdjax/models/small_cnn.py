"""A small convolutional network for 28x28 and 8x8 images, quick on a CPU at any width."""

import itertools

import jax.numpy as jnp
from flax import nnx

from kdjax.models.normalization import BatchNorm
from kdjax.models.resnet_cifar import convolution, draw_kernels, linear
from kdjax.types import Array, ModelOutput


class SmallCNN(nnx.Module):
    """`depth` stages, each a 3x3 convolution of stride 2 with BatchNorm and ReLU, global average pool, linear.

    Stage `i` has `width * 2**i` channels, so the number of parameters grows with the square of `width`: a teacher of
    width 64 and a student of width 8 have the same layers. There is no max pooling: its gradient is the slowest
    operation of such a network on a CPU.
    """

    def __init__(
        self,
        num_classes: int,
        *,
        width: int = 16,
        in_channels: int = 1,
        depth: int = 3,
        rngs: nnx.Rngs,
    ):
        """Makes the network.

        Args:
          num_classes: `C`.
          width: channels of the first stage.
          in_channels: channels of the input image.
          depth: number of stages, each of which halves the image and doubles the channels.
          rngs: its "params" stream draws the weights.
        """
        if width < 1 or depth < 1:
            raise ValueError(f"width and depth must be at least 1, got width={width}, depth={depth}")
        channels = [in_channels, *(width * 2**stage for stage in range(depth))]
        pairs = list(itertools.pairwise(channels))
        self.convs = nnx.List([convolution(a, b, size=3, stride=2, rngs=rngs) for a, b in pairs])
        self.norms = nnx.List([BatchNorm(b, rngs=rngs) for _, b in pairs])
        self.classifier = linear(channels[-1], num_classes, rngs=rngs)
        draw_kernels(self, rngs=rngs)

    def __call__(self, x: Array) -> ModelOutput:
        """The outputs for `[B, H, W, in_channels]` images of any size.

        `features[i]` and `preactivations[i]` are `[B, ceil(H / 2**(i+1)), ceil(W / 2**(i+1)), width * 2**i]`, the
        embedding is `[B, width * 2**(depth-1)]`.
        """
        features, preactivations = [], []
        for conv, norm in zip(self.convs, self.norms, strict=True):
            preactivations.append(norm(conv(x)))
            x = nnx.relu(preactivations[-1])
            features.append(x)
        embedding = jnp.mean(x, axis=(1, 2))
        return ModelOutput(
            logits=self.classify(embedding),
            features=tuple(features),
            preactivations=tuple(preactivations),
            embedding=embedding,
        )

    def classify(self, embedding: Array) -> Array:
        """Class scores of pooled features: `[..., D]` to `[..., C]`."""
        return self.classifier(embedding)

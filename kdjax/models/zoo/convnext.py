"""ConvNeXt, laid out as timm's.

Liu et al., A ConvNet for the 2020s, CVPR 2022, arXiv 2201.03545. There is no stochastic depth.
"""

import itertools

import jax.numpy as jnp
from flax import nnx

from kdjax.models.rematerialization import Recomputable
from kdjax.models.zoo.attention import MLP, layer_norm
from kdjax.models.zoo.layers import convolution, dense, draw
from kdjax.types import Array, ModelOutput


class ConvNeXtBlock(Recomputable):
    """A 7x7 depthwise convolution, layer normalisation and a perceptron of each position, scaled by channel and added to the
    input."""

    def __init__(self, channels: int, *, rngs: nnx.Rngs):
        self.depthwise = convolution(channels, channels, size=7, groups=channels, bias=True, rngs=rngs)
        self.block_norm = layer_norm(channels, rngs=rngs)
        self.mlp = MLP(channels, 4 * channels, rngs=rngs)
        self.gamma = nnx.Param(jnp.full(channels, 1e-6, jnp.float32))

    def forward(self, x: Array) -> Array:
        """`[B, H, W, K]` to the same shape."""
        gamma = jnp.reshape(self.gamma[...], (1, 1, 1, -1)).astype(x.dtype)
        return x + gamma * self.mlp(self.block_norm(self.depthwise(x)))


class Downsample(nnx.Module):
    """Layer normalisation and a 2x2 convolution at stride 2."""

    def __init__(self, in_channels: int, channels: int, *, rngs: nnx.Rngs):
        self.norm = layer_norm(in_channels, rngs=rngs)
        self.conv = _cut(in_channels, channels, 2, rngs=rngs)

    def __call__(self, x: Array) -> Array:
        """`[B, H, W, in_channels]` to `[B, H // 2, W // 2, channels]`."""
        return self.conv(self.norm(x))


class ConvNeXt(nnx.Module):
    """Patches of 4x4 pixels, four stages of blocks, each but the first behind a 2x2 convolution, global average pool, linear."""

    def __init__(
        self,
        blocks: tuple[int, ...] = (3, 3, 9, 3),
        *,
        num_classes: int,
        width: int = 96,
        in_channels: int = 3,
        rngs: nnx.Rngs,
    ):
        """Makes the network.

        Args:
          blocks: how many a stage.
          num_classes: `C`.
          width: channels of the first stage; they double every stage.
          in_channels: channels of the input image.
          rngs: its "params" stream draws the weights.
        """
        self.stem_conv = _cut(in_channels, width, 4, rngs=rngs)
        self.stem_norm = layer_norm(width, rngs=rngs)
        widths = [width * 2**i for i in range(len(blocks))]
        self.downsamples = nnx.List([Downsample(a, b, rngs=rngs) for a, b in itertools.pairwise(widths)])
        self.stages = nnx.List(
            [
                nnx.List([ConvNeXtBlock(k, rngs=rngs) for _ in range(count)])
                for k, count in zip(widths, blocks, strict=True)
            ]
        )
        self.norm = layer_norm(widths[-1], rngs=rngs)
        self.classifier = dense(widths[-1], num_classes, rngs=rngs)
        draw(self, lambda part: 0.02, rngs=rngs)

    def __call__(self, x: Array) -> ModelOutput:
        """The outputs for `[B, H, W, in_channels]` normalised images, of at least 32 by 32 with four stages.

        Features are those of the stem and of the last block of each stage, at 1/4, 1/4, 1/8, 1/16 and 1/32 of the image's
        size; no activation is behind them, and there are no preactivations. The embedding `[B, D]` is the mean of the last,
        which `classify` normalises.
        """
        (height, width), least = x.shape[1:3], 4 * 2 ** len(self.downsamples)
        if min(height, width) < least:
            raise ValueError(
                f"ConvNeXt cuts its images into patches till {height}x{width} leaves nothing; it takes {least}x{least} or more."
            )
        x = self.stem_norm(self.stem_conv(x))
        features = [x]
        for number, stage in enumerate(self.stages):
            x = x if number == 0 else self.downsamples[number - 1](x)
            for block in stage:
                x = block(x)
            features.append(x)
        embedding = jnp.mean(x, axis=(1, 2))
        return ModelOutput(logits=self.classify(embedding), features=tuple(features), embedding=embedding)

    def classify(self, embedding: Array) -> Array:
        """Class scores of pooled features: `[..., D]` to `[..., C]`."""
        return self.classifier(self.norm(embedding))


def _cut(in_channels: int, channels: int, size: int, *, rngs: nnx.Rngs) -> nnx.Conv:
    """A convolution of patches that do not overlap; what is left over at the edges is not seen."""
    return nnx.Conv(
        in_channels, channels, (size, size), strides=size, padding="VALID", kernel_init=nnx.initializers.zeros_init(),
        rngs=rngs,
    )  # fmt: skip

"""Swin transformers, laid out as timm's.

Liu et al., Swin Transformer: Hierarchical Vision Transformer using Shifted Windows, ICCV 2021, arXiv 2103.14030. There is no
dropout and no stochastic depth.
"""

import math

import jax.numpy as jnp
import numpy as np
from flax import nnx

from kdjax.models.rematerialization import Recomputable
from kdjax.models.zoo.attention import MLP, Attention, layer_norm, linear_deviation, normal, patches
from kdjax.models.zoo.layers import dense, draw
from kdjax.types import Array, ModelOutput

EPSILON = 1e-5
APART = -100.0  # is added where two tokens of a window are no neighbours in the image


class SwinBlock(Recomputable):
    """Attention within windows and a perceptron, each behind a layer normalisation and added to its input.

    Where a map is no larger than a window, the window is the map, and nothing is shifted. Maps that windows do not divide are
    filled up with zeros below and right, which take part in the attention, as in timm.
    """

    def __init__(self, size: tuple[int, int], width: int, heads: int, *, window: int, shifted: bool, rngs: nnx.Rngs):
        """Makes the block for maps of `size`, height and width; `shifted` moves the windows by half of one."""
        self.size = size
        self.window = tuple(min(side, window) for side in size)
        self.shift = tuple(window // 2 if shifted and side > window else 0 for side in size)
        self.padding = tuple(-side % part for side, part in zip(size, self.window, strict=True))
        self.norm1 = layer_norm(width, epsilon=EPSILON, rngs=rngs)
        self.attention = Attention(width, heads, rngs=rngs)
        high, wide = self.window
        self.biases = normal(((2 * high - 1) * (2 * wide - 1), heads), 0.02, rngs=rngs)
        self.norm2 = layer_norm(width, epsilon=EPSILON, rngs=rngs)
        self.mlp = MLP(width, 4 * width, rngs=rngs)

    def forward(self, x: Array) -> Array:
        """`[B, H, W, K]` to the same shape."""
        x = x + self._windows(self.norm1(x))
        return x + self.mlp(self.norm2(x))

    def _windows(self, x: Array) -> Array:
        rows, height, width, channels = x.shape
        x = jnp.roll(x, [-s for s in self.shift], axis=(1, 2))
        x = jnp.pad(x, ((0, 0), *((0, p) for p in self.padding), (0, 0)))
        parts = _cut(x, self.window)
        area = self.window[0] * self.window[1]
        bias = jnp.moveaxis(self.biases[...][_distances(*self.window)], 2, 0)[None]
        if any(self.shift):
            apart = jnp.asarray(self._apart(), bias.dtype)[None, :, None]  # of each window of an image
            bias = bias[None] + jnp.broadcast_to(apart, (rows, *apart.shape[1:]))
            bias = jnp.reshape(bias, (-1, *bias.shape[2:]))
        parts = self.attention(jnp.reshape(parts, (-1, area, channels)), bias)
        x = _join(jnp.reshape(parts, (-1, *self.window, channels)), x.shape)
        return jnp.roll(x[:, :height, :width], self.shift, axis=(1, 2))

    def _apart(self) -> np.ndarray:
        """`[windows, L, L]`: `APART` for tokens of a window that come from other sides of the image."""
        sizes = [side + pad for side, pad in zip(self.size, self.padding, strict=True)]
        region = np.zeros(sizes, np.int32)
        for axis, (side, window, shift) in enumerate(zip(sizes, self.window, self.shift, strict=True)):
            place = np.arange(side)
            part = (place >= side - window).astype(np.int32) + (place >= side - shift)
            region += 3**axis * np.expand_dims(part, 1 - axis)
        regions = _cut(region[None, :, :, None], self.window).reshape(-1, self.window[0] * self.window[1])
        return np.where(regions[:, :, None] == regions[:, None, :], 0.0, APART)


def _cut(x, window: tuple[int, int]):
    """`[B, H, W, K]` into windows `[B * windows, h, w, K]`."""
    rows, height, width, channels = x.shape
    high, wide = window
    x = x.reshape(rows, height // high, high, width // wide, wide, channels)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(-1, high, wide, channels)


def _join(parts: Array, shape: tuple[int, ...]) -> Array:
    """The inverse of `_cut`."""
    rows, height, width, channels = shape
    high, wide = parts.shape[1:3]
    x = parts.reshape(rows, height // high, width // wide, high, wide, channels)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(shape)


def _distances(high: int, wide: int) -> np.ndarray:
    """`[L, L]`, the row of the table of biases for every two tokens of a window."""
    place = np.stack(np.meshgrid(np.arange(high), np.arange(wide), indexing="ij")).reshape(2, -1)
    rows, columns = place[:, :, None] - place[:, None, :]
    return (rows + high - 1) * (2 * wide - 1) + columns + wide - 1


class Merging(nnx.Module):
    """Every 2x2 tokens as one: side by side, normalised, and by a linear layer to twice the width."""

    def __init__(self, width: int, *, rngs: nnx.Rngs):
        self.norm = layer_norm(4 * width, epsilon=EPSILON, rngs=rngs)
        self.reduction = dense(4 * width, 2 * width, bias=False, rngs=rngs)

    def __call__(self, x: Array) -> Array:
        """`[B, H, W, K]` to `[B, ceil(H / 2), ceil(W / 2), 2 K]`; an odd side is filled up with zeros."""
        x = jnp.pad(x, ((0, 0), *((0, side % 2) for side in x.shape[1:3]), (0, 0)))
        parts = [x[:, row::2, column::2] for column in (0, 1) for row in (0, 1)]
        return self.reduction(self.norm(jnp.concatenate(parts, axis=-1)))


class Swin(nnx.Module):
    """Patches of 4x4 pixels, four stages of blocks, each but the first behind a merging of patches, layer normalisation, global
    average pool, linear."""

    def __init__(
        self,
        image_size: tuple[int, int],
        blocks: tuple[int, ...] = (2, 2, 6, 2),
        *,
        num_classes: int,
        width: int = 96,
        heads: tuple[int, ...] = (3, 6, 12, 24),
        window: int = 7,
        in_channels: int = 3,
        rngs: nnx.Rngs,
    ):
        """Makes the network.

        Args:
          image_size: height and width of the images in pixels, multiples of 4.
          blocks: how many a stage.
          num_classes: `C`.
          width: of the first stage's tokens; it doubles every stage.
          heads: of each stage; the greatest divisor that they share with its width is taken.
          window: tokens of a window's side.
          in_channels: channels of the input image.
          rngs: its "params" stream draws the weights.

        Raises:
          ValueError: patches that do not divide the image.
        """
        if image_size[0] % 4 or image_size[1] % 4:
            raise ValueError(
                f"images of {image_size[0]}x{image_size[1]} pixels are not cut into patches of 4x4; use a multiple of 4."
            )
        self.image_size = image_size
        self.patches = patches(in_channels, width, 4, rngs=rngs)
        self.patch_norm = layer_norm(width, epsilon=EPSILON, rngs=rngs)
        size, stages, mergings = tuple(side // 4 for side in image_size), [], []
        for stage, count in enumerate(blocks):
            if stage:
                mergings.append(Merging(width, rngs=rngs))
                size, width = tuple(-(-side // 2) for side in size), 2 * width
            shared = math.gcd(width, heads[stage])
            stages.append(
                nnx.List(
                    [
                        SwinBlock(size, width, shared, window=window, shifted=block % 2 == 1, rngs=rngs)
                        for block in range(count)
                    ]
                )
            )
        self.mergings, self.stages = nnx.List(mergings), nnx.List(stages)
        self.norm = layer_norm(width, epsilon=EPSILON, rngs=rngs)
        self.classifier = dense(width, num_classes, rngs=rngs)
        draw(self, linear_deviation, rngs=rngs)

    def __call__(self, x: Array) -> ModelOutput:
        """The outputs for `[B, H, W, in_channels]` normalised images.

        Features are those of the last block of each stage, at 1/4, 1/8, 1/16 and 1/32 of the image's size, the last of them
        behind the last normalisation; there are no preactivations. The embedding `[B, D]` is the mean of the last.
        """
        if x.shape[1:3] != self.image_size:
            raise ValueError(
                f"images of {x.shape[1]}x{x.shape[2]} pixels, and this network is for those of "
                f"{self.image_size[0]}x{self.image_size[1]}; build it with image_size=({x.shape[1]}, {x.shape[2]})."
            )
        x, features = self.patch_norm(self.patches(x)), []
        for number, stage in enumerate(self.stages):
            x = x if number == 0 else self.mergings[number - 1](x)
            for block in stage:
                x = block(x)
            features.append(x)
        features[-1] = self.norm(x)
        embedding = jnp.mean(features[-1], axis=(1, 2))
        return ModelOutput(logits=self.classify(embedding), features=tuple(features), embedding=embedding)

    def classify(self, embedding: Array) -> Array:
        """Class scores of pooled features: `[..., D]` to `[..., C]`."""
        return self.classifier(embedding)

"""Vision transformers, and DeiT's with a distillation token, laid out as timm's.

Dosovitskiy et al., An Image is Worth 16x16 Words, ICLR 2021, arXiv 2010.11929, table 1; Touvron et al., Training data-efficient
image transformers and distillation through attention, ICML 2021, arXiv 2012.12877. The class token is read behind a layer
normalisation; there is no dropout and no stochastic depth.
"""

import math

import jax.numpy as jnp
from flax import nnx

from kdjax.models.rematerialization import Recomputable
from kdjax.models.zoo.attention import MLP, Attention, layer_norm, linear_deviation, normal, patches
from kdjax.models.zoo.layers import dense, draw
from kdjax.types import Array, ModelOutput

STAGES = 4  # runs of blocks whose ends are features


class TransformerBlock(Recomputable):
    """Attention and a perceptron, each behind a layer normalisation and added to its input."""

    def __init__(self, width: int, heads: int, *, rngs: nnx.Rngs):
        self.norm1 = layer_norm(width, rngs=rngs)
        self.attention = Attention(width, heads, rngs=rngs)
        self.norm2 = layer_norm(width, rngs=rngs)
        self.mlp = MLP(width, 4 * width, rngs=rngs)

    def forward(self, x: Array) -> Array:
        """`[B, L, K]` to the same shape."""
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class ViT(nnx.Module):
    """Patches and a class token (with `distilled` a second one) with a position each, blocks, a linear layer on a token each."""

    def __init__(
        self,
        image_size: tuple[int, int],
        *,
        num_classes: int,
        width: int,
        heads: int,
        depth: int = 12,
        patch: int = 16,
        distilled: bool = False,
        in_channels: int = 3,
        rngs: nnx.Rngs,
    ):
        """Makes the network.

        Args:
          image_size: height and width of the images in pixels, for which there are positions.
          num_classes: `C`.
          width: `K`, of every token.
          heads: of the attention; the greatest divisor that they share with `width` is taken.
          depth: number of blocks.
          patch: pixels of a patch's side.
          distilled: whether there is a token for the teacher, with a head of its own.
          in_channels: channels of the input image.
          rngs: its "params" stream draws the weights.

        Raises:
          ValueError: patches that do not divide the image.
        """
        if image_size[0] % patch or image_size[1] % patch:
            raise ValueError(
                f"images of {image_size[0]}x{image_size[1]} pixels are not cut into patches of {patch}x{patch}; use a "
                f"multiple of {patch}."
            )
        self.image_size, self.width, self.distilled = image_size, width, distilled
        count, tokens = (image_size[0] // patch) * (image_size[1] // patch), 2 if distilled else 1
        self.patches = patches(in_channels, width, patch, rngs=rngs)
        self.class_token = normal((1, 1, width), 1e-6, rngs=rngs)
        self.distillation_token = normal((1, 1, width), 0.02, rngs=rngs) if distilled else None
        self.positions = normal((1, count + tokens, width), 0.02, rngs=rngs)
        heads = math.gcd(width, heads)
        self.blocks = nnx.List([TransformerBlock(width, heads, rngs=rngs) for _ in range(depth)])
        self.norm = layer_norm(width, rngs=rngs)
        self.classifier = dense(width, num_classes, rngs=rngs)
        self.distillation_classifier = dense(width, num_classes, rngs=rngs) if distilled else None
        draw(self, linear_deviation, rngs=rngs)

    def __call__(self, x: Array) -> ModelOutput:
        """The outputs for `[B, H, W, in_channels]` normalised images.

        Features are the patches' tokens after each quarter of the blocks, as maps `[B, H / patch, W / patch, K]`, before the
        last normalisation; there are no preactivations. The embedding is the class token behind that normalisation, `[B, K]`.

        With a distillation token the embedding is both tokens, `[B, 2 K]`, and the logits are the mean of both heads, by which
        such a network is evaluated; the taps "class" and "distillation" are the heads by themselves, for
        `OnHead(inner=CrossEntropy(), head="class") + OnHead(inner=KD(), head="distillation")`.
        """
        if x.shape[1:3] != self.image_size:
            raise ValueError(
                f"images of {x.shape[1]}x{x.shape[2]} pixels, and this network has positions for those of "
                f"{self.image_size[0]}x{self.image_size[1]}; build it with image_size=({x.shape[1]}, {x.shape[2]})."
            )
        maps = self.patches(x)
        shape = maps.shape
        first = [self.class_token[...]] + ([self.distillation_token[...]] if self.distilled else [])
        first = [jnp.broadcast_to(token, (shape[0], 1, self.width)).astype(maps.dtype) for token in first]
        x = jnp.concatenate([*first, jnp.reshape(maps, (shape[0], -1, self.width))], axis=1)
        x = x + self.positions[...].astype(x.dtype)
        ends = {-(-len(self.blocks) * (i + 1) // STAGES) - 1 for i in range(STAGES)}
        features = []
        for number, block in enumerate(self.blocks):
            x = block(x)
            if number in ends:
                features.append(jnp.reshape(x[:, len(first) :], shape))
        embedding = jnp.reshape(self.norm(x[:, : len(first)]), (shape[0], -1))
        heads = self._heads(embedding)
        return ModelOutput(
            logits=_mean(heads),
            features=tuple(features),
            embedding=embedding,
            taps=dict(zip(("class", "distillation"), heads, strict=True)) if self.distilled else {},
        )

    def classify(self, embedding: Array) -> Array:
        """Class scores of an embedding: `[..., K]`, or `[..., 2 K]` with a distillation token, to `[..., C]`."""
        return _mean(self._heads(embedding))

    def _heads(self, embedding: Array) -> tuple[Array, ...]:
        if self.distillation_classifier is None:
            return (self.classifier(embedding),)
        classes, distillation = jnp.split(embedding, 2, axis=-1)
        return self.classifier(classes), self.distillation_classifier(distillation)


def _mean(heads: tuple[Array, ...]) -> Array:
    return heads[0] if len(heads) == 1 else (heads[0] + heads[1]) / 2

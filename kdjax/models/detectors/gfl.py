"""The detector of Generalized Focal Loss: Li et al., NeurIPS 2020, arXiv 2006.04388, as released in mmdetection."""

import itertools
import math

import jax
import jax.numpy as jnp
from flax import nnx

from kdjax.models.detectors.output import DetectorOutput
from kdjax.models.detectors.pyramid import FeaturePyramid
from kdjax.models.zoo.layers import convolution, draw
from kdjax.types import Array

PRIOR = 0.01  # score of every class at every location in the beginning


class GroupNorm(nnx.GroupNorm):
    """Groups of channels, each of one image, to mean 0 and variance 1 (of the squared deviations); epsilon 1e-5 as PyTorch's."""

    def __init__(self, num_features: int, num_groups: int, *, rngs: nnx.Rngs):
        super().__init__(num_features, num_groups=num_groups, epsilon=1e-5, use_fast_variance=False, rngs=rngs)


class ConvGroupNorm(nnx.Module):
    """A 3x3 convolution without bias, GroupNorm, ReLU."""

    def __init__(self, in_channels: int, channels: int, *, groups: int, rngs: nnx.Rngs):
        self.conv = convolution(in_channels, channels, size=3, rngs=rngs)
        self.norm = GroupNorm(channels, groups, rngs=rngs)

    def __call__(self, x: Array) -> Array:
        return jax.nn.relu(self.norm(self.conv(x)))


class Scale(nnx.Module):
    """A number that is learned, 1 at first."""

    def __init__(self):
        self.scale = nnx.Param(jnp.ones(()))

    def __call__(self, x: Array) -> Array:
        return x * self.scale[...].astype(x.dtype)


class GFLHead(nnx.Module):
    """Two towers of convolutions shared by all levels, for the classes and for the edges, and a 3x3 convolution behind each.

    The edges' logits, bias included, are multiplied by a number that each level learns.
    """

    def __init__(
        self, in_channels: int, *, num_classes: int, levels: int, bins: int = 17, channels: int = 256, depth: int = 4,
        groups: int = 32, deviation: float | None = 0.01, rngs: nnx.Rngs,
    ):  # fmt: skip
        """Makes the head.

        Args:
          in_channels: of the pyramid's maps.
          num_classes: `C`.
          levels: of the pyramid.
          bins: `K` of every edge.
          channels, depth: of the towers.
          groups: of GroupNorm.
          deviation: of the first weights of the towers; None is Kaiming normal, for a head that is trained shortly.
          rngs: its "params" stream draws the weights.
        """
        widths = [in_channels] + [channels] * depth
        tower = lambda: nnx.List([ConvGroupNorm(a, b, groups=groups, rngs=rngs) for a, b in itertools.pairwise(widths)])
        self.class_tower, self.edge_tower = tower(), tower()
        self.classes = convolution(widths[-1], num_classes, size=3, bias=True, rngs=rngs)
        self.edges = convolution(widths[-1], 4 * bins, size=3, bias=True, rngs=rngs)
        self.scales = nnx.List([Scale() for _ in range(levels)])
        last = (self.classes, self.edges)

        def scale(part):
            if not isinstance(part, nnx.Conv):
                return None
            height, width, before, _ = part.kernel.shape
            return 0.01 if part in last else deviation or math.sqrt(2 / (height * width * before))

        draw(self, scale, rngs=rngs)
        self.classes.bias[...] = jnp.full(num_classes, -math.log(1 / PRIOR - 1))

    def __call__(self, levels: tuple[Array, ...]) -> tuple[Array, Array]:
        """Maps `[B, h, w, D]` to `(class logits [B, A, C], edge logits [B, A, 4, K])`, in float32."""
        classes, edges = [], []
        for x, scale in zip(levels, self.scales, strict=True):
            c, e = x, x
            for layer in self.class_tower:
                c = layer(c)
            for layer in self.edge_tower:
                e = layer(e)
            c, e = self.classes(c), scale(self.edges(e))
            wide = jnp.promote_types(c.dtype, jnp.float32)
            classes.append(jnp.reshape(c, (c.shape[0], -1, c.shape[-1])).astype(wide))
            edges.append(jnp.reshape(e, (e.shape[0], -1, 4, e.shape[-1] // 4)).astype(wide))
        return jnp.concatenate(classes, axis=1), jnp.concatenate(edges, axis=1)


class GFL(nnx.Module):
    """A backbone, a pyramid, a head.

    Attributes:
      strides: of the levels.
      anchor_scale: side of a location's anchor in strides, for the assignment of objects.
    """

    def __init__(
        self, backbone: nnx.Module, *, num_classes: int, strides: tuple[int, ...] = (8, 16, 32, 64, 128),
        pyramid_channels: int = 256, bins: int = 17, head_channels: int | None = None, depth: int = 4, groups: int = 32,
        anchor_scale: float = 8.0, deviation: float | None = 0.01, rngs: nnx.Rngs,
    ):  # fmt: skip
        """Makes the detector; arguments as for `FeaturePyramid` and `GFLHead`."""
        self.strides, self.anchor_scale = tuple(strides), anchor_scale
        self.backbone = backbone
        self.pyramid = FeaturePyramid(backbone.channels, pyramid_channels, levels=len(strides), rngs=rngs)
        self.head = GFLHead(
            pyramid_channels, num_classes=num_classes, levels=len(strides), bins=bins,
            channels=head_channels or pyramid_channels, depth=depth, groups=groups, deviation=deviation, rngs=rngs,
        )  # fmt: skip

    def __call__(self, x: Array) -> DetectorOutput:
        """What it says of normalised images `[B, H, W, in_channels]`."""
        levels = self.pyramid(self.backbone(x))
        classes, edges = self.head(levels)
        return DetectorOutput(
            logits=classes, edge_logits=edges, features=levels, strides=self.strides, anchor_scale=self.anchor_scale
        )

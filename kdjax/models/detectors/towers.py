"""The head that dense detectors share: two towers, for classes and for boxes, and 3x3 convolutions behind them."""

import itertools
import math

import jax
import jax.numpy as jnp
from flax import nnx

from kdjax.models.zoo.layers import convolution, draw
from kdjax.types import Array

PRIOR = 0.01  # score of every class at every location in the beginning


class GroupNorm(nnx.GroupNorm):
    """Groups of channels, each of one image, to mean 0 and variance 1 (of the squared deviations); epsilon 1e-5 as PyTorch's."""

    def __init__(self, num_features: int, num_groups: int, *, rngs: nnx.Rngs):
        super().__init__(num_features, num_groups=num_groups, epsilon=1e-5, use_fast_variance=False, rngs=rngs)


class ConvGroupNorm(nnx.Module):
    """A 3x3 convolution, without bias if none is asked for, GroupNorm, ReLU."""

    def __init__(self, in_channels: int, channels: int, *, groups: int, bias: bool = False, rngs: nnx.Rngs):
        self.conv = convolution(in_channels, channels, size=3, bias=bias, rngs=rngs)
        self.norm = GroupNorm(channels, groups, rngs=rngs)

    def __call__(self, x: Array) -> Array:
        return jax.nn.relu(self.norm(self.conv(x)))


class ConvBias(nnx.Module):
    """A 3x3 convolution with bias, ReLU."""

    def __init__(self, in_channels: int, channels: int, *, rngs: nnx.Rngs):
        self.conv = convolution(in_channels, channels, size=3, bias=True, rngs=rngs)

    def __call__(self, x: Array) -> Array:
        return jax.nn.relu(self.conv(x))


class Scale(nnx.Module):
    """A number that is learned, 1 at first."""

    def __init__(self):
        self.scale = nnx.Param(jnp.ones(()))

    def __call__(self, x: Array) -> Array:
        return x * self.scale[...].astype(x.dtype)


class DenseHead(nnx.Module):
    """Two towers of convolutions shared by all levels, for the classes and for the edges, and a 3x3 convolution behind each.

    The edges' numbers, bias included, are multiplied by a number that each level learns, where that is asked.
    """

    def __init__(
        self, in_channels: int, *, num_classes: int, levels: int, anchors: int = 1, bins: int = 17, channels: int = 256,
        depth: int = 4, groups: int = 32, biased: bool = False, scaled: bool = True, centred: bool = False,
        deviation: float | None = 0.01, rngs: nnx.Rngs,
    ):  # fmt: skip
        """Makes the head.

        Args:
          in_channels: of the pyramid's maps.
          num_classes: `C`.
          levels: of the pyramid.
          anchors: of a location.
          bins: `K` of every edge; 1 for a number instead of a distribution.
          channels, depth: of the towers.
          groups: of GroupNorm; 0 for towers with biases in its place.
          biased: whether convolutions before GroupNorm have biases too.
          scaled: whether each level learns a factor of the edges.
          centred: whether it says centreness, behind the tower of the edges.
          deviation: of the first weights of the towers; None is Kaiming normal, for a head that is trained shortly.
          rngs: its "params" stream draws the weights.
        """
        self.bins = bins
        widths = [in_channels] + [channels] * depth

        def layer(a, b):
            return ConvGroupNorm(a, b, groups=groups, bias=biased, rngs=rngs) if groups else ConvBias(a, b, rngs=rngs)

        tower = lambda: nnx.List([layer(a, b) for a, b in itertools.pairwise(widths)])
        self.class_tower, self.edge_tower = tower(), tower()
        self.classes = convolution(widths[-1], anchors * num_classes, size=3, bias=True, rngs=rngs)
        self.edges = convolution(widths[-1], anchors * 4 * bins, size=3, bias=True, rngs=rngs)
        if centred:
            self.centreness = convolution(widths[-1], anchors, size=3, bias=True, rngs=rngs)
        if scaled:
            self.scales = nnx.List([Scale() for _ in range(levels)])
        self.anchors, self.scaled, self.centred = anchors, scaled, centred
        last = (self.classes, self.edges, *((self.centreness,) if centred else ()))

        def scale(part):
            if not isinstance(part, nnx.Conv):
                return None
            height, width, before, _ = part.kernel.shape
            return 0.01 if part in last else deviation or math.sqrt(2 / (height * width * before))

        draw(self, scale, rngs=rngs)
        self.classes.bias.set_value(jnp.full(anchors * num_classes, -math.log(1 / PRIOR - 1), jnp.float32))

    def __call__(self, levels: tuple[Array, ...]) -> dict[str, Array]:
        """Maps `[B, h, w, D]` to the fields of a `DetectorOutput` in float32, of all levels: "logits" `[B, A, C]`, "edge_logits"
        `[B, A, 4, K]` or "regression" `[B, A, 4]`, and "centreness" `[B, A]`."""
        found: dict[str, list[Array]] = {}
        name, shape = ("regression", (4,)) if self.bins == 1 else ("edge_logits", (4, self.bins))
        for i, x in enumerate(levels):
            c, e = x, x
            for layer in self.class_tower:
                c = layer(c)
            for layer in self.edge_tower:
                e = layer(e)
            edges = self.scales[i](self.edges(e)) if self.scaled else self.edges(e)
            classes = self.classes(c)
            said = {"logits": _rows(classes, (classes.shape[-1] // self.anchors,)), name: _rows(edges, shape)}
            if self.centred:
                said["centreness"] = _rows(self.centreness(e), ())
            for key, value in said.items():
                found.setdefault(key, []).append(value)
        return {key: jnp.concatenate(parts, axis=1) for key, parts in found.items()}


def _rows(x: Array, shape: tuple[int, ...]) -> Array:
    """`[B, h, w, n]` as `[B, A, *shape]`, in float32 at least."""
    return jnp.reshape(x, (x.shape[0], -1, *shape)).astype(jnp.promote_types(x.dtype, jnp.float32))

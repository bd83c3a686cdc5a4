"""What a dense detector says of a batch, and where its locations and anchors are."""

import dataclasses
from typing import Literal, NamedTuple

import jax.numpy as jnp
import numpy as np

from kdjax.types import Array, pytree

Head = Literal["gfl", "retinanet", "fcos", "atss", "ssd"]
Shapes = tuple[tuple[tuple[float, float], ...], ...]  # (width, height) in pixels of each anchor of a location, by level


@pytree(static=("strides", "anchor_scale", "head", "anchor_shapes", "offset", "deviations", "background"))
class DetectorOutput:
    """What a dense detector said about a batch of `B` images at its `A` anchors, level by level, row by row.

    Most heads have one anchor at a location, and are said to have `A` locations.

    Attributes:
      logits: `[B, A, C]`, one sigmoid a class; with `background` `[B, A, C + 1]`, a softmax whose last class is background.
      edge_logits: `[B, A, 4, K]`, of the bins 0 ... K - 1 of the distance of each edge (left, top, right, bottom) from the
        location, in strides of its level; None of a head without distributions.
      features: the pyramid's maps `[B, h, w, D]`, the finest first; what methods of features compare.
      taps: further intermediate values by name.
      strides: pixels between neighbouring locations of each level.
      anchor_scale: side of a location's square anchor in strides; where boxes are no deltas, anchors serve the assignment of
        objects alone.
      regression: `[B, A, 4]` of a head without distributions: deltas of the anchor with these `deviations`, see
        `kdjax.losses.decode_deltas`; or, of a head that has none, distances of the edges in strides.
      centreness: `[B, A]` logits of how far in the middle of its object a location is, of heads that say it.
      head: its kind, which says how objects are assigned.
      anchor_shapes: of all anchors of a location, by level; empty for the one square of `anchor_scale`.
      offset: of the first location from the image's corner, in strides.
      deviations: of deltas; empty where there are none.
      background: whether the classes are a softmax, with background.
    """

    logits: Array
    edge_logits: Array | None = None
    features: tuple[Array, ...] = ()
    taps: dict[str, Array] = dataclasses.field(default_factory=dict)
    strides: tuple[int, ...] = ()
    anchor_scale: float = 8.0
    regression: Array | None = None
    centreness: Array | None = None
    head: Head = "gfl"
    anchor_shapes: Shapes = ()
    offset: float = 0.0
    deviations: tuple[float, ...] = ()
    background: bool = False

    @property
    def num_classes(self) -> int:
        """Without the background."""
        return self.logits.shape[-1] - self.background

    @property
    def sizes(self) -> tuple[tuple[int, int], ...]:
        """`(height, width)` of each level's map."""
        return tuple((x.shape[1], x.shape[2]) for x in self.features)

    @property
    def shapes(self) -> Shapes:
        """Of all anchors of a location, by level."""
        square = lambda stride: ((self.anchor_scale * stride,) * 2,)
        return self.anchor_shapes or tuple(square(stride) for stride in self.strides)

    @property
    def grid(self) -> "Grid":
        """Where its anchors are."""
        return anchor_places(self.sizes, self.strides, self.shapes, self.offset)

    @property
    def places(self) -> tuple:
        """What two outputs share whose anchors are the same."""
        return self.sizes, self.strides, self.shapes, self.offset


class Grid(NamedTuple):
    """The `A` anchors of all levels, row by row, and within a location as its shapes are listed.

    Attributes:
      points: `[A, 2]` their centres as (x, y) in pixels.
      strides: `[A]` of their levels.
      anchors: `[A, 4]` corners.
      sizes: how many anchors each level has.
      locations: how many locations each level has.
    """

    points: Array
    strides: Array
    anchors: Array
    sizes: tuple[int, ...]
    locations: tuple[int, ...]


def level_sizes(image_size: tuple[int, int], strides: tuple[int, ...]) -> tuple[tuple[int, int], ...]:
    """`(height, width)` of the maps of an image `(height, width)`: every stride is a chain of halvings that round up."""
    return tuple((-(-image_size[0] // stride), -(-image_size[1] // stride)) for stride in strides)


def level_points(sizes: tuple[tuple[int, int], ...], strides: tuple[int, ...]) -> tuple[Array, Array]:
    """`(points [A, 2] as (x, y) in pixels, strides [A])` of all locations: the one in row i and column j is at (j, i) strides."""
    grid = anchor_places(sizes, strides, (((1.0, 1.0),),) * len(sizes))
    return grid.points, grid.strides


def anchor_places(
    sizes: tuple[tuple[int, int], ...], strides: tuple[int, ...], shapes: Shapes, offset: float = 0.0
) -> Grid:
    """The anchors of maps of these `(height, width)`: row i and column j of a level are at (j + offset, i + offset) strides."""
    points, steps, anchors = [], [], []
    for (height, width), stride, kinds in zip(sizes, strides, shapes, strict=True):
        y, x = (np.mgrid[:height, :width].reshape(2, -1) + offset) * stride
        centre = np.repeat(np.stack([x, y], axis=-1), len(kinds), axis=0)
        half = np.tile(np.array(kinds), (height * width, 1)) / 2
        points.append(centre)
        steps.append(np.full(len(centre), stride))
        anchors.append(np.concatenate([centre - half, centre + half], axis=-1))
    whole = (jnp.asarray(np.concatenate(x), float) for x in (points, steps, anchors))
    return Grid(*whole, tuple(map(len, points)), tuple(h * w for h, w in sizes))


def octave_shapes(
    strides: tuple[int, ...], scale: float, octaves: tuple[float, ...] = (1.0, 2 ** (1 / 3), 2 ** (2 / 3)),
    ratios: tuple[float, ...] = (0.5, 1.0, 2.0),
) -> Shapes:  # fmt: skip
    """RetinaNet's anchors: of every ratio of height to width, the octaves of `scale` strides."""
    of = lambda stride, ratio, octave: (scale * stride * octave / ratio**0.5, scale * stride * octave * ratio**0.5)
    return tuple(tuple(of(s, ratio, octave) for ratio in ratios for octave in octaves) for s in strides)

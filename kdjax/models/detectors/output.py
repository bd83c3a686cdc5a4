"""What a dense detector says of a batch, and where its locations are."""

import dataclasses

import jax.numpy as jnp
import numpy as np

from kdjax.types import Array, pytree


@pytree(static=("strides", "anchor_scale"))
class DetectorOutput:
    """What a dense detector said about a batch of `B` images at its `A` locations, level by level, row by row.

    Attributes:
      logits: `[B, A, C]`, one sigmoid a class; there is no background class.
      edge_logits: `[B, A, 4, K]`, of the bins 0 ... K - 1 of the distance of each edge (left, top, right, bottom) from the
        location, in strides of its level.
      features: the pyramid's maps `[B, h, w, D]`, the finest first; what methods of features compare.
      taps: further intermediate values by name.
      strides: pixels between neighbouring locations of each level.
      anchor_scale: side of a location's square anchor in strides; anchors serve the assignment of objects alone.
    """

    logits: Array
    edge_logits: Array
    features: tuple[Array, ...] = ()
    taps: dict[str, Array] = dataclasses.field(default_factory=dict)
    strides: tuple[int, ...] = ()
    anchor_scale: float = 8.0

    @property
    def sizes(self) -> tuple[tuple[int, int], ...]:
        """`(height, width)` of each level's map."""
        return tuple((x.shape[1], x.shape[2]) for x in self.features)


def level_sizes(image_size: tuple[int, int], strides: tuple[int, ...]) -> tuple[tuple[int, int], ...]:
    """`(height, width)` of the maps of an image `(height, width)`: every stride is a chain of halvings that round up."""
    return tuple((-(-image_size[0] // stride), -(-image_size[1] // stride)) for stride in strides)


def level_points(sizes: tuple[tuple[int, int], ...], strides: tuple[int, ...]) -> tuple[Array, Array]:
    """`(points [A, 2] as (x, y) in pixels, strides [A])` of all locations: the one in row i and column j is at (j, i) strides."""
    points, steps = [], []
    for (height, width), stride in zip(sizes, strides, strict=True):
        y, x = np.mgrid[:height, :width].reshape(2, -1) * stride
        points.append(np.stack([x, y], axis=-1))
        steps.append(np.full(height * width, stride))
    return jnp.asarray(np.concatenate(points), float), jnp.asarray(np.concatenate(steps), float)

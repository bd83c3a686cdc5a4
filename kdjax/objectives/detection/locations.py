"""Which object every location of a batch is trained on, and which regions distillation looks at.

Targets of a batch, by name:

  labels: `[B, G]` int32 class of every object; below 0 is padding.
  boxes: `[B, G, 4]` corners (left, top, right, bottom) in pixels of what the network sees.
  size: `[B, 2]` (height, width) of each image before it was padded to the batch's; images are then ordinary background as far as
    the next multiple of 32, and what lies beyond takes no part. Without it images are as large as the batch.
"""

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

from kdjax import losses
from kdjax.models.detectors import DetectorOutput, level_points
from kdjax.types import Array, Batch

PADDED_TO = 32  # pixels; each image by itself is padded to a multiple of it
Region = Literal["main", "valuable"]


class Locations(NamedTuple):
    """The `A` locations of each of `B` images.

    Attributes:
      points: `[A, 2]` as (x, y); `strides`: `[A]`; `anchors`: `[A, 4]`; `sizes`: how many locations each level has.
      counted: `[B, A]` bool, which take part: those of images that count, inside their own padded size.
      labels: `[B, A]` int32 class of the object that each is trained on, `C` for background.
      boxes: `[B, A, 4]` its box; of background whatever.
      positive: `[B, A]` bool.
    """

    points: Array
    strides: Array
    anchors: Array
    sizes: tuple[int, ...]
    counted: Array
    labels: Array
    boxes: Array
    positive: Array


def locate(output: DetectorOutput, batch: Batch, *, topk: int = 9) -> Locations:
    """Assigns the objects of a batch to the locations of a network's output by ATSS, image by image."""
    points, strides = level_points(output.sizes, output.strides)
    half = (output.anchor_scale / 2 * strides)[:, None]
    anchors = jnp.concatenate([points - half, points + half], axis=-1)
    sizes = tuple(h * w for h, w in output.sizes)
    boxes, labels, counted = objects(batch, points, strides)
    index, _ = jax.vmap(
        lambda boxes, there, mask: losses.atss_assign(anchors, boxes, there, sizes, topk=topk, anchor_mask=mask)
    )(boxes, labels >= 0, counted)
    positive = index >= 0
    place = jnp.maximum(index, 0)
    of_location = jnp.where(positive, jnp.take_along_axis(labels, place, axis=1), output.logits.shape[-1])
    target = jnp.take_along_axis(boxes, place[..., None], axis=1)
    return Locations(points, strides, anchors, sizes, counted, of_location, target, positive)


def objects(batch: Batch, points: Array, strides: Array) -> tuple[Array, Array, Array]:
    """`(boxes [B, G, 4], labels [B, G], locations that take part [B, A])`; rows that do not count have neither."""
    boxes, labels = batch.target("boxes").astype(jnp.float32), batch.labels
    boxes = boxes.astype(points.dtype)
    labels = jnp.where(batch.where[:, None], labels, -1)
    counted = jnp.broadcast_to(batch.where[:, None], (len(labels), len(points)))
    if isinstance(batch.targets, dict) and "size" in batch.targets:
        size = batch.targets["size"]
        size = jnp.ceil(size.astype(points.dtype) / PADDED_TO) * PADDED_TO
        inside = points[None] < jnp.ceil(size[:, None, ::-1] / strides[None, :, None]) * strides[None, :, None]
        counted = counted & jnp.all(inside, axis=-1)
    return boxes, labels, counted


def valuable(
    found: Locations, batch: Batch, *, gamma: float | Array = 0.25,
    overlap: Literal["iof_centre", "diou", "iou"] = "iof_centre", topk: int = 9,
) -> Array:  # fmt: skip
    """`[B, A]` weights of the valuable localization region, see `kdjax.losses.vlr_weights`."""
    boxes, labels, _ = objects(batch, found.points, found.strides)
    return jax.vmap(
        lambda boxes, there, mask: losses.vlr_weights(
            found.anchors, boxes, there, found.sizes, gamma=gamma, overlap=overlap, topk=topk, anchor_mask=mask
        )
    )(boxes, labels >= 0, found.counted)


def by_level(x: Array, sizes: tuple[int, ...]) -> list[Array]:
    """`[B, A, ...]` cut into the levels."""
    ends = [sum(sizes[: i + 1]) for i in range(len(sizes) - 1)]
    return jnp.split(x, ends, axis=1)

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
from kdjax.models.detectors import DetectorOutput
from kdjax.types import Array, Batch

PADDED_TO = 32  # pixels; each image by itself is padded to a multiple of it
RADIUS = 1.5  # strides around an object's centre in which FCOS has positives
Region = Literal["main", "valuable"]


class Locations(NamedTuple):
    """The `A` locations of each of `B` images; of a head with several anchors a location, these.

    Attributes:
      points: `[A, 2]` as (x, y); `strides`: `[A]`; `anchors`: `[A, 4]`; `sizes`: how many anchors each level has.
      locations: how many locations each level has.
      counted: `[B, A]` bool, which take part: those of images that count, inside their own padded size.
      labels: `[B, A]` int32 class of the object that each is trained on, `C` for background.
      boxes: `[B, A, 4]` its box; of background whatever.
      positive: `[B, A]` bool.
      between: `[B, A]` bool, which are neither positive nor background and learn no class, though they are `counted`.
      inside: `[B, A]` bool, which are inside an object, of FCOS; else nowhere.
      index: `[B, A]` int32 the object in the batch's list; below 0 where there is none.
    """

    points: Array
    strides: Array
    anchors: Array
    sizes: tuple[int, ...]
    locations: tuple[int, ...]
    counted: Array
    labels: Array
    boxes: Array
    positive: Array
    between: Array
    inside: Array
    index: Array


def locate(output: DetectorOutput, batch: Batch, *, topk: int = 9) -> Locations:
    """Assigns the objects of a batch to the locations of a network's output, image by image, as its kind of head does.

    Locations beyond an image's own padding take part with no head; mmdetection leaves FCOS's in as background.
    """
    grid = output.grid
    boxes, labels, counted = objects(batch, grid.points, grid.strides)
    there = labels >= 0
    inside = jnp.zeros_like(counted)
    if output.head in ("retinanet", "ssd"):
        best = "own" if output.edge_logits is None else "all"
        options = {"best": "first", "negative": 0.5} if output.head == "ssd" else {"best": best}
        assign = lambda boxes, there, mask: losses.overlap_assign(
            grid.anchors, boxes, there, anchor_mask=mask, **options
        )
        index, _ = jax.vmap(assign)(boxes, there, counted)
    elif output.head == "fcos":
        reach, ranges = RADIUS * grid.strides, _ranges(output, grid.strides)
        point = lambda boxes, there, mask: losses.point_assign(
            grid.points, boxes, there, reach=reach, ranges=ranges, point_mask=mask
        )
        index, inside = jax.vmap(point)(boxes, there, counted)
    else:
        atss = lambda boxes, there, mask: losses.atss_assign(
            grid.anchors, boxes, there, grid.sizes, topk=topk, anchor_mask=mask
        )
        index, _ = jax.vmap(atss)(boxes, there, counted)
    positive = index >= 0
    place = jnp.maximum(index, 0)
    of_location = jnp.where(positive, jnp.take_along_axis(labels, place, axis=1), output.num_classes)
    target = jnp.take_along_axis(boxes, place[..., None], axis=1)
    return Locations(*grid, counted, of_location, target, positive, index == -2, inside, index)


def _ranges(output: DetectorOutput, strides: Array) -> Array:
    """`[A, 2]` least and greatest distance that FCOS has a location for: half of its square's side to the whole of it."""
    upper = output.anchor_scale * strides
    lower = jnp.where(strides == min(output.strides), 0, upper / 2)
    return jnp.stack([lower, jnp.where(strides == max(output.strides), jnp.inf, upper)], axis=-1)


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


def valuable_of(output: DetectorOutput, found: Locations, batch: Batch, **options) -> Array:
    """The same as a kind of head has it: RetinaNet's positives are left out; FCOS has the student's largest class score in the
    locations inside an object that are no positives."""
    if output.head == "fcos":
        score = jax.lax.stop_gradient(jnp.max(jax.nn.sigmoid(output.logits), axis=-1))
        return jnp.where(found.inside & ~found.positive, score, 0)
    weights = valuable(found, batch, **options)
    return jnp.where(found.positive, 0, weights) if output.head == "retinanet" else weights


def decoded(output: DetectorOutput, grid, where: Array | None = None) -> Array:
    """`[B, A, 4]` corners in pixels of the boxes that a network says.

    Args:
      output: of a head with distributions, with deltas or with distances.
      grid: its places, a `Grid` or `Locations`.
      where: `[B, A]` bool; elsewhere the outputs may hold anything, and the boxes are those of zeros.
    """
    said = output.regression if output.edge_logits is None else output.edge_logits
    if where is not None:
        said = jnp.where(jnp.reshape(where, where.shape + (1,) * (said.ndim - 2)), said, 0)
    over = lambda x: jnp.broadcast_to(x[None].astype(said.dtype), (len(said), *x.shape))
    if output.edge_logits is None and output.deviations:
        return losses.decode_deltas(over(grid.anchors), said, deviations=output.deviations)
    distances = said if output.edge_logits is None else losses.integral(said)
    return losses.distance2bbox(over(grid.points), distances * over(grid.strides)[..., None])


def by_level(x: Array, sizes: tuple[int, ...]) -> list[Array]:
    """`[B, A, ...]` cut into the levels."""
    ends = [sum(sizes[: i + 1]) for i in range(len(sizes) - 1)]
    return jnp.split(x, ends, axis=1)


def of_places(mask: Array, found: Locations) -> list[Array]:
    """A mask `[B, A]` of anchors as one of locations, `[B, h * w]` of each level: where any anchor has it."""
    parts = zip(by_level(mask, found.sizes), found.locations, strict=True)
    return [jnp.any(jnp.reshape(part, (len(part), count, -1)), axis=-1) for part, count in parts]


def of_head(output: DetectorOutput, kind: str, who: str) -> None:
    """Raises unless an output is of a kind of head.

    Raises:
      ValueError: it is of another; the sentence says which.
    """
    if output.head != kind:
        raise ValueError(
            f"{who} is for heads of {kind}, and the student has one of {output.head}; choose the loss of its kind."
        )

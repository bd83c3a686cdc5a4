"""Which object every anchor or point of an image is trained on, by thresholds that are the same for all objects.

One image at a time, of a fixed shape: objects are padded to a maximum and masked. `jax.vmap` makes it a batch.
"""

from typing import Literal

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from kdjax.losses import checks
from kdjax.losses.detection import boxes, padded

__all__ = ["overlap_assign", "point_assign"]

Array = jax.Array


def overlap_assign(
    anchors: ArrayLike,
    gts: ArrayLike,
    gt_mask: ArrayLike,
    *,
    positive: float = 0.5,
    negative: float = 0.4,
    best: Literal["own", "all", "first"] = "own",
    anchor_mask: ArrayLike | None = None,
) -> tuple[Array, Array]:
    r"""Anchors by their overlap with objects: positives from one IoU on, negatives below another, and none in between.

    An anchor of $\max_g \mathrm{IoU} \ge$ `positive` is a positive of that object, one of less than `negative` a negative. So
    that no object is left without, the anchor that fits it best is a positive, however little it overlaps.

    Args:
      anchors: `[A, 4]` corners.
      gts: `[G, 4]` corners of the objects, padded.
      gt_mask: boolean `[G]`; a False object is padding and may hold anything.
      positive, negative: the two IoUs; equal ones leave no anchor in between.
      best: an object's best anchors, where several are equally good, are "all" or the "first" of them, and stand for it; if
        for several objects, for the last. "own": all of them, but each stands for the object that it overlaps most.
        torchvision has "own", mmdetection "all" in RetinaNet and "first" in SSD.
      anchor_mask: boolean `[A]`; False takes an anchor out. None keeps all.

    Returns:
      `[A]` int32, the object's index, -1 for a negative, -2 for an anchor in between; and `[A]` the largest IoU with an object.
      No gradient. An object that no anchor overlaps has none, where the released codes give it all that overlap nothing.

    Raises:
      TypeError: boxes are not floating point.
      ValueError: the last axes are not 4, a mask does not fit, `best` is none of the three, or `negative` is above `positive`.

    Papers: Ren, He, Girshick, Sun, "Faster R-CNN", NeurIPS 2015, arXiv 1506.01497; the thresholds are those of Lin, Goyal,
    Girshick, He, Dollár, "Focal Loss for Dense Object Detection", ICCV 2017, arXiv 1708.02002.

    >>> anchors = boxes.anchor_grid([(1, 3)], [8], scale=1)
    >>> overlap_assign(anchors, jnp.array([[2.0, -4.0, 20.0, 4.0]]), jnp.array([True]))[0]
    Array([-1,  0,  0], dtype=int32)
    """
    if best not in ("own", "all", "first"):
        raise ValueError(f'best is {best!r}; use "own", "all" or "first".')
    if negative > positive:
        raise ValueError(f"negative is {negative}, above positive {positive}.")
    anchors, gts = padded.image(anchors, gts)
    gts, gt_mask = padded.objects(gts, gt_mask)
    anchor_mask = padded.all_or(anchor_mask, anchors)
    iou = boxes.box_iou(anchors[None], gts[:, None])
    iou = jnp.where(gt_mask[:, None] & anchor_mask[None], iou, 0)
    overlap, own = jnp.max(iou, axis=0), jnp.argmax(iou, axis=0).astype(jnp.int32)
    index = jnp.where(overlap >= positive, own, jnp.where(overlap < negative, -1, -2))
    top = jnp.max(iou, axis=1, keepdims=True)
    if best == "first":
        column = lax.broadcasted_iota(jnp.int32, iou.shape, 1)
        chosen = column == jnp.argmax(iou, axis=1).astype(jnp.int32)[:, None]
    else:
        chosen = iou == top
    chosen &= top > 0
    last = jnp.max(jnp.where(chosen, lax.broadcasted_iota(jnp.int32, iou.shape, 0), -1), axis=0)
    forced = own if best == "own" else last
    index = jnp.where(last >= 0, forced, index)
    return jnp.where(anchor_mask, index, -1), overlap


def point_assign(
    points: ArrayLike,
    gts: ArrayLike,
    gt_mask: ArrayLike,
    *,
    reach: ArrayLike,
    ranges: ArrayLike,
    point_mask: ArrayLike | None = None,
) -> tuple[Array, Array]:
    r"""Points by the object that they are in: near its centre, and of the size that their level is for.

    A point is a positive of an object if it lies inside, less than `reach` from its centre in both directions, and the
    distance to the farthest of its edges is within `ranges`. Of several objects it takes the smallest.

    Args:
      points: `[A, 2]` as (x, y).
      gts: `[G, 4]` corners of the objects, padded.
      gt_mask: boolean `[G]`; a False object is padding and may hold anything.
      reach: `[A]` in pixels, as released 1.5 strides of the point's level.
      ranges: `[A, 2]`, the least and the greatest distance that a point is for, both included: as released 4 and 8 strides, but
        from 0 on the finest level and without end on the coarsest.
      point_mask: boolean `[A]`; False takes a point out. None keeps all.

    Returns:
      `[A]` int32, the object's index, -1 for a negative; and boolean `[A]`, whether the point is inside any object. No gradient.

    Raises:
      TypeError: boxes or points are not floating point.
      ValueError: shapes do not fit.

    Paper: Tian, Shen, Chen, He, "FCOS: Fully Convolutional One-Stage Object Detection", ICCV 2019, arXiv 1904.01355, with the
    sampling around centres that its code has.

    >>> points, ranges = jnp.array([[8.0, 8.0], [24.0, 8.0]]), jnp.array([[0.0, 64.0], [0.0, 64.0]])
    >>> box = jnp.array([[0.0, 0.0, 40.0, 20.0]])
    >>> point_assign(points, box, jnp.array([True]), reach=jnp.full(2, 12.0), ranges=ranges)
    (Array([-1,  0], dtype=int32), Array([ True,  True], dtype=bool))
    """
    points = checks.floating(points, "points")
    if points.ndim != 2 or points.shape[-1] != 2:
        raise ValueError(f"points has shape {points.shape}; it must be [A, 2], x and y.")
    reach, ranges = jnp.asarray(reach, points.dtype), jnp.asarray(ranges, points.dtype)
    if reach.shape != (len(points),) or ranges.shape != points.shape:
        raise ValueError(f"reach has shape {reach.shape}, ranges {ranges.shape}; give one and two numbers a point.")
    around, gts = padded.image(jnp.concatenate([points, points], axis=-1), gts)
    gts, gt_mask = padded.objects(gts, gt_mask)
    mask = padded.all_or(point_mask, points, "point_mask", "points")
    points = around[:, :2]
    distances = jnp.concatenate([points[None] - gts[:, None, :2], gts[:, None, 2:] - points[None]], axis=-1)
    inside = jnp.all(distances > 0, axis=-1) & gt_mask[:, None] & mask[None]
    off = points[None] - 0.5 * (gts[:, :2] + gts[:, 2:])[:, None]
    far = jnp.max(distances, axis=-1)
    fits = (far >= ranges[None, :, 0]) & (far <= ranges[None, :, 1])
    chosen = inside & fits & jnp.all(jnp.abs(off) < reach[None, :, None], axis=-1)
    area = jnp.prod(gts[:, 2:] - gts[:, :2], axis=-1)[:, None]
    smallest = jnp.argmin(jnp.where(chosen, area, jnp.inf), axis=0).astype(jnp.int32)
    return jnp.where(jnp.any(chosen, axis=0), smallest, -1), jnp.any(inside, axis=0)

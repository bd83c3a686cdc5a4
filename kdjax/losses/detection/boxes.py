"""Boxes as (left, top, right, bottom): how far two overlap, edges as distances from a point, and the grid of anchors."""

import math
from collections.abc import Sequence
from typing import Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from kdjax.losses import checks

__all__ = ["anchor_grid", "bbox2distance", "box_iou", "distance2bbox", "pairwise_box_iou"]

Array = jax.Array
Overlap = Literal["iou", "iof", "giou", "diou", "ciou", "iof_centre"]


def box_iou(boxes: ArrayLike, others: ArrayLike, *, kind: Overlap = "iou") -> Array:
    r"""How much of two boxes is shared: intersection over union and its relatives, pair by pair.

    With $I$ the intersection, $U$ the union, $E$ the smallest box around both, $c$ its diagonal, $\rho$ the distance of
    the two centres and $A$ the area of the first box:

    $$\mathrm{IoU} = I / U, \quad \mathrm{IoF} = I / A, \quad \mathrm{GIoU} = \mathrm{IoU} - (E - U) / E, \quad
    \mathrm{DIoU} = \mathrm{IoU} - \rho^2 / c^2$$

    $$\mathrm{CIoU} = \mathrm{DIoU} - \frac{v^2}{1 - \mathrm{IoU} + v}, \qquad
    v = \tfrac{4}{\pi^2} \left( \arctan \tfrac{w_2}{h_2} - \arctan \tfrac{w_1}{h_1} \right)^2$$

    Args:
      boxes: `[..., 4]` corners.
      others: `[..., 4]`, of leading axes that broadcast to those of `boxes`.
      kind: "iou", "iof", "giou", "diou", "ciou", or "iof_centre", which is `IoF - ρ²/c²`: the released code of
        localization distillation computes that where its paper says DIoU.

    Returns:
      `[...]`: IoU and IoF in 0 … 1, the others down to -1, CIoU to -1.5. A box whose width or height is not above
      0 is empty, with no intersection with anything. Values and gradients of empty boxes are finite.

    Raises:
      TypeError: boxes are not floating point.
      ValueError: the last axis is not 4, leading axes do not broadcast, or `kind` is none of these.

    Denominators are at least 1e-6 (1e-7 for GIoU); DIoU and CIoU add 1e-7 instead, as mmdetection does. The gradient of
    CIoU goes through its weight `v / (1 - IoU + v)` as well. Where both boxes are equal, which is 0 / 0 there, the last
    term is 0.

    Papers: GIoU: Rezatofighi, Tsoi, Gwak, Sadeghian, Reid, Savarese, CVPR 2019, arXiv 1902.09630. DIoU and CIoU: Zheng,
    Wang, Liu, Li, Ye, Ren, AAAI 2020, arXiv 1911.08287.

    >>> print(f"{box_iou(jnp.array([0.0, 0.0, 2.0, 2.0]), jnp.array([1.0, 0.0, 3.0, 2.0])):.4f}")
    0.3333
    """
    if kind not in get_args(Overlap):
        raise ValueError(f"kind is {kind!r}; use one of {', '.join(get_args(Overlap))}.")
    boxes, others = corners(boxes, "boxes"), corners(others, "others")
    try:
        shape = jnp.broadcast_shapes(boxes.shape, others.shape)
    except ValueError:
        raise ValueError(
            f"boxes has shape {boxes.shape}, others {others.shape}, which do not broadcast: give one box for each, or "
            "use pairwise_box_iou."
        ) from None
    boxes, others = jnp.broadcast_to(boxes, shape), jnp.broadcast_to(others, shape)
    intersection = _area(jnp.maximum(boxes[..., :2], others[..., :2]), jnp.minimum(boxes[..., 2:], others[..., 2:]))
    area = _area(boxes[..., :2], boxes[..., 2:])
    union = area + _area(others[..., :2], others[..., 2:]) - intersection
    low, high = jnp.minimum(boxes[..., :2], others[..., :2]), jnp.maximum(boxes[..., 2:], others[..., 2:])
    if kind == "iou":
        return intersection / jnp.maximum(union, 1e-6)
    if kind == "iof":
        return intersection / jnp.maximum(area, 1e-6)
    if kind == "giou":
        enclosing, union = jnp.maximum(_area(low, high), 1e-7), jnp.maximum(union, 1e-7)
        return intersection / union - (enclosing - union) / enclosing
    gap = jnp.sum((others[..., :2] + others[..., 2:] - boxes[..., :2] - boxes[..., 2:]) ** 2, axis=-1) / 4
    diagonal = jnp.sum(_extent(low, high) ** 2, axis=-1)
    if kind == "iof_centre":
        return intersection / jnp.maximum(area, 1e-6) - gap / jnp.maximum(diagonal, 1e-6)
    iou = intersection / (union + 1e-7)
    diou = iou - gap / (diagonal + 1e-7)
    if kind == "diou":
        return diou
    shape_gap = 4 / math.pi**2 * (_slant(others) - _slant(boxes)) ** 2
    # Rounding may put the IoU of equal boxes above 1.
    total = jnp.maximum(1 - iou, 0) + shape_gap
    differs = total > 0
    return diou - jnp.where(differs, shape_gap**2 / jnp.where(differs, total, 1), 0)


def pairwise_box_iou(boxes: ArrayLike, others: ArrayLike, *, kind: Overlap = "iou") -> Array:
    r"""`box_iou` of every box with every other.

    Args:
      boxes: `[..., M, 4]` corners.
      others: `[..., K, 4]` corners.
      kind: as in `box_iou`; "iof" divides by the areas of `boxes`.

    Returns:
      `[..., M, K]`.

    Raises:
      TypeError: boxes are not floating point.
      ValueError: as `box_iou`.

    >>> boxes = jnp.array([[0.0, 0.0, 2.0, 2.0], [4.0, 4.0, 5.0, 5.0]])
    >>> pairwise_box_iou(boxes, boxes)
    Array([[1., 0.],
           [0., 1.]], dtype=float32)
    """
    boxes, others = corners(boxes, "boxes"), corners(others, "others")
    return box_iou(boxes[..., :, None, :], others[..., None, :, :], kind=kind)


def distance2bbox(points: ArrayLike, distances: ArrayLike, *, max_shape: tuple[int, int] | None = None) -> Array:
    r"""Boxes from the distances of their edges to a point inside.

    $$(x - d_l,\; y - d_t,\; x + d_r,\; y + d_b)$$

    Args:
      points: `[..., 2]` as (x, y).
      distances: `[..., 4]` to the left, top, right and bottom edge.
      max_shape: `(height, width)` of the image, into which the box is cut; None does not cut.

    Returns:
      `[..., 4]` corners.

    Raises:
      TypeError: an array is not floating point.
      ValueError: the last axes are not 2 and 4, or leading axes differ.

    >>> distance2bbox(jnp.array([5.0, 5.0]), jnp.array([1.0, 2.0, 3.0, 9.0]), max_shape=(10, 12))
    Array([ 4.,  3.,  8., 10.], dtype=float32)
    """
    points, distances = _points(points), corners(distances, "distances")
    _same_leading(points, distances, "distances")
    boxes = jnp.concatenate([points - distances[..., :2], points + distances[..., 2:]], axis=-1)
    if max_shape is None:
        return boxes
    height, width = max_shape
    return jnp.clip(boxes, 0, jnp.broadcast_to(jnp.array([width, height] * 2, boxes.dtype), boxes.shape))


def bbox2distance(
    points: ArrayLike, boxes: ArrayLike, *, max_distance: float | None = None, margin: float = 0.1
) -> Array:
    r"""Distances from a point to the edges of a box, the inverse of `distance2bbox`.

    Args:
      points: `[..., 2]` as (x, y).
      boxes: `[..., 4]` corners.
      max_distance: distances are cut to `0 … max_distance - margin`, which keeps the bin to the right of a target
        inside the head's `max_distance + 1` bins. None does not cut.
      margin: 0.1 in the released code.

    Returns:
      `[..., 4]` to the left, top, right and bottom edge.

    Raises:
      TypeError: an array is not floating point.
      ValueError: the last axes are not 2 and 4, or leading axes differ.

    >>> bbox2distance(jnp.array([5.0, 5.0]), jnp.array([4.0, 3.0, 8.0, 10.0]))
    Array([1., 2., 3., 5.], dtype=float32)
    """
    points, boxes = _points(points), corners(boxes, "boxes")
    _same_leading(points, boxes, "boxes")
    distances = jnp.concatenate([points - boxes[..., :2], boxes[..., 2:] - points], axis=-1)
    return distances if max_distance is None else jnp.clip(distances, 0, max_distance - margin)


def anchor_grid(sizes: Sequence[tuple[int, int]], strides: Sequence[int], *, scale: float = 8.0) -> Array:
    r"""One square anchor at every position of every level, whose centre is the position itself.

    Position (row, column) of a level has its centre at `(column, row) * stride` in the image, and side `scale * stride`.

    Args:
      sizes: `(height, width)` of each level's map.
      strides: image pixels between neighbours of each level, 8 to 128 in five steps for the usual pyramid.
      scale: 8 in the released code.

    Returns:
      `[A, 4]` corners: level by level, row by row. `level_sizes` of the assignment is `[h * w for h, w in sizes]`.

    Raises:
      ValueError: there are not as many strides as sizes.

    >>> anchor_grid([(1, 2)], [16], scale=2)
    Array([[-16., -16.,  16.,  16.],
           [  0., -16.,  32.,  16.]], dtype=float32)
    """
    if len(sizes) != len(strides):
        raise ValueError(f"There are {len(sizes)} sizes and {len(strides)} strides; give a stride for each size.")
    levels = []
    for (height, width), stride in zip(sizes, strides, strict=True):
        y, x = np.mgrid[:height, :width].reshape(2, -1) * stride
        half = scale * stride / 2
        levels.append(np.stack([x - half, y - half, x + half, y + half], axis=-1))
    return jnp.asarray(np.concatenate(levels), float)


def corners(array, name: str) -> Array:
    """`[..., 4]` edges, promoted by `checks.floating`."""
    array = checks.floating(array, name)
    if array.ndim == 0 or array.shape[-1] != 4:
        raise ValueError(f"{name} has shape {array.shape}; it must be [..., 4], one value for each edge.")
    return array


def _points(points) -> Array:
    points = checks.floating(points, "points")
    if points.ndim == 0 or points.shape[-1] != 2:
        raise ValueError(f"points has shape {points.shape}; it must be [..., 2], x and y.")
    return points


def _same_leading(points: Array, array: Array, name: str) -> None:
    if points.shape[:-1] != array.shape[:-1]:
        raise ValueError(
            f"{name} has leading axes {array.shape[:-1]}, points {points.shape[:-1]}: give one point for each."
        )


def _extent(low: Array, high: Array) -> Array:
    """Width and height; 0 where the corners are in the wrong order. At 0 the gradient is that of a positive side."""
    sides = high - low
    return jnp.where(sides < 0, 0, sides)


def _area(low: Array, high: Array) -> Array:
    sides = _extent(low, high)
    return sides[..., 0] * sides[..., 1]


def _slant(boxes: Array) -> Array:
    """`arctan(w / h)`, finite for empty boxes."""
    sides = _extent(boxes[..., :2], boxes[..., 2:])
    return jnp.arctan2(sides[..., 0], sides[..., 1] + 1e-7)

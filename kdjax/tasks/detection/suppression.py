"""Non-maximum suppression on the device, in fixed shapes."""

import math
import numbers

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike

from kdjax.losses import pairwise_box_iou

Array = jax.Array


def nms(
    boxes: ArrayLike,
    scores: ArrayLike,
    labels: ArrayLike | None = None,
    *,
    iou_threshold: ArrayLike = 0.6,
    max_detections: int = 100,
) -> Array:
    """Greedy non-maximum suppression: the surest box is kept, those of its class that overlap it much are dropped, and so on.

    Args:
      boxes: `[..., N, 4]` corners, each image on its own.
      scores: `[..., N]`. -inf and nan are no box; equal scores are taken in the order of the rows.
      labels: `[..., N]` integers; only boxes of the same label suppress each other. None: all do.
      iou_threshold: an IoU *above* it suppresses.
      max_detections: M, the most that are kept; there are as many rounds, or fewer where all images are done earlier. Only what
        is kept is compared with all others: O(M N), no matrix of overlaps.

    Returns:
      `[..., M]` int32 indices of the kept boxes by falling score, -1 for none. An empty box, or one that holds nan, overlaps
      nothing: it is kept and suppresses none.

    Raises:
      TypeError: boxes are not floating point.
      ValueError: shapes do not fit, or `max_detections` is not above 0.

    Source: the order and the ties of `torchvision.ops.nms`, by class as `torchvision.ops.batched_nms`, for any coordinates. An
    IoU is compared with the threshold in float64 there, which counts where the IoU is its nearest float32: so it is here.

    >>> boxes = jnp.array([[0.0, 0.0, 10.0, 10.0], [0.0, 0.0, 10.0, 9.0], [20.0, 0.0, 30.0, 10.0]])
    >>> nms(boxes, jnp.array([0.8, 0.9, 0.7]), max_detections=3)
    Array([ 1,  2, -1], dtype=int32)
    """
    boxes, scores = jnp.asarray(boxes), jnp.asarray(scores)
    labels = jnp.zeros(scores.shape, jnp.int32) if labels is None else jnp.asarray(labels)
    if boxes.ndim < 2 or boxes.shape[-1] != 4:
        raise ValueError(f"boxes has shape {boxes.shape}; it must be [..., N, 4].")
    for name, array in (("scores", scores), ("labels", labels)):
        if array.shape != boxes.shape[:-1]:
            raise ValueError(
                f"{name} has shape {array.shape}, there are boxes {boxes.shape[:-1]}: give one for each box."
            )
    if max_detections < 1:
        raise ValueError(f"max_detections is {max_detections}; keep at least one.")
    if boxes.shape[-2] == 0:
        return jnp.full((*boxes.shape[:-2], max_detections), -1, jnp.int32)
    threshold = _at_most(iou_threshold, jnp.promote_types(boxes.dtype, jnp.float32))
    one = lambda b, s, l: _nms(b, s, l, threshold, max_detections)  # noqa: E741
    for _ in range(boxes.ndim - 2):
        one = jax.vmap(one)
    return one(boxes, scores, labels)


def take(keep: Array, values: ArrayLike, fill: ArrayLike) -> Array:
    """Rows `[..., M, ...]` of `values` `[..., N, ...]` at the indices `keep` `[..., M]` that `nms` gives, `fill` at -1."""
    values = jnp.asarray(values)
    trailing = (1,) * (values.ndim - keep.ndim)
    index = jnp.reshape(keep, keep.shape + trailing)
    if values.shape[keep.ndim - 1] == 0:
        return jnp.full(keep.shape + values.shape[keep.ndim :], fill, values.dtype)
    chosen = jnp.take_along_axis(values, jnp.maximum(index, 0), axis=keep.ndim - 1)
    return jnp.where(index >= 0, chosen, jnp.asarray(fill, values.dtype))


def _nms(boxes: Array, scores: Array, labels: Array, threshold: Array, rounds: int) -> Array:
    """One image."""
    scores = jnp.where(jnp.isnan(scores), -jnp.inf, scores)

    def going_on(state):
        number, left, _ = state
        return (number < rounds) & jnp.any(left > -jnp.inf)

    def keep_one(state):
        number, left, keep = state
        best = jnp.argmax(left)
        overlap = pairwise_box_iou(boxes[best][None], boxes)[0]
        gone = (overlap > threshold) & (labels == labels[best])
        left = jnp.where(gone, -jnp.inf, left).at[best].set(-jnp.inf)
        return number + 1, left, keep.at[number].set(best.astype(jnp.int32))

    state = jnp.int32(0), scores, jnp.full(rounds, -1, jnp.int32)
    return lax.while_loop(going_on, keep_one, state)[2]


def _at_most(threshold: ArrayLike, dtype) -> Array:
    """A number as the largest value of a type that is not above it: what is above the one is above the other."""
    nearest = np.asarray(threshold, dtype) if isinstance(threshold, numbers.Real) else None
    if nearest is not None and float(nearest) > threshold:
        nearest = np.nextafter(nearest, nearest.dtype.type(-math.inf))
    return jnp.asarray(threshold if nearest is None else nearest, dtype)

"""Which anchors of an image stand for which object, and which are worth imitating although they stand for none.

One image at a time, of a fixed shape: objects are padded to a maximum and masked. `jax.vmap` makes it a batch.
"""

from collections.abc import Sequence
from typing import Literal

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from kdjax.losses.detection import boxes, padded

__all__ = ["atss_assign", "atss_threshold", "vlr_weights"]

Array = jax.Array


def atss_threshold(
    anchors: ArrayLike,
    gts: ArrayLike,
    level_sizes: Sequence[int],
    topk: int = 9,
    *,
    anchor_mask: ArrayLike | None = None,
) -> Array:
    r"""The IoU from which an anchor counts as an object's own, set for each object by the anchors around it.

    $$\alpha_g = \mathrm{mean}(\mathrm{IoU}) + \mathrm{std}(\mathrm{IoU})$$

    over the candidates of object `g`: of each level the `topk` anchors whose centres are nearest to its centre.

    Args:
      anchors: `[A, 4]` corners, level by level.
      gts: `[G, 4]` corners of the objects.
      level_sizes: how many anchors each level has.
      topk: candidates of each level; all of a level that has fewer. Of anchors equally near the first count.
      anchor_mask: boolean `[A]`; False takes an anchor out, as one beyond the edge of a padded image. None keeps all.

    Returns:
      `[G]` thresholds, without gradient. The standard deviation is the unbiased one, 0 for a single candidate. An object
      that is padding gets some value, and has no effect on the others.

    Raises:
      TypeError: boxes are not floating point.
      ValueError: the last axes are not 4, `level_sizes` does not add up to A, or `topk` is below 1.

    Paper: Zhang, Chi, Yao, Lei, Li, "Bridging the Gap Between Anchor-based and Anchor-free Detection via Adaptive
    Training Sample Selection", CVPR 2020, arXiv 1912.02424.

    >>> anchors = boxes.anchor_grid([(2, 2)], [8], scale=1)
    >>> atss_threshold(anchors, jnp.array([[-4.0, -4.0, 4.0, 4.0]]), [4], topk=1)
    Array([1.], dtype=float32)
    """
    anchors, gts = padded.image(anchors, gts)
    return _threshold(*_candidates(anchors, gts, level_sizes, topk, padded.all_or(anchor_mask, anchors)))


def atss_assign(
    anchors: ArrayLike,
    gts: ArrayLike,
    gt_mask: ArrayLike,
    level_sizes: Sequence[int],
    *,
    topk: int = 9,
    anchor_mask: ArrayLike | None = None,
) -> tuple[Array, Array]:
    r"""Adaptive training sample selection: which object each anchor is trained on.

    An anchor is a positive of an object if it is a candidate, its IoU reaches the object's `atss_threshold`, and its
    centre lies in the object, more than 0.01 from every edge. Of several objects it takes the one of the highest IoU.

    Args:
      anchors: `[A, 4]` corners, level by level.
      gts: `[G, 4]` corners of the objects, padded.
      gt_mask: boolean `[G]`; a False object is padding and may hold anything.
      level_sizes: how many anchors each level has.
      topk: candidates of each level.
      anchor_mask: boolean `[A]`; False takes an anchor out. None keeps all.

    Returns:
      `[A]` int32, the object's index, -1 for a negative; and `[A]` the IoU with it, 0 for a negative. No gradient. Where
      no object is left, all anchors are negatives.

    Raises:
      TypeError: boxes are not floating point.
      ValueError: the last axes are not 4, a mask does not fit, `level_sizes` does not add up to A, or `topk` is below 1.

    Paper: Zhang, Chi, Yao, Lei, Li, CVPR 2020, arXiv 1912.02424, as released.

    >>> anchors = boxes.anchor_grid([(1, 2)], [8], scale=1)
    >>> index, iou = atss_assign(anchors, jnp.array([[4.0, -4.0, 12.0, 4.0]]), jnp.array([True]), [2], topk=1)
    >>> index, iou
    (Array([-1,  0], dtype=int32), Array([0., 1.], dtype=float32))
    """
    anchors, gts = padded.image(anchors, gts)
    gts, gt_mask = padded.objects(gts, gt_mask)
    anchor_mask = padded.all_or(anchor_mask, anchors)
    iou, near = _candidates(anchors, gts, level_sizes, topk, anchor_mask)
    centres, gts = (0.5 * (anchors[:, :2] + anchors[:, 2:]))[None], gts[:, None]
    reach = jnp.concatenate([centres - gts[..., :2], gts[..., 2:] - centres], axis=-1)
    positive = near & (iou >= _threshold(iou, near)[:, None]) & (jnp.min(reach, axis=-1) > 0.01) & gt_mask[:, None]
    scores = jnp.where(positive, iou, -1)
    found = jnp.any(positive, axis=0)
    index = jnp.where(found, jnp.argmax(scores, axis=0).astype(jnp.int32), -1)
    return index, jnp.where(found, jnp.max(scores, axis=0), 0)


def vlr_weights(
    anchors: ArrayLike,
    gts: ArrayLike,
    gt_mask: ArrayLike,
    level_sizes: Sequence[int],
    *,
    gamma: ArrayLike = 0.25,
    overlap: Literal["iof_centre", "diou", "iou"] = "iof_centre",
    topk: int = 9,
    below_threshold: bool = True,
    anchor_mask: ArrayLike | None = None,
) -> Array:
    r"""The valuable localization region: anchors around the positives whose boxes are still worth imitating.

    $$v_a = \max_g \left\{ \mathrm{IoU}(a, g) : \gamma \alpha_g \le X(a, g) < \alpha_g \right\}$$

    over all anchors of all levels, with $\alpha_g$ the `atss_threshold` of object `g` and $X$ an overlap.

    Args:
      anchors: `[A, 4]` corners, level by level.
      gts: `[G, 4]` corners of the objects, padded.
      gt_mask: boolean `[G]`; a False object is padding and may hold anything.
      level_sizes: how many anchors each level has.
      gamma: lower end of the region as a share of the threshold. At 1 the region is empty.
      overlap: `X`. "iof_centre" as released, `IoF - ρ²/c²`, which leaves out anchors that lie inside a large object;
        "diou" as the paper says; "iou" as the released code for rotated boxes.
      topk: candidates of each level for the threshold.
      below_threshold: False drops the upper end, so that the region takes in the positives' own: the rotated variant.
      anchor_mask: boolean `[A]`; False takes an anchor out. None keeps all.

    Returns:
      `[A]` weights, without gradient; 0 outside the region. An anchor may be a positive as well: the released code for
      RetinaNet sets the weights of positives (`atss_assign(...)[0] >= 0`) to 0, that for GFL does not. An image
      without objects has no region, where the released code fails.

    Raises:
      TypeError: boxes are not floating point.
      ValueError: the last axes are not 4, a mask does not fit, `level_sizes` does not add up to A, `topk` is below 1, or
        `overlap` is none of the three.

    Paper: Zheng, Ye, Wang, Ren, Zuo, Hou, Cheng, "Localization Distillation for Dense Object Detection", CVPR 2022,
    arXiv 2102.12252.

    >>> anchors = boxes.anchor_grid([(1, 3)], [8], scale=1)
    >>> vlr_weights(anchors, jnp.array([[2.0, -4.0, 20.0, 4.0]]), jnp.array([True]), [3], overlap="diou")
    Array([0.        , 0.44444445, 0.44444445], dtype=float32)
    """
    if overlap not in ("iof_centre", "diou", "iou"):
        raise ValueError(f'overlap is {overlap!r}; use "iof_centre", "diou" or "iou".')
    anchors, gts = padded.image(anchors, gts)
    gts, gt_mask = padded.objects(gts, gt_mask)
    anchor_mask = padded.all_or(anchor_mask, anchors)
    iou, near = _candidates(anchors, gts, level_sizes, topk, anchor_mask)
    threshold = _threshold(iou, near)[:, None]
    measure = iou if overlap == "iou" else boxes.box_iou(anchors[None], gts[:, None], kind=overlap)
    kept = (measure >= lax.stop_gradient(gamma) * threshold) & gt_mask[:, None] & anchor_mask[None]
    if below_threshold:
        kept &= measure < threshold
    return jnp.max(jnp.where(kept, iou, 0), axis=0)


def _candidates(
    anchors: Array, gts: Array, level_sizes: Sequence[int], topk: int, anchor_mask: Array
) -> tuple[Array, Array]:
    """IoU of each object with each anchor, and whether the anchor is among its candidates, both `[G, A]`."""
    level_sizes = [int(size) for size in level_sizes]
    if sum(level_sizes) != len(anchors):
        raise ValueError(f"level_sizes adds up to {sum(level_sizes)}, there are {len(anchors)} anchors.")
    if topk < 1:
        raise ValueError(f"topk is {topk}; it must be at least 1.")
    iou = boxes.box_iou(anchors[None], gts[:, None])
    offsets = 0.5 * (anchors[:, :2] + anchors[:, 2:])[None] - 0.5 * (gts[:, :2] + gts[:, 2:])[:, None]
    distance = jnp.where(anchor_mask[None], jnp.sum(offsets**2, axis=-1), jnp.inf)
    near, start = [], 0
    for size in level_sizes:
        near.append(_nearest(distance[:, start : start + size], topk))
        start += size
    return iou, jnp.concatenate(near, axis=1) & anchor_mask[None]


def _nearest(distance: Array, count: int) -> Array:
    """Where each row has its `count` smallest, of equal ones the first.

    One after the other, because the partitioner gathers a sharded batch for `lax.top_k`.
    """
    if count >= distance.shape[1]:
        return jnp.ones(distance.shape, bool)
    positions = lax.broadcasted_iota(jnp.int32, distance.shape, 1)
    near = jnp.zeros(distance.shape, bool)
    for _ in range(count):
        first = jnp.argmin(jnp.where(near, jnp.inf, distance), axis=1).astype(jnp.int32)
        near |= positions == first[:, None]
    return near


def _threshold(iou: Array, near: Array) -> Array:
    count = jnp.sum(near, axis=1, dtype=iou.dtype)
    mean = jnp.sum(jnp.where(near, iou, 0), axis=1) / jnp.maximum(count, 1)
    spread = jnp.sum(jnp.where(near, iou - mean[:, None], 0) ** 2, axis=1)
    return mean + jnp.sqrt(spread / jnp.maximum(count - 1, 1))

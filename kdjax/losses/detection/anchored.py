"""What heads without distributions learn: classes by focal loss, boxes as deltas of an anchor, how central a location is."""

import math
import numbers

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from kdjax.losses import checks, logspace
from kdjax.losses.detection import boxes as box

__all__ = ["centreness", "decode_deltas", "encode_deltas", "sigmoid_focal"]

Array = jax.Array
LARGEST = math.log(1000 / 16)  # by which, up or down, an anchor's side is changed at most


def sigmoid_focal(logits: ArrayLike, labels: ArrayLike, *, alpha: ArrayLike = 0.25, gamma: ArrayLike = 2.0) -> Array:
    r"""Focal loss: cross-entropy of one sigmoid a class, in which what is classified well already counts little.

    $$\sum_c -\alpha_c \, (1 - p_c)^\gamma \log p_c, \qquad p_c = \sigma(z_c), \; \alpha_c = \alpha \text{ at the label, else }
    \sigma(-z_c), \; 1 - \alpha$$

    Args:
      logits: `[..., C]`. A class at -inf adds nothing, unless it is the label.
      labels: `[...]` class indices; anything outside `0 … C - 1` is background.
      alpha: share of the label.
      gamma: how strongly good scores are left alone. Both are numbers, traced scalars, or arrays that broadcast to the
        leading axes.

    Returns:
      `[...]`, summed over the classes. The published loss is their sum divided by the number of positives.

    Raises:
      TypeError: logits are not floating point, or labels not integer.
      ValueError: `labels` does not have the leading axes of the logits, or `alpha` or `gamma` is out of range.

    Paper: Lin, Goyal, Girshick, He, Dollár, "Focal Loss for Dense Object Detection", ICCV 2017, arXiv 1708.02002.

    >>> print(f"{sigmoid_focal(jnp.array([0.0, 0.0]), jnp.array(1)):.4f}")
    0.1733
    """
    logits = checks.class_scores(logits, "logits")
    target = logspace.one_hot(checks.class_indices(labels, logits), logits.shape[-1])
    alpha = checks.per_example(alpha, logits, "alpha", above=0.0, below=1.0)[..., None]
    gamma = checks.per_example(gamma, logits, "gamma", above=0.0)[..., None]
    excluded = logits == -jnp.inf
    aimed = jnp.where(excluded, 0, jnp.where(target, logits, -logits))
    entropy = jax.nn.softplus(-aimed)
    # As an exponential: a power of 0 would send back nan for gamma below 1.
    each = jnp.where(target, alpha, 1 - alpha) * jnp.exp(-gamma * jax.nn.softplus(aimed)) * entropy
    return jnp.sum(jnp.where(excluded, jnp.where(target & (alpha > 0), jnp.inf, 0), each), axis=-1)


def encode_deltas(
    anchors: ArrayLike, boxes: ArrayLike, *, deviations: tuple[float, float, float, float] = (1.0, 1.0, 1.0, 1.0)
) -> Array:
    r"""A box as what an anchor is moved and stretched by.

    $$\left( \frac{x_b - x_a}{w_a \, d_1}, \; \frac{y_b - y_a}{h_a \, d_2}, \; \frac{1}{d_3} \log \frac{w_b}{w_a}, \;
    \frac{1}{d_4} \log \frac{h_b}{h_a} \right)$$

    with the centres $x, y$.

    Args:
      anchors: `[..., 4]` corners, of sides above 0.
      boxes: `[..., 4]` corners.
      deviations: the four $d$: 1 in RetinaNet, 0.1, 0.1, 0.2, 0.2 in SSD and ATSS.

    Returns:
      `[..., 4]`. A side that is not above 0 counts as 1e-6, so that an empty box has finite deltas.

    Raises:
      TypeError: boxes are not floating point.
      ValueError: the last axes are not 4, or a deviation is not above 0.

    Paper: Girshick, Donahue, Darrell, Malik, "Rich Feature Hierarchies for Accurate Object Detection and Semantic
    Segmentation", CVPR 2014, arXiv 1311.2524.

    >>> encode_deltas(jnp.array([0.0, 0.0, 4.0, 4.0]), jnp.array([2.0, 0.0, 6.0, 4.0]))
    Array([0.5, 0. , 0. , 0. ], dtype=float32)
    """
    anchors, boxes = box.corners(anchors, "anchors"), box.corners(boxes, "boxes")
    (centre, size), (there, wanted) = _centred(anchors), _centred(boxes)
    moved, stretched = (there - centre) / size, jnp.log(jnp.maximum(wanted, 1e-6) / size)
    return jnp.concatenate([moved, stretched], axis=-1) / _four(deviations, anchors)


def decode_deltas(
    anchors: ArrayLike, deltas: ArrayLike, *, deviations: tuple[float, float, float, float] = (1.0, 1.0, 1.0, 1.0)
) -> Array:
    r"""The box that an anchor becomes, the inverse of `encode_deltas`.

    Args:
      anchors: `[..., 4]` corners.
      deltas: `[..., 4]`.
      deviations: as they were encoded with.

    Returns:
      `[..., 4]` corners. Sides change by a factor of 1000 / 16 at most, up or down; beyond, they send nothing back.

    Raises:
      TypeError: an array is not floating point.
      ValueError: the last axes are not 4, or a deviation is not above 0.

    Source: mmdetection; torchvision bounds how much sides grow alone.

    >>> decode_deltas(jnp.array([0.0, 0.0, 4.0, 4.0]), jnp.array([0.5, 0.0, 0.0, 0.0]))
    Array([2., 0., 6., 4.], dtype=float32)
    """
    anchors, deltas = box.corners(anchors, "anchors"), box.corners(deltas, "deltas")
    deltas = deltas * _four(deviations, deltas)
    centre, size = _centred(anchors)
    centre = centre + deltas[..., :2] * size
    half = size * jnp.exp(jnp.clip(deltas[..., 2:], -LARGEST, LARGEST)) / 2
    return jnp.concatenate([centre - half, centre + half], axis=-1)


def centreness(points: ArrayLike, boxes: ArrayLike) -> Array:
    r"""How far in the middle of a box a point is: 1 at its centre, 0 at its edges and outside.

    $$\sqrt{\frac{\min(d_l, d_r)}{\max(d_l, d_r)} \cdot \frac{\min(d_t, d_b)}{\max(d_t, d_b)}}$$

    Args:
      points: `[..., 2]` as (x, y).
      boxes: `[..., 4]` corners.

    Returns:
      `[...]` in 0 … 1, without gradient.

    Raises:
      TypeError: an array is not floating point.
      ValueError: the last axes are not 2 and 4, or leading axes differ.

    Paper: Tian, Shen, Chen, He, "FCOS: Fully Convolutional One-Stage Object Detection", ICCV 2019, arXiv 1904.01355.

    >>> print(f"{centreness(jnp.array([1.0, 2.0]), jnp.array([0.0, 0.0, 5.0, 4.0])):.2f}")
    0.50
    """
    distances = lax.stop_gradient(box.bbox2distance(points, boxes))
    across, along = distances[..., ::2], distances[..., 1::2]
    inside = jnp.min(distances, axis=-1) > 0
    least = jnp.min(across, axis=-1) * jnp.min(along, axis=-1)
    most = jnp.max(across, axis=-1) * jnp.max(along, axis=-1)
    return jnp.where(inside, jnp.sqrt(jnp.where(inside, least, 0) / jnp.where(inside, most, 1)), 0)


def _centred(boxes: Array) -> tuple[Array, Array]:
    """Centres and sides."""
    return (boxes[..., :2] + boxes[..., 2:]) / 2, boxes[..., 2:] - boxes[..., :2]


def _four(deviations, like: Array) -> Array:
    if len(deviations) != 4 or any(isinstance(d, numbers.Real) and d <= 0 for d in deviations):
        raise ValueError(f"deviations is {deviations}; give four numbers above 0.")
    return jnp.broadcast_to(jnp.asarray(deviations, like.dtype), like.shape)

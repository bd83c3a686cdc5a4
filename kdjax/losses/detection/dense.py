"""What a dense detector learns without a teacher: class and quality in one score, box edges as distributions over bins.

The head is that of Generalized Focal Loss: at every location C class logits, and for each of four edges the logits of bins
0 … K - 1, whose expectation is the distance to the edge in strides.
"""

from typing import Literal

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from kdjax.losses import checks, logspace
from kdjax.losses.detection import boxes as box

__all__ = ["box_regression", "distribution_focal", "gfl_terms", "integral", "quality_focal"]

Array = jax.Array


def quality_focal(logits: ArrayLike, labels: ArrayLike, qualities: ArrayLike, *, beta: ArrayLike = 2.0) -> Array:
    r"""Quality focal loss: pulls the score of the right class towards how well its box fits, and all others to 0.

    $$\sum_c \left| q_c - \sigma(z_c) \right|^{\beta} \left( -q_c \log \sigma(z_c) - (1 - q_c) \log \sigma(-z_c) \right)$$

    with $q$ the quality at the label and 0 elsewhere. The gradient goes through both factors.

    Args:
      logits: `[..., C]`, one sigmoid a class. A class at -inf adds nothing, unless a quality is asked of it.
      labels: `[...]` class indices; anything outside `0 … C - 1` is background, where all qualities are 0.
      qualities: `[...]` in 0 … 1, the IoU of the predicted box with its object; a constant.
      beta: how strongly good scores are left alone: a number, a traced scalar, or an array that broadcasts to the leading
        axes.

    Returns:
      `[...]`, summed over the classes. The published loss is their weighted sum divided by the number of positives.

    Raises:
      TypeError: logits are not floating point, or labels not integer.
      ValueError: `labels` or `qualities` do not have the leading axes of the logits, or `beta` is negative.

    Paper: Li, Wang, Wu, Chen, Hu, Li, Tang, Yang, "Generalized Focal Loss: Learning Qualified and Distributed Bounding
    Boxes for Dense Object Detection", NeurIPS 2020, arXiv 2006.04388.

    >>> print(f"{quality_focal(jnp.array([0.0, 0.0]), jnp.array(1), jnp.array(1.0)):.4f}")
    0.3466
    """
    logits = checks.class_scores(logits, "logits")
    target = logspace.one_hot(checks.class_indices(labels, logits), logits.shape[-1])
    beta = checks.per_example(beta, logits, "beta", above=0.0)[..., None]
    quality = jnp.where(target, location_weights(qualities, logits.shape[:-1], logits.dtype, "qualities")[..., None], 0)
    excluded = logits == -jnp.inf
    logits = jnp.where(excluded, 0, logits)
    entropy = quality * jax.nn.softplus(-logits) + (1 - quality) * jax.nn.softplus(logits)
    miss = quality - jax.nn.sigmoid(logits)
    missed = miss != 0
    # A power of 0 would send back nan for beta below 1, and to beta itself.
    factor = jnp.where(missed, jnp.where(missed, miss * jnp.sign(miss), 1) ** beta, beta == 0)
    each = jnp.where(excluded, jnp.where(quality > 0, jnp.inf, 0), factor * entropy)
    return jnp.sum(each, axis=-1)


def distribution_focal(edge_logits: ArrayLike, targets: ArrayLike) -> Array:
    r"""Distribution focal loss: pulls the bins on both sides of an edge's true distance up, the nearer one more.

    $$-(l + 1 - t) \log p(l) - (t - l) \log p(l + 1), \qquad l = \lfloor t \rfloor$$

    Args:
      edge_logits: `[..., K]` over bins 0 … K - 1.
      targets: `[...]` distances in bins, 0 … K - 1, a constant.

    Returns:
      `[...]` in nats; nan for a target that is outside. The published loss is a quarter of their sum over the edges,
      weighted by `max_c σ` of the class logits and divided by the sum of these weights, times 0.25.

    Raises:
      TypeError: an array is not floating point.
      ValueError: `targets` does not have the leading axes of the logits.

    Paper: Li et al., NeurIPS 2020, arXiv 2006.04388. The released code cannot take the last bin itself as a target.

    >>> print(f"{distribution_focal(jnp.zeros(4), jnp.array(1.25)):.4f}")
    1.3863
    """
    logits = checks.class_scores(edge_logits, "edge_logits")
    targets = location_weights(targets, logits.shape[:-1], logits.dtype, "targets")[..., None]
    gap = targets - lax.broadcasted_iota(logits.dtype, logits.shape, logits.ndim - 1)
    shares = jnp.maximum(1 - jnp.abs(gap), 0)
    inside = (targets[..., 0] >= 0) & (targets[..., 0] <= logits.shape[-1] - 1)
    return jnp.where(inside, logspace.cross_entropy(shares, logspace.log_softmax(logits)), jnp.nan)


def integral(edge_logits: ArrayLike, *, bins: ArrayLike | None = None) -> Array:
    r"""The distance that an edge's distribution stands for: its expectation.

    $$\sum_k b_k \, \mathrm{softmax}(z)_k$$

    Args:
      edge_logits: `[..., K]`.
      bins: `[K]` values of the bins; None is 0 … K - 1, in strides. Rotated localization distillation has 17 bins from -2
        to 2 for each box delta and from -5 to 2 for the angle.

    Returns:
      `[...]`.

    Raises:
      TypeError: logits are not floating point.
      ValueError: there is no bin, or `bins` has another length.

    Paper: Li et al., NeurIPS 2020, arXiv 2006.04388.

    >>> integral(jnp.zeros(17))
    Array(8., dtype=float32)
    """
    logits = checks.class_scores(edge_logits, "edge_logits")
    count = logits.shape[-1]
    bins = jnp.arange(count, dtype=logits.dtype) if bins is None else jnp.asarray(bins, logits.dtype)
    if bins.shape != (count,):
        raise ValueError(f"bins has shape {bins.shape}, edge_logits {count} bins: give one value for each.")
    return jnp.sum(jnp.exp(logspace.log_softmax(logits)) * jnp.broadcast_to(bins, logits.shape), axis=-1)


def box_regression(
    boxes: ArrayLike, targets: ArrayLike, *, kind: Literal["iou", "giou", "diou", "ciou"] = "giou"
) -> Array:
    r"""Pulls a predicted box over its object, by how little the two overlap.

    $$1 - \mathrm{GIoU}(b, t), \qquad \text{or } -\log \mathrm{IoU}(b, t) \text{ for "iou"}$$

    Args:
      boxes: `[..., 4]` corners.
      targets: `[..., 4]` corners, a constant.
      kind: the overlap, as `box_iou` computes it.

    Returns:
      `[...]`: up to 2, for CIoU 2.5, for "iou" `-log 1e-6`. Empty boxes have finite values and gradients.

    Raises:
      TypeError: boxes are not floating point.
      ValueError: the last axis is not 4, leading axes do not broadcast, or `kind` is none of the four.

    Papers: those of `box_iou`; "iou": Yu, Jiang, Wang, Cao, Huang, "UnitBox", ACM Multimedia 2016, arXiv 1608.01471.

    >>> box_regression(jnp.array([0.0, 0.0, 1.0, 1.0]), jnp.array([1.0, 0.0, 2.0, 1.0]))
    Array(1., dtype=float32)
    """
    if kind not in ("iou", "giou", "diou", "ciou"):
        raise ValueError(f'kind is {kind!r}; use "iou", "giou", "diou" or "ciou".')
    overlap = box.box_iou(boxes, lax.stop_gradient(box.corners(targets, "targets")), kind=kind)
    return -jnp.log(jnp.maximum(overlap, 1e-6)) if kind == "iou" else 1 - overlap


def gfl_terms(
    class_logits: ArrayLike,
    edge_logits: ArrayLike,
    labels: ArrayLike,
    target_boxes: ArrayLike,
    centres: ArrayLike,
    *,
    stride: ArrayLike,
    label_weights: ArrayLike | None = None,
    num_positives: ArrayLike | None = None,
    box_weight: float = 2.0,
    edge_weight: float = 0.25,
    box_kind: Literal["iou", "giou", "diou", "ciou"] = "giou",
) -> dict[str, Array]:
    r"""The losses of a Generalized Focal Loss head over its locations.

    With `P` the locations whose label is a class, `w` the largest class score (a constant), `b` the decoded box and `t` its
    target, both in strides:

    $$\mathrm{cls} = \frac{1}{N_+} \sum_i u_i \, \mathrm{QFL}_i, \quad
    \mathrm{box} = 2 \sum_{i \in P} w_i \left( 1 - \mathrm{GIoU}(b_i, t_i) \right), \quad
    \mathrm{dfl} = \frac{0.25}{4} \sum_{i \in P} w_i \sum_{e} \mathrm{DFL}_{ie}$$

    Args:
      class_logits: `[..., N, C]`. The N locations may be those of one level, or of all.
      edge_logits: `[..., N, 4, K]`, edges left, top, right, bottom.
      labels: `[..., N]` class indices; anything outside `0 … C - 1` is background.
      target_boxes: `[..., N, 4]` corners in pixels. Those of background may hold anything.
      centres: `[..., N, 2]` (x, y) of the locations in pixels.
      stride: a number, or `[..., N]` for locations of several levels.
      label_weights: `[..., N]`, `u` above, None for 1. Locations of weight 0 take no part in `cls`.
      num_positives: $N_+$; None counts those here, at least 1. The released code averages over devices the number of
        positives, each image counting at least 1.
      box_weight, edge_weight: 2 and 0.25 above.
      box_kind: the overlap of "box", as for `box_regression`.

    Returns:
      `[...]` each: "cls", "box", "dfl" and "weight", the sum of `w` over `P`. The published loss is `cls` plus `box` and
      `dfl` divided by the sum of "weight" over all levels, images and devices plus 1e-6. Without positives the last three
      are 0.

    Raises:
      TypeError: an array has the wrong type.
      ValueError: shapes do not fit.

    Paper: Li et al., NeurIPS 2020, arXiv 2006.04388.

    >>> far = gfl_terms(jnp.zeros((2, 3)), jnp.zeros((2, 4, 5)), jnp.array([3, 1]), jnp.ones((2, 4)), jnp.ones((2, 2)), stride=1)
    >>> print(f"{far['weight']:.4f}")
    0.5000
    """
    logits, edges = checks.class_scores(class_logits, "class_logits"), checks.class_scores(edge_logits, "edge_logits")
    leading = logits.shape[:-1]
    labels = checks.class_indices(labels, logits)
    targets, centres = box.corners(target_boxes, "target_boxes"), checks.floating(centres, "centres")
    for array, name, wanted in (
        (edges[..., 0], "edge_logits", (*leading, 4)),
        (targets, "target_boxes", (*leading, 4)),
        (centres, "centres", (*leading, 2)),
    ):
        if array.shape != wanted:
            raise ValueError(f"{name} covers {array.shape}, class_logits {leading} locations: it must be {wanted}.")
    positive = (labels >= 0) & (labels < logits.shape[-1])
    counted = location_weights(label_weights, leading, logits.dtype, "label_weights")
    stride = checks.per_example(stride, logits, "stride")[..., None]
    # What is not used is zeroed before any arithmetic: it may hold anything.
    edges = jnp.where(positive[..., None, None], edges, 0)
    targets = lax.stop_gradient(jnp.where(positive[..., None], targets, 0)) / stride
    points = lax.stop_gradient(jnp.where(positive[..., None], centres, 0)) / stride
    logits = jnp.where(((counted != 0) | positive)[..., None], logits, 0)
    weights = jnp.where(positive, lax.stop_gradient(jnp.max(jax.nn.sigmoid(logits), axis=-1)), 0)
    decoded = box.distance2bbox(points, integral(edges))
    fit = jnp.where(positive, lax.stop_gradient(box.box_iou(decoded, targets)), 0)
    if num_positives is None:
        num_positives = jnp.maximum(jnp.sum(positive, axis=-1, dtype=logits.dtype), 1)
    distances = box.bbox2distance(points, targets, max_distance=edges.shape[-1] - 1)
    by_edge = jnp.sum(distribution_focal(edges, distances), axis=-1)
    return {
        "cls": jnp.sum(counted * quality_focal(logits, labels, fit), axis=-1) / num_positives,
        "box": box_weight * jnp.sum(weights * box_regression(decoded, targets, kind=box_kind), axis=-1),
        "dfl": edge_weight / 4 * jnp.sum(weights * by_edge, axis=-1),
        "weight": jnp.sum(weights, axis=-1),
    }


def location_weights(weights, shape: tuple[int, ...], dtype, name: str) -> Array:
    """Numbers or bools as constants of `shape`; None for ones."""
    if weights is None:
        return jnp.ones(shape, dtype)
    weights = jnp.asarray(weights)
    if weights.shape != shape:
        raise ValueError(f"{name} has shape {weights.shape}; it must be {shape}, one value for each.")
    return lax.stop_gradient(weights.astype(dtype))

"""Imitation of features where it matters: which locations, and how much each counts."""

import numbers
from typing import Literal

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from kdjax.losses import checks
from kdjax.losses.detection import boxes
from kdjax.losses.detection.dense import location_weights

__all__ = ["imitation_region", "region_weighted_imitation", "tid_scores"]

Array = jax.Array


def tid_scores(
    iou_max: ArrayLike,
    cls_match_score: ArrayLike,
    *,
    tau_pos: ArrayLike,
    tau_neg: ArrayLike,
    levels: tuple[float, float, float] = (2.0, 1.5, 0.4),
) -> Array:
    r"""How much a location matters to both tasks of a detector, for one network: a score of its box times one of its class.

    $$S_i = c_i \cdot \begin{cases} 2 & \mathrm{IoU}_i \ge \tau_+ \\ 1.5 & \tau_- < \mathrm{IoU}_i < \tau_+ \\
    0.4 & \mathrm{IoU}_i \le \tau_- \end{cases}$$

    Scored for teacher and student, a high score of the teacher's marks a key region, a large gap between the two a weak one.

    Args:
      iou_max: `[..., N]` largest IoU of each location's decoded box with any object.
      cls_match_score: `[..., N]` how well its classes match its object's.
      tau_pos, tau_neg: from which IoU on, and up to which, the detector's own assignment takes positives and negatives.
      levels: the three scores, from high to low IoU.

    Returns:
      `[..., N]`, without gradient.

    Raises:
      TypeError: an array is not floating point.
      ValueError: shapes differ, there are not three levels, or `tau_neg` is above `tau_pos`.

    Paper: Su, Jian, Yu, "Task Integration Distillation for Object Detectors", 2024, arXiv 2404.01699. Experimental: written
    from accounts of the paper, which has no released code. The levels of the class score and the thresholds of the
    regions are not verified and therefore not offered.

    >>> tid_scores(jnp.array([0.7, 0.45, 0.4]), jnp.ones(3), tau_pos=0.5, tau_neg=0.4)
    Array([2. , 1.5, 0.4], dtype=float32)
    """
    iou, match = checks.floating(iou_max, "iou_max"), checks.floating(cls_match_score, "cls_match_score")
    if iou.shape != match.shape:
        raise ValueError(f"cls_match_score has shape {match.shape}, iou_max {iou.shape}: give both for each location.")
    if len(levels) != 3:
        raise ValueError(f"levels has {len(levels)} scores; give three, from high to low IoU.")
    if isinstance(tau_pos, numbers.Real) and isinstance(tau_neg, numbers.Real) and tau_neg > tau_pos:
        raise ValueError(f"tau_neg is {tau_neg}, above tau_pos {tau_pos}.")
    high, middle, low = levels
    return lax.stop_gradient(match * jnp.where(iou >= tau_pos, high, jnp.where(iou > tau_neg, middle, low)))


def region_weighted_imitation(
    student_feat: ArrayLike, teacher_feat: ArrayLike, masks: ArrayLike, weights: ArrayLike
) -> Array:
    r"""Pulls the student's features towards the teacher's, region by region, each region with its own weight.

    $$\sum_m \frac{w_m}{N_m} \sum_{i \in m} \left\| f_s(i) - f_t(i) \right\|^2$$

    Args:
      student_feat: `[..., N, D]`, already projected to the teacher's width.
      teacher_feat: `[..., N, D]`, a constant.
      masks: `[..., M, N]` the regions: bools, or shares of at least 0; constants. A location may be in several, or in none,
        where its features may hold anything.
      weights: `[M]` numbers or traced values.

    Returns:
      `[...]`, one number where the arrays have no more axes than above. $N_m$ is the sum of the region's mask; an empty
      region adds nothing. Summed over D: divide by D for the mean over the channels of feature imitation in mmdetection.

    Raises:
      TypeError: features are not floating point.
      ValueError: shapes do not fit.

    Paper: the form of Su, Jian, Yu, 2024, arXiv 2404.01699, whose weights and normalizer are not verified. With the one
    mask of `imitation_region` and a weight of 1 / D it is fine-grained feature imitation: Wang, Yuan, Zhang, Feng,
    "Distilling Object Detectors with Fine-grained Feature Imitation", CVPR 2019, arXiv 1906.03609.

    >>> masks = jnp.array([[True, True, False], [False, False, True]])
    >>> region_weighted_imitation(jnp.array([[1.0], [3.0], [2.0]]), jnp.zeros((3, 1)), masks, jnp.array([1.0, 0.5]))
    Array(7., dtype=float32)
    """
    student = checks.floating(student_feat, "student_feat")
    teacher = lax.stop_gradient(checks.floating(teacher_feat, "teacher_feat"))
    if student.shape != teacher.shape or student.ndim < 2:
        raise ValueError(
            f"student_feat has shape {student.shape}, teacher_feat {teacher.shape}; both must be [..., N, D]: project the "
            "student's to the teacher's width first."
        )
    dtype = jnp.promote_types(student.dtype, teacher.dtype)
    weights = jnp.asarray(weights, dtype)
    if weights.ndim != 1:
        raise ValueError(f"weights has shape {weights.shape}; it must be [M], one number a region.")
    masks = location_weights(masks, (*student.shape[:-2], len(weights), student.shape[-2]), dtype, "masks")
    used = jnp.any(masks != 0, axis=-2)[..., None]
    squared = jnp.sum((jnp.where(used, student, 0) - jnp.where(used, teacher, 0)) ** 2, axis=-1)
    total = jnp.sum(masks, axis=-1)
    means = jnp.sum(masks * squared[..., None, :], axis=-1) / jnp.where(total > 0, total, 1)
    return jnp.sum(jnp.broadcast_to(weights, means.shape) * means, axis=-1)


def imitation_region(
    anchors: ArrayLike,
    gts: ArrayLike,
    gt_mask: ArrayLike,
    *,
    kind: Literal["finegrained", "inside"] = "finegrained",
    share: ArrayLike = 0.5,
) -> Array:
    r"""Where the features of a detector are imitated: around its objects.

    "finegrained": anchors that overlap an object at least a share of what its best anchor does,
    $\mathrm{IoU}(a, g) > s \max_{a'} \mathrm{IoU}(a', g)$. "inside": anchors whose centre is inside an object.

    Args:
      anchors: `[A, 4]` corners.
      gts: `[G, 4]` corners of the objects, padded.
      gt_mask: boolean `[G]`; a False object is padding and may hold anything.
      kind: "finegrained" or "inside".
      share: $s$ above.

    Returns:
      Boolean `[A]`; nowhere True for an image without objects.

    Raises:
      TypeError: boxes are not floating point.
      ValueError: the last axes are not 4, `gt_mask` does not fit, or `kind` is neither.

    Papers: "finegrained": Wang, Yuan, Zhang, Feng, CVPR 2019, arXiv 1906.03609.

    >>> anchors = boxes.anchor_grid([(1, 3)], [8], scale=1)
    >>> imitation_region(anchors, jnp.array([[2.0, -4.0, 20.0, 4.0]]), jnp.array([True]))
    Array([False,  True,  True], dtype=bool)
    """
    if kind not in ("finegrained", "inside"):
        raise ValueError(f'kind is {kind!r}; use "finegrained" or "inside".')
    anchors, gts = boxes.corners(anchors, "anchors"), boxes.corners(gts, "gts")
    gt_mask = location_weights(gt_mask, gts.shape[:-1], bool, "gt_mask")
    gts = jnp.where(gt_mask[:, None], gts, 0)[:, None]
    anchors = anchors[None]
    if kind == "finegrained":
        iou = boxes.box_iou(anchors, gts)
        inside = iou > share * jnp.max(iou, axis=1, keepdims=True)
    else:
        centres = 0.5 * (anchors[..., :2] + anchors[..., 2:])
        inside = jnp.all((centres > gts[..., :2]) & (centres < gts[..., 2:]), axis=-1)
    return jnp.any(inside & gt_mask[:, None], axis=0)

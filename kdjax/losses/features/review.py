"""Losses that compare a feature map at several scales."""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from kdjax.losses import checks
from kdjax.losses.features.pooling import adaptive_average_pool

__all__ = ["hcl"]

Array = jax.Array


def hcl(student_features: ArrayLike, teacher_features: ArrayLike, *, levels: tuple[int, ...] = (4, 2, 1)) -> Array:
    r"""Hierarchical context loss: pulls the student's map towards the teacher's, and coarser and coarser views of it.

    With $d_0$ the mean squared difference of the two maps, and $d_i$ that of the maps averaged to $l_i \times l_i$ cells:

    $$\frac{\sum_{i=0}^n 2^{-i} d_i}{\sum_{i=0}^n 2^{-i}}$$

    Args:
      student_features: `[B, H, W, K]`, already fused and brought to the teacher's shape, see the objective.
      teacher_features: `[B, H, W, K]`, a constant.
      levels: cells a side of the coarser views, from fine to coarse; those not below `H` are left out, and the next one
        takes their weight. Maps are square in the paper; of others the height decides, as in the released code.

    Returns:
      `[B]`: a weighted mean of mean squared differences. The published loss is its mean over the batch, summed over stages.

    Raises:
      TypeError: features are not floating point.
      ValueError: shapes differ, or are not `[B, H, W, K]`.

    Paper: Chen, Liu, Zhao, Jia, "Distilling Knowledge via Knowledge Review", CVPR 2021, arXiv 2104.09044.

    >>> student, teacher = jnp.zeros((1, 2, 2, 1)), jnp.array([1.0, -1.0, 1.0, -1.0]).reshape(1, 2, 2, 1)
    >>> hcl(student, teacher)  # 1 by position, 0 on the average
    Array([0.6666667], dtype=float32)
    """
    student, teacher = checks.features_pair(student_features, teacher_features)
    if student.shape != teacher.shape or student.ndim != 4:
        raise ValueError(
            f"student_features has shape {student.shape}, teacher_features {teacher.shape}: both must be [B, H, W, K]; "
            "bring the student's to the teacher's shape first."
        )
    gap = student - teacher  # averaging is linear, so the difference may be averaged
    value, weight, total = jnp.mean(gap**2, axis=(1, 2, 3)), 1.0, 1.0
    for level in levels:
        if level < gap.shape[1]:
            weight /= 2
            total += weight
            value = value + weight * jnp.mean(adaptive_average_pool(gap, (level, level)) ** 2, axis=(1, 2, 3))
    return value / total

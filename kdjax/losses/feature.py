"""Losses between intermediate features."""

import jax
import jax.numpy as jnp

from kdjax.losses import checks

__all__ = ["fitnet"]

Array = jax.Array


def fitnet(student_features, teacher_features) -> Array:
    r"""Hints: pulls the student's features, once projected to the teacher's shape, towards the teacher's.

    $$\frac{1}{HWK} \sum_{hwk} \left( r(f_s) - f_t \right)^2$$

    Args:
      student_features: `[B, ...]`, already projected by the learned regressor `r`, which belongs to the objective.
      teacher_features: `[B, ...]` of the same shape, a constant.

    Returns:
      `[B]`: the mean over all axes but the first, without the paper's factor one half. The released loss is their mean
      over the batch, which is the mean of all squared differences.

    Raises:
      TypeError: features are not floating point.
      ValueError: shapes differ.

    Paper: Romero, Ballas, Kahou, Chassang, Gatta, Bengio, "FitNets: Hints for Thin Deep Nets", ICLR 2015,
    arXiv 1412.6550.

    >>> student, teacher = jnp.zeros((1, 2, 2, 3)), jnp.full((1, 2, 2, 3), 2.0)
    >>> fitnet(student, teacher)
    Array([4.], dtype=float32)
    """
    student, teacher = checks.features_pair(student_features, teacher_features)
    if student.shape != teacher.shape:
        raise ValueError(
            f"student_features has shape {student.shape}, teacher_features {teacher.shape}: project the student's "
            "features to the teacher's shape first."
        )
    return jnp.mean((student - teacher) ** 2, axis=tuple(range(1, student.ndim)))

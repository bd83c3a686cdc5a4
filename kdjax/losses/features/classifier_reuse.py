"""Losses that fit a student's features to the classifier that the teacher already has."""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from kdjax.losses import checks
from kdjax.losses.features.pooling import adaptive_average_pool
from kdjax.losses.logits.logit import logit_mse

__all__ = ["simkd", "srrl"]

Array = jax.Array


def simkd(student_features: ArrayLike, teacher_features: ArrayLike) -> Array:
    r"""Reused classifier: pulls the student's last features, once projected, towards those that the teacher's classifier
    reads.

    $$\frac{1}{HWK} \sum_{hwk} \left( P(f_s) - f_t \right)^2$$

    Args:
      student_features: `[B, H, W, K]`, already projected; the module belongs to the objective, and stays on the deployed
        student together with the teacher's classifier.
      teacher_features: `[B, h, w, K]`, a constant. Where its size is another, it is brought to the student's by
        `adaptive_average_pool`.

    Returns:
      `[B]`: the mean over positions and channels. The published loss is its mean over the batch, and all there is: no
      cross-entropy, no KD.

    Raises:
      TypeError: features are not floating point.
      ValueError: the numbers of examples or channels differ, or features are not `[B, H, W, K]`.

    Paper: Chen, Mei, Zhang, Wang, Feng, Chen, "Knowledge Distillation with the Reused Teacher Classifier", CVPR 2022,
    arXiv 2203.14001.

    >>> simkd(jnp.zeros((1, 1, 1, 2)), jnp.array([1.0, 3.0, 1.0, 3.0]).reshape(1, 2, 1, 2))  # averages 1 and 3
    Array([5.], dtype=float32)
    """
    student, teacher = checks.features_pair(student_features, teacher_features)
    if student.ndim != 4 or teacher.ndim != 4 or student.shape[-1] != teacher.shape[-1]:
        raise ValueError(
            f"student_features has shape {student.shape}, teacher_features {teacher.shape}: both must be [B, H, W, K]; "
            "project the student's to the teacher's channels first."
        )
    return jnp.mean((student - adaptive_average_pool(teacher, student.shape[1:3])) ** 2, axis=(1, 2, 3))


def srrl(
    student_features: ArrayLike, teacher_features: ArrayLike, reused_logits: ArrayLike, teacher_logits: ArrayLike
) -> Array:
    r"""Softmax regression: pulls the student's features, once connected to the teacher's channels, towards the teacher's
    pooled ones, and what the teacher's own classifier says of them towards what it says of the teacher's.

    With $a$ the mean over positions, $\phi$ the connector, $f$ the features, and $W_t$ the teacher's classifier:

    $$\frac{1}{K} \sum_k \left( a(\phi(f_s)) - a(f_t) \right)_k^2
    + \frac{1}{C} \sum_c \left( W_t \, a(\phi(f_s)) - z_t \right)_c^2$$

    Args:
      student_features: `[B, ..., K]`, a map or a vector, already connected; the module belongs to the objective.
      teacher_features: `[B, ..., K]`, a map of any size or a vector, a constant.
      reused_logits: `[B, C]`, the teacher's classifier on the connected features, averaged over positions.
      teacher_logits: `[B, C]`, a constant. A class at -inf is left out.

    Returns:
      `[B]`. The published loss is its mean over the batch.

    Raises:
      TypeError: an argument is not floating point.
      ValueError: numbers of examples, channels or classes differ.

    Paper: Yang, Martinez, Bulat, Tzimiropoulos, "Knowledge Distillation via Softmax Regression Representation Learning",
    ICLR 2021. As in the released code, which compares of the maps nothing but their means.

    >>> features, logits = jnp.array([[1.0, 0.0]]), jnp.array([[2.0, 0.0]])
    >>> srrl(features, jnp.zeros((1, 3, 3, 2)), logits, jnp.zeros((1, 2)))
    Array([2.5], dtype=float32)
    """
    student, teacher = checks.features_pair(student_features, teacher_features)
    if min(student.ndim, teacher.ndim) < 2 or student.shape[-1] != teacher.shape[-1]:
        raise ValueError(
            f"student_features has shape {student.shape}, teacher_features {teacher.shape}: both must be [B, ..., K]; "
            "connect the student's to the teacher's channels first."
        )
    gap = _over_positions(student) - _over_positions(teacher)
    return jnp.mean(gap**2, axis=-1) + 2 * logit_mse(reused_logits, teacher_logits, class_reduction="mean")


def _over_positions(features: Array) -> Array:
    """Mean over all axes between examples and channels, `[B, K]`."""
    return jnp.mean(features, axis=tuple(range(1, features.ndim - 1)))

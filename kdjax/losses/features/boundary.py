"""The loss between activation boundaries."""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from kdjax.losses.features import pooling

__all__ = ["ab"]

Array = jax.Array


def ab(student_preactivations: ArrayLike, teacher_preactivations: ArrayLike, *, margin: ArrayLike = 1.0) -> Array:
    r"""Activation boundaries: pulls each of the student's responses to the side of 0 on which the teacher's is, by a margin.

    $$\sum_{hwk} \begin{cases} \max(0, m + s)^2 & t \le 0 \\ \max(0, m - s)^2 & t > 0 \end{cases}$$

    How far beyond 0 the teacher's response is does not matter: a neuron is on or off.

    Args:
      student_preactivations: `[B, H, W, K]` before the ReLU, brought to the teacher's width by a learned connector, which
        belongs to the objective.
      teacher_preactivations: `[B, H', W', K]`, a constant. The larger map is average-pooled to the smaller.
      margin: a number or a traced scalar.

    Returns:
      `[B]`, summed over positions and channels. The published loss of a stage is their mean over the batch, times 3 / 1000
      and times 1 for the last stage, 1/2 for the one before, and so on.

    Raises:
      TypeError: preactivations are not floating point.
      ValueError: they are not two maps of the same examples with as many channels.

    Paper: Heo, Lee, Yun, Choi, "Knowledge Transfer via Distillation of Activation Boundaries Formed by Hidden Neurons",
    AAAI 2019, arXiv 1811.03233.

    >>> student, teacher = jnp.array([[[[0.5, 0.5, 2.0]]]]), jnp.array([[[[-3.0, 3.0, 0.1]]]])
    >>> ab(student, teacher)  # 1.5² + 0.5² + 0
    Array([2.5], dtype=float32)
    """
    student, teacher = pooling.maps_pair(student_preactivations, teacher_preactivations)
    pooling.same_channels(student, teacher)
    margin = jnp.asarray(margin, student.dtype)
    shortfall = margin - jnp.where(teacher > 0, student, -student)
    return jnp.sum(jnp.where(shortfall > 0, shortfall, 0) ** 2, axis=(1, 2, 3))

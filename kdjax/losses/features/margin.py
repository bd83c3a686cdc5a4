"""Distances between features before their activation, of which only what the activation lets through matters."""

import math

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from kdjax.losses import checks
from kdjax.losses.features.pooling import adaptive_average_pool

__all__ = ["ofd", "ofd_margin"]

Array = jax.Array

# Where fewer than this share of a channel's values is negative, the released code does not ask for their mean.
RARE = 0.001


def ofd(student_preactivations: ArrayLike, teacher_preactivations: ArrayLike, margin: ArrayLike) -> Array:
    r"""Overhaul of feature distillation: pulls the student's features, before the activation and once projected to the
    teacher's channels, to the teacher's where those are positive, and elsewhere only down to them or to a margin.

    With $s$ and $t$ student and teacher at one position of one channel, and $m$ the margin of the channel:

    $$\sum_{hwk} \begin{cases} (s - t)^2 & t > 0 \\ \max(s - t, 0)^2 & m < t \le 0 \\ \max(s - m, 0)^2 & t \le m
    \end{cases}$$

    Args:
      student_preactivations: `[B, H, W, K]` of one stage, already projected by the learned connector, which belongs to the
        objective.
      teacher_preactivations: `[B, h, w, K]`, a constant. Where its size is another, it is brought to the student's by
        `adaptive_average_pool`.
      margin: `[K]`, at most 0, of `ofd_margin`; a constant.

    Returns:
      `[B]`: the sum over positions and channels. The released loss is its mean over the batch, summed over stages with
      weights 1, 1/2, 1/4, ... from the last stage back.

    Raises:
      TypeError: an argument is not floating point.
      ValueError: the numbers of examples or of channels differ, or maps are not `[B, H, W, K]`.

    Paper: Heo, Kim, Yun, Park, Kwak, Choi, "A Comprehensive Overhaul of Feature Distillation", ICCV 2019,
    arXiv 1904.01866.

    >>> student = jnp.array([2.0, -0.5, -5.0, -0.5]).reshape(1, 1, 1, 4)
    >>> teacher = jnp.array([3.0, -4.0, -0.5, -0.2]).reshape(1, 1, 1, 4)
    >>> ofd(student, teacher, jnp.full(4, -1.0))  # 1 for the first, 0.25 for the second, which is above the margin
    Array([1.25], dtype=float32)
    """
    student, teacher = checks.features_pair(student_preactivations, teacher_preactivations)
    margin = lax.stop_gradient(checks.floating(margin, "margin")).astype(student.dtype)
    if {student.ndim, teacher.ndim} != {4} or not student.shape[-1:] == teacher.shape[-1:] == margin.shape:
        raise ValueError(
            f"student_preactivations has shape {student.shape}, teacher_preactivations {teacher.shape}, margin "
            f"{margin.shape}: give [B, H, W, K] of both, the student's projected to the teacher's channels, and [K]."
        )
    teacher = adaptive_average_pool(teacher, student.shape[1:3])
    margin = margin[None, None, None, :]
    to_teacher = (teacher > 0) | ((teacher > margin) & (student > teacher))
    to_margin = (teacher <= margin) & (student > margin)
    squares = jnp.where(to_teacher, student - teacher, 0) ** 2 + jnp.where(to_margin, student - margin, 0) ** 2
    return jnp.sum(squares, axis=(1, 2, 3))


def ofd_margin(scale: ArrayLike, bias: ArrayLike) -> Array:
    r"""The mean of a channel's negative values, as its BatchNorm's scale and bias tell: the margin of `ofd`.

    A BatchNorm's output is taken to be normal with mean $\mu$, the bias, and deviation $\sigma$, the scale's absolute
    value. Of such a variable the mean of the negative values is

    $$m = \mu - \sigma \, \frac{\varphi(\mu / \sigma)}{\Phi(-\mu / \sigma)}$$

    Args:
      scale: `[K]`, of either sign.
      bias: `[K]`.

    Returns:
      `[K]`, at most 0, a constant to the gradient. Follows the released code in giving $-3 \sigma$ where no more than one
      value in a thousand is negative. The limits: `bias` where it is far below 0, and `min(bias, 0)` at a scale of 0.

    Raises:
      TypeError: an argument is not floating point.
      ValueError: the shapes differ.

    Paper: Heo et al., ICCV 2019, arXiv 1904.01866; see `ofd`. Finite at any scale and bias, where the released code
    divides by the scale.

    >>> print(*(f"{m:.4f}" for m in ofd_margin(jnp.array([1.0, -2.0, 1.0, 0.0]), jnp.array([0.0, 0.0, 4.0, -1.0]))))
    -0.7979 -1.5958 -3.0000 -1.0000
    """
    scale, bias = (checks.floating(array, name) for array, name in ((scale, "scale"), (bias, "bias")))
    if scale.shape != bias.shape:
        raise ValueError(f"scale has shape {scale.shape}, bias {bias.shape}: give one of each for every channel.")
    scale, bias = lax.stop_gradient((jnp.abs(scale), bias))
    ratio = jnp.where(scale > 0, bias / jnp.where(scale > 0, scale, 1), jnp.where(bias > 0, jnp.inf, -jnp.inf))
    negative = 0.5 * lax.erfc(ratio / math.sqrt(2))
    density = jnp.exp(-0.5 * ratio**2) / math.sqrt(2 * math.pi)
    usual = negative > RARE
    return jnp.where(usual, bias - scale * density / jnp.where(usual, negative, 1), -3 * scale)

"""Losses between embeddings of which one went through a learned projector."""

from typing import Literal

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from kdjax.losses import checks

__all__ = ["srd"]

Array = jax.Array


def srd(
    student_feat: ArrayLike,
    teacher_feat: ArrayLike,
    *,
    exponent: float = 4.0,
    mode: Literal["feature", "correlation"] = "feature",
    bn_eps: float = 1e-4,
    log_eps: float = 0.0,
    where: ArrayLike | None = None,
    axis_name: str | None = None,
) -> Array:
    r"""Simple recipe distillation: pulls the student's projected embedding towards the teacher's, both standardised.

    With $u$ every feature less its mean over the batch, divided by $\sqrt{\mathrm{var} + \epsilon_\mathrm{bn}}$ (a
    BatchNorm without scale and bias), "feature" is

    $$\log\Big( \sum_{bj} |u_s - u_t|^\alpha + \epsilon_{\log} \Big)$$

    and "correlation", with $c_j = \frac{1}{B} \sum_b u_s(b, j) \, u_t(b, j)$,

    $$\log\Big( \sum_j |c_j - 1|^\alpha + \epsilon_{\log} \Big)$$

    The high power attends to the worst entries; the logarithm makes the gradient independent of the overall size.

    Args:
      student_feat: `[B, D]`, projected to the teacher's width by a learned linear layer, which belongs to the objective.
      teacher_feat: `[B, D]`, a constant.
      exponent: the power alpha, a number above 0.
      mode: "feature", the released code for ResNets, or "correlation", the released code for DeiT, which has
        `bn_eps=0.0` and `log_eps=1e-5`.
      bn_eps: added to the variance, which is the biased one.
      log_eps: added within the logarithm.
      where: `[B]`, bool or 0/1. A False row is as if it were not in the batch, whatever it holds, nan included.
      axis_name: the mapped axis under pmap or shard_map, over which the batch is spread; None where the arrays hold the
        whole batch, as under jit. Statistics are those of the global batch.

    Returns:
      A scalar for the whole (global) batch, alike on all devices; it is the published loss. A batch of n times as many
      like rows has a "feature" value larger by `log n`, and the same gradient of the mean. 0 for an empty mask.

    Raises:
      TypeError: features are not floating point.
      ValueError: features are not two `[B, D]` of one shape, `exponent` is not above 0, an epsilon is below 0, or `mode` is
        neither.

    The logarithm is taken of the type's smallest normal number at least, so that a perfect match is a finite value with a
    zero gradient: about -87.3 in float32 where the released code, with `log_eps=0`, has -inf and nan. This is a batch of
    one in "feature" mode too. Close to it the gradient grows as one over the distance. A feature that is constant over the
    batch is 0 in both modes, and gets no gradient if `bn_eps=0`.

    Paper: Miles, Mikolajczyk, "Understanding the Role of the Projector in Knowledge Distillation", AAAI 2024,
    arXiv 2303.11098.

    >>> student, teacher = jnp.array([[1.0], [-1.0], [1.0], [-1.0]]), jnp.array([[1.0], [1.0], [-1.0], [-1.0]])
    >>> print(f"{srd(student, teacher, bn_eps=0.0):.4f}")  # log of two times 2⁴
    3.4657
    >>> print(f"{srd(student, teacher, mode='correlation'):.4f}")
    0.0000
    """
    if mode not in ("feature", "correlation"):
        raise ValueError(f'mode is {mode!r}; use "feature" or "correlation".')
    if not exponent > 0 or bn_eps < 0 or log_eps < 0:
        raise ValueError(
            f"exponent={exponent}, bn_eps={bn_eps}, log_eps={log_eps}: the first must be above 0, the others not below."
        )
    student, teacher = checks.features_pair(student_feat, teacher_feat)
    if student.ndim != 2 or student.shape != teacher.shape:
        raise ValueError(
            f"student_feat has shape {student.shape}, teacher_feat {teacher.shape}: both must be [B, D] and alike; project "
            "the student's to the teacher's width first."
        )
    kept = checks.row_mask(where, student.shape[0])
    student, teacher, kept = (_gather(rows, axis_name) for rows in (student, teacher, kept))
    count = jnp.maximum(jnp.sum(kept, dtype=student.dtype), 1)
    student, teacher = (_standardise(rows, kept[:, None], count, bn_eps) for rows in (student, teacher))
    gap = student - teacher if mode == "feature" else jnp.sum(student * teacher, axis=0) / count - 1
    total = jnp.sum(_power(gap, exponent)) + log_eps
    value = jnp.log(jnp.maximum(total, jnp.finfo(total.dtype).tiny))
    return jnp.where(jnp.any(kept), value, 0)


def _standardise(rows: Array, kept: Array, count: Array, eps: float) -> Array:
    """Zero mean and unit variance over the kept rows; rows that are left out become 0."""
    rows = jnp.where(kept, rows, 0)
    centred = jnp.where(kept, rows - jnp.sum(rows, axis=0, keepdims=True) / count, 0)
    variance = jnp.sum(centred**2, axis=0, keepdims=True) / count + eps
    # What rounding leaves of a constant feature is no variance.
    least = (8 * jnp.finfo(rows.dtype).eps) ** 2 * lax.stop_gradient(jnp.sum(rows**2, axis=0, keepdims=True)) / count
    varies = variance > least
    return jnp.where(varies, centred * lax.rsqrt(jnp.where(varies, variance, 1)), 0)


def _power(x: Array, exponent: float) -> Array:
    """`|x|^exponent`, with a zero gradient at 0."""
    size = x * jnp.sign(x)
    positive = size > 0
    return jnp.where(positive, jnp.where(positive, size, 1) ** exponent, 0)


def _gather(rows: Array, axis_name: str | None) -> Array:
    return rows if axis_name is None else lax.all_gather(rows, axis_name, axis=0, tiled=True)

"""Losses between logits that compare the two networks along the classes and along the batch."""

import math
import numbers
from typing import Literal

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from kdjax.losses import checks, logspace

__all__ = ["clkd", "dist", "dist_parts"]

Array = jax.Array


def dist(
    student_logits: ArrayLike,
    teacher_logits: ArrayLike,
    *,
    beta: ArrayLike = 1.0,
    gamma: ArrayLike = 1.0,
    temperature: ArrayLike = 1.0,
    where: ArrayLike | None = None,
    axis_name: str | None = None,
) -> Array:
    r"""DIST: pulls towards the teacher's ordering of the classes, and of the examples within each class.

    $$\beta \, \mathrm{inter} + \gamma \, \mathrm{intra}$$

    A correlation in place of a divergence: the student is free to be as sure or unsure as it likes. See `dist_parts`.

    Args:
      student_logits: `[B, C]`; of a segmentation network, all pixels as rows.
      teacher_logits: `[B, C]`, a constant.
      beta: weight of the correlation over the classes; a number or a traced scalar.
      gamma: weight of the correlation over the batch, likewise.
      temperature: a number or a traced scalar.
      where: `[B]`, bool or 0/1. A False row is as if it were not in the batch, whatever it holds, nan included.
      axis_name: the mapped axis under pmap or shard_map, over which the batch is spread; None where the arrays hold the
        whole batch, as under jit.

    Returns:
      A scalar for the whole (global) batch, alike on all devices; it is the published loss. 0 for an empty mask.

    Raises:
      TypeError: logits are not floating point.
      ValueError: logits are not two `[B, C]` of one shape, a hyperparameter is not a scalar, or `temperature` is not
        above 0.

    Paper: Huang, You, Wang, Qian, Xu, "Knowledge Distillation from A Stronger Teacher", NeurIPS 2022, arXiv 2205.10536.

    >>> student, teacher = jnp.array([[1.0, 0.0], [0.0, 1.0]]), jnp.array([[3.0, 0.0], [0.0, 3.0]])
    >>> print(f"{abs(dist(student, teacher)):.4f} {dist(student, -teacher):.4f}")
    0.0000 4.0000
    """
    inter, intra = dist_parts(student_logits, teacher_logits, temperature=temperature, where=where, axis_name=axis_name)
    return _scalar(beta, inter.dtype, "beta") * inter + _scalar(gamma, inter.dtype, "gamma") * intra


def dist_parts(
    student_logits: ArrayLike,
    teacher_logits: ArrayLike,
    *,
    temperature: ArrayLike = 1.0,
    where: ArrayLike | None = None,
    axis_name: str | None = None,
) -> tuple[Array, Array]:
    r"""The two terms that `dist` weighs: how far rows, and columns, of the probabilities are from correlated.

    With $P$ the `[B, C]` probabilities and $\rho$ Pearson's correlation:

    $$\mathrm{inter} = T^2 \Big( 1 - \frac{1}{B} \sum_b \rho(P_s[b, :], P_t[b, :]) \Big), \qquad
      \mathrm{intra} = T^2 \Big( 1 - \frac{1}{C} \sum_c \rho(P_s[:, c], P_t[:, c]) \Big)$$

    The product of norms in a correlation gets 1e-8 added, as in the released code. So what is constant, in either
    network, correlates with nothing: a batch of one has `intra = T^2`, a single class both. The gradient at a student
    row of equal logits is finite, but of order 1e8.

    Args:
      student_logits: `[B, C]`; of a segmentation network, all pixels as rows.
      teacher_logits: `[B, C]`, a constant.
      temperature: a number or a traced scalar.
      where: `[B]`, bool or 0/1. A False row is as if it were not in the batch, whatever it holds, nan included.
      axis_name: the mapped axis under pmap or shard_map, over which the batch is spread; None where the arrays hold the
        whole batch, as under jit.

    Returns:
      `(inter, intra)`, two scalars between 0 and `2 T^2` for the whole (global) batch, alike on all devices. Both are 0
      for an empty mask.

    Raises:
      TypeError: logits are not floating point.
      ValueError: logits are not two `[B, C]` of one shape, or `temperature` is not a scalar above 0.

    Paper: Huang, You, Wang, Qian, Xu, "Knowledge Distillation from A Stronger Teacher", NeurIPS 2022, arXiv 2205.10536.

    >>> student, teacher = jnp.array([[1.0, 0.0], [2.0, 0.0]]), jnp.array([[3.0, 0.0], [1.0, 0.0]])
    >>> print(*(f"{part:.4f}" for part in dist_parts(student, teacher)))  # the classes agree, the examples do not
    0.0000 2.0000
    """
    student, teacher, kept = _global_batch(student_logits, teacher_logits, where, axis_name)
    if isinstance(temperature, numbers.Real) and not 0 < temperature < math.inf:
        raise ValueError(f"temperature is {temperature}; it divides the logits and must be above 0 and finite.")
    temperature = _scalar(temperature, student.dtype, "temperature")
    by_row = jnp.broadcast_to(temperature, kept.shape)
    p_student, p_teacher = (jnp.exp(logspace.log_softmax(logits, by_row)) for logits in (student, teacher))
    across = _correlation(p_student, p_teacher, jnp.ones_like(kept)[:, None], axis=1)
    along = _correlation(p_student, p_teacher, kept[:, None], axis=0)
    count = jnp.sum(kept, dtype=student.dtype)
    inter = jnp.sum(jnp.where(kept, 1 - across, 0)) / jnp.maximum(count, 1)
    intra = jnp.where(count > 0, jnp.mean(1 - along), 0)
    return temperature**2 * inter, temperature**2 * intra


def clkd(
    student_logits: ArrayLike,
    teacher_logits: ArrayLike,
    *,
    beta: ArrayLike = 2.0,
    cc_mode: Literal["class_cov", "batch_outer", "gram"] = "class_cov",
    where: ArrayLike | None = None,
    axis_name: str | None = None,
) -> dict[str, Array]:
    r"""CLKD: pulls the direction of the logits, example by example and class by class, and their correlations.

    With $n_r$ scaling every row, and $n_c$ every column, to unit L2 norm:

    $$\mathrm{ins} = \frac{1}{BC} \| n_r(z_s) - n_r(z_t) \|_F^2, \qquad
      \mathrm{cla} = \frac{1}{BC} \| n_c(z_s) - n_c(z_t) \|_F^2, \qquad
      \mathrm{cc} = \frac{1}{C^2} \| M(z_s) - M(z_t) \|_F^2$$

    There is no temperature, and the logits are not centred: a shift of all logits of a row changes the loss. No
    released code was found, and the re-implementations of the paper disagree on $M$, which `cc_mode` selects. With
    $\bar z$ the logits less their mean over the batch, class by class:

    - "class_cov": $\bar z^\top \bar z / (C - 1)$, `[C, C]`. It is summed over the examples, so it grows with the batch.
    - "batch_outer": $\bar z \bar z^\top / (C - 1)$, `[B, B]`.
    - "gram": $n_r(z^\top z) / C$, `[C, C]`, not centred; the one that is blind to the scale of the logits.

    Args:
      student_logits: `[B, C]`.
      teacher_logits: `[B, C]`, a constant. A class at -inf is left out of that row in both networks and of the counts.
      beta: weight of `cla` in `loss`; a number or a traced scalar.
      cc_mode: which correlation.
      where: `[B]`, bool or 0/1. A False row is as if it were not in the batch, whatever it holds, nan included.
      axis_name: the mapped axis under pmap or shard_map, over which the batch is spread; None where the arrays hold the
        whole batch, as under jit.

    Returns:
      Scalars for the whole (global) batch, alike on all devices: "ins", "cla" and "cc" as above, not weighted, and
      "loss", `ins + beta * cla`. The paper's total weighs `loss` with 0.5, "cc" with 0.4 and the cross-entropy with 0.1.
      All are 0 for an empty mask. A row or column of zeros stays zero and sends back no gradient.

    Raises:
      TypeError: logits are not floating point.
      ValueError: logits are not two `[B, C]` of one shape, `beta` is not a scalar, or `cc_mode` is unknown.

    Paper: Zhang, Liu, Hopcroft, He, "Class-aware Information for Logit-based Knowledge Distillation", 2022,
    arXiv 2211.14773.

    >>> student, teacher = jnp.array([[2.0, 0.0]]), jnp.array([[0.0, 1.0]])
    >>> print({name: f"{value:.2f}" for name, value in clkd(student, teacher).items()})
    {'ins': '1.00', 'cla': '1.00', 'cc': '0.00', 'loss': '3.00'}
    """
    if cc_mode not in ("class_cov", "batch_outer", "gram"):
        raise ValueError(f'cc_mode is {cc_mode!r}; use "class_cov", "batch_outer" or "gram".')
    student, teacher, kept = _global_batch(student_logits, teacher_logits, where, axis_name)
    entries = kept[:, None] & (teacher != -jnp.inf)
    student, teacher = jnp.where(entries, student, 0), jnp.where(entries, teacher, 0)
    count = jnp.maximum(jnp.sum(entries, dtype=student.dtype), 1)
    ins = jnp.sum((_unit(student, 1) - _unit(teacher, 1)) ** 2) / count
    cla = jnp.sum((_unit(student, 0) - _unit(teacher, 0)) ** 2) / count
    classes = jnp.maximum(jnp.sum(jnp.any(entries, axis=0), dtype=student.dtype), 1)
    gap = _relations(student, entries, classes, cc_mode) - _relations(teacher, entries, classes, cc_mode)
    loss = ins + _scalar(beta, ins.dtype, "beta") * cla
    return {"ins": ins, "cla": cla, "cc": jnp.sum(gap**2) / classes**2, "loss": loss}


def _global_batch(student_logits, teacher_logits, where, axis_name: str | None) -> tuple[Array, Array, Array]:
    """Both networks' `[B, C]` logits and the mask, of all devices; rows that are left out are zero."""
    student, teacher = checks.logits_pair(student_logits, teacher_logits)
    if student.ndim != 2:
        raise ValueError(f"student_logits has shape {student.shape}; reshape both networks' logits to [B, C].")
    kept = checks.row_mask(where, student.shape[0])
    student, teacher = (jnp.where(kept[:, None], logits, 0) for logits in (student, teacher))
    if axis_name is None:
        return student, teacher, kept
    return tuple(lax.all_gather(rows, axis_name, axis=0, tiled=True) for rows in (student, teacher, kept))


def _scalar(value, dtype, name: str) -> Array:
    value = jnp.asarray(value, dtype)
    if value.ndim:
        raise ValueError(f"{name} has shape {value.shape}; the loss is of the whole batch: give one number.")
    return value


def _correlation(a: Array, b: Array, kept: Array, *, axis: int) -> Array:
    """Pearson's correlation over the kept entries along `axis`, with 1e-8 added to the product of the norms."""
    a, b = _centred(a, kept, axis), _centred(b, kept, axis)
    return jnp.sum(a * b, axis=axis) / (_norm(a, axis) * _norm(b, axis) + 1e-8)


def _centred(x: Array, kept: Array, axis: int) -> Array:
    """`x` less its mean over the kept entries along `axis`; zero at the others."""
    kept = jnp.broadcast_to(kept, x.shape)
    count = jnp.maximum(jnp.sum(kept, axis=axis, keepdims=True, dtype=x.dtype), 1)
    # The second pass takes off what the first mean was rounded by: what is constant comes out exactly zero.
    for _ in range(2):
        x = jnp.where(kept, x, 0)
        x = x - jnp.sum(x, axis=axis, keepdims=True) / count
    return jnp.where(kept, x, 0)


def _norm(x: Array, axis: int) -> Array:
    """L2 norm with a zero gradient at zero."""
    squared = jnp.sum(x**2, axis=axis)
    alive = squared > 0
    return jnp.where(alive, jnp.sqrt(jnp.where(alive, squared, 1)), 0)


def _unit(x: Array, axis: int) -> Array:
    """`x` scaled to unit L2 norm along `axis`; a norm below 1e-12 counts as 1e-12, and zero stays zero."""
    norm = jnp.expand_dims(_norm(x, axis), axis)
    return jnp.where(norm > 0, x / jnp.maximum(norm, 1e-12), 0)


def _relations(logits: Array, entries: Array, classes: Array, cc_mode: str) -> Array:
    """The matrix that `cc_mode` names."""
    if cc_mode == "gram":
        return _unit(jnp.einsum("bi,bj->ij", logits, logits, precision=lax.Precision.HIGHEST), 1) / classes
    centred = _centred(logits, entries, 0)
    indices = "bi,bj->ij" if cc_mode == "class_cov" else "ic,jc->ij"
    product = jnp.einsum(indices, centred, centred, precision=lax.Precision.HIGHEST)
    return product / jnp.maximum(classes - 1, 1)

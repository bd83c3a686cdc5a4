"""Losses between normalised maps: where a network looks, and which patterns its channels select."""

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from kdjax.losses.features import pooling

__all__ = ["at", "ft", "nst"]

Array = jax.Array


def at(student_features: ArrayLike, teacher_features: ArrayLike, *, p: int = 2, squared: bool = True) -> Array:
    r"""Attention transfer: pulls the student's activity towards the positions where the teacher's is.

    With $A = \mathrm{vec}\big( \frac{1}{K} \sum_k f_k^p \big)$, one number a position:

    $$\frac{1}{HW} \left\| \frac{A_s}{\|A_s\|} - \frac{A_t}{\|A_t\|} \right\|^2$$

    Args:
      student_features: `[B, H, W, K]`, one stage.
      teacher_features: `[B, H', W', K']`, a constant. The larger map is average-pooled to the smaller, before the power.
      p: the power, a whole number. Of an odd power of features below 0 the sign stays, as in the released codes.
      squared: False takes the L2 norm of the difference, not divided by HW, which is the paper's equation.

    Returns:
      `[B]`, between 0 and `4 / HW` (up to 2 if not squared). The published loss of a stage is their mean over the batch;
      stages are added up.

    Raises:
      TypeError: features are not floating point.
      ValueError: features are not two maps of the same examples.

    A norm below 1e-12 counts as 1e-12. An example without activation has a map of zeros and gets no gradient.

    Paper: Zagoruyko, Komodakis, "Paying More Attention to Attention: Improving the Performance of Convolutional Neural
    Networks via Attention Transfer", ICLR 2017, arXiv 1612.03928. Released codes square and average the difference.

    >>> student, teacher = jnp.array([[[[3.0], [0.0]]]]), jnp.array([[[[0.0, 0.0], [1.0, 1.0]]]])
    >>> at(student, teacher), at(student, student + 0)
    (Array([1.], dtype=float32), Array([0.], dtype=float32))
    """
    student, teacher = pooling.maps_pair(student_features, teacher_features)
    gap = _activity(student, p) - _activity(teacher, p)
    return jnp.mean(gap**2, axis=-1) if squared else _norm(gap)


def ft(student_factors: ArrayLike, teacher_factors: ArrayLike, *, p1: int = 2, p2: int = 1) -> Array:
    r"""Factor transfer: pulls the translator's factors of the student towards the paraphraser's of the teacher.

    With $A$ as for `at`, of the factors and with the power `p1`:

    $$\frac{1}{HW} \sum_{hw} \left| \frac{A_s}{\|A_s\|} - \frac{A_t}{\|A_t\|} \right|^{p_2}$$

    Args:
      student_factors: `[B, H, W, K]`, from the learned translator, which belongs to the objective.
      teacher_factors: `[B, H', W', K']`, from the paraphraser, a constant. The larger map is average-pooled to the smaller.
      p1: the power of the factors, a whole number.
      p2: the power of the difference, a whole number.

    Returns:
      `[B]`. The published loss is their mean over the batch.

    Raises:
      TypeError: factors are not floating point.
      ValueError: factors are not two maps of the same examples.

    Where a difference is 0 the gradient of `p2=1` is 0. Norms as for `at`.

    Paper: Kim, Park, Kwak, "Paraphrasing Complex Network: Network Compression via Factor Transfer", NeurIPS 2018,
    arXiv 1802.04977. The mean over channels before the norm is the released benchmark code's.

    >>> student, teacher = jnp.array([[[[3.0], [0.0]]]]), jnp.array([[[[0.0], [1.0]]]])
    >>> ft(student, teacher)
    Array([1.], dtype=float32)
    """
    student, teacher = pooling.maps_pair(student_factors, teacher_factors)
    gap = _activity(student, p1) - _activity(teacher, p1)
    size = gap * jnp.sign(gap)  # not jnp.abs, whose slope at 0 is 1
    return jnp.mean(size**p2, axis=-1)


def nst(student_features: ArrayLike, teacher_features: ArrayLike) -> Array:
    r"""Neuron selectivity transfer: pulls the distribution of the student's channel patterns towards the teacher's.

    Every channel is a sample $a$, its map divided by its L2 norm. With the kernel $k(a, b) = \langle a, b \rangle^2$ the
    squared distance of the two distributions (maximum mean discrepancy) is

    $$\frac{1}{K_s^2} \sum_{ij} k(a_i^s, a_j^s) + \frac{1}{K_t^2} \sum_{ij} k(a_i^t, a_j^t)
      - \frac{2}{K_s K_t} \sum_{ij} k(a_i^s, a_j^t)$$

    Args:
      student_features: `[B, H, W, K_s]`, one stage.
      teacher_features: `[B, H', W', K_t]`, a constant; any number of channels. The larger map is average-pooled to the
        smaller.

    Returns:
      `[B]`, not below 0 but for rounding. The published loss of a stage is their mean over the batch; stages are added up.
      The teacher's own term is part of the value, as in the released codes.

    Raises:
      TypeError: features are not floating point.
      ValueError: features are not two maps of the same examples.

    A norm below 1e-12 counts as 1e-12. A channel without activation is a sample of zeros and gets no gradient.

    Paper: Huang, Wang, "Like What You Like: Knowledge Distill via Neuron Selectivity Transfer", 2017, arXiv 1707.01219;
    the polynomial kernel.

    >>> student, teacher = jnp.array([[[[1.0, 5.0], [0.0, 0.0]]]]), jnp.array([[[[0.0], [2.0]]]])
    >>> nst(student, teacher)
    Array([2.], dtype=float32)
    """
    student, teacher = (_samples(maps) for maps in pooling.maps_pair(student_features, teacher_features))
    return _kernel(student, student) + _kernel(teacher, teacher) - 2 * _kernel(student, teacher)


def _activity(features: Array, p: int) -> Array:
    """`[B, HW]` of unit norm: the mean over channels of the p-th power."""
    return _unit(jnp.mean(pooling.by_position(features) ** p, axis=-1))


def _samples(features: Array) -> Array:
    """`[B, K, HW]`: every channel's map with unit norm."""
    return _unit(jnp.swapaxes(pooling.by_position(features), 1, 2))


def _kernel(first: Array, second: Array) -> Array:
    """`[B]`: mean over all pairs of samples of the squared inner product."""
    products = jnp.einsum("bip,bjp->bij", first, second, precision=lax.Precision.HIGHEST)
    return jnp.mean(products**2, axis=(1, 2))


def _unit(vectors: Array) -> Array:
    """Divided by their norm along the last axis, by 1e-12 at least; zeros stay zeros and send nothing back."""
    norm = _norm(vectors)[..., None]
    return jnp.where(norm > 0, vectors / jnp.where(norm > 0, jnp.maximum(norm, 1e-12), 1), 0)


def _norm(vectors: Array) -> Array:
    squared = jnp.sum(vectors**2, axis=-1)
    positive = squared > 0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, squared, 1)), 0)

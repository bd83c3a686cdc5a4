"""Losses between how two networks relate the examples of a batch to each other."""

import jax
import jax.numpy as jnp
from jax import lax

from kdjax.losses import checks

__all__ = ["sp"]

Array = jax.Array


def sp(student_features, teacher_features, *, where=None, axis_name: str | None = None) -> Array:
    r"""Similarity-preserving: pulls together, and apart, the pairs of examples that the teacher has near, and far.

    With $Q$ the features as one row an example, $\hat G = Q Q^\top$, and $G$ its rows divided by their L2 norm:

    $$\ell_i = \frac{1}{B} \sum_j \left( G_t(i, j) - G_s(i, j) \right)^2$$

    Args:
      student_features: `[B, ...]`.
      teacher_features: `[B, ...]`, a constant. Only the first axis must be alike in both.
      where: boolean `[B]`. A False row is as if it were not in the batch, whatever it holds, nan included: it is left
        out of the columns, the norms and the count, and its own value is 0.
      axis_name: the mapped axis under pmap or shard_map, over which the batch is spread; every example is then compared
        with all examples of the global batch. None where the arrays hold the whole batch, as under jit.

    Returns:
      `[B]` for the rows held here, with B in the formula the global count of rows that are kept. The published loss,
      `||G_t - G_s||_F^2 / B^2`, is their mean over the kept rows of all devices. An empty mask gives zeros.

    Raises:
      TypeError: features are not floating point, or `where` not boolean.
      ValueError: the numbers of examples differ.

    The Gram matrix is computed in float32 at least, at the highest matmul precision. A norm below 1e-12 counts as
    1e-12. An example without any activation has a Gram row of zeros, which stays zero and sends back no gradient; as a
    column of the other rows it has one, like any example.

    Paper: Tung, Mori, "Similarity-Preserving Knowledge Distillation", ICCV 2019, arXiv 1907.09682. Released codes agree
    but for the gradient at an example without activation, of order 1e12 there, since it divides by the 1e-12.

    >>> student, teacher = jnp.array([[1.0, 0.0], [1.0, 0.0]]), jnp.array([[1.0, 0.0], [0.0, 1.0]])
    >>> print(f"{sp(student, teacher).mean():.4f}")
    0.2929
    """
    student, teacher = checks.features_pair(student_features, teacher_features)
    kept = checks.row_mask(where, student.shape[0])
    count = jnp.maximum(jnp.sum(_gather(kept, axis_name), dtype=student.dtype), 1)
    gap = _similarities(student, kept, axis_name) - _similarities(teacher, kept, axis_name)
    return jnp.sum(gap**2, axis=-1) / count


def _similarities(features: Array, kept: Array, axis_name: str | None) -> Array:
    """Normalised Gram rows of the local examples against those of all devices; zero for rows that are left out."""
    rows = jnp.reshape(features, (features.shape[0], -1))
    rows = jnp.where(kept[:, None], rows, 0)
    gram = jnp.einsum("id,jd->ij", rows, _gather(rows, axis_name), precision=lax.Precision.HIGHEST)
    squared = jnp.sum(gram**2, axis=-1, keepdims=True)
    alive = squared > 0
    norm = jnp.sqrt(jnp.where(alive, squared, 1))
    return jnp.where(alive, gram / jnp.maximum(norm, 1e-12), 0)


def _gather(rows: Array, axis_name: str | None) -> Array:
    return rows if axis_name is None else lax.all_gather(rows, axis_name, axis=0, tiled=True)

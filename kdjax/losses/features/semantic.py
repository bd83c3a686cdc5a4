"""Losses that weigh the pairs of a student's and a teacher's stages by how alike they see the batch."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from kdjax.losses import checks
from kdjax.losses.features.pooling import adaptive_average_pool

__all__ = ["batch_similarity", "semckd", "semckd_attention"]

Array = jax.Array


def semckd(
    student_features: Sequence[Sequence[Array]], teacher_features: Sequence[Array], attention: ArrayLike
) -> Array:
    r"""Semantic calibration: pulls every stage of the student, through projections of its own, towards all stages of the
    teacher, each as much as an attention says.

    With $f_{ij}$ stage $i$ of the student projected to stage $j$ of the teacher, $t_j$, and $\alpha$ the attention:

    $$\frac{1}{n_s} \sum_{i=1}^{n_s} \sum_{j=1}^{n_t} \alpha_{ij} \, \operatorname{mean} \left( f_{ij} - t_j \right)^2$$

    Args:
      student_features: for each stage of the student, and there for each of the teacher, `[B, h, w, K_j]`, already
        projected; the modules belong to the objective.
      teacher_features: for each stage of the teacher `[B, H, W, K_j]`, a constant. Where its size is another, it is brought
        to that of the projection by `adaptive_average_pool`.
      attention: `[B, n_s, n_t]`, each row a distribution over the teacher's stages. Its gradient is not stopped: the
        attention learns which pairs are easy.

    Returns:
      `[B]`. The published loss is its mean over the batch.

    Raises:
      TypeError: an argument is not floating point.
      ValueError: numbers of stages, examples or channels do not fit.

    Paper: Chen, Mei, Zhang, Wang, Wang, Feng, Chen, "Cross-Layer Distillation with Semantic Calibration", AAAI 2021,
    arXiv 2012.03236.

    >>> student, teacher = jnp.zeros((1, 2, 2, 3)), [jnp.ones((1, 2, 2, 3)), jnp.full((1, 4, 4, 3), 2.0)]
    >>> semckd([[student, student]], teacher, jnp.array([[[0.75, 0.25]]]))
    Array([1.75], dtype=float32)
    """
    attention = checks.floating(attention, "attention")
    counts = (len(student_features), len(teacher_features))
    if attention.ndim != 3 or attention.shape[1:] != counts or any(len(row) != counts[1] for row in student_features):
        raise ValueError(
            f"attention has shape {attention.shape} for {counts[0]} stages of the student, projected to "
            f"{[len(row) for row in student_features]}, and {counts[1]} of the teacher: give [B, student stages, teacher "
            "stages], and a projection for every pair."
        )
    value = 0.0
    for i, row in enumerate(student_features):
        for j, (projected, target) in enumerate(zip(row, teacher_features, strict=True)):
            value = value + attention[:, i, j] * _mean_square(projected, target)
    return value / counts[0]


def semckd_attention(queries: ArrayLike, keys: ArrayLike, *, temperature: ArrayLike = 1.0) -> Array:
    r"""The attention of `semckd`: for each example and stage of the student, a softmax over the stages of the teacher.

    $$\alpha_{ij} = \operatorname{softmax}_j \left( q_i^\top k_j / T \right)$$

    Args:
      queries: `[B, n_s, D]` embeddings of the student's rows of `batch_similarity`, of length 1.
      keys: `[B, n_t, D]` of the teacher's. They are embedded by modules that learn, so their gradient is not stopped.
      temperature: T, above 0: a number, or one an example. The released code calls it `soft`.

    Returns:
      `[B, n_s, n_t]`.

    Raises:
      TypeError: an argument is not floating point.
      ValueError: shapes do not fit, or `temperature` is not above 0.

    Paper: Chen et al., AAAI 2021, arXiv 2012.03236; see `semckd`.

    >>> attention = semckd_attention(jnp.array([[[1.0, 0.0]]]), jnp.array([[[1.0, 0.0], [0.0, 1.0]]]))
    >>> print(*(f"{share:.4f}" for share in attention[0, 0]))
    0.7311 0.2689
    """
    queries, keys = checks.floating(queries, "queries"), checks.floating(keys, "keys")
    if queries.ndim != 3 or keys.ndim != 3 or queries.shape[::2] != keys.shape[::2]:
        raise ValueError(
            f"queries has shape {queries.shape}, keys {keys.shape}: give [B, stages, D] of both, B and D alike."
        )
    temperature = checks.softening(temperature, queries[:, 0])
    energy = jnp.einsum("bid,bjd->bij", queries, keys, precision=lax.Precision.HIGHEST)
    return jax.nn.softmax(energy / temperature[:, None, None], axis=-1)


def batch_similarity(features: ArrayLike, *, where: ArrayLike | None = None, axis_name: str | None = None) -> Array:
    r"""Dot products of the features of every example with those of all examples of the batch.

    $$\langle f_i, f_j \rangle$$

    Args:
      features: `[B, ...]`, flattened.
      where: `[B]`, bool or 0/1. The row and the column of a False one are zero, whatever it holds, nan included.
      axis_name: the mapped axis under pmap or shard_map, over which the batch is spread. None where the arrays hold the
        whole batch, as under jit.

    Returns:
      `[B, N]` for the rows held here and all `N` of the global batch.

    Raises:
      TypeError: features are not floating point.
      ValueError: `where` has another shape than `[B]`.

    Paper: Chen et al., AAAI 2021, arXiv 2012.03236; see `semckd`.

    >>> batch_similarity(jnp.array([[1.0, 2.0], [0.0, 1.0]]))
    Array([[5., 2.],
           [2., 1.]], dtype=float32)
    """
    features = checks.floating(features, "features")
    kept = checks.row_mask(where, features.shape[0])
    rows = jnp.where(kept[:, None], jnp.reshape(features, (features.shape[0], -1)), 0)
    columns = rows if axis_name is None else lax.all_gather(rows, axis_name, axis=0, tiled=True)
    return jnp.einsum("id,jd->ij", rows, columns, precision=lax.Precision.HIGHEST)


def _mean_square(projected: Array, target: Array) -> Array:
    """Mean squared difference of each example, `[B]`."""
    student, teacher = checks.features_pair(projected, target)
    if student.ndim != 4 or teacher.ndim != 4 or student.shape[-1] != teacher.shape[-1]:
        raise ValueError(
            f"a projection has shape {student.shape}, the teacher's stage {teacher.shape}: both must be [B, H, W, K] with "
            "the same K."
        )
    return jnp.mean((student - adaptive_average_pool(teacher, student.shape[1:3])) ** 2, axis=(1, 2, 3))

"""Losses between how two networks relate the examples of a batch to each other."""

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from kdjax.losses import checks
from kdjax.losses.relations import pairs
from kdjax.losses.relations.affinity import affinity_kd
from kdjax.losses.relations.affinity_parts import Entries, gaussian_series, over_root

__all__ = ["cc", "cc_neighbours", "ickd", "pkt", "sp"]

Array = jax.Array


def sp(
    student_features: ArrayLike,
    teacher_features: ArrayLike,
    *,
    where: ArrayLike | None = None,
    axis_name: str | None = None,
) -> Array:
    r"""Similarity-preserving: pulls together, and apart, the pairs of examples that the teacher has near, and far.

    With $Q$ the features as one row an example, $\hat G = Q Q^\top$, and $G$ its rows divided by their L2 norm:

    $$\ell_i = \frac{1}{B} \sum_j \left( G_t(i, j) - G_s(i, j) \right)^2$$

    Args:
      student_features: `[B, ...]`.
      teacher_features: `[B, ...]`, a constant. Only the first axis must be alike in both.
      where: `[B]`, bool or 0/1. A False row is as if it were not in the batch, whatever it holds, nan included: it is left
        out of the columns, the norms and the count, and its own value is 0.
      axis_name: the mapped axis under pmap or shard_map, over which the batch is spread; every example is then compared
        with all examples of the global batch. None where the arrays hold the whole batch, as under jit.

    Returns:
      `[B]` for the rows held here, with B in the formula the global count of rows that are kept. The published loss,
      `||G_t - G_s||_F^2 / B^2`, is their mean over the kept rows of all devices. An empty mask gives zeros.

    Raises:
      TypeError: features are not floating point.
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
    return affinity_kd(
        student_features, teacher_features, affinity="dot", normalization="row_l2", loss="mse", where=where,
        axis_name=axis_name,
    )  # fmt: skip


def pkt(
    student_features: ArrayLike,
    teacher_features: ArrayLike,
    *,
    epsilon: float = 1e-7,
    where: ArrayLike | None = None,
    axis_name: str | None = None,
) -> Array:
    r"""Probabilistic knowledge transfer: pulls each example's distribution over its neighbours towards the teacher's.

    With $P(i, j) = (1 + \cos(f_i, f_j)) / \sum_k (1 + \cos(f_i, f_k))$,

    $$\ell_i = \frac{1}{B} \sum_j P_t(i, j) \log \frac{P_t(i, j) + \epsilon}{P_s(i, j) + \epsilon}$$

    Mind the factor 1/B beside the Kullback-Leibler divergence of the row; the published weight goes with it.

    Args:
      student_features: `[B, ...]`, flattened to a vector an example. The pooled embeddings, as released.
      teacher_features: `[B, ...]`, a constant. Only the first axis must be alike in both.
      epsilon: added under the logarithm, and to the norms in the cosine.
      where: `[B]`, bool or 0/1. A False row is as if it were not in the batch, whatever it holds, nan included: it is left out
        of the columns, the sums and the count, and its own value is 0.
      axis_name: the mapped axis under pmap or shard_map, over which the batch is spread; None where the arrays hold the
        whole batch, as under jit.

    Returns:
      `[B]` for the rows held here, with B in the formula the global count of rows that are kept. The published loss is
      their mean over the kept rows of all devices.

    Raises:
      TypeError: features are not floating point.
      ValueError: the numbers of examples differ.

    The diagonal is kept, as released. An example without any activation has cosine 0 to all, itself included, and sends back
    no gradient of its own, where released codes send back nan.

    Paper: Passalis, Tefas, "Learning Deep Representations with Probabilistic Knowledge Transfer", ECCV 2018, arXiv
    1803.10837.

    >>> student, teacher = jnp.array([[1.0, 0.0], [1.0, 0.0]]), jnp.array([[1.0, 0.0], [0.0, 1.0]])
    >>> print(f"{pkt(student, teacher).mean():.4f}")
    0.0283
    """
    return affinity_kd(
        student_features, teacher_features, affinity="cosine", normalization="row_sum", loss="kl", epsilon=epsilon,
        where=where, axis_name=axis_name,
    )  # fmt: skip


def cc(
    student_features: ArrayLike,
    teacher_features: ArrayLike,
    *,
    gamma: ArrayLike = 0.4,
    order: int = 2,
    normalize: bool = True,
    where: ArrayLike | None = None,
    axis_name: str | None = None,
) -> Array:
    r"""Correlation congruence with the Gaussian kernel's series: pulls the batch's kernel matrix towards the teacher's.

    $$\ell_i = \frac{1}{B} \sum_j \left( k(f^s_i, f^s_j) - k(f^t_i, f^t_j) \right)^2, \qquad
    k(x, y) = e^{-2 \gamma} \sum_{p=0}^{P} \frac{(2 \gamma)^p}{p!} (x \cdot y)^p$$

    Between features of length 1 the series tends to $\exp(-\gamma \lVert x - y \rVert^2)$ as P grows.

    Args:
      student_features: `[B, ...]`, flattened to a vector an example.
      teacher_features: `[B, ...]`, a constant. Only the first axis must be alike in both.
      gamma: width of the kernel, above 0; a number, a traced scalar, or one value for each row held here.
      order: P, the power at which the series ends.
      normalize: divide every feature by its norm first. One released port does not; its dot products may be anything.
      where: `[B]`, bool or 0/1. A False row is as if it were not in the batch, whatever it holds, nan included: it is left out
        of the columns and the count, and its own value is 0.
      axis_name: the mapped axis under pmap or shard_map, over which the batch is spread; None where the arrays hold the
        whole batch, as under jit.

    Returns:
      `[B]` for the rows held here, with B in the formula the global count of rows that are kept; their mean over the kept
      rows of all devices is `||K_s - K_t||_F^2 / B^2`. The same port takes the root of the norm, `||K_s - K_t||_F / B^2`,
      which is the square root of that mean over B.

    Raises:
      TypeError: features are not floating point or `order` is no integer.
      ValueError: the numbers of examples differ, `gamma` is not above 0, or `order` is below 0.

    Released benchmark codes call another loss by this name, see `cc_neighbours`. The bilinear kernel of the paper is
    `affinity_kd(affinity="dot", loss="mse")`.

    Paper: Peng et al., "Correlation Congruence for Knowledge Distillation", ICCV 2019, arXiv 1904.01802. The defaults are
    those of public reimplementations; that they are the paper's is not verified.

    >>> student, teacher = jnp.array([[1.0, 0.0], [1.0, 0.0]]), jnp.array([[1.0, 0.0], [0.0, 1.0]])
    >>> print(f"{cc(student, teacher).mean():.4f}")  # e^-0.8 (0.8 + 0.32) in two of the four entries
    0.1266
    """
    kernels = []
    given = student_features, teacher_features
    for features, said in zip(checks.features_pair(*given), given, strict=True):
        x = pairs.pair_up(features, where, axis_name, said)
        kernels.append(gaussian_series(pairs.scaled_to_unit(x) if normalize else x, gamma, order))
    return Entries(x.kept, axis_name, None).row_mean((kernels[0] - kernels[1]) ** 2)


def cc_neighbours(
    student_embeddings: ArrayLike,
    teacher_embeddings: ArrayLike,
    *,
    where: ArrayLike | None = None,
    axis_name: str | None = None,
) -> Array:
    r"""What released benchmark codes call correlation congruence: punishes gaps that neighbours in the batch have in common.

    With $\delta_b = |e^s_b - e^t_b|$, entry by entry,

    $$\frac{1}{B - 1} \sum_{b < B} \delta_b \cdot \delta_{b+1}$$

    It depends on the order of the batch, and is not the paper's loss, which is `cc`.

    Args:
      student_embeddings: `[B, D]`, of a learned linear layer on the student's features.
      teacher_embeddings: `[B, D]`, of another on the teacher's. Unlike elsewhere this is no constant, since that layer
        learns too; the teacher's features under it should be one.
      where: `[B]`, bool or 0/1. A False row is as if it were not in the batch, whatever it holds, nan included: its neighbours
        are then each other's, and its own value is 0.
      axis_name: the mapped axis under pmap or shard_map, over which the batch is spread in order; neighbours may then be on
        different devices. None where the arrays hold the whole batch, as under jit.

    Returns:
      `[B]` for the rows held here: the product with the next row, times B / (B - 1), and 0 for the last. The published loss
      is their mean over the kept rows of all devices. A single row gives 0.

    Raises:
      TypeError: embeddings are not floating point.
      ValueError: the two shapes differ, or are not `[B, D]`.

    Paper: Peng et al., "Correlation Congruence for Knowledge Distillation", ICCV 2019, arXiv 1904.01802, from which it
    departs as above. The absolute value has slope 0 at 0.

    >>> student, teacher = jnp.array([[1.0, 0.0], [3.0, 1.0], [0.0, 5.0]]), jnp.zeros((3, 2))
    >>> cc_neighbours(student, teacher)
    Array([4.5, 7.5, 0. ], dtype=float32)
    """
    student = checks.floating(student_embeddings, "student_embeddings")
    teacher = checks.floating(teacher_embeddings, "teacher_embeddings")
    if student.ndim != 2 or student.shape != teacher.shape:
        raise ValueError(
            f"student_embeddings is {student.shape}, teacher_embeddings {teacher.shape}: both must be [B, D], of layers of "
            "one width."
        )
    kept = checks.row_mask(where, student.shape[0])
    gaps = jnp.where(kept[:, None], student, 0) - jnp.where(kept[:, None], teacher, 0)
    x = pairs.pair_up(gaps * jnp.sign(gaps), kept, axis_name)
    everyone = pairs.gather(kept, axis_name)
    place = jnp.cumsum(everyone)[None, :]  # among the kept rows
    here = jnp.sum(jnp.where(x.itself, place, 0), axis=-1, keepdims=True)
    follows = (x.kept & (place == here + 1)).astype(gaps.dtype)
    after = jnp.einsum("ij,jd->id", follows, x.columns, precision=lax.Precision.HIGHEST)
    count = jnp.sum(everyone, dtype=gaps.dtype)
    return jnp.sum(x.rows * after, axis=-1) * count / jnp.maximum(count - 1, 1)


def ickd(student_features: ArrayLike, teacher_features: ArrayLike) -> Array:
    r"""Inter-channel correlation: pulls how alike the channels of one example's map are towards the teacher's.

    With $F$ an example's map as one row a channel, $\hat G = F F^\top$, and $G$ its rows divided by their L2 norm:

    $$\frac{1}{C} \sum_{cd} \left( G_t(c, d) - G_s(c, d) \right)^2$$

    Args:
      student_features: `[B, ..., C]`, channels last, of the teacher's number of channels (by a learned 1x1 convolution).
      teacher_features: `[B, ..., C]`, a constant. Its positions may be more or fewer than the student's.

    Returns:
      `[B]`, one value an example. The published loss is their mean over the batch. (A port divides it by the batch once
      more.)

    Raises:
      TypeError: features are not floating point.
      ValueError: the numbers of examples or channels differ.

    A norm below 1e-12 counts as 1e-12. A channel without any activation has a row of zeros, which stays zero and sends back
    no gradient; as a column of the other rows it has one, like any channel.

    Paper: Liu et al., "Exploring Inter-Channel Correlation for Diversity-preserved Knowledge Distillation", ICCV 2021, arXiv
    2202.03680; this is its image-level form. Equal to the released CIFAR-100 code, but for the gradient at a channel without
    activation.

    >>> student, teacher = jnp.array([[[1.0, 1.0], [0.0, 0.0]]]), jnp.array([[[1.0, 0.0], [0.0, 1.0]]])
    >>> print(f"{ickd(student, teacher)[0]:.4f}")
    0.5858
    """
    student, teacher = checks.features_pair(student_features, teacher_features)
    if min(student.ndim, teacher.ndim) < 2 or student.shape[-1] != teacher.shape[-1]:
        raise ValueError(
            f"student_features is {student.shape}, teacher_features {teacher.shape}: both must be [B, ..., C] with the same "
            "number of channels, last; project the student's."
        )
    gap = _channel_similarities(student) - _channel_similarities(teacher)
    return jnp.sum(gap**2, axis=(1, 2)) / gap.shape[1]


def _channel_similarities(features: Array) -> Array:
    """`[B, C, C]` normalised Gram rows of the channels."""
    rows = jnp.reshape(features, (features.shape[0], -1, features.shape[-1]))
    gram = jnp.einsum("bpc,bpd->bcd", rows, rows, precision=lax.Precision.HIGHEST)
    return over_root(gram, jnp.sum(gram**2, axis=-1, keepdims=True))

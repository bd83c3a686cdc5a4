"""Losses between how a network's features change from one stage to the next."""

import itertools
from collections.abc import Sequence
from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp
from jax import lax

from kdjax.losses import checks
from kdjax.losses.features import pooling

__all__ = ["fsp", "kdsvd"]

Array = jax.Array


def fsp(student_features: Sequence[Array], teacher_features: Sequence[Array]) -> Array:
    r"""Flow of the solution procedure: pulls the inner products of neighbouring stages' channels towards the teacher's.

    $$\sum_l \frac{1}{K_l K_{l+1}} \sum_{ij} \left( G^s_l - G^t_l \right)_{ij}^2, \qquad
      G_l(i, j) = \frac{1}{HW} \sum_{hw} f_l(i) \, f_{l+1}(j)$$

    Args:
      student_features: stages in order, `[B, H_l, W_l, K_l]` each; two at least. Of two neighbours the larger map is
        average-pooled to the smaller.
      teacher_features: as many stages of the same widths, constants. Their sizes may be others.

    Returns:
      `[B]`, the mean over each matrix, added up over the pairs of neighbours. The published loss is their mean over the
      batch.

    Raises:
      TypeError: features are not floating point.
      ValueError: the numbers of stages or their widths differ, or there are fewer than two.

    Paper: Yim, Joo, Bae, Kim, "A Gift from Knowledge Distillation: Fast Optimization, Network Minimization and Transfer
    Learning", CVPR 2017. Follows the released benchmark code; another one max-pools and takes norms of columns.

    >>> student = [jnp.array([[[[1.0]]]]), jnp.array([[[[2.0]]]])]
    >>> teacher = [jnp.array([[[[1.0]]]]), jnp.array([[[[5.0]]]])]
    >>> fsp(student, teacher)
    Array([9.], dtype=float32)
    """
    student, teacher = _stages(student_features, teacher_features)
    for ours, theirs in zip(student, teacher, strict=True):
        pooling.same_channels(ours, theirs)
    gaps = [ours - theirs for ours, theirs in zip(_flows(student), _flows(teacher), strict=True)]
    return sum(jnp.mean(gap**2, axis=(1, 2)) for gap in gaps)


def kdsvd(
    student_features: Sequence[Array],
    teacher_features: Sequence[Array],
    *,
    k: int = 1,
    columns: Literal["channels", "width"] = "channels",
) -> Array:
    r"""Distillation by singular vectors: pulls how the principal directions of neighbouring stages relate towards the
    teacher's.

    A stage of an example is a matrix, positions by channels; $v_l$ are its first `k` right singular vectors. Those of the
    teacher are each multiplied by its singular value (of the `k` as a vector of norm 1). Of the student's first `k + 3`,
    each teacher's vector takes the one with the largest absolute inner product, with the sign that makes it positive (zeros
    if it is orthogonal to all), and multiplies it by the teacher's value too. Then, with
    $r_l(i, j, n) = \exp\left( -(v_l(i, n) - v_{l-1}(j, n))^2 / 8 \right)$,

    $$\sum_l \sum_{ijn} \left( r_l^s - r_l^t \right)^2$$

    Args:
      student_features: stages in order, `[B, H_l, W_l, K_l]` each; two at least.
      teacher_features: as many stages, constants, of the same widths `K_l` (with `columns="width"`, of the same `W_l`).
        The other sizes may differ.
      k: how many vectors of each stage. Where a matrix has fewer, the missing ones are zeros.
      columns: "channels" as said, or "width": the columns of the matrix are those of the map, its rows all else. This is
        what one released code computes, in which the channels were meant.

    Returns:
      `[B]`. The published loss is their mean over the batch.

    Raises:
      TypeError: features are not floating point.
      ValueError: the numbers of stages or what must be alike differ, there are fewer than two stages, `k` is below 1, or
        `columns` is neither.

    The sign of a singular vector is arbitrary, and the value depends on those of the teacher. Here the entry of largest
    size is positive (the first of several); released codes take what the linear algebra library gives.

    The gradient of a singular vector divides by the gaps of squared singular values. Gaps below a few roundings of the
    largest are taken for equal values, whose vectors are arbitrary within their plane: the gradient within it is left out,
    and everything is finite. A matrix of zeros has no direction; its vectors count as zeros.

    Costs an eigendecomposition of `R` by `R` an example and stage, with R the smaller of the positions and the channels.

    Paper: Lee, Kim, Song, "Self-supervised Knowledge Distillation Using Singular Value Decomposition", ECCV 2018,
    arXiv 1807.06819.

    >>> student = [jnp.array([[[[1.0, 0.0]]]]), jnp.array([[[[0.0, 1.0]]]])]
    >>> teacher = [jnp.array([[[[3.0, 0.0]]]]), jnp.array([[[[2.0, 0.0]]]])]
    >>> print(f"{kdsvd(student, teacher)[0]:.4f} {kdsvd(student, student)[0]:.4f}")
    0.0276 0.0000
    """
    if columns not in ("channels", "width"):
        raise ValueError(f'columns is {columns!r}; use "channels" or "width".')
    if k < 1:
        raise ValueError(f"k is {k}; at least one vector of each stage is compared.")
    pairs = zip(*_stages(student_features, teacher_features), strict=True)
    stages = [(_matrix(ours, columns), _matrix(theirs, columns)) for ours, theirs in pairs]
    for ours, theirs in stages:
        if ours.shape[-1] != theirs.shape[-1]:
            raise ValueError(
                f"The student's vectors have {ours.shape[-1]} entries, the teacher's {theirs.shape[-1]}: both stages must "
                f"have the same {'number of channels' if columns == 'channels' else 'width'}; project the student's first."
            )
    teachers = [(_signed(vectors), values) for vectors, values in (_singular(theirs, k) for _, theirs in stages)]
    students = [_singular(ours, k + 3)[0] for ours, _ in stages]
    return _directions_apart(students, teachers)


def _stages(student_features, teacher_features) -> tuple[list[Array], list[Array]]:
    if len(student_features) != len(teacher_features) or len(student_features) < 2:
        raise ValueError(
            f"student_features has {len(student_features)} stages, teacher_features {len(teacher_features)}: give as many "
            "of both, two at least."
        )
    pairs = [checks.features_pair(*pair) for pair in zip(student_features, teacher_features, strict=True)]
    for maps in itertools.chain(*pairs):
        if maps.ndim != 4 or 0 in maps.shape[1:]:
            raise ValueError(f"A stage has shape {maps.shape}; each must be [B, H, W, K] with at least one position.")
    return [ours for ours, _ in pairs], [theirs for _, theirs in pairs]


def _flows(stages: list[Array]) -> list[Array]:
    """`[B, K_l, K_l+1]` of every two neighbours."""
    flows = []
    for before, after in itertools.pairwise(stages):
        size = tuple(min(sizes) for sizes in zip(before.shape[1:3], after.shape[1:3], strict=True))
        before, after = (pooling.adaptive_average_pool(maps, size) for maps in (before, after))
        product = jnp.einsum("bhwi,bhwj->bij", before, after, precision=lax.Precision.HIGHEST)
        flows.append(product / (size[0] * size[1]))
    return flows


def _matrix(maps: Array, columns: str) -> Array:
    """`[B, rows, columns]`."""
    return pooling.by_position(jnp.swapaxes(maps, 2, 3) if columns == "width" else maps)


def _directions_apart(students: list[Array], teachers: list[tuple[Array, Array]]) -> Array:
    """`[B]` from the vectors of every stage: `[B, N, up to k + 3]` and `([B, N, k], [B, k])`."""
    ours, theirs = [], []
    for vectors, (targets, values) in zip(students, teachers, strict=True):
        scale = _unit(values)[:, None, :]
        ours.append(_aligned(vectors, targets) * scale)
        theirs.append(targets * scale)
    total = 0.0
    for stage in range(1, len(ours)):
        gap = _closeness(ours[stage], ours[stage - 1]) - _closeness(theirs[stage], theirs[stage - 1])
        total = total + jnp.sum(gap**2, axis=(1, 2, 3))
    return total


def _aligned(vectors: Array, targets: Array) -> Array:
    """For every target the vector nearest to its direction, turned its way: `[B, N, M]` and `[B, N, k]` to `[B, N, k]`."""
    cosine = jnp.einsum("bnm,bnk->bmk", vectors, targets, precision=lax.Precision.HIGHEST)
    nearest = jnp.argmax(jnp.abs(cosine), axis=1)
    chosen = jax.nn.one_hot(nearest, cosine.shape[1], axis=1, dtype=vectors.dtype)
    turned = lax.stop_gradient(chosen * jnp.sign(cosine))
    return jnp.einsum("bnm,bmk->bnk", vectors, turned, precision=lax.Precision.HIGHEST)


def _closeness(vectors: Array, before: Array) -> Array:
    return jnp.exp(-((vectors[:, :, None] - before[:, None]) ** 2) / 8)


def _signed(vectors: Array) -> Array:
    """Every column with its entry of largest size positive."""
    first = jnp.argmax(jnp.abs(vectors), axis=1, keepdims=True)
    return vectors * jnp.where(jnp.take_along_axis(vectors, first, axis=1) < 0, -1, 1)


def _unit(values: Array) -> Array:
    """Divided by their norm; zeros stay zeros. Constants, so without a care for gradients."""
    norm = jnp.linalg.norm(values, axis=-1, keepdims=True)
    return jnp.where(norm > 0, values / jnp.where(norm > 0, norm, 1), 0)


def _singular(matrix: Array, count: int) -> tuple[Array, Array]:
    """The first right singular vectors and the values, `[B, M, N]` to `[B, N, count]` and `[B, count]`.

    Where there are fewer, the last are zeros; all are for a matrix of zeros. The values are constants.
    """
    size = jnp.max(jnp.abs(matrix), axis=(1, 2), keepdims=True)
    alive = size > 0
    # Of the matrix over its largest entry, whose vectors are the same: no square is lost below the smallest number.
    scaled = jnp.where(alive, matrix / lax.stop_gradient(jnp.where(alive, size, 1)), 0)
    found = min(count, *matrix.shape[1:])
    vectors, values = _right_vectors(scaled, found)
    vectors = jnp.pad(jnp.where(alive, vectors, 0), ((0, 0), (0, 0), (0, count - found)))
    return vectors, lax.stop_gradient(jnp.pad(values * size[:, 0], ((0, 0), (0, count - found))))


@partial(jax.custom_jvp, nondiff_argnums=(1,))
def _right_vectors(matrix: Array, count: int) -> tuple[Array, Array]:
    vectors, values = _decomposed(matrix)
    return vectors[:, :, :count], values[:, :count]


@_right_vectors.defjvp
def _right_vectors_jvp(count, primals, tangents):
    """First-order perturbation of the eigenvectors of `AᵀA`, without those between values that are equal to rounding.

    The values' own derivative is 0 here: the loss takes them from the teacher.
    """
    (matrix,), (tangent,) = primals, tangents
    every, values = _decomposed(matrix)
    vectors = every[:, :, :count]
    squares = values**2
    rounding = 8 * max(matrix.shape[1:]) * jnp.finfo(matrix.dtype).eps
    change = _multiply("bmn,bmk->bnk", tangent, _multiply("bmn,bnk->bmk", matrix, vectors))
    change += _multiply("bmn,bmk->bnk", matrix, _multiply("bmn,bnk->bmk", tangent, vectors))
    inside = _multiply("bnr,bnk->brk", every, change)
    outside = change - _multiply("bnr,brk->bnk", every, inside)
    gaps = squares[:, None, :count] - squares[:, :, None]
    turn = _multiply("bnr,brk->bnk", every, inside * _inverse(gaps, rounding * squares[:, :1, None]))
    leave = outside * _inverse(squares[:, None, :count], rounding * squares[:, :1, None])
    return (vectors, values[:, :count]), (turn + leave, jnp.zeros_like(values[:, :count]))


def _decomposed(matrix: Array) -> tuple[Array, Array]:
    """All right singular vectors and the values, largest first: `[B, M, N]` to `[B, N, R]` and `[B, R]`, R = min(M, N).

    By the eigenvectors of the smaller of `AᵀA` and `AAᵀ`, many times cheaper than a singular value decomposition of the
    matrix. The values are the lengths of the vectors' images, which keep more digits of the small ones than roots of the
    eigenvalues: those lose what is below the root of the rounding. Where `M < N`, vectors of values that are zero to rounding
    are zeros.
    """
    rows, columns = matrix.shape[1:]
    if columns <= rows:
        _, vectors = jnp.linalg.eigh(_multiply("bmn,bmk->bnk", matrix, matrix))
        vectors = vectors[:, :, ::-1]
        return vectors, jnp.linalg.norm(_multiply("bmn,bnr->bmr", matrix, vectors), axis=1)
    _, left = jnp.linalg.eigh(_multiply("bmn,bkn->bmk", matrix, matrix))
    images = _multiply("bmn,bmr->bnr", matrix, left[:, :, ::-1])
    values = jnp.linalg.norm(images, axis=1)
    alive = values > columns * jnp.finfo(matrix.dtype).eps * values[:, :1]
    return images * jnp.where(alive, 1 / jnp.where(alive, values, 1), 0)[:, None], values


_multiply = partial(jnp.einsum, precision=lax.Precision.HIGHEST)


def _inverse(gaps: Array, least: Array) -> Array:
    """`1 / gaps`, 0 where they are not larger than `least`."""
    apart = jnp.abs(gaps) > least
    return jnp.where(apart, 1 / jnp.where(apart, gaps, 1), 0)

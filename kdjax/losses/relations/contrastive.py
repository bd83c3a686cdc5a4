"""Noise-contrastive estimation against rows of a memory bank: contrastive representation distillation (CRD)."""

import math

import chex
import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from kdjax.losses import checks
from kdjax.losses.logspace import log_sum_exp

__all__ = ["candidate_scores", "nce", "nce_normalizer"]

Array = jax.Array


def nce(
    positive: ArrayLike,
    negatives: ArrayLike,
    *,
    num_examples: int,
    log_normalizer: ArrayLike = 0.0,
    where: ArrayLike | None = None,
    epsilon: float = 1e-7,
) -> Array:
    r"""Noise-contrastive loss: pulls a positive's score up, and the negatives' down, until each can be told from noise.

    With $P(a) = e^a / Z$ and $K$ negatives drawn from $N$ examples of even chance,

    $$\ell = -\log \frac{P(a_+)}{P(a_+) + K/N + \epsilon} - \sum_{k=1}^{K} \log \frac{K/N}{P(a_k) + K/N + \epsilon}$$

    Args:
      positive: `[...]` score of the matching row: inner product of unit vectors, divided by the temperature.
      negatives: `[..., K]` scores of rows that do not match.
      num_examples: N, from which negatives are drawn.
      log_normalizer: $\log Z$, a number or an array that broadcasts to the leading axes; see `nce_normalizer`.
      where: `[..., K]`, bool or 0/1. A False negative is as if it were not there, whatever it holds, nan included: $K$ is the
        number that is kept. Without any, the second sum is empty.
      epsilon: $\epsilon$, by which the released code keeps its quotients finite.

    Returns:
      `[...]` losses in nats, at least 0. The published loss of one side is their mean over the batch; CRD adds two sides.

    Raises:
      TypeError: scores are not floating point.
      ValueError: shapes that do not fit, or a number out of range.

    Paper: Tian, Krishnan, Isola, "Contrastive Representation Distillation", ICLR 2020, arXiv 1910.10699. As the released
    code, which adds the epsilon and takes the noise to be even over all examples; by logarithms, so that a score of any
    size has its value and slope.

    >>> print(f"{nce(jnp.array([2.0]), jnp.array([[0.0, -1.0]]), num_examples=2)[0]:.4f}")
    1.1333
    """
    positive, negatives, kept = _scores(positive, negatives, where)
    _at_least_one(num_examples)
    if not 0 <= epsilon < math.inf:
        raise ValueError(f"epsilon is {epsilon}; it must be at least 0 and finite.")
    log_z = checks.per_example(log_normalizer, negatives, "log_normalizer")
    noise = jnp.sum(kept, axis=-1, dtype=positive.dtype) / num_examples
    # Without a negative and with epsilon 0 nothing is left to tell a positive from, and its part is 0.
    bottom = noise + epsilon
    empty = bottom == 0
    log_bottom = jnp.log(jnp.where(empty, 1, bottom))
    matching = jnp.where(empty, 0, jax.nn.softplus(log_bottom + log_z - positive))
    others = jax.nn.softplus(negatives - (log_z + log_bottom)[..., None])
    # log((K/N + epsilon) / (K/N)), once for each negative.
    excess = jnp.log1p(epsilon / jnp.where(noise == 0, 1, noise))[..., None]
    return matching + jnp.sum(jnp.where(kept, others + excess, 0), axis=-1)


def nce_normalizer(
    positive: ArrayLike,
    negatives: ArrayLike,
    *,
    num_examples: int,
    where: ArrayLike | None = None,
    rows: ArrayLike | None = None,
    axis_name: str | None = None,
) -> Array:
    r"""The constant of `nce`: $\log Z$ with $Z = N \cdot \mathrm{mean}(e^a)$ over all scores of a batch.

    CRD takes it from the first batch, one for each side, and keeps it.

    Args:
      positive: `[B]` scores of the matching rows, as for `nce`.
      negatives: `[B, K]`.
      num_examples: N.
      where: `[B, K]`, bool or 0/1; a False negative does not count.
      rows: boolean `[B]`; of a False row nothing counts, whatever it holds, nan included.
      axis_name: the mapped axis under pmap or shard_map, over which the batch is spread; the mean is then over the scores
        of all devices. None where the arrays hold the whole batch, as under jit.

    Returns:
      A scalar, a constant to the gradient, bit for bit the same on every device; 0 if no row counts.

    Raises:
      TypeError: scores are not floating point.
      ValueError: shapes that do not fit, or `num_examples` below 1.

    Paper: as `nce`; the constant is that of the released code.

    >>> print(f"{nce_normalizer(jnp.array([0.0]), jnp.array([[0.0, 0.0]]), num_examples=5):.4f}")
    1.6094
    """
    positive, negatives, kept = _scores(positive, negatives, where)
    if positive.ndim != 1:
        raise ValueError(f"positive has shape {positive.shape}; give one score for each example of a batch.")
    _at_least_one(num_examples)
    rows = checks.row_mask(rows, positive.shape[0])
    scores = jnp.concatenate([positive[:, None], negatives], axis=-1)
    kept = jnp.concatenate([jnp.ones_like(kept, shape=(len(positive), 1)), kept], axis=-1) & rows[:, None]
    totals = lax.stop_gradient(log_sum_exp(scores, where=kept))
    counts = jnp.sum(kept, axis=-1, dtype=scores.dtype)
    if axis_name is not None:
        totals, counts = (lax.all_gather(x, axis_name, axis=0, tiled=True) for x in (totals, counts))
    total, count = log_sum_exp(totals, where=counts > 0), jnp.sum(counts)
    return jnp.where(count == 0, 0, total - jnp.log(jnp.maximum(count, 1)) + math.log(num_examples))


def candidate_scores(embeddings: ArrayLike, bank: ArrayLike, candidates: ArrayLike) -> Array:
    r"""Inner products of embeddings with chosen rows of a memory bank.

    Args:
      embeddings: `[B, D]`.
      bank: `[N, D]`, a constant.
      candidates: which rows: integers `[B, K]`, or `[K]` for the same ones for every example, which is one small matrix
        product. From 0 to N - 1; -1 is not the last row.

    Returns:
      `[B, K]`, computed at the highest matmul precision; nan where a candidate is out of range.

    Raises:
      TypeError: arrays that are not floating point, or candidates that are not integers.
      ValueError: shapes that do not fit.

    Where choosing K rows would move more numbers than there are scores of all rows, all are computed, by one matrix
    product, and K of them chosen: `[B, N]` numbers are held instead of `[B, K, D]`.

    Paper: as `nce`.

    >>> print(candidate_scores(jnp.array([[1.0, 2.0]]), jnp.eye(2), jnp.array([[1, 0, 1]])))
    [[2. 1. 2.]]
    """
    embeddings, bank = checks.floating(embeddings, "embeddings"), lax.stop_gradient(checks.floating(bank, "bank"))
    candidates = jnp.asarray(candidates)
    chex.assert_type(
        candidates, int, custom_message="candidates must be integers, rows of the bank", exception_type=TypeError
    )
    if embeddings.ndim != 2 or bank.ndim != 2 or embeddings.shape[1] != bank.shape[1]:
        raise ValueError(f"embeddings has shape {embeddings.shape}, bank {bank.shape}: give [B, D] and [N, D].")
    if candidates.ndim not in (1, 2) or candidates.shape[:-1] not in ((), embeddings.shape[:1]):
        raise ValueError(
            f"candidates has shape {candidates.shape} for {len(embeddings)} embeddings: give [B, K], or [K] for all."
        )
    rows, width = bank.shape
    there = (candidates >= 0) & (candidates < rows)
    inside = jnp.clip(candidates, 0, max(rows - 1, 0))
    if candidates.ndim == 1:
        scores = jnp.einsum("bd,kd->bk", embeddings, bank[inside], precision=lax.Precision.HIGHEST)
        return jnp.where(there[None], scores, jnp.nan)
    if rows <= candidates.shape[1] * width:
        every = jnp.einsum("bd,nd->bn", embeddings, bank, precision=lax.Precision.HIGHEST)
        return jnp.where(there, jnp.take_along_axis(every, inside, axis=1), jnp.nan)
    scores = jnp.einsum("bd,bkd->bk", embeddings, bank[inside], precision=lax.Precision.HIGHEST)
    return jnp.where(there, scores, jnp.nan)


def unit_rows(x: Array) -> Array:
    """`[..., D]` divided by its L2 norm; zero, with a zero gradient, where it is zero. No square under- or overflows."""
    top = lax.stop_gradient(jnp.max(jnp.abs(x), axis=-1, keepdims=True))
    alive = top > 0
    scaled = jnp.where(alive, x / jnp.where(alive, top, 1), 0)
    squared = jnp.sum(jnp.where(alive, scaled**2, 1), axis=-1, keepdims=True)
    return scaled / jnp.sqrt(squared)


def _scores(positive, negatives, where) -> tuple[Array, Array, Array]:
    """Both kinds of scores in the same precision, and which negatives are kept; what is not is zeroed."""
    positive, negatives = checks.floating(positive, "positive"), checks.floating(negatives, "negatives")
    if negatives.shape[:-1] != positive.shape or negatives.ndim == 0:
        raise ValueError(
            f"negatives has shape {negatives.shape}, positive {positive.shape}: give [..., K] and [...], of the same "
            "examples."
        )
    dtype = jnp.promote_types(positive.dtype, negatives.dtype)
    positive, negatives = positive.astype(dtype), negatives.astype(dtype)
    if where is None:
        return positive, negatives, jnp.ones(negatives.shape, bool)
    where = jnp.asarray(where) != 0
    if where.shape != negatives.shape:
        raise ValueError(f"where has shape {where.shape}, negatives {negatives.shape}: give one bool a negative.")
    return positive, jnp.where(where, negatives, 0), where


def _at_least_one(num_examples: int) -> None:
    if num_examples < 1:
        raise ValueError(f"num_examples is {num_examples}; it must be at least 1.")

"""How far a network's probabilities are to be believed. Logits are `[N, C]`, labels `[N]` classes; values are means over N.

A label that is no class, such as -1, or a row of logits with a nan makes the value nan: leave such rows out first.
"""

from typing import Literal

import jax
import jax.numpy as jnp

from kdjax.losses import checks, cross_entropy, predictive_entropy
from kdjax.types import Array


def nll(logits: Array, labels: Array) -> Array:
    """Negative log-likelihood in nats."""
    return jnp.mean(cross_entropy(logits, labels=labels))


def brier(logits: Array, labels: Array, *, over_classes: Literal["sum", "mean"] = "sum") -> Array:
    """Squared distance of the probabilities from the label: summed over classes (Brier, 1950), or their mean, as the released
    code of Stanton et al. (2021) has it.

    Raises:
      TypeError: labels are not integers.
      ValueError: there is not a label for each row of logits.
    """
    p, labels, usable = _scored(logits, labels)
    squares = jnp.square(p - jax.nn.one_hot(labels, p.shape[-1], dtype=p.dtype))
    each = jnp.sum(squares, axis=-1) if over_classes == "sum" else jnp.mean(squares, axis=-1)
    return jnp.mean(jnp.where(usable, each, jnp.nan))


def ece(logits: Array, labels: Array, *, bins: int = 15, adaptive: bool = False) -> Array:
    """Expected calibration error: the distance of accuracy from confidence, weighted over bins of confidence.

    Args:
      logits: `[N, C]`.
      labels: `[N]`.
      bins: of equal width, closed on the right (Guo et al., 2017: 15; Stanton et al., 2021: 10).
      adaptive: bins of equal numbers of examples instead, as far as they divide. Equal confidences are in one bin, that of the
        middle of them, so that the order of examples is nothing.

    Raises:
      TypeError: labels are not integers.
      ValueError: no bins, or there is not a label for each row of logits.
    """
    if bins < 1:
        raise ValueError(f"bins={bins}; use 1 or more.")
    p, labels, usable = _scored(logits, labels)
    confidence, correct = jnp.max(p, axis=-1), (jnp.argmax(p, axis=-1) == labels).astype(p.dtype)
    if adaptive:
        ordered = jnp.sort(confidence)
        first, last = (jnp.searchsorted(ordered, confidence, side=side) for side in ("left", "right"))
        place = (first + last - 1) * bins // (2 * confidence.shape[0])  # `first` is the rank of one that ties with none
    else:
        place = jnp.clip(jnp.ceil(confidence * bins).astype(jnp.int32) - 1, 0, bins - 1)
    gaps = jax.ops.segment_sum(correct - confidence, place, bins)
    return jnp.where(jnp.all(usable), jnp.sum(jnp.abs(gaps)) / confidence.shape[0], jnp.nan)


def entropy(logits: Array) -> Array:
    """Mean entropy of the probabilities in nats."""
    return jnp.mean(predictive_entropy(logits))


def confidence(logits: Array) -> Array:
    """Mean probability of the most likely class."""
    return jnp.mean(jnp.max(jax.nn.softmax(checks.floating(logits, "logits")), axis=-1))


def _scored(logits: Array, labels: Array) -> tuple[Array, Array, Array]:
    """Probabilities, the labels, and which rows say anything: their label is a class, and no logit is nan."""
    scores = checks.class_scores(logits, "logits")
    labels = checks.class_indices(labels, scores, "logits")
    usable = (labels >= 0) & (labels < scores.shape[-1]) & ~jnp.any(jnp.isnan(scores), axis=-1)
    return jax.nn.softmax(scores), labels, usable

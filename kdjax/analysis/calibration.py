"""How far a network's probabilities are to be believed. Logits are `[N, C]`, labels `[N]` classes; values are means over N."""

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
    code of Stanton et al. (2021) has it."""
    p = jax.nn.softmax(checks.floating(logits, "logits"))
    squares = jnp.square(p - jax.nn.one_hot(labels, logits.shape[-1], dtype=p.dtype))
    return jnp.mean(jnp.sum(squares, axis=-1) if over_classes == "sum" else jnp.mean(squares, axis=-1))


def ece(logits: Array, labels: Array, *, bins: int = 15, adaptive: bool = False) -> Array:
    """Expected calibration error: the distance of accuracy from confidence, weighted over bins of confidence.

    Args:
      logits: `[N, C]`.
      labels: `[N]`.
      bins: of equal width, closed on the right (Guo et al., 2017: 15; Stanton et al., 2021: 10).
      adaptive: bins of equal numbers of examples instead, as far as they divide.

    Raises:
      ValueError: no bins.
    """
    if bins < 1:
        raise ValueError(f"bins={bins}; use 1 or more.")
    p = jax.nn.softmax(checks.floating(logits, "logits"))
    confidence, correct = jnp.max(p, axis=-1), (jnp.argmax(p, axis=-1) == labels).astype(p.dtype)
    if adaptive:
        rank = jnp.argsort(jnp.argsort(confidence, stable=True))
        place = rank * bins // confidence.shape[0]
    else:
        place = jnp.clip(jnp.ceil(confidence * bins).astype(jnp.int32) - 1, 0, bins - 1)
    gaps = jax.ops.segment_sum(correct - confidence, place, bins)
    return jnp.sum(jnp.abs(gaps)) / confidence.shape[0]


def entropy(logits: Array) -> Array:
    """Mean entropy of the probabilities in nats."""
    return jnp.mean(predictive_entropy(logits))


def confidence(logits: Array) -> Array:
    """Mean probability of the most likely class."""
    return jnp.mean(jnp.max(jax.nn.softmax(checks.floating(logits, "logits")), axis=-1))

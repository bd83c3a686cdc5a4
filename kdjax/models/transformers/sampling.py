"""Texts that a decoder writes: one loop of fixed length over kept keys and values."""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from kdjax.types import Array, Network, Tree

Draw = Callable[[Array, Array], Array]  # (log-probabilities [B, V], number of the token) -> tokens [B]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sampling:
    """From which distribution tokens are drawn: the logits are divided, then what is unlikely is left out, in this order."""

    temperature: float = 1.0
    """what logits are divided by; 0 always takes the most likely token"""
    top_k: int = 0
    """only the k most likely tokens, with all that are as likely as the last of them; 0 for all"""
    top_p: float = 1.0
    """only the fewest tokens that have this probability together, one at least"""
    min_p: float = 0.0
    """only tokens that have this share of the most likely one's probability"""

    def __post_init__(self):
        for name, low, high in (("temperature", 0, None), ("top_k", 0, None), ("top_p", 0, 1), ("min_p", 0, 1)):
            value = getattr(self, name)
            if not low <= value or (high is not None and value > high):
                raise ValueError(f"sampling.{name}={value}; use {low} {'or more' if high is None else f'to {high}'}.")

    def scores(self, logits: Array) -> Array:
        """Logits `[..., V]` of that distribution, -inf for what is left out, in float32 or wider."""
        scores = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
        places = lax.broadcasted_iota(jnp.int32, scores.shape, scores.ndim - 1)
        if self.temperature == 0:
            return jnp.where(places == jnp.argmax(scores, axis=-1, keepdims=True), 0.0, -jnp.inf)
        scores = scores / self.temperature
        if 0 < self.top_k < scores.shape[-1]:
            least = jnp.sort(scores, axis=-1)[..., -self.top_k, None]
            scores = jnp.where(scores < least, -jnp.inf, scores)
        if self.top_p < 1:
            falling, order = lax.sort(
                (-scores, places), num_keys=1, is_stable=True
            )  # of those that tie the first comes first
            shares = jax.nn.softmax(-falling, axis=-1)
            below = (lax.cumsum(shares, axis=scores.ndim - 1, reverse=True) <= 1 - self.top_p) & (places > 0)
            out = jnp.put_along_axis(jnp.zeros_like(below), order, below, axis=-1, inplace=False)
            scores = jnp.where(out, -jnp.inf, scores)
        if self.min_p > 0:
            shares = jax.nn.softmax(scores, axis=-1)
            scores = jnp.where(shares < self.min_p * jnp.max(shares, axis=-1, keepdims=True), -jnp.inf, scores)
        return scores


GREEDY = Sampling(temperature=0.0)


class Written(NamedTuple):
    """What a decoder wrote behind `B` prompts.

    Attributes:
      tokens: `[B, T]` int32; behind an end, padding.
      there: `[B, T]` bool, which of them it wrote; the end itself is one of them.
      log_probs: `[B, T]` of each by the network itself, at temperature 1 and with nothing left out; 0 where there is none.
      drawn_log_probs: the same by the distribution that it was drawn from.
    """

    tokens: Array
    there: Array
    log_probs: Array
    drawn_log_probs: Array


def write(
    network: Network, params: Tree, state: Tree, ids: Array, mask: Array, *, count: int, sampling: Sampling = Sampling(),
    key: Array | None = None, numbers: Array | None = None, draw: Draw | None = None, ends: tuple[int, ...] = (),
    padding: int = 0,
) -> Written:  # fmt: skip
    """What a decoder goes on with behind prompts. Pure: jit it; other prompts of the same shape take the same program.

    Args:
      network: with the parts "begin" and "advance", as those of `kdjax.models.transformers.transformer` that score tokens.
      params, state: its variables.
      ids: `[B, P]` prompts, filled up on the left.
      mask: `[B, P]`, 0 at the padding.
      count: `T`, how many tokens.
      sampling: from which distribution.
      key: of the draws; not needed where there is no chance, or with `draw`.
      numbers: `[B]` int32 that tell the rows apart, such as positions in a data set: what is drawn for a row depends on the key
        and its number, and not on the rows beside it. By default the row of the batch.
      draw: `(log-probabilities [B, V], number of the token) -> tokens [B]`, in place of a keyed draw.
      ends: tokens that end a text.
      padding: what stands behind an end.

    Raises:
      ValueError: the network does not write, or has no positions for so many tokens; or there is no key.
    """
    if not {"begin", "advance"} <= set(network.parts):
        raise ValueError(
            f"{network.name} does not write texts; use a decoder of kdjax.models.transformers that scores tokens."
        )
    if draw is None and key is None and sampling.temperature > 0:
        raise ValueError("Tokens are drawn by chance, and no key says which; pass key=, or sampling=GREEDY.")
    rows = jnp.arange(len(ids), dtype=jnp.int32) if numbers is None else numbers
    key = jax.random.key(0) if key is None else key
    begin, advance = (
        lambda *given, part=part: network.parts[part](params, state, *given) for part in ("begin", "advance")
    )

    def keyed(log_probs: Array, step: Array) -> Array:
        noise = jax.vmap(lambda row: jax.random.gumbel(
            jax.random.fold_in(jax.random.fold_in(key, row), step), log_probs.shape[1:], log_probs.dtype
        ))(rows)  # fmt: skip
        return jnp.argmax(log_probs + noise, axis=-1)

    chosen = keyed if draw is None else draw

    def one(carried, step):
        logits, cache, done = carried
        logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
        own, drawn = jax.nn.log_softmax(logits), jax.nn.log_softmax(sampling.scores(logits))
        token = chosen(drawn, step).astype(jnp.int32)
        said = [jnp.where(done, 0, jnp.take_along_axis(x, token[:, None], axis=1)[:, 0]) for x in (own, drawn)]
        token = jnp.where(done, padding, token)
        following, cache = advance(token[:, None], ~done[:, None], cache)
        ended = done
        for end in ends:
            ended = ended | (token == end)
        return (following, cache, ended), Written(token, ~done, *said)

    room = jnp.concatenate([mask != 0, jnp.zeros((len(ids), count), bool)], axis=1)
    begun = (*begin(ids, room), jnp.zeros(len(ids), bool))
    _, written = lax.scan(one, begun, jnp.arange(count, dtype=jnp.int32))
    return jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1), written)

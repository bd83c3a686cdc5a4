"""Texts that a decoder writes: one loop of fixed length over kept keys and values."""

import dataclasses
import math
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


class Beside(NamedTuple):
    """A second decoder of the same tokens, usually the teacher, that has a share in what is drawn.

    Attributes:
      network, params, state: which, and its variables.
      share: of its probabilities in the mixture of both, 0 to 1.
    """

    network: Network
    params: Tree
    state: Tree
    share: float


def write(
    network: Network, params: Tree, state: Tree, ids: Array, mask: Array, *, count: int, sampling: Sampling = Sampling(),
    key: Array | None = None, numbers: Array | None = None, draw: Draw | None = None, ends: tuple[int, ...] = (),
    padding: int = 0, beside: Beside | None = None,
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
      beside: a second network; tokens are drawn from the mixture of both, `(1 - share) p + share q`, which `sampling` then
        changes (Gu et al., MiniLLM, ICLR 2024, arXiv 2306.08543).

    Raises:
      ValueError: a network does not write, or has no positions for so many tokens; or there is no key.
    """
    writers = [(network, params, state), *([] if beside is None else [beside[:3]])]
    for writer, *_ in writers:
        if not {"begin", "advance"} <= set(writer.parts):
            raise ValueError(
                f"{writer.name} does not write texts; use a decoder of kdjax.models.transformers that scores tokens."
            )
    if draw is None and key is None and sampling.temperature > 0:
        raise ValueError("Tokens are drawn by chance, and no key says which; pass key=, or sampling=GREEDY.")
    rows = jnp.arange(len(ids), dtype=jnp.int32) if numbers is None else numbers
    key = jax.random.key(0) if key is None else key
    begins, advances = (
        [
            lambda *given, part=writer.parts[part], variables=variables: part(*variables, *given)
            for writer, *variables in writers
        ]
        for part in ("begin", "advance")
    )

    def keyed(log_probs: Array, step: Array) -> Array:
        noise = jax.vmap(lambda row: jax.random.gumbel(
            jax.random.fold_in(jax.random.fold_in(key, row), step), log_probs.shape[1:], log_probs.dtype
        ))(rows)  # fmt: skip
        return jnp.argmax(log_probs + noise, axis=-1)

    chosen = keyed if draw is None else draw

    def one(carried, step):
        said, caches, done = carried
        scores = [x.astype(jnp.promote_types(x.dtype, jnp.float32)) for x in said]
        own = jax.nn.log_softmax(scores[0])
        mixed = scores[0] if beside is None else mixture(own, jax.nn.log_softmax(scores[1]), beside.share)
        drawn = jax.nn.log_softmax(sampling.scores(mixed))
        token = chosen(drawn, step).astype(jnp.int32)
        likely = [jnp.where(done, 0, jnp.take_along_axis(x, token[:, None], axis=1)[:, 0]) for x in (own, drawn)]
        token = jnp.where(done, padding, token)
        following = [
            advance(token[:, None], ~done[:, None], cache) for advance, cache in zip(advances, caches, strict=True)
        ]
        ended = done
        for end in ends:
            ended = ended | (token == end)
        said, caches = zip(*following, strict=True)
        return (said, caches, ended), Written(token, ~done, *likely)

    room = jnp.concatenate([mask != 0, jnp.zeros((len(ids), count), bool)], axis=1)
    said, caches = zip(*(begin(ids, room) for begin in begins), strict=True)
    begun = said, caches, jnp.zeros(len(ids), bool)
    _, written = lax.scan(one, begun, jnp.arange(count, dtype=jnp.int32))
    return jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1), written)


def mixture(own: Array, other: Array, share: float) -> Array:
    """Logarithm of `(1 - share) p + share q`, of two logarithms."""
    if share in (0, 1):
        return other if share else own
    return jnp.logaddexp(own + math.log1p(-share), other + math.log(share))

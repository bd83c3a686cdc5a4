"""A transformer for text: embeddings, blocks in one loop, and a head."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

from kdjax.models.transformers.architecture import Architecture, Head
from kdjax.models.transformers.block import ACTIVATIONS, KEPT, Block, Seen, norm
from kdjax.models.transformers.cache import Cache, empty, extended
from kdjax.models.zoo.attention import layer_norm, normal
from kdjax.models.zoo.layers import dense, draw
from kdjax.types import Array, ModelOutput

Inputs = Mapping[str, Array]


class Embeddings(nnx.Module):
    """Tokens, and as far as the architecture has them their positions and types, added up; encoders normalise the sum."""

    def __init__(self, a: Architecture, *, rngs: nnx.Rngs):
        table = lambda rows: normal((rows, a.width), a.deviation, rngs=rngs)
        self.fixed = -1 if a.family == "gpt2" else a.padding  # a token whose embedding gets no gradient, as in PyTorch
        self.tokens = table(a.vocabulary)
        self.positions = None if a.rope is not None else table(a.length)
        self.types = table(a.token_types) if a.token_types else None
        self.norm = None if a.norm_first else layer_norm(a.width, epsilon=a.epsilon, rngs=rngs)
        self.dropout = nnx.Dropout(a.dropout)

    def __call__(self, tokens: Array, positions: Array, types: Array | None, rngs: Array | None) -> Array:
        """`[B, L, D]` of tokens, positions and types `[B, L]`; no types are type 0."""
        x = _rows(self.tokens[...], tokens)
        x = jnp.where((tokens == self.fixed)[:, :, None], lax.stop_gradient(x), x) if self.fixed >= 0 else x
        if self.types is not None:
            x = x + _rows(self.types[...], jnp.zeros_like(tokens) if types is None else types)
        if self.positions is not None:
            x = x + _rows(self.positions[...], positions)
        return self.dropout(x if self.norm is None else self.norm(x), rngs=rngs)


class Transformer(nnx.Module):
    """An encoder or a decoder with one head.

    The blocks are one module whose parameters have a first axis of blocks, `blocks/attention/query/kernel` `[depth, D, H * w]`,
    and run in one loop: a program of the same size for any depth.

    Attributes:
      architecture, head: what it was made from.
      recompute: whether each block's activations are computed again for the gradient instead of being kept.
      keep: which of `KEPT` are handed out as taps; the scores `[B, depth, H, L, L]`, the others `[B, depth, L, heads, w]`.
    """

    recompute = False

    def __init__(self, architecture: Architecture, head: Head = Head(), *, keep: tuple[str, ...] = (), rngs: nnx.Rngs):
        """Makes the network; `rngs`' "params" stream draws the weights, normal of the architecture's deviation.

        Raises:
          ValueError: `keep` names something else.
        """
        a = self.architecture = architecture
        self.head, self.keep = head, tuple(keep)
        if unknown := set(keep) - set(KEPT):
            raise ValueError(f"A transformer does not keep {sorted(unknown)[0]!r}; it may keep {', '.join(KEPT)}.")
        self.embeddings = Embeddings(a, rngs=rngs)
        self.blocks = _stacked(Block(a, rngs=rngs), a.depth)
        self.norm = norm(a, rngs=rngs) if a.norm_first else None
        tokens, classes = head.kind == "tokens", head.kind == "classes"
        # What an encoder makes of a row's first token, before it is classified; and of each before its word is guessed.
        pooled = not a.causal and (classes or (head.kind == "none" and a.family == "bert"))
        self.pooler = dense(a.width, a.width, rngs=rngs) if pooled else None
        self.transform = dense(a.width, a.width, rngs=rngs) if tokens and not a.causal else None
        self.transform_norm = layer_norm(a.width, epsilon=a.epsilon, rngs=rngs) if tokens and not a.causal else None
        self.token_bias = nnx.Param(jnp.zeros(a.vocabulary, jnp.float32)) if tokens and not a.causal else None
        self.unembedding = normal((a.vocabulary, a.width), a.deviation, rngs=rngs) if tokens and not a.tied else None
        self.classifier = dense(a.width, head.classes, bias=not a.causal, rngs=rngs) if classes else None
        self.dropout = nnx.Dropout(a.classifier_dropout)
        draw(self, lambda part: a.deviation if isinstance(part, nnx.Linear) else None, rngs=rngs)

    def __call__(self, inputs: Inputs, rngs: nnx.Rngs | None = None) -> ModelOutput:
        """What the network says of a batch.

        Features are the tokens `[B, L, 1, D]`, text being a map one wide: embedded, then behind every block, the last behind the
        last normalisation; 0 at padding. `classes` gives logits `[B, C]` and the vector that they are of as embedding; `tokens`
        logits `[B, L, V]`; `sentence` an embedding of length 1, and `none` BERT's pooled first token, tanh of a linear layer.

        Args:
          inputs: `input_ids` `[B, L]`, and where they are given `attention_mask` `[B, L]`, 0 at padding; `token_type_ids`;
            `position_ids`; and `segment_ids`, of which a token sees its own alone, 0 being padding.
          rngs: whose "dropout" stream drops; None drops nothing.

        Raises:
          ValueError: more tokens than there are positions for.
        """
        embed, run, classify = (None,) * 3 if rngs is None else jax.random.split(rngs.dropout(), 3)
        tokens, kept = self.states(inputs, embed, run)
        mask, last = _mask(inputs), tokens[-1]
        features = tuple(jnp.where(mask[:, :, None, None], x[:, :, None], 0) for x in tokens)
        taps = {name: jnp.moveaxis(kept[name], 0, 1) for name in self.keep}
        made: dict[str, Any] = {"features": features, "taps": taps}
        match self.head.kind:
            case "classes":
                embedding = self._pooled(last, mask, classify)
                made |= {"embedding": embedding, "logits": self._scored(embedding, classify)}
            case "tokens":
                made |= {"logits": self.token_logits(last)}
            case "sentence":
                made |= {"embedding": mean_of(last, mask)}
            case _:
                made |= {} if self.pooler is None else {"embedding": jnp.tanh(self.pooler(last[:, 0]))}
        return ModelOutput(**made)

    def states(
        self, inputs: Inputs, embed: Array | None = None, run: Array | None = None
    ) -> tuple[tuple[Array, ...], dict]:
        """The tokens `[B, L, D]`, embedded and behind every block, the last behind the last normalisation; and what `Block` hands
        out of each block, `[depth, B, ...]`.

        Args:
          inputs: as for a call.
          embed, run: keys of the dropouts of embeddings and blocks.
        """
        a, ids, mask = self.architecture, inputs["input_ids"], _mask(inputs)
        positions = inputs.get("position_ids")
        positions = self._positions(mask) if positions is None else positions
        if a.rope is None and ids.shape[1] + a.first_position > a.length:
            raise ValueError(
                f"The rows have {ids.shape[1]} tokens, and the network has positions for {a.length - a.first_position}; cut "
                "them to that."
            )
        x = self.embeddings(ids, positions, inputs.get("token_type_ids"), embed)
        wide = jnp.promote_types(x.dtype, jnp.float32)
        seen = Seen(
            visible(mask, inputs.get("segment_ids"), causal=a.causal),
            None if a.rope is None else a.rope.rotation(positions, a.head_width, wide),
        )
        graph, weights = nnx.split(self.blocks)
        keys = None if run is None else jnp.reshape(jax.random.split(run, 3 * a.depth), (a.depth, 3))

        def layer(x, given):
            weights, keys = given
            x, kept = nnx.merge(graph, weights)(x, seen, keys)
            return x, (x, {name: kept[name] for name in self.keep})

        step = jax.checkpoint(layer, prevent_cse=False) if self.recompute else layer
        last, (behind, kept) = lax.scan(step, x, (weights, keys))
        last = last if self.norm is None else self.norm(last)
        return (x, *(behind[i] for i in range(a.depth - 1)), last), kept

    def begin(self, ids: Array, room: Array) -> tuple[Array, Cache]:
        """Scores `[B, V]` of what follows prompts `[B, P]`, and what is kept of them.

        Args:
          ids: the prompts, filled up on the left.
          room: `[B, C]` bool, True for the tokens of the prompts, in the first `P` columns; the others are room for what follows.
        """
        return self.advance(ids, room[:, : ids.shape[1]], empty(self, *room.shape))

    def advance(self, ids: Array, mask: Array, cache: Cache) -> tuple[Array, Cache]:
        """The same behind further tokens `[B, L]`, of which those that nobody shall see are False in `mask`."""
        last, cache = extended(self, ids, mask, cache)
        return self.token_logits(last), cache

    def token_logits(self, tokens: Array) -> Array:
        """Scores of the vocabulary `[..., V]` for tokens `[..., D]` behind the last block."""
        if self.transform is not None:
            active = ACTIVATIONS[self.architecture.activation]
            tokens = self.transform_norm(active(self.transform(tokens)))
        scores = tokens @ self.token_weights().T.astype(tokens.dtype)
        bias = self.token_bias
        return (
            scores
            if bias is None
            else scores + jnp.reshape(bias[...], (1,) * (scores.ndim - 1) + (-1,)).astype(scores.dtype)
        )

    def token_weights(self) -> Array:
        """`[V, D]`, what tokens are multiplied by for the scores of the vocabulary; of decoders that is all there is to it."""
        return (self.embeddings.tokens if self.unembedding is None else self.unembedding)[...]

    def classify(self, embedding: Array) -> Array:
        """Class scores `[B, C]` of an embedding `[B, D]`."""
        return self.classifier(embedding)

    def _pooled(self, last: Array, mask: Array, key: Array | None) -> Array:
        """What is classified of a row: a decoder's last token; an encoder's first, behind a layer."""
        if self.pooler is None:
            at = last.shape[1] - 1 - jnp.argmax(mask[:, ::-1], axis=1)
            return jnp.take_along_axis(last, at[:, None, None], axis=1)[:, 0]
        first = last[:, 0]
        if self.architecture.family == "roberta":
            first = self.dropout(first, rngs=None if key is None else jax.random.fold_in(key, 1))
        first = self.pooler(first)
        return nnx.relu(first) if self.architecture.family == "distilbert" else jnp.tanh(first)

    def _scored(self, embedding: Array, key: Array | None) -> Array:
        dropped = embedding if self.architecture.causal else self.dropout(embedding, rngs=key)
        return self.classify(dropped)

    def _positions(self, mask: Array) -> Array:
        """Where nobody says: an encoder counts columns, RoBERTa and decoders the tokens that are no padding."""
        a = self.architecture
        if a.causal:
            return jnp.maximum(jnp.cumsum(mask, axis=1, dtype=jnp.int32) - 1, 0)
        if a.first_position:
            return jnp.cumsum(mask, axis=1, dtype=jnp.int32) * mask + (a.first_position - 1)
        return jnp.broadcast_to(jnp.arange(mask.shape[1], dtype=jnp.int32)[None], mask.shape)


def visible(mask: Array, segments: Array | None, *, causal: bool) -> Array:
    """`[B, 1, L, L]` bool, which keys (last axis) a query sees: tokens that are no padding, of its own segment, and in decoders
    not behind it.

    Args:
      mask: `[B, L]` bool, False at padding.
      segments: `[B, L]` numbers of the texts that lie in a row, or None.
      causal: of a decoder.
    """
    seen = mask[:, None, None, :]
    if causal:
        places = jnp.arange(mask.shape[1])
        seen = seen & (places[:, None] >= places[None, :])[None, None]
    if segments is not None:
        seen = seen & (segments[:, None, :, None] == segments[:, None, None, :])
    return jnp.broadcast_to(seen, (mask.shape[0], 1, mask.shape[1], mask.shape[1]))


def mean_of(tokens: Array, mask: Array) -> Array:
    """The mean over a row's tokens `[B, L, D]` at length 1, `[B, D]`, in float32 or wider."""
    wide = tokens.astype(jnp.promote_types(tokens.dtype, jnp.float32))
    there = mask[:, :, None].astype(wide.dtype)
    mean = jnp.sum(wide * there, axis=1) / jnp.maximum(jnp.sum(there, axis=1), 1e-9)
    size = jnp.sum(jnp.square(mean), axis=-1, keepdims=True)
    return mean * lax.rsqrt(jnp.maximum(size, 1e-24))


def _mask(inputs: Inputs) -> Array:
    """`[B, L]` bool, which tokens are no padding."""
    if "attention_mask" in inputs:
        return inputs["attention_mask"] != 0
    if "segment_ids" in inputs:
        return inputs["segment_ids"] != 0
    return jnp.ones(inputs["input_ids"].shape, bool)


def _rows(table: Array, numbers: Array) -> Array:
    return jnp.take(table, numbers.astype(jnp.int32), axis=0)


def _stacked(block: Block, depth: int) -> Block:
    """A block whose parameters have a first axis of so many, all alike until they are drawn."""
    graph, weights = nnx.split(block)
    return nnx.merge(graph, jax.tree.map(lambda x: jnp.broadcast_to(x[None], (depth, *x.shape)), weights))

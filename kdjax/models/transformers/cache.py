"""Keys and values that are kept, so that a decoder goes on with a text without reading it again."""

from typing import Any, NamedTuple

import jax.numpy as jnp
from flax import nnx
from jax import lax

from kdjax.types import Array


class Cache(NamedTuple):
    """What is known of the tokens so far, in columns of which there are `C` from the beginning.

    Attributes:
      keys, values: `[depth, B, C, K, head_width]`.
      there: `[B, C]` bool, columns with a token that later ones see.
      filled: int32, columns that are written; the same for all rows.
    """

    keys: Array
    values: Array
    there: Array
    filled: Array


def empty(module: Any, rows: int, columns: int) -> Cache:
    """A cache of so many rows and columns, for a decoder, a `Transformer`.

    Raises:
      ValueError: it is an encoder, or has no positions for so many.
    """
    a = module.architecture
    if not (a.causal and a.norm_first):
        raise ValueError(
            f"A network of the family {a.family} sees what comes later, and writes no texts; use a decoder."
        )
    if a.rope is None and columns > a.length:
        raise ValueError(
            f"Texts would become {columns} tokens long, and the network has positions for {a.length}; make them shorter."
        )
    room = jnp.zeros((a.depth, rows, columns, a.kv_heads, a.head_width), module.embeddings.tokens[...].dtype)
    return Cache(room, room, jnp.zeros((rows, columns), bool), jnp.zeros((), jnp.int32))


def extended(module: Any, ids: Array, mask: Array, cache: Cache) -> tuple[Array, Cache]:
    """The last of the next tokens behind the last block, `[B, D]`, and the cache with all of them.

    Args:
      module: the decoder, a `Transformer`.
      ids: `[B, L]` tokens.
      mask: `[B, L]` bool, False for those that nobody shall see: padding before a prompt, and behind an end. A token's position
        is the number of those before it that are seen.
      cache: of those before them.
    """
    a = module.architecture
    before = jnp.sum(cache.there, axis=1, keepdims=True, dtype=jnp.int32)
    positions = jnp.maximum(before + jnp.cumsum(mask, axis=1, dtype=jnp.int32) - 1, 0)
    there = _put(cache.there, mask, cache.filled)
    x = module.embeddings(ids, positions, None, None)
    wide = jnp.promote_types(x.dtype, jnp.float32)
    rotation = None if a.rope is None else a.rope.rotation(positions, a.head_width, wide)
    columns, own = jnp.arange(there.shape[1]), cache.filled + jnp.arange(ids.shape[1])
    visible = there[:, None, None, :] & (columns[None, :] <= own[:, None])[None, None]
    graph, weights = nnx.split(module.blocks)

    def layer(x, given):
        weights, keys, values = given
        block = nnx.merge(graph, weights)
        query, key, value = block.attention.projected(block.attention_norm(x), rotation)
        keys = _put(keys, key, cache.filled)
        values = _put(values, value, cache.filled)
        x = x + block.attention.attended(query, keys, values, visible, None)[0]
        return x + block.mlp(block.mlp_norm(x)), (keys, values)

    x, (keys, values) = lax.scan(layer, x, (weights, cache.keys, cache.values))
    return module.norm(x[:, -1]), Cache(keys, values, there, cache.filled + ids.shape[1])


def _put(room: Array, columns: Array, at: Array) -> Array:
    """`[B, C, ...]` with columns `[B, L, ...]` in it from `at` on."""
    return lax.dynamic_update_slice_in_dim(room, columns, at, axis=1)

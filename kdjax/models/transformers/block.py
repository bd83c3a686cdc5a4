"""The one block: attention and a perceptron, each a branch that is normalised and added to what it was given."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from kdjax.models.transformers.architecture import Architecture
from kdjax.models.transformers.rope import rotated
from kdjax.models.zoo.attention import layer_norm
from kdjax.models.zoo.layers import dense
from kdjax.types import Array

ACTIVATIONS = {
    "gelu": lambda x: nnx.gelu(x, approximate=False), "gelu_tanh": lambda x: nnx.gelu(x, approximate=True), "silu": nnx.silu,
    "relu": nnx.relu,
}  # fmt: skip
KEPT = ("queries", "keys", "values", "scores")


class Seen(NamedTuple):
    """What every block is told of its tokens.

    Attributes:
      visible: `[B or 1, 1, L, L]` bool, which keys (last axis) a query sees.
      rotation: cosines and sines of the positions, see `Rope.rotation`; None where there are none.
    """

    visible: Array
    rotation: tuple[Array, Array] | None


class RMSNorm(nnx.Module):
    """Divides by the root of the mean square, in float32 or wider; rounds; then scales.

    Zhang, Sennrich, Root Mean Square Layer Normalization, NeurIPS 2019, arXiv 1910.07467.
    """

    def __init__(self, width: int, *, epsilon: float):
        self.epsilon = epsilon
        self.scale = nnx.Param(jnp.ones(width, jnp.float32))

    def __call__(self, x: Array) -> Array:
        """`[..., width]` to the same shape."""
        wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        size = jnp.mean(jnp.square(wide), axis=-1, keepdims=True)
        normal = (wide * jax.lax.rsqrt(size + self.epsilon)).astype(x.dtype)
        return normal * jnp.reshape(self.scale[...], (1,) * (x.ndim - 1) + (-1,)).astype(x.dtype)


def norm(a: Architecture, *, rngs: nnx.Rngs) -> nnx.Module:
    """The normalisation of a token."""
    return RMSNorm(a.width, epsilon=a.epsilon) if a.norm == "rms" else layer_norm(a.width, epsilon=a.epsilon, rngs=rngs)


class Attention(nnx.Module):
    """Attention whose keys and values may have fewer heads than its queries: query head `h` reads head `h // (H / K)`."""

    def __init__(self, a: Architecture, *, rngs: nnx.Rngs):
        self.head_width = a.head_width
        self.query = dense(a.width, a.heads * a.head_width, bias=a.qkv_bias, rngs=rngs)
        self.key = dense(a.width, a.kv_heads * a.head_width, bias=a.qkv_bias, rngs=rngs)
        self.value = dense(a.width, a.kv_heads * a.head_width, bias=a.qkv_bias, rngs=rngs)
        self.out = dense(a.heads * a.head_width, a.width, bias=a.out_bias, rngs=rngs)
        self.query_norm = RMSNorm(a.head_width, epsilon=a.epsilon) if a.qk_norm else None
        self.key_norm = RMSNorm(a.head_width, epsilon=a.epsilon) if a.qk_norm else None
        self.dropout = nnx.Dropout(a.attention_dropout)

    def projected(self, x: Array, rotation: tuple[Array, Array] | None) -> tuple[Array, Array, Array]:
        """Queries `[B, L, H, head_width]`, keys and values `[B, L, K, head_width]` of `[B, L, D]`, turned to their positions."""
        split = lambda y: jnp.reshape(y, (*y.shape[:2], -1, self.head_width))
        query, key, value = split(self.query(x)), split(self.key(x)), split(self.value(x))
        if self.query_norm is not None:
            query, key = self.query_norm(query), self.key_norm(key)
        if rotation is not None:
            query, key = rotated(query, rotation), rotated(key, rotation)
        return query, key, value

    def attended(
        self, query: Array, key: Array, value: Array, visible: Array, rngs: Array | None
    ) -> tuple[Array, Array]:
        """What the queries make of the keys and values that they see, `[B, Lq, D]`, and the scores before the softmax,
        `[B, H, Lq, Lk]` in float32 or wider. Where a query sees nothing the result means nothing, but is finite.

        Args:
          query: `[B, Lq, H, head_width]`.
          key, value: `[B, Lk, K, head_width]`.
          visible: `[B or 1, 1, Lq, Lk]` bool.
          rngs: key of the dropout.
        """
        rows, length, heads, width = query.shape
        grouped = jnp.reshape(query, (rows, length, key.shape[2], -1, width))
        wide = jnp.promote_types(query.dtype, jnp.float32)  # of scores, which a shorter type would blur
        scores = jnp.einsum("bqkgd,blkd->bkgql", grouped, key, preferred_element_type=wide) / math.sqrt(width)
        scores = jnp.reshape(scores, (rows, heads, length, -1))
        shares = jax.nn.softmax(jnp.where(visible, scores, jnp.finfo(wide).min)).astype(value.dtype)
        shares = jnp.reshape(self.dropout(shares, rngs=rngs), (rows, key.shape[2], -1, *scores.shape[2:]))
        mixed = jnp.einsum("bkgql,blkd->bqkgd", shares, value)
        return self.out(jnp.reshape(mixed, (rows, length, -1))), scores


class Perceptron(nnx.Module):
    """Two linear layers, or three where the activation is gated: Shazeer, GLU Variants Improve Transformer, arXiv 2002.05202."""

    def __init__(self, a: Architecture, *, rngs: nnx.Rngs):
        self.activation = a.activation
        self.gate = dense(a.width, a.hidden, bias=a.mlp_bias, rngs=rngs) if a.gated else None
        self.up = dense(a.width, a.hidden, bias=a.mlp_bias, rngs=rngs)
        self.down = dense(a.hidden, a.width, bias=a.mlp_bias, rngs=rngs)

    def __call__(self, x: Array) -> Array:
        """`[B, L, D]` to the same shape."""
        active = ACTIVATIONS[self.activation]
        return self.down(active(self.up(x)) if self.gate is None else active(self.gate(x)) * self.up(x))


class Block(nnx.Module):
    """Attention, then a perceptron."""

    def __init__(self, a: Architecture, *, rngs: nnx.Rngs):
        self.norm_first = a.norm_first
        self.attention = Attention(a, rngs=rngs)
        self.attention_norm = norm(a, rngs=rngs)
        self.mlp = Perceptron(a, rngs=rngs)
        self.mlp_norm = norm(a, rngs=rngs)
        self.dropout = nnx.Dropout(a.dropout)

    def __call__(self, x: Array, seen: Seen, rngs: Array | None) -> tuple[Array, dict[str, Array]]:
        """`[B, L, D]` to the same shape, and what the attention went through: `KEPT`.

        Args:
          x: the tokens.
          seen: of them.
          rngs: `[3]` keys of the dropouts, or None where nothing is dropped.
        """
        keys = (None,) * 3 if rngs is None else tuple(rngs)
        given = self.attention_norm(x) if self.norm_first else x
        query, key, value = self.attention.projected(given, seen.rotation)
        branch, scores = self.attention.attended(query, key, value, seen.visible, keys[0])
        x = x + self.dropout(branch, rngs=keys[1])
        x = x if self.norm_first else self.attention_norm(x)
        x = x + self.dropout(self.mlp(self.mlp_norm(x) if self.norm_first else x), rngs=keys[2])
        x = x if self.norm_first else self.mlp_norm(x)
        return x, dict(zip(KEPT, (query, key, value, scores), strict=True))

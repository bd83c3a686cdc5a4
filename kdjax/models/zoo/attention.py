"""What the transformers for images are made of."""

import math

import jax
import jax.numpy as jnp
from flax import nnx

from kdjax.models.zoo.layers import dense
from kdjax.types import Array


def layer_norm(features: int, *, epsilon: float = 1e-6, rngs: nnx.Rngs) -> nnx.LayerNorm:
    """Layer normalisation whose variance is the mean of squared deviations, as PyTorch's."""
    return nnx.LayerNorm(features, epsilon=epsilon, use_fast_variance=False, rngs=rngs)


class Attention(nnx.Module):
    """Multi-head self-attention; queries, keys and values from one linear layer."""

    def __init__(self, width: int, heads: int, *, rngs: nnx.Rngs):
        self.heads = heads
        self.qkv = dense(width, 3 * width, rngs=rngs)
        self.out = dense(width, width, rngs=rngs)

    def __call__(self, x: Array, bias: Array | None = None) -> Array:
        """`[B, L, K]` to the same shape; `bias` is added to the scaled products of queries and keys, `[B or 1, heads, L, L]`."""
        rows, length, width = x.shape
        query, key, value = jnp.moveaxis(jnp.reshape(self.qkv(x), (rows, length, 3, self.heads, -1)), 2, 0)
        wide = jnp.promote_types(x.dtype, jnp.float32)  # of scores, for a shorter type would blur them
        scores = jnp.einsum("bqhk,blhk->bhql", query, key, preferred_element_type=wide) / math.sqrt(query.shape[-1])
        scores = scores if bias is None else scores + bias.astype(wide)
        mixed = jnp.einsum("bhql,blhk->bqhk", jax.nn.softmax(scores).astype(x.dtype), value)
        return self.out(jnp.reshape(mixed, (rows, length, width)))


class MLP(nnx.Module):
    """Two linear layers with the exact GELU between them, of `erf`, not its approximation by `tanh`."""

    def __init__(self, width: int, hidden: int, *, rngs: nnx.Rngs):
        self.wide = dense(width, hidden, rngs=rngs)
        self.narrow = dense(hidden, width, rngs=rngs)

    def __call__(self, x: Array) -> Array:
        """`[..., K]` to the same shape."""
        return self.narrow(nnx.gelu(self.wide(x), approximate=False))


def patches(in_channels: int, width: int, size: int, *, rngs: nnx.Rngs) -> nnx.Conv:
    """A linear layer of every patch of `size`x`size` pixels, `[B, H, W, in_channels]` to `[B, H / size, W / size, width]`; it
    starts as PyTorch's convolutions do, uniform within 1 / sqrt(inputs)."""
    bound = 1 / math.sqrt(in_channels * size * size)

    def uniform(key, shape, dtype, out_sharding=None):
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return nnx.Conv(
        in_channels, width, (size, size), strides=size, padding="VALID", kernel_init=uniform, bias_init=uniform, rngs=rngs
    )  # fmt: skip


def linear_deviation(part: nnx.Module) -> float | None:
    """0.02 for linear layers, as ViT, DeiT and Swin begin; None for others. (Theirs are cut off at 2, a hundred deviations.)"""
    return 0.02 if isinstance(part, nnx.Linear) else None


def normal(shape: tuple[int, ...], deviation: float, *, rngs: nnx.Rngs) -> nnx.Param:
    """A parameter that is drawn normal."""
    return nnx.Param(deviation * jax.random.normal(rngs.params(), shape, jnp.float32))

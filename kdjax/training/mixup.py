"""Mixup: each input blended with its neighbour's in the batch, alike for every network that looks at it."""

import jax
import jax.numpy as jnp
from jax import lax

from kdjax.types import Array, Axis


def mixup(inputs: Array, index: Array, epoch, key: Array, *, strength: float, axis: Axis = None) -> Array:
    """`share * x_i + (1 - share) * x_(i-1)` with a share of Beta(strength, strength) for each example.

    The partner is the row before in the global batch, so the same batch gives the same inputs on any number of devices;
    but an input is no longer a function of its example alone, and cannot be cached.

    Args:
      inputs: `[B, ...]` floats.
      index: `[B]` positions in the data set, which key the shares.
      epoch: whole passes done.
      key: of the data seed.
      strength: the parameter of the Beta distribution; 1 makes the share uniform.
      axis: mapped axis over which the batch is spread.
    """
    key = jax.random.fold_in(jax.random.fold_in(key, 0x6D6978), epoch)  # apart from the draws of the views

    def share(i):
        return jax.random.beta(jax.random.fold_in(key, i), strength, strength, dtype=inputs.dtype)

    shares = jnp.reshape(jax.vmap(share)(index), (-1,) + (1,) * (inputs.ndim - 1))
    return shares * inputs + (1 - shares) * _rows_before(inputs, axis)


def _rows_before(rows: Array, axis: Axis) -> Array:
    """Every row's predecessor in the global batch; the first one's is the last."""
    if axis is None:
        return jnp.roll(rows, 1, axis=0)
    count = lax.axis_size(axis)
    last = lax.ppermute(rows[-1:], axis, [(i, (i + 1) % count) for i in range(count)])
    return jnp.concatenate([last, rows[:-1]])

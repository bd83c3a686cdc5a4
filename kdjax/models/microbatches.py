"""Gradient accumulation that changes nothing but memory: a network run on a batch piece by piece.

The usual accumulation averages the losses of pieces, which is another loss wherever examples are compared or counted: each
sees the examples of its own piece only. Here the pieces are put together again before the loss, which is that of the whole
batch, and its gradient runs back through one piece at a time, whose activations are computed a second time for it. The
price is one more forward pass of the student.
"""

import jax
import jax.numpy as jnp
from jax import lax

from kdjax.types import Network


def in_microbatches(network: Network, count: int) -> Network:
    """The network, run on `count` equal pieces of its batch one after the other, with the activations of one at a time.

    Piece `i` holds the rows `i, i + count, i + 2 count, ...`, so that each is spread over the devices as the batch is. In
    training BatchNorm normalises by the statistics of a piece and updates its running ones with each; everything else
    is as if the batch had been run at once.

    Args:
      network: of a batch on the first axis of all that it is given and gives, but for numbers, which are averaged.
      count: pieces, at least 1.

    Raises:
      ValueError: `count` is below 1; when it is run, a batch does not divide by it.
    """
    if count < 1:
        raise ValueError(f"microbatches={count}; it must be at least 1.")
    if count == 1:
        return network

    def apply(params, state, inputs, *, train, rngs=None, axis=None):
        rows = jax.tree.leaves(inputs)[0].shape[0]
        if rows % count:
            raise ValueError(f"A batch of {rows} examples on a device does not divide into {count} microbatches.")

        def piece(state, numbered):
            number, inputs = numbered
            key = None if rngs is None else jax.random.fold_in(rngs, number)
            output, state = network.apply(params, state, inputs, train=train, rngs=key, axis=axis)
            return state, output

        split = lambda x: jnp.swapaxes(jnp.reshape(x, (rows // count, count, *x.shape[1:])), 0, 1)
        # What is one number a piece, such as a loss of the network's own, is a mean over its rows.
        join = lambda x: jnp.reshape(jnp.swapaxes(x, 0, 1), (rows, *x.shape[2:])) if x.ndim > 1 else jnp.mean(x)
        pieces = jnp.arange(count), jax.tree.map(split, inputs)
        # A scan keeps barriers between pieces, which is all that prevent_cse is for.
        state, outputs = lax.scan(jax.checkpoint(piece, prevent_cse=False), state, pieces)
        return jax.tree.map(join, outputs), state

    return network._replace(apply=apply)

"""Mixed precision: float32 parameters, statistics and losses, and a network that computes in a shorter type."""

import jax
import jax.numpy as jnp

from kdjax.types import Network

PRECISIONS = ("float32", "bfloat16")


def in_precision(network: Network, precision: str) -> Network:
    """The network, computing in `precision`: its parameters and inputs are rounded to it at every use.

    Parameters stay as they are, so that small updates are not lost, and gradients arrive in their type. State (BatchNorm's
    statistics) is neither rounded nor computed in the shorter type. Outputs have the shorter type; losses compute in
    float32 whatever they are given. The network's parts, which objectives call, are left as they are.

    Raises:
      ValueError: an unknown precision.
    """
    if precision not in PRECISIONS:
        raise ValueError(f"precision={precision!r}; use {' or '.join(map(repr, PRECISIONS))}.")
    if precision == "float32":
        return network
    short = lambda tree: jax.tree.map(
        lambda x: jnp.asarray(x, precision) if jnp.issubdtype(jnp.result_type(x), jnp.floating) else x, tree
    )

    def apply(params, state, inputs, *, train, rngs=None, axis=None):
        return network.apply(short(params), state, short(inputs), train=train, rngs=rngs, axis=axis)

    return network._replace(apply=apply)

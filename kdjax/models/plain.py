"""A network from a plain `apply(params, inputs)`."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from kdjax.models.outputs import as_output, of_model
from kdjax.types import Array, Network, Tree


def from_apply(
    apply: Callable[..., Any],
    params: Tree | None = None,
    *,
    init: Callable[[Array], Tree] | None = None,
    output: Callable[[Any], Any] = as_output,
    name: str | None = None,
) -> Network:
    """A network from a plain `apply(params, inputs)`, without modes, state and random numbers.

    A model that has those is a `kdjax.types.Network` of its own, a few lines: `kdjax/models/README.md` has them for Keras,
    Haiku and Equinox.

    Args:
      apply: a pure function; what it returns goes through `output`.
      params: trained parameters, which `init` then gives whatever the key.
      init: `key -> params` for fresh ones. Give one of the two.
      output: makes a `ModelOutput` of what `apply` returns, features and embedding included.
      name: for reports; the function's name if not given.
    """
    if (params is None) == (init is None):
        raise ValueError("from_apply needs either params= (trained) or init= (key -> params).")

    def network_init(key):
        return (init(key) if init is not None else jax.tree.map(jnp.array, params)), {}

    def network_apply(params, state, inputs, *, train, rngs=None, axis=None):
        del train, rngs, axis  # a plain function has no modes
        return of_model(apply(params, inputs), output, inputs), state

    return Network(network_init, network_apply, {}, name or getattr(apply, "__name__", "apply"))

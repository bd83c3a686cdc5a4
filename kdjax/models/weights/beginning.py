"""A network that begins with weights of a file."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from kdjax.types import Network


def begun(network: Network, weights: dict[str, np.ndarray]) -> Network:
    """The network, whose fresh weights are these as far as there are some, by path: `params/classifier/kernel`.

    They would be constants of a program that calls `init`, and large ones do not compile: such a program takes `given_by` as an
    argument, and calls `begun(network, argument).init`.
    """

    def init(key):
        made = dict(zip(("params", "state"), network.init(key), strict=True))
        of = lambda path: "/".join(str(getattr(k, "key", k)) for k in path)
        filled = jax.tree_util.tree_map_with_path(
            lambda path, x: jnp.asarray(weights[of(path)], x.dtype) if of(path) in weights else x, made
        )
        return filled["params"], filled["state"]

    init.given = weights
    return network._replace(init=init)


def given_by(network: Network) -> dict[str, np.ndarray]:
    """The weights that a network's own `init` gives whatever the key, by path; none if it is another network's, or draws all."""
    return getattr(network.init, "given", {})


def flat(tree: Any) -> dict[str, np.ndarray]:
    """The leaves of nested dicts by path."""
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }

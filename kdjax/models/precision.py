"""Mixed precision: float32 parameters, statistics and losses, and a network that computes in a shorter type."""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import jaxprs_in_params

from kdjax.types import Network, Tree

PRECISIONS = ("float32", "bfloat16")


def in_precision(network: Network, precision: str) -> Network:
    """The network, computing in `precision`: its parameters and inputs are rounded to it at every use.

    Parameters stay as they are, so that small updates are not lost, and gradients arrive in their type. State (BatchNorm's
    statistics) is neither rounded nor computed in the shorter type, nor are the parameters that `Network.float32` names:
    scales and biases of kdjax's BatchNorm, whose gradients would be added up in the shorter type over all positions, as they
    are in Flax's. Outputs have the shorter type; losses compute in float32 whatever they are given. The network's parts, which
    objectives call, are left as they are.

    Raises:
      ValueError: an unknown precision.
    """
    if precision not in PRECISIONS:
        raise ValueError(f"precision={precision!r}; use {' or '.join(map(repr, PRECISIONS))}.")
    if precision == "float32":
        return network
    kept = {"/".join(path) for path in network.float32}

    def short(path, x):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        return x if name in kept or not jnp.issubdtype(jnp.result_type(x), jnp.floating) else jnp.asarray(x, precision)

    def apply(params, state, inputs, *, train, rngs=None, axis=None):
        params = jax.tree_util.tree_map_with_path(short, params)
        inputs = jax.tree.map(lambda x: short((), x), inputs)
        return network.apply(params, state, inputs, train=train, rngs=rngs, axis=axis)

    return network._replace(apply=apply)


def float32_products(network: Network, inputs: Tree) -> tuple[int, int]:
    """How many of a training pass's convolutions and matrix products take float32, and how many there are in all.

    Of a network `in_precision("bfloat16")` none should; a layer that gives float32 whatever it is given makes those behind it
    slow. Loops and recomputed parts count once.

    Args:
      network: of which nothing is computed.
      inputs: a batch, or its shapes.
    """

    given = jax.eval_shape(network.init, jax.random.key(0))
    run = lambda given, x: network.apply(*given, x, train=True, rngs=jax.random.key(0))[0]
    found = [product_types(product) for product, _ in products(jax.make_jaxpr(run)(given, inputs).jaxpr)]
    return sum("float32" in kinds[:2] for kinds in found), len(found)


def products(jaxpr: Any, within: str = "") -> Iterator[tuple[Any, str]]:
    """The convolutions and matrix products of a traced function, as equations, and the scopes they are in: once each, however
    often a loop runs."""
    for equation in jaxpr.eqns:
        place = f"{within}/{equation.source_info.name_stack}".strip("/")
        if equation.primitive.name in ("conv_general_dilated", "dot_general"):
            yield equation, place
        for inner in jaxprs_in_params(equation.params):
            yield from products(inner, place)


def product_types(product: Any) -> tuple[str, str, str]:
    """Types of both operands of such an equation, and of its result."""
    return tuple(str(v.aval.dtype) for v in (*product.invars[:2], product.outvars[0]))

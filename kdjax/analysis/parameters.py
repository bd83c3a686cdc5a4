"""Between networks: weights on the way from one to another, and the plane through three (Stanton et al., NeurIPS 2021)."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from kdjax.types import Array

Tree = Any


def interpolated(first: Tree, second: Tree, share: float | Array) -> Tree:
    """`share * first + (1 - share) * second`, array by array: a student that begins on the way to its teacher.

    Statistics of BatchNorm are not those of the new weights; estimate them anew, or use networks without.

    Raises:
      ValueError: they are of different networks.
    """
    _same(first, second)
    return jax.tree.map(lambda a, b: share * a + (1 - share) * b, first, second)


def barrier(losses: Array) -> Array:
    """How far the loss between two networks rises above the straight line between theirs: 0 where they share a basin that is
    convex on the way (Frankle et al., ICML 2020).

    Args:
      losses: `[K]`, at evenly spaced places from one network to the other, both included.

    Raises:
      ValueError: fewer than three places.
    """
    losses = jnp.asarray(losses)
    if losses.ndim != 1 or losses.shape[0] < 3:
        raise ValueError(f"losses are {losses.shape}; give [K] with both ends and at least one place between.")
    return jnp.max(losses - jnp.linspace(losses[0], losses[-1], losses.shape[0]))


def plane(
    origin: Tree, first: Tree, second: Tree
) -> tuple[Callable[[Any, Any], Tree], Callable[[Tree], tuple[Array, Array]]]:
    """The plane through three networks' weights.

    Args:
      origin, first, second: weights of one network.

    Returns:
      `at(x, y)`, weights at a place, and `place(weights)`, the place nearest to some: `origin` is (0, 0), `first` on the
      x axis, both axes of equal length.

    Raises:
      ValueError: they are of different networks, or on a line.
    """
    _same(origin, first)
    _same(origin, second)
    dot = lambda a, b: sum(jnp.vdot(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))
    less = lambda a, b, factor=1.0: jax.tree.map(lambda x, y: x - factor * y, a, b)
    scaled = lambda a, factor: jax.tree.map(lambda x: factor * x, a)
    across = less(first, origin)
    length = jnp.sqrt(dot(across, across))
    if not length > 0:
        raise ValueError("The first network is the origin; three places are needed.")
    across = scaled(across, 1 / length)
    up = less(second, origin)
    size = jnp.sqrt(dot(up, up))
    up = less(up, across, dot(up, across))
    height = jnp.sqrt(dot(up, up))
    if not height > 1e-6 * size:
        raise ValueError("The three networks are on a line; there is no plane through them.")
    up = scaled(up, 1 / height)

    def at(x, y):
        return jax.tree.map(lambda o, a, u: o + x * a + y * u, origin, across, up)

    def place(weights):
        gap = less(weights, origin)
        return dot(gap, across), dot(gap, up)

    return at, place


def _same(first: Tree, second: Tree) -> None:
    shapes = [jax.tree.map(jnp.shape, tree) for tree in (first, second)]
    if shapes[0] != shapes[1]:
        raise ValueError("The weights are of different networks: their arrays have other names or shapes.")

"""The examples of a batch against those of all devices, and how any two of them (or three) are alike."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from kdjax.losses import checks

__all__: list[str] = []

Array = jax.Array


class Pairs(NamedTuple):
    """Every example held here beside every example of the global batch.

    Attributes:
      rows: `[b, D]` features of the examples held here, zero where they are left out.
      columns: `[B, D]` the same of all devices.
      kept: `[b, B]`, whether both examples are in the batch.
      itself: `[b, B]`, whether the two are one and the same.
      axis_name: the mapped axis over which the batch is spread, or None.
    """

    rows: Array
    columns: Array
    kept: Array
    itself: Array
    axis_name: str | None


def pair_up(features: Array, where, axis_name: str | None, given=None) -> Pairs:
    """The pairs of `[b, ...]` features; rows where `where` is False may hold anything.

    `given` is what the network said: its type, if it is a shorter one, is that in which the features travel.
    """
    kept = checks.row_mask(where, features.shape[0])
    rows = jnp.where(kept[:, None], jnp.reshape(features, (features.shape[0], -1)), 0)
    kind = rows.dtype if given is None else jnp.result_type(given)
    if axis_name is None or jnp.finfo(kind).bits >= jnp.finfo(rows.dtype).bits:
        columns = gather(rows, axis_name)
    else:
        columns = _gather_short(rows, axis_name, kind)
    first = 0 if axis_name is None else lax.axis_index(axis_name) * rows.shape[0]
    itself = (first + jnp.arange(rows.shape[0]))[:, None] == jnp.arange(columns.shape[0])[None, :]
    return Pairs(rows, columns, kept[:, None] & gather(kept, axis_name)[None, :], itself, axis_name)


def gather(rows: Array, axis_name: str | None) -> Array:
    """Rows of the global batch, of those held here."""
    return rows if axis_name is None else lax.all_gather(rows, axis_name, axis=0, tiled=True)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def _gather_short(rows: Array, axis_name: str, kind) -> Array:
    """Gathered rows that are exact in a shorter type, which is what moves; their gradients are added up as they are."""
    return lax.all_gather(rows.astype(kind), axis_name, axis=0, tiled=True).astype(rows.dtype)


def _gather_short_backward(axis_name: str, kind, _, gradient: Array) -> tuple[Array]:
    return (lax.psum_scatter(gradient, axis_name, scatter_dimension=0, tiled=True),)


_gather_short.defvjp(lambda rows, axis_name, kind: (_gather_short(rows, axis_name, kind), None), _gather_short_backward)


def products(pairs: Pairs) -> Array:
    """`[b, B]` dot products."""
    if pairs.axis_name is not None and pairs.rows.shape[1] > pairs.columns.shape[0]:
        return _products_of_slices(pairs.rows, pairs.axis_name)
    return jnp.einsum("id,jd->ij", pairs.rows, pairs.columns, precision=lax.Precision.HIGHEST)


def _products_of_slices(rows: Array, axis_name: str) -> Array:
    """The same where features are wider than the batch: every device adds up a slice of the width for all pairs, and the sums
    of the slices move instead of the features."""
    spare = -rows.shape[1] % lax.axis_size(axis_name)
    slices = lax.all_to_all(jnp.pad(rows, ((0, 0), (0, spare))), axis_name, split_axis=1, concat_axis=0, tiled=True)
    sums = jnp.einsum("id,jd->ij", slices, slices, precision=lax.Precision.HIGHEST)
    return lax.psum_scatter(sums, axis_name, scatter_dimension=0, tiled=True)


def scaled_to_unit(pairs: Pairs, epsilon: float = 0.0) -> Pairs:
    """Features divided by their norm plus `epsilon`; a zero stays zero and sends back no gradient."""
    return pairs._replace(rows=_unit(pairs.rows, epsilon), columns=_unit(pairs.columns, epsilon))


def squared_distances(pairs: Pairs) -> Array:
    """`[b, B]` squared distances, at least 1e-12 between two examples and 0 from an example to itself."""
    return jnp.where(pairs.itself, 0, jnp.maximum(_squared_gaps(pairs.rows, pairs.columns), 1e-12))


def distances(pairs: Pairs) -> Array:
    """`[b, B]` distances, at least 1e-6 between two examples; points that coincide send back no gradient."""
    squared = squared_distances(pairs)
    return jnp.where(pairs.itself, 0, jnp.sqrt(jnp.where(pairs.itself, 1, squared)))


def angles(pairs: Pairs) -> Array:
    """`[b, B, B]` cosines of the angles at every example held here between any two of the batch.

    0 where an end is no further than 1e-12 from the vertex, and no gradient through that end. From the sides of the
    triangles, so that no vector of the features' width belongs to a triple, or has to be held for a pair.
    """
    sides = _squared_gaps(pairs.rows, pairs.columns)
    opposite = _squared_gaps(pairs.columns, pairs.columns)
    apart = sides > 1e-24
    inverse = jnp.where(apart, 1 / jnp.sqrt(jnp.where(apart, sides, 1)), 0)
    doubled = sides[:, :, None] + sides[:, None, :] - opposite[None, :, :]
    return 0.5 * doubled * inverse[:, :, None] * inverse[:, None, :]


def exponential_series(exponents: Array, order: int) -> Array:
    """`sum_{p=0}^{order} x^p / p!`."""
    total = term = jnp.ones_like(exponents)
    for power in range(1, order + 1):
        term = term * exponents / power
        total = total + term
    return total


def _squared_gaps(rows: Array, columns: Array) -> Array:
    """`[n, m]` squared distances of `[n, D]` from `[m, D]`.

    The values are of differences: dot products lose the distances of near points far from the origin, and of points that
    coincide. The gradient is of dot products about the mean, since that of the differences would take `[n, m, D]`.
    """
    exact = jnp.sum(lax.stop_gradient(rows[:, None, :] - columns[None, :, :]) ** 2, axis=-1)
    centre = lax.stop_gradient(jnp.mean(columns, axis=0, keepdims=True))
    rows, columns = rows - centre, columns - centre
    dots = jnp.einsum("id,jd->ij", rows, columns, precision=lax.Precision.HIGHEST)
    smooth = jnp.sum(rows**2, axis=-1)[:, None] + jnp.sum(columns**2, axis=-1)[None, :] - 2 * dots
    return exact + (smooth - lax.stop_gradient(smooth))


def _unit(rows: Array, epsilon: float) -> Array:
    squared = jnp.sum(rows**2, axis=-1, keepdims=True)
    alive = squared > 0
    return jnp.where(alive, rows / (jnp.sqrt(jnp.where(alive, squared, 1)) + epsilon), 0)

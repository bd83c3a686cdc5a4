"""Means over a batch that may be spread over devices: the only place where one is taken.

The rule that keeps gradients right (a wrong form gives the right value and a gradient eight times too large on
eight devices): each device differentiates *its own share*, `local sum / global count`, and the gradients are summed
over devices once, by the step. Nothing that was itself summed over devices is ever differentiated.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec

from kdjax.types import Array, Axis, Batch, Term, Terms


def per_example(values: Array, where: Batch | Array | None = None, *, labelled: bool = False, group: str = "") -> Term:
    """The term of a loss with one value an example, or an element (token, pixel): the sum and count of those held here.

    Args:
      values: `[B]` or `[B, L, ...]` losses.
      where: the batch, whose `Batch.mask` says which values count; or a boolean mask of the same shape, or of its leading
        axes. Values that do not count count for nothing, even if they are nan. None keeps all.
      labelled: with a batch, leave out also what has no usable target.
      group: see `Term`.
    """
    values = values.astype(jnp.promote_types(values.dtype, jnp.float32))  # a bfloat16 cannot count beyond 256
    if where is None:
        return Term(jnp.sum(values), jnp.asarray(values.size, values.dtype), group=group)
    if isinstance(where, Batch):
        where = where.mask(values.shape, labelled=labelled)
    where = jnp.reshape(where, where.shape + (1,) * (values.ndim - where.ndim))
    where = jnp.broadcast_to(where, values.shape)
    return Term(jnp.sum(jnp.where(where, values, 0)), jnp.sum(where, dtype=values.dtype), group=group)


def weighted_mean(values: Array, weights: Array, *, floor: float = 1e-6, group: str = "") -> Term:
    """The term of a sum that is divided by a sum of weights, each of what is held here; by `floor` at least."""
    return Term(jnp.sum(values) / floor, jnp.sum(weights) / floor, group=group)


def whole_batch(value: Array, *, group: str = "") -> Term:
    """The term of a scalar computed alike on every device from gathered rows: its share is one part in all devices."""
    return Term(value, jnp.ones_like(value), group=group)


def group_losses(terms: Terms, axis: Axis = None) -> dict[str, Array]:
    """This device's share of the loss of every group; an empty count gives 0, not nan.

    Differentiate the sum of these and `psum` the gradients over `axis`.
    """
    losses: dict[str, Array] = {}
    for term in terms.values():
        count = lax.stop_gradient(_total(term.count, axis))
        share = term.weight * term.sum / jnp.maximum(count, 1)
        losses[term.group] = losses.get(term.group, 0.0) + share
    return losses


def term_metrics(terms: Terms, axis: Axis = None) -> dict[str, tuple[Array, Array]]:
    """`(sum, count)` over all devices of every unweighted term, and of the weighted total as "loss", for the log."""
    metrics = {}
    total = 0.0
    for name, term in terms.items():
        value, count = _total(term.sum, axis), _total(term.count, axis)
        metrics[name] = (value, count)
        total = total + term.weight * value / jnp.maximum(count, 1)
    return {"loss": (total, jnp.ones_like(total)), **metrics}


def gather_rows(x: Array, axis: Axis) -> Array:
    """Rows of the global batch: `[B, ...]` of this device to `[devices * B, ...]`. Differentiable."""
    return x if axis is None else lax.all_gather(x, axis, axis=0, tiled=True)


def over_rows(loss: Callable[..., Array], *rows: Array, where: Array, axis: Axis) -> Array:
    """The values of a loss that compares the rows of a batch with each other, of those held here. For losses of wide rows, as of
    whole maps: for vectors the partitioner does as well.

    Args:
      loss: `(*rows, where=, axis_name=) -> [B]`, as all such losses of `kdjax.losses`.
      rows: `[B, ...]` each.
      where: `[B]` bool.
      axis: the mapped axis. None under `jit`: where a mesh of several devices is in context, as `kdjax.training.Runner` has
        it, and the rows divide among them, each then compares its own rows with all, as under a mapped axis. The
        partitioner left to itself adds up whole batches of features, several times.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if axis is not None or len(mesh.axis_names) != 1 or mesh.size == 1 or len(where) % mesh.size:
        return loss(*rows, where=where, axis_name=axis)
    (name,) = mesh.axis_names
    part = lambda where, *rows: loss(*rows, where=where, axis_name=name)
    return jax.shard_map(part, in_specs=PartitionSpec(name), out_specs=PartitionSpec(name))(where, *rows)


def sum_over_devices(tree, axis: Axis):
    """`psum` of every leaf, or the tree itself where there is no axis."""
    return tree if axis is None else jax.tree.map(lambda x: lax.psum(x, axis), tree)


def _total(x: Array, axis: Axis) -> Array:
    return x if axis is None else lax.psum(x, axis)

"""Comparing all examples of a batch that is spread over devices: by what each device has to know of the others', and no more."""

from collections.abc import Callable

import jax
from jax.sharding import PartitionSpec

from kdjax.types import Array, Context


def across_devices(values: Callable[..., Array], student: Array, teacher: Array, ctx: Context) -> Array:
    """`[B]` values of a loss that compares examples, `values(student, teacher, where=, axis_name=)` of `[B, ...]` features.

    Under jit over a mesh each device compares its own rows with all: the features are gathered once, and their gradient is summed
    and scattered once. Left to itself XLA sums whole matrices of pairs over the devices instead.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if ctx.axis is not None or len(mesh.axis_names) != 1 or mesh.size == 1 or len(student) % mesh.size:
        return values(student, teacher, where=ctx.batch.where, axis_name=ctx.axis)
    (axis,) = mesh.axis_names
    rows = PartitionSpec(axis)

    def part(student, teacher, where):
        return values(student, teacher, where=where, axis_name=axis)

    return jax.shard_map(part, in_specs=rows, out_specs=rows)(student, teacher, ctx.batch.where)

"""Terms of a decoder's logits that are never there at once: a few tokens at a time, from hidden states and the heads' weights.

For vocabularies beyond `MANY` tokens. A step says so by `Context.student_call`; the terms are then those of the whole logits to
rounding, with their gradients: `kdjax.losses.fused_linear_kd`.
"""

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from kdjax import losses
from kdjax.types import Array, Axis, Context, ModelOutput, Network, Term

MANY = 32_768
NO_LABEL = -(2**31)  # none is excused
WEIGHTS = "token_weights"  # the part of a decoder that gives what its last states are multiplied by, [V, D]


def gives_states(network: Network, output: ModelOutput) -> bool:
    """Whether all that logits are made of can be had of a network: tokens `[B, L, 1, D]` behind the last block, and a head.

    Args:
      network: which.
      output: shapes of what it says.
    """
    last = output.features[-1].shape if getattr(output, "features", ()) else ()
    return WEIGHTS in network.parts and len(last) == 4 and last[2] == 1


def divergence_term(ctx: Context, divergence: str, **options: Array | float) -> Term:
    """The term of a divergence of `fused_linear_kd`, over all tokens that count."""
    ours, theirs = _states(ctx.student), _states(ctx.teacher)
    heads = _head(ctx.student_call, ours), _head(ctx.teacher_call, theirs)
    weights = ctx.batch.mask(ours.shape[:2])

    def sums(heads, options, rows, axis_name=None):
        ours, theirs, weights = rows
        found = losses.fused_linear_kd(
            ours, heads[0].T, theirs, heads[1].T, divergence=divergence, weights=weights, axis_name=axis_name, **options
        )
        return found.sum, found.count

    return Term(*_spread(sums, heads, options, (ours, theirs, weights), ctx.axis, by_kinds=divergence != "akl"))


def label_term(ctx: Context, labels: Array) -> Term:
    """The term of the cross-entropy with labels `[B, L]`, over the tokens that have one."""
    ours = _states(ctx.student)
    usable = ctx.batch.mask(ours.shape[:2], labelled=True)

    def sums(heads, options, rows, axis_name=None):
        (head,), (ours, labels, usable) = heads, rows
        # A teacher one wide that says nothing, and counts nothing.
        nothing = jnp.zeros((*ours.shape[:2], 1), ours.dtype), jnp.zeros((1, len(head)), head.dtype)
        found = losses.fused_linear_kd(
            ours, head.T, *nothing, jnp.where(usable, labels, 0), kd_weight=0.0, weights=usable, ignore_index=NO_LABEL,
            axis_name=axis_name, **options,
        )  # fmt: skip
        return found.sum, found.count

    return Term(*_spread(sums, (_head(ctx.student_call, ours),), {}, (ours, labels, usable), ctx.axis))


def _states(output: ModelOutput) -> Array:
    """`[B, L, D]`, behind the last block."""
    return output.features[-1][:, :, 0]


def _head(call, states: Array) -> Array:
    """`[V, D]`, in the type that the network computes in."""
    return call(WEIGHTS).astype(states.dtype)


def _spread(
    sums, heads: tuple[Array, ...], options: dict, rows: tuple[Array, ...], axis: Axis, *, by_kinds: bool = True
) -> tuple[Array, Array]:
    """`sums(heads, options, rows)`, of all rows. Under `jit` over several devices these share it, which the partitioner left to
    itself would not have them do.

    Where the step has fewer tokens than there are kinds, each takes a part of the vocabulary for all tokens, so that states go
    from device to device, and neither a head nor its gradient; else each takes its own rows, as it does without `by_kinds`.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if axis is not None or len(mesh.axis_names) != 1 or mesh.size == 1:
        return sums(heads, options, rows)
    (name,) = mesh.axis_names
    held, whole, (kinds, _) = PartitionSpec(name), PartitionSpec(), heads[0].shape
    if by_kinds and rows[0].shape[0] * rows[0].shape[1] < kinds and kinds % mesh.size == 0:
        part = lambda heads, options, rows: sums(heads, options, rows, axis_name=name)
        return jax.shard_map(part, in_specs=(held, whole, whole), out_specs=whole)(heads, options, rows)
    if len(rows[0]) % mesh.size:
        return sums(heads, options, rows)
    part = lambda heads, options, rows: tuple(x[None] for x in sums(heads, options, rows))
    found = jax.shard_map(part, in_specs=(whole, whole, held), out_specs=held)(heads, options, rows)
    return jnp.sum(found[0]), jnp.sum(found[1])

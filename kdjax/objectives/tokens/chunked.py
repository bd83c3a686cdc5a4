"""Terms of a decoder's logits that are never there at once: a few tokens at a time, from hidden states and the heads' weights.

For vocabularies beyond `MANY` tokens. A step says so by `Context.student_call`; the terms are then those of the whole logits to
rounding, with their gradients: `kdjax.losses.fused_linear_kd`.
"""

from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from kdjax import losses
from kdjax.reduction import sum_over_devices
from kdjax.types import Array, Axis, Context, ModelOutput, Network, Term

MANY = 32_768
AT_ONCE = 1024  # tokens of which a teacher's logits are there
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


def terms_together(
    ctx: Context, divergence: str, weights: tuple[Array | float, Array | float], **options: Array | float
) -> tuple[Term, Term]:
    """`divergence_term` and `label_term` from logits that are made once, where the gradient of their weighted sum is enough.

    Args:
      weights: of the divergence and of the labels, which the terms are going to have.

    Returns:
      Both, with their own sums and counts. All of the gradient flows through the first whose weight is not 0.
    """
    ours, theirs, labels = _states(ctx.student), _states(ctx.teacher), ctx.batch.labels
    heads = _head(ctx.student_call, ours), _head(ctx.teacher_call, theirs)
    masks = [ctx.batch.mask(ours.shape[:2], labelled=labelled) for labelled in (False, True)]
    counts = [jnp.sum(mask, dtype=jnp.promote_types(ours.dtype, jnp.float32)) for mask in masks]
    # What a step's loss takes of each sum, so that they can be added up here.
    shares = [weight / jnp.maximum(x, 1) for weight, x in zip(weights, sum_over_devices(counts, ctx.axis), strict=True)]

    def sums(heads, options, rows, axis_name=None):
        ours, theirs, labels, kept, usable = rows
        options, (kd_weight, ce_weight) = options
        labels = jnp.where(usable, labels.astype(jnp.int32), NO_LABEL)
        found = losses.fused_linear_kd(
            ours, heads[0].T, theirs, heads[1].T, labels, divergence=divergence, weights=kept, kd_weight=kd_weight,
            ce_weight=ce_weight, ignore_index=NO_LABEL, axis_name=axis_name, **options,
        )  # fmt: skip
        return found.sum, found.kd, found.ce

    rows = ours, theirs, labels, *masks
    whole, *parts = _spread(sums, heads, (options, shares), rows, ctx.axis, by_kinds=divergence != "akl")
    value = jax.lax.stop_gradient(whole)
    # 0, with the gradient of the whole; a nan is said by the part that has it.
    gradient, found, left = jnp.where(jnp.isfinite(value), whole - value, 0), [], True
    for part, share, count in zip(parts, shares, counts, strict=True):
        share = jax.lax.stop_gradient(jnp.asarray(share, part.dtype))
        carries = left & (share != 0)
        found.append(Term(part + jnp.where(carries, gradient / jnp.where(share == 0, 1, share), 0), count))
        left = left & ~carries
    return tuple(found)


def kept(teacher: ModelOutput) -> tuple[Array, Array] | None:
    """The `(ids, logprobs)` `[B, L, K]` of the classes that are kept of a teacher, the most likely first; None of any other."""
    taps = getattr(teacher, "taps", {})
    return (taps["topk_ids"], taps["topk_logprobs"]) if "topk_ids" in taps else None


def top_k_term(ctx: Context, k: int | None, missing: Literal["other_bucket", "renormalize"]) -> Term:
    """The term of `kdjax.losses.topk_kl`, over all tokens that count.

    Args:
      ctx: whose teacher gives states, or the most likely tokens alone.
      k: how many of these; None for all that are kept.
      missing: what became of all others.
    """
    ours, known = _states(ctx.student), kept(ctx.teacher)
    weights = ctx.batch.mask(ours.shape[:2])
    heads, rows = (_head(ctx.student_call, ours),), (ours, weights)
    if known is None:
        theirs = _states(ctx.teacher)
        heads, rows = (*heads, _head(ctx.teacher_call, theirs)), (*rows, theirs)
    else:
        rows = (*rows, *(x[..., :k] for x in known))

    def sums(heads, options, rows, axis_name=None):
        ours, weights, *theirs = rows
        topk = tuple(theirs) if known is not None else _most_likely(theirs[0], heads[1], k)
        found = losses.fused_linear_kd(ours, heads[0].T, topk=topk, missing=missing, weights=weights)
        return found.sum, found.count

    return Term(*_spread(sums, heads, {}, rows, ctx.axis, by_kinds=False))


def _most_likely(states: Array, head: Array, k: int) -> tuple[Array, Array]:
    """`topk_signal` of the logits of states `[B, L, D]`, of which some rows are there at a time."""
    flat = jnp.reshape(states, (-1, states.shape[-1]))
    wide = jnp.promote_types(flat.dtype, jnp.float32)

    def signal(row):
        return losses.topk_signal(jnp.matmul(head, row, preferred_element_type=wide), min(k, len(head)))

    found = jax.lax.map(signal, flat, batch_size=min(AT_ONCE, len(flat)))
    return jax.tree.map(lambda x: jnp.reshape(x, (*states.shape[:2], -1)), found)


def label_term(ctx: Context, labels: Array) -> Term:
    """The term of the cross-entropy with labels `[B, L]`, over the tokens that have one."""
    ours = _states(ctx.student)
    usable = ctx.batch.mask(ours.shape[:2], labelled=True)

    def sums(heads, options, rows, axis_name=None):
        (head,), (ours, labels, usable) = heads, rows
        found = losses.fused_linear_kd(
            ours, head.T, labels=jnp.where(usable, labels, 0), divergence=None, weights=usable, ignore_index=NO_LABEL,
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
    sums, heads: tuple[Array, ...], options: Any, rows: tuple[Array, ...], axis: Axis, *, by_kinds: bool = True
) -> tuple[Array, ...]:
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
    return tuple(map(jnp.sum, found))

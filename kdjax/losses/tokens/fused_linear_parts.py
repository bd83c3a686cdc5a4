"""How `fused_linear_kd` works: a scan over chunks of rows that adds up the losses and, alongside, their gradient.

One path for one device and for a vocabulary spread over several: there, sums over the vocabulary go on over the mapped axis.
"""

import functools
from collections.abc import Hashable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from kdjax.losses import logspace
from kdjax.losses.tokens import terms
from kdjax.losses.tokens.topk import topk_kl

Array = jax.Array


class Network(NamedTuple):
    """Hidden states `[..., D]`, head `[D, V]` and bias `[V]` or None."""

    hidden: Array
    head: Array
    bias: Array | None


class Setting(NamedTuple):
    """What is fixed when the program is compiled."""

    divergence: str
    chunk_size: int
    axis_name: Hashable
    at_ends: bool  # the beta of jsd may be 0 or 1
    missing: str = ""  # of a stored top-k, what became of the other tokens


TERMS = {
    "forward_kl": terms.forward,
    "reverse_kl": terms.reverse,
    "symmetric_kl": terms.both,
    "jsd": terms.jsd,
    "skew_fkl": terms.skew_forward,
    "skew_rkl": terms.skew_reverse,
    "tvd": terms.variation,
    "akl": terms.both,  # its share is of each row, found when its probabilities are
}
STORED, NONE = "topk_kl", ""  # whose teacher is no network; of labels alone

# What stands in the rows of weight 0, those that fill up the last chunk among them, which may hold anything.
HARMLESS = {"hidden": 0, "taught": 0, "temperature": 1, "share": 0.5}


# The sums, whose gradient is there before it is asked for


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def sums(setting: Setting, student: Network, rows: dict, fixed: dict) -> tuple[Array, Array, Array]:
    """The weighted sums: of both parts with their factors, of the divergence, of the cross-entropy."""
    return _over_chunks(setting, student, rows, fixed, differentiate=False)[0]


def _sums_and_gradient(setting: Setting, student: Network, rows: dict, fixed: dict):
    sums, gradient = _over_chunks(setting, student, rows, fixed, differentiate=True)
    return sums, (_once(gradient), jax.tree.map(lambda x: jnp.zeros(0, x.dtype), student))


def _scale(setting: Setting, kept, cotangents):
    gradient, like = kept
    return jax.tree.map(lambda g, x: (cotangents[0] * g).astype(x.dtype), gradient, like), None, None


sums.defvjp(_sums_and_gradient, _scale)


@jax.custom_vjp
def _once(gradient):
    return gradient


def _refuse(*_):
    raise NotImplementedError("fused_linear_kd has first derivatives only; for second ones use the losses of logits.")


_once.defvjp(lambda gradient: (gradient, None), _refuse)


def _over_chunks(setting: Setting, student: Network, rows: dict, fixed: dict, *, differentiate: bool):
    """The sums, and the gradient of the first by the student: head and bias as they are added up, or None."""
    number, real = student.hidden.shape[0], rows["weight"].dtype
    size = max(1, min(setting.chunk_size, number))
    chunks = -(-number // size)

    def split(x):
        padding = [(0, chunks * size - number)] + [(0, 0)] * (x.ndim - 1)
        return jnp.reshape(jnp.pad(x, padding), (chunks, size, *x.shape[1:]))

    def zeros_for(x, shape):
        return _varying_on(jnp.zeros(shape, real), _axes(x))

    def add(so_far, chunk):
        counted = chunk["weight"] != 0
        for name, harmless in HARMLESS.items():
            if chunk.get(name) is not None:
                kept = counted[:, None] if chunk[name].ndim == 2 else counted
                chunk[name] = jnp.where(kept, chunk[name], harmless)
        taught = (
            None if setting.divergence in (STORED, NONE) else Network(chunk["taught"], fixed["head"], fixed["bias"])
        )
        at_chunk = student._replace(hidden=chunk["hidden"]), taught
        sums, by_logits = _chunk(setting, *at_chunk, chunk, fixed, differentiate)
        sums = jax.tree.map(jnp.add, so_far[0], sums)
        if not differentiate:
            return (sums, None), None
        gradient = _to_inputs(by_logits, at_chunk[0], setting.axis_name)
        added = jax.tree.map(jnp.add, so_far[1], gradient._replace(hidden=None))
        return (sums, added), gradient.hidden

    sums = (zeros_for(student.hidden, ()),) * 3
    added = jax.tree.map(lambda x: zeros_for(x, x.shape), student._replace(hidden=None)) if differentiate else None
    (sums, added), by_hidden = lax.scan(add, (sums, added), jax.tree.map(split, rows | {"hidden": student.hidden}))
    if not differentiate:
        return sums, None
    return sums, added._replace(hidden=jnp.reshape(by_hidden, (-1, by_hidden.shape[-1]))[:number])


def _chunk(setting: Setting, student: Network, teacher: Network | None, rows: dict, fixed: dict, differentiate: bool):
    """The sums over some rows, and the gradient of the first by the student's logits `[rows, V]`, or None."""
    z_s = _logits(student, rows["weight"].dtype)
    if setting.divergence == NONE:
        kd, by_logits = _varying_on(jnp.zeros((), z_s.dtype), _axes(rows["weight"])), 0
    else:
        kd, by_logits = _heard(setting, z_s, teacher, rows, fixed, differentiate)
    total, ce = fixed["kd"] * kd, jnp.zeros_like(kd)
    if "label" in rows:
        values, slope = logspace.label_value_and_slope(z_s, rows["label"], axis_name=setting.axis_name)
        ce = _weighted(values, rows["labelled"])
        total = total + fixed["ce"] * ce
        if differentiate:
            by_logits = by_logits + (fixed["ce"] * rows["labelled"])[:, None] * slope
    return (total, kd, ce), by_logits


def _heard(setting: Setting, z_s: Array, teacher: Network | None, rows: dict, fixed: dict, differentiate: bool):
    """The sum of the divergence from a teacher, and its gradient by the student's logits, with its factor."""
    if teacher is None:
        return _stored(setting, z_s, rows, fixed, differentiate)
    weight, share = rows["weight"], rows.get("share")
    temperature = jnp.ones_like(weight) if rows.get("temperature") is None else rows["temperature"]
    z_t = _logits(teacher, weight.dtype)
    if setting.divergence == "akl":
        log_s, log_t, kept = terms.log_softmaxes(z_s, z_t, temperature)
        share = 1 - terms.head_share(*(jnp.where(kept, jnp.exp(log_p), 0) for log_p in (log_s, log_t)), share)
    term = terms.jsd_to_the_ends if setting.at_ends else TERMS[setting.divergence]
    values, slope = terms.value_and_slope(
        term, z_s, z_t, temperature, share, axis_name=setting.axis_name, differentiate=differentiate
    )
    return _weighted(values, weight), (fixed["kd"] * weight)[:, None] * slope if differentiate else None


def _stored(setting: Setting, z_s: Array, rows: dict, fixed: dict, differentiate: bool):
    """The same for a teacher of which the most likely tokens are stored."""
    temperature = 1.0 if rows.get("temperature") is None else rows["temperature"]

    def loss(z):
        return jnp.sum(
            topk_kl(z, rows["ids"], rows["logprobs"], rows["weight"], missing=setting.missing, temperature=temperature)
        )

    if not differentiate:
        return loss(z_s), None
    kd, pull = jax.vjp(loss, z_s)
    return kd, fixed["kd"] * pull(jnp.ones_like(kd))[0]


def _weighted(values: Array, weight: Array) -> Array:
    counted = weight != 0
    return jnp.sum(jnp.where(counted, weight * jnp.where(counted, values, 0), 0))


def _logits(network: Network, real) -> Array:
    wide = jnp.promote_types(jnp.result_type(network.hidden, network.head), jnp.float32)
    logits = jnp.matmul(network.hidden, network.head, preferred_element_type=wide).astype(real)
    return logits if network.bias is None else logits + network.bias.astype(real)[None]


def _to_inputs(by_logits: Array, student: Network, axis_name) -> Network:
    """The gradient by hidden states, to be kept for the backward pass, and by head and bias, to be added up."""
    hidden, head, bias = student
    real = by_logits.dtype
    # bfloat16 has the range for it. float16 has not: spread over a vocabulary, a gradient falls below its least number.
    operand = jnp.bfloat16 if jnp.result_type(hidden, head) == jnp.bfloat16 else real
    product = functools.partial(jnp.matmul, preferred_element_type=real)
    rounded = by_logits.astype(operand)
    by_hidden = _whole(product(rounded, head.astype(operand).T), axis_name).astype(operand)
    by_head = product(hidden.astype(operand).T, rounded)
    return Network(by_hidden, by_head, None if bias is None else jnp.sum(by_logits, axis=0))


# Devices


def _whole(x: Array, axis_name) -> Array:
    """The sum over all parts of the vocabulary."""
    return x if axis_name is None else lax.psum(x, axis_name)


def on_the_same_axes(student: Network, rows: dict, fixed: dict, axis_name) -> tuple[Network, dict, dict]:
    """All arrays said to vary over every mapped axis that one of them does, rows but over that of the vocabulary.

    Only where `shard_map` checks: what is alike on all devices then gets its gradient summed over them, as elsewhere.
    """
    axes = frozenset().union(*(_axes(x) for x in jax.tree.leaves((student, rows, fixed))))
    of_rows = axes - set(axis_name if isinstance(axis_name, tuple) else (axis_name,))
    over_rows, over_all = (functools.partial(_varying_on, axes=x) for x in (of_rows, axes))
    rows, factors = jax.tree.map(over_rows, (rows, {name: fixed[name] for name in ("kd", "ce")}))
    student = Network(over_rows(student.hidden), *jax.tree.map(over_all, student[1:]))
    return student, rows, jax.tree.map(over_all, fixed) | factors


def _axes(x: Array) -> frozenset:
    """The mapped axes that `x` is known to vary over; none outside of a `shard_map` that checks."""
    kind = jax.typeof(x)  # which keeps them under another name from one release of JAX to the next
    return getattr(kind, "vma", None) or getattr(getattr(kind, "mat", None), "varying", frozenset())


def _varying_on(x: Array, axes: frozenset) -> Array:
    missing = tuple(sorted(axes - _axes(x)))
    return lax.pcast(x, missing, to="varying") if missing else x

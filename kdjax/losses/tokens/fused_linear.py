r"""Distillation from hidden states: the logits of two heads a few rows at a time, never all at once."""

import difflib
import functools
import numbers
from collections.abc import Hashable
from typing import Literal, NamedTuple

import chex
import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from kdjax.losses import checks
from kdjax.losses.tokens.fused_linear_parts import NONE, STORED, TERMS, Network, Setting, on_the_same_axes, sums

__all__ = ["FusedLinearKD", "fused_linear_kd"]

Array = jax.Array


class FusedLinearKD(NamedTuple):
    """What `fused_linear_kd` returns: scalars, float32 or wider. The mean over rows is `sum / count`.

    Attributes:
      sum: of the weighted loss, both parts together. The only one with a gradient.
      count: sum of the row weights.
      kd: sum of the weighted divergences alone, without `kd_weight`; for the log.
      ce: sum of the weighted cross-entropies alone, without `ce_weight`; for the log.
      ce_count: sum of the weights of the rows with a label; their mean is `ce / ce_count`.
    """

    sum: Array
    count: Array
    kd: Array
    ce: Array
    ce_count: Array


def fused_linear_kd(
    student_hidden: ArrayLike,
    student_head: ArrayLike,
    teacher_hidden: ArrayLike | None = None,
    teacher_head: ArrayLike | None = None,
    labels: ArrayLike | None = None,
    *,
    divergence: str | None = "forward_kl",
    topk: tuple[ArrayLike, ArrayLike] | None = None,
    missing: Literal["other_bucket", "renormalize"] = "other_bucket",
    temperature: ArrayLike = 1.0,
    alpha: ArrayLike | None = None,
    beta: ArrayLike = 0.5,
    head_mass: ArrayLike = 0.5,
    kd_weight: ArrayLike = 1.0,
    ce_weight: ArrayLike = 1.0,
    weights: ArrayLike | None = None,
    student_bias: ArrayLike | None = None,
    teacher_bias: ArrayLike | None = None,
    ignore_index: int = -100,
    chunk_size: int = 1024,
    axis_name: Hashable = None,
) -> FusedLinearKD:
    r"""Distillation of a language model's head, and cross-entropy with labels, without an array `[..., V]` of logits.

    $$\sum_i w_i \left( \lambda_{KD} \, D(p_t^i, p_s^i) + \lambda_{CE} \, [y_i \text{ given}] \, (-\log p_s^i(y_i))
    \right), \qquad z^i = h^i W + b$$

    with a divergence of `kdjax.losses` at a temperature (no factor `T^2`) and the cross-entropy at temperature 1: to
    rounding the values and gradients of those losses on `hidden @ head + bias`. Rows are taken `chunk_size` at a time;
    under differentiation the gradients by the student are computed in the same pass, from logits that are there
    anyway, and the backward pass only scales them. Without it no gradient is computed.

    Memory: beside arguments and gradients, some arrays `[chunk_size, V]` and one head's gradient in float32, however
    many rows there are; what is kept by row are hidden states and their gradient.

    Args:
      student_hidden: `[..., D]`, usually `[B, L, D]`: what the head is applied to.
      student_head: `[D, V]`; give a tied embedding `[V, D]` transposed.
      teacher_hidden: `[..., D']`, of the same leading axes; a constant. None, as the head, where `topk` is given.
      teacher_head: `[D', V]`, of the same vocabulary; a constant.
      labels: `[...]` integer tokens, or None for no cross-entropy. A label outside 0 to V - 1 that is
        not `ignore_index` makes `sum` and `ce` nan and sends nothing back, as in `cross_entropy`.
      divergence: "forward_kl", "reverse_kl", "symmetric_kl", "jsd", "skew_fkl", "skew_rkl", "tvd" or "akl"; None for the
        cross-entropy alone, without a teacher.
      topk: `(ids, logprobs)`, each `[..., k]`, the most likely tokens of a teacher as `topk_signal` gives them, in place of its
        states and head; the divergence is then that of `topk_kl`.
      missing: of `topk`, what became of all other tokens, see `topk_kl`.
      temperature: of the divergence: a number, a traced scalar, or an array that broadcasts to the leading axes.
      alpha: that of the skew divergences, 0.1 if not given, and of `symmetric_kl`, 0.9; likewise.
      beta: that of `jsd`; likewise.
      head_mass: that of `akl`; likewise.
      kd_weight: factor of the divergence, a number or traced scalar.
      ce_weight: factor of the cross-entropy; likewise. Both parts are divided by one count if `sum / count` is; to
        average the cross-entropy over the rows with a label alone, multiply its factor by `count` over their number.
      weights: `[...]`, bool or numbers that weigh the rows, in both parts; None counts all. Where it is 0 hidden
        states and labels may hold anything, nan included, and nothing is sent back.
      student_bias, teacher_bias: `[V]`, or None. A token at -inf is excluded, as in the divergences.
      ignore_index: the label of rows that have none: they add a divergence, but no cross-entropy.
      chunk_size: rows at a time. Memory grows with it; how many are fastest depends on the device.
      axis_name: the mapped axis under pmap or shard_map over which the vocabulary is spread in order: heads and biases
        are this device's columns, `[D, V / devices]`, and all else is alike on all devices. Labels count from the
        beginning of the whole vocabulary. Not for "akl", which sorts whole rows, nor `topk`. See Devices.

    Returns:
      A `FusedLinearKD`, in nats. Where rows are spread over devices, all of it is of this device's rows.

    Raises:
      TypeError: an array is not floating point, or labels not integers.
      ValueError: shapes do not fit, a hyperparameter is out of range, or `divergence` is not one of the names.
      NotImplementedError: it is differentiated twice.

    Gradients: by the student's hidden states, head and bias, in their types; the head's is added up in float32. All
    other arguments are constants, temperature and weights included. bfloat16 is multiplied into float32 logits, whose
    gradient is rounded to bfloat16 for the products with hidden states and head.

    Devices: a head whose columns are spread under jit needs no `axis_name`. Rows spread under jit do not stay so: every
    device then computes all of them. Call this in a `shard_map` over the rows, and sum over its axis there. With
    `axis_name`, take the gradient inside the mapped function, or outside of a `shard_map` that checks what varies
    (`check_vma`, its default). The sums are those of the whole vocabulary and alike on its devices; so is the gradient
    by the hidden states, which is not to be summed over this axis again. That by the head is of this device's columns.

    Source: the chunks with their gradients computed alongside are the idea of Liger's fused linear kernels; that a loss
    over a vocabulary needs no logits in memory, that of Cut Cross-Entropy (ICLR 2025). Here it is a `lax.scan`.

    >>> hidden, head = jnp.array([[1.0, 0.0], [0.0, 1.0]]), jnp.array([[1.0, 0.0], [0.0, 2.0]])
    >>> loss = fused_linear_kd(hidden, head, hidden, 0 * head, jnp.array([0, -100]))
    >>> print(*(f"{value:.4f}" for value in loss))
    0.8672 2.0000 0.5539 0.3133 1.0000
    """
    if divergence is not None and divergence not in TERMS:
        nearest = difflib.get_close_matches(str(divergence), TERMS, n=1, cutoff=0)[0]
        raise ValueError(
            f"divergence is {divergence!r}; did you mean {nearest!r}? It is one of {list(TERMS)}, or None."
        )
    taught = not (teacher_hidden is None and teacher_head is None and teacher_bias is None)
    if topk is not None and taught:
        raise ValueError("topk is a teacher by itself; leave teacher_hidden, teacher_head and teacher_bias out.")
    if divergence is None:
        if taught or topk is not None or labels is None:
            raise ValueError("divergence is None: give labels, and no teacher.")
        divergence = NONE
    elif topk is not None:
        divergence = STORED
    elif teacher_hidden is None or teacher_head is None:
        raise ValueError("There is no teacher; give teacher_hidden and teacher_head, or topk.")
    if axis_name is not None and divergence in ("akl", STORED):
        raise ValueError(f"{divergence} is of whole rows of the vocabulary, which is not spread over {axis_name!r}; leave "
                         "axis_name out, and spread the rows.")  # fmt: skip
    if not isinstance(chunk_size, numbers.Integral) or chunk_size < 1:
        raise ValueError(f"chunk_size is {chunk_size!r}; give the rows to take at a time, a whole number from 1.")
    student = _network("student", student_hidden, student_head, student_bias)
    leading = student.hidden.shape[:-1]
    if divergence == NONE:
        rows, fixed = {}, {}
    elif topk is None:
        teacher = lax.stop_gradient(_network("teacher", teacher_hidden, teacher_head, teacher_bias))
        _same_tokens(teacher, student)
        rows, fixed = {"taught": teacher.hidden}, {"head": teacher.head, "bias": teacher.bias}
    else:
        rows, fixed = _stored(*topk, leading, missing), {}
    real = jnp.result_type(jnp.float32, *(x for x in jax.tree.leaves((student, rows, fixed)) if not _counts(x)))
    logits = jax.ShapeDtypeStruct((*leading, student.head.shape[1]), real)
    weights = _row_weights(weights, leading, real)
    softened = not (isinstance(temperature, numbers.Real) and temperature == 1)
    temperature = checks.softening(temperature, logits)
    rows |= {"weight": weights, "temperature": temperature if softened else None}
    at_ends = False
    if divergence == "jsd":
        limits = jnp.finfo(real)
        at_ends = not (isinstance(beta, numbers.Real) and limits.tiny <= beta <= 1 - limits.eps)
        rows["share"] = checks.per_example(beta, logits, "beta", above=0, below=1)
    elif divergence in ("skew_fkl", "skew_rkl", "symmetric_kl"):
        usual = 0.9 if divergence == "symmetric_kl" else 0.1
        rows["share"] = checks.per_example(usual if alpha is None else alpha, logits, "alpha", above=0, below=1)
    elif divergence == "akl":
        rows["share"] = checks.per_example(head_mass, logits, "head_mass", above=0, below=1)
    labelled = jnp.zeros(leading, real)
    if labels is not None:
        rows["label"] = checks.class_indices(labels, logits, "student_hidden")
        rows["labelled"] = labelled = jnp.where(rows["label"] == ignore_index, 0, weights)
    for name, factor in ("kd_weight", kd_weight), ("ce_weight", ce_weight):
        if jnp.ndim(factor):
            raise ValueError(f"{name} has shape {jnp.shape(factor)}; give a number here, and one a row in weights.")
    fixed |= {"kd": jnp.asarray(kd_weight, real), "ce": jnp.asarray(ce_weight, real)}
    flat = functools.partial(jax.tree.map, lambda x: jnp.reshape(x, (-1, *x.shape[len(leading) :])))
    student, rows = student._replace(hidden=flat(student.hidden)), flat(rows)
    setting = Setting(divergence, chunk_size, axis_name, at_ends, missing)
    total, kd, ce = sums(setting, *on_the_same_axes(student, *lax.stop_gradient((rows, fixed)), axis_name))
    of_rows = lax.stop_gradient((jnp.sum(weights), kd, ce, jnp.sum(labelled)))
    return FusedLinearKD(total, *of_rows)


def _network(name: str, hidden, head, bias) -> Network:
    """The arrays of one network, checked but as they came."""
    found = Network(jnp.asarray(hidden), jnp.asarray(head), None if bias is None else jnp.asarray(bias))
    for part, array in found._asdict().items():
        if array is not None:
            message = f"{name}_{part} must be floating point; convert it first"
            chex.assert_type(array, float, custom_message=message, exception_type=TypeError)
    given = f"{name}_hidden has shape {found.hidden.shape}, {name}_head {found.head.shape}"
    if found.hidden.ndim < 1 or found.head.ndim != 2 or found.head.shape[0] != found.hidden.shape[-1]:
        raise ValueError(f"{given}: give [..., D] and [D, V]; an embedding [V, D] must be transposed.")
    if found.head.shape[1] < 1:
        raise ValueError(f"{given}: the head must have at least one column, one a token of the vocabulary.")
    if bias is not None and found.bias.shape != found.head.shape[1:]:
        raise ValueError(
            f"{name}_bias has shape {found.bias.shape}, {name}_head {found.head.shape}: give one number for each column."
        )
    return found


def _stored(ids, logprobs, leading: tuple[int, ...], missing: str) -> dict[str, Array]:
    """The rows of a stored teacher, checked."""
    ids, logprobs = jnp.asarray(ids), lax.stop_gradient(jnp.asarray(logprobs))
    chex.assert_type(ids, int, custom_message="topk's ids must be integer token indices", exception_type=TypeError)
    chex.assert_type(logprobs, float, custom_message="topk's logprobs must be floating point", exception_type=TypeError)
    if ids.shape != logprobs.shape or ids.shape[:-1] != leading:
        raise ValueError(f"topk has ids {ids.shape} and logprobs {logprobs.shape}, student_hidden leading axes {leading}: give "
                         "[..., k] of the same tokens.")  # fmt: skip
    if missing not in ("other_bucket", "renormalize"):
        raise ValueError(f'missing is {missing!r}; use "other_bucket" or "renormalize".')
    return {"ids": ids, "logprobs": logprobs}


def _counts(x: Array) -> bool:
    return jnp.issubdtype(x.dtype, jnp.integer)


def _same_tokens(teacher: Network, student: Network) -> None:
    theirs, ours = teacher.hidden.shape[:-1], student.hidden.shape[:-1]
    if theirs != ours:
        raise ValueError(
            f"teacher_hidden has leading axes {theirs}, student_hidden {ours}: give the hidden states of the same "
            "tokens, in the same order."
        )
    theirs, ours = teacher.head.shape[1], student.head.shape[1]
    if theirs != ours:
        raise ValueError(
            f"teacher_head has {theirs} columns, student_head {ours}: select those of the tokens that both know first, "
            "in one order."
        )


def _row_weights(weights, leading: tuple[int, ...], real) -> Array:
    weights = jnp.ones(leading, real) if weights is None else jnp.asarray(weights)
    if weights.shape != leading:
        raise ValueError(
            f"weights has shape {weights.shape}, student_hidden leading axes {leading}: give one weight a row."
        )
    return weights.astype(real)

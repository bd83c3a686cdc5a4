r"""A teacher of which only the most likely classes are known."""

from typing import Literal

import chex
import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from kdjax.losses import checks, logspace

__all__ = ["topk_kl", "topk_signal", "topk_teacher"]

Array = jax.Array

# The bucket of all other tokens keeps this much probability at least: its logarithm exists then.
LEAST_OTHER = 1e-8
# Stands in for -inf where the vocabulary is summed up: no probability either, and no nan in any gradient.
LOWEST = -1e30


def topk_signal(teacher_logits: ArrayLike, k: int) -> tuple[Array, Array]:
    """What to store of a teacher for `topk_kl`: its `k` most likely tokens and their log-probabilities.

    Args:
      teacher_logits: `[..., V]`.
      k: how many tokens, 1 to V.

    Returns:
      `(ids, logprobs)`, each `[..., k]`, the most likely first and of tokens that tie the lower index; int32, and
      normalised over the whole vocabulary. A token at -inf is padding: id -1, log-probability -inf.

    Raises:
      TypeError: logits are not floating point.
      ValueError: `k` is not from 1 to V.

    >>> ids, logprobs = topk_signal(jnp.log(jnp.array([0.2, 0.7, 0.1])), 2)
    >>> print(ids, [f"{p:.1f}" for p in jnp.exp(logprobs)])
    [1 0] ['0.7', '0.2']
    """
    teacher = lax.stop_gradient(checks.class_scores(teacher_logits, "teacher_logits"))
    if not 1 <= k <= teacher.shape[-1]:
        raise ValueError(f"k is {k}; it must be from 1 to the vocabulary's {teacher.shape[-1]} tokens.")
    # A sort, because for `lax.top_k` the compiler gathers a batch that is spread over devices.
    places = lax.broadcasted_iota(jnp.int32, teacher.shape, teacher.ndim - 1)
    falling, ids = lax.sort((-teacher, places), num_keys=1, is_stable=True)
    values, ids = -falling[..., :k], ids[..., :k]
    top, log_total = _log_normalizer(teacher, jnp.ones(teacher.shape[:-1], teacher.dtype))
    padding = values == -jnp.inf
    logprobs = jnp.where(padding, 0, values) - top[..., None] - log_total[..., None]
    return jnp.where(padding, -1, ids), jnp.where(padding, -jnp.inf, logprobs)


def topk_kl(
    student_logits: ArrayLike,
    ids: ArrayLike,
    logprobs: ArrayLike,
    mask: ArrayLike | None = None,
    *,
    missing: Literal["other_bucket", "renormalize"] = "other_bucket",
    temperature: ArrayLike = 1.0,
) -> Array:
    r"""Forward KL to a teacher of which only the `k` most likely tokens are stored.

    $$\sum_{i \le k} p_t(i) \left( \log p_t(i) - \log p_s(i) \right) \; \left[ + \; r_t (\log r_t - \log r_s) \right]$$

    The student's `p_s` always comes from its softmax over the whole vocabulary: normalising it over the stored tokens
    would leave all others without a gradient. For the teacher, `missing` says what became of the rest:

    - "other_bucket": all other tokens are one outcome more, with $r = 1 - \sum_i p(i)$ on both sides, at least 1e-8
      (below, a student's bucket is no longer pulled up).
    - "renormalize": they have probability 0, and the `k` probabilities are made to sum to 1.

    Args:
      student_logits: `[..., V]`. A token at -inf adds nothing.
      ids: `[..., k]` integers, each token once; a negative one is padding and ignored.
      logprobs: `[..., k]` log-probabilities of those tokens under the teacher at temperature 1, see `topk_signal`;
        rounding in storage may let them sum to a little more than 1. Raw logits are only right with "renormalize".
      mask: `[...]`, bool or numbers that weigh the positions; None counts all. Where it is 0 the logits and stored
        values may hold anything, nan included.
      missing: "other_bucket" or "renormalize".
      temperature: a number, a traced scalar, or an array that broadcasts to the leading axes. The stored probabilities
        and what is left over are raised to `1 / T` and normalised: exact only where nothing is missing.

    Returns:
      `[...]` in nats, weighed by the mask and 0 where it is; no factor `T^2`. Divide their sum by the count of tokens
      of the whole batch. A position with an id of V or more is nan and sends nothing back. No second array of the size
      of the logits is made: they are summed up, and read at `ids`.

    Raises:
      TypeError: logits or log-probabilities are not floating point, or ids not integers.
      ValueError: shapes do not fit, `missing` is neither, or `temperature` is not above 0 or does not broadcast.

    Source: the released code of DistillKit, whose two policies these are; its trainer multiplies by `T^2`.

    >>> student = jnp.zeros((1, 4))
    >>> ids, logprobs = topk_signal(jnp.log(jnp.array([[0.5, 0.3, 0.1, 0.1]])), 2)
    >>> print(*(f"{topk_kl(student, ids, logprobs, missing=m)[0]:.4f}" for m in ("other_bucket", "renormalize")))
    0.2180 0.7247
    """
    if missing not in ("other_bucket", "renormalize"):
        raise ValueError(f'missing is {missing!r}; use "other_bucket" or "renormalize".')
    student = checks.class_scores(student_logits, "student_logits")
    ids, logprobs = jnp.asarray(ids), lax.stop_gradient(checks.floating(logprobs, "logprobs"))
    chex.assert_type(ids, int, custom_message="ids must be integer token indices", exception_type=TypeError)
    if ids.shape != logprobs.shape or ids.shape[:-1] != student.shape[:-1]:
        raise ValueError(
            f"ids has shape {ids.shape}, logprobs {logprobs.shape} and student_logits {student.shape}: give [..., k], "
            "[..., k] and [..., V] of the same positions."
        )
    temperature = checks.softening(temperature, student)
    weights = checks.token_weights(mask, student)
    counted = weights != 0
    vocabulary = student.shape[-1]
    stored = counted[..., None] & (ids >= 0) & (logprobs != -jnp.inf)
    known = stored & (ids < vocabulary)

    # Read from the logits as they came, so that reading them makes no promoted copy.
    picked = jnp.take_along_axis(jnp.asarray(student_logits), jnp.where(known, ids, 0), axis=-1).astype(student.dtype)
    shared = known & (picked != -jnp.inf)
    top, log_total = _log_normalizer(student, temperature, None if mask is None else counted)
    shifted = (jnp.where(shared, picked, 0) - top[..., None]) / temperature[..., None]
    log_s = jnp.where(shared, jnp.maximum(shifted, LOWEST) - log_total[..., None], 0)

    logprobs = jnp.where(known, logprobs, 0)
    if missing == "renormalize":
        log_t = logspace.log_softmax(logprobs, temperature, where=known)
        bucket = 0
    else:
        left = 1 - jnp.sum(jnp.where(known, jnp.exp(logprobs), 0), axis=-1, keepdims=True)
        outcomes = jnp.concatenate([logprobs, jnp.log(jnp.where(left > 0, left, 1))], axis=-1)
        log_t = logspace.log_softmax(outcomes, temperature, where=jnp.concatenate([known, left > 0], axis=-1))
        rest_t = jnp.exp(log_t[..., -1])
        log_t = log_t[..., :-1]
        rest_s = 1 - jnp.sum(jnp.where(shared, jnp.exp(log_s), 0), axis=-1)
        rest_t, rest_s = (jnp.clip(rest, LEAST_OTHER, 1 - LEAST_OTHER) for rest in (rest_t, rest_s))
        bucket = rest_t * (jnp.log(rest_t) - jnp.log(rest_s))
    log_t = jnp.where(shared, jnp.maximum(log_t, LOWEST), 0)
    values = jnp.sum(jnp.where(shared, jnp.exp(log_t) * (log_t - log_s), 0), axis=-1) + bucket
    values = jnp.where(counted, weights * values, 0)
    return jnp.where(jnp.any(stored & ~known, axis=-1), jnp.nan, values)


def _log_normalizer(logits: Array, temperature: Array, counted: Array | None = None) -> tuple[Array, Array]:
    """`(top, log sum exp((logits - top) / temperature))`, each `[...]`, of rows that are `counted`.

    Few operations, each used once, so that they melt into the two reductions without a copy of the logits.
    """
    top = jnp.maximum(jnp.max(lax.stop_gradient(logits), axis=-1), LOWEST)
    shifted = jnp.maximum(logits - top[..., None], LOWEST)
    if counted is not None:
        top, shifted = jnp.where(counted, top, 0), jnp.where(counted[..., None], shifted, 0)
    total = jnp.sum(jnp.exp(shifted / temperature[..., None]), axis=-1)
    return top, jnp.log(jnp.where(total == 0, 1, total))


def topk_teacher(student_logits: ArrayLike, ids: ArrayLike, logprobs: ArrayLike) -> Array:
    r"""A teacher of which only the top classes are known, made whole for any loss of logits.

    The classes that are not known share the rest of the probability as they share it in the student,

    $$\log q_c = \log p_c \;(c \in \text{top}),\qquad
    \log q_c = \log\Big(1 - \sum_{\text{top}} p\Big) + \log\frac{p^s_c}{\sum_{\notin\text{top}} p^s}\;(c \notin \text{top}),$$

    so that at temperature 1 they do not pull at each other, only together: the gradient of `kd` is that of `topk_kl` with
    one bucket for the rest. At other temperatures what is softened is this distribution.

    Args:
      student_logits: `[..., C]`; a constant here.
      ids: `[..., k]` integers, each class once; a negative one is padding and ignored, as is a log-probability of -inf.
      logprobs: `[..., k]` their log-probabilities, normalised over all classes.

    Returns:
      `[..., C]` log-probabilities, without gradient. A row with an id of C or more is nan.

    Raises:
      TypeError: student_logits or logprobs are not floating point, or ids not integers.
      ValueError: shapes do not fit.

    >>> student, teacher = jnp.log(jnp.array([0.1, 0.1, 0.6, 0.2])), jnp.log(jnp.array([0.7, 0.2]))
    >>> print(*(f"{p:.3f}" for p in jnp.exp(topk_teacher(student, jnp.array([0, 1]), teacher))))
    0.700 0.200 0.075 0.025
    """
    student = lax.stop_gradient(checks.class_scores(student_logits, "student_logits"))
    ids, logprobs = jnp.asarray(ids), lax.stop_gradient(checks.floating(logprobs, "logprobs"))
    chex.assert_type(ids, int, custom_message="ids must be integer class indices", exception_type=TypeError)
    if logprobs.shape != ids.shape or ids.shape[:-1] != student.shape[:-1]:
        raise ValueError(
            f"ids has shape {ids.shape}, logprobs {logprobs.shape}, student_logits {student.shape}: give k classes and their "
            "log-probabilities for each row of logits."
        )
    classes = student.shape[-1]
    stored = (ids >= 0) & (logprobs != -jnp.inf)
    unknown = jnp.full(student.shape, jnp.nan, student.dtype)
    # What is written beyond the last class is dropped.
    known = jnp.put_along_axis(
        unknown, jnp.where(stored, ids, classes), logprobs.astype(student.dtype), axis=-1, inplace=False
    )
    top = ~jnp.isnan(known)
    tail = jax.nn.log_softmax(jnp.where(top, LOWEST, student), axis=-1)
    total = logspace.log_sum_exp(logprobs, where=stored)
    rest = jnp.log(jnp.maximum(-jnp.expm1(total), LEAST_OTHER))
    whole = jnp.where(top, known, rest[..., None].astype(student.dtype) + tail)
    return jnp.where(jnp.any(stored & (ids >= classes), axis=-1, keepdims=True), jnp.nan, whole)

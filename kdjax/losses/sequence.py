r"""Losses of token sequences: a masked mean over tokens, a teacher that moves, a teacher of few or of other tokens."""

import difflib
from typing import Literal, NamedTuple

import chex
import jax
import jax.numpy as jnp
from jax import lax

from kdjax.losses import checks, logspace
from kdjax.losses.divergence import akl, forward_kl, jsd, reverse_kl, skew_fkl, skew_rkl, symmetric_kl, tvd

Array = jax.Array

DIVERGENCES = {
    loss.__name__: loss for loss in (forward_kl, reverse_kl, symmetric_kl, skew_fkl, skew_rkl, jsd, tvd, akl)
}
# The bucket of all other tokens keeps this much probability at least: its logarithm exists then.
LEAST_OTHER = 1e-8
# Stands in for -inf where the vocabulary is summed up: no probability either, and no nan in any gradient.
LOWEST = -1e30


def lm_kd(
    student_logits,
    teacher_logits,
    mask=None,
    *,
    divergence: str = "forward_kl",
    alpha=None,
    beta=0.5,
    temperature=1.0,
    num_tokens=None,
) -> Array:
    r"""Distillation of a language model: the mean over the tokens that count of a divergence of `kdjax.losses`.

    $$\frac{\sum_i m_i \, D(p_t^i, p_s^i)}{\max(\sum_i m_i, 1)}$$

    Args:
      student_logits: `[..., V]`, usually `[B, L, V]`.
      teacher_logits: `[..., V]`, a constant. A token at -inf in either adds nothing.
      mask: `[...]`, bool or numbers that weigh the positions; None counts all. Where it is 0 both logits may hold
        anything, nan included, and nothing is sent back.
      divergence: "forward_kl", "reverse_kl", "symmetric_kl", "skew_fkl", "skew_rkl", "jsd", "tvd" or "akl".
      alpha: that of the skew divergences and of `symmetric_kl`; None for their own default, 0.1 and 0.9.
      beta: that of `jsd`.
      temperature: a number, a traced scalar, or an array that broadcasts to the leading axes. No factor `T^2`.
      num_tokens: what the sum is divided by, at least 1; None for the sum of the mask. Where the batch is spread over
        devices or over accumulated steps, give the count of the whole batch, and add the results up. No gradient goes
        into it.

    Returns:
      A scalar, in nats but for `tvd`. An empty mask gives 0, with a gradient of 0.

    Raises:
      TypeError: logits are not floating point.
      ValueError: shapes do not fit, a hyperparameter is out of range, or `divergence` is not one of the names.

    Sources: see the divergences. Released codes log the cross-entropy form of the forward and skew forward KL, larger
    by the teacher's mean entropy; the gradient is the same.

    >>> student, teacher = jnp.array([[[1.0, 0.0], [jnp.nan, 0.0]]]), jnp.zeros((1, 2, 2))
    >>> print(f"{lm_kd(student, teacher, jnp.array([[True, False]])):.4f}")
    0.1201
    """
    if divergence not in DIVERGENCES:
        nearest = difflib.get_close_matches(str(divergence), DIVERGENCES, n=1, cutoff=0)[0]
        raise ValueError(f"divergence is {divergence!r}; did you mean {nearest!r}? It is one of {list(DIVERGENCES)}.")
    student, teacher = checks.logits_pair(student_logits, teacher_logits)
    weights = _token_weights(mask, student)
    counted = (weights != 0)[..., None]
    student, teacher = jnp.where(counted, student, 0), jnp.where(counted, teacher, 0)
    hyper = {"beta": beta} if divergence == "jsd" else {}
    if alpha is not None and divergence in ("skew_fkl", "skew_rkl", "symmetric_kl"):
        hyper = {"alpha": alpha}
    values = DIVERGENCES[divergence](student, teacher, temperature=temperature, **hyper)
    count = lax.stop_gradient(jnp.sum(weights) if num_tokens is None else jnp.asarray(num_tokens, values.dtype))
    if count.ndim:
        raise ValueError(f"num_tokens has shape {count.shape}; give one count, that of the whole batch.")
    return jnp.sum(weights * values) / jnp.maximum(count, 1)


def taid_target(student_logits, teacher_logits, t) -> Array:
    r"""The distribution that TAID aims at: between the student's own and the teacher's, interpolated as logits.

    $$q = \mathrm{softmax}\left( (1 - t) \, z_s + t \, z_t \right)$$

    Args:
      student_logits: `[..., V]`.
      teacher_logits: `[..., V]`. A token at -inf in either has no probability, at any `t`.
      t: 0 (the student) to 1 (the teacher); a number, a traced scalar or one a token.

    Returns:
      `[..., V]` probabilities, a constant to the gradient.

    Raises:
      TypeError: logits are not floating point.
      ValueError: vocabularies or leading axes differ, or `t` is out of range or does not broadcast.

    Paper: see `taid`.

    >>> student, teacher = jnp.array([0.0, 2.0]), jnp.array([2.0, 0.0])
    >>> print(taid_target(student, teacher, 0.5))
    [0.5 0.5]
    """
    student, teacher = checks.logits_pair(student_logits, teacher_logits)
    share = checks.per_example(t, student, "t", above=0, below=1)[..., None]
    kept = (student != -jnp.inf) & (teacher != -jnp.inf)
    student, teacher = jnp.where(kept, student, 0), jnp.where(kept, teacher, 0)
    mixed = (1 - share) * student + share * teacher
    return lax.stop_gradient(jnp.exp(logspace.log_softmax(mixed, where=kept)))


def taid(student_logits, teacher_logits, *, t) -> Array:
    r"""Temporally adaptive interpolated distillation: pulls towards a target that sets out from the student itself.

    $$-\sum_v q(v) \log p_s(v), \qquad q = \mathrm{softmax}\left( (1 - t) \, z_s + t \, z_t \right)$$

    with no gradient into `q`; `t` grows over the training, see `taid_update`. At `t = 1` this is the forward KL in its
    cross-entropy form, at `t = 0` the student's entropy, without a gradient.

    Args:
      student_logits: `[..., V]`.
      teacher_logits: `[..., V]`, a constant. A token at -inf in either adds nothing.
      t: 0 to 1; a number, a traced scalar or one a token.

    Returns:
      `[...]` in nats. The published loss is their mean over the tokens that count.

    Raises:
      TypeError: logits are not floating point.
      ValueError: vocabularies or leading axes differ, or `t` is out of range or does not broadcast.

    Paper: Shing, Misaki, Bao, Yokoi, Akiba, "TAID: Temporally Adaptive Interpolated Distillation for Efficient Knowledge
    Transfer in Language Models", ICLR 2025, arXiv 2501.16937.

    >>> student, teacher = jnp.array([[0.0, 2.0]]), jnp.array([[2.0, 0.0]])
    >>> print(f"{taid(student, teacher, t=0.5)[0]:.4f}")
    1.1269
    """
    target = taid_target(student_logits, teacher_logits, t)
    log_s = logspace.log_softmax(checks.class_scores(student_logits, "student_logits"))
    return logspace.cross_entropy(target, log_s)


class TAIDState(NamedTuple):
    """What `taid_update` keeps between steps: float32 scalars and a bool.

    Attributes:
      t: the share of the teacher, for the next step.
      momentum: running mean of the loss's relative improvement.
      previous_loss: the loss of the last step.
      started: whether there has been one.
    """

    t: Array
    momentum: Array
    previous_loss: Array
    started: Array


def taid_init(t_start: float = 0.4) -> TAIDState:
    """The state before the first step.

    Args:
      t_start: the teacher's first share, 0 to 1.

    Returns:
      A `TAIDState` of arrays, the same tree as `taid_update` returns.

    Raises:
      ValueError: `t_start` is not from 0 to 1.

    >>> state = taid_init()
    >>> print(f"{state.t:.1f} {state.started}")
    0.4 False
    """
    if not 0 <= t_start <= 1:
        raise ValueError(f"t_start is {t_start}; it must be from 0 to 1.")
    nothing = jnp.zeros((), jnp.float32)
    return TAIDState(jnp.asarray(t_start, jnp.float32), nothing, nothing, jnp.asarray(False))


def taid_update(state: TAIDState, loss, step, total, *, t_start=0.4, t_end=1.0, alpha=5e-4, beta=0.99) -> TAIDState:
    r"""Moves TAID's target on: at least in step with the training, and faster while the loss falls.

    $$\delta = \frac{\ell_{prev} - \ell}{\ell_{prev} + 10^{-15}}, \quad m \leftarrow \beta m + (1 - \beta) \delta, \quad
    t \leftarrow \min\left( t_{end}, \max\left( t_{lin}, t + \alpha \, \sigma(m) (1 - t) \right) \right)$$

    with $t_{lin} = t_{start} + (t_{end} - t_{start}) \, step / total$. The first call only records the loss.

    Args:
      state: from `taid_init` or the last call.
      loss: the scalar that this step minimised with `state.t`. Give the mean over all devices and accumulated batches,
        or each of them moves on by itself. A loss that is not finite changes nothing.
      step: the optimizer's step, from 0.
      total: steps of the whole training.
      t_start, t_end: the teacher's share at either end of the training.
      alpha: the most that one step adds of what is missing to 1, beside the schedule.
      beta: how slowly the momentum forgets.

    Returns:
      The next `TAIDState`. Pure, and traced values are fine throughout.

    Raises:
      ValueError: `loss` is not a scalar.

    Paper: Shing et al., ICLR 2025, arXiv 2501.16937; as in the released code.

    >>> state = taid_update(taid_init(), 2.0, step=0, total=10)
    >>> state = taid_update(state, 1.0, step=1, total=10)
    >>> print(f"{state.t:.2f} {state.momentum:.3f}")
    0.46 0.005
    """
    loss = lax.stop_gradient(jnp.asarray(loss, state.t.dtype))
    if loss.ndim:
        raise ValueError(f"loss has shape {loss.shape}; give its mean over the tokens of the whole batch.")
    change = (state.previous_loss - loss) / (state.previous_loss + 1e-15)
    momentum = beta * state.momentum + (1 - beta) * change
    scheduled = t_start + (t_end - t_start) * (step / total)
    ahead = state.t + alpha * jax.nn.sigmoid(momentum) * (1 - state.t)
    moved = TAIDState(jnp.minimum(t_end, jnp.maximum(scheduled, ahead)), momentum, loss, state.started)
    recorded = state._replace(previous_loss=loss, started=jnp.ones_like(state.started))
    following = jax.tree.map(lambda a, b: jnp.where(state.started, a, b), moved, recorded)
    return jax.tree.map(lambda a, b: jnp.where(jnp.isfinite(loss), a, b).astype(b.dtype), following, state)


def topk_signal(teacher_logits, k: int) -> tuple[Array, Array]:
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
    values, ids = lax.top_k(teacher, k)
    top, log_total = _log_normalizer(teacher, jnp.ones(teacher.shape[:-1], teacher.dtype))
    padding = values == -jnp.inf
    logprobs = jnp.where(padding, 0, values) - top[..., None] - log_total[..., None]
    return jnp.where(padding, -1, ids), jnp.where(padding, -jnp.inf, logprobs)


def topk_kl(
    student_logits,
    ids,
    logprobs,
    mask=None,
    *,
    missing: Literal["other_bucket", "renormalize"] = "other_bucket",
    temperature=1.0,
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
    weights = _token_weights(mask, student)
    counted = weights != 0
    vocabulary = student.shape[-1]
    stored = counted[..., None] & (ids >= 0) & (logprobs != -jnp.inf)
    known = stored & (ids < vocabulary)

    # Read from the logits as they came, so that reading them makes no promoted copy.
    picked = jnp.take_along_axis(jnp.asarray(student_logits), jnp.where(known, ids, 0), axis=-1).astype(student.dtype)
    shared = known & (picked != -jnp.inf)
    top, log_total = _log_normalizer(student, temperature, None if mask is None else counted)
    shifted = (jnp.where(shared, picked, 0) - top[..., None]) / temperature[..., None]
    log_s = jnp.where(shared, shifted - log_total[..., None], 0)

    logprobs = jnp.where(known, logprobs, 0)
    if missing == "renormalize":
        log_t = logspace.log_softmax(logprobs, temperature, where=known)
        bucket = 0
    else:
        left = jnp.clip(1 - jnp.sum(jnp.where(known, jnp.exp(logprobs), 0), axis=-1, keepdims=True), 0, 1)
        outcomes = jnp.concatenate([logprobs, jnp.log(jnp.where(left > 0, left, 1))], axis=-1)
        log_t = logspace.log_softmax(outcomes, temperature, where=jnp.concatenate([known, left > 0], axis=-1))
        rest_t = jnp.exp(log_t[..., -1])
        log_t = log_t[..., :-1]
        rest_s = 1 - jnp.sum(jnp.where(shared, jnp.exp(log_s), 0), axis=-1)
        rest_t, rest_s = (jnp.clip(rest, LEAST_OTHER, 1 - LEAST_OTHER) for rest in (rest_t, rest_s))
        bucket = rest_t * (jnp.log(rest_t) - jnp.log(rest_s))
    log_t = jnp.where(shared, log_t, 0)
    values = jnp.sum(jnp.where(shared, jnp.exp(log_t) * (log_t - log_s), 0), axis=-1) + bucket
    values = jnp.where(counted, weights * values, 0)
    return jnp.where(jnp.any(stored & ~known, axis=-1), jnp.nan, values)


def uld(student_logits, teacher_logits) -> Array:
    r"""Universal logit distillation, for two vocabularies: pulls together how probability falls off, not on which tokens.

    $$\sum_i \left| p_t^{\downarrow}(i) - p_s^{\downarrow}(i) \right|$$

    over both probability vectors sorted in falling order, the shorter one filled up with zeros.

    Args:
      student_logits: `[..., V]`.
      teacher_logits: `[..., V']`, a constant, of the same leading axes: positions of the two tokenizations must have
        been lined up or cut to one length. A token at -inf has no probability.

    Returns:
      `[...]`, 0 to 2. The published loss adds their mean to a cross-entropy; the weight is not verified.

    Raises:
      TypeError: logits are not floating point.
      ValueError: the leading axes differ.

    Paper: Boizard, El Haddad, Hudelot, Colombo, "Towards Cross-Tokenizer Distillation: the Universal Logit Distillation
    Loss for LLMs", 2024, arXiv 2402.12030.

    >>> student, teacher = jnp.log(jnp.array([0.1, 0.9])), jnp.log(jnp.array([0.7, 0.2, 0.1]))
    >>> print(f"{uld(student, teacher):.4f}")
    0.4000
    """
    student = checks.class_scores(student_logits, "student_logits")
    teacher = lax.stop_gradient(checks.class_scores(teacher_logits, "teacher_logits"))
    if student.shape[:-1] != teacher.shape[:-1]:
        raise ValueError(
            f"teacher_logits has leading axes {teacher.shape[:-1]}, student_logits {student.shape[:-1]}: line the "
            "positions of the two tokenizations up, or cut both to one length."
        )
    longest = max(student.shape[-1], teacher.shape[-1])
    falling = []
    for logits in (student, teacher):
        p = jnp.sort(jnp.exp(logspace.log_softmax(logits)), axis=-1, descending=True)
        falling.append(jnp.pad(p, [(0, 0)] * (p.ndim - 1) + [(0, longest - p.shape[-1])]))
    return jnp.sum(jnp.abs(falling[1] - falling[0]), axis=-1)


def _token_weights(mask, logits: Array) -> Array:
    """`mask` as a constant weight for each position of `logits`, in its precision."""
    if mask is None:
        return jnp.ones(logits.shape[:-1], logits.dtype)
    mask = jnp.asarray(mask)
    if mask.shape != logits.shape[:-1]:
        raise ValueError(
            f"mask has shape {mask.shape}, student_logits leading axes {logits.shape[:-1]}: give one value a position."
        )
    return lax.stop_gradient(mask.astype(logits.dtype))


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

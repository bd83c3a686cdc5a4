r"""Losses of token sequences: a masked mean over tokens, a teacher that moves, a teacher of other tokens."""

import difflib
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from kdjax.losses import checks, logspace
from kdjax.losses.tokens.divergences import akl, forward_kl, jsd, reverse_kl, skew_fkl, skew_rkl, symmetric_kl, tvd

__all__ = ["TAIDState", "lm_kd", "taid", "taid_init", "taid_target", "taid_update", "uld"]

Array = jax.Array

DIVERGENCES = {
    loss.__name__: loss for loss in (forward_kl, reverse_kl, symmetric_kl, skew_fkl, skew_rkl, jsd, tvd, akl)
}


def lm_kd(
    student_logits: ArrayLike,
    teacher_logits: ArrayLike,
    mask: ArrayLike | None = None,
    *,
    divergence: str = "forward_kl",
    alpha: ArrayLike | None = None,
    beta: ArrayLike = 0.5,
    temperature: ArrayLike = 1.0,
    num_tokens: ArrayLike | None = None,
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
    weights = checks.token_weights(mask, student)
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


def taid_target(student_logits: ArrayLike, teacher_logits: ArrayLike, t: ArrayLike) -> Array:
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


def taid(student_logits: ArrayLike, teacher_logits: ArrayLike, *, t: ArrayLike) -> Array:
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


def taid_update(
    state: TAIDState,
    loss: ArrayLike,
    step: ArrayLike,
    total: ArrayLike,
    *,
    t_start: ArrayLike = 0.4,
    t_end: ArrayLike = 1.0,
    alpha: ArrayLike = 5e-4,
    beta: ArrayLike = 0.99,
) -> TAIDState:
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


def uld(student_logits: ArrayLike, teacher_logits: ArrayLike) -> Array:
    r"""Universal logit distillation, for two vocabularies: pulls together how probability falls off, not on which tokens.

    $$\sum_i \left| p_t^{\downarrow}(i) - p_s^{\downarrow}(i) \right|$$

    over both probability vectors sorted in falling order, the shorter one filled up with zeros.

    Args:
      student_logits: `[..., V]`.
      teacher_logits: `[..., V']`, a constant, of the same leading axes: positions of the two tokenizations must have
        been lined up (`kdjax.data.alignment`) or cut to one length. A token at -inf has no probability.

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
    gap = falling[1] - falling[0]
    return jnp.sum(gap * jnp.sign(gap), axis=-1)  # the slope of jnp.abs at 0 is 1

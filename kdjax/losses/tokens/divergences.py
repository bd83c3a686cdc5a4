r"""Divergences between two softmaxes, one value a row or token: the losses of language-model distillation.

Everywhere $p_t = \mathrm{softmax}(z_t / T)$, $p_s = \mathrm{softmax}(z_s / T)$, and there is no factor $T^2$.

A token at -inf in either network adds nothing, as in the released language-model codes (masked or padded vocabulary);
what is left is not normalised anew. To compare over a shared part of the vocabulary, take that part of the logits.
"""

import numbers

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from kdjax.losses import checks, logspace

__all__ = ["akl", "forward_kl", "jsd", "reverse_kl", "skew_fkl", "skew_rkl", "symmetric_kl", "tvd"]

Array = jax.Array

# From here on exp(gap) may overflow, and the larger probability is taken out of the mixture first.
FAR = 30.0


def forward_kl(
    student_logits: ArrayLike,
    teacher_logits: ArrayLike,
    *,
    temperature: ArrayLike = 1.0,
    cross_entropy_form: bool = False,
) -> Array:
    r"""Forward KL: pulls the student to cover all that the teacher believes in.

    $$\mathrm{KL}(p_t \| p_s) = \sum_v p_t(v) \left( \log p_t(v) - \log p_s(v) \right)$$

    Equal to `kd(..., scale_by_t2=False)`, but for tokens that the student excludes: they add nothing here, inf there.

    Args:
      student_logits: `[..., V]`.
      teacher_logits: `[..., V]`, a constant. A token at -inf in either adds nothing.
      temperature: a number, a traced scalar, or an array that broadcasts to the leading axes.
      cross_entropy_form: leave the teacher's entropy out: $-\sum_v p_t(v) \log p_s(v)$. The gradient by the student is
        the same; the value is that of the released DistiLLM, MiniLLM and TAID codes, which minimise this form under the
        name of forward KL.

    Returns:
      `[...]` in nats. The published loss is their mean over the tokens that count: `lm_kd`.

    Raises:
      TypeError: logits are not floating point.
      ValueError: vocabularies or leading axes differ, or `temperature` is not above 0 or does not broadcast.

    Paper: as the baseline of Gu, Dong, Wei, Huang, "MiniLLM: Knowledge Distillation of Large Language Models", ICLR
    2024, arXiv 2306.08543.

    >>> student, teacher = jnp.array([[1.0, 0.0]]), jnp.array([[0.0, 0.0]])
    >>> values = forward_kl(student, teacher), forward_kl(student, teacher, cross_entropy_form=True)
    >>> print(*(f"{value[0]:.4f}" for value in values))
    0.1201 0.8133
    """
    log_s, log_t, kept = _log_softmaxes(student_logits, teacher_logits, temperature)
    return _sum(jnp.exp(log_t) * (-log_s if cross_entropy_form else log_t - log_s), kept)


def reverse_kl(student_logits: ArrayLike, teacher_logits: ArrayLike, *, temperature: ArrayLike = 1.0) -> Array:
    r"""Reverse KL: pulls the student away from what the teacher does not believe in.

    $$\mathrm{KL}(p_s \| p_t) = \sum_v p_s(v) \left( \log p_s(v) - \log p_t(v) \right)$$

    Args:
      student_logits: `[..., V]`.
      teacher_logits: `[..., V]`, a constant. A token at -inf in either adds nothing.
      temperature: a number, a traced scalar, or an array that broadcasts to the leading axes.

    Returns:
      `[...]` in nats. The published loss is their mean over the tokens that count: `lm_kd`.

    Raises:
      TypeError: logits are not floating point.
      ValueError: vocabularies or leading axes differ, or `temperature` is not above 0 or does not broadcast.

    Paper: Gu, Dong, Wei, Huang, "MiniLLM: Knowledge Distillation of Large Language Models", ICLR 2024, arXiv
    2306.08543, which samples its sequence-level form; this is the exact value at each token.

    >>> student, teacher = jnp.array([[0.0, 0.0]]), jnp.array([[1.0, 0.0]])
    >>> print(f"{reverse_kl(student, teacher)[0]:.4f}")
    0.1201
    """
    log_s, log_t, kept = _log_softmaxes(student_logits, teacher_logits, temperature)
    return _sum(jnp.exp(log_s) * (log_s - log_t), kept)


def symmetric_kl(
    student_logits: ArrayLike, teacher_logits: ArrayLike, *, alpha: ArrayLike = 0.9, temperature: ArrayLike = 1.0
) -> Array:
    r"""Both divergences at once: $(1 - \alpha) \, \mathrm{KL}(p_t \| p_s) + \alpha \, \mathrm{KL}(p_s \| p_t)$.

    Args:
      student_logits: `[..., V]`.
      teacher_logits: `[..., V]`, a constant. A token at -inf in either adds nothing.
      alpha: share of the reverse KL, 0 to 1; a number, a traced scalar or one a token.
      temperature: likewise, above 0.

    Returns:
      `[...]` in nats. The published loss is their mean over the tokens that count: `lm_kd`. The value in the DistiLLM
      code is larger by `1 - alpha` times the teacher's entropy, see `forward_kl`.

    Raises:
      TypeError: logits are not floating point.
      ValueError: vocabularies or leading axes differ, or a hyperparameter is out of range or does not broadcast.

    Source: the released code of DistiLLM (Ko, Kim, Chen, Yun, ICML 2024, arXiv 2402.03898).

    >>> student, teacher = jnp.array([[1.0, 0.0]]), jnp.array([[0.0, 0.0]])
    >>> print(f"{symmetric_kl(student, teacher)[0]:.4f}")
    0.1119
    """
    student = checks.class_scores(student_logits, "student_logits")
    return _both(student, teacher_logits, temperature, checks.per_example(alpha, student, "alpha", above=0, below=1))


def jsd(
    student_logits: ArrayLike,
    teacher_logits: ArrayLike,
    *,
    beta: ArrayLike = 0.5,
    temperature: ArrayLike = 1.0,
    normalized: bool = False,
) -> Array:
    r"""Generalised Jensen-Shannon divergence: pulls the student to the teacher by way of their mixture.

    $$\beta \, \mathrm{KL}(p_t \| m) + (1 - \beta) \, \mathrm{KL}(p_s \| m), \qquad m = \beta p_t + (1 - \beta) p_s$$

    Mind which side `beta` weighs, for libraries differ: here, in TRL and in Liger it weighs the teacher; the `lam` of
    DistiLLM's `js_distance` is `1 - beta`. The formula vanishes towards both ends, and GKD puts the forward KL at 0 and
    the reverse KL at 1 instead: **a jump by design**, from almost nothing to a whole KL.

    Args:
      student_logits: `[..., V]`.
      teacher_logits: `[..., V]`, a constant. A token at -inf in either adds nothing.
      beta: 0 to 1; a number, a traced scalar or one a token. Exactly 0 is the forward KL and exactly 1 the reverse KL,
        for a traced value too.
      temperature: likewise, above 0. TRL's default is 0.9.
      normalized: divide by `beta (1 - beta)`. Without a jump then: it tends to the forward KL as `beta` falls to 0 and
        to the reverse KL as it grows to 1, which are its values there (where no token is excluded).

    Returns:
      `[...]` in nats; at most log 2 for `beta=0.5`. The published loss is their mean over the tokens that count: `lm_kd`.

    Raises:
      TypeError: logits are not floating point.
      ValueError: vocabularies or leading axes differ, or a hyperparameter is out of range or does not broadcast.

    Paper: Agarwal et al., "On-Policy Distillation of Language Models: Learning from Self-Generated Mistakes" (GKD), ICLR
    2024, arXiv 2306.13649, as released in TRL. DistiLLM and Liger's reference take the logarithm of summed
    probabilities, which is nan or inf once both underflow; here, as in TRL, the mixture stays in log space.

    >>> student, teacher = jnp.array([[1.0, 0.0]]), jnp.array([[0.0, 0.0]])
    >>> print(*(f"{jsd(student, teacher, beta=beta)[0]:.4f}" for beta in (0.0, 0.1, 0.5, 1.0)))
    0.1201 0.0107 0.0285 0.1109
    """
    log_s, log_t, kept = _log_softmaxes(student_logits, teacher_logits, temperature)
    share = checks.per_example(beta, log_s, "beta", above=0, below=1)
    smallest, step = jnp.finfo(share.dtype).tiny, jnp.finfo(share.dtype).eps
    low, high = share < smallest, share >= 1
    share = jnp.where(low | high, 0.5, share)
    rest = 1 - share
    from_teacher = -_sum(jnp.exp(log_t) * _log_mixture(log_s - log_t, share[..., None], rest[..., None]), kept)
    from_student = -_sum(jnp.exp(log_s) * _log_mixture(log_t - log_s, rest[..., None], share[..., None]), kept)
    # Divided one by one, since a product of shares would lose small ones.
    value = from_teacher / rest + from_student / share if normalized else share * from_teacher + rest * from_student
    if isinstance(beta, numbers.Real) and smallest <= beta <= 1 - step:
        return value
    return jnp.where(low | high, _both(student_logits, teacher_logits, temperature, jnp.where(high, 1, 0)), value)


def skew_fkl(
    student_logits: ArrayLike,
    teacher_logits: ArrayLike,
    *,
    alpha: ArrayLike = 0.1,
    temperature: ArrayLike = 1.0,
    cross_entropy_form: bool = False,
) -> Array:
    r"""Skew forward KL: pulls like the forward KL, but never harder than a little of the teacher mixed in allows.

    $$\mathrm{KL}(p_t \| m), \qquad m = \alpha p_t + (1 - \alpha) p_s$$

    Args:
      student_logits: `[..., V]`.
      teacher_logits: `[..., V]`, a constant. A token at -inf in either adds nothing.
      alpha: share of the teacher in the mixture, 0 (the forward KL) to 1 (nothing); a number, a traced scalar or one a
        token.
      temperature: likewise, above 0.
      cross_entropy_form: leave the teacher's entropy out, $-\sum_v p_t(v) \log m(v)$, as the released code does. The
        gradient is the same.

    Returns:
      `[...]` in nats, at most `-log(alpha)`. The published loss is their mean over the tokens that count: `lm_kd`.

    Raises:
      TypeError: logits are not floating point.
      ValueError: vocabularies or leading axes differ, or a hyperparameter is out of range or does not broadcast.

    Paper: Ko, Kim, Chen, Yun, "DistiLLM: Towards Streamlined Distillation for Large Language Models", ICML 2024, arXiv
    2402.03898.

    >>> student, teacher = jnp.array([[1.0, 0.0]]), jnp.array([[0.0, 0.0]])
    >>> print(f"{skew_fkl(student, teacher)[0]:.4f}")
    0.0950
    """
    log_s, log_t, kept = _log_softmaxes(student_logits, teacher_logits, temperature)
    alpha = checks.per_example(alpha, log_s, "alpha", above=0, below=1)[..., None]
    gap = _log_mixture(log_s - log_t, alpha, 1 - alpha)  # log m - log p_t
    return -_sum(jnp.exp(log_t) * (gap + log_t if cross_entropy_form else gap), kept)


def skew_rkl(
    student_logits: ArrayLike,
    teacher_logits: ArrayLike,
    *,
    alpha: ArrayLike = 0.1,
    temperature: ArrayLike = 1.0,
    fixed_mixture: bool = False,
) -> Array:
    r"""Skew reverse KL: pulls like the reverse KL, but never harder than a little of the student mixed in allows.

    $$\mathrm{KL}(p_s \| m), \qquad m = (1 - \alpha) p_t + \alpha p_s$$

    Args:
      student_logits: `[..., V]`.
      teacher_logits: `[..., V]`, a constant. A token at -inf in either adds nothing.
      alpha: share of the student in the mixture, 0 (the reverse KL) to 1 (nothing); a number, a traced scalar or one a
        token. The gradient goes through the student's part of the mixture too.
      temperature: likewise, above 0.
      fixed_mixture: send no gradient through that part, as the released code of DistiLLM-2 (arXiv 2503.07067) does not.

    Returns:
      `[...]` in nats, at most `-log(alpha)`. The published loss is their mean over the tokens that count: `lm_kd`.

    Raises:
      TypeError: logits are not floating point.
      ValueError: vocabularies or leading axes differ, or a hyperparameter is out of range or does not broadcast.

    Paper: Ko, Kim, Chen, Yun, "DistiLLM: Towards Streamlined Distillation for Large Language Models", ICML 2024, arXiv
    2402.03898.

    >>> student, teacher = jnp.array([[0.0, 0.0]]), jnp.array([[1.0, 0.0]])
    >>> print(f"{skew_rkl(student, teacher)[0]:.4f}")
    0.0950
    """
    log_s, log_t, kept = _log_softmaxes(student_logits, teacher_logits, temperature)
    alpha = checks.per_example(alpha, log_s, "alpha", above=0, below=1)[..., None]
    within = lax.stop_gradient(log_s) if fixed_mixture else log_s
    gap = _log_mixture(log_t - within, alpha, 1 - alpha)  # log m - log p_s
    return -_sum(jnp.exp(log_s) * (gap + (within - log_s)), kept)


def tvd(student_logits: ArrayLike, teacher_logits: ArrayLike, *, temperature: ArrayLike = 1.0) -> Array:
    r"""Total variation distance: pulls alike on every token that is wrong: $\tfrac{1}{2} \sum_v |p_t(v) - p_s(v)|$.

    Args:
      student_logits: `[..., V]`.
      teacher_logits: `[..., V]`, a constant. A token at -inf in either adds nothing.
      temperature: a number, a traced scalar, or an array that broadcasts to the leading axes.

    Returns:
      `[...]`, 0 to 1. The published loss is their mean over the tokens that count: `lm_kd`. A token with equal
      probabilities sends nothing back.

    Raises:
      TypeError: logits are not floating point.
      ValueError: vocabularies or leading axes differ, or `temperature` is not above 0 or does not broadcast.

    Source: the released codes of DistiLLM (Ko, Kim, Chen, Yun, ICML 2024, arXiv 2402.03898) and Liger.

    >>> student, teacher = jnp.array([[1.0, 0.0]]), jnp.array([[0.0, 0.0]])
    >>> print(f"{tvd(student, teacher)[0]:.4f}")
    0.2311
    """
    log_s, log_t, kept = _log_softmaxes(student_logits, teacher_logits, temperature)
    gap = jnp.exp(log_t) - jnp.exp(log_s)
    return 0.5 * _sum(gap * jnp.sign(gap), kept)  # the slope of jnp.abs at 0 is 1


def akl(
    student_logits: ArrayLike, teacher_logits: ArrayLike, *, head_mass: ArrayLike = 0.5, temperature: ArrayLike = 1.0
) -> Array:
    r"""Adaptive KL: pulls as the forward KL where the head of the vocabulary is wrong, as the reverse where the tail is.

    $$w \, \mathrm{KL}(p_t \| p_s) + (1 - w) \, \mathrm{KL}(p_s \| p_t), \qquad w = \frac{g_h}{g_h + g_r}$$

    with $g_h$ the sum of $|p_t - p_s|$ over the head, the smallest set of the teacher's most likely tokens that holds
    `head_mass`, and $g_r$ the same over the rest. The weights are constants to the gradient.

    Args:
      student_logits: `[..., V]`.
      teacher_logits: `[..., V]`, a constant. A token at -inf in either adds nothing and is in no head. Of tokens that
        tie, the one of the lower index comes first.
      head_mass: the probability that makes a head, 0 to 1; a number, a traced scalar or one a token.
      temperature: likewise, above 0.

    Returns:
      `[...]` in nats. The published loss is their mean over the tokens that count: `lm_kd`. Equal networks, where both
      gaps are 0, give 0.

    Raises:
      TypeError: logits are not floating point.
      ValueError: vocabularies or leading axes differ, or a hyperparameter is out of range or does not broadcast.

    Paper: Wu et al., "Rethinking Kullback-Leibler Divergence in Knowledge Distillation for Large Language Models",
    COLING 2025, arXiv 2404.02657. The copy of it released with TAID computes the head in sorted order and applies it to
    gaps that are not sorted, and lets gradients through the weights; this is the paper's form.

    >>> student, teacher = jnp.array([[1.0, 0.0, 0.0]]), jnp.array([[0.0, 2.0, 0.0]])
    >>> print(f"{akl(student, teacher)[0]:.4f}")
    0.8098
    """
    log_s, log_t, kept = _log_softmaxes(student_logits, teacher_logits, temperature)
    head_mass = checks.per_example(head_mass, log_s, "head_mass", above=0, below=1)
    p_s, p_t = (jnp.where(kept, jnp.exp(log_p), 0) for log_p in (log_s, log_t))
    weight = _head_share(*map(lax.stop_gradient, (p_s, p_t, head_mass)))
    return _both(student_logits, teacher_logits, temperature, 1 - weight)


def _log_softmaxes(student_logits, teacher_logits, temperature) -> tuple[Array, Array, Array]:
    """Log-probabilities of both, `[..., V]`, 0 outside the boolean mask `[..., V]` of tokens that both know."""
    student, teacher = checks.logits_pair(student_logits, teacher_logits)
    temperature = checks.softening(temperature, student)
    kept = (student != -jnp.inf) & (teacher != -jnp.inf)
    log_s, log_t = (logspace.log_softmax(logits, temperature) for logits in (student, teacher))
    return jnp.where(kept, log_s, 0), jnp.where(kept, log_t, 0), kept


def _sum(values: Array, kept: Array) -> Array:
    return jnp.sum(jnp.where(kept, values, 0), axis=-1)


def _both(student_logits, teacher_logits, temperature, alpha: Array) -> Array:
    """`(1 - alpha) KL(p_t || p_s) + alpha KL(p_s || p_t)`.

    Each through a softmax of its own, which a compiler computes once: added up before, the gradient of the first would
    be rounded to the size of the terms of the second.
    """
    forward = forward_kl(student_logits, teacher_logits, temperature=temperature)
    return (1 - alpha) * forward + alpha * reverse_kl(student_logits, teacher_logits, temperature=temperature)


def _log_mixture(gap: Array, stay: Array, move: Array) -> Array:
    """`log(stay + move * exp(gap))`: `log m - log a` for `m = stay * a + move * b` and `gap = log b - log a`.

    `stay + move` is 1. Exactly 0 where `gap` is, and right to rounding of the result itself for small shares, small gaps
    and gaps that overflow; a share of 0 leaves no trace of the other side.
    """
    inside = (stay > 0) & (move > 0)
    at_end = jnp.where(stay > 0, 0, gap)
    stay, move = jnp.where(inside, stay, 0.5), jnp.where(inside, move, 0.5)
    far = gap > FAR
    inner = jnp.where(far, -gap, gap)
    step = move * jnp.expm1(inner)
    close = ~far & (step > -0.5)
    grown = jnp.where(far, move, stay) + jnp.where(far, stay, move) * jnp.exp(inner)
    value = jnp.where(close, jnp.log1p(jnp.where(close, step, 0)), jnp.where(far, gap, 0) + jnp.log(grown))
    return jnp.where(inside, value, at_end)


def _head_share(p_s: Array, p_t: Array, head_mass: Array) -> Array:
    """`[...]`: the head's part of `sum |p_t - p_s|`, one half where that is 0."""
    falling, gap = lax.sort((-p_t, jnp.abs(p_t - p_s)), num_keys=1, is_stable=True)
    up_to = jnp.cumsum(-falling, axis=-1)
    before = jnp.concatenate([jnp.zeros_like(up_to[..., :1]), up_to[..., :-1]], axis=-1)
    head = jnp.sum(jnp.where(before < head_mass[..., None], gap, 0), axis=-1)
    total = jnp.sum(gap, axis=-1)
    return jnp.where(total > 0, head / jnp.where(total > 0, total, 1), 0.5)

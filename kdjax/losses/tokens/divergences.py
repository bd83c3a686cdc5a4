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

from kdjax.losses import checks
from kdjax.losses.tokens import terms

__all__ = ["akl", "forward_kl", "jsd", "reverse_kl", "skew_fkl", "skew_rkl", "symmetric_kl", "tvd"]

Array = jax.Array


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
    term = terms.forward_cross_entropy if cross_entropy_form else terms.forward
    return _summed(term, student_logits, teacher_logits, temperature)


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
    return _summed(terms.reverse, student_logits, teacher_logits, temperature)


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
    student, teacher = checks.logits_pair(student_logits, teacher_logits)
    alpha = checks.per_example(alpha, student, "alpha", above=0, below=1)
    return terms.summed(terms.both, student, teacher, checks.softening(temperature, student), alpha)


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
    student, teacher = checks.logits_pair(student_logits, teacher_logits)
    share = checks.per_example(beta, student, "beta", above=0, below=1)
    limits = jnp.finfo(share.dtype)
    if isinstance(beta, numbers.Real) and limits.tiny <= beta <= 1 - limits.eps:
        term = terms.jsd_normalized if normalized else terms.jsd
    else:
        term = terms.jsd_normalized_to_the_ends if normalized else terms.jsd_to_the_ends
    return terms.summed(term, student, teacher, checks.softening(temperature, student), share)


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
    student, teacher = checks.logits_pair(student_logits, teacher_logits)
    alpha = checks.per_example(alpha, student, "alpha", above=0, below=1)
    term = terms.skew_forward_cross_entropy if cross_entropy_form else terms.skew_forward
    return terms.summed(term, student, teacher, checks.softening(temperature, student), alpha)


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
    student, teacher = checks.logits_pair(student_logits, teacher_logits)
    alpha = checks.per_example(alpha, student, "alpha", above=0, below=1)
    term = terms.skew_reverse_fixed if fixed_mixture else terms.skew_reverse
    return terms.summed(term, student, teacher, checks.softening(temperature, student), alpha)


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
    return 0.5 * _summed(terms.twice_variation, student_logits, teacher_logits, temperature)


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
    student, teacher = checks.logits_pair(student_logits, teacher_logits)
    head_mass = checks.per_example(head_mass, student, "head_mass", above=0, below=1)
    logits = lax.stop_gradient(student), teacher
    log_s, log_t, kept = terms.log_softmaxes(*logits, lax.stop_gradient(checks.softening(temperature, student)))
    weight = terms.head_share(
        *(jnp.where(kept, jnp.exp(log_p), 0) for log_p in (log_s, log_t)), lax.stop_gradient(head_mass)
    )
    return terms.summed(terms.both, student, teacher, checks.softening(temperature, student), 1 - weight)


def _summed(term: terms.Term, student_logits, teacher_logits, temperature) -> Array:
    student, teacher = checks.logits_pair(student_logits, teacher_logits)
    return terms.summed(term, student, teacher, checks.softening(temperature, student), None)

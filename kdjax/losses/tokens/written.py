r"""Losses of responses that networks wrote: who wrote one decides how it is learned from, or how likely it is to the teacher."""

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from kdjax.losses import checks, logspace
from kdjax.losses.tokens.divergences import skew_fkl, skew_rkl

__all__ = ["distillm2", "distillm2_alpha", "distillm2_gap", "minillm_advantages", "minillm_policy"]

Array = jax.Array
LEAST_ALPHA, GAP_EPSILON = 0.01, 1e-5  # of the released code of DistiLLM-2
WHITENING_EPSILON = 1e-8  # of that of MiniLLM


def distillm2(
    student_logits: ArrayLike,
    teacher_logits: ArrayLike,
    student_wrote: ArrayLike,
    mask: ArrayLike | None = None,
    *,
    alpha: ArrayLike = 0.1,
    beta: ArrayLike = 1.0,
) -> Array:
    r"""DistiLLM-2: towards what the teacher wrote by the skew forward KL, away from what only the student writes by the reverse.

    $$(2 - \beta) \left\langle \mathrm{KL}(p_t \| \alpha p_t + (1 - \alpha) p_s) \right\rangle \text{ or }
      \beta \left\langle \mathrm{KL}(p_s \| (1 - \alpha) p_t + \alpha p_s) \right\rangle$$

    the second for responses that the student wrote, without a gradient through the student in its mixture; the mean is over
    the tokens of a response.

    Args:
      student_logits: `[B, L, V]`, of the response's tokens.
      teacher_logits: `[B, L, V]`, a constant. A token at -inf in either adds nothing.
      student_wrote: `[B]` bool, whether the student wrote the response, or the teacher.
      mask: `[B, L]`, bool or numbers that weigh the positions; None counts all. Where it is 0 logits may hold anything.
      alpha: share in the mixture, 0 to 1: a number, or one a row, `[B]`, of `distillm2_alpha`.
      beta: weight of what the student wrote, 0 to 2; the released schedule grows it from 1 to 1.5 in the first half.

    Returns:
      `[B]` in nats, 0 for a row without tokens. The published loss is the sum over a prompt's two responses, averaged over
      prompts: twice the mean of these, where each prompt has one by either.

    Raises:
      TypeError: logits are not floating point.
      ValueError: shapes do not fit, or a hyperparameter is out of range.

    Paper: Ko et al., "DistiLLM-2: A Contrastive Approach Boosts the Distillation of LLMs", ICML 2025, arXiv 2503.07067.

    >>> student, teacher = jnp.zeros((2, 1, 2)), jnp.array([[[1.0, 0.0]], [[1.0, 0.0]]])
    >>> print(*(f"{value:.4f}" for value in distillm2(student, teacher, jnp.array([False, True]), beta=1.5)))
    0.0453 0.1424
    """
    student, teacher, weights = _counted(student_logits, teacher_logits, mask)
    rows = jnp.zeros((len(student), 1), student.dtype)
    alpha = checks.per_example(alpha, rows, "alpha", above=0, below=1)[:, None]
    beta = checks.per_example(beta, rows, "beta", above=0, below=2)
    wrote = jnp.asarray(student_wrote)
    if wrote.shape != beta.shape:
        raise ValueError(f"student_wrote has shape {wrote.shape} for {len(student)} rows; give one value a row.")
    forward = _mean(skew_fkl(student, teacher, alpha=alpha), weights)
    reverse = _mean(skew_rkl(student, teacher, alpha=alpha, fixed_mixture=True), weights)
    return jnp.where(wrote.astype(bool), beta * reverse, (2 - beta) * forward)


def distillm2_alpha(
    student_logits: ArrayLike,
    teacher_logits: ArrayLike,
    labels: ArrayLike,
    student_wrote: ArrayLike,
    mask: ArrayLike | None = None,
    *,
    gap: ArrayLike,
    alpha: float = 0.1,
    stop_gradient: bool = False,
) -> Array:
    r"""The share of each response in the mixtures of `distillm2`: the less, the nearer both networks find it alike likely.

    $$\mathrm{clip}\left(1 - \frac{(1 - \alpha) \, g}{\bar p_1 - \bar p_2 + 10^{-5}}, \; 0.01, \; \alpha\right)$$

    with $\bar p$ the geometric mean of a network's probabilities of the response's tokens, 1 the network that wrote it and 2
    the other, and $g$ what that difference usually is.

    Args:
      student_logits, teacher_logits: `[B, L, V]`; the second a constant.
      labels: `[B, L]`, the tokens of the response.
      student_wrote, mask: as of `distillm2`.
      gap: `g`, a number or one a row: over the data, or over the rows of a kind before.
      alpha: the largest, above 0.01.
      stop_gradient: send nothing back through the student's part of it, which the released code does.

    Returns:
      `[B]`.

    Raises:
      TypeError, ValueError: as of `distillm2`.

    Paper: see `distillm2`.

    >>> logits, labels = jnp.array([[[2.0, 0.0]], [[0.0, 0.0]]]), jnp.zeros((2, 1), int)
    >>> print(distillm2_alpha(jnp.zeros((2, 1, 2)), logits, labels, jnp.array([False, False]), gap=0.4))
    [0.0546394 0.01     ]
    """
    if not LEAST_ALPHA < alpha <= 1:
        raise ValueError(f"alpha is {alpha}; it must be above {LEAST_ALPHA} and at most 1.")
    difference = distillm2_gap(student_logits, teacher_logits, labels, student_wrote, mask) + GAP_EPSILON
    difference = jnp.where(difference == 0, GAP_EPSILON, difference)
    gap = checks.per_example(gap, difference[:, None], "gap")
    found = jnp.clip(1 - (1 - alpha) * gap / difference, LEAST_ALPHA, alpha)
    return lax.stop_gradient(found) if stop_gradient else found


def distillm2_gap(
    student_logits: ArrayLike, teacher_logits: ArrayLike, labels: ArrayLike, student_wrote: ArrayLike,
    mask: ArrayLike | None = None,
) -> Array:  # fmt: skip
    r"""How much likelier a response is to who wrote it than to the other, $\bar p_1 - \bar p_2$ in `distillm2_alpha`.

    Args:
      student_logits, teacher_logits, labels, student_wrote, mask: as of `distillm2_alpha`.

    Returns:
      `[B]`, -1 to 1; 0 for a row without tokens. Its mean over the rows of a kind is the `gap` of `distillm2_alpha`.

    Raises:
      TypeError, ValueError: as of `distillm2`.

    Paper: see `distillm2`.

    >>> logits, labels = jnp.array([[[2.0, 0.0]], [[0.0, 0.0]]]), jnp.zeros((2, 1), int)
    >>> print(*(f"{gap:.4f}" for gap in distillm2_gap(jnp.zeros((2, 1, 2)), logits, labels, jnp.array([False, True]))))
    0.3808 0.0000
    """
    student, teacher, weights = _counted(student_logits, teacher_logits, mask)
    labels = jnp.where(weights != 0, checks.class_indices(jnp.where(weights != 0, labels, 0), student), 0)
    likely = [jnp.exp(_mean(_log_probability(logits, labels), weights)) for logits in (student, teacher)]
    return jnp.where(jnp.asarray(student_wrote, bool), likely[0] - likely[1], likely[1] - likely[0])


def minillm_advantages(
    rewards: ArrayLike,
    mask: ArrayLike,
    *,
    gamma: float = 1.0,
    whiten: bool = True,
    count_padding: bool = True,
) -> Array:
    r"""What each token of a written response was worth: rewards from it on, by how many tokens are left, whitened.

    $$A_t = \frac{1}{n_t} \sum_{j \ge t} \gamma^{j - t} r_j, \qquad r_j = \log p_t(y_j) - \log p_s(y_j)$$

    Args:
      rewards: `[B, T]`; the released code divides them by 0.5 and clips at ±100.
      mask: `[B, T]`, 1 or True for tokens that were written; `n_t` counts them from `t` on, at least 1.
      gamma: discount, 0 to 1.
      whiten: bring all to mean 0 and variance 1, the unbiased one.
      count_padding: whether that is over padding too, whose advantage is 0 before, as in the released code.

    Returns:
      `[B, T]`, a constant to the gradient.

    Raises:
      TypeError: rewards are not floating point.
      ValueError: shapes differ, or `gamma` is out of range.

    Paper: Gu, Dong, Wei, Huang, "MiniLLM: Knowledge Distillation of Large Language Models", ICLR 2024, arXiv 2306.08543.

    >>> print(minillm_advantages(jnp.array([[1.0, 3.0, 9.0]]), jnp.array([[1, 1, 0]]), whiten=False))
    [[2. 3. 0.]]
    """
    rewards = checks.floating(rewards, "rewards")
    kept = _alike(mask, rewards, "mask") != 0
    if not 0 <= gamma <= 1:
        raise ValueError(f"gamma is {gamma}; it must be at least 0 and at most 1.")
    rewards = lax.stop_gradient(jnp.where(kept, rewards, 0))
    onward = lambda later, now: (now + gamma * later, now + gamma * later)
    _, returns = lax.scan(onward, jnp.zeros_like(rewards[:, 0]), rewards.T, reverse=True)
    left = lax.cumsum(kept.astype(rewards.dtype), axis=1, reverse=True)
    values = returns.T / jnp.maximum(left, 1)
    if not whiten:
        return values
    counted = jnp.ones_like(values) if count_padding else kept.astype(values.dtype)
    number = jnp.sum(counted)
    centred = values - jnp.sum(values * counted) / jnp.maximum(number, 1)
    variance = jnp.sum(jnp.square(centred) * counted) / jnp.maximum(number - 1, 1)
    return centred * lax.rsqrt(variance + WHITENING_EPSILON)


def minillm_policy(
    log_probs: ArrayLike,
    old_log_probs: ArrayLike,
    advantages: ArrayLike,
    mask: ArrayLike,
    *,
    clip: float = 0.2,
    importance: ArrayLike | None = None,
) -> Array:
    r"""Clipped policy gradient of MiniLLM: makes tokens of an advantage likelier, by little at a time.

    $$\max\left(-A_t \rho_t, \; -A_t \, \mathrm{clip}(\rho_t, 1 - \epsilon, 1 + \epsilon)\right), \qquad
      \rho_t = w_t \, p_s(y_t) / p_{\mathrm{old}}(y_t)$$

    Args:
      log_probs: `[B, T]`, the student's of the tokens that were written.
      old_log_probs: `[B, T]`, its when it wrote them, a constant.
      advantages: `[B, T]`, a constant: `minillm_advantages`.
      mask: `[B, T]`, 1 or True for tokens that count; elsewhere the value is 0.
      clip: `ε`, above 0.
      importance: `w`, `[B, T]`: the student's probability over that of the mixture with the teacher that it was drawn from;
        1 if not given. The ratio is multiplied by it before it is clipped, as in the released code.

    Returns:
      `[B, T]`. The published loss is their mean over the tokens that count; beside it, `lm_kd` with "reverse_kl" is its
      single-step term, and on plain text half the cross-entropy and half the forward KL go with it.

    Raises:
      TypeError: log-probabilities are not floating point.
      ValueError: shapes differ, or `clip` is not above 0.

    Paper: see `minillm_advantages`.

    >>> one = jnp.ones((1, 1))
    >>> print(minillm_policy(jnp.log(2 * one), jnp.log(one), one, one), minillm_policy(0 * one, 0 * one, one, one))
    [[-1.2]] [[-1.]]
    """
    if not clip > 0:
        raise ValueError(f"clip is {clip}; it must be above 0.")
    new = checks.floating(log_probs, "log_probs")
    old, worth = (_alike(x, new, name) for x, name in ((old_log_probs, "old_log_probs"), (advantages, "advantages")))
    kept = _alike(mask, new, "mask") != 0
    ratio = jnp.exp(jnp.where(kept, new - old, 0))
    if importance is not None:
        ratio = ratio * jnp.where(kept, _alike(importance, new, "importance"), 1)
    worth = jnp.where(kept, worth, 0)
    return jnp.maximum(-worth * ratio, -worth * jnp.clip(ratio, 1 - clip, 1 + clip))


def _counted(student_logits, teacher_logits, mask) -> tuple[Array, Array, Array]:
    """Both logits `[B, L, V]`, 0 where nothing counts, and weights `[B, L]`."""
    student, teacher = checks.logits_pair(student_logits, teacher_logits)
    if student.ndim != 3:
        raise ValueError(f"student_logits has the shape {student.shape}; give [B, L, V], responses by row.")
    weights = checks.token_weights(mask, student)
    kept = (weights != 0)[..., None]
    return jnp.where(kept, student, 0), jnp.where(kept, teacher, 0), weights


def _mean(values: Array, weights: Array) -> Array:
    """`[B]`, of `[B, L]`."""
    total = jnp.sum(weights, axis=1)
    return jnp.sum(weights * values, axis=1) / jnp.where(total > 0, total, 1)


def _log_probability(logits: Array, labels: Array) -> Array:
    log_p = jax.nn.log_softmax(logits)
    return logspace.pick(log_p, logspace.one_hot(labels, log_p.shape[-1]))


def _alike(array, reference: Array, name: str) -> Array:
    """A constant in the precision of `reference`."""
    array = lax.stop_gradient(jnp.asarray(array).astype(reference.dtype))
    if array.shape != reference.shape:
        raise ValueError(f"{name} has shape {array.shape}, and what it goes with {reference.shape}; give them alike.")
    return array

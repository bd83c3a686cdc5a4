"""Losses of the labels alone, and of how decided one network is."""

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from kdjax.losses import checks, logspace

__all__ = [
    "confidence_penalty",
    "cross_entropy",
    "cross_entropy_with_targets",
    "label_smoothing_xent",
    "predictive_entropy",
    "skew_jensen",
]

Array = jax.Array

# Nearer than this to 0 or 1, `skew_jensen` is its limit: the quotient there is 0 / 0.
SKEW_LIMIT = 1e-4
# Classes from which on a written-out derivative saves time and memory; below, nothing that would be worth another rounding.
MANY = 512


def cross_entropy(student_logits: ArrayLike, labels: ArrayLike) -> Array:
    r"""Pulls the student towards the labels: $-\log p_s(y)$.

    Args:
      student_logits: `[..., C]`.
      labels: `[...]` integers. A label outside 0 to C - 1 gives nan: hide such rows from the mean.

    Returns:
      `[...]` in nats; the usual loss is their mean over the batch. inf where the label's logit is -inf.

    Raises:
      TypeError: logits are not floating point, or labels not integers.
      ValueError: the shape of `labels` is not that of the logits' leading axes.

    >>> student, labels = jnp.array([[1.0, 0.0]]), jnp.array([0])
    >>> print(f"{cross_entropy(student, labels=labels)[0]:.4f}")
    0.3133
    """
    student = checks.class_scores(student_logits, "student_logits")
    labels = checks.class_indices(labels, student)
    if student.shape[-1] >= MANY:
        return logspace.label_cross_entropy(student, labels)
    return -logspace.pick(logspace.log_softmax(student), logspace.one_hot(labels, student.shape[-1]))


def cross_entropy_with_targets(student_logits: ArrayLike, targets: ArrayLike) -> Array:
    r"""Pulls the student towards given class probabilities: $-\sum_c q(c) \log p_s(c)$.

    For mixed labels, and for distillation in its cross-entropy form, which is larger than `kd` at temperature 1 by the
    entropy of the targets and has the same gradient.

    Args:
      student_logits: `[..., C]`.
      targets: `[..., C]` weights of the classes, a constant; they need not sum to 1. A weight of 0 adds nothing, even
        where the student's logit is -inf.

    Returns:
      `[...]` in nats; the usual loss is their mean over the batch.

    Raises:
      TypeError: an argument is not floating point.
      ValueError: class counts or leading axes differ.

    >>> student, targets = jnp.array([[1.0, 0.0]]), jnp.array([[0.5, 0.5]])
    >>> print(f"{cross_entropy_with_targets(student, targets)[0]:.4f}")
    0.8133
    """
    student = checks.class_scores(student_logits, "student_logits")
    targets = lax.stop_gradient(checks.class_scores(targets, "targets"))
    checks.same_classes(targets, student, "targets", "student_logits")
    return logspace.cross_entropy(targets, logspace.log_softmax(student))


def label_smoothing_xent(
    logits: ArrayLike, labels: ArrayLike, *, smoothing: ArrayLike, over_all_classes: bool = True
) -> Array:
    r"""Cross-entropy with a label that keeps a share of doubt: pulls towards it and, a little, towards every class.

    $$-\sum_c q(c) \log p_s(c)$$

    with, over all classes, $q = 1 - \varepsilon + \varepsilon / C$ on the label and $\varepsilon / C$ elsewhere; or,
    over the others, $q = 1 - \varepsilon$ on the label and $\varepsilon / (C - 1)$ elsewhere. The first is
    $(1 - \varepsilon) \mathrm{CE}(y, p_s) + \varepsilon \, (\mathrm{KL}(u \| p_s) + \log C)$ for a uniform $u$; the
    second with $\varepsilon (C - 1) / C$ is the first with $\varepsilon$.

    Args:
      logits: `[..., C]`, the student's.
      labels: `[...]` integers; one outside 0 to C - 1 gives nan.
      smoothing: the share ε, 0 to 1; a number, a traced scalar or one an example.
      over_all_classes: True spreads ε over all classes, the label's included; False over the other C - 1.

    Returns:
      `[...]` in nats; the usual loss is their mean over the batch. A class at -inf gives inf once ε is above 0.

    Raises:
      TypeError: logits are not floating point, or labels not integers.
      ValueError: shapes do not fit, or `smoothing` is a number outside 0 to 1.

    Papers: over all classes, Szegedy et al., "Rethinking the Inception Architecture for Computer Vision", CVPR 2016,
    arXiv 1512.00567. Over the others, Shen et al., "Is Label Smoothing Truly Incompatible with Knowledge
    Distillation?", ICLR 2021, arXiv 2104.00676, and Yuan et al. (Tf-KD), CVPR 2020, arXiv 1909.11723.

    >>> logits, labels = jnp.array([[1.0, 0.0]]), jnp.array([0])
    >>> print(f"{label_smoothing_xent(logits, labels, smoothing=0.2)[0]:.4f}")
    0.4133
    """
    student = checks.class_scores(logits, "logits")
    classes = student.shape[-1]
    target = logspace.one_hot(checks.class_indices(labels, student), classes)
    share = checks.per_example(smoothing, student, "smoothing", above=0, below=1)[..., None]
    each = share / (classes if over_all_classes else max(classes - 1, 1))
    weights = jnp.where(target, 1 - share + each if over_all_classes else 1 - share, each)
    values = logspace.cross_entropy(weights, logspace.log_softmax(student))
    return jnp.where(jnp.any(target, axis=-1), values, jnp.nan)


def confidence_penalty(logits: ArrayLike, *, beta: ArrayLike) -> Array:
    r"""Pulls the student away from certainty: $-\beta H(p_s) = \beta \, (\mathrm{KL}(p_s \| u) - \log C)$.

    The penalty alone, at most 0: add it to a cross-entropy.

    Args:
      logits: `[..., C]`, the student's; a class at -inf has no probability and no part in the entropy.
      beta: strength; a number, a traced scalar or one an example.

    Returns:
      `[...]` in nats; the published penalty is their mean over the batch.

    Raises:
      TypeError: logits are not floating point.
      ValueError: `beta` does not broadcast to the leading axes.

    Paper: Pereyra, Tucker, Chorowski, Kaiser, Hinton, "Regularizing Neural Networks by Penalizing Confident Output
    Distributions", ICLR 2017 workshop, arXiv 1701.06548.

    >>> logits = jnp.array([[0.0, 0.0]])
    >>> print(f"{confidence_penalty(logits, beta=0.1)[0]:.4f}")
    -0.0693
    """
    student = checks.class_scores(logits, "logits")
    return -checks.per_example(beta, student, "beta") * logspace.entropy(logspace.log_softmax(student))


def predictive_entropy(logits: ArrayLike) -> Array:
    r"""How undecided a network is: $H(p) = -\sum_c p(c) \log p(c)$, from 0 (sure) to log C (uniform).

    Args:
      logits: `[..., C]`; a class at -inf has no probability.

    Returns:
      `[...]` in nats. Papers report the mean over a split.

    Raises:
      TypeError: logits are not floating point.

    Used so by Sultan, "Knowledge Distillation ≈ Label Smoothing: Fact or Fallacy?", EMNLP 2023.

    >>> unsure, sure = predictive_entropy(jnp.array([[0.0, 0.0], [0.0, -jnp.inf]]))
    >>> print(f"{unsure:.4f} {sure:.4f}")
    0.6931 0.0000
    """
    return logspace.entropy(logspace.log_softmax(checks.class_scores(logits, "logits")))


def skew_jensen(p: ArrayLike, q: ArrayLike, *, alpha: ArrayLike) -> Array:
    r"""Skew-Jensen divergence of two distributions, generated by negative entropy $G = -H$.

    $$J_\alpha(p, q) = \frac{(1 - \alpha) G(p) + \alpha G(q) - G((1 - \alpha) p + \alpha q)}{\alpha (1 - \alpha)}$$

    One family for two regularisers. Mind which end is which, for sources order the arguments differently: here
    `alpha → 0` gives `KL(q || p)` and `alpha → 1` gives `KL(p || q)`. So with `p` uniform and `q` the student, 0 is the
    confidence penalty and 1 is label smoothing. At one half it is four times the Jensen-Shannon divergence.

    Args:
      p: `[..., C]` probabilities.
      q: `[..., C]` probabilities. Gradients go into both.
      alpha: 0 to 1; a number, a traced scalar or one an example. Below 1e-4 and above 1 - 1e-4 the limits are used.

    Returns:
      `[...]` in nats. Finite for 0 < alpha < 1 within the switch; the limits are inf where one side lacks a class that
      the other has, as their KL is.

    Raises:
      TypeError: an argument is not floating point.
      ValueError: class counts or leading axes differ, or `alpha` is a number outside 0 to 1.

    Papers: Meister, Salesky, Cotterell, "Generalized Entropy Regularization", ACL 2020, arXiv 2005.00820; Chen, "A Note
    on Knowledge Distillation Loss Function for Object Classification", 2021, arXiv 2109.06458. Computed as a sum of
    terms that are none below 0, equal to the quotient, which loses its digits towards either end.

    >>> p, q = jnp.array([[0.5, 0.5]]), jnp.array([[0.9, 0.1]])
    >>> print(*(f"{skew_jensen(p, q, alpha=alpha)[0]:.3f}" for alpha in (0.0, 0.5, 1.0)))
    0.368 0.407 0.511
    """
    p, q = checks.class_scores(p, "p"), checks.class_scores(q, "q")
    checks.same_classes(q, p, "q", "p")
    alpha = checks.per_example(alpha, p, "alpha", above=0, below=1)[..., None]
    low, high = alpha < SKEW_LIMIT, alpha > 1 - SKEW_LIMIT
    alpha = jnp.where(low, 0, jnp.where(high, 1, alpha))
    return jnp.sum(_toward(p, q, alpha, low) + _toward(q, p, 1 - alpha, high), axis=-1)


def _toward(a: Array, b: Array, share: Array, nothing: Array) -> Array:
    """`KL(a || m) / share` by class, `m` lying `share` of the way from `a` to `b`; 0 where `nothing` of the way.

    The KL is written with `m - a` added to each class, which sums to nothing in `skew_jensen` and keeps every class at
    or above 0, so that a small share costs no digits.
    """
    share = jnp.where(nothing, 1, share)
    exists = a >= jnp.finfo(a.dtype).tiny
    ratio = share * (b - a) / jnp.where(exists, a, 1)
    value = (b - a) - jnp.where(exists, a * jnp.log1p(jnp.where(exists, ratio, 0)), 0) / share
    return jnp.where(nothing, 0, value)

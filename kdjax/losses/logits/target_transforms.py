"""Distillation from transformed or weighted targets: powers, standardised logits, weights by example, two views."""

import math
import numbers

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from kdjax.losses import checks, logspace
from kdjax.losses.logits.logit import kd

__all__ = ["standardize", "ttm", "uda_kd", "wsld", "wttm"]

Array = jax.Array
SQUARED, HUGE = 1e15, 2.0**100  # squares summed over classes are finite in float32 up to the first; a unit beyond it


def ttm(student_logits: ArrayLike, teacher_logits: ArrayLike, *, gamma: ArrayLike = 0.1) -> Array:
    r"""Transformed teacher matching: pulls the student, as it is, towards the teacher's probabilities made flatter.

    $$\sum_c q(c) \left( \log q(c) - \log p_s(c) \right), \qquad q = p_t^\gamma / \textstyle\sum_c p_t(c)^\gamma$$

    `q` is the teacher at temperature $1 / \gamma$, but the student is not softened and there is no factor `T^2`: the
    gradient is $p_s - q$. With `gamma=1` it is `kd` at temperature 1. Below 1 a student equal to its teacher is still
    pulled towards doubt.

    Args:
      student_logits: `[..., C]`.
      teacher_logits: `[..., C]`, a constant. A class at -inf has no probability and adds nothing.
      gamma: the power; a number, a traced scalar, or an array that broadcasts to the leading axes. It may be learned.

    Returns:
      `[...]` divergences in nats. The published loss is their mean over the batch, with a large weight beside the
      cross-entropy (45 for VGG13 to VGG8 on CIFAR-100). inf where the student excludes (-inf) a class of the teacher's.

    Raises:
      TypeError: logits are not floating point.
      ValueError: class counts or leading axes differ, or `gamma` is not above 0 or does not broadcast.

    Paper: Zheng, Yang, "Knowledge Distillation Based on Transformed Teacher Matching", ICLR 2024, arXiv 2402.11148.

    >>> student, teacher = jnp.array([[1.0, 0.0]]), jnp.array([[8.0, 0.0]])
    >>> print(f"{ttm(student, teacher, gamma=0.125)[0]:.4f} {ttm(student, teacher, gamma=1.0)[0]:.4f}")
    0.0000 0.3106
    """
    return _power_divergence(student_logits, teacher_logits, gamma)[0]


def wttm(student_logits: ArrayLike, teacher_logits: ArrayLike, *, gamma: ArrayLike = 0.1) -> Array:
    r"""Weighted transformed teacher matching: `ttm` that counts the examples more on which the teacher is in doubt.

    $$\left( \sum_c p_t(c)^\gamma \right) \mathrm{TTM}$$

    For `gamma` below 1 the weight runs from 1, for a sure teacher, to $C^{1 - \gamma}$ for one without any opinion.

    Args:
      student_logits: `[..., C]`.
      teacher_logits: `[..., C]`, a constant. A class at -inf has no probability and adds nothing.
      gamma: the power; a number, a traced scalar, or an array that broadcasts to the leading axes. It may be learned.

    Returns:
      `[...]` weighted divergences in nats. The published loss is their mean over the batch.

    Raises:
      TypeError: logits are not floating point.
      ValueError: class counts or leading axes differ, or `gamma` is not above 0 or does not broadcast.

    Paper: Zheng, Yang, "Knowledge Distillation Based on Transformed Teacher Matching", ICLR 2024, arXiv 2402.11148.

    >>> student, unsure = jnp.array([[1.0, 0.0]]), jnp.array([[0.0, 0.0]])
    >>> print(f"{wttm(student, unsure, gamma=0.5)[0] / ttm(student, unsure, gamma=0.5)[0]:.4f}")
    1.4142
    """
    divergence, weight = _power_divergence(student_logits, teacher_logits, gamma)
    return weight * divergence


def wsld(
    student_logits: ArrayLike, teacher_logits: ArrayLike, labels: ArrayLike, *, temperature: ArrayLike = 2.0
) -> Array:
    r"""Weighted soft labels: pulls towards the teacher, most where the student is worse at the label than the teacher.

    $$T^2 \, w \left( -\sum_c p_t^T(c) \log p_s^T(c) \right), \qquad
    w = 1 - \exp\left( -\frac{\mathrm{CE}_s}{\mathrm{CE}_t + 10^{-7}} \right)$$

    with $\mathrm{CE} = -\log p(y)$ at temperature 1. The weight is a constant to the gradient.

    Args:
      student_logits: `[..., C]`.
      teacher_logits: `[..., C]`, a constant. A class at -inf has no probability; a teacher that so excludes the label
        has weight 0.
      labels: `[...]` integers. A label outside 0 to C - 1 gives nan: hide such rows from the mean.
      temperature: a number, a traced scalar, or an array that broadcasts to the leading axes.

    Returns:
      `[...]` in nats (times `T^2`), a cross-entropy: a student that equals its teacher costs the teacher's entropy, not
      0. The published loss is their mean over the batch, beside a cross-entropy with the labels (weight 2.5 on
      ImageNet with `T = 2`, 2.25 on CIFAR-100 with `T = 4`).

    Raises:
      TypeError: logits are not floating point, or labels not integers.
      ValueError: class counts or leading axes differ, or `temperature` is not above 0 or does not broadcast.

    Paper: Zhou, Song, Chen, Zhou, Wang, Yuan, Zhang, "Rethinking Soft Labels for Knowledge Distillation: A
    Bias-Variance Tradeoff Perspective", ICLR 2021, arXiv 2102.00650, with the 1e-7 of the released code.

    >>> student, teacher = jnp.array([[0.0, 0.0]]), jnp.array([[0.0, 0.0]])
    >>> print(f"{wsld(student, teacher, jnp.array([0]), temperature=1.0)[0]:.4f}")  # (1 - 1/e) log 2
    0.4382
    """
    student, teacher = checks.logits_pair(student_logits, teacher_logits)
    temperature = checks.softening(temperature, student)
    target = logspace.one_hot(checks.class_indices(labels, student), student.shape[-1])
    known = jnp.any(target, axis=-1)
    ours, theirs = _label_cost(student, target), _label_cost(teacher, target)
    usable = known & (theirs != jnp.inf)
    ratio = jnp.where(usable, ours / (jnp.where(usable, theirs, 0) + 1e-7), 0)
    weight = lax.stop_gradient(-jnp.expm1(-jnp.maximum(ratio, 0)))
    soft = logspace.cross_entropy(
        jnp.exp(logspace.log_softmax(teacher, temperature)), logspace.log_softmax(student, temperature)
    )
    value = temperature**2 * weight * jnp.where(weight == 0, 0, soft)
    return jnp.where(known, value, jnp.nan)


def standardize(logits: ArrayLike, *, eps: ArrayLike = 1e-7) -> Array:
    r"""Logits by their own measure: $(z - \mathrm{mean}(z)) / (\varepsilon + \mathrm{std}(z))$ of each row.

    Give both networks' standardised logits to any loss between logits: it then asks for the teacher's ranking and
    proportions and leaves the student free in the size and range of its logits. The gradient goes through mean and
    deviation.

    Args:
      logits: `[..., C]`. A class at -inf stays there and has no part in mean and deviation.
      eps: added to the deviation; a number, a traced scalar, or an array that broadcasts to the leading axes.

    Returns:
      `[..., C]` of mean 0 and (unbiased, over C - 1) deviation 1. A constant row, and a single class, becomes 0; the
      deviation then has no gradient, but that of the row is large, of order `1 / eps`.

    Raises:
      TypeError: logits are not floating point.
      ValueError: there is no class, or `eps` is below 0 or does not broadcast to the leading axes.

    Paper: Sun, Ren, Li, Wang, Cao, "Logit Standardization in Knowledge Distillation", CVPR 2024, arXiv 2403.01427. The
    released code distils standardised logits at temperature 2 with weight 9 beside 0.1 times the cross-entropy.

    >>> standardize(jnp.array([[1.0, 2.0, 3.0]]))
    Array([[-0.9999999,  0.       ,  0.9999999]], dtype=float32)
    """
    logits = checks.class_scores(logits, "logits")
    eps = checks.per_example(eps, logits, "eps", above=0)[..., None]
    kept = logits != -jnp.inf
    values = jnp.where(kept, logits, 0)
    # Measured from the row's largest logit, so that a constant row is constant to the last digit.
    top = jnp.max(jnp.where(kept, logits, -jnp.inf), axis=-1, keepdims=True)
    values = jnp.where(kept, values - lax.stop_gradient(jnp.where(top == -jnp.inf, 0, top)), 0)
    count = jnp.sum(kept, axis=-1, keepdims=True, dtype=logits.dtype)
    # Of classes masked by a large number the square would be infinite, and all classes alike.
    largest = lax.stop_gradient(jnp.max(jnp.abs(values), axis=-1, keepdims=True))
    unit = jnp.where(largest > SQUARED, HUGE, 1)
    values = values / unit
    mean = jnp.sum(values, axis=-1, keepdims=True) / jnp.maximum(count, 1)
    centred = jnp.where(kept, values - mean, 0)
    variance = jnp.sum(centred**2, axis=-1, keepdims=True) / jnp.maximum(count - 1, 1)
    varied = variance > 0
    scale = eps / unit + jnp.where(varied, jnp.sqrt(jnp.where(varied, variance, 1)), 0)
    return jnp.where(kept, centred / jnp.where(scale == 0, 1, scale), -jnp.inf)


def uda_kd(
    student_logits: ArrayLike,
    teacher_logits: ArrayLike,
    student_logits_aug: ArrayLike,
    teacher_logits_aug: ArrayLike,
    labels: ArrayLike,
    *,
    alpha: ArrayLike = 0.5,
    temperature: ArrayLike = 5.0,
) -> Array:
    r"""Distillation on two views of an example, half and half, with its one label on both.

    $$\tfrac{1}{2} \sum_{v} \left( (1 - \alpha) \, \mathrm{CE}(y, p_s(x_v)) + \alpha \, \mathrm{KD}(x_v) \right)$$

    Args:
      student_logits: `[..., C]` of the view as it is.
      teacher_logits: `[..., C]` of the same view, a constant.
      student_logits_aug: `[..., C]` of the augmented view.
      teacher_logits_aug: `[..., C]` of the same augmented view, a constant.
      labels: `[...]` integers. A label outside 0 to C - 1 gives nan: hide such rows from the mean.
      alpha: share of `kd`; a number, a traced scalar or one an example.
      temperature: of `kd`; a number, a traced scalar, or an array that broadcasts to the leading axes.

    Returns:
      `[...]` in nats. The published loss is their mean over the batch.

    Raises:
      TypeError: logits are not floating point, or labels not integers.
      ValueError: shapes differ, `alpha` is a number outside 0 to 1, or a hyperparameter does not fit.

    Paper: Ruffy, Chahal, "The State of Knowledge Distillation for Classification", 2019, arXiv 1912.10850.

    >>> plain, augmented, labels = jnp.array([[1.0, 0.0]]), jnp.array([[0.0, 0.0]]), jnp.array([0])
    >>> print(f"{uda_kd(plain, plain, augmented, augmented, labels, alpha=0.5)[0]:.4f}")  # (0.3133 + 0.6931) / 4
    0.2516
    """
    student = checks.class_scores(student_logits, "student_logits")
    augmented = checks.class_scores(student_logits_aug, "student_logits_aug")
    checks.same_classes(augmented, student, "student_logits_aug", "student_logits")
    alpha = checks.per_example(alpha, student, "alpha", above=0, below=1)
    target = logspace.one_hot(checks.class_indices(labels, student), student.shape[-1])
    hard = sum(-logspace.pick(logspace.log_softmax(logits), target) for logits in (student, augmented))
    soft = sum(
        kd(ours, theirs, temperature=temperature)
        for ours, theirs in ((student, teacher_logits), (augmented, teacher_logits_aug))
    )
    return 0.5 * ((1 - alpha) * hard + alpha * soft)


def _label_cost(logits: Array, target: Array) -> Array:
    """`-log p(y)`, to the last digit also where p(y) is nearly 1, since `wsld` divides by it; nan for no label."""
    own = logspace.pick(logits, target)
    excluded = own == -jnp.inf
    lead = jnp.where(excluded, 0, own) - logspace.log_sum_exp(logits, where=~target)
    return jnp.where(excluded, jnp.inf, jax.nn.softplus(-lead))


def _power_divergence(student_logits, teacher_logits, gamma) -> tuple[Array, Array]:
    """The divergence of `ttm` and the weight of `wttm`, each `[...]`."""
    student, teacher = checks.logits_pair(student_logits, teacher_logits)
    if isinstance(gamma, numbers.Real) and not 0 < gamma < math.inf:
        raise ValueError(f"gamma is {gamma}; it is a power of the teacher's probabilities, above 0 and finite.")
    gamma = checks.per_example(gamma, student, "gamma")[..., None]
    log_p = logspace.log_softmax(teacher)
    kept = log_p != -jnp.inf
    powers = jnp.where(kept, gamma * jnp.where(kept, log_p, 0), -jnp.inf)
    divergence = logspace.kl(logspace.log_softmax(powers), logspace.log_softmax(student))
    return divergence, jnp.exp(logspace.log_sum_exp(powers, where=kept))

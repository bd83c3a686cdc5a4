"""Losses that take distillation apart at the label: how sure, and how the other classes rank."""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from kdjax.losses import checks, logspace

__all__ = ["dkd", "dkd_parts", "nkd", "rld", "rld_parts"]

Array = jax.Array


def dkd(
    student_logits: ArrayLike,
    teacher_logits: ArrayLike,
    labels: ArrayLike,
    *,
    alpha: ArrayLike = 1.0,
    beta: ArrayLike = 8.0,
    temperature: ArrayLike = 4.0,
) -> Array:
    r"""Decoupled distillation: pulls towards the teacher's trust in the label, and towards its ranking of the rest.

    $$\alpha \, \mathrm{TCKD} + \beta \, \mathrm{NCKD}$$

    `kd` is the same sum with `alpha = 1` and `beta = 1 - p_t^T(y)`: there a sure teacher silences the second part,
    which here keeps a weight of its own. See `dkd_parts` for the two.

    Args:
      student_logits: `[..., C]`.
      teacher_logits: `[..., C]`, a constant.
      labels: `[...]` integers. A label outside 0 to C - 1 gives nan: hide such rows from the mean.
      alpha: weight of the target-class part; a number, a traced scalar or one an example.
      beta: weight of the non-target part, likewise.
      temperature: a number, a traced scalar, or an array that broadcasts to the leading axes.

    Returns:
      `[...]` in nats (times `T^2`). The published loss is their mean over the batch. Its warm-up over epochs belongs to
      a schedule.

    Raises:
      TypeError: logits are not floating point, or labels not integers.
      ValueError: class counts or leading axes differ, or a hyperparameter does not broadcast to the leading axes.

    Paper: Zhao, Cui, Song, Qiu, Liang, "Decoupled Knowledge Distillation", CVPR 2022, arXiv 2203.08679. The released
    code removes the label by adding -1000 to its logit and takes the logarithm of summed probabilities; here the label
    is masked out and everything stays in log space, which changes nothing for ordinary logits and is right, with a
    finite gradient, where the released code gives inf or nan.

    >>> student, teacher = jnp.array([[1.0, 0.0, 0.0]]), jnp.array([[0.0, 0.0, 2.0]])
    >>> print(f"{dkd(student, teacher, jnp.array([0]), temperature=1.0)[0]:.3f}")
    3.109
    """
    student = checks.class_scores(student_logits, "student_logits")
    alpha, beta = checks.per_example(alpha, student, "alpha"), checks.per_example(beta, student, "beta")
    target_part, other_part = dkd_parts(student, teacher_logits, labels, temperature=temperature)
    return alpha * target_part + beta * other_part


def dkd_parts(
    student_logits: ArrayLike, teacher_logits: ArrayLike, labels: ArrayLike, *, temperature: ArrayLike = 4.0
) -> tuple[Array, Array]:
    r"""The two divergences that `dkd` weighs, both times `T^2`.

    Target class: between the two-class distributions $b = (p^T(y), 1 - p^T(y))$. Non-target classes: between the
    softmaxes $q$ over all classes but the label.

    $$\mathrm{TCKD} = T^2 \, \mathrm{KL}(b_t \| b_s), \qquad \mathrm{NCKD} = T^2 \, \mathrm{KL}(q_t \| q_s)$$

    They make up distillation exactly: `kd = TCKD + (1 - p_t^T(y)) NCKD`. With two classes NCKD is 0; with one class
    both are.

    Args:
      student_logits: `[..., C]`.
      teacher_logits: `[..., C]`, a constant.
      labels: `[...]` integers; one outside 0 to C - 1 gives nan.
      temperature: a number, a traced scalar, or an array that broadcasts to the leading axes.

    Returns:
      `(TCKD, NCKD)`, each `[...]`. The published losses are their means over the batch.

    Raises:
      TypeError: logits are not floating point, or labels not integers.
      ValueError: class counts or leading axes differ, or `temperature` is not above 0 or does not broadcast.

    Paper: Zhao, Cui, Song, Qiu, Liang, "Decoupled Knowledge Distillation", CVPR 2022, arXiv 2203.08679.

    >>> student, teacher = jnp.array([[1.0, 0.0]]), jnp.array([[0.0, 0.0]])
    >>> print(*(f"{part[0]:.4f}" for part in dkd_parts(student, teacher, jnp.array([0]), temperature=1.0)))
    0.1201 0.0000
    """
    student, teacher = checks.logits_pair(student_logits, teacher_logits)
    temperature = checks.softening(temperature, student)
    target = logspace.one_hot(checks.class_indices(labels, student), student.shape[-1])
    known = jnp.any(target, axis=-1)
    scale = temperature**2
    target_part = scale * logspace.kl(_binary(teacher, temperature, target), _binary(student, temperature, target))
    other_part = scale * logspace.kl(
        logspace.log_softmax(teacher, temperature, where=~target),
        logspace.log_softmax(student, temperature, where=~target),
    )
    return jnp.where(known, target_part, jnp.nan), jnp.where(known, other_part, jnp.nan)


def rld(
    student_logits: ArrayLike,
    teacher_logits: ArrayLike,
    labels: ArrayLike,
    *,
    alpha: ArrayLike = 1.0,
    beta: ArrayLike = 8.0,
    temperature: ArrayLike = 4.0,
    alpha_temperature: ArrayLike | None = None,
) -> Array:
    r"""Refined logits: pulls the label's probability to the teacher's highest, and the classes below the label in line.

    $$\alpha \, \mathrm{SCD} + \beta \, \mathrm{MCD}$$

    A teacher that is wrong says how sure to be, but not of what; and of its ranking only the part counts that does not
    contradict the label. See `rld_parts` for the two.

    Args:
      student_logits: `[..., C]`.
      teacher_logits: `[..., C]`, a constant.
      labels: `[...]` integers. A label outside 0 to C - 1 gives nan: hide such rows from the mean.
      alpha: weight of the sample-confidence part; a number, a traced scalar or one an example.
      beta: weight of the masked-correlation part, likewise.
      temperature: a number, a traced scalar, or an array that broadcasts to the leading axes.
      alpha_temperature: the temperature of the sample-confidence part, likewise; None for the same.

    Returns:
      `[...]` in nats (times the squared temperatures). The published loss is their mean over the batch. Its warm-up
      over epochs belongs to a schedule.

    Raises:
      TypeError: logits are not floating point, or labels not integers.
      ValueError: class counts or leading axes differ, or a hyperparameter does not broadcast to the leading axes.

    Paper: Sun, Chen, Lyu, Chen, Chen, Wang, "Knowledge Distillation with Refined Logits", ICCV 2025, arXiv 2408.07703.
    One temperature as in the paper; the released code has `alpha_temperature=1.0` unless told otherwise. Equal to the
    released code, except that the classes left out are masked instead of set to -1e9 and that the logarithm of summed
    probabilities is taken in log space: finite where the code gives inf or nan.

    >>> student, teacher = jnp.array([[1.0, 0.0, 0.0]]), jnp.array([[0.0, -2.0, 2.0]])
    >>> print(f"{rld(student, teacher, jnp.array([0]), temperature=1.0)[0]:.3f}")
    0.200
    """
    student = checks.class_scores(student_logits, "student_logits")
    alpha, beta = checks.per_example(alpha, student, "alpha"), checks.per_example(beta, student, "beta")
    confidence_part, correlation_part = rld_parts(
        student, teacher_logits, labels, temperature=temperature, alpha_temperature=alpha_temperature
    )
    return alpha * confidence_part + beta * correlation_part


def rld_parts(
    student_logits: ArrayLike,
    teacher_logits: ArrayLike,
    labels: ArrayLike,
    *,
    temperature: ArrayLike = 4.0,
    alpha_temperature: ArrayLike | None = None,
) -> tuple[Array, Array]:
    r"""The two divergences that `rld` weighs, each times its squared temperature.

    Sample confidence, at `alpha_temperature` $T_a$: between the two-class distributions of the teacher's most likely
    class $m$ and of the student's label, $b_t = (p_t(m), 1 - p_t(m))$ and $b_s = (p_s(y), 1 - p_s(y))$. Masked
    correlation, at `temperature` $T$: between the softmaxes $q$ over the classes $\{c : z_t(c) < z_t(y)\}$.

    $$\mathrm{SCD} = T_a^2 \, \mathrm{KL}(b_t \| b_s), \qquad \mathrm{MCD} = T^2 \, \mathrm{KL}(q_t \| q_s)$$

    Where the teacher has the label on top, alone, these are the two of `dkd_parts`. Classes that tie with the label are
    left out of MCD like those above it. Where one class is left, or none because the teacher has the label lowest, MCD
    is 0, with no gradient.

    Args:
      student_logits: `[..., C]`.
      teacher_logits: `[..., C]`, a constant.
      labels: `[...]` integers; one outside 0 to C - 1 gives nan.
      temperature: a number, a traced scalar, or an array that broadcasts to the leading axes.
      alpha_temperature: the temperature of SCD, likewise; None for the same.

    Returns:
      `(SCD, MCD)`, each `[...]`. The published losses are their means over the batch.

    Raises:
      TypeError: logits are not floating point, or labels not integers.
      ValueError: class counts or leading axes differ, or a temperature is not above 0 or does not broadcast.

    Paper: Sun, Chen, Lyu, Chen, Chen, Wang, "Knowledge Distillation with Refined Logits", ICCV 2025, arXiv 2408.07703.

    >>> student, teacher = jnp.array([[1.0, 0.0]]), jnp.array([[0.0, 0.0]])
    >>> print(*(f"{part[0]:.4f}" for part in rld_parts(student, teacher, jnp.array([0]), temperature=1.0)))
    0.1201 0.0000
    """
    student, teacher = checks.logits_pair(student_logits, teacher_logits)
    temperature = checks.softening(temperature, student)
    own = (
        temperature if alpha_temperature is None else checks.softening(alpha_temperature, student, "alpha_temperature")
    )
    classes = student.shape[-1]
    target = logspace.one_hot(checks.class_indices(labels, student), classes)
    top = logspace.one_hot(jnp.argmax(teacher, axis=-1), classes)
    known = jnp.any(target, axis=-1)
    confidence_part = own**2 * logspace.kl(_binary(teacher, own, top), _binary(student, own, target))
    below = teacher < logspace.pick(teacher, target)[..., None]
    correlation_part = temperature**2 * logspace.kl(
        logspace.log_softmax(teacher, temperature, where=below),
        logspace.log_softmax(student, temperature, where=below),
    )
    return jnp.where(known, confidence_part, jnp.nan), jnp.where(known, correlation_part, jnp.nan)


def nkd(
    student_logits: ArrayLike,
    teacher_logits: ArrayLike,
    labels: ArrayLike,
    *,
    gamma: ArrayLike = 1.5,
    temperature: ArrayLike = 1.0,
) -> Array:
    r"""Normalised distillation: pulls towards the label as much as the teacher trusts it, and to its shares of the rest.

    With $q$ the softmax over all classes but the label:

    $$-p_t(y) \log p_s(y) - \gamma \, T^2 \sum_{c \ne y} q_t^T(c) \log q_s^T(c)$$

    Cross-entropies: they do not vanish where the student equals its teacher. The first has no temperature. Its gradient
    by the label's logit is `p_t(y) (p_s(y) - 1)`, so it raises `p_s(y)` beyond the teacher's, unlike the target part of
    `dkd`; the second has the gradient of `gamma` times NCKD.

    Args:
      student_logits: `[..., C]`.
      teacher_logits: `[..., C]`, a constant.
      labels: `[...]` integers, or `[..., C]` class probabilities in floating point, of which the largest says the label
        (the first of those that tie). An integer outside 0 to C - 1 gives nan: hide such rows from the mean.
      gamma: weight of the non-target part; a number, a traced scalar or one an example.
      temperature: a number, a traced scalar, or an array that broadcasts to the leading axes.

    Returns:
      `[...]` in nats. The published loss is their mean over the batch; it is added to the ordinary cross-entropy.

    Raises:
      TypeError: logits are not floating point, or labels of the shape `[...]` not integers.
      ValueError: class counts or leading axes differ, or a hyperparameter does not broadcast to the leading axes.

    Paper: Yang, Zeng, Li, Zhang, Yuan, Li, "From Knowledge Distillation to Self-Knowledge Distillation: A Unified
    Approach with Normalized Loss and Customized Soft Labels", ICCV 2023, arXiv 2303.13005. Equal to the released code,
    except that a class which both networks exclude (-inf) adds nothing instead of making it nan.

    >>> student, teacher = jnp.array([[1.0, 0.0]]), jnp.array([[0.0, 0.0]])
    >>> print(f"{nkd(student, teacher, jnp.array([0]))[0]:.4f}")
    0.1566
    """
    student, teacher = checks.logits_pair(student_logits, teacher_logits)
    temperature, gamma = checks.softening(temperature, student), checks.per_example(gamma, student, "gamma")
    target = logspace.one_hot(_class_indices(labels, student), student.shape[-1])
    trust = jnp.where(target, jnp.exp(logspace.log_softmax(teacher)), 0)
    target_part = logspace.cross_entropy(trust, logspace.log_softmax(student))
    other_part = temperature**2 * logspace.cross_entropy(
        jnp.exp(logspace.log_softmax(teacher, temperature, where=~target)),
        logspace.log_softmax(student, temperature, where=~target),
    )
    return jnp.where(jnp.any(target, axis=-1), target_part + gamma * other_part, jnp.nan)


def _binary(logits: Array, temperature: Array, target: Array) -> Array:
    """Log-probabilities of (the class in `target`, all others together), `[..., 2]`.

    The others among themselves are normalised anew where they are needed: their log-probabilities less the sum's would
    cancel where both are thousands of nats below zero.
    """
    log_p = logspace.log_softmax(logits, temperature)
    log_target = jnp.sum(jnp.where(target, log_p, 0), axis=-1)
    return jnp.stack([log_target, logspace.log_sum_exp(log_p, where=~target)], axis=-1)


def _class_indices(labels, logits: Array) -> Array:
    """`checks.class_indices`, or the first largest of each row of probabilities."""
    labels = jnp.asarray(labels)
    if labels.ndim != logits.ndim or not jnp.issubdtype(labels.dtype, jnp.floating):
        return checks.class_indices(labels, logits)
    checks.same_classes(labels, logits, "labels", "student_logits")
    return jnp.argmax(labels, axis=-1)

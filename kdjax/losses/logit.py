"""Losses between the logits of two networks."""

from typing import Literal

import jax
import jax.numpy as jnp

from kdjax.losses import checks, logspace

Array = jax.Array


def kd(student_logits, teacher_logits, *, temperature=4.0, scale_by_t2: bool = True) -> Array:
    r"""Knowledge distillation: pulls the student's softened class probabilities towards the teacher's.

    $$T^2 \sum_c p_t^T(c) \left( \log p_t^T(c) - \log p_s^T(c) \right), \qquad p^T = \mathrm{softmax}(z / T)$$

    The gradient is `T (p_s^T - p_t^T)`. Softening divides it by `T` and flattens both distributions by about another
    `T`; the factor `T^2` makes up for both. As `T` grows the loss tends to `logit_mse(center=True,
    class_reduction="mean")`; as it falls, to training on the teacher's most likely class.

    Args:
      student_logits: `[..., C]`.
      teacher_logits: `[..., C]`, a constant. A class at -inf has no probability and adds nothing.
      temperature: a number, a traced scalar, or an array that broadcasts to the leading axes. It may be learned: the
        gradient goes through both softmaxes and through `T^2`.
      scale_by_t2: False leaves the factor `T^2` out, and the gradient shrinks as `1 / T`.

    Returns:
      `[...]` divergences in nats (times `T^2`). The published loss is their mean over the batch, torch's `batchmean`.
      inf where the student excludes (-inf) a class that the teacher believes in; the gradient is finite there too.

    Raises:
      TypeError: logits are not floating point.
      ValueError: class counts or leading axes differ, or `temperature` is not above 0 or does not broadcast.

    Paper: Hinton, Vinyals, Dean, "Distilling the Knowledge in a Neural Network", NIPS 2014 workshop, arXiv 1503.02531.
    Equal to the released benchmark codes, except that a class which both networks exclude gives 0 instead of nan.

    >>> student, teacher = jnp.array([[1.0, 0.0]]), jnp.array([[0.0, 0.0]])
    >>> print(f"{kd(student, teacher, temperature=1.0)[0]:.4f}")
    0.1201
    """
    student, teacher = checks.logits_pair(student_logits, teacher_logits)
    temperature = checks.softening(temperature, student)
    divergence = logspace.kl(logspace.log_softmax(teacher, temperature), logspace.log_softmax(student, temperature))
    return temperature**2 * divergence if scale_by_t2 else divergence


def logit_mse(
    student_logits, teacher_logits, *, center: bool = False, class_reduction: Literal["sum", "mean"] = "sum"
) -> Array:
    r"""Logit matching: pulls the student's logits themselves towards the teacher's.

    $$\tfrac{1}{2} \sum_c \left( z_s(c) - z_t(c) \right)^2$$

    Mind the factor one half, which the paper has. The form without it ("KL vs MSE": Kim et al., 2021, arXiv 2105.08919)
    is twice this one.

    Args:
      student_logits: `[..., C]`.
      teacher_logits: `[..., C]`, a constant. A class at -inf is left out: of the sum, the mean and the centring.
      center: subtract from each row of differences its mean, so that a shift of all logits, which no softmax sees, is
        not punished.
      class_reduction: "sum" over the classes, as in the paper, or "mean" (divided by C), which with `center=True` is
        the limit of `kd` as its temperature grows.

    Returns:
      `[...]`, in squared logits. The published loss is their mean over the batch.

    Raises:
      TypeError: logits are not floating point.
      ValueError: class counts or leading axes differ, or `class_reduction` is neither "sum" nor "mean".

    Paper: Ba, Caruana, "Do Deep Nets Really Need to be Deep?", NIPS 2014, arXiv 1312.6184. The limit of `kd`: Chen,
    "A Note on Knowledge Distillation Loss Function for Object Classification", 2021, arXiv 2109.06458.

    >>> student, teacher = jnp.array([[3.0, 1.0]]), jnp.array([[1.0, 1.0]])
    >>> logit_mse(student, teacher), logit_mse(student, teacher, center=True)
    (Array([2.], dtype=float32), Array([1.], dtype=float32))
    """
    if class_reduction not in ("sum", "mean"):
        raise ValueError(f'class_reduction is {class_reduction!r}; use "sum" or "mean".')
    student, teacher = checks.logits_pair(student_logits, teacher_logits)
    kept = teacher != -jnp.inf
    count = jnp.maximum(jnp.sum(kept, axis=-1, dtype=student.dtype), 1)
    gap = jnp.where(kept, student - jnp.where(kept, teacher, 0), 0)
    if center:
        gap = jnp.where(kept, gap - (jnp.sum(gap, axis=-1) / count)[..., None], 0)
    value = 0.5 * jnp.sum(gap**2, axis=-1)
    return value / count if class_reduction == "mean" else value


def dkd(student_logits, teacher_logits, *, labels, alpha=1.0, beta=8.0, temperature=4.0) -> Array:
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
    >>> print(f"{dkd(student, teacher, labels=jnp.array([0]), temperature=1.0)[0]:.3f}")
    3.109
    """
    student = checks.class_scores(student_logits, "student_logits")
    alpha, beta = checks.per_example(alpha, student, "alpha"), checks.per_example(beta, student, "beta")
    target_part, other_part = dkd_parts(student, teacher_logits, labels=labels, temperature=temperature)
    return alpha * target_part + beta * other_part


def dkd_parts(student_logits, teacher_logits, *, labels, temperature=4.0) -> tuple[Array, Array]:
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
    >>> print(*(f"{part[0]:.4f}" for part in dkd_parts(student, teacher, labels=jnp.array([0]), temperature=1.0)))
    0.1201 0.0000
    """
    student, teacher = checks.logits_pair(student_logits, teacher_logits)
    temperature = checks.softening(temperature, student)
    target = logspace.one_hot(checks.class_indices(labels, student), student.shape[-1])
    student_binary, student_rest = _decouple(student, temperature, target)
    teacher_binary, teacher_rest = _decouple(teacher, temperature, target)
    known = jnp.any(target, axis=-1)
    scale = temperature**2
    target_part = scale * logspace.kl(teacher_binary, student_binary)
    other_part = scale * logspace.kl(teacher_rest, student_rest)
    return jnp.where(known, target_part, jnp.nan), jnp.where(known, other_part, jnp.nan)


def hard_label(student_logits, teacher_logits) -> Array:
    r"""Pulls the student towards the teacher's single most likely class.

    $$-\log p_s(\hat y), \qquad \hat y = \arg\max_c z_t(c)$$

    Args:
      student_logits: `[..., C]`.
      teacher_logits: `[..., C]`, a constant. Of classes that tie, the first counts.

    Returns:
      `[...]` in nats. The published loss is their mean over the batch.

    Raises:
      TypeError: logits are not floating point.
      ValueError: class counts or leading axes differ.

    The limit of `kd` as its temperature falls: Chen, "A Note on Knowledge Distillation Loss Function for Object
    Classification", 2021, arXiv 2109.06458.

    >>> student, teacher = jnp.array([[1.0, 0.0]]), jnp.array([[-2.0, 5.0]])
    >>> print(f"{hard_label(student, teacher)[0]:.4f}")
    1.3133
    """
    student, teacher = checks.logits_pair(student_logits, teacher_logits)
    target = logspace.one_hot(jnp.argmax(teacher, axis=-1), student.shape[-1])
    return -logspace.pick(logspace.log_softmax(student), target)


def _decouple(logits: Array, temperature: Array, target: Array) -> tuple[Array, Array]:
    """Log-probabilities of (label, not label), `[..., 2]`, and of the other classes among themselves, `[..., C]`."""
    log_p = logspace.log_softmax(logits, temperature)
    log_target = jnp.sum(jnp.where(target, log_p, 0), axis=-1)
    log_other = logspace.log_sum_exp(log_p, where=~target)
    # The rest is normalised anew: log_p - log_other would cancel where both are thousands of nats below zero.
    return jnp.stack([log_target, log_other], axis=-1), logspace.log_softmax(logits, temperature, where=~target)

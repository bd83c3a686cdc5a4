"""Teachers corrected by the label: their logits and probabilities, and the losses that do it on the way."""

import numbers

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from kdjax.losses import checks, logspace
from kdjax.losses.logits.logit import kd, logit_mse

__all__ = ["kd_from_probs", "label_revision", "loca_calibrate", "loca_logits", "rc", "swap_logits"]

Array = jax.Array


def swap_logits(teacher_logits: ArrayLike, labels: ArrayLike) -> Array:
    r"""The teacher with the logits of its most likely class and of the label exchanged.

    A teacher that is right stays as it is. One that is wrong is then as sure of the label as it was of its own choice,
    and gives that choice the probability that the label had.

    Args:
      teacher_logits: `[..., C]`, a constant. Of classes that tie for the largest, the first is exchanged.
      labels: `[...]` integers. One outside 0 to C - 1 gives a row of nan, and nan gradients to the student that learns
        from it: put the teacher's own choice there, which changes nothing.

    Returns:
      `[..., C]` logits, a constant, for `kd` or any other loss.

    Raises:
      TypeError: logits are not floating point, or labels not integers.
      ValueError: the shape of `labels` is not that of the logits' leading axes.

    Called LA in: Sun, Chen, Lyu, Chen, Chen, Wang, "Knowledge Distillation with Refined Logits", ICCV 2025, arXiv
    2408.07703, whose code has it as a baseline: `kd` towards this teacher, without cross-entropy.

    >>> print(swap_logits(jnp.array([[3.0, 1.0, 2.0]]), jnp.array([1])))
    [[1. 3. 2.]]
    """
    teacher = lax.stop_gradient(checks.class_scores(teacher_logits, "teacher_logits"))
    target = logspace.one_hot(checks.class_indices(labels, teacher, "teacher_logits"), teacher.shape[-1])
    top = logspace.one_hot(jnp.argmax(teacher, axis=-1), teacher.shape[-1])
    highest = jnp.max(teacher, axis=-1, keepdims=True)
    swapped = jnp.where(top, logspace.pick(teacher, target)[..., None], teacher)
    return jnp.where(_known(target), jnp.where(target, highest, swapped), jnp.nan)


def rc(
    student_logits: ArrayLike, teacher_logits: ArrayLike, labels: ArrayLike, *, temperature: ArrayLike = 4.0
) -> Array:
    r"""Self-correction: pulls the student towards its own prediction with the label's logit raised.

    $$\mathrm{kd}(z_s, \bar z), \qquad \bar z(y) = z_s(y) + \max_c z_s(c), \qquad \bar z(c) = z_s(c) \; (c \ne y)$$

    The target $\bar z$ is a constant. A row without a positive logit has the label's lowered instead, as in the released
    code: the loss, unlike a softmax, sees a shift of all logits.

    Args:
      student_logits: `[..., C]`.
      teacher_logits: not looked at, and None will do: the student is its own teacher. It is here so that every loss
        that corrects by the label is called alike.
      labels: `[...]` integers. A label outside 0 to C - 1 gives nan: hide such rows from the mean.
      temperature: a number, a traced scalar, or an array that broadcasts to the leading axes.

    Returns:
      `[...]` in nats (times `T^2`). The published loss is their mean over the batch, added to the cross-entropy and to
      `kd` towards the teacher.

    Raises:
      TypeError: logits are not floating point, or labels not integers.
      ValueError: the shape of `labels` is not that of the logits' leading axes, or `temperature` is not above 0 or does
        not broadcast.

    Called RC in: Sun, Chen, Lyu, Chen, Chen, Wang, "Knowledge Distillation with Refined Logits", ICCV 2025, arXiv
    2408.07703, whose code has it as a baseline.

    >>> print(f"{rc(jnp.array([[1.0, 0.0]]), None, jnp.array([1]), temperature=1.0)[0]:.4f}")
    0.1201
    """
    del teacher_logits
    student = checks.class_scores(student_logits, "student_logits")
    target = logspace.one_hot(checks.class_indices(labels, student), student.shape[-1])
    raised = jnp.where(target, student + jnp.max(student, axis=-1, keepdims=True), student)
    return jnp.where(jnp.any(target, axis=-1), kd(student, raised, temperature=temperature), jnp.nan)


def label_revision(
    student_logits: ArrayLike,
    teacher_logits: ArrayLike,
    labels: ArrayLike,
    *,
    lambda1: ArrayLike = 4.0,
    lambda2: ArrayLike = 1.0,
    eta: ArrayLike = 0.8,
    where: ArrayLike | None = None,
    axis_name: str | None = None,
) -> Array:
    r"""Pulls towards the teacher's logits where it is right, and towards a blend of teacher and label where it is not.

    Rows are in one of two groups, by whether the teacher's most likely class is the label. With the probabilities $p$
    untempered and $e_y$ the one-hot label,

    $$\text{right:} \quad -\log p_s(y) + \frac{\lambda_1}{C} \lVert z_s - z_t \rVert^2, \qquad
      \text{wrong:} \quad \frac{\lambda_2}{C} \lVert p_s - \beta p_t - (1 - \beta) e_y \rVert^2, \qquad
      \beta = \frac{\eta}{\max_c p_t(c) - p_t(y) + 1}$$

    The label is on top of the blend as long as `eta` is below 1. The published loss is the mean over the right rows plus
    the mean over the wrong ones, so that a rare group weighs as much as a frequent one. To have it as a mean over all
    rows, each value is the expression above times the number of rows over the number in its group.

    Args:
      student_logits: `[B, C]`.
      teacher_logits: `[B, C]`, a constant. Of classes that tie for the largest, the first is its prediction. A class at
        -inf is left out of the distance between logits, and of the C there.
      labels: `[B]` integers. A label outside 0 to C - 1 gives nan, and its row counts in no group and no number.
      lambda1: weight of the distance between logits; a number, a traced scalar or one an example.
      lambda2: weight of the distance between probabilities, likewise.
      eta: share of the teacher in the blend where the label comes close to the top, at least 0 and at most 1, likewise.
      where: `[B]`, bool or 0/1. A False row is as if it were not in the batch, whatever it holds; its value is 0.
      axis_name: the mapped axis under pmap or shard_map, over which the batch is spread; the groups are then counted
        over the global batch. None where the arrays hold the whole batch, as under jit.

    Returns:
      `[B]` for the rows held here. The published loss is their mean over the kept rows of all devices; no other loss is
      added to it.

    Raises:
      TypeError: logits are not floating point, labels not integers.
      ValueError: logits are not `[B, C]` or differ in shape, or a hyperparameter is out of range or does not broadcast.

    Paper: Lan, Cheung, Xu, Liu, Hu, Li, Chen, "Improve Knowledge Distillation via Label Revision and Data Selection",
    IEEE TCDS 2025, arXiv 2404.03693 (the selection of data is not part of this). As in the code of Sun et al. (see
    `swap_logits`), which has it as the baseline LR.

    >>> student, teacher = jnp.array([[1.0, 0.0], [0.0, 0.0]]), jnp.array([[1.0, 0.0], [1.0, 0.0]])
    >>> print([f"{value:.4f}" for value in label_revision(student, teacher, jnp.array([0, 1]))])
    ['0.6265', '0.0200']
    """
    student, teacher = checks.logits_pair(student_logits, teacher_logits)
    if student.ndim != 2:
        raise ValueError(f"student_logits has shape {student.shape}; label_revision counts groups in a batch [B, C].")
    lambda1, lambda2 = checks.per_example(lambda1, student, "lambda1"), checks.per_example(lambda2, student, "lambda2")
    eta = checks.per_example(eta, student, "eta", above=0, below=1)[:, None]
    kept = checks.row_mask(where, student.shape[0])
    student, teacher = jnp.where(kept[:, None], student, 0), jnp.where(kept[:, None], teacher, 0)
    target = logspace.one_hot(checks.class_indices(labels, student), student.shape[-1])
    known = jnp.any(target, axis=-1)
    correct = jnp.any(target & logspace.one_hot(jnp.argmax(teacher, axis=-1), student.shape[-1]), axis=-1)
    right, wrong = kept & known & correct, kept & known & ~correct
    count, count_right, count_wrong = (_count(rows, axis_name, student.dtype) for rows in (kept & known, right, wrong))

    # Each group is computed on its own rows only: what the other holds may have no finite distance.
    own, theirs = jnp.where(right[:, None], student, 0), jnp.where(right[:, None], teacher, 0)
    log_p = logspace.log_softmax(own)
    distance = 2 * logit_mse(own, theirs, class_reduction="mean")
    right_value = -jnp.sum(jnp.where(target, log_p, 0), axis=-1) + lambda1 * distance

    p_t = jnp.exp(logspace.log_softmax(teacher))
    label_share = jnp.sum(jnp.where(target, p_t, 0), axis=-1, keepdims=True)
    share = eta / (jnp.max(p_t, axis=-1, keepdims=True) - label_share + 1)
    gap = jnp.exp(logspace.log_softmax(student)) - share * p_t - (1 - share) * target
    wrong_value = lambda2 * jnp.mean(gap**2, axis=-1)

    value = jnp.where(right, right_value * count / count_right, 0)
    value = jnp.where(wrong, wrong_value * count / count_wrong, value)
    return jnp.where(kept & ~known, jnp.nan, value)


def loca_calibrate(teacher_probs: ArrayLike, labels: ArrayLike, *, alpha: ArrayLike) -> Array:
    r"""The teacher's probabilities with just enough of them given to the label to make it the most likely class.

    Where the most likely class $k$ is not the label, with $s = \alpha / (1 - p(y) + p(k))$:

    $$p'(c) = s \, p(c) \; (c \ne y), \qquad p'(y) = 1 - s \, (1 - p(y))$$

    The other classes keep their ratios. A teacher that is right, or has the label tied on top, stays as it is.

    Args:
      teacher_probs: `[..., C]`, a constant; each row sums to 1. Tempered already, if distillation is.
      labels: `[...]` integers; one outside 0 to C - 1 gives a row of nan.
      alpha: above 0 and below 1; the nearer to 1, the less is changed: at 1 label and k would tie. A number, a traced
        scalar or one an example.

    Returns:
      `[..., C]` probabilities, a constant, for `kd_from_probs`. For a loss that takes logits see `loca_logits`.

    Raises:
      TypeError: probabilities are not floating point, or labels not integers.
      ValueError: the shape of `labels` is not that of the leading axes, or `alpha` is out of range or does not broadcast.

    Paper: Yang, Wu, Yang, "LoCa: Logit Calibration for Knowledge Distillation", ECAI 2024, arXiv 2409.04778. No code is
    released; whether the paper calibrates before or after the temperature is not verified.

    >>> print(loca_calibrate(jnp.array([[0.5, 0.25, 0.25]]), jnp.array([1]), alpha=0.5))
    [[0.2 0.7 0.1]]
    """
    probs = lax.stop_gradient(checks.class_scores(teacher_probs, "teacher_probs"))
    alpha = _calibration(alpha, probs)[..., None]
    target = logspace.one_hot(checks.class_indices(labels, probs, "teacher_probs"), probs.shape[-1])
    highest = jnp.max(probs, axis=-1, keepdims=True)
    label_prob = logspace.pick(probs, target)[..., None]
    scale = alpha / (1 - label_prob + highest)
    calibrated = jnp.where(target, 1 - scale * (1 - label_prob), scale * probs)
    return jnp.where(_known(target), jnp.where(label_prob < highest, calibrated, probs), jnp.nan)


def loca_logits(
    teacher_logits: ArrayLike, labels: ArrayLike, *, alpha: ArrayLike = 0.95, temperature: ArrayLike = 1.0
) -> Array:
    r"""Logits whose probabilities at `temperature` are `loca_calibrate`'s: those of the teacher, the label's raised.

    Where the most likely class $k$ is not the label, only the label's logit changes:

    $$z'(y) = z(k) + T \log \left( \frac{1}{\alpha}
      + \frac{1 - \alpha}{\alpha} \sum_{c \ne y} \exp \frac{z(c) - z(k)}{T} \right)$$

    Args:
      teacher_logits: `[..., C]`, a constant. A label at -inf is raised like any other.
      labels: `[...]` integers. One outside 0 to C - 1 gives a row of nan, and nan gradients to the student that learns
        from it: put the teacher's own choice there, which changes nothing.
      alpha: above 0 and below 1, as for `loca_calibrate`. The default is this package's own, not the paper's.
      temperature: the one that the loss divides these logits by; a number, a traced scalar, or an array that broadcasts
        to the leading axes.

    Returns:
      `[..., C]` logits, a constant, for `kd`, `dkd` and others. All rows, also those of a teacher that is right, are
      shifted so that the teacher's largest logit is 0, which no softmax sees and which keeps every digit of z'(y).

    Raises:
      TypeError: logits are not floating point, or labels not integers.
      ValueError: the shape of `labels` is not that of the leading axes, or `alpha` or `temperature` is out of range or
        does not broadcast.

    Paper: Yang, Wu, Yang, "LoCa: Logit Calibration for Knowledge Distillation", ECAI 2024, arXiv 2409.04778. No code is
    released; whether the paper calibrates before or after the temperature is not verified: here, after.

    >>> teacher = jnp.log(jnp.array([[0.5, 0.25, 0.25]]))
    >>> print([f"{p:.2f}" for p in jax.nn.softmax(loca_logits(teacher, jnp.array([1]), alpha=0.5))[0]])
    ['0.20', '0.70', '0.10']
    """
    teacher = lax.stop_gradient(checks.class_scores(teacher_logits, "teacher_logits"))
    alpha, temperature = _calibration(alpha, teacher), checks.softening(temperature, teacher)
    target = logspace.one_hot(checks.class_indices(labels, teacher, "teacher_logits"), teacher.shape[-1])
    highest = jnp.max(teacher, axis=-1, keepdims=True)
    shifted = jnp.where(highest == -jnp.inf, teacher, teacher - highest)
    others = jnp.sum(jnp.where(target, 0, jnp.exp(shifted / temperature[..., None])), axis=-1)
    raised = temperature * (jnp.log1p((1 - alpha) * others) - jnp.log(alpha))
    wrong = logspace.pick(teacher, target)[..., None] < highest
    return jnp.where(_known(target), jnp.where(target & wrong, raised[..., None], shifted), jnp.nan)


def kd_from_probs(
    student_logits: ArrayLike, teacher_probs: ArrayLike, temperature: ArrayLike = 4.0, *, scale_by_t2: bool = True
) -> Array:
    r"""Distillation from probabilities: pulls the student's softened class probabilities towards those given.

    $$T^2 \sum_c p(c) \left( \log p(c) - \log p_s^T(c) \right), \qquad p_s^T = \mathrm{softmax}(z_s / T)$$

    With `teacher_probs = softmax(z_t / T)` it is `kd`.

    Args:
      student_logits: `[..., C]`.
      teacher_probs: `[..., C]`, a constant, tempered already. A probability of 0 adds nothing; a row that holds nan
        gives nan and no gradient.
      temperature: divides the student's logits; a number, a traced scalar, or an array that broadcasts to the leading
        axes.
      scale_by_t2: False leaves the factor `T^2` out, and the gradient shrinks as `1 / T`.

    Returns:
      `[...]` divergences in nats (times `T^2`); the usual loss is their mean over the batch. inf where the student
      excludes (-inf) a class that has a probability; the gradient is finite there too.

    Raises:
      TypeError: an argument is not floating point.
      ValueError: class counts or leading axes differ, or `temperature` is not above 0 or does not broadcast.

    >>> student, probs = jnp.array([[1.0, 0.0]]), jnp.array([[0.5, 0.5]])
    >>> print(f"{kd_from_probs(student, probs, 1.0)[0]:.4f}")
    0.1201
    """
    student = checks.class_scores(student_logits, "student_logits")
    probs = lax.stop_gradient(checks.class_scores(teacher_probs, "teacher_probs"))
    checks.same_classes(probs, student, "teacher_probs", "student_logits")
    temperature = checks.softening(temperature, student)
    known = ~jnp.any(jnp.isnan(probs), axis=-1)
    probs = jnp.where(known[..., None], probs, 0)
    log_q = logspace.log_softmax(student, temperature)
    divergence = jnp.sum(probs * jnp.where(probs == 0, 0, jnp.log(probs) - log_q), axis=-1)
    return jnp.where(known, temperature**2 * divergence if scale_by_t2 else divergence, jnp.nan)


def _known(target: Array) -> Array:
    return jnp.any(target, axis=-1, keepdims=True)


def _calibration(alpha, like: Array) -> Array:
    if isinstance(alpha, numbers.Real) and not 0 < alpha < 1:
        raise ValueError(f"alpha is {alpha}; it must be above 0 and below 1.")
    return checks.per_example(alpha, like, "alpha")


def _count(rows: Array, axis_name: str | None, dtype) -> Array:
    """How many rows of the global batch are in the mask `rows`, at least 1, as a number to divide by."""
    everywhere = rows if axis_name is None else lax.all_gather(rows, axis_name, axis=0, tiled=True)
    return jnp.maximum(jnp.sum(everywhere, dtype=dtype), 1)

"""Distillation without a better network: from itself, from a teacher made by hand; and how much a teacher varies."""

from typing import Literal

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from kdjax.losses import checks, logspace

__all__ = ["stability_metric", "tf_kd_regularizer", "tf_kd_self"]

Array = jax.Array


def tf_kd_self(
    student_logits: ArrayLike,
    teacher_logits: ArrayLike,
    *,
    temperature: ArrayLike = 20.0,
    multiplier: ArrayLike = 1.0,
    official: bool = True,
) -> Array:
    r"""Teacher-free distillation by self-training: pulls a network towards an earlier one of its own kind.

    $$\frac{m \, T^2}{C} \, \mathrm{KL}(p_t^T \| p_s^T)$$

    The teacher is the same architecture, trained before on the labels alone.

    Args:
      student_logits: `[..., C]`.
      teacher_logits: `[..., C]`, a constant. A class at -inf has no probability and adds nothing.
      temperature: a number, a traced scalar, or an array that broadcasts to the leading axes. Released on CIFAR-100: 6
        for ResNets, 20 for the others.
      multiplier: `m`; a number, a traced scalar or one an example. Released on CIFAR-100: 1 for MobileNetV2 and
        ShuffleNetV2, 50 for ResNet18 and GoogLeNet, 100 for ResNeXt29.
      official: True divides by the number of classes, as the released code does, whose multipliers make up for it;
        False sums over them, and is `kd` times `m`.

    Returns:
      `[...]` in nats (times `T^2`). The published loss is their mean over the batch, `(1 - α) CE + α` times it.

    Raises:
      TypeError: logits are not floating point.
      ValueError: class counts or leading axes differ, or a hyperparameter does not fit.

    Paper: Yuan, Tay, Li, Wang, Feng, "Revisiting Knowledge Distillation via Label Smoothing Regularization", CVPR 2020,
    arXiv 1909.11723.

    >>> student, teacher = jnp.array([[1.0, 0.0]]), jnp.array([[0.0, 0.0]])
    >>> print(f"{tf_kd_self(student, teacher, temperature=1.0)[0]:.4f}")  # half of 0.1201
    0.0601
    """
    student, teacher = checks.logits_pair(student_logits, teacher_logits)
    temperature = checks.softening(temperature, student)
    multiplier = checks.per_example(multiplier, student, "multiplier")
    divergence = logspace.kl(logspace.log_softmax(teacher, temperature), logspace.log_softmax(student, temperature))
    return multiplier * temperature**2 * divergence / (student.shape[-1] if official else 1)


def tf_kd_regularizer(
    student_logits: ArrayLike,
    labels: ArrayLike,
    *,
    temperature: ArrayLike = 20.0,
    multiplier: ArrayLike = 1.0,
    correct_prob: ArrayLike = 0.99,
    official: bool = True,
) -> Array:
    r"""Teacher-free distillation by a rule: pulls towards a teacher made by hand that is nearly always right.

    The virtual teacher $v$ has `correct_prob` on the label and the rest spread evenly over the other classes. As
    released, it goes through another softmax, and the student is not softened:

    $$\frac{m}{C} \, \mathrm{KL}\left( \mathrm{softmax}(v / T) \,\|\, p_s \right)$$

    A softmax of probabilities is nearly uniform, and the more so at a high temperature. As the paper means it,
    `official=False`, the temperature softens $v$ itself and the student alike:

    $$m \, T^2 \, \mathrm{KL}\left( v^{1/T} / \textstyle\sum_c v(c)^{1/T} \,\|\, p_s^T \right)$$

    Args:
      student_logits: `[..., C]`.
      labels: `[...]` integers. A label outside 0 to C - 1 gives nan: hide such rows from the mean.
      temperature: a number, a traced scalar, or an array that broadcasts to the leading axes. Released on CIFAR-100: 10
        for ShuffleNetV2, 20 for ResNet18, 40 for MobileNetV2 and GoogLeNet.
      multiplier: `m`; a number, a traced scalar or one an example. Released with these, in turn: 1, 100, 1 and 50.
      correct_prob: the virtual teacher's trust in the label, 0 to 1; a number, a traced scalar or one an example.
      official: the released form, or the one of the paper.

    Returns:
      `[...]` in nats. The published loss is their mean over the batch, `(1 - α) CE + α` times it.

    Raises:
      TypeError: logits are not floating point, or labels not integers.
      ValueError: shapes do not fit, `correct_prob` is a number outside 0 to 1, or a hyperparameter does not fit.

    Paper: Yuan, Tay, Li, Wang, Feng, "Revisiting Knowledge Distillation via Label Smoothing Regularization", CVPR 2020,
    arXiv 1909.11723.

    >>> student, labels = jnp.array([[0.0, 0.0]]), jnp.array([0])
    >>> for official in True, False:
    ...     print(f"{tf_kd_regularizer(student, labels, temperature=1.0, official=official)[0]:.4f}")
    0.0535
    0.6371
    """
    student = checks.class_scores(student_logits, "student_logits")
    classes = student.shape[-1]
    target = logspace.one_hot(checks.class_indices(labels, student), classes)
    temperature = checks.softening(temperature, student)
    multiplier = checks.per_example(multiplier, student, "multiplier")
    correct = checks.per_example(correct_prob, student, "correct_prob", above=0, below=1)[..., None]
    teacher = lax.stop_gradient(jnp.where(target, correct, (1 - correct) / max(classes - 1, 1)))
    if official:
        divergence = logspace.kl(logspace.log_softmax(teacher, temperature), logspace.log_softmax(student)) / classes
    else:
        log_teacher = jnp.log(teacher)
        divergence = temperature**2 * logspace.kl(
            logspace.log_softmax(log_teacher, temperature), logspace.log_softmax(student, temperature)
        )
    return jnp.where(jnp.any(target, axis=-1), multiplier * divergence, jnp.nan)


def stability_metric(
    probs: ArrayLike, labels: ArrayLike, num_classes: int, *, entry: Literal["vector", "label"] = "vector"
) -> Array:
    r"""How alike a network answers the examples of one class: 1 for always the same, less the more it varies.

    $$S = 1 - \frac{1}{K} \sum_c \frac{1}{n_c} \sum_{i \in c} \left\| p_i - \bar p_c \right\|^2$$

    with $\bar p_c$ the mean over the $n_c$ examples of class `c`. Label smoothing raises it: $1 - S$ is the variation
    within classes that a student could still learn from, and what the paper prints.

    Args:
      probs: `[N, K]` probabilities, usually of a whole split.
      labels: `[N]` integers. Rows with a label outside 0 to `num_classes - 1` are left out, whatever they hold.
      num_classes: how many classes there are; a Python integer.
      entry: "vector" takes the squared norm over all K entries; "label" that of the entry of the example's own class
        alone, which asks for `K == num_classes`.

    Returns:
      `[]`. Classes without an example are left out of the mean; 1 if there is no example at all.

    Raises:
      TypeError: `probs` is not floating point, or labels not integers.
      ValueError: shapes do not fit, or `entry` is neither "vector" nor "label".

    Paper: Shen, Liu, Xu, Chen, Cheng, Savvides, "Is Label Smoothing Truly Incompatible with Knowledge Distillation?",
    ICLR 2021, arXiv 2104.00676. Its formula can be read either way.

    >>> probs, labels = jnp.array([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0]]), jnp.array([0, 0, 1])
    >>> print(f"{stability_metric(probs, labels, 2):.2f} {stability_metric(probs, labels, 2, entry='label'):.3f}")
    0.75 0.875
    """
    if entry not in ("vector", "label"):
        raise ValueError(f'entry is {entry!r}; use "vector" or "label".')
    probs = checks.class_scores(probs, "probs")
    if probs.ndim != 2:
        raise ValueError(f"probs has shape {probs.shape}; give [N, K], one row an example.")
    if entry == "label" and probs.shape[-1] != num_classes:
        raise ValueError(f'probs has {probs.shape[-1]} columns, num_classes is {num_classes}: "label" needs as many.')
    member = logspace.one_hot(checks.class_indices(labels, probs, "probs"), num_classes)
    probs = jnp.where(jnp.any(member, axis=-1, keepdims=True), probs, 0)
    share = member.astype(probs.dtype)
    counts = jnp.sum(share, axis=0)
    filled = jnp.maximum(counts, 1)
    means = jnp.einsum("nc,nk->ck", share, probs, precision=lax.Precision.HIGHEST) / filled[:, None]
    gaps = probs - jnp.einsum("nc,ck->nk", share, means, precision=lax.Precision.HIGHEST)
    if entry == "label":
        gaps = jnp.where(member, gaps, 0)
    squares = jnp.einsum("nc,n->c", share, jnp.sum(gaps**2, axis=-1), precision=lax.Precision.HIGHEST)
    return 1 - jnp.sum(squares / filled) / jnp.maximum(jnp.sum(counts > 0, dtype=probs.dtype), 1)

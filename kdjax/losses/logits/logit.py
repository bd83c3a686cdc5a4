"""Losses between the logits of two networks."""

from typing import Literal

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from kdjax.losses import checks, logspace

__all__ = ["hard_label", "kd", "logit_mse"]

Array = jax.Array


def kd(
    student_logits: ArrayLike, teacher_logits: ArrayLike, *, temperature: ArrayLike = 4.0, scale_by_t2: bool = True
) -> Array:
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
    student_logits: ArrayLike,
    teacher_logits: ArrayLike,
    *,
    center: bool = False,
    class_reduction: Literal["sum", "mean"] = "sum",
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


def hard_label(student_logits: ArrayLike, teacher_logits: ArrayLike) -> Array:
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

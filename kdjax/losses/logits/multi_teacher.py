"""More than one teacher, and none: several at once, an ensemble as one, and noise in a teacher's place."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from kdjax.losses import checks, logspace

__all__ = ["ensemble_logits", "multi_teacher_kd", "random_teacher_logits"]

Array = jax.Array


def multi_teacher_kd(
    student_logits: ArrayLike,
    teacher_logits: ArrayLike | Sequence[ArrayLike],
    *,
    weights: ArrayLike | None = None,
    temperature: ArrayLike = 4.0,
) -> Array:
    r"""Distillation from M teachers: pulls towards each of them, by its weight.

    $$T^2 \sum_k w_k \, \mathrm{KL}(p_{t,k}^T \| p_s^T)$$

    With weights that sum to 1 its gradient is that of `kd` from the teachers' average probabilities at temperature T;
    `ensemble_logits` averages them at temperature 1 instead.

    Args:
      student_logits: `[..., C]`.
      teacher_logits: `[..., M, C]`, a constant: the teachers on the axis before the classes. A class at -inf has no
        probability.
      weights: of the teachers, an array that broadcasts to `[..., M]`, used as it is; None for `1 / M` each. A teacher
        of weight 0 adds nothing, even where its divergence is infinite.
      temperature: a number, a traced scalar, or an array that broadcasts to the leading axes of the student's logits.

    Returns:
      `[...]` divergences in nats (times `T^2`). The published loss is their mean over the batch.

    Raises:
      TypeError: logits are not floating point.
      ValueError: there is no teacher, shapes do not fit, or `temperature` is not above 0 or does not broadcast.

    Paper: Ruffy, Chahal, "The State of Knowledge Distillation for Classification", 2019, arXiv 1912.10850, whose code
    takes the mean over the teachers.

    >>> student, teachers = jnp.array([[1.0, 0.0]]), jnp.array([[[1.0, 0.0], [0.0, 0.0]]])
    >>> print(f"{multi_teacher_kd(student, teachers, temperature=1.0)[0]:.4f}")  # half of 0 and 0.1201
    0.0601
    """
    student = checks.class_scores(student_logits, "student_logits")
    teachers = lax.stop_gradient(checks.class_scores(teacher_logits, "teacher_logits"))
    *leading, classes = student.shape
    if teachers.ndim != student.ndim + 1 or [*teachers.shape[:-2], teachers.shape[-1]] != [*leading, classes]:
        raise ValueError(
            f"teacher_logits has shape {teachers.shape}, student_logits {student.shape}: give [..., M, C] for [..., C], "
            "the teachers on the axis before the classes."
        )
    members = teachers.shape[-2]
    if not members:
        raise ValueError("teacher_logits has no teacher: its axis before the classes must be at least 1 long.")
    weights = checks.per_example(1 / members if weights is None else weights, teachers, "weights")
    temperature = checks.softening(temperature, student)
    log_p = logspace.log_softmax(teachers, jnp.broadcast_to(temperature[..., None], weights.shape))
    divergences = logspace.kl(log_p, logspace.log_softmax(student, temperature)[..., None, :])
    divergences = jnp.where((weights == 0) & (divergences == jnp.inf), 0, divergences)
    return temperature**2 * jnp.sum(weights * divergences, axis=-1)


def ensemble_logits(logits: ArrayLike | Sequence[ArrayLike], *, axis: int = 0) -> Array:
    r"""Several networks as one: the log-probabilities of their average, which serve as its logits.

    $$z = \log \left( \frac{1}{M} \sum_m \mathrm{softmax}(z_m) \right)$$

    A temperature then softens the average, not the members.

    Args:
      logits: `[M, ..., C]`, or with the M members on another axis but the last.
      axis: where the members are.

    Returns:
      `[..., C]` log-probabilities, without the axis of the members. -inf where all members exclude a class. Gradients
      go into every member.

    Raises:
      TypeError: logits are not floating point.
      ValueError: `axis` is none of the axes or that of the classes, or there is no member.

    Used so by Stanton, Izmailov, Kirichenko, Alemi, Wilson, "Does Knowledge Distillation Really Work?", NeurIPS 2021,
    arXiv 2106.05945.

    >>> two = jnp.log(jnp.array([[[0.9, 0.1]], [[0.5, 0.5]]]))
    >>> print(*(f"{p:.2f}" for p in jnp.exp(ensemble_logits(two))[0]))
    0.70 0.30
    """
    logits = checks.class_scores(logits, "logits")
    if not -logits.ndim <= axis < logits.ndim or axis % logits.ndim == logits.ndim - 1:
        raise ValueError(
            f"axis is {axis}, logits has shape {logits.shape}: name the axis of the members; the last holds the classes."
        )
    if not logits.shape[axis]:
        raise ValueError(f"logits has shape {logits.shape}: its axis {axis} must hold at least one member.")
    members = jnp.moveaxis(logspace.log_softmax(logits), axis, -1)
    total = logspace.log_sum_exp(members, where=jnp.ones(members.shape, bool))
    return total - jnp.log(jnp.asarray(members.shape[-1], logits.dtype))


def random_teacher_logits(key: ArrayLike, shape: tuple[int, ...], scale: ArrayLike = 1.0) -> Array:
    r"""A teacher that knows nothing: Gaussian noise in the place of logits, the control for what a teacher transfers.

    A loss that helps as much with these as with a trained teacher's logits regularises and teaches nothing.

    Args:
      key: a PRNG key. For a teacher that answers an example alike whenever asked, derive it from the example's index.
      shape: of the logits, `(..., C)`.
      scale: standard deviation; a number or a traced scalar.

    Returns:
      float32 logits of `shape`.

    Raises:
      TypeError: `shape` is no tuple of whole numbers.

    Control of Mason-Williams, Mason-Williams, Yannakoudakis, "Rethinking Knowledge Distillation: A Data Dependent
    Regulariser With a Negative Asymmetric Payoff", 2025, arXiv 2510.12615, which takes random outputs; that they be
    Gaussian logits is the choice made here.

    >>> noise = random_teacher_logits(jax.random.key(0), (4, 10), 3.0)
    >>> noise.shape, noise.dtype
    ((4, 10), dtype('float32'))
    """
    return jnp.asarray(scale, jnp.float32) * jax.random.normal(key, shape, jnp.float32)

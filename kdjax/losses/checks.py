"""What every loss asks of its arguments. Messages name the argument and the mend."""

import math
import numbers

import chex
import jax
import jax.numpy as jnp
from jax import lax

Array = jax.Array


def floating(array, name: str) -> Array:
    """`array` in the precision losses compute in: bfloat16 and float16 become float32, wider types stay."""
    array = jnp.asarray(array)
    chex.assert_type(
        array, float, custom_message=f"{name} must be floating point; convert it first", exception_type=TypeError
    )
    return array.astype(jnp.promote_types(array.dtype, jnp.float32))


def class_scores(logits, name: str) -> Array:
    """`[..., C]` logits with at least one class, promoted by `floating`."""
    logits = floating(logits, name)
    chex.assert_axis_dimension_gteq(
        logits,
        -1,
        1,
        custom_message=f"{name} must be [..., C] with at least one class; classes go on the last axis",
        exception_type=ValueError,
    )
    return logits


def logits_pair(student_logits, teacher_logits) -> tuple[Array, Array]:
    """Both networks' logits, promoted, of one shape; no gradient goes into the teacher's."""
    student = class_scores(student_logits, "student_logits")
    teacher = lax.stop_gradient(class_scores(teacher_logits, "teacher_logits"))
    same_classes(teacher, student, "teacher_logits", "student_logits")
    return student, teacher


def same_classes(other: Array, reference: Array, name: str, reference_name: str) -> None:
    """Raises unless the two have the same class count and the same leading axes."""
    theirs, ours = other.shape[-1], reference.shape[-1]
    if theirs != ours:
        raise ValueError(
            f"{name} has {theirs} classes, {reference_name} {ours}: select the classes that both know from the last "
            "axis of each first, in one order."
        )
    if other.shape != reference.shape:
        raise ValueError(
            f"{name} has leading axes {other.shape[:-1]}, {reference_name} {reference.shape[:-1]}: give the values of "
            "the same examples, in the same order."
        )


def class_indices(labels, logits: Array, name: str = "student_logits") -> Array:
    """Integer `labels`, one for each row of `logits`, which messages call `name`."""
    labels = jnp.asarray(labels)
    chex.assert_type(
        labels,
        int,
        custom_message="labels must be integer class indices; give probabilities to cross_entropy_with_targets",
        exception_type=TypeError,
    )
    if labels.shape != logits.shape[:-1]:
        raise ValueError(
            f"labels has shape {labels.shape}, {name} leading axes {logits.shape[:-1]}: give one class index "
            "for each row of logits."
        )
    return labels.astype(jnp.int32)


def per_example(value, like: Array, name: str, *, above: float = -math.inf, below: float = math.inf) -> Array:
    """A hyperparameter as one value for each row of `like`, in its precision.

    Args:
      value: a number, a traced scalar, or an array that broadcasts to the leading axes `like.shape[:-1]`.
      like: `[..., C]`.
      name: what messages call it.
      above, below: closed bounds. Only Python and NumPy numbers are checked: a traced value is not known yet, and
        reading an array on a device would stall the host.
    """
    if isinstance(value, numbers.Real) and not above <= value <= below:
        raise ValueError(f"{name} is {value}; it must be at least {above} and at most {below}.")
    value = jnp.asarray(value, like.dtype)
    leading = like.shape[:-1]
    try:
        fits = jnp.broadcast_shapes(value.shape, leading) == leading
    except ValueError:
        fits = False
    if not fits:
        raise ValueError(
            f"{name} has shape {value.shape}, which does not broadcast to the leading axes {leading}: give a number, "
            "or one value for each example."
        )
    # Reshaped by hand, so that it also works where implicit rank promotion is an error.
    return jnp.broadcast_to(jnp.reshape(value, (1,) * (len(leading) - value.ndim) + value.shape), leading)


def softening(temperature, like: Array, name: str = "temperature") -> Array:
    """A temperature as one value for each row of `like`; a number that is not above 0 is refused."""
    if isinstance(temperature, numbers.Real) and not 0 < temperature < math.inf:
        raise ValueError(f"{name} is {temperature}; it divides the logits and must be above 0 and finite.")
    return per_example(temperature, like, name)


def features_pair(student_features, teacher_features) -> tuple[Array, Array]:
    """Both networks' `[B, ...]` features, promoted, of the same examples; no gradient goes into the teacher's."""
    student = floating(student_features, "student_features")
    teacher = lax.stop_gradient(floating(teacher_features, "teacher_features"))
    for array, name in (student, "student_features"), (teacher, "teacher_features"):
        chex.assert_axis_dimension_gteq(
            array, 0, 0, custom_message=f"{name} must be [B, ...], examples first", exception_type=ValueError
        )
    if student.shape[0] != teacher.shape[0]:
        raise ValueError(
            f"teacher_features has {teacher.shape[0]} examples, student_features {student.shape[0]}: give the features "
            "of the same batch, examples on the first axis."
        )
    return student, teacher


def row_mask(where, rows: int) -> Array:
    """Boolean `[rows]` mask of a batch, of bools or of 0 and 1; None keeps every row."""
    if where is None:
        return jnp.ones(rows, bool)
    where = jnp.asarray(where)
    if where.shape != (rows,):
        raise ValueError(f"where has shape {where.shape}, the batch {rows} examples: give one bool an example.")
    return where != 0


def token_weights(mask, logits: Array) -> Array:
    """`mask` as a constant weight for each position of `logits`, in its precision."""
    if mask is None:
        return jnp.ones(logits.shape[:-1], logits.dtype)
    mask = jnp.asarray(mask)
    if mask.shape != logits.shape[:-1]:
        raise ValueError(
            f"mask has shape {mask.shape}, student_logits leading axes {logits.shape[:-1]}: give one value a position."
        )
    return lax.stop_gradient(mask.astype(logits.dtype))

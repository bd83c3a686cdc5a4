"""Multi-level logit distillation: example by example, between the examples of a batch, and between the classes."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from kdjax.losses import checks, logspace

__all__ = ["mlld", "mlld_levels"]

Array = jax.Array

# Of the temperatures, as many as this meet the strong view in the released code; the later ones meet the weak view.
_RELEASED_STRONG = 3


class _View(NamedTuple):
    """Both networks' logits of the global batch; rows that are left out are zero."""

    student: Array
    teacher: Array


def mlld(
    student_logits: ArrayLike,
    teacher_logits: ArrayLike,
    *,
    student_logits_strong: ArrayLike | None = None,
    teacher_logits_strong: ArrayLike | None = None,
    official: bool = False,
    temperatures: Sequence[ArrayLike] = (4.0, 3.0, 5.0, 2.0, 6.0),
    where: ArrayLike | None = None,
    axis_name: str | None = None,
) -> dict[str, Array]:
    r"""Multi-level logit distillation: pulls towards the teacher's predictions, and its likeness of examples and classes.

    The levels of `mlld_levels`, summed over the temperatures and over one or two views of the images. On the plain
    ("weak") view, only the half of the examples (for "kd" and "bc") and of the classes (for "cc") counts that the
    teacher is less sure of. The strongly augmented view adds its "kd" and "cc" without a mask, and its "bc" with the
    weak view's. Without strong logits there is one view.

    Args:
      student_logits: `[B, C]` of the weak view.
      teacher_logits: `[B, C]` of the weak view, a constant.
      student_logits_strong: `[B, C]` of the strong view of the same images, or None.
      teacher_logits_strong: likewise; a constant.
      official: True repeats what the released code does instead: (1) a mask is only a factor, the share of what it
        keeps (about one half); (2) from the fourth temperature on, the strong view's "kd" is computed on the weak
        logits; (3) the strong view has no "cc" and "bc".
      temperatures: a sequence, in which each is a number, a traced scalar or one an example.
      where: `[B]`, bool or 0/1. A False row is as if it were not in the batch, whatever it holds, nan included.
      axis_name: the mapped axis under pmap or shard_map, over which the batch is spread; None where the arrays hold the
        whole batch, as under jit.

    Returns:
      Scalars for the whole (global) batch, alike on all devices, and 0 for an empty mask: "kd" in nats (times `T^2`),
      "cc" and "bc". The published loss is their sum, times a weight, beside the cross-entropies of both views.

    Raises:
      TypeError: logits are not floating point.
      ValueError: logits are not `[B, C]` of one shape, one strong view comes without the other, `temperatures` is empty,
        or one of them is not above 0 or does not broadcast.

    Paper: Jin, Wang, Lin, "Multi-Level Logit Distillation", CVPR 2023. The default is the design that the released code
    spells out but does not carry through; published figures are from `official=True`.

    >>> student, teacher = jnp.array([[1.0, 0.0], [0.0, 2.0]]), jnp.array([[0.0, 0.0], [2.0, 0.0]])
    >>> print({name: f"{value:.3f}" for name, value in mlld(student, teacher, temperatures=(1.0, 2.0)).items()})
    {'kd': '0.122', 'cc': '0.235', 'bc': '0.023'}
    """
    temperatures = tuple(temperatures)
    if not temperatures:
        raise ValueError("temperatures is empty; give at least one.")
    weak, kept, temperatures = _global_batch(student_logits, teacher_logits, temperatures, where, axis_name)
    strong = None
    if (student_logits_strong is None) != (teacher_logits_strong is None):
        raise ValueError("give student_logits_strong and teacher_logits_strong both, or neither.")
    if student_logits_strong is not None:
        strong, _, _ = _global_batch(student_logits_strong, teacher_logits_strong, (), where, axis_name)
        checks.same_classes(strong.student, weak.student, "student_logits_strong", "student_logits")
    all_rows, all_classes = kept.astype(weak.student.dtype), jnp.ones_like(weak.student[0])
    rows, classes = (mask.astype(all_rows.dtype) for mask in _unsure(weak.teacher, kept))
    if official:
        rows, classes = _share(rows, jnp.sum(all_rows)) * all_rows, _share(classes, classes.size) * all_classes
    by_view = [(weak, temperatures, {"kd_rows": rows, "bc_rows": rows, "classes": classes})]
    if strong is not None:
        unmasked = {"kd_rows": all_rows, "bc_rows": rows, "classes": all_classes}
        met = _RELEASED_STRONG if official else len(temperatures)
        by_view += [(strong, temperatures[:met], unmasked), (weak, temperatures[met:], unmasked)]
    terms = [_summed(view, kept, several, weights) for view, several, weights in by_view if several]
    return {
        level: sum(term[level] for term in (terms[:1] if official and level != "kd" else terms))
        for level in ("kd", "cc", "bc")
    }


def mlld_levels(
    student_logits: ArrayLike,
    teacher_logits: ArrayLike,
    *,
    temperature: ArrayLike = 4.0,
    where: ArrayLike | None = None,
    axis_name: str | None = None,
) -> dict[str, Array]:
    r"""The three levels of `mlld` for one view at one temperature.

    With $P$ the `[B, C]` probabilities at temperature $T$:

    $$\mathrm{kd} = \frac{T^2}{B} \sum_i m_i \, \mathrm{KL}(P_t[i] \| P_s[i]), \qquad
      \mathrm{bc} = \frac{1}{B} \sum_{ij} m_i \, (P_t P_t^\top - P_s P_s^\top)_{ij}^2, \qquad
      \mathrm{cc} = \frac{1}{C} \sum_{cd} n_c \, (P_t^\top P_t - P_s^\top P_s)_{cd}^2$$

    $m_i$ is 1 for the examples whose largest teacher probability (at temperature 1) is at most the median of the batch,
    and $n_c$ for the classes whose teacher probability, summed over the batch, is at most the median of the classes; 0
    for the others. The counts B and C are of all, so the masks halve the levels.

    Args:
      student_logits: `[B, C]`.
      teacher_logits: `[B, C]`, a constant. A class at -inf has no probability.
      temperature: a number, a traced scalar, or one value an example.
      where: `[B]`, bool or 0/1. A False row is as if it were not in the batch, whatever it holds, nan included.
      axis_name: the mapped axis under pmap or shard_map, over which the batch is spread; None where the arrays hold the
        whole batch, as under jit.

    Returns:
      Scalars for the whole (global) batch, alike on all devices, and 0 for an empty mask: "kd" in nats (times `T^2`),
      "cc" and "bc". "kd" is inf where the student excludes (-inf) a class that the teacher believes in.

    Raises:
      TypeError: logits are not floating point.
      ValueError: logits are not two `[B, C]` of one shape, or `temperature` is not above 0 or does not broadcast.

    Paper: Jin, Wang, Lin, "Multi-Level Logit Distillation", CVPR 2023.

    >>> student, teacher = jnp.array([[1.0, 0.0], [0.0, 2.0]]), jnp.array([[0.0, 0.0], [2.0, 0.0]])
    >>> print({name: f"{value:.3f}" for name, value in mlld_levels(student, teacher, temperature=1.0).items()})
    {'kd': '0.060', 'cc': '0.172', 'bc': '0.021'}
    """
    view, kept, (temperature,) = _global_batch(student_logits, teacher_logits, (temperature,), where, axis_name)
    rows, classes = (mask.astype(view.student.dtype) for mask in _unsure(view.teacher, kept))
    return _levels(view, kept, temperature, kd_rows=rows, bc_rows=rows, classes=classes)


def _global_batch(student_logits, teacher_logits, temperatures, where, axis_name: str | None):
    """The view, the mask and the temperatures (one a row) of the rows of all devices."""
    student, teacher = checks.logits_pair(student_logits, teacher_logits)
    if student.ndim != 2:
        raise ValueError(f"student_logits has shape {student.shape}; reshape both networks' logits to [B, C].")
    kept = checks.row_mask(where, student.shape[0])
    view = _View(*(jnp.where(kept[:, None], logits, 0) for logits in (student, teacher)))
    temperatures = [checks.softening(temperature, student) for temperature in temperatures]
    if axis_name is None:
        return view, kept, temperatures
    return jax.tree.map(lambda x: lax.all_gather(x, axis_name, axis=0, tiled=True), (view, kept, temperatures))


def _summed(view: _View, kept: Array, temperatures: Sequence[Array], weights: dict[str, Array]) -> dict[str, Array]:
    """`_levels` summed over temperatures: one program for all of them, which is compiled in a fraction of the time."""
    several = jax.vmap(lambda temperature: _levels(view, kept, temperature, **weights))(jnp.stack(temperatures))
    return jax.tree.map(lambda values: jnp.sum(values, axis=0), several)


def _levels(
    view: _View, kept: Array, temperature: Array, *, kd_rows: Array, bc_rows: Array, classes: Array
) -> dict[str, Array]:
    """The levels, with a weight for every row (`[B]`) and class (`[C]`)."""
    count = jnp.maximum(jnp.sum(kept, dtype=view.student.dtype), 1)
    log_student, log_teacher = (logspace.log_softmax(logits, temperature) for logits in view)
    divergence = temperature**2 * logspace.kl(log_teacher, log_student)
    student, teacher = (jnp.where(kept[:, None], jnp.exp(log_p), 0) for log_p in (log_student, log_teacher))
    between_rows = jnp.sum(_gap("ic,jc->ij", student, teacher) ** 2, axis=1)
    between_classes = jnp.sum(_gap("bi,bj->ij", student, teacher) ** 2, axis=1)
    return {
        # A row that does not count may be infinite.
        "kd": jnp.sum(jnp.where(kd_rows > 0, kd_rows * divergence, 0)) / count,
        "cc": jnp.sum(classes * between_classes) / classes.size,
        "bc": jnp.sum(bc_rows * between_rows) / count,
    }


def _gap(indices: str, student: Array, teacher: Array) -> Array:
    """How far the networks' products of probabilities are apart."""
    products = (jnp.einsum(indices, p, p, precision=lax.Precision.HIGHEST) for p in (teacher, student))
    return next(products) - next(products)


def _unsure(teacher: Array, kept: Array) -> tuple[Array, Array]:
    """Boolean `[B]` and `[C]`: the rows and classes in which the teacher trusts at most as in the median one."""
    p = jnp.where(kept[:, None], jnp.exp(logspace.log_softmax(teacher)), 0)
    return _lower_half(jnp.max(p, axis=1), kept), _lower_half(jnp.sum(p, axis=0), jnp.ones_like(p[0], bool))


def _lower_half(values: Array, kept: Array) -> Array:
    """Which kept values are at most the median of the kept ones."""
    # To be at most the mean of the two middle values is to be at most the lower one, whatever the mean is rounded to.
    ordered = jnp.sort(jnp.where(kept, values, jnp.inf))
    middle = (jnp.sum(kept) - 1) // 2
    median = jnp.sum(jnp.where(jnp.arange(values.size) == middle, ordered, 0))
    return kept & (values <= median)


def _share(mask: Array, count) -> Array:
    return jnp.sum(mask) / jnp.maximum(count, 1)

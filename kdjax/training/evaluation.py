"""Evaluation of a student and its teacher side by side, exact over a last partial batch."""

from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from kdjax.reduction import gather_rows, sum_over_devices
from kdjax.training.metrics import class_means, class_sums
from kdjax.training.state import Variables
from kdjax.types import Array, Axis, Batch, Network, pytree

Sums = dict[str, dict[str, Any]]


@pytree
class PerExample:
    """What is kept of every example of an evaluation instead of being summed: an array `[B, ...]` of this device's rows."""

    rows: Array


def make_evaluation(
    student: Network,
    teacher: Network | None,
    *,
    views: Callable[[Any], Any] = lambda x: x,
    sums: Callable[[Any, Any, Batch], Sums] = class_sums,
    axis: Axis = None,
) -> Callable[[Variables, Variables | None, Batch], Sums]:
    """A function `(student variables, teacher variables, batch) -> sums`, to be compiled by a runner.

    Args:
      student, teacher: networks; the second may be None.
      views: what the networks see of a batch's inputs.
      sums: `(student output, teacher output or None, batch) -> {"student": sums, "teacher": sums}`, of this device's rows.
      axis: name of the mapped axis under pmap and shard_map.
    """

    def evaluate(student_variables, teacher_variables, batch):
        inputs = views(batch.inputs)
        student_output, _ = student.apply(
            student_variables.params, student_variables.state, inputs, train=False, axis=axis
        )
        teacher_output = None
        if teacher is not None:
            teacher_output, _ = teacher.apply(
                teacher_variables.params, teacher_variables.state, inputs, train=False, axis=axis
            )
        return {
            role: {name: _over_devices(value, axis) for name, value in values.items()}
            for role, values in sums(student_output, teacher_output, batch).items()
        }

    evaluate.axis = axis
    return evaluate


def evaluate(
    compiled: Callable,
    student: Variables,
    teacher: Variables | None,
    batches: Iterable[Batch],
    means: Callable[[dict[str, Any]], dict[str, float]] = class_means,
) -> dict[str, dict[str, float]]:
    """Runs a compiled evaluation over batches that a runner has placed: `{"student": means, "teacher": means}`.

    `means` makes the numbers of the summed-up sums of one role; what is `PerExample` it is given of all examples, `[N, ...]`.
    """
    totals, kept = None, []
    for batch in batches:
        said = compiled(student, teacher, batch)
        kept.append(_part(said, per_example=True))
        sums = _part(said, per_example=False)
        totals = sums if totals is None else jax.tree.map(jnp.add, totals, sums)
    if totals is None:
        raise ValueError("There is nothing to evaluate: the split is empty.")
    totals, kept = jax.device_get((totals, kept))
    whole = jax.tree.map(lambda *parts: np.concatenate(parts), *kept)
    return {role: means(values | whole[role]) for role, values in totals.items()}


def _over_devices(value: Any, axis: Axis) -> Any:
    return PerExample(gather_rows(value.rows, axis)) if isinstance(value, PerExample) else sum_over_devices(value, axis)


def _part(said: Sums, *, per_example: bool) -> Sums:
    """The rows of what is kept of every example, or else the sums."""
    return {
        role: {name: value.rows if per_example else value for name, value in values.items()
               if isinstance(value, PerExample) == per_example}
        for role, values in said.items()
    }  # fmt: skip

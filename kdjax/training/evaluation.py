"""Evaluation of a student and its teacher side by side, exact over a last partial batch."""

from collections.abc import Callable, Iterable

import jax
import jax.numpy as jnp
import numpy as np

from kdjax import losses
from kdjax.reduction import sum_over_devices
from kdjax.training.state import Variables
from kdjax.training.step import same_classes
from kdjax.types import Array, Axis, Batch, ModelOutput, Network

BINS = 15  # equal-width confidence bins of the calibration error

Sums = dict[str, dict[str, Array]]


def make_evaluation(
    student: Network, teacher: Network | None, *, views: Callable[[Array], Array] = lambda x: x, axis: Axis = None
) -> Callable[[Variables, Variables | None, Batch], Sums]:
    """A function `(student variables, teacher variables, batch) -> sums`, to be compiled by a runner."""

    def evaluate(student_variables, teacher_variables, batch):
        inputs = views(batch.inputs)
        student_output, _ = student.apply(
            student_variables.params, student_variables.state, inputs, train=False, axis=axis
        )
        sums = {"student": classification_sums(student_output, batch)}
        if teacher is not None:
            teacher_output, _ = teacher.apply(
                teacher_variables.params, teacher_variables.state, inputs, train=False, axis=axis
            )
            if same_classes(student_output, teacher_output):
                sums["teacher"] = classification_sums(teacher_output, batch)
                sums["student"] |= comparison_sums(student_output, teacher_output, batch)
        return sum_over_devices(sums, axis)

    evaluate.axis = axis
    return evaluate


def classification_sums(output: ModelOutput, batch: Batch) -> dict[str, Array]:
    """Sums over the rows that exist: count, hits, negative log-likelihood, and calibration bins."""
    logits = output.logits.astype(jnp.float32)
    where = batch.where
    log_p = jax.nn.log_softmax(logits)
    confidence = jnp.exp(jnp.max(log_p, axis=-1))
    correct = jnp.argmax(logits, axis=-1) == batch.labels
    label = batch.labels[:, None]
    label_logit = jnp.take_along_axis(logits, label, axis=-1)
    # Of classes that tie the first comes first, as for argmax; a nan comes before everything.
    ahead = ~(logits <= label_logit) | ((logits == label_logit) & (jnp.arange(logits.shape[-1])[None, :] < label))
    rank = jnp.sum(ahead, axis=-1)
    bins = jnp.clip(jnp.ceil(confidence * BINS).astype(jnp.int32) - 1, 0, BINS - 1)
    in_bin = (bins[:, None] == jnp.arange(BINS)[None, :]) & where[:, None]

    def total(values):
        return jnp.sum(jnp.where(where, values, 0), dtype=jnp.float32)

    return {
        "count": total(jnp.ones_like(confidence)),
        "top1": total(correct),
        "top5": total(rank < 5),
        "nll": total(losses.cross_entropy(logits, labels=batch.labels)),
        "bin_count": jnp.sum(in_bin, axis=0, dtype=jnp.float32),
        "bin_correct": jnp.sum(in_bin & correct[:, None], axis=0, dtype=jnp.float32),
        "bin_confidence": jnp.sum(jnp.where(in_bin, confidence[:, None], 0), axis=0),
    }


def comparison_sums(student: ModelOutput, teacher: ModelOutput, batch: Batch) -> dict[str, Array]:
    """Sums of how a student follows its teacher: same prediction, and KL(teacher || student) in nats at T = 1."""
    same = jnp.argmax(student.logits, axis=-1) == jnp.argmax(teacher.logits, axis=-1)
    divergence = losses.kd(student.logits, teacher.logits, temperature=1.0)
    return {
        "agreement": jnp.sum(jnp.where(batch.where, same, 0), dtype=jnp.float32),
        "teacher_kl": jnp.sum(jnp.where(batch.where, divergence, 0), dtype=jnp.float32),
    }


def finish(sums: dict[str, np.ndarray], num_classes: int) -> dict[str, float]:
    """Means from summed-up sums: top1, top5, nll (nats), ece, and agreement and teacher_kl where there is a teacher."""
    count = float(sums["count"])
    if count == 0:
        raise ValueError("There is nothing to evaluate: the split is empty.")
    names = [name for name in ("top1", "top5", "nll", "agreement", "teacher_kl") if name in sums]
    means = {name: float(sums[name]) / count for name in names if name != "top5" or num_classes > 5}
    gap = np.abs(np.asarray(sums["bin_correct"]) - np.asarray(sums["bin_confidence"]))
    return means | {"ece": float(gap.sum()) / count}


def evaluate(
    compiled: Callable, student: Variables, teacher: Variables | None, batches: Iterable[Batch], num_classes: int
) -> dict[str, dict[str, float]]:
    """Runs a compiled evaluation over batches that a runner has placed: `{"student": means, "teacher": means}`."""
    totals = None
    for batch in batches:
        sums = compiled(student, teacher, batch)
        totals = sums if totals is None else jax.tree.map(jnp.add, totals, sums)
    if totals is None:
        raise ValueError("There is nothing to evaluate: the split is empty.")
    return {role: finish(values, num_classes) for role, values in jax.device_get(totals).items()}

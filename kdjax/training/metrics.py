"""What is measured of networks that score classes, whether rows (`[B, C]`) or their elements (`[B, L, C]`): sums, and means.

Sums are over the rows and elements that exist, `Batch.mask`, so that means are exact over a last partial batch.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from kdjax import losses
from kdjax.reduction import per_example
from kdjax.types import Array, Batch, ModelOutput, Term

BINS = 15  # equal-width confidence bins of the calibration error


@dataclasses.dataclass(frozen=True)
class Metric:
    """A number of an evaluation, and how a person reads it.

    Attributes:
      name: key among the means.
      title: heading of its column.
      scale: what it is multiplied by to be shown; 100 for percent.
      digits: shown behind the point.
      higher_is_better: whether more of it is better.
      unit: what differences of it are counted in, such as "points".
    """

    name: str
    title: str
    scale: float = 1.0
    digits: int = 2
    higher_is_better: bool = True
    unit: str = ""

    def better(self, value: float, than: float) -> bool:
        return value > than if self.higher_is_better else value < than

    def text(self, value: float) -> str:
        """The number alone."""
        return f"{self.scale * value:.{self.digits}f}"

    def change(self, difference: float) -> str:
        """A signed difference: "+0.11 points"."""
        return f"{self.scale * difference:+.{self.digits}f} {self.unit}".strip()

    def amount(self, difference: float) -> str:
        """The size of a difference, and of what: "5.59 points of top-1"."""
        name = self.title.partition(" %")[0]
        return (
            f"{self.text(abs(difference))} {self.unit} of {name}"
            if self.unit
            else f"{self.text(abs(difference))} {name}"
        )

    def said(self, value: float) -> str:
        """The number with its name: "top-1 87.31 %"."""
        name, percent, _ = self.title.partition(" %")
        return f"{name} {self.text(value)}{percent}"


def fit(student: ModelOutput, teacher: ModelOutput | None, batch: Batch) -> dict[str, Term]:
    """What the log says of every training step: top-1 accuracy where there are labels, and agreement with the teacher."""
    if getattr(student, "logits", None) is None:
        return {}
    predicted = jnp.argmax(student.logits, axis=-1)
    terms = {}
    targets = batch.targets
    labels = targets.get("labels") if isinstance(targets, dict) else targets
    if hasattr(labels, "dtype") and jnp.issubdtype(labels.dtype, jnp.integer) and labels.shape == predicted.shape:
        terms["top1"] = per_example((predicted == labels).astype(jnp.float32), batch, labelled=True)
    if teacher is not None and same_classes(student, teacher, batch):
        same = predicted == jnp.argmax(teacher.logits, axis=-1)
        terms["agreement"] = per_example(same.astype(jnp.float32), batch)
    return terms


def class_sums(student: ModelOutput, teacher: ModelOutput | None, batch: Batch) -> dict[str, dict[str, Array]]:
    """Sums of one batch for each role: those of `prediction_sums`, the student's with those of `comparison_sums`; the latter
    alone where there are no targets."""
    if batch.targets is None:
        return _unlabelled_sums(student, teacher, batch)
    sums = {"student": prediction_sums(student, batch)}
    if teacher is not None and same_classes(student, teacher, batch):
        sums["teacher"] = prediction_sums(teacher, batch)
        sums["student"] |= comparison_sums(student, teacher, batch)
    return sums


def _unlabelled_sums(student: ModelOutput, teacher: ModelOutput | None, batch: Batch) -> dict[str, dict[str, Array]]:
    """How many there are, and how the student follows its teacher.

    Raises:
      ValueError: they give logits of other classes, so that nothing can be compared.
    """
    where = evaluated(batch, student.logits.shape[:-1])
    sums = {"student": {"count": jnp.sum(where, dtype=jnp.float32)}}
    if teacher is None:
        return sums
    if not same_classes(student, teacher, batch):
        raise ValueError("What is evaluated has no labels, and student and teacher give other classes, so that nothing can be "
                         "compared; give labels.")  # fmt: skip
    return {"student": sums["student"] | comparison_sums(student, teacher, batch), "teacher": sums["student"]}


def prediction_sums(output: ModelOutput, batch: Batch) -> dict[str, Array]:
    """Count, hits, negative log-likelihood, and calibration bins."""
    logits = output.logits.astype(jnp.float32)
    labels = batch.labels
    where = evaluated(batch, logits.shape[:-1])
    log_p = jax.nn.log_softmax(logits)
    confidence = jnp.exp(jnp.max(log_p, axis=-1))
    nll = losses.cross_entropy(logits, labels=labels)  # refuses labels of another shape, in words
    correct = jnp.argmax(logits, axis=-1) == labels
    label = labels[..., None]
    label_logit = jnp.take_along_axis(logits, label, axis=-1)
    # Of classes that tie the first comes first, as for argmax; a nan comes before everything.
    classes = jnp.reshape(jnp.arange(logits.shape[-1]), (1,) * labels.ndim + (-1,))
    ahead = ~(logits <= label_logit) | ((logits == label_logit) & (classes < label))
    rank = jnp.sum(ahead, axis=-1)
    bins = jnp.clip(jnp.ceil(confidence * BINS).astype(jnp.int32) - 1, 0, BINS - 1)
    in_bin = (bins[..., None] == jnp.reshape(jnp.arange(BINS), (1,) * labels.ndim + (-1,))) & where[..., None]
    values = tuple(range(labels.ndim))  # the axes of rows and elements

    def total(values):
        return jnp.sum(jnp.where(where, values, 0), dtype=jnp.float32)

    return {
        "count": total(jnp.ones_like(confidence)),
        "top1": total(correct),
        **({"top5": total(rank < 5)} if logits.shape[-1] > 5 else {}),
        "nll": total(nll),
        "bin_count": jnp.sum(in_bin, axis=values, dtype=jnp.float32),
        "bin_correct": jnp.sum(in_bin & correct[..., None], axis=values, dtype=jnp.float32),
        "bin_confidence": jnp.sum(jnp.where(in_bin, confidence[..., None], 0), axis=values),
    }


def comparison_sums(student: ModelOutput, teacher: ModelOutput, batch: Batch) -> dict[str, Array]:
    """How a student follows its teacher: same prediction, and KL(teacher || student) in nats at T = 1."""
    same = jnp.argmax(student.logits, axis=-1) == jnp.argmax(teacher.logits, axis=-1)
    divergence = losses.kd(student.logits, teacher.logits, temperature=1.0)
    where = evaluated(batch, same.shape)
    return {
        "agreement": jnp.sum(jnp.where(where, same, 0), dtype=jnp.float32),
        "teacher_kl": jnp.sum(jnp.where(where, divergence, 0), dtype=jnp.float32),
    }


def evaluated(batch: Batch, shape: tuple[int, ...]) -> Array:
    """Which values count in an evaluation: of rows that exist, whether or not their labels may be trained on, the elements
    that have a label."""
    return dataclasses.replace(batch, labelled=batch.where).mask(shape, labelled=True)


def class_means(sums: dict[str, np.ndarray]) -> dict[str, float]:
    """Means of the sums of one role over a data set: top1, top5, nll (nats), ece where there are labels, and agreement and
    teacher_kl where there is a teacher."""
    count = float(sums["count"])
    if count == 0:
        raise ValueError("There is nothing to evaluate: the split is empty.")
    names = [name for name in ("top1", "top5", "nll", "agreement", "teacher_kl") if name in sums]
    means = {name: float(sums[name]) / count for name in names}
    if "bin_correct" not in sums:
        return means
    gap = np.abs(np.asarray(sums["bin_correct"]) - np.asarray(sums["bin_confidence"]))
    return means | {"ece": float(gap.sum()) / count}


def same_classes(student: ModelOutput, teacher: ModelOutput, batch: Batch) -> bool:
    """Whether both give logits over the same number of classes, so that their predictions can be compared; not of a teacher that
    reads other tokens (the target "aligned")."""
    if isinstance(batch.targets, dict) and "aligned" in batch.targets:
        return False
    logits = [getattr(output, "logits", None) for output in (student, teacher)]
    return all(x is not None for x in logits) and logits[0].shape[-1] == logits[1].shape[-1]

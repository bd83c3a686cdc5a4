"""Objectives of the labels alone, and regularisers of the student's own output."""

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar, Literal

import jax.numpy as jnp

from kdjax import losses
from kdjax.objectives.base import Method, Objective, Paper, seen
from kdjax.objectives.tokens.chunked import label_term
from kdjax.reduction import per_example
from kdjax.schedules import Schedule, value_at
from kdjax.types import Array, Mixed

__all__ = ["ConfidencePenalty", "CrossEntropy", "LabelSmoothing"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class CrossEntropy(Objective):
    """Cross-entropy with the labels, hard, soft or mixed, over labelled rows."""

    view: Literal["main", "strong"] = "main"
    """which view of the examples the student is asked about"""
    class_weights: tuple[float, ...] = ()
    """what an example counts for by its class, 0 or more, one a class; the mean stays over all rows. Empty: 1 each"""

    reads: ClassVar = ("student.logits", "labels")
    group: ClassVar = "task"
    mixes: ClassVar = True
    formula: ClassVar = "mean_b −w(y) log p_s(y)"

    @property
    def views(self):
        return ("main", self.view)

    def build(self, student, teacher, data, rngs):
        if self.class_weights and len(self.class_weights) != data.num_classes:
            raise ValueError(
                f"CrossEntropy has {len(self.class_weights)} class_weights and the data {data.num_classes} classes; give "
                "one a class."
            )
        if min(self.class_weights, default=0) < 0:
            raise ValueError(f"CrossEntropy.class_weights are {self.class_weights}; none may be negative.")
        return None

    @property
    def in_chunks(self):
        return self.view == "main" and not self.class_weights

    def terms(self, module, ctx):
        if ctx.student_call is not None:
            return label_term(ctx, ctx.batch.labels)
        logits = seen(ctx, self.view).student.logits
        weights = jnp.asarray(
            self.class_weights or [1.0] * logits.shape[-1], jnp.promote_types(logits.dtype, jnp.float32)
        )

        def hard(labels):
            values = losses.cross_entropy(logits, labels=labels)
            return values * weights.at[labels].get(mode="clip") if self.class_weights else values

        def soft(targets):
            check_soft(targets, logits)
            each = jnp.reshape(weights, (1,) * (logits.ndim - weights.ndim) + weights.shape)
            return losses.cross_entropy_with_targets(logits, targets * each)

        values = by_labels(ctx.batch.labels, hard, soft)
        return per_example(values, ctx.batch, labelled=True)


@dataclasses.dataclass(frozen=True, kw_only=True)
class LabelSmoothing(Objective):
    """Cross-entropy with smoothed labels, hard, soft or mixed, over labelled rows."""

    smoothing: float | Schedule = 0.1
    """share of the target that is taken from the label, 0 to 1"""
    over_all_classes: bool = True
    """True: the share is spread over all C classes, the label's included; False: over the other C - 1"""

    reads: ClassVar = ("student.logits", "labels")
    group: ClassVar = "task"
    mixes: ClassVar = True
    formula: ClassVar = "mean_b −Σ_c q(c) log p_s(c),  q = (1 − ε) onehot(y) + ε u"
    paper: ClassVar = Paper(
        "Rethinking the Inception Architecture for Computer Vision", "Szegedy et al.", "CVPR", 2016, "1512.00567"
    )

    def terms(self, module, ctx):
        logits, share = ctx.student.logits, value_at(self.smoothing, ctx.progress)
        others = logits.shape[-1] - (0 if self.over_all_classes else 1)

        def soft(targets):
            check_soft(targets, logits)
            spread = 1 if self.over_all_classes else 1 - targets
            return losses.cross_entropy_with_targets(logits, (1 - share) * targets + share * spread / max(others, 1))

        def hard(labels):
            return losses.label_smoothing_xent(
                logits, labels=labels, smoothing=share, over_all_classes=self.over_all_classes
            )

        return per_example(by_labels(ctx.batch.labels, hard, soft), ctx.batch, labelled=True)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ConfidencePenalty(Objective):
    """Rewards an undecided student; added to a cross-entropy."""

    beta: float | Schedule = 0.1
    """strength of the penalty, in units of nats of entropy"""

    reads: ClassVar = ("student.logits",)
    group: ClassVar = "task"
    formula: ClassVar = "−β mean_b H(p_s)"
    paper: ClassVar = Paper(
        "Regularizing Neural Networks by Penalizing Confident Output Distributions",
        "Pereyra et al.",
        "ICLR workshop",
        2017,
        "1701.06548",
    )

    def terms(self, module, ctx):
        values = losses.confidence_penalty(ctx.student.logits, beta=value_at(self.beta, ctx.progress))
        return per_example(values, ctx.batch)


def check_soft(targets: Array, logits: Array) -> None:
    """Refuses labels of floats that are no distribution over the classes of each row."""
    if targets.shape != logits.shape:
        raise ValueError(
            f"The labels are {targets.dtype} {list(targets.shape)} beside logits {list(logits.shape)}; give classes as integers, "
            "or soft labels in the shape of the logits."
        )


def by_labels(labels: Any, hard: Callable[[Array], Array], soft: Callable[[Array], Array]) -> Array:
    """A loss that is linear in the labels' distribution, `[B]` or `[B, L]`.

    Args:
      labels: class indices, soft labels (floats, with an axis of classes), or a pair of either for `Mixed` inputs.
      hard, soft: the loss of either.
    """
    if isinstance(labels, Mixed):
        first, second = by_labels(labels.first, hard, soft), by_labels(labels.second, hard, soft)
        share = jnp.reshape(labels.share, labels.share.shape + (1,) * (first.ndim - 1))
        return share * first + (1 - share) * second
    labels = jnp.asarray(labels)
    return soft(labels) if jnp.issubdtype(labels.dtype, jnp.floating) else hard(labels)


METHODS = {
    "labels": Method(CrossEntropy(), "labels", "no teacher: cross-entropy with the labels, the baseline"),
    "label_smoothing": Method(
        LabelSmoothing(smoothing=0.1), "labels", "no teacher: labels softened towards the uniform distribution"
    ),
    "confidence_penalty": Method(
        CrossEntropy() + ConfidencePenalty(beta=0.1), "labels", "no teacher: labels, and a reward for entropy"
    ),
}

"""Objectives of the labels alone, and regularisers of the student's own output."""

import dataclasses
from typing import ClassVar, Literal

from kdjax import losses
from kdjax.objectives.base import Method, Objective, Paper, seen
from kdjax.reduction import per_example
from kdjax.schedules import Schedule, value_at

__all__ = ["ConfidencePenalty", "CrossEntropy", "LabelSmoothing"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class CrossEntropy(Objective):
    """Cross-entropy with the labels, over labelled rows."""

    view: Literal["main", "strong"] = "main"
    """which view of the examples the student is asked about"""

    reads: ClassVar = ("student.logits", "labels")
    group: ClassVar = "task"
    formula: ClassVar = "mean_b −log p_s(y)"

    @property
    def views(self):
        return ("main", self.view)

    def terms(self, module, ctx):
        values = losses.cross_entropy(seen(ctx, self.view).student.logits, labels=ctx.batch.labels)
        return per_example(values, ctx.batch, labelled=True)


@dataclasses.dataclass(frozen=True, kw_only=True)
class LabelSmoothing(Objective):
    """Cross-entropy with smoothed labels, over labelled rows."""

    smoothing: float | Schedule = 0.1
    """share of the target that is taken from the label, 0 to 1"""
    over_all_classes: bool = True
    """True: the share is spread over all C classes, the label's included; False: over the other C - 1"""

    reads: ClassVar = ("student.logits", "labels")
    group: ClassVar = "task"
    formula: ClassVar = "mean_b −Σ_c q(c) log p_s(c),  q = (1 − ε) onehot(y) + ε u"
    paper: ClassVar = Paper(
        "Rethinking the Inception Architecture for Computer Vision", "Szegedy et al.", "CVPR", 2016, "1512.00567"
    )

    def terms(self, module, ctx):
        values = losses.label_smoothing_xent(
            ctx.student.logits,
            labels=ctx.batch.labels,
            smoothing=value_at(self.smoothing, ctx.progress),
            over_all_classes=self.over_all_classes,
        )
        return per_example(values, ctx.batch, labelled=True)


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


METHODS = {
    "labels": Method(CrossEntropy(), "labels", "no teacher: cross-entropy with the labels, the baseline"),
    "label_smoothing": Method(
        LabelSmoothing(smoothing=0.1), "labels", "no teacher: labels softened towards the uniform distribution"
    ),
    "confidence_penalty": Method(
        CrossEntropy() + ConfidencePenalty(beta=0.1), "labels", "no teacher: labels, and a reward for entropy"
    ),
}

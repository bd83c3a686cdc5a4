"""Objectives of networks that answer yes or no for each class by itself: multi-label tagging, with sigmoids."""

import dataclasses
from typing import ClassVar

from kdjax import losses
from kdjax.objectives.base import Method, Objective, Paper
from kdjax.reduction import per_example
from kdjax.schedules import Schedule, value_at

__all__ = ["BernoulliKD", "BinaryCrossEntropy"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class BinaryCrossEntropy(Objective):
    """Cross-entropy with multi-hot targets, over labelled rows."""

    reads: ClassVar = ("student.logits", "multi_hot")
    group: ClassVar = "task"
    formula: ClassVar = "mean_b −Σ_c [t(c) log σ(z_s(c)) + (1 − t(c)) log σ(−z_s(c))]"

    def terms(self, module, ctx):
        values = losses.binary_cross_entropy(ctx.student.logits, ctx.batch.target("multi_hot"))
        return per_example(values, ctx.batch, labelled=True)


@dataclasses.dataclass(frozen=True, kw_only=True)
class BernoulliKD(Objective):
    """Distillation by sigmoids, over all rows: each class is a yes-or-no question that the teacher answers softly."""

    temperature: float | Schedule = 2.0
    """T, divides both networks' logits"""

    formula: ClassVar = "T² mean_b Σ_c KL(Bern(σ(z_t(c) / T)) ‖ Bern(σ(z_s(c) / T)))"
    paper: ClassVar = Paper(
        "Dual-Head Knowledge Distillation: Enhancing Logits Utilization with an Auxiliary Head (its BinaryKL)", "Yang et al.",
        "KDD", 2025, "2411.08937",
    )  # fmt: skip

    def terms(self, module, ctx):
        temperature = value_at(self.temperature, ctx.progress)
        values = losses.binary_kl(ctx.student.logits, ctx.teacher.logits, temperature=temperature)
        return per_example(values, ctx.batch)


METHODS = {
    "multi_label": Method(
        BinaryCrossEntropy(), "labels", "no teacher: cross-entropy with multi-hot targets, by sigmoids"
    ),
    "bernoulli_kd": Method(
        BinaryCrossEntropy() + BernoulliKD(temperature=2.0), "logit", "KD for multi-hot targets, by sigmoids"
    ),
}

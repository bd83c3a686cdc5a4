"""Objectives that treat the target class and the others apart."""

import dataclasses
from typing import ClassVar

from kdjax import losses
from kdjax.objectives.base import CIFAR, RAMP, RELEASED, Method, Paper, Targeted
from kdjax.objectives.logits.supervised import CrossEntropy
from kdjax.reduction import per_example
from kdjax.schedules import Schedule

__all__ = ["DKD", "NKD", "RLD"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class DKD(Targeted):
    """Decoupled distillation: the target-class and the non-target part of KD untied."""

    alpha: float | Schedule = 1.0
    """weight of the target-class part"""
    beta: float | Schedule = 8.0
    """weight of the non-target part"""
    temperature: float | Schedule = 4.0
    """T, divides both networks' logits"""

    formula: ClassVar = "mean_b α TCKD + β NCKD:  T² KL of (label, rest) and T² KL among the rest"
    paper: ClassVar = Paper("Decoupled Knowledge Distillation", "Zhao et al.", "CVPR", 2022, "2203.08679")

    def terms(self, module, ctx):
        labels, where = self.targets(ctx)
        values = losses.dkd(
            ctx.student.logits,
            ctx.teacher.logits,
            labels,
            **self.now(ctx.progress, "alpha", "beta", "temperature"),
        )
        return per_example(values, where)


@dataclasses.dataclass(frozen=True, kw_only=True)
class RLD(Targeted):
    """Refined logits: how sure the teacher is, and its ranking of the classes that it puts below the true one."""

    alpha: float | Schedule = 1.0
    """weight of the sample-confidence part"""
    beta: float | Schedule = 8.0
    """weight of the masked-correlation part"""
    temperature: float | Schedule = 4.0
    """T, divides both networks' logits"""
    alpha_temperature: float | Schedule | None = None
    """temperature of the sample-confidence part; None for the same (the released code's own default is 1)"""

    formula: ClassVar = "mean_b α SCD + β MCD:  T² KL of (teacher's top, rest ‖ label, rest) and T² KL below the label"
    paper: ClassVar = Paper("Knowledge Distillation with Refined Logits", "Sun et al.", "ICCV", 2025, "2408.07703")

    def terms(self, module, ctx):
        labels, where = self.targets(ctx)
        values = losses.rld(
            ctx.student.logits,
            ctx.teacher.logits,
            labels,
            **self.now(ctx.progress, "alpha", "beta", "temperature", "alpha_temperature"),
        )
        return per_example(values, where)


@dataclasses.dataclass(frozen=True, kw_only=True)
class NKD(Targeted):
    """Normalised distillation: the target class by the teacher's trust in it, the others among themselves."""

    gamma: float | Schedule = 1.5
    """weight of the non-target part"""
    temperature: float | Schedule = 1.0
    """T of the non-target part"""

    formula: ClassVar = "mean_b −p_t(y) log p_s(y) + γ T² CE(q_t^T, q_s^T),  q = softmax without the label"
    paper: ClassVar = Paper(
        "From Knowledge Distillation to Self-Knowledge Distillation: A Unified Approach with Normalized Loss and Customized "
        "Soft Labels", "Yang et al.", "ICCV", 2023, "2303.13005",
    )  # fmt: skip

    def terms(self, module, ctx):
        labels, where = self.targets(ctx)
        values = losses.nkd(
            ctx.student.logits,
            ctx.teacher.logits,
            labels,
            **self.now(ctx.progress, "gamma", "temperature"),
        )
        return per_example(values, where)


METHODS = {
    "dkd": Method(
        CrossEntropy() + RAMP * DKD(alpha=1.0, beta=8.0, temperature=4.0),
        "logit",
        "match target and non-target probabilities with weights of their own",
        CIFAR + ", resnet32x4 to resnet8x4",
    ),
    "nkd": Method(
        CrossEntropy() + NKD(gamma=1.5, temperature=1.0),
        "logit",
        "match the target by the teacher's trust, the others normalised",
        "ImageNet, " + RELEASED,
    ),
    "rld": Method(
        CrossEntropy() + RAMP * RLD(alpha=1.0, beta=8.0, temperature=4.0),
        "logit",
        "pass on how sure the teacher is, and only the classes it ranks below the label",
        "CIFAR-100, the released code's command, resnet32x4 to resnet8x4",
    ),
}

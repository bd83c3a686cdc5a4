"""Objectives of the logits of a whole batch: how classes and examples go together."""

import dataclasses
from typing import ClassVar, Literal

from kdjax import losses
from kdjax.objectives.base import Objective, Paper
from kdjax.reduction import whole_batch
from kdjax.schedules import Schedule, value_at


@dataclasses.dataclass(frozen=True, kw_only=True)
class DIST(Objective):
    """Correlation instead of equality: within each example over classes, and within each class over the batch."""

    beta: float | Schedule = 1.0
    """weight of the correlation over classes"""
    gamma: float | Schedule = 1.0
    """weight of the correlation over examples"""
    temperature: float | Schedule = 1.0
    """T, divides both networks' logits"""

    formula: ClassVar = "T² [β (1 − mean_b pearson over classes) + γ (1 − mean_c pearson over the batch)]"
    paper: ClassVar = Paper(
        "Knowledge Distillation from A Stronger Teacher", "Huang et al.", "NeurIPS", 2022, "2205.10536"
    )

    def terms(self, module, ctx):
        inter, intra = losses.dist_parts(
            ctx.student.logits, ctx.teacher.logits, temperature=value_at(self.temperature, ctx.progress),
            where=ctx.batch.where, axis_name=ctx.axis,
        )  # fmt: skip
        beta, gamma = value_at(self.beta, ctx.progress), value_at(self.gamma, ctx.progress)
        return {
            "inter": dataclasses.replace(whole_batch(inter), weight=beta),
            "intra": dataclasses.replace(whole_batch(intra), weight=gamma),
        }


@dataclasses.dataclass(frozen=True, kw_only=True)
class CLKD(Objective):
    """Class-aware distillation: normalised logits by example and by class, and how classes vary together."""

    mu: float = 0.5
    """weight of the two normalised differences"""
    beta: float = 2.0
    """weight of the difference by class within them"""
    nu: float = 0.4
    """weight of the correlation of classes"""
    cc_mode: Literal["class_cov", "batch_outer", "gram"] = "class_cov"
    """which correlation: sources disagree"""

    formula: ClassVar = "μ (L_ins + β L_cla) + ν L_cc"
    paper: ClassVar = Paper(
        "Class-aware Information for Logit-based Knowledge Distillation", "Zhang, Liu, Hopcroft, He", "arXiv", 2022,
        "2211.14773",
    )  # fmt: skip

    def terms(self, module, ctx):
        found = losses.clkd(
            ctx.student.logits, ctx.teacher.logits, cc_mode=self.cc_mode, where=ctx.batch.where, axis_name=ctx.axis
        )
        weights = {"ins": self.mu, "cla": self.mu * self.beta, "cc": self.nu}
        return {name: dataclasses.replace(whole_batch(found[name]), weight=w) for name, w in weights.items()}


@dataclasses.dataclass(frozen=True, kw_only=True)
class MLLD(Objective):
    """Multi-level logits: examples, classes and the batch, on two views and at several temperatures."""

    temperatures: tuple[float, ...] = (4.0, 3.0, 5.0, 2.0, 6.0)
    """each term is summed over these"""
    official: bool = False
    """as released: masks scale instead of select, some strong terms are weak ones, others left out"""

    views: ClassVar = ("main", "strong")
    formula: ClassVar = "Σ_T T² KL + ‖P_s P_s' − P_t P_t'‖² / B + ‖P_s' P_s − P_t' P_t‖² / C, on both views"
    paper: ClassVar = Paper("Multi-Level Logit Distillation", "Jin, Wang, Lin", "CVPR", 2023)

    def terms(self, module, ctx):
        strong = ctx.views["strong"]
        found = losses.mlld(
            ctx.student.logits, ctx.teacher.logits, student_logits_strong=strong.student.logits,
            teacher_logits_strong=strong.teacher.logits, official=self.official, temperatures=self.temperatures,
            where=ctx.batch.where, axis_name=ctx.axis,
        )  # fmt: skip
        return {name: whole_batch(value) for name, value in found.items()}

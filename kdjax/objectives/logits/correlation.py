"""Objectives of the logits of a whole batch: how classes and examples go together."""

import dataclasses
from typing import ClassVar, Literal

import jax

from kdjax import losses
from kdjax.objectives.base import CIFAR, Method, Objective, Paper
from kdjax.objectives.logits.supervised import CrossEntropy
from kdjax.reduction import whole_batch
from kdjax.schedules import Schedule, value_at

__all__ = ["CLKD", "DIST", "MLLD"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class DIST(Objective):
    """Correlation instead of equality: within each example over classes, and within each class over the batch."""

    beta: float | Schedule = 1.0
    """weight of the correlation over classes"""
    gamma: float | Schedule = 1.0
    """weight of the correlation over examples"""
    temperature: float | Schedule = 1.0
    """T, divides both networks' logits"""

    per_element: ClassVar = False
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

    per_element: ClassVar = False
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
    standardize: bool = False
    """logit standardisation as its released code joins it to this method: of the KL's logits, not of the other levels'"""

    views: ClassVar = ("main", "strong")
    per_element: ClassVar = False
    formula: ClassVar = "Σ_T T² KL + ‖P_s P_s' − P_t P_t'‖² / B + ‖P_s' P_s − P_t' P_t‖² / C, on both views"
    paper: ClassVar = Paper("Multi-Level Logit Distillation", "Jin, Wang, Lin", "CVPR", 2023)

    def terms(self, module, ctx):
        strong = ctx.views["strong"]
        pairs = (ctx.student.logits, ctx.teacher.logits), (strong.student.logits, strong.teacher.logits)

        def levels(prepare):
            (student, teacher), (student_strong, teacher_strong) = jax.tree.map(prepare, pairs)
            return losses.mlld(
                student, teacher, student_logits_strong=student_strong, teacher_logits_strong=teacher_strong,
                official=self.official, temperatures=self.temperatures, where=ctx.batch.where, axis_name=ctx.axis,
            )  # fmt: skip

        found = levels(lambda logits: logits)
        if self.standardize:
            found["kd"] = levels(losses.standardize)["kd"]
        return {name: whole_batch(value) for name, value in found.items()}


_LABELS = 0.1 * CrossEntropy() + 0.1 * CrossEntropy(view="strong")
METHODS = {
    "dist": Method(
        CrossEntropy() + DIST(beta=1.0, gamma=1.0, temperature=1.0),
        "batch",
        "correlation by example and by class",
        "a third party's copy; the original's CIFAR weights are not verified",
    ),
    "clkd": Method(
        0.1 * CrossEntropy() + CLKD(mu=0.5, beta=2.0, nu=0.4),
        "batch",
        "normalised logits by example and class, and how classes vary",
        "unofficial copies; the paper was not seen",
    ),
    "mlld": Method(_LABELS + 0.9 * MLLD(), "batch", "examples, classes and the batch, on two views", CIFAR),
    "mlld_official": Method(
        _LABELS + 0.9 * MLLD(official=True), "batch", "the same as its released code computes it", CIFAR
    ),
    "lskd_mlld": Method(
        _LABELS + 9.0 * MLLD(official=True, standardize=True, temperatures=(2.0, 3.0, 5.0, 2.0, 6.0)),
        "batch",
        "multi-level, its KL of standardised logits",
        CIFAR,
        Paper("Logit Standardization in Knowledge Distillation", "Sun et al.", "CVPR", 2024, "2403.01427"),
    ),
}

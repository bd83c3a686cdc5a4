"""Objectives of the two networks' logits, a row at a time."""

import dataclasses
from typing import ClassVar, Literal

from kdjax import losses
from kdjax.objectives.base import CIFAR, RELEASED, Method, Objective, Paper, Targeted, seen
from kdjax.objectives.logits.supervised import CrossEntropy
from kdjax.reduction import per_example
from kdjax.schedules import Schedule, value_at

__all__ = ["KD", "TTM", "WSLD", "WTTM", "HardLabel", "LogitMSE", "SecondOrderKD", "TfKDSelf"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class KD(Objective):
    """Hinton's distillation, over all rows."""

    temperature: float | Schedule = 4.0
    """T, divides both networks' logits"""
    view: Literal["main", "strong"] = "main"
    """which view of the examples both networks are asked about"""

    formula: ClassVar = "T² mean_b KL(p_t^T ‖ p_s^T),  p^T = softmax(z / T)"
    paper: ClassVar = Paper(
        "Distilling the Knowledge in a Neural Network", "Hinton, Vinyals, Dean", "NIPS workshop", 2015, "1503.02531"
    )

    @property
    def views(self):
        return ("main", self.view)

    def terms(self, module, ctx):
        there = seen(ctx, self.view)
        temperature = value_at(self.temperature, ctx.progress)
        values = losses.kd(there.student.logits, there.teacher.logits, temperature=temperature)
        return per_example(values, ctx.batch)


@dataclasses.dataclass(frozen=True, kw_only=True)
class LogitMSE(Objective):
    """Logit matching, over all rows."""

    center: bool = False
    """subtract each row's mean first, which makes it the high-temperature limit of KD up to a factor C"""

    formula: ClassVar = "mean_b ½ Σ_c (z_s − z_t)²"
    paper: ClassVar = Paper("Do Deep Nets Really Need to be Deep?", "Ba, Caruana", "NIPS", 2014, "1312.6184")

    def terms(self, module, ctx):
        values = losses.logit_mse(ctx.student.logits, ctx.teacher.logits, center=self.center)
        return per_example(values, ctx.batch)


@dataclasses.dataclass(frozen=True, kw_only=True)
class HardLabel(Objective):
    """Cross-entropy with the teacher's most likely class, over all rows: pseudo-labels."""

    formula: ClassVar = "mean_b −log p_s(argmax z_t)"
    paper: ClassVar = Paper(
        "A Note on Knowledge Distillation Loss Function for Object Classification", "Chen", "arXiv", 2021, "2109.06458"
    )

    def terms(self, module, ctx):
        return per_example(losses.hard_label(ctx.student.logits, ctx.teacher.logits), ctx.batch)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SecondOrderKD(Objective):
    """The quadratic form that KD is for small gaps: half the variance of the logit gap under the teacher."""

    formula: ClassVar = "mean_b ½ Var_{c ~ p_t}(z_s − z_t)"
    paper: ClassVar = Paper(
        "A Closer Look at Knowledge Distillation with Features, Logits, and Gradients", "Hsu et al.", "arXiv", 2022,
        "2203.10163",
    )  # fmt: skip

    def terms(self, module, ctx):
        return per_example(losses.second_order_kd(ctx.student.logits, ctx.teacher.logits), ctx.batch)


@dataclasses.dataclass(frozen=True, kw_only=True)
class WSLD(Targeted):
    """Weighted soft labels: KD in its cross-entropy form, weighted by how far the student is behind on each example."""

    temperature: float | Schedule = 2.0
    """T, divides both networks' logits"""

    formula: ClassVar = "T² mean_b w CE(p_t^T, p_s^T),  w = 1 − exp(−CE_s / CE_t)"
    paper: ClassVar = Paper(
        "Rethinking Soft Labels for Knowledge Distillation: A Bias-Variance Tradeoff Perspective", "Zhou et al.", "ICLR",
        2021, "2102.00650",
    )  # fmt: skip

    def terms(self, module, ctx):
        labels, where = self.targets(ctx)
        values = losses.wsld(
            ctx.student.logits, ctx.teacher.logits, labels, temperature=value_at(self.temperature, ctx.progress)
        )
        return per_example(values, where)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TTM(Objective):
    """Transformed teacher matching: only the teacher is softened, by a power of its probabilities."""

    gamma: float | Schedule = 0.1
    """the power, 1 / T"""

    formula: ClassVar = "mean_b KL(q ‖ p_s),  q ∝ p_t^γ"
    paper: ClassVar = Paper(
        "Knowledge Distillation Based on Transformed Teacher Matching", "Zheng, Yang", "ICLR", 2024, "2402.11148"
    )

    def terms(self, module, ctx):
        values = losses.ttm(ctx.student.logits, ctx.teacher.logits, gamma=value_at(self.gamma, ctx.progress))
        return per_example(values, ctx.batch)


@dataclasses.dataclass(frozen=True, kw_only=True)
class WTTM(TTM):
    """Weighted TTM: examples that the teacher is unsure of count more."""

    formula: ClassVar = "mean_b (Σ_c p_t(c)^γ) KL(q ‖ p_s),  q ∝ p_t^γ"

    def terms(self, module, ctx):
        values = losses.wttm(ctx.student.logits, ctx.teacher.logits, gamma=value_at(self.gamma, ctx.progress))
        return per_example(values, ctx.batch)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TfKDSelf(Objective):
    """Self-distillation of teacher-free KD: the teacher is the same network, trained before."""

    temperature: float | Schedule = 20.0
    """T"""
    multiplier: float = 1.0
    """m of the released code, which makes up for its mean over classes"""
    official: bool = True
    """as released: KL averaged over classes too; False: summed, as the paper writes it"""

    formula: ClassVar = "T² m mean_b (1/C) KL(p_t^T ‖ p_s^T)"
    paper: ClassVar = Paper(
        "Revisiting Knowledge Distillation via Label Smoothing Regularization",
        "Yuan et al.",
        "CVPR",
        2020,
        "1909.11723",
    )

    def terms(self, module, ctx):
        values = losses.tf_kd_self(
            ctx.student.logits, ctx.teacher.logits, temperature=value_at(self.temperature, ctx.progress),
            multiplier=self.multiplier, official=self.official,
        )  # fmt: skip
        return per_example(values, ctx.batch)


METHODS = {
    "kd": Method(
        0.1 * CrossEntropy() + 0.9 * KD(temperature=4.0), "logit", "match the teacher's softened probabilities", CIFAR
    ),
    "kd_only": Method(
        KD(temperature=4.0),
        "logit",
        "the same without labels: how well can a student match?",
        "the fidelity study's, CIFAR-100 (there as cross-entropy, with the same gradient)",
        Paper("Does Knowledge Distillation Really Work?", "Stanton et al.", "NeurIPS", 2021, "2106.05945"),
    ),
    "function_matching": Method(
        KD(temperature=1.0),
        "logit",
        "no labels, both networks on the same mixed crop (data.views.mixup=1), very long",
        "ImageNet, " + RELEASED,
        Paper(
            "Knowledge Distillation: A Good Teacher Is Patient and Consistent",
            "Beyer et al.",
            "CVPR",
            2022,
            "2106.05237",
        ),
    ),
    "born_again": Method(
        CrossEntropy() + KD(temperature=1.0),
        "logit",
        "a network teaches the next of its own kind",
        "the paper's",
        Paper("Born-Again Neural Networks", "Furlanello et al.", "ICML", 2018, "1805.04770"),
    ),
    "uda_kd": Method(
        0.25 * CrossEntropy()
        + 0.25 * CrossEntropy(view="strong")
        + 0.25 * KD(temperature=5.0)
        + 0.25 * KD(temperature=5.0, view="strong"),
        "logit",
        "KD on the plain and on a strongly augmented view",
        RELEASED,
        Paper("The State of Knowledge Distillation for Classification", "Ruffy, Chahal", "arXiv", 2019, "1912.10850"),
    ),
    "logit_mse": Method(LogitMSE(), "logit", "match the logits themselves"),
    "second_order_kd": Method(CrossEntropy() + SecondOrderKD(), "logit", "KD as a quadratic form around the teacher"),
    "hard_label": Method(HardLabel(), "logit", "learn the teacher's predicted class"),
    "wsld": Method(
        CrossEntropy() + 2.25 * WSLD(temperature=4.0), "logit", "KD weighted by how far the student is behind", CIFAR
    ),
    "ttm": Method(
        CrossEntropy() + 45.0 * TTM(gamma=0.1),
        "logit",
        "soften the teacher alone",
        "the released code's for VGG13 to VGG8",
    ),
    "wttm": Method(CrossEntropy() + WTTM(gamma=0.1), "logit", "the same, unsure examples counting more"),
    "tf_kd_self": Method(
        0.1 * CrossEntropy() + 0.9 * TfKDSelf(temperature=20.0), "logit", "learn from the same network trained before"
    ),
}

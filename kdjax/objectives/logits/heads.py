"""Objectives that train something of their own on the logits' side: a second head, a temperature."""

import dataclasses
from typing import ClassVar, Literal

import jax
import jax.numpy as jnp
from flax import nnx

from kdjax import losses
from kdjax.models.zoo.normalization import BatchNorm
from kdjax.objectives.base import CIFAR, RELEASED, Method, Objective, Paper
from kdjax.objectives.features.stages import stage_shape
from kdjax.objectives.logits.supervised import CrossEntropy
from kdjax.reduction import per_example
from kdjax.schedules import Cosine, Schedule, epochs, value_at

__all__ = ["CTKD", "DHKD", "USKD"]


class NonlinearHead(nnx.Module):
    """`Linear(D, 200)`, dropout, BatchNorm, ReLU, `Linear(200, C)`."""

    def __init__(self, features: int, classes: int, *, width: int = 200, rngs: nnx.Rngs):
        self.hidden = nnx.Linear(features, width, rngs=rngs)
        self.dropout = nnx.Dropout(0.1, rngs=rngs)
        self.norm = BatchNorm(width, rngs=rngs)
        self.out = nnx.Linear(width, classes, rngs=rngs)

    def __call__(self, x):
        return self.out(jax.nn.relu(self.norm(self.dropout(self.hidden(x)))))


@dataclasses.dataclass(frozen=True, kw_only=True)
class DHKD(Objective):
    """Dual heads: the distillation loss has a head of its own on the student's embedding, the labels keep the classifier.

    Written beside a cross-entropy: `CrossEntropy() + DHKD()`. The second head is not part of the deployed student.
    """

    temperature: float | Schedule = 2.0
    """T, divides the gap of the logits"""
    head: Literal["linear", "nonlinear"] = "nonlinear"
    """the second head: one linear layer, or two with dropout, BatchNorm and ReLU between"""
    align: bool = False
    """take from the distillation's gradient what points against the task's; costs a second backward pass"""
    normalized: bool = True
    """BinaryKL-Norm, which compares the gap with 0, as in the paper; False: BinaryKL, class by class"""

    reads: ClassVar = ("student.embedding", "teacher.logits")
    trains: ClassVar = "a second head"
    formula: ClassVar = "T² mean_b Σ_c KL(Bern(½) ‖ Bern(σ((a_s − z_t) / T))),  a_s the second head's logits"
    paper: ClassVar = Paper(
        "Dual-Head Knowledge Distillation: Enhancing Logits Utilization with an Auxiliary Head", "Yang et al.", "KDD",
        2025, "2411.08937",
    )  # fmt: skip

    def build(self, student, teacher, data, rngs):
        features, classes = student.embedding.shape[-1], teacher.logits.shape[-1]
        if self.head == "linear":
            return nnx.Linear(features, classes, rngs=rngs)
        return NonlinearHead(features, classes, rngs=rngs)

    def terms(self, module, ctx):
        loss = losses.binary_kl_norm if self.normalized else losses.binary_kl
        values = loss(
            module(ctx.student.embedding), ctx.teacher.logits, temperature=value_at(self.temperature, ctx.progress)
        )
        return per_example(values, ctx.batch)

    @property
    def per_element(self):
        return self.head == "linear"  # the other normalises by all elements, padding too

    @property
    def combines(self):
        return self.align

    def combine(self, gradients):
        if set(gradients) != {"task", "distill"}:
            return super().combine(gradients)
        return losses.align_gradients(gradients["task"], gradients["distill"])


class LearnedTemperature(nnx.Module):
    """One number."""

    def __init__(self):
        self.theta = nnx.Param(jnp.ones(()))


@dataclasses.dataclass(frozen=True, kw_only=True)
class CTKD(Objective):
    """Curriculum temperature: KD at a temperature that learns, by a reversed gradient, to make the task harder."""

    start: float = 1.0
    """lowest temperature"""
    span: float = 20.0
    """the temperature is start + span * sigmoid(theta), with theta = 1 at first; released code calls it t_end"""
    reversal: float | Schedule = Cosine(start=0.0, end=-1.0, length=epochs(10), staircase=True)
    """factor on the gradient of the temperature: below 0 it climbs the loss"""

    trains: ClassVar = "a temperature"
    formula: ClassVar = "T² mean_b KL(p_t^T ‖ p_s^T),  T = 1 + 20 σ(θ), ∂/∂θ reversed"
    paper: ClassVar = Paper(
        "Curriculum Temperature for Knowledge Distillation", "Li et al.", "AAAI", 2023, "2211.16231"
    )

    def build(self, student, teacher, data, rngs):
        return LearnedTemperature()

    def terms(self, module, ctx):
        theta = losses.scale_gradient(module.theta[...], value_at(self.reversal, ctx.progress))
        temperature = self.start + self.span * jax.nn.sigmoid(theta)
        return per_example(losses.kd(ctx.student.logits, ctx.teacher.logits, temperature=temperature), ctx.batch)


@dataclasses.dataclass(frozen=True, kw_only=True)
class USKD(Objective):
    """Universal self-distillation, without a teacher: soft labels from the student itself and a weak head on a middle stage.

    Written beside a cross-entropy; over labelled rows. The weak head is not part of the deployed student.
    """

    alpha: float = 1.0
    """weight of the target part"""
    beta: float = 0.1
    """weight of the non-target part"""
    mu: float = 0.005
    """weight of the weak head's own cross-entropy"""
    stage: int = -2
    """index into `features` of the stage that the weak head reads"""
    official: bool = True
    """rank classes as released, by log-probabilities where probabilities are meant; False: by probabilities"""

    reads: ClassVar = ("student.logits", "student.features", "labels")
    trains: ClassVar = "a weak head"
    formula: ClassVar = "mean_b −α t log p_s(y) + β CE(Zipf by rank, q_s) + μ CE of the weak head"
    paper: ClassVar = Paper(
        "From Knowledge Distillation to Self-Knowledge Distillation: A Unified Approach with Normalized Loss and Customized "
        "Soft Labels", "Yang et al.", "ICCV", 2023, "2303.13005",
    )  # fmt: skip

    def build(self, student, teacher, data, rngs):
        channels = stage_shape(student, self.stage, "student")[-1]
        return nnx.Linear(channels, student.logits.shape[-1], rngs=rngs)

    def terms(self, module, ctx):
        feature = ctx.student.features[self.stage]
        pooled = jnp.mean(feature, axis=tuple(range(1, feature.ndim - 1)))
        where = ctx.batch.where & ctx.batch.labelled
        values = losses.uskd(
            ctx.student.logits, module(pooled), ctx.batch.labels, alpha=self.alpha, beta=self.beta, mu=self.mu,
            official=self.official, where=where, axis_name=ctx.axis,
        )  # fmt: skip
        return per_example(values, where)


METHODS = {
    "uskd": Method(
        CrossEntropy() + USKD(alpha=1.0, beta=0.1, mu=0.005),
        "labels",
        "no teacher: soft labels from the student and a weak head",
        "ImageNet, " + RELEASED,
    ),
    "ctkd": Method(
        0.1 * CrossEntropy() + 0.9 * CTKD(), "head", "KD at a temperature that learns to make it harder", CIFAR
    ),
    "dhkd": Method(CrossEntropy() + DHKD(temperature=2.0), "head", "a second head for the distillation loss", CIFAR),
    "dhkd_aligned": Method(
        CrossEntropy() + DHKD(temperature=2.0, align=True),
        "head",
        "the same, its gradient turned where it opposes the labels'",
        CIFAR,
    ),
}

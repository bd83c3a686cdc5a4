"""Objectives of the two networks' logits."""

import dataclasses
from typing import ClassVar, Literal

import jax.numpy as jnp

from kdjax import losses
from kdjax.objectives.base import Objective, Paper
from kdjax.reduction import per_example
from kdjax.schedules import Schedule, value_at


@dataclasses.dataclass(frozen=True, kw_only=True)
class KD(Objective):
    """Hinton's distillation: `T^2 * mean_b KL(softmax(z_t / T) || softmax(z_s / T))`, over all rows."""

    temperature: float | Schedule = 4.0
    """T, divides both networks' logits"""

    paper: ClassVar = Paper(
        "Distilling the Knowledge in a Neural Network", "Hinton, Vinyals, Dean", "NIPS workshop", 2015, "1503.02531"
    )

    def terms(self, module, ctx):
        temperature = value_at(self.temperature, ctx.progress)
        values = losses.kd(ctx.student.logits, ctx.teacher.logits, temperature=temperature)
        return per_example(values, ctx.batch.where)


@dataclasses.dataclass(frozen=True, kw_only=True)
class LogitMSE(Objective):
    """Logit matching: half the squared distance of the logits, summed over classes, over all rows."""

    center: bool = False
    """subtract each row's mean first, which makes it the high-temperature limit of KD up to a factor C"""

    paper: ClassVar = Paper("Do Deep Nets Really Need to be Deep?", "Ba, Caruana", "NIPS", 2014, "1312.6184")

    def terms(self, module, ctx):
        values = losses.logit_mse(ctx.student.logits, ctx.teacher.logits, center=self.center)
        return per_example(values, ctx.batch.where)


@dataclasses.dataclass(frozen=True, kw_only=True)
class HardLabel(Objective):
    """Cross-entropy with the teacher's most likely class, over all rows: pseudo-labels."""

    paper: ClassVar = Paper(
        "A Note on Knowledge Distillation Loss Function for Object Classification", "Chen", "arXiv", 2021, "2109.06458"
    )

    def terms(self, module, ctx):
        return per_example(losses.hard_label(ctx.student.logits, ctx.teacher.logits), ctx.batch.where)


@dataclasses.dataclass(frozen=True, kw_only=True)
class DKD(Objective):
    """Decoupled distillation: `alpha * TCKD + beta * NCKD`, the target-class and the non-target part of KD untied."""

    alpha: float | Schedule = 1.0
    """weight of the target-class part"""
    beta: float | Schedule = 8.0
    """weight of the non-target part"""
    temperature: float | Schedule = 4.0
    """T, divides both networks' logits"""
    unlabelled: Literal["skip", "teacher"] = "teacher"
    """rows whose label may not be used: leave them out, or take the teacher's most likely class as target"""

    reads: ClassVar = ("student.logits", "teacher.logits", "labels")
    paper: ClassVar = Paper("Decoupled Knowledge Distillation", "Zhao et al.", "CVPR", 2022, "2203.08679")

    def terms(self, module, ctx):
        batch = ctx.batch
        labels, where = batch.labels, batch.where & batch.labelled
        if self.unlabelled == "teacher":
            labels = jnp.where(batch.labelled, labels, jnp.argmax(ctx.teacher.logits, axis=-1))
            where = batch.where
        values = losses.dkd(
            ctx.student.logits,
            ctx.teacher.logits,
            labels=labels,
            alpha=value_at(self.alpha, ctx.progress),
            beta=value_at(self.beta, ctx.progress),
            temperature=value_at(self.temperature, ctx.progress),
        )
        return per_example(values, where)

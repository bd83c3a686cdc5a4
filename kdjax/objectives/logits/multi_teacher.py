"""Objectives with more than one teacher, or with a network that is itself in training."""

import dataclasses
from typing import ClassVar, Literal

from kdjax import losses
from kdjax.objectives.base import RELEASED, Method, Objective, Paper
from kdjax.objectives.logits.supervised import CrossEntropy
from kdjax.reduction import per_example
from kdjax.schedules import Schedule, value_at

__all__ = ["DML", "MultiTeacherKD"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class MultiTeacherKD(Objective):
    """KD from each of several teachers, their losses weighted. (KD reads the average of their probabilities.)"""

    temperature: float | Schedule = 4.0
    """T, divides all networks' logits"""
    weights: tuple[float, ...] = ()
    """one a teacher; empty: all the same, summing to 1"""

    formula: ClassVar = "T² mean_b Σ_k w_k KL(p_k^T ‖ p_s^T)"
    paper: ClassVar = Paper(
        "The State of Knowledge Distillation for Classification", "Ruffy, Chahal", "arXiv", 2019, "1912.10850"
    )

    def build(self, student, teacher, data, rngs):
        count = teacher.taps["members"].shape[-2] if "members" in teacher.taps else 1
        if self.weights and len(self.weights) != count:
            raise ValueError(
                f"MultiTeacherKD has {len(self.weights)} weights and {count} teachers; give one a teacher."
            )
        return None

    def terms(self, module, ctx):
        members = ctx.teacher.taps.get("members", ctx.teacher.logits[..., None, :])
        values = losses.multi_teacher_kd(
            ctx.student.logits, members, weights=self.weights or None,
            temperature=value_at(self.temperature, ctx.progress),
        )  # fmt: skip
        return per_example(values, ctx.batch)


@dataclasses.dataclass(frozen=True, kw_only=True)
class DML(Objective):
    """Deep mutual learning: two networks of the student's kind train together, each the other's teacher, at T = 1."""

    order: Literal["sequential", "simultaneous"] = "sequential"
    """whether the second is updated against the first's new weights, or both against the old ones"""

    reads: ClassVar = ("student.logits", "peer.logits")
    trains: ClassVar = "a second student"
    formula: ClassVar = "mean_b KL(p_peer ‖ p_s), and the same for the peer"
    paper: ClassVar = Paper("Deep Mutual Learning", "Zhang et al.", "CVPR", 2018, "1706.00384")

    def terms(self, module, ctx):
        return per_example(losses.kd(ctx.student.logits, ctx.peer.logits, temperature=1.0), ctx.batch)


METHODS = {
    "dml": Method(
        CrossEntropy() + DML(order="sequential"), "labels", "no teacher: two students teach each other", "the paper's"
    ),
    "multi_teacher_kd": Method(
        0.5 * CrossEntropy() + 0.5 * MultiTeacherKD(temperature=5.0),
        "logit",
        "KD from each of several teachers",
        RELEASED,
    ),
}

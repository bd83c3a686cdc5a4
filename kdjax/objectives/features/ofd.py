"""The overhaul of feature distillation: features before the activation, and how far below 0 they matter."""

import dataclasses
from typing import ClassVar

from flax import nnx

from kdjax import losses
from kdjax.objectives.base import CIFAR, Method, Objective, Paper
from kdjax.objectives.features.connectors import FAN_OUT, ConvNorm, ask_teacher, map_shape
from kdjax.objectives.logits.supervised import CrossEntropy
from kdjax.reduction import per_example

__all__ = ["OFD"]


class Connectors(nnx.Module):
    """A 1x1 convolution and BatchNorm a stage."""

    def __init__(self, pairs: list[tuple[int, int]], *, rngs: nnx.Rngs):
        self.stages = nnx.List([ConvNorm(*pair, start=FAN_OUT, rngs=rngs) for pair in pairs])


@dataclasses.dataclass(frozen=True, kw_only=True)
class OFD(Objective):
    """Overhaul of feature distillation: match what the teacher's activation lets through, before the activation.

    The margin of each of the teacher's channels comes from the scale and bias of the BatchNorm before its activation, the
    part "norms" of the teacher: a pair for each of its preactivations.
    """

    stages: tuple[int, ...] = (-3, -2, -1)
    """indices into `preactivations` of both networks, from the first to the last; each weighs twice what the one before does"""
    teacher_train_bn: bool = True
    """let the teacher normalise by each batch and go on updating its statistics, as released; False: evaluation mode"""

    reads: ClassVar = ("student.preactivations", "teacher.preactivations")
    trains: ClassVar = "a connector a stage"
    any_classes: ClassVar = True
    formula: ClassVar = "mean_b Σ_l 2^(l−L) Σ_hwk d(c(f_s), f_t)²,  d: to f_t if f_t > 0, else down to max(f_t, m)"
    paper: ClassVar = Paper(
        "A Comprehensive Overhaul of Feature Distillation", "Heo et al.", "ICCV", 2019, "1904.01866"
    )

    @property
    def teacher_mode(self):
        return "train" if self.teacher_train_bn else "eval"

    def build(self, student, teacher, data, rngs):
        if not self.stages:
            raise ValueError("OFD has no stages to match; name at least one.")
        pairs = [
            (
                map_shape(student.preactivations, stage, "student's preactivations")[-1],
                map_shape(teacher.preactivations, stage, "teacher's preactivations")[-1],
            )
            for stage in self.stages
        ]
        return Connectors(pairs, rngs=rngs)

    def terms(self, module, ctx):
        targets = ctx.teacher.preactivations
        norms = ask_teacher(
            ctx.teacher_call, "norms", who="OFD",
            what="the scale and bias of the BatchNorm before the activation of each stage, a pair for each preactivation",
        )  # fmt: skip
        if len(norms) != len(targets):
            raise ValueError(f"The teacher's norms() gives {len(norms)} pairs for its {len(targets)} preactivations.")
        values = 0.0
        for stage, connector in zip(self.stages, module.stages, strict=True):
            margin = losses.ofd_margin(*norms[stage])
            values = values / 2 + losses.ofd(connector(ctx.student.preactivations[stage]), targets[stage], margin)
        return per_example(values, ctx.batch)


METHODS = {
    "ofd": Method(
        CrossEntropy() + 0.001 * OFD(),
        "feature",
        "match features before the activation, down to a margin",
        CIFAR,
    ),
}

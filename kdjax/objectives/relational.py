"""Objectives that compare the examples of a batch with each other."""

import dataclasses
from typing import ClassVar

from kdjax import losses
from kdjax.objectives.base import CIFAR, Method, Objective, Paper
from kdjax.objectives.feature import stage_shape
from kdjax.objectives.supervised import CrossEntropy
from kdjax.reduction import per_example

__all__ = ["SP"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class SP(Objective):
    """Similarity-preserving distillation: the batch's row-normalised Gram matrices of one stage agree."""

    stage: int = -1
    """index into `features`; the released code uses the last one"""

    reads: ClassVar = ("student.features", "teacher.features")
    paper: ClassVar = Paper("Similarity-Preserving Knowledge Distillation", "Tung, Mori", "ICCV", 2019, "1907.09682")

    def build(self, student, teacher, data, rngs):
        stage_shape(student, self.stage, "student"), stage_shape(teacher, self.stage, "teacher")
        return None

    def terms(self, module, ctx):
        values = losses.sp(
            ctx.student.features[self.stage],
            ctx.teacher.features[self.stage],
            where=ctx.batch.where,
            axis_name=ctx.axis,
        )
        return per_example(values, ctx.batch.where)


METHODS = {
    "sp": Method(CrossEntropy() + 3000.0 * SP(), "relational", "match which examples of the batch look alike", CIFAR),
}

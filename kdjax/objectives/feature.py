"""Objectives that read features."""

import dataclasses
from typing import ClassVar

from kdjax import losses
from kdjax.objectives.base import CIFAR, Method, Objective, Paper
from kdjax.objectives.projectors import ConvRegressor
from kdjax.objectives.supervised import CrossEntropy
from kdjax.reduction import per_example

__all__ = ["FitNet"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class FitNet(Objective):
    """FitNets: mean squared error between a teacher's stage and a learned projection of the student's.

    Trained jointly with the task from the first step, as in the released benchmark code; the paper pre-trains up to the
    hint layer first.
    """

    stage: int = 2
    """index into `features`; 0 is the stem"""

    reads: ClassVar = ("student.features", "teacher.features")
    trains: ClassVar = "a convolutional projector"
    paper: ClassVar = Paper("FitNets: Hints for Thin Deep Nets", "Romero et al.", "ICLR", 2015, "1412.6550")

    def build(self, student, teacher, data, rngs):
        return ConvRegressor(
            stage_shape(student, self.stage, "student"), stage_shape(teacher, self.stage, "teacher"), rngs=rngs
        )

    def terms(self, module, ctx):
        projected = module(ctx.student.features[self.stage])
        return per_example(losses.fitnet(projected, ctx.teacher.features[self.stage]), ctx.batch.where)


def stage_shape(output, stage: int, role: str) -> tuple[int, ...]:
    """Shape `[H, W, K]` of a stage of a network's features, or a sentence that says which there are."""
    count = len(output.features)
    if not -count <= stage < count:
        raise ValueError(f"stage={stage}, but the {role} network gives {count} stages of features (0 to {count - 1}).")
    return output.features[stage].shape[1:]


METHODS = {
    "fitnet": Method(
        CrossEntropy() + 100.0 * FitNet(stage=2), "feature", "match a middle feature map through a projector", CIFAR
    ),
}

"""A virtual teacher: Tf-KD's regularisation of the student by a fixed soft label."""

import dataclasses
from typing import ClassVar

from kdjax import losses
from kdjax.objectives.base import Method, Objective, Paper
from kdjax.objectives.logits.supervised import CrossEntropy
from kdjax.reduction import per_example
from kdjax.schedules import Schedule, value_at

__all__ = ["TfKDRegularizer"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class TfKDRegularizer(Objective):
    """Teacher-free KD with a virtual teacher that is nearly always right, over labelled rows."""

    temperature: float | Schedule = 20.0
    """T, softens the virtual teacher"""
    multiplier: float = 1.0
    """m of the released code, which makes up for its mean over classes"""
    correct_prob: float = 0.99
    """the virtual teacher's probability of the label"""
    official: bool = True
    """as released: a softmax of the virtual probabilities, against the student at T = 1; False: as the paper writes it"""

    reads: ClassVar = ("student.logits", "labels")
    group: ClassVar = "task"
    formula: ClassVar = "m mean_b (1/C) KL(softmax(v / T) ‖ p_s),  v = 0.99 at the label, the rest spread evenly"
    paper: ClassVar = Paper(
        "Revisiting Knowledge Distillation via Label Smoothing Regularization",
        "Yuan et al.",
        "CVPR",
        2020,
        "1909.11723",
    )

    def terms(self, module, ctx):
        values = losses.tf_kd_regularizer(
            ctx.student.logits, ctx.batch.labels, temperature=value_at(self.temperature, ctx.progress),
            multiplier=self.multiplier, correct_prob=self.correct_prob, official=self.official,
        )  # fmt: skip
        return per_example(values, ctx.batch, labelled=True)


METHODS = {
    "tf_kd_regularizer": Method(
        0.1 * CrossEntropy() + 0.9 * TfKDRegularizer(temperature=20.0, multiplier=50.0),
        "labels",
        "no teacher: a virtual one that is 99 % sure of the label",
    ),
}

"""Objectives that correct the teacher by the label: baselines of the refined-logits paper."""

import dataclasses
from typing import ClassVar

from kdjax import losses
from kdjax.objectives.base import Method, Objective, Paper
from kdjax.objectives.logits.logit import KD
from kdjax.objectives.logits.supervised import CrossEntropy
from kdjax.reduction import per_example
from kdjax.schedules import Schedule, value_at

__all__ = ["RC", "LabelRevision"]

_PAPER = Paper(
    "Knowledge Distillation with Refined Logits (a baseline there)", "Sun et al.", "ICCV", 2025, "2408.07703"
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class RC(Objective):
    """Self-correction: KD towards the student's own logits of now, the label's raised by their maximum.

    Written beside a cross-entropy and KD; over labelled rows.
    """

    temperature: float | Schedule = 4.0
    """T"""

    reads: ClassVar = ("student.logits", "labels")
    formula: ClassVar = "T² mean_b KL(z'^T ‖ p_s^T),  z' = z_s detached, with z_s(y) + max z_s at the label"
    paper: ClassVar = _PAPER

    def terms(self, module, ctx):
        values = losses.rc(
            ctx.student.logits, None, ctx.batch.labels, temperature=value_at(self.temperature, ctx.progress)
        )
        return per_example(values, ctx.batch, labelled=True)


@dataclasses.dataclass(frozen=True, kw_only=True)
class LabelRevision(Objective):
    """Label revision: the teacher's logits where it is right, its probabilities blended with the label where it is not.

    Has a cross-entropy of its own; over labelled rows.
    """

    lambda1: float = 4.0
    """weight of the distance between logits, where the teacher is right"""
    lambda2: float = 1.0
    """weight of the distance between probabilities, where it is wrong"""
    eta: float = 0.8
    """largest share of the teacher in the blend, 0 to 1"""

    reads: ClassVar = ("student.logits", "teacher.logits", "labels")
    per_element: ClassVar = False
    formula: ClassVar = "right: CE + λ1 mean_c (z_s − z_t)²;  wrong: λ2 mean_c (p_s − β p_t − (1 − β) onehot(y))²"
    paper: ClassVar = _PAPER

    def terms(self, module, ctx):
        where = ctx.batch.where & ctx.batch.labelled
        values = losses.label_revision(
            ctx.student.logits, ctx.teacher.logits, ctx.batch.labels, lambda1=self.lambda1, lambda2=self.lambda2,
            eta=self.eta, where=where, axis_name=ctx.axis,
        )  # fmt: skip
        return per_example(values, where)


METHODS = {
    "rc": Method(
        CrossEntropy() + KD(temperature=4.0) + RC(temperature=4.0),
        "logit",
        "KD, and the student's own logits corrected by the label",
    ),
    "label_revision": Method(
        LabelRevision(),
        "logit",
        "logits where the teacher is right, probabilities blended with the label where not",
        "refined logits' released code",
    ),
}

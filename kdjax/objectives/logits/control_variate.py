"""The teacher's gradient as a control variate of the student's."""

import dataclasses
from typing import ClassVar

import jax

from kdjax.objectives.base import RELEASED, Method, Objective, Paper
from kdjax.objectives.logits.supervised import CrossEntropy
from kdjax.schedules import Schedule, value_at

__all__ = ["ControlVariate"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ControlVariate(Objective):
    """Subtracts the teacher's gradient of the same batch from the student's; both must be one architecture.

    Written beside a cross-entropy `f`. For a linear model at T = 1 it is KD exactly: the gradient of `(1 − λ) CE + λ KL`.
    For deeper ones it is what the paper calls modified KD. The gradient at the teacher is taken in training mode, as in
    the released code, whose effect on the teacher's running statistics is left out. What it corrects has the weights of the
    task's terms; its own `weight` plays no part.
    """

    strength: float | Schedule = 0.7
    """λ, share of the teacher's gradient that is subtracted"""
    unbiased: bool = False
    """add the teacher's mean gradient over the whole data set back, times λ; it is computed once, before training"""

    reads: ClassVar = ("teacher.gradient", "labels")
    formula: ClassVar = "gradient ∇f_ξ(x) − λ ∇f_ξ(θ)  [+ λ ∇f(θ)],  θ the teacher's weights"
    paper: ClassVar = Paper(
        "Knowledge Distillation Performs Partial Variance Reduction", "Safaryan, Peste, Alistarh", "NeurIPS", 2023,
        "2305.17581",
    )  # fmt: skip

    @property
    def corrects_over_data(self):
        return self.unbiased

    def terms(self, module, ctx):
        return {}

    def correct(self, gradient, at_teacher, over_data, progress):
        strength = value_at(self.strength, progress)
        corrected = jax.tree.map(lambda g, t: g - strength * t, gradient, at_teacher)
        if not self.unbiased:
            return corrected
        if over_data is None:
            raise ValueError(
                "The unbiased control variate needs the teacher's mean gradient over the data; give the teacher as "
                "Variables(params, state, gradient), see make_teacher_gradient."
            )
        return jax.tree.map(lambda g, m: g + strength * m, corrected, over_data)


METHODS = {
    "kdvr": Method(
        CrossEntropy() + ControlVariate(strength=0.7),
        "logit",
        "subtract the teacher's gradient; the networks must be alike",
        RELEASED,
    ),
}

"""Objectives of what a network has of its own: a loss that it adds by itself, a second head."""

import dataclasses
from typing import ClassVar

from kdjax.objectives.base import Method, Objective
from kdjax.objectives.logits.logit import KD
from kdjax.objectives.logits.wrappers import Wrapper
from kdjax.reduction import per_example, whole_batch
from kdjax.types import Context

__all__ = ["AuxiliaryLoss", "OnHead"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class AuxiliaryLoss(Objective):
    """What the student adds to its loss by itself, such as the balance of its experts: `ModelOutput.losses`.

    A number is the mean over the rows that the network saw, those that only fill up a batch included. Over microbatches, and
    over devices under pmap, it is averaged, which is exact where it is a mean over rows; a product of two such means
    (the usual balance of experts) is then taken of each part of the batch apart.
    """

    name: str = ""
    """which of them; "" for all, each a term"""

    reads: ClassVar = ("student.losses",)
    group: ClassVar = "task"
    formula: ClassVar = "the network's own"

    def build(self, student, teacher, data, rngs):
        if self.name and self.name not in student.losses:
            raise ValueError(f"name={self.name!r}, and the student's own losses are: {', '.join(student.losses)}.")
        for name, value in student.losses.items():
            if value.ndim > 1:
                raise ValueError(
                    f"The student's own loss {name!r} has the shape {list(value.shape)}; it must be a number, or one an example."
                )
        return None

    def terms(self, module, ctx):
        term = lambda value: per_example(value, ctx.batch) if value.ndim else whole_batch(value)
        values = ctx.student.losses
        return term(values[self.name]) if self.name else {name: term(value) for name, value in values.items()}


@dataclasses.dataclass(frozen=True, kw_only=True)
class OnHead(Wrapper):
    """Another objective, of a head of the student's that is among its `taps`.

    DeiT's distillation token: `OnHead(inner=CrossEntropy(), head="class") + OnHead(inner=HardLabel(), head="distillation")`,
    of a network with `output=two_heads`, whose logits, by which it is evaluated, are the mean of both.
    """

    inner: Objective = KD()
    """the objective that sees the head's logits"""
    head: str = "distillation"
    """the name of the tap"""

    needs: ClassVar = ("student.taps",)

    def __post_init__(self):
        Objective.__post_init__(self)
        if len(self.inner.parts) != 1:
            raise ValueError("OnHead is of one objective; wrap each part of the sum.")

    @property
    def formula(self):
        return f"of the student's head {self.head!r}: {self.inner.formula}"

    @property
    def mixes(self):
        return self.inner.mixes

    def build(self, student, teacher, data, rngs):
        if self.head not in student.taps:
            raise ValueError(f"head={self.head!r}, and the student's taps are: {', '.join(student.taps)}.")
        return self.inner.build(dataclasses.replace(student, logits=student.taps[self.head]), teacher, data, rngs)

    def _change(self, ctx: Context) -> Context:
        return dataclasses.replace(ctx, student=dataclasses.replace(ctx.student, logits=ctx.student.taps[self.head]))


METHODS: dict[
    str, Method
] = {}  # what they need is in few networks of the command line; configs/imagenet/deit.py has one

"""Objectives that compare how features change from stage to stage."""

import dataclasses
from typing import ClassVar, Literal

from kdjax import losses
from kdjax.objectives.base import CIFAR, RELEASED, Method, Objective, Paper
from kdjax.objectives.features.bridges import bridged, bridges, chosen, stage_pairs
from kdjax.objectives.logits.supervised import CrossEntropy
from kdjax.reduction import per_example

__all__ = ["FSP", "KDSVD"]


def at_least_two(pairs, name: str):
    """The pairs of stages, if there are neighbours among them."""
    if len(pairs) < 2:
        raise ValueError(f"{name} compares neighbouring stages, and there is {len(pairs)}; choose two at least.")
    return pairs


@dataclasses.dataclass(frozen=True, kw_only=True)
class FSP(Objective):
    """Flow of the solution procedure: inner products of the channels of neighbouring stages agree.

    As released it is all that the first 30 epochs minimise, and the labels all that follows: a phase of `FSP()`, and one of
    `CrossEntropy()` with the first as its `start`. Released for networks of the same widths only; stages of other widths go
    through a learned 1x1 convolution here. In the first phase the released student computes in evaluation mode, by the
    statistics that it began with; here in training mode.
    """

    stages: tuple[int, ...] | None = None
    """indices into `features` of both networks, in order; None for all, the stem included, as released"""

    reads: ClassVar = ("student.features", "teacher.features")
    trains: ClassVar = "a 1x1 convolution where widths differ"
    any_classes: ClassVar = True
    formula: ClassVar = "mean_b Σ_l mean_ij (G_l(s) − G_l(t))²,  G_l(i, j) = mean_hw f_l(i) f_{l+1}(j)"
    paper: ClassVar = Paper(
        "A Gift from Knowledge Distillation: Fast Optimization, Network Minimization and Transfer Learning", "Yim et al.",
        "CVPR", 2017,
    )  # fmt: skip

    def build(self, student, teacher, data, rngs):
        return bridges(at_least_two(stage_pairs(student, teacher, self.stages), "FSP"), rngs)

    def terms(self, module, ctx):
        student = bridged(module, chosen(ctx.student.features, self.stages))
        return per_example(losses.fsp(student, chosen(ctx.teacher.features, self.stages)), ctx.batch)


@dataclasses.dataclass(frozen=True, kw_only=True)
class KDSVD(Objective):
    """Distillation by singular vectors: how the principal directions of neighbouring stages relate.

    Compares directions among the channels, so stages of other widths go through a learned 1x1 convolution.
    """

    stages: tuple[int, ...] | None = (-3, -2, -1)
    """indices into `features` of both networks, in order; None for all, the stem included"""
    k: int = 1
    """singular vectors of each stage"""
    columns: Literal["channels", "width"] = "channels"
    """of the matrix that is decomposed: the channels, or, as one released benchmark code has it, the map's columns, which
    the two networks must have as many of"""

    reads: ClassVar = ("student.features", "teacher.features")
    trains: ClassVar = "a 1x1 convolution where widths differ"
    any_classes: ClassVar = True
    formula: ClassVar = "mean_b Σ_l Σ_ijn (r_l(s) − r_l(t))²,  r_l(i, j, n) = exp(−(v_l(i, n) − v_{l−1}(j, n))² / 8)"
    paper: ClassVar = Paper(
        "Self-supervised Knowledge Distillation Using Singular Value Decomposition", "Lee, Kim, Song", "ECCV", 2018,
        "1807.06819",
    )  # fmt: skip

    def build(self, student, teacher, data, rngs):
        pairs = at_least_two(stage_pairs(student, teacher, self.stages), "KDSVD")
        if self.columns == "channels":
            return bridges(pairs, rngs)
        for ours, theirs in pairs:
            if ours[1] != theirs[1]:
                raise ValueError(
                    f"KDSVD(columns=\"width\") compares maps of one width, and the student's stage is {ours}, the teacher's "
                    f'{theirs}; choose other stages, or columns="channels".'
                )
        return None

    def terms(self, module, ctx):
        student = bridged(module, chosen(ctx.student.features, self.stages))
        teacher = chosen(ctx.teacher.features, self.stages)
        return per_example(losses.kdsvd(student, teacher, k=self.k, columns=self.columns), ctx.batch)


METHODS = {
    "fsp": Method(
        CrossEntropy(),
        "feature",
        "match how the channels of neighbouring stages go together, in a phase of its own before that of the labels",
        CIFAR,
        FSP.paper,
        before=FSP(),
    ),
    "kdsvd": Method(
        CrossEntropy() + KDSVD(k=1), "feature", "match how principal directions change from stage to stage", RELEASED
    ),
}

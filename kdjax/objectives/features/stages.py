"""Objectives that read features, stage by stage."""

import dataclasses
from typing import ClassVar, Literal

import jax

from kdjax import losses
from kdjax.losses.features.pooling import maps_pair
from kdjax.objectives.base import CIFAR, RELEASED, Method, Objective, Paper
from kdjax.objectives.features.bridges import Connectors, Generator, Regressors, bridged, bridges, chosen, stage_pairs
from kdjax.objectives.features.connectors import map_shape
from kdjax.objectives.features.projectors import ConvRegressor
from kdjax.objectives.logits.supervised import CrossEntropy
from kdjax.reduction import per_example
from kdjax.schedules import Schedule, value_at

__all__ = ["AB", "AT", "CWD", "MGD", "NST", "VID", "FitNet"]


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
        shapes = []
        for output, role in ((student, "student"), (teacher, "teacher")):
            stage_shape(output, self.stage, role)
            shapes.append(map_shape(output.features, self.stage, f"{role}'s features"))
        return ConvRegressor(*shapes, rngs=rngs)

    def terms(self, module, ctx):
        projected = module(ctx.student.features[self.stage])
        return per_example(losses.fitnet(projected, ctx.teacher.features[self.stage]), ctx.batch)


def stage_shape(output, stage: int, role: str) -> tuple[int, ...]:
    """Shape `[H, W, K]` of a stage of a network's features, or a sentence that says which there are."""
    count = len(output.features)
    if not -count <= stage < count:
        raise ValueError(f"stage={stage}, but the {role} network gives {count} stages of features (0 to {count - 1}).")
    return output.features[stage].shape[1:]


@dataclasses.dataclass(frozen=True, kw_only=True)
class AT(Objective):
    """Attention transfer: at every stage the student is active where the teacher is."""

    stages: tuple[int, ...] | None = (-3, -2, -1)
    """indices into `features` of both networks; None for all, the stem included"""
    p: int = 2
    """power of the features in the attention map"""
    squared: bool = True
    """mean square of the difference of the maps, as released; False: its norm, as in the paper"""

    reads: ClassVar = ("student.features", "teacher.features")
    any_classes: ClassVar = True
    formula: ClassVar = "mean_b Σ_l mean_hw (n(mean_k f_s²) − n(mean_k f_t²))²,  n divides by the L2 norm"
    paper: ClassVar = Paper(
        "Paying More Attention to Attention: Improving the Performance of Convolutional Neural Networks via Attention "
        "Transfer", "Zagoruyko, Komodakis", "ICLR", 2017, "1612.03928",
    )  # fmt: skip

    def build(self, student, teacher, data, rngs):
        stage_pairs(student, teacher, self.stages)
        return None

    def terms(self, module, ctx):
        pairs = zip(chosen(ctx.student.features, self.stages), chosen(ctx.teacher.features, self.stages), strict=True)
        values = sum(losses.at(ours, theirs, p=self.p, squared=self.squared) for ours, theirs in pairs)
        return per_example(values, ctx.batch)


@dataclasses.dataclass(frozen=True, kw_only=True)
class NST(Objective):
    """Neuron selectivity transfer: at every stage the channels' patterns are distributed as the teacher's."""

    stages: tuple[int, ...] | None = (-3, -2, -1)
    """indices into `features` of both networks; None for all, the stem included"""

    reads: ClassVar = ("student.features", "teacher.features")
    any_classes: ClassVar = True
    formula: ClassVar = "mean_b Σ_l mean k(s, s) + mean k(t, t) − 2 mean k(s, t),  k(a, b) = ⟨a, b⟩² of unit channels"
    paper: ClassVar = Paper(
        "Like What You Like: Knowledge Distill via Neuron Selectivity Transfer",
        "Huang, Wang",
        "arXiv",
        2017,
        "1707.01219",
    )

    def build(self, student, teacher, data, rngs):
        stage_pairs(student, teacher, self.stages)
        return None

    def terms(self, module, ctx):
        pairs = zip(chosen(ctx.student.features, self.stages), chosen(ctx.teacher.features, self.stages), strict=True)
        return per_example(sum(losses.nst(ours, theirs) for ours, theirs in pairs), ctx.batch)


@dataclasses.dataclass(frozen=True, kw_only=True)
class VID(Objective):
    """Variational information distillation: the teacher's features are likely, given what is regressed from the student's."""

    stages: tuple[int, ...] | None = (-3, -2, -1)
    """indices into `features` of both networks; None for all, the stem included"""
    learn_variance: bool = True
    """train a variance for each channel, as in the paper; False leaves them at 5, as one released benchmark code does"""

    reads: ClassVar = ("student.features", "teacher.features")
    trains: ClassVar = "a regressor and variances for each stage"
    any_classes: ClassVar = True
    formula: ClassVar = "mean_b Σ_l mean_hwk ½ ((μ(f_s) − f_t)² / σ_k² + log σ_k²)"
    paper: ClassVar = Paper(
        "Variational Information Distillation for Knowledge Transfer", "Ahn et al.", "CVPR", 2019, "1904.05835"
    )

    def build(self, student, teacher, data, rngs):
        return Regressors(stage_pairs(student, teacher, self.stages), learn_variance=self.learn_variance, rngs=rngs)

    def terms(self, module, ctx):
        pairs = zip(chosen(ctx.student.features, self.stages), chosen(ctx.teacher.features, self.stages), strict=True)
        values = 0.0
        for regressor, (student, teacher) in zip(module.stages, pairs, strict=True):
            student, teacher = maps_pair(student, teacher)
            mean, variance = regressor(student)
            values = values + losses.vid(mean, teacher, variance)
        return per_example(values, ctx.batch)


@dataclasses.dataclass(frozen=True, kw_only=True)
class AB(Objective):
    """Activation boundaries: each response of the student, before the ReLU, is on the side of 0 on which the teacher's is.

    As released it is all that the first 30 epochs minimise, and the labels all that follows: a phase of `AB()`, and one of
    `CrossEntropy()` with the first as its `start`. In the first phase the released student computes in evaluation mode, by the
    statistics that it began with; here in training mode.
    """

    stages: tuple[int, ...] | None = (-3, -2, -1)
    """indices into `preactivations` of both networks, each weighing twice what the one before does; None for all"""
    margin: float = 1.0
    """how far beyond 0 a response is to be"""

    reads: ClassVar = ("student.preactivations", "teacher.preactivations")
    trains: ClassVar = "a convolutional connector where shapes differ"
    any_classes: ClassVar = True
    formula: ClassVar = "3/1000 mean_b Σ_l 2^(l−L) Σ_hwk max(0, m + c(s))² if t ≤ 0, max(0, m − c(s))² if t > 0"
    paper: ClassVar = Paper(
        "Knowledge Transfer via Distillation of Activation Boundaries Formed by Hidden Neurons", "Heo et al.", "AAAI", 2019,
        "1811.03233",
    )  # fmt: skip

    def build(self, student, teacher, data, rngs):
        pairs = stage_pairs(student, teacher, self.stages, "preactivations")
        return None if all(ours == theirs for ours, theirs in pairs) else Connectors(pairs, rngs=rngs)

    def terms(self, module, ctx):
        student = chosen(ctx.student.preactivations, self.stages)
        student = student if module is None else module(student)
        values = 0.0
        for ours, theirs in zip(student, chosen(ctx.teacher.preactivations, self.stages), strict=True):
            values = values / 2 + losses.ab(ours, theirs, margin=self.margin)
        return per_example(3 / 1000 * values, ctx.batch)


@dataclasses.dataclass(frozen=True, kw_only=True)
class MGD(Objective):
    """Masked generative distillation: from its own map with a random part taken out, the student generates the teacher's.

    What is taken out follows the key of the step and the index of the example, on any number of devices. The released
    configurations for ImageNet classifiers weigh the sum over a map by 7e-5 and take out channels; the released code for
    detectors takes out positions, by default 0.65 of them with a weight of 2e-5.
    """

    stage: int = -1
    """index into `features` of both networks"""
    mask_ratio: float | Schedule = 0.15
    """share that is taken out: the released configurations of classifiers; their code's text says 0.5"""
    masked: Literal["channels", "positions"] = "channels"
    """what is taken out of each example's map: whole channels or whole positions"""

    reads: ClassVar = ("student.features", "teacher.features")
    trains: ClassVar = "a block that generates"
    any_classes: ClassVar = True
    formula: ClassVar = "mean_b Σ_hwk (G(m ⊙ f_s) − f_t)²,  m random of 0 and 1, G two 3x3 convolutions"
    paper: ClassVar = Paper("Masked Generative Distillation", "Yang et al.", "ECCV", 2022, "2205.01529")

    def build(self, student, teacher, data, rngs):
        ((ours, theirs),) = stage_pairs(student, teacher, (self.stage,))
        return Generator(ours[-1], theirs[-1], rngs=rngs)

    def terms(self, module, ctx):
        student, teacher = maps_pair(ctx.student.features[self.stage], ctx.teacher.features[self.stage])
        shape = (1, 1, teacher.shape[-1]) if self.masked == "channels" else (*teacher.shape[1:3], 1)
        share = 1 - value_at(self.mask_ratio, ctx.progress)
        draw = lambda index: jax.random.bernoulli(jax.random.fold_in(ctx.key, index), share, shape)
        generated = module(student, jax.vmap(draw)(ctx.batch.numbers(ctx.axis)))
        return per_example(losses.mgd(generated, teacher), ctx.batch)


@dataclasses.dataclass(frozen=True, kw_only=True)
class CWD(Objective):
    """Channel-wise distillation: each channel's map, as probabilities of the positions, follows the teacher's.

    Published for segmentation and detection. A map of a single position says nothing.
    """

    stage: int = -1
    """index into `features` of both networks"""
    temperature: float | Schedule = 4.0
    """T, divides both networks' features"""

    reads: ClassVar = ("student.features", "teacher.features")
    trains: ClassVar = "a 1x1 convolution where widths differ"
    any_classes: ClassVar = True
    formula: ClassVar = "T² mean_b mean_k KL(softmax_hw(f_t / T) ‖ softmax_hw(f_s / T))"
    paper: ClassVar = Paper(
        "Channel-wise Knowledge Distillation for Dense Prediction", "Shu et al.", "ICCV", 2021, "2011.13256"
    )

    def build(self, student, teacher, data, rngs):
        return bridges(stage_pairs(student, teacher, (self.stage,)), rngs)

    def terms(self, module, ctx):
        (student,) = bridged(module, [ctx.student.features[self.stage]])
        temperature = value_at(self.temperature, ctx.progress)
        values = losses.cwd(student, ctx.teacher.features[self.stage], temperature=temperature)
        return per_example(values, ctx.batch)


METHODS = {
    "fitnet": Method(
        CrossEntropy() + 100.0 * FitNet(stage=2), "feature", "match a middle feature map through a projector", CIFAR
    ),
    "at": Method(CrossEntropy() + 1000.0 * AT(), "feature", "look where the teacher looks", CIFAR),
    "nst": Method(CrossEntropy() + 50.0 * NST(), "feature", "match how the channels' patterns are distributed", CIFAR),
    "vid": Method(
        CrossEntropy() + VID(), "feature", "make the teacher's maps likely under a regression from the student's", CIFAR
    ),
    "ab": Method(
        CrossEntropy(),
        "feature",
        "activate the neurons that the teacher activates, in a phase of its own before that of the labels",
        CIFAR,
        AB.paper,
        before=AB(),
    ),
    "mgd": Method(
        CrossEntropy() + 7e-5 * MGD(),
        "feature",
        "generate the teacher's map from a masked one",
        "ImageNet, " + RELEASED,
    ),
    "cwd": Method(
        CrossEntropy() + 3.0 * CWD(temperature=4.0),
        "feature",
        "match where each channel is active",
        "Cityscapes, the released code's command, there on the logits of a segmentation network",
    ),
}

"""Features of a detector's pyramid, imitated where it matters."""

import dataclasses
from typing import ClassVar, Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

from kdjax import losses
from kdjax.objectives.base import Method, Objective, Paper
from kdjax.objectives.detection.gfl import GFLLoss
from kdjax.objectives.detection.locations import decoded, locate, objects, of_places
from kdjax.types import Array, Context, Term

__all__ = ["PKD", "RegionImitation", "TaskIntegration"]

Kind = Literal["positives", "finegrained", "inside", "all"]


class Projections(nnx.Module):
    """A 1x1 convolution a level, where student and teacher differ in channels; else nothing."""

    def __init__(self, students: list[int], teachers: list[int], *, rngs: nnx.Rngs):
        self.layers = nnx.List([nnx.Conv(s, t, (1, 1), rngs=rngs) for s, t in zip(students, teachers, strict=True)])

    def __call__(self, i: int, x: Array) -> Array:
        return self.layers[i](x)


@dataclasses.dataclass(frozen=True, kw_only=True)
class OnPyramid(Objective):
    """Base: the maps of two pyramids of the same levels."""

    reads: ClassVar = ("student.features", "teacher.features", "student.logits", "labels", "boxes")
    trains: ClassVar = "1×1 projectors where the channels differ"

    @property
    def per_element(self) -> bool:
        return True

    def build(self, student, teacher, data, rngs):
        shapes = [[x.shape[1:3] for x in output.features] for output in (student, teacher)]
        if shapes[0] != shapes[1]:
            raise ValueError(f"The pyramids have maps of {shapes[0]} (student) and {shapes[1]} (teacher); they must be of the "
                             "same levels.")  # fmt: skip
        ours, theirs = ([x.shape[-1] for x in output.features] for output in (student, teacher))
        return None if ours == theirs else Projections(ours, theirs, rngs=rngs)

    def maps(self, module, ctx: Context) -> list[tuple[Array, Array]]:
        """`(student, teacher)` of each level, `[B, h * w, D]`."""
        flat = lambda x: jnp.reshape(x, (x.shape[0], -1, x.shape[-1]))
        return [
            (flat(s if module is None else module(i, s)), flat(lax.stop_gradient(t)))
            for i, (s, t) in enumerate(zip(ctx.student.features, ctx.teacher.features, strict=True))
        ]


@dataclasses.dataclass(frozen=True, kw_only=True)
class RegionImitation(OnPyramid):
    """Feature imitation: the maps of the pyramid are the teacher's where objects are.

    The mean over a level's region and the channels, summed over the levels; a level without positives counts nothing, as
    released with localization distillation.
    """

    region: Kind = "finegrained"
    """which locations: near each object's best anchor ("finegrained"), inside objects, the positives, or all (FitNets)"""
    topk: int = 9
    """candidates of a level in the assignment"""

    formula: ClassVar = "Σ over levels of mean (f_s − f_t)² over the region"
    paper: ClassVar = Paper(
        "Distilling Object Detectors with Fine-grained Feature Imitation", "Wang et al.", "CVPR", 2019, "1906.03609"
    )

    def terms(self, module, ctx):
        found = locate(ctx.student, ctx.batch, topk=self.topk)
        if self.region in ("finegrained", "inside"):
            boxes, labels, counted = objects(ctx.batch, found.points, found.strides)
            mask = jax.vmap(lambda b, there: losses.imitation_region(found.anchors, b, there, kind=self.region))(
                boxes, labels >= 0
            )
            mask = mask & counted
        else:
            mask = found.positive if self.region == "positives" else found.counted
        terms = {}
        masks, positives = of_places(mask, found), of_places(found.positive, found)
        for i, (student, teacher) in enumerate(self.maps(module, ctx)):
            used = masks[i][..., None]
            errors = jnp.square(jnp.where(used, student, 0) - jnp.where(used, teacher, 0))
            count = jnp.sum(masks[i], dtype=errors.dtype) * errors.shape[-1]
            terms[f"level{i}"] = Imitated(jnp.sum(errors), count, jnp.sum(positives[i], dtype=errors.dtype))
        return {name: term.term(ctx) for name, term in terms.items()}


@dataclasses.dataclass(frozen=True)
class Imitated:
    """A level's sum of squared errors, how many there are, and how many positives it has over all devices."""

    sum: Array
    count: Array
    positives: Array

    def term(self, ctx: Context) -> Term:
        there = self.positives if ctx.axis is None else lax.psum(self.positives, ctx.axis)
        return Term(jnp.where(there > 0, self.sum, 0), self.count)


@dataclasses.dataclass(frozen=True, kw_only=True)
class PKD(OnPyramid):
    """Pearson distillation of pyramids: squared error of maps whose every channel has mean 0 and variance 1 over the batch.

    Statistics are those of the rows of the global batch that count; padding inside an image counts.
    """

    reads: ClassVar = ("student.features", "teacher.features")
    formula: ClassVar = "Σ over levels of mean ½ (norm(f_s) − norm(f_t))²"
    paper: ClassVar = Paper(
        "PKD: General Distillation Framework for Object Detectors via Pearson Correlation Coefficient", "Cao et al.",
        "NeurIPS", 2022, "2207.02039",
    )  # fmt: skip

    def terms(self, module, ctx):
        where = ctx.batch.where[:, None, None]
        terms = {}
        for i, pair in enumerate(self.maps(module, ctx)):
            student, teacher = (self._normalised(jnp.where(where, x, 0), where, ctx.axis) for x in pair)
            errors = jnp.where(where, jnp.square(student - teacher) / 2, 0)
            count = jnp.sum(ctx.batch.where, dtype=errors.dtype) * errors.shape[1] * errors.shape[2]
            terms[f"level{i}"] = Term(jnp.sum(errors), count)
        return terms

    @staticmethod
    def _normalised(x: Array, where: Array, axis) -> Array:
        """`[B, N, D]` to mean 0 and variance 1 of each channel, over the rows of all devices that count."""
        over = lambda value: value if axis is None else lax.psum(value, axis)
        count = jnp.maximum(over(jnp.sum(where, dtype=x.dtype) * x.shape[1]), 1)
        mean = over(jnp.sum(x, axis=(0, 1), keepdims=True)) / count
        centred = jnp.where(where, x - mean, 0)
        var = over(jnp.sum(jnp.square(centred), axis=(0, 1), keepdims=True)) / count
        return centred / (jnp.sqrt(var) + 1e-6)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TaskIntegration(OnPyramid):
    """Task integration distillation: features where both heads of the teacher matter, or where the student lags behind it.

    Experimental: written from accounts of the paper, which has no released code. Every location has a score for either
    network, its box's times its class's: the box's is 2, 1.5 or 0.4 by the largest overlap of the decoded box with an object, the
    class's the probability of the class of that object (the paper's levels are not verified). High scores of the teacher
    are the key region, large gaps between the two the weak one; both are of high value, scores of the teacher's above `low` of
    middle, the rest of low.
    """

    tau_pos: float = 0.5
    """overlap from which a box is good"""
    tau_neg: float = 0.4
    """overlap up to which it is bad"""
    key: float = 1.0
    """score of the teacher from which a location is in the key region; not the paper's, which is not verified"""
    weak: float = 0.5
    """gap between the teacher's score and the student's from which it is in the weak one; likewise"""
    low: float = 0.2
    """score of the teacher below which a location is of low value; likewise"""
    weights: tuple[float, float, float] = (1.0, 0.5, 0.1)
    """of high, middle and low value; likewise"""

    reads: ClassVar = (
        "student.features", "teacher.features", "student.logits", "teacher.logits", "labels", "boxes",
    )  # fmt: skip
    formula: ClassVar = "Σ over values of w_m mean (f_s − f_t)² over their locations"
    paper: ClassVar = Paper(
        "Task Integration Distillation for Object Detectors", "Su, Jian, Yu", "arXiv", 2024, "2404.01699"
    )

    def build(self, student, teacher, data, rngs):
        if student.places != teacher.places:
            raise ValueError(
                f"TaskIntegration compares locations, and the student's head ({student.head}) has others than the teacher's "
                f"({teacher.head}); use heads of one kind."
            )
        if student.background:
            raise ValueError(
                "TaskIntegration scores sigmoids, and this head has a softmax with background; use RegionImitation."
            )
        return super().build(student, teacher, data, rngs)

    def terms(self, module, ctx):
        found = locate(ctx.student, ctx.batch)
        boxes, labels, _ = objects(ctx.batch, found.points, found.strides)
        ours, theirs = (self.scores(output, found, boxes, labels) for output in (ctx.student, ctx.teacher))
        high = (theirs >= self.key) | (theirs - ours >= self.weak)
        middle = ~high & (theirs >= self.low)
        parts = [of_places(x & found.counted, found) for x in (high, middle, ~(high | middle))]
        # A location is of the highest value that an anchor of it has.
        for i, places in enumerate(zip(*parts, strict=True)):
            parts[1][i], parts[2][i] = places[1] & ~places[0], places[2] & ~places[1] & ~places[0]
        terms = {}
        for name, weight, levels in zip(("high", "middle", "low"), self.weights, parts, strict=True):
            total, count = 0.0, 0.0
            for mask, (student, teacher) in zip(levels, self.maps(module, ctx), strict=True):
                used = mask[..., None]
                errors = jnp.square(jnp.where(used, student, 0) - jnp.where(used, teacher, 0))
                total, count = total + jnp.sum(errors), count + jnp.sum(mask, dtype=errors.dtype) * errors.shape[-1]
            terms[name] = Term(total, count, weight)
        return terms

    def scores(self, output, found, boxes, labels) -> Array:
        """`[B, A]` importance of every location to both tasks, of one network."""
        found_boxes = decoded(output, found)
        there = labels >= 0
        iou = losses.pairwise_box_iou(found_boxes, jnp.where(there[..., None], boxes, 0).astype(found_boxes.dtype))
        iou = jnp.where(there[:, None], iou, 0)
        best = jnp.argmax(iou, axis=-1)
        wanted = jnp.take_along_axis(jnp.maximum(labels, 0), best, axis=1)
        match = jnp.take_along_axis(jax.nn.sigmoid(output.logits), wanted[..., None], axis=-1)[..., 0]
        match = jnp.where(jnp.any(there, axis=1)[:, None], match, 0)
        return losses.tid_scores(jnp.max(iou, axis=-1), match, tau_pos=self.tau_pos, tau_neg=self.tau_neg)


METHODS = {
    "imitation": Method(
        GFLLoss() + 2.0 * RegionImitation(), "detection", "the teacher's pyramid near each object's best anchor",
        "COCO, GFL R-101 to R-50: the released config of localization distillation", RegionImitation.paper,
    ),
    "pkd": Method(
        GFLLoss() + 6.0 * PKD(), "detection", "the teacher's pyramid, every channel normalised",
        "COCO: the paper's weight for detectors of one stage, not verified against its code", PKD.paper,
    ),
    "tid": Method(
        GFLLoss() + TaskIntegration(), "detection",
        "the teacher's pyramid where both its heads matter or the student lags (experimental)", "none that is verified",
        TaskIntegration.paper,
    ),
}  # fmt: skip

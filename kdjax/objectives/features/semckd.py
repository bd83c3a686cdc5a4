"""Semantic calibration: an attention finds which stages of the teacher each stage of the student should follow."""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

from kdjax import losses
from kdjax.models.zoo.resnet_cifar import linear
from kdjax.objectives.base import CIFAR, Method, Objective, Paper
from kdjax.objectives.features.connectors import Bottleneck, map_shape, smaller
from kdjax.objectives.logits.logit import KD
from kdjax.objectives.logits.supervised import CrossEntropy
from kdjax.reduction import per_example
from kdjax.types import Array

__all__ = ["SemCKD"]


class Embedding(nnx.Module):
    """Two linear layers with a ReLU between; the result has length 1, or is zero."""

    def __init__(self, before: int, after: int, *, rngs: nnx.Rngs):
        self.hidden = linear(before, 2 * after, rngs=rngs)
        self.out = linear(2 * after, after, rngs=rngs)

    def __call__(self, x: Array) -> Array:
        return unit(self.out(jax.nn.relu(self.hidden(x))))


class CrossLayer(nnx.Module):
    """An embedding of the similarities of each stage, and a projector for each pair of stages."""

    def __init__(self, student: list[tuple], teacher: list[tuple], *, rows: int, factor: int, rngs: nnx.Rngs):
        self.rows = rows
        embed = lambda: Embedding(rows, max(rows // factor, 1), rngs=rngs)
        self.queries = nnx.List([embed() for _ in student])
        self.keys = nnx.List([embed() for _ in teacher])
        self.projectors = nnx.List(
            [
                nnx.List([Bottleneck(s[-1], 2 * t[-1], t[-1], activated=False, rngs=rngs) for t in teacher])
                for s in student
            ]
        )

    def attention(self, student: list[Array], teacher: list[Array], where, axis, temperature) -> Array:
        """`[B, student stages, teacher stages]`, of the batch's similarities at each stage."""
        similarities = [
            [losses.batch_similarity(stage, where=where, axis_name=axis) for stage in stages]
            for stages in (student, teacher)
        ]
        found = similarities[0][0].shape[-1]
        if found != self.rows:
            raise ValueError(
                f"SemCKD was built for batches of {self.rows} rows, over all devices, and this one has {found}: its embeddings "
                f"read one similarity for each row. Bind it to the shapes of the batches that it will see, or set "
                f"batch_size={found}."
            )
        queries, keys = (
            jnp.stack([embed(rows) for embed, rows in zip(embeds, stages, strict=True)], axis=1)
            for embeds, stages in zip((self.queries, self.keys), similarities, strict=True)
        )
        return losses.semckd_attention(queries, keys, temperature=temperature)

    def project(self, student: list[Array], teacher: list[Array]) -> list[list[Array]]:
        """Every stage of the student as each of the teacher, at the smaller of both sizes."""
        return [
            [
                projector(losses.adaptive_average_pool(ours, smaller(ours.shape[1:], theirs.shape[1:])))
                for projector, theirs in zip(projectors, teacher, strict=True)
            ]
            for projectors, ours in zip(self.projectors, student, strict=True)
        ]


@dataclasses.dataclass(frozen=True, kw_only=True)
class SemCKD(Objective):
    """Semantic calibration: match every stage of the teacher from every stage of the student, as much as an attention says.

    The attention compares how alike the examples of the batch are at each stage. Its embeddings read the similarities of an
    example to every row of the batch, so their width is the batch size, over all devices, and it must not change: rows
    that are left out of a batch count as zeros, where the released code skips a last batch that is not full.

    Nothing normalises after the last convolution of a projector, so the loss is about as steep in it as its weight, whatever
    the scale of the teacher's features. The published weight of 400 goes with SGD at 0.05 and momentum 0.9, and needs no
    warm-up there. At 0.1 it can diverge within some steps: warm up, or take a smaller weight.
    """

    student_stages: tuple[int, ...] = (-3, -2, -1)
    """indices into the student's `features`"""
    teacher_stages: tuple[int, ...] = (-3, -2, -1)
    """indices into the teacher's `features`, as many as you like"""
    temperature: float = 1.0
    """divides the products of queries and keys; the released code calls it soft"""
    factor: int = 4
    """the embeddings are the batch size divided by this wide"""
    batch_size: int = 0
    """rows of a batch over all devices; 0 for that of the shapes that it is bound to"""

    reads: ClassVar = ("student.features", "teacher.features")
    trains: ClassVar = "an attention and a projector for each pair of stages"
    any_classes: ClassVar = True
    formula: ClassVar = "mean_b 1/n_s Σ_ij α_ij mean_hwk (P_ij(f_s,i) − f_t,j)²,  α_i = softmax_j of query i · key j"
    paper: ClassVar = Paper(
        "Cross-Layer Distillation with Semantic Calibration", "Chen et al.", "AAAI", 2021, "2012.03236"
    )

    def build(self, student, teacher, data, rngs):
        if not (self.student_stages and self.teacher_stages):
            raise ValueError("SemCKD has no stages to match; name at least one of each network.")
        return CrossLayer(
            [map_shape(student.features, stage, "student's features") for stage in self.student_stages],
            [map_shape(teacher.features, stage, "teacher's features") for stage in self.teacher_stages],
            rows=self.batch_size or student.features[0].shape[0],
            factor=self.factor,
            rngs=rngs,
        )

    def terms(self, module, ctx):
        student = [ctx.student.features[stage] for stage in self.student_stages]
        teacher = lax.stop_gradient([ctx.teacher.features[stage] for stage in self.teacher_stages])
        attention = module.attention(student, teacher, ctx.batch.where, ctx.axis, self.temperature)
        return per_example(losses.semckd(module.project(student, teacher), teacher, attention), ctx.batch)


def unit(x: Array) -> Array:
    """Vectors of the last axis divided by their length; one of zeros stays, with a zero gradient."""
    top = lax.stop_gradient(jnp.max(jnp.abs(x), axis=-1, keepdims=True))
    x = x / jnp.where(top > 0, top, 1)  # no square beyond the largest number, nor below the smallest
    squared = jnp.sum(x**2, axis=-1, keepdims=True)
    alive = squared > 0
    return jnp.where(alive, x / jnp.sqrt(jnp.where(alive, squared, 1)), 0)


METHODS = {
    "semckd": Method(
        CrossEntropy() + KD(temperature=4.0) + 400.0 * SemCKD(),
        "feature",
        "match all pairs of stages, weighed by an attention between them",
        CIFAR,
    ),
}

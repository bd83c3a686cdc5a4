"""Knowledge review: the student's later stages help to say what its earlier ones should have seen."""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax

from kdjax import losses
from kdjax.objectives.base import CIFAR, RAMP, Method, Objective, Paper
from kdjax.objectives.features.connectors import DEFAULT, FAN_IN, ConvNorm, map_shape
from kdjax.objectives.logits.supervised import CrossEntropy
from kdjax.reduction import per_example
from kdjax.types import Array

__all__ = ["ReviewKD"]


class Fusion(nnx.Module):
    """Attention-based fusion: a stage, and what came of the later ones, mixed by a gate each at every position."""

    def __init__(self, before: int, middle: int, after: int, *, last: bool, rngs: nnx.Rngs):
        self.embed = ConvNorm(before, middle, start=FAN_IN, rngs=rngs)
        self.gate = None if last else nnx.Conv(2 * middle, 2, (1, 1), kernel_init=DEFAULT, rngs=rngs)
        self.out = ConvNorm(middle, after, size=3, start=FAN_IN, rngs=rngs)

    def __call__(self, x: Array, later: Array | None, size: tuple[int, int]) -> tuple[Array, Array]:
        """`[B, h, w, before]` to `([B, *size, after], the mixture for the stage before)`."""
        x = self.embed(x)
        if self.gate is not None:
            later = nearest(later, x.shape[1:3])
            gates = jax.nn.sigmoid(self.gate(jnp.concatenate([x, later], axis=-1)))
            x = x * gates[..., :1] + later * gates[..., 1:]
        x = nearest(x, size)
        return self.out(x), x


class Fusions(nnx.Module):
    """One fusion a level, from the first stage to the pooled vector."""

    def __init__(self, channels: list[tuple[int, int]], middle: int, *, rngs: nnx.Rngs):
        last = len(channels) - 1
        self.levels = nnx.List(
            [Fusion(before, middle, after, last=i == last, rngs=rngs) for i, (before, after) in enumerate(channels)]
        )

    def __call__(self, maps: list[Array], sizes: list[tuple[int, int]]) -> list[Array]:
        """The fused map of each level, brought to its size; the fusion goes from the last level to the first."""
        fused, later = [], None
        for level, x, size in reversed(list(zip(self.levels, maps, sizes, strict=True))):
            out, later = level(x, later, size)
            fused.insert(0, out)
        return fused


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReviewKD(Objective):
    """Knowledge review: match each stage of the teacher by the student's same stage fused with all its later ones.

    The student's stages are read after their activation and the teacher's before it, as in the released code; the last
    level is the pooled vector of both.
    """

    stages: tuple[int, ...] = (-3, -2, -1)
    """indices into the student's `features` and the teacher's `preactivations`, from the first to the last"""
    width: int = 512
    """most channels of the fusion, which otherwise has as many as the student's pooled vector"""

    reads: ClassVar = ("student.features", "student.embedding", "teacher.preactivations", "teacher.embedding")
    trains: ClassVar = "a fusion a stage"
    any_classes: ClassVar = True
    formula: ClassVar = (
        "mean_b Σ_l HCL(fused_l, f_t,l),  HCL: mean square at full, 4x4, 2x2, 1x1 size, weights 1, ½, ¼, ⅛"
    )
    paper: ClassVar = Paper("Distilling Knowledge via Knowledge Review", "Chen et al.", "CVPR", 2021, "2104.09044")

    def build(self, student, teacher, data, rngs):
        channels = [
            (
                map_shape(student.features, stage, "student's features")[-1],
                map_shape(teacher.preactivations, stage, "teacher's preactivations")[-1],
            )
            for stage in self.stages
        ]
        channels.append((student.embedding.shape[-1], teacher.embedding.shape[-1]))
        return Fusions(channels, min(self.width, student.embedding.shape[-1]), rngs=rngs)

    def terms(self, module, ctx):
        maps = [*(ctx.student.features[stage] for stage in self.stages), as_map(ctx.student.embedding)]
        targets = [*(ctx.teacher.preactivations[stage] for stage in self.stages), as_map(ctx.teacher.embedding)]
        fused = module(maps, [target.shape[1:3] for target in targets])
        values = sum(losses.hcl(ours, theirs) for ours, theirs in zip(fused, targets, strict=True))
        return per_example(values, ctx.batch)


def as_map(embedding: Array) -> Array:
    """`[B, D]` as a map of one position, `[B, 1, 1, D]`."""
    return embedding[:, None, None, :]


def nearest(x: Array, size: tuple[int, int]) -> Array:
    """A map brought to a size by repeating, or leaving out, rows and columns: row `i` is that of `floor(i H / h)`."""
    for axis, (spec, cells) in enumerate(zip(("oi,biwk->bowk", "oi,bhik->bhok"), size, strict=True), start=1):
        length = x.shape[axis]
        if cells != length:
            source = np.arange(cells)[:, None] * length // cells == np.arange(length)
            x = jnp.einsum(spec, jnp.asarray(source, x.dtype), x, precision=lax.Precision.HIGHEST)
    return x


METHODS = {
    "reviewkd": Method(
        CrossEntropy() + RAMP * (5.0 * ReviewKD()),
        "feature",
        "match each stage by the student's same and later ones fused",
        CIFAR + ", resnet32x4 to resnet8x4",
    ),
}

"""Factor transfer: the teacher's features in fewer factors, and the student's translated to them."""

import dataclasses
from typing import ClassVar

from flax import nnx
from jax import lax

from kdjax import losses
from kdjax.objectives.base import CIFAR, Method, Objective, Paper
from kdjax.objectives.features.bridges import Paraphraser, Stack, freeze, stage_pairs
from kdjax.objectives.logits.supervised import CrossEntropy
from kdjax.reduction import per_example

__all__ = ["FT", "Paraphrase"]

PAPER = Paper(
    "Paraphrasing Complex Network: Network Compression via Factor Transfer", "Kim, Park, Kwak", "NeurIPS", 2018,
    "1802.04977",
)  # fmt: skip


class Paraphrasing(nnx.Module):
    """A paraphraser."""

    def __init__(self, channels: int, factors: int, *, rngs: nnx.Rngs):
        self.paraphraser = Paraphraser(channels, factors, rngs=rngs)


class Translating(nnx.Module):
    """A paraphraser that does not learn, and a translator that does: three 3x3 convolutions with BatchNorm."""

    def __init__(self, before: int, channels: int, factors: int, *, rngs: nnx.Rngs):
        self.paraphraser = freeze(Paraphraser(channels, factors, rngs=rngs))
        self.translator = Stack((before, before, factors, factors), normalised=True, rngs=rngs)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Paraphrase(Objective):
    """First part of factor transfer: an autoencoder learns to say the teacher's features in fewer channels.

    It asks nothing of the student. Its module's `paraphraser` is what `FT` keeps frozen under the same name.
    """

    stage: int = -1
    """index into the teacher's `features`"""
    rate: float = 0.5
    """channels of the factors for each of the teacher's"""

    reads: ClassVar = ("teacher.features",)
    trains: ClassVar = "a paraphraser"
    formula: ClassVar = "mean_b mean_hwk (D(E(f_t)) − f_t)²"
    paper: ClassVar = PAPER

    def build(self, student, teacher, data, rngs):
        ((shape, _),) = stage_pairs(teacher, teacher, (self.stage,))
        return Paraphrasing(shape[-1], factors_of(shape, self.rate), rngs=rngs)

    def terms(self, module, ctx):
        feature = lax.stop_gradient(ctx.teacher.features[self.stage])
        return per_example(losses.fitnet(module.paraphraser(feature), feature), ctx.batch)


@dataclasses.dataclass(frozen=True, kw_only=True)
class FT(Objective):
    """Factor transfer: a translation of the student's features is active where the teacher's factors are.

    The factors are those of a paraphraser that a phase with `Paraphrase` trains before. Here it is frozen: state of the
    module, under the same name `paraphraser`, and no parameter, so that neither gradients nor weight decay move it.
    Experiments demand that phase; a step of one's own that goes without has a paraphraser of random weights.
    """

    stage: int = -1
    """index into `features` of both networks"""
    rate: float = 0.5
    """channels of the factors for each of the teacher's, as of the paraphraser"""
    p1: int = 2
    """power of the factors in the map"""
    p2: int = 1
    """power of the difference of the maps"""

    reads: ClassVar = ("student.features", "teacher.features")
    carries: ClassVar = ("paraphraser",)
    trains: ClassVar = "a translator"
    any_classes: ClassVar = True
    formula: ClassVar = "mean_b mean_hw |n(mean_k T(f_s)²) − n(mean_k E(f_t)²)|,  n divides by the L2 norm"
    paper: ClassVar = PAPER

    def build(self, student, teacher, data, rngs):
        ((ours, theirs),) = stage_pairs(student, teacher, (self.stage,))
        return Translating(ours[-1], theirs[-1], factors_of(theirs, self.rate), rngs=rngs)

    def terms(self, module, ctx):
        student = module.translator(ctx.student.features[self.stage])
        teacher = module.paraphraser.encoder(ctx.teacher.features[self.stage])
        return per_example(losses.ft(student, teacher, p1=self.p1, p2=self.p2), ctx.batch)


def factors_of(shape: tuple[int, ...], rate: float) -> int:
    """Channels of the factors of a map, one at least."""
    if not rate > 0:
        raise ValueError(f"rate is {rate}; the factors need more than no channels.")
    return max(int(shape[-1] * rate), 1)


METHODS = {
    "ft": Method(
        CrossEntropy() + 200.0 * FT(rate=0.5, p1=2, p2=1),
        "feature",
        "match a paraphrase of the teacher's features, which is learned in a phase before",
        CIFAR + " (there the student rests while the paraphraser is trained)",
        before=CrossEntropy() + Paraphrase(rate=0.5),
    ),
}

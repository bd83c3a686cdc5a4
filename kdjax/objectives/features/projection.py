"""Objectives that match embeddings through a linear projector."""

import dataclasses
from typing import ClassVar, Literal

import jax
from flax import nnx

from kdjax import losses
from kdjax.objectives.base import Method, Objective, Paper
from kdjax.objectives.features.connectors import DEFAULT, ask_teacher
from kdjax.objectives.logits.logit import KD
from kdjax.objectives.logits.supervised import CrossEntropy
from kdjax.reduction import per_example, whole_batch

__all__ = ["SRD", "WeightedFeatures"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class SRD(Objective):
    """Simple recipe: a linear projection of the student's embedding and the teacher's, both standardised over the batch.

    The statistics are of the rows that count, on all devices together; no running ones are kept, since nothing reads them.
    Written beside KD at temperature 1. In the released DeiT code that is on the student's distillation token.
    """

    mode: Literal["feature", "correlation"] = "feature"
    """logarithm of the summed differences, as released for ResNets, or of each feature's correlation from 1, as for DeiT"""
    exponent: float = 4.0
    """power of the differences"""
    bn_eps: float = 1e-4
    """added to the variance; 0 in the released correlation form"""
    log_eps: float = 0.0
    """added within the logarithm; 1e-5 in the released correlation form"""

    reads: ClassVar = ("student.embedding", "teacher.embedding")
    trains: ClassVar = "a linear projector"
    any_classes: ClassVar = True
    formula: ClassVar = "log Σ_bj |u(W z_s + b) − u(z_t)|⁴,  u standardises over the batch"
    paper: ClassVar = Paper(
        "Understanding the Role of the Projector in Knowledge Distillation", "Miles, Mikolajczyk", "AAAI", 2024,
        "2303.11098",
    )  # fmt: skip

    def build(self, student, teacher, data, rngs):
        return projector(student, teacher, rngs)

    def terms(self, module, ctx):
        value = losses.srd(
            module(ctx.student.embedding), ctx.teacher.embedding, exponent=self.exponent, mode=self.mode,
            bn_eps=self.bn_eps, log_eps=self.log_eps, where=ctx.batch.where, axis_name=ctx.axis,
        )  # fmt: skip
        return whole_batch(value)


@dataclasses.dataclass(frozen=True, kw_only=True)
class WeightedFeatures(Objective):
    """Squared distance of the embeddings, each entry weighed by how much the teacher's answer hangs on it.

    Where the widths differ the student's embedding goes through a learned linear projection. The weights are used as they
    are: how the paper scales them is not verified.
    """

    weighting: Literal["fisher", "none"] = "fisher"
    """weight of each entry: the diagonal of the Fisher information of the teacher's classifier, or 1"""
    fisher: Literal["exact", "sampled"] = "exact"
    """the information: over all classes, with a backward pass through the classifier each, or with one drawn class"""
    head: str = "classify"
    """the part of the teacher that makes logits of its embedding"""

    trains: ClassVar = "a linear projector where widths differ"
    any_classes: ClassVar = True
    formula: ClassVar = "mean_b Σ_j F_jj (W z_s + b − z_t)_j²,  F_jj = E_{y ~ p_t} (∂ log p(y | z_t) / ∂ z_t(j))²"
    paper: ClassVar = Paper(
        "A Closer Look at Knowledge Distillation with Features, Logits, and Gradients", "Hsu et al.", "arXiv", 2022,
        "2203.10163",
    )  # fmt: skip
    reads: ClassVar = ("student.embedding", "teacher.embedding")

    def build(self, student, teacher, data, rngs):
        alike = student.embedding.shape[-1] == teacher.embedding.shape[-1]
        return None if alike else projector(student, teacher, rngs)

    def terms(self, module, ctx):
        student = ctx.student.embedding if module is None else module(ctx.student.embedding)
        weight = self.information(ctx) if self.weighting == "fisher" else None
        return per_example(losses.weighted_repr(student, ctx.teacher.embedding, weight), ctx.batch)

    def information(self, ctx):
        """`[B, D]`, an example's draw following the key of the step and its index."""
        what = "the logits of its embedding"
        classify = lambda z: ask_teacher(ctx.teacher_call, self.head, z, who="WeightedFeatures", what=what)
        if self.fisher == "exact":
            return losses.fisher_diag(classify, ctx.teacher.embedding)

        def of_one(index, z):
            key = jax.random.fold_in(ctx.key, index)
            return losses.fisher_diag(classify, z[None], mode="sampled", key=key)[0]

        return jax.vmap(of_one)(ctx.batch.numbers(ctx.axis), ctx.teacher.embedding)


def projector(student, teacher, rngs: nnx.Rngs) -> nnx.Linear:
    """A linear layer with a bias between the embeddings."""
    widths = (student.embedding.shape[-1], teacher.embedding.shape[-1])
    return nnx.Linear(*widths, kernel_init=DEFAULT, rngs=rngs)


METHODS = {
    "srd": Method(
        CrossEntropy() + 2.0 * SRD() + KD(temperature=1.0),
        "feature",
        "match standardised embeddings through a linear projector, the worst entries most",
        "ImageNet, the released code",
    ),
    "srd_correlation": Method(
        CrossEntropy() + SRD(mode="correlation", bn_eps=0.0, log_eps=1e-5) + KD(temperature=1.0),
        "feature",
        "correlate each entry of the embedding with the teacher's",
        "ImageNet DeiT, the released code, there with KD on a token of its own",
    ),
    "weighted_features": Method(
        CrossEntropy() + WeightedFeatures(), "feature", "match the embedding where the teacher's answer hangs on it"
    ),
}

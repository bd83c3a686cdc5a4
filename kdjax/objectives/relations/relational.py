"""Objectives that compare the examples of a batch with each other, or the channels of an example."""

import dataclasses
import functools
from typing import ClassVar

import jax
from flax import nnx

from kdjax import losses
from kdjax.models.zoo.normalization import BatchNorm
from kdjax.objectives.base import CIFAR, RELEASED, Method, Objective, Paper
from kdjax.objectives.features.stages import stage_shape
from kdjax.objectives.logits.supervised import CrossEntropy
from kdjax.reduction import over_rows, per_example
from kdjax.schedules import Schedule, value_at

__all__ = ["CC", "ICKD", "PKT", "RKD", "SP", "AffinityKD", "KernelCC"]

CONGRUENCE = Paper("Correlation Congruence for Knowledge Distillation", "Peng et al.", "ICCV", 2019, "1904.01802")


@dataclasses.dataclass(frozen=True, kw_only=True)
class RKD(Objective):
    """Relational distillation: distances and angles between the batch's embeddings agree, up to scale."""

    distance: float | Schedule = 25.0
    """weight of the distances"""
    angle: float | Schedule = 50.0
    """weight of the angles"""

    reads: ClassVar = ("student.embedding", "teacher.embedding")
    formula: ClassVar = "mean_bj 25 SL1(Δ d_bj / mean d) + mean_bjk 50 SL1(Δ cos ∠ jbk),  SL1 = smooth L1"
    paper: ClassVar = Paper("Relational Knowledge Distillation", "Park, Kim, Lu, Cho", "CVPR", 2019, "1904.05068")

    def terms(self, module, ctx):
        values = losses.rkd(
            ctx.student.embedding, ctx.teacher.embedding, distance=value_at(self.distance, ctx.progress),
            angle=value_at(self.angle, ctx.progress), where=ctx.batch.where, axis_name=ctx.axis,
        )  # fmt: skip
        return per_example(values, ctx.batch)


@dataclasses.dataclass(frozen=True, kw_only=True)
class PKT(Objective):
    """Probabilistic transfer: each example's distribution over the others of the batch, by cosine, agrees."""

    reads: ClassVar = ("student.embedding", "teacher.embedding")
    formula: ClassVar = "mean_bj P_t(b, j) log(P_t(b, j) / P_s(b, j)),  P(b, j) ∝ 1 + cos(f_b, f_j)"
    paper: ClassVar = Paper(
        "Learning Deep Representations with Probabilistic Knowledge Transfer",
        "Passalis, Tefas",
        "ECCV",
        2018,
        "1803.10837",
    )

    def terms(self, module, ctx):
        values = losses.pkt(
            ctx.student.embedding, ctx.teacher.embedding, where=ctx.batch.where, axis_name=ctx.axis
        )  # fmt: skip
        return per_example(values, ctx.batch)


class TwoEmbeddings(nnx.Module):
    """A linear layer on the student's vector and one on the teacher's, of one width."""

    def __init__(self, student: int, teacher: int, width: int, *, rngs: nnx.Rngs):
        self.student = nnx.Linear(student, width, rngs=rngs)
        self.teacher = nnx.Linear(teacher, width, rngs=rngs)

    def __call__(self, student, teacher):
        return self.student(student), self.teacher(jax.lax.stop_gradient(teacher))


@dataclasses.dataclass(frozen=True, kw_only=True)
class CC(Objective):
    """Correlation congruence as in the benchmark codes: gaps between two learned embeddings that batch neighbours share.

    Not the paper's loss, see `KernelCC`. Both embeddings learn, the teacher's too.
    """

    width: int = 128
    """width of the embeddings"""

    reads: ClassVar = ("student.embedding", "teacher.embedding")
    trains: ClassVar = "two linear embeddings"
    formula: ClassVar = "mean_b Σ_d δ_b δ_(b+1),  δ = |W_s f_s − W_t f_t|"
    paper: ClassVar = CONGRUENCE

    def build(self, student, teacher, data, rngs):
        return TwoEmbeddings(student.embedding.shape[-1], teacher.embedding.shape[-1], self.width, rngs=rngs)

    def terms(self, module, ctx):
        embedded = module(ctx.student.embedding, ctx.teacher.embedding)
        values = losses.cc_neighbours(*embedded, where=ctx.batch.where, axis_name=ctx.axis)
        return per_example(values, ctx.batch)


@dataclasses.dataclass(frozen=True, kw_only=True)
class KernelCC(Objective):
    """Correlation congruence as in the paper: the batch's kernel matrices agree, the Gaussian's Taylor series."""

    gamma: float = 0.4
    """width of the kernel"""
    order: int = 2
    """power at which the series ends"""

    reads: ClassVar = ("student.embedding", "teacher.embedding")
    formula: ClassVar = "mean_bj (k_s(b, j) − k_t(b, j))²,  k = e^(−2γ) Σ_(p ≤ P) (2γ cos(f_b, f_j))^p / p!"
    paper: ClassVar = CONGRUENCE

    def terms(self, module, ctx):
        values = losses.cc(
            ctx.student.embedding, ctx.teacher.embedding, gamma=self.gamma, order=self.order, where=ctx.batch.where,
            axis_name=ctx.axis,
        )  # fmt: skip
        return per_example(values, ctx.batch)


@dataclasses.dataclass(frozen=True, kw_only=True)
class AffinityKD(Objective):
    """Any relation between the batch's embeddings: how two are compared, the matrix rescaled, two matrices compared."""

    affinity: str = "cosine"
    """how two examples are compared: dot, cosine, l2, sq_l2, gaussian, gaussian_taylor, poly or angle"""
    normalization: str = "none"
    """how the matrix is rescaled: none, row_l2, frobenius, mean, row_softmax, row_sum or zscore"""
    loss: str = "smooth_l1"
    """how two matrices are compared: mse, l1, smooth_l1, kl (after row_softmax or row_sum) or cosine"""
    drop_diagonal: bool = False
    """leave out every example beside itself"""
    sigma: float = 1.0
    """width of gaussian"""
    constant: float = 1.0
    """what poly adds to the dot product"""
    degree: int = 2
    """power of poly"""
    gamma: float = 0.4
    """width of gaussian_taylor"""
    order: int = 2
    """power at which gaussian_taylor ends"""
    temperature: float | Schedule = 1.0
    """of row_softmax"""

    reads: ClassVar = ("student.embedding", "teacher.embedding")
    formula: ClassVar = "mean_bj d(N(A_s)_bj, N(A_t)_bj),  A_bj = a(f_b, f_j)"
    paper: ClassVar = Paper(
        "Towards a Unified View of Affinity-Based Knowledge Distillation", "Li, Maki", "arXiv", 2022, "2209.15555"
    )

    def build(self, student, teacher, data, rngs):
        unscheduled = functools.partial(self._values, temperature=1.0)
        jax.eval_shape(unscheduled, student.embedding, teacher.embedding)  # refuses choices that there are not
        return None

    def _values(self, student, teacher, **call):
        fields = [field.name for field in dataclasses.fields(self) if field.name != "weight"]
        return losses.affinity_kd(student, teacher, **({name: getattr(self, name) for name in fields} | call))

    def terms(self, module, ctx):
        values = self._values(
            ctx.student.embedding, ctx.teacher.embedding, temperature=value_at(self.temperature, ctx.progress),
            where=ctx.batch.where, axis_name=ctx.axis,
        )  # fmt: skip
        return per_example(values, ctx.batch)


class ChannelEmbedding(nnx.Module):
    """1x1 convolution without bias, and BatchNorm."""

    def __init__(self, channels: int, out: int, *, rngs: nnx.Rngs):
        self.conv = nnx.Conv(channels, out, (1, 1), use_bias=False, rngs=rngs)
        self.norm = BatchNorm(out, rngs=rngs)

    def __call__(self, x):
        return self.norm(self.conv(x))


@dataclasses.dataclass(frozen=True, kw_only=True)
class ICKD(Objective):
    """Inter-channel correlation: the channels of an example's last map are alike as the teacher's, through a projection."""

    stage: int = -1
    """index into `features`; the released code uses the last one"""

    reads: ClassVar = ("student.features", "teacher.features")
    trains: ClassVar = "a 1x1 convolution"
    formula: ClassVar = "mean_b ‖G_s − G_t‖² / C,  G = row-normalised F Fᵀ of an example's channels"
    paper: ClassVar = Paper(
        "Exploring Inter-Channel Correlation for Diversity-preserved Knowledge Distillation", "Liu et al.", "ICCV", 2021,
        "2202.03680",
    )  # fmt: skip

    def build(self, student, teacher, data, rngs):
        ours, theirs = (stage_shape(student, self.stage, "student"), stage_shape(teacher, self.stage, "teacher"))
        if len(ours) != 3 or len(theirs) != 3:
            raise ValueError(f"Features are {ours} and {theirs} without the batch; both must be [H, W, K] maps.")
        return ChannelEmbedding(ours[-1], theirs[-1], rngs=rngs)

    def terms(self, module, ctx):
        projected = module(ctx.student.features[self.stage])
        return per_example(losses.ickd(projected, ctx.teacher.features[self.stage]), ctx.batch)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SP(Objective):
    """Similarity-preserving distillation: the batch's row-normalised Gram matrices of one stage agree."""

    stage: int = -1
    """index into `features`; the released code uses the last one"""

    reads: ClassVar = ("student.features", "teacher.features")
    formula: ClassVar = "‖G_s − G_t‖² / B²,  G = row-normalised Q Qᵀ of the batch's flattened maps"
    paper: ClassVar = Paper("Similarity-Preserving Knowledge Distillation", "Tung, Mori", "ICCV", 2019, "1907.09682")

    def build(self, student, teacher, data, rngs):
        stage_shape(student, self.stage, "student"), stage_shape(teacher, self.stage, "teacher")
        return None

    def terms(self, module, ctx):
        features = ctx.student.features[self.stage], ctx.teacher.features[self.stage]
        return per_example(over_rows(losses.sp, *features, where=ctx.batch.where, axis=ctx.axis), ctx.batch)


OWN = "own choice; the paper's is not verified"

METHODS = {
    "rkd": Method(
        CrossEntropy() + RKD(distance=25.0, angle=50.0), "relational", "match the batch's distances and angles", CIFAR
    ),
    "pkt": Method(
        CrossEntropy() + 30000.0 * PKT(), "relational", "match each example's distribution over its neighbours", CIFAR
    ),
    "cc": Method(CrossEntropy() + 0.02 * CC(), "relational", "shrink the gaps that batch neighbours share", CIFAR),
    "cc_kernel": Method(CrossEntropy() + 100.0 * KernelCC(), "relational", "match the batch's kernel matrices", OWN),
    "ickd": Method(
        CrossEntropy() + 2.5 * ICKD(), "relational", "match which channels of an example are alike",
        "CIFAR-100, " + RELEASED,
    ),
    "affinity": Method(
        CrossEntropy() + 100.0 * AffinityKD(), "relational", "match the batch's affinities, by modules of choice", OWN
    ),
    "sp": Method(CrossEntropy() + 3000.0 * SP(), "relational", "match which examples of the batch look alike", CIFAR),
}  # fmt: skip

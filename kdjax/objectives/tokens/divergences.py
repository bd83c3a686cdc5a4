"""Objectives from language-model distillation: divergences of two softmaxes, for classes as for tokens.

Logits may be `[B, C]` or `[B, L, V]`; the mean is over all rows or tokens that count in the global batch, see
`kdjax.types.Batch.mask`. Temperatures divide the logits, and there is no factor T².
"""

import dataclasses
from typing import ClassVar, Literal

import jax.numpy as jnp
from flax import nnx

from kdjax import losses
from kdjax.objectives.base import RELEASED, Method, Objective, Paper
from kdjax.objectives.logits.supervised import CrossEntropy
from kdjax.objectives.tokens.chunked import divergence_term, kept, top_k_term
from kdjax.reduction import per_example, sum_over_devices
from kdjax.schedules import Schedule
from kdjax.types import Array

__all__ = [
    "AKL",
    "JSD",
    "TAID",
    "TVD",
    "ULD",
    "ForwardKL",
    "ReverseKL",
    "SkewKL",
    "SkewReverseKL",
    "SymmetricKL",
    "TopK",
]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Divergence(Objective):
    """Base: a divergence of two softmaxes, over all rows or tokens that count. `options` are the hyperparameters that the
    loss takes under the same names; `chunked` is what `fused_linear_kd` calls it, if it knows it."""

    temperature: float | Schedule = 1.0
    """T, divides both networks' logits; there is no factor T²"""

    options: ClassVar[tuple[str, ...]] = ("temperature",)
    chunked: ClassVar[str] = ""

    @property
    def in_chunks(self):
        return bool(self.chunked)

    @property
    def of_top_k(self):
        # The others are spread as the student's own: at a temperature of 1 they are one outcome more.
        return self.chunked == "forward_kl" and not isinstance(self.temperature, Schedule) and self.temperature == 1

    def divergence(self, student: Array, teacher: Array, **options) -> Array:
        raise TypeError(f"{type(self).__name__} does not say its divergence; define divergence.")

    def in_pieces(self, progress):
        """The hyperparameters of now, for `fused_linear_kd`."""
        options = self.now(progress, *self.options)
        options.pop("normalized", None)  # which it is not
        return options

    def terms(self, module, ctx):
        if ctx.student_call is not None:
            if kept(ctx.teacher) is not None:
                return top_k_term(ctx, None, "other_bucket")
            return divergence_term(ctx, self.chunked, **self.in_pieces(ctx.progress))
        options = self.now(ctx.progress, *self.options)
        values = self.divergence(ctx.student.logits, ctx.teacher.logits, **options)
        return per_example(values, ctx.batch)


_DISTILLM = Paper(
    "DistiLLM: Towards Streamlined Distillation for Large Language Models", "Ko et al.", "ICML", 2024, "2402.03898"
)
_GKD = Paper(
    "On-Policy Distillation of Language Models: Learning from Self-Generated Mistakes", "Agarwal et al.", "ICLR", 2024,
    "2306.13649",
)  # fmt: skip


@dataclasses.dataclass(frozen=True, kw_only=True)
class ForwardKL(Divergence):
    """KL from the teacher to the student: the student must cover what the teacher believes."""

    formula: ClassVar = "mean KL(p_t ‖ p_s)"
    paper: ClassVar = _GKD
    chunked: ClassVar = "forward_kl"
    divergence = staticmethod(losses.forward_kl)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReverseKL(Divergence):
    """KL from the student to the teacher: the student may leave out, but not invent."""

    formula: ClassVar = "mean KL(p_s ‖ p_t)"
    paper: ClassVar = Paper(
        "MiniLLM: Knowledge Distillation of Large Language Models", "Gu et al.", "ICLR", 2024, "2306.08543"
    )
    chunked: ClassVar = "reverse_kl"
    divergence = staticmethod(losses.reverse_kl)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SymmetricKL(Divergence):
    """Both directions of KL, mixed."""

    alpha: float | Schedule = 0.9
    """share of the reverse KL"""

    formula: ClassVar = "mean (1 − α) KL(p_t ‖ p_s) + α KL(p_s ‖ p_t)"
    paper: ClassVar = _DISTILLM
    options: ClassVar = ("temperature", "alpha")
    chunked: ClassVar = "symmetric_kl"
    divergence = staticmethod(losses.symmetric_kl)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SkewKL(Divergence):
    """Forward KL against a mixture that keeps a share of the teacher, which bounds it."""

    alpha: float | Schedule = 0.1
    """share of the teacher in the mixture"""

    formula: ClassVar = "mean KL(p_t ‖ α p_t + (1 − α) p_s)"
    paper: ClassVar = _DISTILLM
    options: ClassVar = ("temperature", "alpha")
    chunked: ClassVar = "skew_fkl"
    divergence = staticmethod(losses.skew_fkl)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SkewReverseKL(SkewKL):
    """Reverse KL against a mixture that keeps a share of the student."""

    alpha: float | Schedule = 0.1
    """share of the student in the mixture"""

    formula: ClassVar = "mean KL(p_s ‖ (1 − α) p_t + α p_s)"
    chunked: ClassVar = "skew_rkl"
    divergence = staticmethod(losses.skew_rkl)


@dataclasses.dataclass(frozen=True, kw_only=True)
class JSD(Divergence):
    """Generalised Jensen-Shannon divergence, in the convention of GKD and TRL."""

    beta: float | Schedule = 0.5
    """share of the teacher in the mixture; at exactly 0 the forward KL, at exactly 1 the reverse"""
    normalized: bool = False
    """divide by beta (1 - beta), which makes both ends continuous"""

    formula: ClassVar = "mean β KL(p_t ‖ m) + (1 − β) KL(p_s ‖ m),  m = β p_t + (1 − β) p_s"
    paper: ClassVar = _GKD
    options: ClassVar = ("temperature", "beta", "normalized")
    chunked: ClassVar = "jsd"
    divergence = staticmethod(losses.jsd)

    @property
    def in_chunks(self):
        return not self.normalized


@dataclasses.dataclass(frozen=True, kw_only=True)
class TVD(Divergence):
    """Total variation distance: bounded, and blind to how wrong a wrong class is."""

    formula: ClassVar = "mean ½ Σ_c |p_t − p_s|"
    paper: ClassVar = _DISTILLM
    chunked: ClassVar = "tvd"
    divergence = staticmethod(losses.tvd)


@dataclasses.dataclass(frozen=True, kw_only=True)
class AKL(Divergence):
    """Adaptive KL: forward and reverse KL mixed for each row by where the gap is, in the teacher's head or tail."""

    head_mass: float = 0.5
    """the head is the smallest set of the teacher's top classes with so much probability"""

    formula: ClassVar = "mean w KL(p_t ‖ p_s) + (1 − w) KL(p_s ‖ p_t),  w = gap in the head / whole gap"
    paper: ClassVar = Paper(
        "Rethinking Kullback-Leibler Divergence in Knowledge Distillation for Large Language Models", "Wu et al.", "arXiv",
        2024, "2404.02657",
    )  # fmt: skip
    options: ClassVar = ("temperature", "head_mass")
    chunked: ClassVar = "akl"
    divergence = staticmethod(losses.akl)


class TAIDClock(nnx.Module):
    """How far the interpolated teacher has moved, carried from step to step."""

    def __init__(self, start: float):
        for name, value in losses.taid_init(start)._asdict().items():
            setattr(self, name, nnx.Variable(jnp.array(value)))  # a copy: steps give their memory up


@dataclasses.dataclass(frozen=True, kw_only=True)
class TAID(Objective):
    """Temporally adaptive interpolation: the target moves from the student's own distribution to the teacher's."""

    t_start: float = 0.4
    """share of the teacher's logits in the target at first"""
    t_end: float = 1.0
    """and at last"""
    alpha: float = 5e-4
    """how fast the share adapts to the falling loss"""
    beta: float = 0.99
    """momentum of the relative change of the loss"""

    formula: ClassVar = "mean −Σ_c q log p_s,  q = softmax((1 − t) z_s' + t z_t), z_s' detached"
    paper: ClassVar = Paper(
        "TAID: Temporally Adaptive Interpolated Distillation for Efficient Knowledge Transfer in Language Models",
        "Shing et al.", "ICLR", 2025, "2501.16937",
    )  # fmt: skip

    def build(self, student, teacher, data, rngs):
        return TAIDClock(self.t_start)

    def terms(self, module, ctx):
        state = losses.TAIDState(*(getattr(module, name)[...] for name in losses.TAIDState._fields))
        values = losses.taid(ctx.student.logits, ctx.teacher.logits, t=state.t)
        term = per_example(values, ctx.batch)
        total, count = sum_over_devices((term.sum, term.count), ctx.axis)
        after = losses.taid_update(
            state, total / jnp.maximum(count, 1), ctx.progress.fraction, 1.0, t_start=self.t_start, t_end=self.t_end,
            alpha=self.alpha, beta=self.beta,
        )  # fmt: skip
        for name, value in after._asdict().items():
            kept = getattr(module, name)
            kept.set_value(jnp.asarray(value, kept[...].dtype))
        return term


@dataclasses.dataclass(frozen=True, kw_only=True)
class TopK(Objective):
    """Only the teacher's k most likely classes are known, as when its outputs were stored."""

    k: int = 5
    """how many; where a teacher cache keeps fewer, these"""
    missing: Literal["other_bucket", "renormalize"] = "other_bucket"
    """the rest of the probability: one more outcome on both sides, or left out of the teacher and renormalised"""

    formula: ClassVar = "mean KL(p_t ‖ p_s) over the teacher's top k classes [and the rest as one]"
    paper: ClassVar = None
    in_chunks: ClassVar = True
    of_top_k: ClassVar = True

    def terms(self, module, ctx):
        if ctx.student_call is not None:
            return top_k_term(ctx, self.k, self.missing)
        if (known := kept(ctx.teacher)) is not None:
            ids, logprobs = (x[..., : self.k] for x in known)
        else:
            ids, logprobs = losses.topk_signal(ctx.teacher.logits, min(self.k, ctx.teacher.logits.shape[-1]))
        values = losses.topk_kl(ctx.student.logits, ids, logprobs, missing=self.missing)
        return per_example(values, ctx.batch)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ULD(Objective):
    """Universal logit distance, for networks with different classes or vocabularies: sorted probabilities compared.

    Where the teacher has a tokenizer of its own, of the tokens behind which both have read as much (the target "aligned"); the
    paper goes by number, to the shorter one's end."""

    any_classes: ClassVar = True
    formula: ClassVar = "mean Σ_i |p_s sorted − p_t sorted|"
    paper: ClassVar = Paper(
        "Towards Cross-Tokenizer Distillation: the Universal Logit Distillation Loss for LLMs", "Boizard et al.", "arXiv",
        2024, "2402.12030",
    )  # fmt: skip

    def terms(self, module, ctx):
        values = losses.uld(ctx.student.logits, ctx.teacher.logits)
        where, targets = ctx.batch.mask(values.shape), ctx.batch.targets
        if isinstance(targets, dict) and "aligned" in targets:  # the teacher has a tokenizer of its own
            where &= targets["aligned"]
        return per_example(values, where)


METHODS = {
    "forward_kl": Method(ForwardKL(), "divergence", "cover what the teacher believes"),
    "reverse_kl": Method(ReverseKL(), "divergence", "leave out rather than invent"),
    "symmetric_kl": Method(SymmetricKL(alpha=0.9), "divergence", "both, mixed", RELEASED),
    "skew_kl": Method(SkewKL(alpha=0.1), "divergence", "forward KL against a mixture", RELEASED),
    "skew_reverse_kl": Method(SkewReverseKL(alpha=0.1), "divergence", "reverse KL against a mixture", RELEASED),
    "jsd": Method(
        JSD(beta=0.5, temperature=0.9), "divergence", "generalised Jensen-Shannon divergence", "TRL's default"
    ),
    "tvd": Method(TVD(), "divergence", "total variation distance"),
    "akl": Method(AKL(head_mass=0.5), "divergence", "forward and reverse KL mixed by head and tail"),
    "taid": Method(TAID(), "divergence", "a target that moves from the student to the teacher", RELEASED),
    "top_k": Method(TopK(k=5), "divergence", "only the teacher's top classes are known"),
    "uld": Method(CrossEntropy() + ULD(), "divergence", "sorted probabilities, for different classes or vocabularies"),
}

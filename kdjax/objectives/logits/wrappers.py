"""What changes the logits before another objective sees them: standardised, corrected by the label, replaced by noise.

Standardize(inner=KD(temperature=2.0))
"""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from kdjax import losses
from kdjax.objectives.base import CIFAR, RAMP, Method, Objective, Paper, weighted
from kdjax.objectives.logits.decoupled import DKD
from kdjax.objectives.logits.logit import KD
from kdjax.objectives.logits.supervised import CrossEntropy
from kdjax.schedules import Schedule, value_at
from kdjax.types import Array, Context

__all__ = ["LoCa", "RandomTeacher", "Standardize", "Swap"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Wrapper(Objective):
    """Base: another objective, in a context with other logits. It needs and trains what the inner one does."""

    inner: Objective = KD()
    """the objective that sees the changed logits"""

    needs: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self):
        super().__post_init__()
        if len(self.inner.parts) != 1:
            raise ValueError(f"{type(self).__name__} changes the logits of one objective; wrap each part of the sum.")
        if "teacher.logits" not in self.inner.reads:
            raise ValueError(
                f"{type(self).__name__} changes the logits that an objective compares, and {type(self.inner).__name__} reads "
                "none of the teacher; wrap one that does."
            )

    @property
    def reads(self):
        return tuple(dict.fromkeys((*self.inner.reads, *self.needs)))

    @property
    def views(self):
        return self.inner.views

    @property
    def group(self):
        return self.inner.group

    @property
    def trains(self):
        return self.inner.trains

    @property
    def any_classes(self):
        return self.inner.any_classes

    @property
    def decays(self):
        return self.inner.decays

    @property
    def teacher_mode(self):
        return self.inner.teacher_mode

    @property
    def carries(self):
        return self.inner.carries

    @property
    def deploys(self):
        return self.inner.deploys

    @property
    def combines(self):
        return self.inner.combines

    def combine(self, gradients):
        return self.inner.combine(gradients)

    def deploy(self, module, output, teacher_call):
        return self.inner.deploy(module, output, teacher_call)

    @property
    def per_element(self):
        return self.inner.per_element

    def build(self, student, teacher, data, rngs):
        return self.inner.build(student, teacher, data, rngs)

    def logits(self, ctx: Context) -> tuple[Array, Array]:
        """The student's and the teacher's logits as the inner objective is to see them."""
        raise TypeError(f"{type(self).__name__} does not say what it changes; define logits.")

    def number(self, ctx: Context, member: int) -> Context:
        """The context of one member of an ensemble, whose draws are its own."""
        return dataclasses.replace(ctx, key=None if ctx.key is None else jax.random.fold_in(ctx.key, member))

    def terms(self, module, ctx):
        changed = self._change(ctx)
        there = dataclasses.replace(changed, views={name: self._change(other) for name, other in ctx.views.items()})
        return weighted(self.inner, self.inner.terms(module, there), ctx)

    def _change(self, ctx: Context) -> Context:
        student, teacher = self.logits(ctx)
        taps = ctx.teacher.taps
        if "members" in taps:  # [B, M, C], each a teacher of its own
            members = [dataclasses.replace(ctx.teacher, logits=x) for x in jnp.unstack(taps["members"], axis=-2)]
            each = [self.number(ctx, i) for i in range(len(members))]
            changed = [
                self.logits(dataclasses.replace(c, teacher=member))[1] for c, member in zip(each, members, strict=True)
            ]
            taps = {**taps, "members": jnp.stack(changed, axis=-2)}
        return dataclasses.replace(
            ctx,
            student=dataclasses.replace(ctx.student, logits=student),
            teacher=dataclasses.replace(ctx.teacher, logits=teacher, taps=taps),
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Standardize(Wrapper):
    """Logit standardisation: both networks' rows brought to mean 0 and standard deviation 1 before any logit loss."""

    formula: ClassVar = "inner loss of (z − mean_c z) / (1e-7 + std_c z)"
    paper: ClassVar = Paper("Logit Standardization in Knowledge Distillation", "Sun et al.", "CVPR", 2024, "2403.01427")

    def logits(self, ctx):
        return losses.standardize(ctx.student.logits), losses.standardize(ctx.teacher.logits)


def temperature_of(objective: Objective) -> float | Schedule:
    """At which an objective softens the teacher, one within wrappers too; 1 for those that have no temperature of their own."""
    while not hasattr(objective, "temperature") and isinstance(objective, Wrapper):
        objective = objective.inner
    return getattr(objective, "temperature", 1.0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoCa(Wrapper):
    """Logit calibration: where the teacher is wrong, its other classes are shrunk alike until the label is on top."""

    alpha: float | Schedule = 0.95
    """share of the largest shrinking factor that still puts the label on top, 0 to 1; the paper's value is not verified"""

    needs: ClassVar = ("labels",)
    formula: ClassVar = "inner loss with teacher p'(i) = s p(i), i ≠ y,  s = α / (1 − p(y) + max p)"
    paper: ClassVar = Paper(
        "LoCa: Logit Calibration for Knowledge Distillation", "Yang, Wu, Yang", "ECAI", 2024, "2409.04778"
    )

    def logits(self, ctx):
        teacher = ctx.teacher.logits
        calibrated = losses.loca_logits(
            teacher,
            ctx.batch.labels,
            alpha=value_at(self.alpha, ctx.progress),
            temperature=value_at(temperature_of(self.inner), ctx.progress),
        )
        return ctx.student.logits, only_labelled(calibrated, teacher, ctx)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Swap(Wrapper):
    """Label swap: the teacher's top logit and that of the label are exchanged where the teacher is wrong."""

    needs: ClassVar = ("labels",)
    formula: ClassVar = "inner loss with teacher z(y) and max z exchanged"
    paper: ClassVar = Paper(
        "Knowledge Distillation with Refined Logits (a baseline there)", "Sun et al.", "ICCV", 2025, "2408.07703"
    )

    def logits(self, ctx):
        teacher = ctx.teacher.logits
        return ctx.student.logits, only_labelled(losses.swap_logits(teacher, ctx.batch.labels), teacher, ctx)


@dataclasses.dataclass(frozen=True, kw_only=True)
class RandomTeacher(Wrapper):
    """The control of a study of transfer: Gaussian noise enters where the teacher's logits would, through the same loss."""

    scale: float = 1.0
    """standard deviation of the noise"""
    fixed: bool = False
    """True: an example has the same noise at every visit; False: new noise at every step"""

    formula: ClassVar = "inner loss with teacher z = scale · N(0, 1)"
    paper: ClassVar = Paper(
        "Rethinking Knowledge Distillation: A Data Dependent Regulariser With a Negative Asymmetric Payoff",
        "Mason-Williams et al.", "arXiv", 2025, "2510.12615",
    )  # fmt: skip

    def logits(self, ctx):
        teacher = ctx.teacher.logits
        key = jax.random.key(0) if self.fixed else ctx.key
        draw = lambda i: losses.random_teacher_logits(jax.random.fold_in(key, i), teacher.shape[1:], self.scale)
        batch = ctx.batch
        rows = batch.known_index("The fixed noise is drawn") if self.fixed else batch.numbers(ctx.axis)
        # A half type would round the noise.
        return ctx.student.logits, jax.vmap(draw)(rows).astype(jnp.promote_types(teacher.dtype, jnp.float32))


def only_labelled(changed: Array, teacher: Array, ctx: Context) -> Array:
    """The changed logits where the label may be used, the teacher's own elsewhere."""
    return jnp.where(ctx.batch.mask(teacher.shape[:-1], labelled=True)[..., None], changed, teacher)


METHODS = {
    "swap": Method(
        Swap(inner=KD(temperature=4.0)),
        "logit",
        "KD after the wrong top class and the label are exchanged",
        "refined logits' released code, which uses no labels beside",
    ),
    "loca": Method(
        0.1 * CrossEntropy() + 0.9 * LoCa(inner=KD(temperature=4.0)),
        "logit",
        "KD from a teacher calibrated by the label",
    ),
    "loca_dkd": Method(
        CrossEntropy() + RAMP * LoCa(inner=DKD(alpha=1.0, beta=8.0, temperature=4.0)),
        "logit",
        "DKD from a teacher calibrated by the label",
    ),
    "lskd": Method(
        0.1 * CrossEntropy() + 9.0 * Standardize(inner=KD(temperature=2.0)), "logit", "KD of standardised logits", CIFAR
    ),
    # As released: beta is the multiplied alpha times 9 again, for every pair, and the temperature that is set is not DKD's.
    "lskd_dkd": Method(
        CrossEntropy() + RAMP * Standardize(inner=DKD(alpha=9.0, beta=81.0, temperature=4.0)),
        "logit",
        "DKD of standardised logits",
        CIFAR,
    ),
    "random_teacher": Method(
        0.1 * CrossEntropy() + 0.9 * RandomTeacher(inner=KD(temperature=4.0)), "logit", "the control: KD from noise"
    ),
}

"""Objectives of responses that networks wrote, some of them the student itself: what is learned of one depends on who wrote it.

They read two targets beside the labels, which the task `Language` gives: "written" `[B]` bool, whether the student wrote a row
(in a phase with `on_policy`), and "drawn" `[B, L]`, with which log-probability its tokens were drawn.
"""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

from kdjax import losses
from kdjax.objectives.base import RELEASED, Method, Objective, Paper
from kdjax.objectives.tokens.divergences import JSD, ReverseKL, SkewKL
from kdjax.reduction import gather_rows, per_example, sum_over_devices
from kdjax.schedules import Adaptive, Linear, Schedule, percent
from kdjax.types import Array, Context

__all__ = ["DistiLLM2", "MiniLLM"]

TARGETS = ("student.logits", "teacher.logits", "labels", "written", "drawn")


@dataclasses.dataclass(frozen=True, kw_only=True)
class MiniLLM(Objective):
    """Reverse KL of whole responses by policy gradient: of what the student wrote, tokens after which the teacher finds the text
    likelier than the student does become likelier. Beside it the exact reverse KL of every single token there; and on the data
    the labels, and the forward KL, mixed.

    A response is learned from once, by the step that has it written, so that the ratio to the student that wrote it is 1; the
    released code goes over it several times. Advantages are whitened over the tokens that were written, in the global batch.
    """

    kd_ratio: float = 0.5
    """on the data, the share of the forward KL; the rest is of the labels"""
    gamma: float = 1.0
    """discount of the rewards of later tokens"""
    clip: float = 0.2
    """how far a ratio may be from 1"""
    reward_scale: float = 0.5
    """what rewards, log p_t − log p_s of a token, are divided by"""
    reward_limit: float = 100.0
    """and clipped at"""

    reads: ClassVar = TARGETS
    formula: ClassVar = (
        "written: mean max(−A ρ, −A clip(ρ)) + mean KL(p_s ‖ p_t); data: mean (1 − r) CE + r KL(p_t ‖ p_s);  "
        "ρ = p_s(y) / p_drawn(y)"
    )
    paper: ClassVar = ReverseKL.paper

    def terms(self, module, ctx):
        labels = ctx.batch.labels
        own, given = whose(ctx)
        safe = jnp.where(own, labels, 0)
        ours, theirs = (chosen(output.logits, safe) for output in (ctx.student, ctx.teacher))
        rewards = jnp.clip((theirs - ours) / self.reward_scale, -self.reward_limit, self.reward_limit)
        worth = over_batch(lambda r, m: losses.minillm_advantages(r, m, gamma=self.gamma, count_padding=False),
                           lax.stop_gradient(rewards), own, axis=ctx.axis)  # fmt: skip
        when_written = lax.stop_gradient(ours)
        importance = jnp.exp(when_written - ctx.batch.target("drawn"))
        policy = losses.minillm_policy(ours, when_written, worth, own, clip=self.clip, importance=importance)
        step = losses.reverse_kl(ctx.student.logits, ctx.teacher.logits)
        usable = given & ctx.batch.mask(labels.shape, labelled=True)
        label = losses.cross_entropy(ctx.student.logits, jnp.where(usable, labels, 0))
        forward = losses.forward_kl(ctx.student.logits, ctx.teacher.logits)
        weighted = lambda term, weight: dataclasses.replace(term, weight=weight)
        return {
            "policy": per_example(policy, own),
            "step": per_example(step, own),
            "labels": weighted(per_example(label, usable, group="task"), 1 - self.kd_ratio),
            "data": weighted(per_example(forward, given), self.kd_ratio),
        }


class Gaps(nnx.Module):
    """Sums over the rows so far of how much likelier a response is to who wrote it, and how many: of the teacher, the student."""

    def __init__(self):
        self.total, self.count = nnx.Variable(jnp.zeros(2)), nnx.Variable(jnp.zeros(2))


@dataclasses.dataclass(frozen=True, kw_only=True)
class DistiLLM2(Objective):
    """Towards what the teacher wrote by the skew forward KL, away from what the student wrote by the skew reverse KL; the data is
    taken for the teacher's writing, which `write_responses` makes it.

    Each response has a share in its mixture, the less the nearer both networks find it alike likely. What such a difference
    usually is the released code takes over the data before training; here it is the mean over the rows of its kind so far.
    """

    alpha: float = 0.1
    """the largest share in the mixture"""
    adaptive: bool = True
    """whether each response has its own; else all have alpha"""
    beta: float | Schedule = Linear(1.0, 1.5, percent(50))
    """weight of what the student wrote, 0 to 2; what the teacher wrote has 2 − beta"""
    stop_gradient: bool = False
    """send nothing back through the student's part in the shares, which the released code does"""

    reads: ClassVar = TARGETS[:-1]
    formula: ClassVar = "mean_b (2 − β) ⟨KL(p_t ‖ α p_t + (1 − α) p_s)⟩ or, written: β ⟨KL(p_s ‖ (1 − α) p_t + α p_s)⟩"
    paper: ClassVar = Paper(
        "DistiLLM-2: A Contrastive Approach Boosts the Distillation of LLMs", "Ko et al.", "ICML", 2025, "2503.07067"
    )

    def build(self, student, teacher, data, rngs):
        return Gaps() if self.adaptive else None

    def terms(self, module, ctx):
        student, teacher, labels = ctx.student.logits, ctx.teacher.logits, ctx.batch.labels
        wrote, mask = written_rows(ctx), ctx.batch.mask(labels.shape)
        alpha = self.alpha
        if module is not None:
            gaps = lax.stop_gradient(losses.distillm2_gap(student, teacher, labels, wrote, mask))
            there = jnp.any(mask, axis=1)
            kinds = there[:, None] & (wrote[:, None] == jnp.array([[False, True]]))
            found = jnp.sum(jnp.where(kinds, gaps[:, None], 0), axis=0), jnp.sum(kinds, axis=0, dtype=jnp.float32)
            found = sum_over_devices(found, ctx.axis)
            for name, more in zip(("total", "count"), found, strict=True):
                kept = getattr(module, name)
                kept.set_value(kept[...] + more.astype(kept[...].dtype))
            usual = module.total[...] / jnp.maximum(module.count[...], 1)
            alpha = losses.distillm2_alpha(
                student, teacher, labels, wrote, mask, gap=jnp.where(wrote, usual[1], usual[0]), alpha=self.alpha,
                stop_gradient=self.stop_gradient,
            )  # fmt: skip
        values = losses.distillm2(student, teacher, wrote, mask, alpha=alpha, **self.now(ctx.progress, "beta"))
        return per_example(values, ctx.batch)


def written_rows(ctx: Context) -> Array:
    """`[B]` bool, the rows that the student wrote.

    Raises:
      ValueError: its logits are of no tokens.
    """
    if ctx.student.logits.ndim != 3:
        raise ValueError(f"Responses are rows of tokens, with logits [B, L, V], and the student gives "
                         f"{list(ctx.student.logits.shape)}; use a decoder.")  # fmt: skip
    return ctx.batch.target("written") != 0


def whose(ctx: Context) -> tuple[Array, Array]:
    """`[B, L]` bool each: tokens that count and that the student wrote, and those of the data."""
    wrote, counted = written_rows(ctx)[:, None], ctx.batch.mask(ctx.batch.labels.shape)
    return counted & wrote, counted & ~wrote


def chosen(logits: Array, tokens: Array) -> Array:
    """`[B, L]` log-probabilities of tokens, in float32 or wider."""
    log_p = jax.nn.log_softmax(logits.astype(jnp.promote_types(logits.dtype, jnp.float32)))
    return jnp.take_along_axis(log_p, tokens[..., None], axis=-1)[..., 0]


def over_batch(function, *rows: Array, axis: str | None) -> Array:
    """What a function makes of all rows of the global batch, of those held here."""
    whole = function(*(gather_rows(x, axis) for x in rows))
    if axis is None:
        return whole
    held = len(rows[0])
    return lax.dynamic_slice_in_dim(whole, lax.axis_index(axis) * held, held)


METHODS = {
    "gkd": Method(
        JSD(beta=0.5, temperature=0.9), "text", "half of what is learned from the student writes itself",
        "TRL's defaults, which writes at 0.9 too: `data.sampling.temperature`", on_policy=0.5,
    ),
    "distillm": Method(
        SkewKL(alpha=0.1), "text", "a bounded KL, on more of what the student wrote, now or before, when validation gets worse",
        RELEASED, on_policy=Adaptive(),
    ),
    "minillm": Method(
        MiniLLM(), "text", "the teacher rewards what the student writes, in half of the steps; the data in the others",
        RELEASED, on_policy=0.5, teacher_writes=0.2,
    ),
    "distillm2": Method(
        2.0 * DistiLLM2(), "text", "what the teacher wrote drawn near, what the student wrote pushed off, in half of the steps",
        RELEASED, on_policy=0.5,
    ),
}  # fmt: skip

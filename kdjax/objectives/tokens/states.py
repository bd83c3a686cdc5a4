"""Objectives of what goes on inside two transformers: hidden states, attention scores, relations of queries, keys and values.

They read the features of `kdjax.models.transformers`, tokens `[B, L, 1, D]` embedded and behind every block, and what such a
network was told to keep of its attention. Padding counts in none of them, wherever the batch or its inputs say what is padding.
"""

import dataclasses
from collections.abc import Mapping
from typing import ClassVar, Literal

import jax.numpy as jnp
from flax import nnx

from kdjax import losses
from kdjax.objectives.base import Method, Objective, Paper
from kdjax.objectives.logits.logit import KD
from kdjax.objectives.logits.supervised import CrossEntropy
from kdjax.reduction import per_example
from kdjax.types import Array, Context, ModelOutput

__all__ = ["AttentionRelations", "AttentionScores", "HiddenCosine", "HiddenStates", "Patience"]

Blocks = tuple[tuple[int, int], ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class OfTokens(Objective):
    """Base: an objective of tokens, which heeds padding by itself."""

    any_classes: ClassVar = True

    @property
    def per_element(self) -> bool:
        return True


@dataclasses.dataclass(frozen=True, kw_only=True)
class HiddenCosine(OfTokens):
    """The states behind the last block point where the teacher's do: one less their cosine, over all tokens."""

    reads: ClassVar = ("student.features", "teacher.features")
    formula: ClassVar = "mean_bl 1 − cos(h_s, h_t)"
    paper: ClassVar = Paper(
        "DistilBERT, a distilled version of BERT: smaller, faster, cheaper and lighter", "Sanh et al.", "arXiv", 2019,
        "1910.01108",
    )  # fmt: skip

    def build(self, student, teacher, data, rngs):
        same_width("HiddenCosine", widths_of(student, "student"), widths_of(teacher, "teacher"))
        return None

    def terms(self, module, ctx):
        ours, theirs = states_of(ctx.student)[-1], states_of(ctx.teacher)[-1]
        return per_example(losses.hidden_cosine(ours, theirs), tokens_that_count(ctx, ours))


@dataclasses.dataclass(frozen=True, kw_only=True)
class HiddenStates(OfTokens):
    """The student's states, each behind the same linear layer, are the teacher's: embedded, and behind blocks that are spread
    evenly over the teacher's."""

    pairs: Blocks = ()
    """(student's, teacher's) numbers of states, 0 being the embedded tokens; empty for j and j N / M of M and N blocks"""

    reads: ClassVar = ("student.features", "teacher.features")
    trains: ClassVar = "a linear projector"
    formula: ClassVar = "Σ_j mean_bld (W h_s,j − h_t,m(j))²"
    paper: ClassVar = Paper(
        "TinyBERT: Distilling BERT for Natural Language Understanding",
        "Jiao et al.",
        "EMNLP Findings",
        2020,
        "1909.10351",
    )

    def build(self, student, teacher, data, rngs):
        ours, theirs = widths_of(student, "student"), widths_of(teacher, "teacher")
        checked(self.pairs or spread(len(ours) - 1, len(theirs) - 1), len(ours), len(theirs), "states")
        return nnx.Linear(ours[0], theirs[0], rngs=rngs)

    def terms(self, module, ctx):
        ours, theirs = states_of(ctx.student), states_of(ctx.teacher)
        pairs = self.pairs or spread(len(ours) - 1, len(theirs) - 1)
        values = sum(losses.hidden_mse(module(ours[i]), theirs[j]) for i, j in pairs)
        return per_example(values, tokens_that_count(ctx, ours[0]))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Patience(OfTokens):
    """The first token's states, at length 1, are those of the teacher's blocks: every k-th of them, or the last."""

    chosen: Literal["skip", "last"] = "skip"
    """which of the teacher's blocks: every k-th, for k = N / M; or the last M - 1 but the very last"""
    normalized: bool = True
    """whether states are brought to length 1"""

    reads: ClassVar = ("student.features", "teacher.features")
    formula: ClassVar = "mean_bjd (u(h_s,j) − u(h_t,m(j)))² of the first token,  u divides by the length"
    paper: ClassVar = Paper(
        "Patient Knowledge Distillation for BERT Model Compression", "Sun et al.", "EMNLP", 2019, "1908.09355"
    )

    def build(self, student, teacher, data, rngs):
        ours, theirs = widths_of(student, "student"), widths_of(teacher, "teacher")
        same_width("Patience", ours, theirs)
        checked(self._pairs(len(ours) - 1, len(theirs) - 1), len(ours), len(theirs), "states")
        return None

    def terms(self, module, ctx):
        ours, theirs = states_of(ctx.student), states_of(ctx.teacher)
        pairs = self._pairs(len(ours) - 1, len(theirs) - 1)
        first = lambda states, places: jnp.stack([states[place][:, 0] for place in places], axis=1)
        mine, taught = first(ours, [i for i, _ in pairs]), first(theirs, [j for _, j in pairs])
        return per_example(losses.patience(mine, taught, normalized=self.normalized), ctx.batch)

    def _pairs(self, ours: int, theirs: int) -> Blocks:
        """The student's blocks but the last, which its answer is read from, with the teacher's."""
        if self.chosen == "skip":
            return spread(ours, theirs)[1:-1]
        return tuple((i, theirs - ours + i) for i in range(1, ours))


@dataclasses.dataclass(frozen=True, kw_only=True)
class AttentionScores(OfTokens):
    """Attention's scores before the softmax are those of the teacher's blocks that are spread evenly; heads one by one."""

    reads: ClassVar = ("student.taps", "teacher.taps")
    formula: ClassVar = "Σ_j mean_bhql (a_s,j − a_t,m(j))²"
    paper: ClassVar = HiddenStates.paper

    def build(self, student, teacher, data, rngs):
        ours, theirs = (kept(output, "scores", role) for output, role in ((student, "student"), (teacher, "teacher")))
        if ours.shape[2:] != theirs.shape[2:]:
            raise ValueError(f"AttentionScores compares heads one by one; the student's scores are {list(ours.shape[2:])}, the "
                             f"teacher's {list(theirs.shape[2:])}; give both as many heads.")  # fmt: skip
        checked(last_of_each(ours.shape[1], theirs.shape[1]), ours.shape[1], theirs.shape[1], "blocks")
        return None

    def terms(self, module, ctx):
        ours, theirs = ctx.student.taps["scores"], ctx.teacher.taps["scores"]
        mask = tokens_that_count(ctx, ours[:, 0, 0])
        values = sum(losses.attention_scores(ours[:, i], theirs[:, j], mask=mask)
                     for i, j in last_of_each(ours.shape[1], theirs.shape[1]))  # fmt: skip
        return per_example(values, ctx.batch)


@dataclasses.dataclass(frozen=True, kw_only=True)
class AttentionRelations(OfTokens):
    """Tokens relate to each other in one block as in one of the teacher's: by queries, keys and values, in heads of their own."""

    relations: tuple[str, ...] = ("queries-queries", "keys-keys", "values-values")
    """what is related to what, each as another; MiniLM's first version: queries-keys and values-values"""
    heads: int = 12
    """parts that all heads together are cut into; 48 for networks as wide as BERT-base in the paper"""
    student_block: int = -1
    """the student's block"""
    teacher_block: int = -1
    """the teacher's; of large teachers the paper takes one of the upper middle"""

    reads: ClassVar = ("student.taps", "teacher.taps")
    formula: ClassVar = "mean_r mean_baq KL(R_t ‖ R_s),  R = softmax(A Bᵀ / √d)"
    paper: ClassVar = Paper(
        "MiniLMv2: Multi-Head Self-Attention Relation Distillation for Compressing Pretrained Transformers", "Wang et al.",
        "ACL Findings", 2021, "2012.15828",
    )  # fmt: skip

    def build(self, student, teacher, data, rngs):
        for relation in self.relations:
            names = relation.split("-")
            if len(names) != 2 or not set(names) <= {"queries", "keys", "values"}:
                raise ValueError(
                    f"relations={relation!r} is not what is related to what; write queries-keys, say, of queries, keys, values."
                )
        if not self.relations:
            raise ValueError("relations names nothing to compare; write queries-queries keys-keys values-values, say.")
        for output, role, block in ((student, "student", self.student_block), (teacher, "teacher", self.teacher_block)):
            for name in {name for relation in self.relations for name in relation.split("-")}:
                shape = kept(output, name, role).shape
                if not -shape[1] <= block < shape[1]:
                    raise ValueError(f"{role}_block={block}, and the {role} has {shape[1]} blocks.")
                if shape[3] * shape[4] % self.heads:
                    raise ValueError(f"heads={self.heads} do not divide the {role}'s {name}, {shape[3]} heads {shape[4]} wide; "
                                     "use a divisor of both networks' width.")  # fmt: skip
        return None

    def terms(self, module, ctx):
        first = self.relations[0].split("-")[0]  # of all that is kept: [B, blocks, L, ...], which scores are not
        mask = tokens_that_count(ctx, ctx.student.taps[first][:, self.student_block])
        flat = lambda output, name, block: jnp.reshape(x := output.taps[name][:, block], (*x.shape[:2], -1))
        total = 0.0
        for relation in self.relations:
            names = relation.split("-")
            ours = tuple(flat(ctx.student, name, self.student_block) for name in names)
            theirs = tuple(flat(ctx.teacher, name, self.teacher_block) for name in names)
            total = total + losses.attention_relations(ours, theirs, heads=self.heads, mask=mask)
        return per_example(total / len(self.relations), ctx.batch)


def states_of(output: ModelOutput) -> tuple[Array, ...]:
    """The hidden states `[B, L, D]` of a network, embedded and behind every block."""
    return tuple(jnp.reshape(x, (*x.shape[:2], x.shape[3])) for x in output.features)


def widths_of(output: ModelOutput, role: str) -> list[int]:
    """The width of every state of a network.

    Raises:
      ValueError: its features are no tokens.
    """
    shapes = [x.shape for x in output.features]
    wrong = next((shape for shape in shapes if len(shape) != 4 or shape[2] != 1), None)
    if wrong:
        raise ValueError(
            f"Tokens are compared, [B, L, 1, D], and the {role} gives features {list(wrong)}; use one of text."
        )
    return [shape[3] for shape in shapes]


def same_width(who: str, ours: list[int], theirs: list[int]) -> None:
    """Raises unless states are as wide as the teacher's."""
    if ours[-1] != theirs[-1]:
        raise ValueError(f"{who} compares states entry by entry, and the student's are {ours[-1]} wide, the teacher's "
                         f"{theirs[-1]}; use HiddenStates, which projects them.")  # fmt: skip


def spread(ours: int, theirs: int) -> Blocks:
    """`(j, j N / M)` for j of 0 to M, of M blocks and N of the teacher's."""
    return tuple((j, j * theirs // max(ours, 1)) for j in range(ours + 1))


def last_of_each(ours: int, theirs: int) -> Blocks:
    """`(j, (j + 1) N / M - 1)` for j below M: each of the student's blocks with the last of its share of the teacher's."""
    return tuple((j, (j + 1) * theirs // ours - 1) for j in range(ours))


def checked(pairs: Blocks, ours: int, theirs: int, what: str) -> None:
    """Raises for a pair that is not there, for none, or for more of the student's than of the teacher's."""
    if not pairs:
        raise ValueError(
            f"The student has too few {what}, {ours}, to be compared with the teacher's {theirs}; give it more."
        )
    if ours > theirs:
        raise ValueError(f"The student has {ours} {what} and the teacher {theirs}; the teacher must have as many.")
    wrong = [pair for pair in pairs if not (0 <= pair[0] < ours and 0 <= pair[1] < theirs)]
    if wrong:
        raise ValueError(
            f"pairs name {wrong[0]}, and there are {ours} {what} here and {theirs} of the teacher, from 0."
        )


def kept(output: ModelOutput, name: str, role: str) -> Array:
    """What a network kept of its attention.

    Raises:
      ValueError: it was not told to.
    """
    if name not in output.taps:
        raise ValueError(f"The {role} keeps no {name} of its attention; set network.keep to {name}.")
    return output.taps[name]


def tokens_that_count(ctx: Context, like: Array) -> Array:
    """`[B, L]` bool: tokens of rows that count and that are no padding, as the batch or its inputs say.

    Args:
      ctx: the batch's.
      like: values `[B, L, ...]`.
    """
    where, inputs = ctx.batch.mask(like.shape[:2]), ctx.batch.inputs
    if isinstance(inputs, Mapping) and "attention_mask" in inputs:
        where = where & (inputs["attention_mask"] != 0)
    return where


METHODS = {
    "distilbert": Method(
        2.0 * CrossEntropy() + 5.0 * KD(temperature=2.0) + HiddenCosine(), "text",
        "labels, soft labels and the direction of the last states", "the released code's defaults, of masked words",
    ),
    "bert_pkd": Method(
        0.5 * CrossEntropy() + 0.5 * KD(temperature=10.0) + 100.0 * Patience(), "text",
        "the first token's states of every k-th block", "of the paper's grid",
    ),
    "tinybert": Method(
        KD(temperature=1.0), "text", "states and attention first, then soft labels alone", "the released code",
        paper=HiddenStates.paper, before=HiddenStates() + AttentionScores(),
    ),
    "minilm": Method(
        CrossEntropy() + AttentionRelations(), "text", "how tokens relate in the last block",
        "the paper's, with labels beside: it pre-trains on relations alone",
    ),
}  # fmt: skip

"""Objectives that contrast an example with others by a memory of their embeddings."""

import dataclasses
from typing import ClassVar, Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

from kdjax import losses
from kdjax.losses.relations.contrastive import unit_rows
from kdjax.objectives.base import CIFAR, Method, Objective, Paper
from kdjax.objectives.logits.supervised import CrossEntropy
from kdjax.objectives.relations import banks
from kdjax.reduction import per_example

__all__ = ["CRD"]


class Memory(nnx.Variable):
    """What is remembered from step to step, and no gradient trains."""


class Contrast(nnx.Module):
    """Two embeddings, the bank of each, and what the noise-contrastive loss has to know.

    Attributes:
      student_embed, teacher_embed: `Linear(D, dim)`, both trained.
      student_bank, teacher_bank: `[rows, dim]`.
      log_normalizer: `[2]` log Z of the student's and the teacher's side.
      normalized: whether it has been set.
      order, start, count: see `banks.Candidates`.
      num_examples, rows, negatives: N; rows of the whole banks; how many negatives are drawn.
    """

    def __init__(
        self, student: int, teacher: int, table: banks.Candidates, negatives: int, dim: int, *, rngs: nnx.Rngs
    ):
        self.student_embed = nnx.Linear(student, dim, rngs=rngs)
        self.teacher_embed = nnx.Linear(teacher, dim, rngs=rngs)
        self.num_examples, self.negatives = len(table.start), negatives
        first, second = (banks.new_bank(rngs.params(), self.num_examples, dim) for _ in range(2))
        self.rows = len(first)
        self.student_bank, self.teacher_bank = Memory(first), Memory(second)
        self.log_normalizer = Memory(jnp.zeros(2, jnp.float32))
        self.normalized = Memory(jnp.zeros((), bool))
        self.order, self.start, self.count = (Memory(jnp.asarray(column)) for column in table)

    @property
    def table(self) -> banks.Candidates:
        return banks.Candidates(self.order[...], self.start[...], self.count[...])

    def __call__(
        self,
        student,
        teacher,
        index,
        positive,
        negatives,
        *,
        temperature,
        momentum,
        allowed=None,
        where=None,
        axis=None,
    ):
        """Losses `[B]` of both sides added; takes the constants from the first batch, and writes the banks.

        Args:
          student, teacher: `[B, D]` embeddings.
          index: `[B]` row of each example.
          positive: `[B]` row of its match.
          negatives: `[B, K]` rows, or `[K]` for all.
          temperature, momentum: see `CRD`.
          allowed: `[B, K]`, False for a negative that does not count.
          where: `[B]`, False for an example that does not exist; it may hold nan.
          axis: the mapped axis.
        """
        where = jnp.ones(index.shape, bool) if where is None else where
        known = (index >= 0) & (index < self.num_examples)
        # Zeroed before any arithmetic: what does not exist must not reach the embeddings' gradients.
        embed = lambda linear, x: unit_rows(linear(jnp.where(where[:, None], x, 0)))
        student, teacher = embed(self.student_embed, student), embed(self.teacher_embed, teacher)
        sharded = len(self.student_bank[...]) < self.rows
        sides = (student, self.teacher_bank[...]), (teacher, self.student_bank[...])
        total, estimates = 0.0, []
        for i, (embeddings, bank) in enumerate(sides):
            score = lambda rows, e=embeddings, b=bank: banks.score(e, b, rows, axis=axis, sharded=sharded) / temperature
            scores = score(positive[:, None])[:, 0], score(negatives)
            estimate = losses.nce_normalizer(
                *scores, num_examples=self.num_examples, where=allowed, rows=where & known, axis_name=axis
            )
            log_z = jnp.where(self.normalized[...], self.log_normalizer[...][i], estimate)
            total += losses.nce(*scores, num_examples=self.num_examples, log_normalizer=log_z, where=allowed)
            estimates.append(log_z.astype(self.log_normalizer[...].dtype))
        self._remember(index, (student, teacher), jnp.stack(estimates), where & known, momentum, axis, sharded)
        return jnp.where(known, total, jnp.nan)

    def _remember(self, index, embeddings, log_z, where, momentum, axis, sharded):
        for bank, rows in zip((self.student_bank, self.teacher_bank), embeddings, strict=True):
            bank.set_value(
                banks.update(bank[...], index, rows, momentum=momentum, where=where, axis=axis, sharded=sharded)
            )
        present = jnp.sum(where, dtype=jnp.int32)
        present = present if axis is None else lax.psum(present, axis)
        self.log_normalizer.set_value(log_z)
        self.normalized.set_value(self.normalized[...] | (present > 0))


@dataclasses.dataclass(frozen=True, kw_only=True)
class CRD(Objective):
    """Contrastive representation distillation: an example's embedding in one network is nearer to its own in the other
    than to those of examples of other classes.

    Both sides are a linear layer and a unit norm, both trained; the embeddings of all training examples are remembered in
    two banks. A step reads the banks as they were, and writes the batch's rows at its end. The constants Z are taken from
    the first batch, over all devices, and kept; banks and constants are state, saved with the rest.

    Negatives are of other classes by `DataInfo.labels`, where -1 is an unknown class, and what is below -1 an example that
    is not trained on and never drawn. An example of unknown class, as every one is where there are no labels, has all other
    examples as negatives, and may be one of any of them. They are drawn by the step and the example's index, whatever the
    devices. No two negatives of an example are the same; there are at most as many as the largest class has examples
    outside it, the same number for all (the released code draws `negatives`, with repetitions where there are not as many).
    The indices of a batch must differ.

    Under `shard_map` the banks may be spread over the devices by rows; which it is, is seen from their shape.
    """

    negatives: int = 16384
    """K, examples of other classes to compare with; fewer where there are not as many"""
    dim: int = 128
    """size of the embeddings"""
    temperature: float = 0.07
    """divides the inner products"""
    momentum: float = 0.5
    """share of a bank's row that stays when it is written"""
    positive: Literal["exact", "relax"] = "exact"
    """what an example is matched with: itself, or a random example of its class, drawn anew every step"""
    shared_negatives: bool = False
    """one draw of negatives for the whole batch, from all examples, of which each leaves out its own class: cheaper"""

    reads: ClassVar = ("student.embedding", "teacher.embedding")
    trains: ClassVar = "a linear embedding of each side"
    formula: ClassVar = (
        "mean_b Σ_sides −log P₊/(P₊ + K/N + 1e-7) − Σ_k log (K/N)/(P_k + K/N + 1e-7),  P = exp(⟨m, v⟩ / τ) / Z"
    )
    paper: ClassVar = Paper(
        "Contrastive Representation Distillation", "Tian, Krishnan, Isola", "ICLR", 2020, "1910.10699"
    )

    def build(self, student, teacher, data, rngs):
        for name in ("negatives", "dim"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}; CRD needs at least 1.")
        if not 0 <= self.momentum <= 1:
            raise ValueError(f"CRD.momentum is {self.momentum}; it must be from 0 to 1.")
        if data.num_examples < 2:
            raise ValueError(
                f"CRD remembers every training example, and DataInfo says num_examples={data.num_examples}; give it their number."
            )
        widths = [output.embedding.shape[-1] for output in (student, teacher)]
        table = banks.candidates_by_class(data.labels, data.num_examples)
        others = len(table.order) - int(table.count.max())
        if others < 1:
            raise ValueError("CRD contrasts an example with those of other classes, and all examples are of one class.")
        most = len(table.order) if self.shared_negatives else others
        return Contrast(*widths, table, min(self.negatives, most), self.dim, rngs=rngs)

    def terms(self, module, ctx):
        where = ctx.batch.where
        index = jnp.where(where, ctx.batch.known_index("CRD keeps an embedding of every example"), 0)
        inside = jnp.clip(index, 0, module.num_examples - 1)
        key = jax.random.key(0) if ctx.key is None else ctx.key
        positive, allowed = index, None
        if self.positive == "relax":
            positive = banks.draw_alike(module.table, inside, key)
        if self.shared_negatives:
            negatives, allowed = banks.draw_shared(module.table, inside, key, module.negatives)
        else:
            negatives = banks.draw_negatives(module.table, inside, key, module.negatives)
        values = module(
            ctx.student.embedding, lax.stop_gradient(ctx.teacher.embedding), index, positive, negatives, allowed=allowed,
            temperature=self.temperature, momentum=self.momentum, where=where, axis=ctx.axis,
        )  # fmt: skip
        return per_example(values, where)


METHODS = {
    "crd": Method(
        CrossEntropy() + 0.8 * CRD(),
        "contrastive",
        "tell an example's own teacher embedding from those of other classes",
        CIFAR,
    ),
    "crd_shared": Method(
        CrossEntropy() + 0.8 * CRD(shared_negatives=True),
        "contrastive",
        "the same with one set of negatives for the whole batch",
        "those of crd",
    ),
}

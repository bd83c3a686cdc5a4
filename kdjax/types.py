"""The nouns that every room shares: what a network says, a batch, how far training has come, a loss term.

This is the ground floor: it imports jax only.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

Array = jax.Array
Tree = Any
Axis = str | None  # None under plain jit; the name of the mapped axis under pmap or shard_map


def pytree(cls=None, *, static: tuple[str, ...] = ()):
    """Makes a frozen dataclass a pytree; the fields named in `static` are part of its structure, not leaves."""

    def wrap(cls):
        cls = dataclasses.dataclass(frozen=True)(cls)
        names = [field.name for field in dataclasses.fields(cls)]
        jax.tree_util.register_dataclass(cls, [n for n in names if n not in static], list(static))
        return cls

    return wrap if cls is None else wrap(cls)


@pytree
class ModelOutput:
    """What a network said about a batch of `B` examples.

    Attributes:
      logits: `[B, C]` class scores before the softmax.
      features: one `[B, H, W, K]` array a stage, after the activation, from the stem on.
      preactivations: the same before the activation.
      embedding: `[B, D]`, the pooled vector that the classifier reads.
      taps: further intermediate values by the name the user gave them.

    A network fills in what it can; XLA drops what nobody reads.
    """

    logits: Array | None = None
    features: tuple[Array, ...] = ()
    preactivations: tuple[Array, ...] = ()
    embedding: Array | None = None
    taps: dict[str, Array] = dataclasses.field(default_factory=dict)


@pytree
class Batch:
    """One batch of `B` rows, alike on every device but for its sharding.

    Attributes:
      inputs: `[B, ...]` as the data set stores them (images: uint8 NHWC), or a dict of named views.
      labels: `[B]` int32 class indices; 0 where unknown.
      index: `[B]` int32 position of each example in its data set. Views and memory banks are keyed by it.
      where: `[B]` bool, False for rows that only fill up a last partial batch.
      labelled: `[B]` bool, False where the label may not be used (semi-supervised distillation).
      teacher: what the teacher says of the main view, where that is known already, see `kdjax.training.teacher_cache`.
    """

    inputs: Any
    labels: Array
    index: Array
    where: Array
    labelled: Array
    teacher: ModelOutput | None = None

    @classmethod
    def of(cls, inputs, labels, *, index=None, where=None, labelled=None) -> "Batch":
        """A batch from arrays at hand: every row counts and is labelled unless said otherwise."""
        labels = jnp.asarray(labels)
        size = labels.shape[0]
        return cls(
            inputs=inputs,
            labels=labels,
            index=jnp.arange(size, dtype=jnp.int32) if index is None else jnp.asarray(index),
            where=jnp.ones(size, bool) if where is None else jnp.asarray(where),
            labelled=jnp.ones(size, bool) if labelled is None else jnp.asarray(labelled),
        )


@pytree
class Progress:
    """How far a phase has come, as traced float32 scalars, so that schedules never recompile.

    Attributes:
      step: optimizer steps done.
      epoch: passes over the phase's examples done, fractional; exact where it is whole.
      examples: examples seen; as float32, exact up to 16.7 million.
      fraction: share of the phase done, 0 to 1.
    """

    step: Array
    epoch: Array
    examples: Array
    fraction: Array


@dataclasses.dataclass(frozen=True)
class Clock:
    """Turns a step count into `Progress`. Static: known when a phase is built.

    Attributes:
      total_steps: length of the phase.
      steps_per_epoch: steps in which as many examples are seen as the training split has. The unit of schedules, the same
        for every method, so that budgets are equal.
      batch_size: examples a step.
      steps_per_pass: steps in one pass over the examples that are visited, fewer than an epoch where only the labelled ones
        are; views are drawn anew every pass. `steps_per_epoch` if not given.
    """

    total_steps: int = 1
    steps_per_epoch: int = 1
    batch_size: int = 1
    steps_per_pass: int | None = None

    def at(self, step) -> Progress:
        epochs, rest = jnp.divmod(jnp.asarray(step, jnp.int32), self.steps_per_epoch)
        step = jnp.asarray(step, jnp.float32)
        return Progress(
            step=step,
            # Whole epochs are exact: a float32 division, which XLA makes a multiplication, can fall just short.
            epoch=epochs.astype(jnp.float32) + rest.astype(jnp.float32) / self.steps_per_epoch,
            examples=step * self.batch_size,
            fraction=jnp.clip(step / max(self.total_steps, 1), 0.0, 1.0),
        )

    def pass_index(self, step) -> Array:
        """Number of whole passes before `step`, int32: exact at any length, unlike the float."""
        return jnp.asarray(step, jnp.int32) // (self.steps_per_pass or self.steps_per_epoch)


@pytree(static=("group",))
class Term:
    """A weighted loss term as a sum and a count, so that it is averaged once and exactly.

    `kdjax.reduction` makes terms and is the only place that divides. `group` lets a method treat the gradients of
    "task" and "distill" terms apart; binding fills in the objective's own where a term says none.
    """

    sum: Array
    count: Array
    weight: Array | float = 1.0
    group: str = ""


Terms = dict[str, Term]


class Network(NamedTuple):
    """Any model, as two pure functions over nested dicts with string keys.

    Attributes:
      init: `key -> (params, state)`. `state` holds what is not trained by gradients (BatchNorm statistics).
      apply: `(params, state, inputs, *, train, rngs=None, axis=None) -> (ModelOutput, state)`.
      parts: further entry points by name, such as "classify": `(params, state, features) -> logits`.
      name: what reports call it.
    """

    init: Callable[[Array], tuple[Tree, Tree]]
    apply: Callable[..., tuple[ModelOutput, Tree]]
    parts: dict[str, Callable] = {}  # noqa: RUF012  read only
    name: str = "network"


@dataclasses.dataclass(frozen=True)
class DataInfo:
    """What an objective may know of the data when it is built.

    Attributes:
      num_classes: number of classes `C`.
      num_examples: size of the training split (memory banks have one row an example).
      labels: `[num_examples]` int32 class of every training example, where a method needs them all (negatives of other
        classes), -1 where it may not be used, -2 where the example is not trained on; None if they are not known.
    """

    num_classes: int
    num_examples: int = 0
    labels: Any = dataclasses.field(default=None, repr=False, compare=False)


@dataclasses.dataclass(frozen=True)
class Context:
    """All that an objective may look at.

    Attributes:
      student: what the student said about the main view.
      teacher: the same of the teacher, already under `stop_gradient`; None if the phase has no teacher.
      peer: the same of a network that is trained alongside (mutual learning), under `stop_gradient`, or None.
      views: the context of every further view that the objective asks for, by name ("strong").
      batch: the rows, their labels and masks.
      progress: for schedules.
      key: a PRNG key of this step.
      axis: name of the mapped axis under pmap and shard_map, else None.
      train: False while evaluating.
      teacher_call: `(part, *arrays) -> Any`: a named part of the frozen teacher, differentiable in its inputs.
    """

    student: ModelOutput
    teacher: ModelOutput | None
    batch: Batch
    progress: Progress
    peer: ModelOutput | None = None
    views: "dict[str, Context]" = dataclasses.field(default_factory=dict)
    key: Array | None = None
    axis: Axis = None
    train: bool = True
    teacher_call: Callable[..., Any] | None = None

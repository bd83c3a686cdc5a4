"""The nouns that every room shares: what a network says, a batch, how far training has come, a loss term.

This is the ground floor: it imports jax only.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple, dataclass_transform

import jax
import jax.numpy as jnp

Array = jax.Array
Tree = Any
Axis = str | None  # None under plain jit; the name of the mapped axis under pmap or shard_map


@dataclass_transform(frozen_default=True)
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
    """What a network said about a batch of `B` examples: the output of networks that score classes.

    Attributes:
      logits: `[B, C]` class scores before the softmax, or `[B, L, C]` of every element (token, pixel) of a row.
      features: one `[B, H, W, K]` array a stage, after the activation, from the stem on.
      preactivations: the same before the activation.
      embedding: `[B, D]`, the pooled vector that the classifier reads.
      taps: further intermediate values by the name the user gave them.
      losses: what the network adds to the loss by itself, such as the balance of its experts, by name: a number, the mean
        over the batch; or `[B]`. The objective `AuxiliaryLoss` reads them.

    A network fills in what it can; XLA drops what nobody reads. It is one kind of output: a network that says something
    else (boxes, say) returns a pytree dataclass of its own, and objectives read its fields by name all the same.
    """

    logits: Array | None = None
    features: tuple[Array, ...] = ()
    preactivations: tuple[Array, ...] = ()
    embedding: Array | None = None
    taps: dict[str, Array] = dataclasses.field(default_factory=dict)
    losses: dict[str, Array] = dataclasses.field(default_factory=dict)


@pytree
class MultiView:
    """Several views of the same examples by name. Inputs of this type are views; any other pytree is one view, "main"."""

    views: dict[str, Tree]


@pytree
class Mixed:
    """Targets of inputs that were mixed in pairs: `share` of `first`, the rest of `second`.

    Attributes:
      first, second: targets `[B, ...]` of the two.
      share: `[B]` floats, 0 to 1.
    """

    first: Array
    second: Array
    share: Array


@pytree
class Batch:
    """One batch of `B` rows, alike on every device but for its sharding.

    A row is an example. In some tasks it has elements that are predicted each by itself, such as tokens or pixels. Masks of
    rows and masks of elements are different fields, so neither is ever taken for the other, also where B = L. `mask` joins
    them, and is what objectives and metrics use.

    Attributes:
      inputs: a pytree of arrays `[B, ...]`, as the data set stores them (images: uint8 NHWC), or a `MultiView`.
      targets: what is to be learned: an array `[B, ...]`, or several by name ("labels", "boxes"). Class labels are int32
        indices, `[B]` or `[B, L]`; or soft labels, floats `[B, C]` or `[B, L, C]` that add up to 1. In a step that mixes its
        inputs they are `Mixed`.
      index: `[B]` int32 position of each example in its data set, by which views and memory banks are keyed; None if that is
        not known, and what needs it refuses the batch.
      where: `[B]` bool, False for rows that only fill up a last partial batch.
      labelled: `[B]` bool, False where the row's targets may not be used (semi-supervised distillation).
      elements: `[B, L]` (or `[B, H, W]`) bool, False for elements that are padding; None where there is none.
      labelled_elements: the same, False where an element's target may not be used (prompts, tokens that were not masked);
        None where all may be.
      teacher: what the teacher says of the main view, where that is known already, see `kdjax.training.teacher_cache`.
    """

    inputs: Any
    targets: Any
    index: Array | None
    where: Array
    labelled: Array
    elements: Array | None = None
    labelled_elements: Array | None = None
    teacher: Any = None

    @classmethod
    def of(
        cls, inputs, targets=None, *, labels=None, index=None, where=None, labelled=None, elements=None,
        labelled_elements=None,
    ) -> "Batch":  # fmt: skip
        """A batch from arrays at hand: every row and element counts and is labelled unless said otherwise.

        Args:
          inputs, index: see the attributes.
          targets, labels: the same under two names; leave both out if nothing that is learned reads them.
          where, labelled: `[B]` masks of rows, of bools or of 0 and 1.
          elements, labelled_elements: `[B, L]` masks of elements, such as `labels != -100`.

        Raises:
          ValueError: a mask of rows that is not `[B]`, of elements that does not begin so, an index that is no integers `[B]`, or
            both `targets` and `labels`.
        """
        if targets is not None and labels is not None:
            raise ValueError("targets and labels are the same argument; give one of them.")
        targets = jax.tree.map(jnp.asarray, labels if targets is None else targets)
        size = jnp.shape(jax.tree.leaves((inputs, targets))[0])[0]
        rows = {"where": where, "labelled": labelled}
        rows = {name: _row_mask(mask, size, name) for name, mask in rows.items()}
        parts = {"elements": elements, "labelled_elements": labelled_elements}
        parts = {name: _element_mask(mask, size, name) for name, mask in parts.items()}
        index = None if index is None else jnp.asarray(index)
        if index is not None and (index.shape != (size,) or not jnp.issubdtype(index.dtype, jnp.integer)):
            raise ValueError(
                f"index is {index.dtype} {list(index.shape)}; give the position of each row in its data set, integers [{size}]."
            )
        return cls(inputs=inputs, targets=targets, index=index, **rows, **parts)

    @property
    def labels(self) -> Array:
        """The targets called "labels", or the targets themselves where they are one array."""
        return self.target("labels")

    def target(self, name: str) -> Array:
        """The targets of this name, or the targets themselves where they are one array.

        Raises:
          ValueError: there are none.
        """
        if isinstance(self.targets, dict) and name in self.targets:
            return self.targets[name]
        if self.targets is None or isinstance(self.targets, dict):
            there = ", ".join(self.targets or ()) or "none"
            raise ValueError(f"The batch has no {name}, and they are read; its targets are: {there}.")
        return self.targets

    def known_index(self, who: str) -> Array:
        """The positions of the examples in their data set, for `who` keeps something of each.

        Raises:
          ValueError: they are not known.
        """
        if self.index is None:
            raise ValueError(
                f"{who} by the example's position in its data set, and this batch does not say it; pass "
                "Batch.of(..., index=positions)."
            )
        return self.index

    def numbers(self, axis: Axis = None) -> Array:
        """`[B]` numbers that tell the rows of this batch apart: their positions in the data set, or in the batch over all
        devices."""
        if self.index is not None:
            return self.index
        first = 0 if axis is None else jax.lax.axis_index(axis) * len(self.where)
        return first + jnp.arange(len(self.where), dtype=jnp.int32)

    def mask(self, shape: tuple[int, ...], *, labelled: bool = False) -> Array:
        """Which of some values count: a mask of `shape`.

        Args:
          shape: of the values: `[B]`, one a row, which counts if the row does; or `[B, L, ...]`, one an element, which counts
            if its row and it do. Where there is no mask of elements all those of a row count.
          labelled: leave out also those whose targets may not be used.

        Raises:
          ValueError: values of other elements than those that are masked.
        """
        rows = self.where & self.labelled if labelled else self.where
        if tuple(shape[:1]) != rows.shape:
            raise ValueError(f"Values {list(shape)} are not of the {rows.shape[0]} rows of the batch.")
        mask = _lead(rows, len(shape))
        for name, kept in (
            ("elements", self.elements),
            ("labelled_elements", self.labelled_elements if labelled else None),
        ):
            if kept is None or len(shape) == 1:
                continue
            if tuple(shape[: kept.ndim]) != kept.shape:
                raise ValueError(
                    f"{name} is a mask {list(kept.shape)}, and values {list(shape)} are of other elements."
                )
            mask = mask & _lead(kept, len(shape))
        return jnp.broadcast_to(mask, shape)


def _lead(mask: Array, ndim: int) -> Array:
    """A mask of leading axes, with axes of length 1 for the rest."""
    return jnp.reshape(mask, mask.shape + (1,) * (ndim - mask.ndim))


def _row_mask(mask, size: int, name: str) -> Array:
    if mask is None:
        return jnp.ones(size, bool)
    mask = jnp.asarray(mask)
    if mask.shape != (size,):
        mend = f"; a mask of tokens or pixels is {'labelled_' * (name == 'labelled')}elements=" if mask.ndim > 1 else ""
        raise ValueError(f"{name} is a mask of rows, [{size}], and has the shape {list(mask.shape)}{mend}.")
    return mask.astype(bool)


def _element_mask(mask, size: int, name: str) -> Array | None:
    if mask is None:
        return None
    mask = jnp.asarray(mask)
    if mask.ndim < 2 or mask.shape[0] != size:
        mend = "; a mask of rows is where= or labelled=" if mask.ndim < 2 else ""
        raise ValueError(f"{name} is a mask of elements, [{size}, L], and has the shape {list(mask.shape)}{mend}.")
    return mask.astype(bool)


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
      apply: `(params, state, inputs, *, train, rngs=None, axis=None) -> (output, state)`; `ModelOutput`, or another pytree
        dataclass whose fields objectives read.
      parts: further entry points by name, such as "classify": `(params, state, features) -> logits`.
      name: what reports call it.
      paths: `inputs -> {path: shapes}`, what the submodules give that may be tapped; None where that is not known. See
        `kdjax.models.module_paths`.
      float32: paths of parameters that are used in float32 whatever the network computes in: BatchNorm's scales and biases.
    """

    init: Callable[[Array], tuple[Tree, Tree]]
    apply: Callable[..., tuple[Any, Tree]]
    parts: dict[str, Callable] = {}  # noqa: RUF012  read only
    name: str = "network"
    paths: Callable[[Any], dict[str, Any]] | None = None
    float32: tuple[tuple[str, ...], ...] = ()


@dataclasses.dataclass(frozen=True)
class DataInfo:
    """What an objective may know of the data when it is built.

    Attributes:
      num_classes: number of classes `C`.
      num_examples: size of the training split (memory banks have one row an example).
      labels: `[num_examples]` int32 class of every training example, where a method needs them all (negatives of other
        classes), -1 where it may not be used, -2 where the example is not trained on; None if they are not known.
      targets: names of the targets that a batch has: "labels", class indices; or a task's own.
      class_names: one a class, as far as they are known.
      soft: whether the labels of a batch are probabilities of the classes, `[B, C]`, instead of indices.
    """

    num_classes: int
    num_examples: int = 0
    labels: Any = dataclasses.field(default=None, repr=False, compare=False)
    targets: tuple[str, ...] = ("labels",)
    soft: bool = False
    class_names: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Context:
    """All that an objective may look at.

    Attributes:
      student: what the student said about the main view.
      teacher: the same of the teacher, already under `stop_gradient`; None if the phase has no teacher.
      peer: the same of a network that is trained alongside (mutual learning), under `stop_gradient`, or None.
      views: the context of every further view that the objective asks for, by name ("strong").
      batch: the rows, their targets and masks.
      progress: for schedules.
      key: a PRNG key of this step.
      axis: name of the mapped axis under pmap and shard_map, else None.
      train: False while evaluating.
      teacher_call: `(part, *arrays) -> Any`: a named part of the frozen teacher, differentiable in its inputs.
      student_call: the same of the student, differentiable in its parameters too, in a step whose logits `[B, L, V]` are never
        to be there at once: objectives make them of the last features and the part "token_weights". Else None.
      summed: whether the gradient of the weighted sum of all terms is all that is asked for, and not that of each group.
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
    student_call: Callable[..., Any] | None = None
    summed: bool = False

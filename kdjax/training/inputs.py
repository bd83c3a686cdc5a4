"""The inputs of a step: the views its networks see, and what those say that do not learn in it, the teacher and a peer."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
from jax import lax

from kdjax.losses import topk_teacher
from kdjax.objectives import Bound
from kdjax.training.mixup import mix_batch
from kdjax.training.state import TrainState, Variables
from kdjax.types import Array, Axis, Batch, Clock, ModelOutput, MultiView, Network, Tree

# (inputs, index, epoch, key) -> what the networks see, or a MultiView; index is None where the batch does not say it
Views = Callable[[Array, Array, Array, Array], Any]
# (targets, index, epoch, key) -> the targets of what the main view shows, where views move them (boxes in a mirrored image)
Moved = Callable[[Any, Array, Array, Array], Any]


def as_given(inputs, index, epoch, key):
    """Views that leave the inputs as they are."""
    return inputs


@dataclasses.dataclass(frozen=True)
class StepInputs:
    """A batch as the networks see it, and what the frozen ones said of it."""

    batch: Batch
    views: dict[str, Any]
    teacher: dict[str, ModelOutput]
    teacher_call: Callable[..., Any] | None
    peer: dict[str, ModelOutput]


def make_views(
    state: TrainState, batch: Batch, views: Views, names: tuple[str, ...], clock: Clock, axis: Axis, mix: float = 0.0,
    cut: float = 0.0, moved: Moved | None = None,
) -> tuple[dict[str, Any], Batch]:  # fmt: skip
    """The views of a batch by name, and the batch with the targets of what they show."""
    epoch, key = clock.pass_index(state.step), state.keys["data"]
    with jax.named_scope("views"):
        shown = views(batch.inputs, batch.index, epoch, key)
        if moved is not None:
            batch = dataclasses.replace(batch, targets=moved(batch.targets, batch.index, epoch, key))
    shown = shown.views if isinstance(shown, MultiView) else {"main": shown}
    missing = [name for name in names if name not in shown]
    if missing:
        raise ValueError(f"The objective compares the views {', '.join(names)}, and views= gives {', '.join(shown)} only; "
                         f"let it return a MultiView with {missing[0]!r}.")  # fmt: skip
    shown = {name: shown[name] for name in names}
    return mix_batch(shown, batch, epoch, key, mixup=mix, cutmix=cut, axis=axis) if mix or cut else (shown, batch)


def check_mixable(objective: Bound) -> None:
    """Raises unless every part that learns from targets takes those of mixed inputs."""
    if objective.unmixed:
        name, read = next(iter(objective.unmixed.items()))
        raise ValueError(
            f"Inputs are mixed, but the objective {name!r} reads {read}, which are not mixed for it; use one that takes mixed "
            "labels (cross_entropy, label_smoothing) or reads the teacher only, or set mix and cut to 0."
        )


def whole_teacher(teacher: ModelOutput | None, student: ModelOutput) -> ModelOutput | None:
    """A teacher of which the top classes are kept alone, with logits for all beside them; any other as it is."""
    if teacher is None or "topk_ids" not in teacher.taps:
        return teacher
    logits = topk_teacher(student.logits, teacher.taps["topk_ids"], teacher.taps["topk_logprobs"])
    return dataclasses.replace(teacher, logits=logits)


def check_cacheable(objective: Bound) -> None:
    """Raises unless all that an objective wants of the teacher can be kept: its logits on the main view."""
    reads = {read for part in objective.parts.values() for read in part.reads if read.startswith("teacher.")}
    if reads - {"teacher.logits"}:
        raise ValueError(
            f"The objective reads {', '.join(sorted(reads))}, and only a teacher's logits are kept; run the teacher instead."
        )
    if objective.views != ("main",) or objective.teacher_mode == "train":
        what = "several views" if objective.views != ("main",) else "the teacher's statistics to go on"
        raise ValueError(
            f"The objective wants {what}, and only a fixed teacher's logits on one view are kept; run the teacher."
        )


def run_teacher(
    teacher: Network | None,
    variables: Variables | None,
    shown: dict[str, Array],
    axis: Axis,
    goes_on: Tree | None = None,
):
    """The teacher's outputs by view under `stop_gradient`, its parts as functions differentiable in their inputs, and its
    statistics after this batch if they go on from `goes_on`, else None."""
    if teacher is None:
        return {}, None, None
    params, state = lax.stop_gradient((variables.params, variables.state))
    said = {}
    with jax.named_scope("teacher"):
        for name, x in shown.items():
            if goes_on is None:
                said[name], _ = teacher.apply(params, state, x, train=False, axis=axis)
            else:
                said[name], goes_on = teacher.apply(params, goes_on, x, train=True, axis=axis)

    def call(part, *arrays):
        if part not in teacher.parts:
            known = ", ".join(teacher.parts) or "none"
            raise ValueError(f"The objective calls the part {part!r} of the teacher {teacher.name}, which has {known}; name "
                             f"the method when the network is made: from_nnx(..., parts=({part!r},)).")  # fmt: skip
        return teacher.parts[part](params, state, *arrays)

    return lax.stop_gradient(said), call, lax.stop_gradient(goes_on)


def run_peer(network: Network, variables: Variables | None, shown: dict[str, Array], key: Array, axis: Axis):
    """What a network that is itself in training says, with the statistics of this batch; its own are left alone."""
    if variables is None:
        return {}
    params, state = lax.stop_gradient((variables.params, variables.state))
    said = {}
    for i, (name, inputs) in enumerate(shown.items()):
        with jax.named_scope("peer"):
            rngs = jax.random.fold_in(key, i)
            said[name], _ = network.apply(params, state, inputs, train=True, rngs=rngs, axis=axis)
    return lax.stop_gradient(said)


def same_architecture(student: Network, teacher: Network) -> None:
    """Raises unless both have the same parameters, so that a gradient of one can be subtracted from the other's."""
    ours, theirs = (jax.eval_shape(network.init, jax.random.key(0))[0] for network in (student, teacher))
    shapes = [jax.tree.map(lambda x: (x.shape, x.dtype), tree) for tree in (ours, theirs)]
    if shapes[0] != shapes[1]:
        raise ValueError(
            f"The objective subtracts the teacher's gradient from the student's, so both must be the same network; they are "
            f"{student.name} and {teacher.name}: make them alike, width included."
        )

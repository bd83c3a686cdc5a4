"""Who takes part in a phase: its student, its teacher, and the objective bound to both."""

import dataclasses
from typing import Any

import jax
import numpy as np

from kdjax.data.outputs import check_covered, read_outputs
from kdjax.experiment.spec import Experiment, Phase
from kdjax.models import Freezer, FreezeReport, ensemble, module_paths, output_shapes
from kdjax.objectives import Bound, bind
from kdjax.objectives.tokens import chunked
from kdjax.schedules import Adaptive
from kdjax.tasks import Dataset, Model, Task
from kdjax.tasks.dataset import BESIDE
from kdjax.tasks.given import GivenNetwork
from kdjax.training import Variables
from kdjax.training.deployment import Deployment, deploy
from kdjax.training.teacher_cache import Storage
from kdjax.types import DataInfo, ModelOutput, Network, Tree


@dataclasses.dataclass(frozen=True, eq=False)
class Networks:
    """The networks of a phase and what they are trained for.

    Attributes:
      student, teacher: the second is None where nobody teaches.
      freezer: makes the teacher cheap for the step; evaluations use it as it is. None to leave it as it is everywhere.
      objective: bound to what the two give.
      deployment: the student as it is used after training.
      inputs: shapes of what they see of a training batch.
      cached: whether batches bring what the teacher says, so that it does not run in the step.
      outputs: what a teacher that is not there said of every training example, `[N, ..., C]`, from a file; or None.
      in_chunks: whether the step makes logits of tokens a few at a time, because the vocabulary is large.
      rows: shapes of what is read of the data, where the phase keeps what its student writes; else None.
      whole: where it is large and they are made whole all the same, why.
    """

    student: Network
    teacher: Network | None
    freezer: Freezer | None
    objective: Bound
    deployment: Deployment
    inputs: Tree
    cached: bool
    outputs: np.ndarray | None = None
    in_chunks: bool = False
    whole: str = ""
    rows: Tree | None = None

    @property
    def step_teacher(self) -> Network | None:
        """The teacher as the step runs it."""
        return self.teacher if self.freezer is None else self.freezer.network

    @property
    def teacher_runs(self) -> bool:
        """Whether the teacher runs in the step. One that the objective does not read is only evaluated beside the student."""
        return self.objective.needs_teacher and not self.cached

    def frozen(self, teacher: Variables | None) -> Variables | None:
        """The teacher's variables as `step_teacher` takes them."""
        if teacher is None or self.freezer is None:
            return teacher
        return Variables(*self.freezer.convert(teacher.params, teacher.state))

    def freezing(self, teacher: Variables | None, sample: Any) -> FreezeReport | None:
        """What freezing changes of what the teacher says of some inputs; None if it is not frozen.

        Raises:
          ValueError: it changes too much.
        """
        return None if self.freezer is None else self.freezer.compare(teacher.params, teacher.state, sample)


def make_networks(experiment: Experiment, phase: Phase, dataset: Dataset) -> Networks:
    """The networks of one phase.

    Raises:
      ValueError: one sentence for the first thing that does not fit.
    """
    task = experiment.data
    inputs = network_inputs(experiment, dataset)
    student = make_network(task, phase.network, dataset, remat=phase.remat)
    teacher = make_teacher(experiment, phase, dataset)
    outputs = stored_outputs(task, phase, dataset)
    info = dataset.info_for(phase.labels)
    if phase.weights or phase.network.trained:  # it learns nothing, so its objective finds whatever it reads
        info = dataclasses.replace(info, targets=info.targets or ("labels",))
    said = output_shapes(student, inputs), teacher_shapes(teacher, outputs, inputs)
    given = getattr(said[0], "logits", None)
    if outputs is not None and given is not None and outputs.ndim != given.ndim:
        raise ValueError(
            f"{phase.teacher_outputs} has logits {list(outputs.shape)}, and the student gives {list(given.shape)} for a batch; "
            f"give as many axes, [N, {', '.join(['L'] * (given.ndim - 2) + ['C'])}]."
        )
    try:
        objective = bind(phase.objective, *said, info)
    except ValueError as error:
        raise ValueError(with_paths(str(error), student, inputs)) from error
    cached = (bool(phase.teacher_cache) or outputs is not None) and objective.needs_teacher
    if cached and outputs is None:
        Storage(phase.teacher_cache)
        task.numbered_views()
    freezer = make_freezer(phase, teacher, objective, inputs)
    large = (
        (getattr(said[0], "logits", None) is not None)
        and said[0].logits.ndim == 3
        and said[0].logits.shape[-1] > chunked.MANY
    )
    if cached and outputs is None and Storage(phase.teacher_cache).k and other_classes(*said, info):
        raise ValueError(
            f"teacher_cache={phase.teacher_cache} keeps classes of the teacher, and spreads the rest over those of the "
            "student, which has others; use float16, or leave it empty."
        )
    runs = objective.needs_teacher and teacher and not cached
    taught = [(freezer.network if freezer else teacher, said[1])] if runs else []
    top_k = cached and outputs is None and bool(Storage(phase.teacher_cache).k)
    whole = why_whole(objective, [(student, said[0]), *taught], cached, top_k) if large else ""
    return Networks(
        student, teacher, freezer, objective, deploy(student, teacher, objective, inputs), inputs, cached, outputs,
        in_chunks=large and not whole, whole=whole, rows=dataset.shapes(1) if isinstance(phase.on_policy, Adaptive) else None,
    )  # fmt: skip


def other_classes(student: Any, teacher: Any, info: DataInfo) -> bool:
    """Whether two networks, by the shapes of what they say, score other classes or tokens."""
    widths = {said.logits.shape[-1] for said in (student, teacher) if getattr(said, "logits", None) is not None}
    return len(widths) > 1 or "aligned" in info.targets


def why_whole(objective: Bound, networks: list[tuple[Network, Any]], cached: bool, top_k: bool = False) -> str:
    """What keeps logits of tokens from being made a few at a time; "" if nothing does.

    Args:
      objective: of the phase.
      networks: those that the step runs, each with the shapes of what it says.
      cached: whether the batch brings what the teacher says; `top_k`, of its most likely classes alone.
    """
    if cached and not top_k:
        return "the teacher's are kept"
    wants = [name for name, part in objective.parts.items() if not (part.of_top_k if cached else part.in_chunks)]
    lacks = [network.name for network, said in networks if not chunked.gives_states(network, said)]
    return f"{wants[0]} takes them so" if wants else f"{lacks[0]} does not give its head" if lacks else ""


def stored_outputs(task: Task, phase: Phase, dataset: Dataset) -> np.ndarray | None:
    """What a teacher said of the training examples, where a phase takes that from a file.

    Raises:
      ValueError, DataError: the file is not of these examples, or inputs are mixed.
    """
    if not phase.teacher_outputs:
        return None
    if phase.mix and (task.mixup or task.cutmix):
        raise ValueError(
            f"data.views mixes inputs, and {phase.teacher_outputs} is of single ones; set mixup and cutmix to 0."
        )
    outputs = read_outputs(phase.teacher_outputs, len(dataset.train))
    check_covered(outputs, np.asarray(dataset.visited(phase.taught, phase.labels)), phase.teacher_outputs)
    return outputs


def teacher_shapes(teacher: Network | None, outputs: np.ndarray | None, inputs: Tree) -> Any:
    """Shapes of what the teacher says of a batch: its network, or what is known of it; None where nobody teaches."""
    if outputs is None:
        return None if teacher is None else output_shapes(teacher, inputs)
    rows = jax.tree.leaves(inputs)[0].shape[0]
    return ModelOutput(logits=jax.ShapeDtypeStruct((rows, *outputs.shape[1:]), outputs.dtype))


def with_paths(sentence: str, network: Network, inputs: Tree) -> str:
    """What is wrong with an objective, and the paths by which a network of one's own could give what it reads."""
    if "module_paths" not in sentence or network.paths is None:
        return sentence
    paths = [path for path in module_paths(network, inputs) if path]
    return f"{sentence} Those of {network.name} are {', '.join(paths[:20])}{' ...' if len(paths) > 20 else ''}."


def make_network(task: Task, model: Model, dataset: Dataset, *, remat: bool = False) -> Network:
    """A network for a task's data: the task's own, or one that was handed over.

    Raises:
      ValueError: there is no such network.
    """
    if isinstance(model, GivenNetwork):
        if remat:
            raise ValueError(f"remat is for networks by name; apply nnx.remat or nn.remat inside {model.name}.")
        shapes = jax.eval_shape(task.evaluation_view, dataset.shapes(2)["inputs"])
        if isinstance(shapes, dict) and BESIDE in shapes:  # which a teacher alone is shown
            from kdjax.tasks.pretrained import reading, shown

            return reading(model.build(shown(shapes, beside=False)), beside=False)
        return model.build(shapes)
    return task.network(model, dataset, remat=remat)


def network_inputs(experiment: Experiment, dataset: Dataset) -> Tree:
    """Shapes of what a network sees of a batch of the experiment."""
    return jax.eval_shape(experiment.data.evaluation_view, dataset.shapes(experiment.data.batch_size)["inputs"])


def make_teacher(experiment: Experiment, phase: Phase, dataset: Dataset) -> Network | None:
    """The network that teaches a phase, an ensemble of several, or None."""
    models = [experiment.phase(name).network for name in phase.teachers]
    # Equal ones are one network, for the ensemble's sake.
    made = {model: make_network(experiment.data, model, dataset) for model in models}
    networks = [made[model] for model in models]
    return ensemble(networks) if len(networks) > 1 else next(iter(networks), None)


def make_freezer(phase: Phase, teacher: Network | None, objective: Bound, inputs: Tree) -> Freezer | None:
    """What freezes a phase's teacher, if that is asked for.

    Raises:
      ValueError: the objective needs the teacher as it is.
    """
    if not phase.teacher_precision or teacher is None or not objective.needs_teacher:
        return None
    if objective.teacher_mode == "train" or objective.correct:
        what = (
            "the teacher's statistics to go on" if objective.teacher_mode == "train" else "the gradient at the teacher"
        )
        raise ValueError(
            f"Phase {phase.name!r} freezes its teacher (teacher_precision={phase.teacher_precision}), and its objective wants "
            f"{what}; leave teacher_precision empty."
        )
    return Freezer(teacher, inputs, precision=phase.teacher_precision)

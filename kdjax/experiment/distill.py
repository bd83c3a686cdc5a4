"""One call that trains one's own network with a teacher: evaluation, checkpoints, exact resume, progress, teacher cache."""

from pathlib import Path
from typing import Any

from kdjax.experiment.folder import NETWORK, network_folder, read_network
from kdjax.experiment.interactive import Results, run
from kdjax.experiment.program import Builder
from kdjax.experiment.spec import Experiment, ExperimentError, Phase
from kdjax.experiment.trained import Trained
from kdjax.json_files import shown
from kdjax.objectives import Objective, method
from kdjax.places import local
from kdjax.schedules import Duration, epochs
from kdjax.tasks import Model, Task
from kdjax.tasks.given import GivenData, GivenNetwork, given_data, named
from kdjax.training.optimizers import SGD, Optimizer
from kdjax.training.progress import Progress


def distill(
    student: Any,
    teacher: Any = None,
    data: Any = None,
    objective: Objective | str = "kd",
    *,
    duration: Duration = epochs(10),
    optimizer: Optimizer = SGD(),
    batch_size: int = 128,
    eval_batch_size: int = 512,
    num_classes: int | None = None,
    preprocess: Any = None,
    augment: Any = None,
    seed: int = 0,
    folder: str | Path | None = None,
    name: str = "distill",
    resume: bool = False,
    overwrite: bool = False,
    evaluate_every: Duration = epochs(1),
    checkpoint_every: Duration = epochs(1),
    runner: str = "jit",
    data_dir: str | None = None,
    progress: Progress | None = None,
    **options: Any,
) -> Results:
    """Trains a student, with a teacher or without.

    Args:
      student: an NNX module or its constructor `rngs -> module`, a Linen module, or a `kdjax.types.Network`.
      teacher: the same, with its trained weights (a Linen module by `from_linen(module, inputs, variables=...)`); or what
        `load_trained` gives, which then sees what the student sees; or the folder of a finished run, or one of Hugging Face.
        None for objectives that read no teacher.
      data: `((inputs, labels), (test_inputs, test_labels))`, pytrees of arrays and integer classes, labels None where there are
        none: a student is then evaluated by its agreement with the teacher; or a `kdjax.tasks.Task`,
        such as `Classification(name="fashion_mnist")`, which says its own batch sizes.
      objective: what is minimised, or the name of a method.
      duration, optimizer: of the training.
      batch_size, eval_batch_size: examples in a step.
      num_classes: of arrays at hand; the largest label and one, if not given. Without labels it must be.
      preprocess: of arrays at hand: `inputs [B, ...] -> what the networks see`; as they are, if not given.
      augment: of arrays at hand: `(key, inputs of one example) -> inputs`, for training; drawn anew in every pass.
      seed: of initial weights, dropout, order of the examples and their views.
      folder: of the run; `runs/NAME` if not given.
      name: what reports call it.
      resume: go on with the run that is in the folder, where it was stopped. What differs is refused.
      overwrite: delete the run that is in the folder.
      evaluate_every, checkpoint_every: how often.
      runner: "jit", "fsdp" or "pmap".
      data_dir: folder of prepared data sets.
      progress: what a person sees; a bar on a terminal or in a notebook if not given.
      options: further fields of the student's `kdjax.experiment.Phase`, such as `precision="bfloat16"` or
        `teacher_cache="float32"`.

    Returns:
      The results by phase; `results.trained()` is the student as a function.

    Raises:
      ExperimentError, DataError, TrainingError, CheckpointError: what is wrong, in one sentence.
    """
    task = _task(data, num_classes, preprocess, augment, batch_size, eval_batch_size)
    chosen = _objective(objective)
    if teacher is None and isinstance(task, GivenData) and task.judged_by == "teacher":
        raise ExperimentError(
            "The data to evaluate have no labels, and there is no teacher to agree with; give one of them."
        )
    if not isinstance(optimizer, Optimizer):
        raise ExperimentError(
            f"optimizer is {shown(optimizer)}; give one of kdjax.training.optimizers, such as SGD(learning_rate=0.1), or one of "
            "your own, a class that extends Optimizer and whose `core` makes an optax transformation."
        )
    phases = ()
    if isinstance(teacher, str | Path):
        stored = local(teacher, ExperimentError, "A teacher").absolute()
        if (stored / "config.json").exists() and not (stored / "experiment.json").exists():
            teacher = _taken(task, student, stored)
    if isinstance(teacher, str | Path):
        model, weights = _stored(stored, task, data_dir)
        phases = (Phase(name="teacher", network=model, weights=str(weights)),)
    elif teacher is not None:
        phases = (Phase(name="teacher", network=_model(teacher, "teacher", trained=True)),)
    twice = sorted({"name", "network", "objective", "duration", "optimizer", "teacher"} & set(options))
    if twice:
        raise ExperimentError(f"{twice[0]} is an argument of distill by itself, not an option of the phase.")
    try:
        last = Phase(
            network=_model(student, "student"), objective=chosen, duration=duration, optimizer=optimizer,
            teacher="teacher" if teacher is not None else "", **options,
        )  # fmt: skip
    except TypeError as error:
        raise ExperimentError(f"distill: {str(error).removeprefix('Phase.__init__() ')}.") from error
    experiment = Experiment(
        name=name, data=task, phases=(*phases, last), seed=seed, evaluate_every=evaluate_every,
        checkpoint_every=checkpoint_every, runner=runner,
    )  # fmt: skip
    return run(experiment, folder=folder, resume=resume, overwrite=overwrite, data_dir=data_dir, progress=progress)


def _task(data, num_classes, preprocess, augment, batch_size, eval_batch_size) -> Task:
    arrays = isinstance(data, tuple | list) and len(data) == 2 and all(isinstance(part, tuple | list) for part in data)
    if not arrays and (num_classes, preprocess, augment) != (None, None, None):
        raise ExperimentError(
            "num_classes, preprocess and augment are of arrays at hand; a data set's own say it themselves."
        )
    if arrays:
        train, test = data
        if len(train) != 2 or len(test) != 2:
            raise ExperimentError("data of arrays is ((inputs, labels), (test_inputs, test_labels)).")
        return given_data(
            tuple(train), tuple(test), num_classes=num_classes, preprocess=preprocess, augment=augment,
            batch_size=batch_size, eval_batch_size=eval_batch_size,
        )  # fmt: skip
    if isinstance(data, Task):
        return data
    raise ExperimentError(
        f"data is a {type(data).__name__}; give ((inputs, labels), (test_inputs, test_labels)), or a Task."
    )


def _objective(objective: Objective | str) -> Objective:
    if isinstance(objective, Objective):
        return objective
    if not isinstance(objective, str):
        raise ExperimentError(
            f"objective is {shown(objective)}; give a method's name or an Objective, such as kdjax.objectives.KD(), or one of "
            "your own, a class that extends Objective."
        )
    try:
        return method(objective).objective
    except ValueError as error:
        raise ExperimentError(str(error)) from error


def _model(network: Any, role: str, *, trained: bool = False) -> Model:
    if isinstance(network, Model):
        return network
    if isinstance(network, Trained):
        network = network.as_network()
    return GivenNetwork(name=named(network, role), trained=trained, network=network)


def _taken(task: Task, student: Any, folder: Path) -> Model:
    try:
        return task.taken(student if isinstance(student, Model) else Model(), folder)
    except ValueError as error:
        raise ExperimentError(str(error)) from error


def _stored(folder: Path, task: Task, data_dir: str | None) -> tuple[Model, Path]:
    """The network of a run folder's student, or of a phase's own folder, for a task's data; and where its weights are."""
    from kdjax.experiment.artifacts import saved_experiment

    place = folder if (folder / "experiment.json").exists() else folder.parent
    experiment = saved_experiment(place)
    phase = experiment.student if place == folder else experiment.phase(folder.name)
    weights, model = place / phase.name, phase.network
    if type(experiment.data) is type(task) and not isinstance(model, GivenNetwork):
        source = network_folder(phase, weights)
        facts = read_network(source) if (source / NETWORK).exists() else {}
        model = task.as_trained(model, experiment.data, facts.get("class_names", ()), Builder(data_dir).dataset(task))
    return model, weights

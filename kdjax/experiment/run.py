"""Runs an experiment, phase after phase, in a folder; goes on where it was stopped."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from kdjax.experiment import serialization
from kdjax.experiment.accounting import account
from kdjax.experiment.carry import carry
from kdjax.experiment.folder import (
    COMPARISON,
    EXPERIMENT,
    OBJECTIVE,
    RESULT,
    network_folder,
    open_run,
    read_result,
    write_json,
)
from kdjax.experiment.program import Builder, Program, open_checkpoints
from kdjax.experiment.spec import Experiment, ExperimentError, Phase, seeds_of
from kdjax.models import join_members
from kdjax.training import TrainState, Variables, count_parameters
from kdjax.training.checkpoints import load_network, save_network
from kdjax.training.processes import by_first, is_first
from kdjax.training.progress import Progress, Silent
from kdjax.training.writers import MetricWriter, Nowhere
from kdjax.types import ModelOutput


@dataclasses.dataclass
class Finished:
    """A phase that has ended: its network, what it came to, and what its objective trained (None for nothing)."""

    network: Variables
    result: dict[str, Any]
    objective: Variables | None = None


def run(
    experiment: Experiment,
    folder: Path,
    *,
    resume: bool = False,
    overwrite: bool = False,
    builder: Builder | None = None,
    progress: Progress | None = None,
    profile: bool = False,
) -> dict[str, dict[str, Any]]:
    """Runs all phases of an experiment.

    Args:
      experiment: what to run.
      folder: of the run; a sub-folder a phase is made in it.
      resume: go on with a run that is there; finished phases are not run again.
      overwrite: delete a run that is there.
      builder: keeps images and compiled steps between runs.
      progress: what a person sees.
      profile: write a profile of some steps of each phase into its folder.

    Returns:
      The result of every phase by name.

    Raises:
      ExperimentError: if something does not fit; nothing was written, or what was written stays valid.
      TrainingError, CheckpointError, Stopped: see `kdjax.training`.
    """
    builder, progress = builder or Builder(), progress or Silent()
    problems = experiment.problems()
    if jax.process_count() > 1 and experiment.runner == "pmap":
        problems.insert(0, "Several processes run under jit or fsdp, not under pmap; set runner to jit.")
    if problems:
        raise ExperimentError(problems[0])
    # Everything is built before anything is written: what does not fit is said at once.
    programs = {phase.name: builder.program(experiment, phase) for phase in experiment.phases}
    by_first(lambda: open_run(folder, experiment, resume=resume, overwrite=overwrite), ExperimentError)
    finished: dict[str, Finished] = {}
    for phase in experiment.phases:
        program = programs[phase.name]
        place = folder / phase.name
        place.mkdir(exist_ok=True)
        if phase.weights:
            finished[phase.name] = adopt(program, phase, place, builder, finished)
        elif read_result(place) is not None:
            finished[phase.name] = load_phase(program, place)
        else:
            finished[phase.name] = train(program, experiment, phase, place, finished, progress, profile)
    return {name: item.result for name, item in finished.items()}


def train(
    program: Program,
    experiment: Experiment,
    phase: Phase,
    place: Path,
    finished: dict[str, Finished],
    progress: Progress,
    profile: bool = False,
) -> Finished:
    """Trains one phase in its folder, from its last checkpoint if there is one."""
    seed, data_seed = seeds_of(experiment)
    seed = seed + phase.seed_offset
    teacher = teacher_of(phase, finished)
    start = finished[phase.start].network if phase.start else None
    teacher_variables = None if teacher is None else program.ready_teacher(teacher.network, data_seed)
    freezing = program.freezing(teacher_variables)
    checkpoints = open_checkpoints(place, phase, teacher and teacher.result["hash"])
    state = program.fresh_state(seed, data_seed, start, teacher_variables)
    state = carry(state, program.bound, finished[phase.start].objective if phase.start else None, phase.name)
    facts, resumed = None, checkpoints.latest()
    if resumed is not None:
        state, facts = checkpoints.restore(state)
        checkpoints.forget_best_after(resumed)
    feed = program.feed(data_seed, teacher_variables)
    writer = MetricWriter(place, resumed) if is_first() else Nowhere()
    try:
        state, facts = program.loop(feed, teacher_variables, place / "profile" if profile else None).run(
            state, program.frozen(teacher_variables), checkpoints, [writer], progress, facts
        )
        (track,) = facts["tracks"]
        if track["last"] is None or track["last"]["step"] != program.clock.total_steps:
            raise ExperimentError(f"{place} was never evaluated at its last step; run it again with --overwrite.")
        if phase.keep == "best" and track["best"]["step"] != program.clock.total_steps:
            state, _ = checkpoints.restore(state, best=True)
            if int(state.step) != track["best"]["step"]:
                raise ExperimentError(
                    f"The best state of {place}, of step {track['best']['step']}, is gone (there is one of step "
                    f"{int(state.step)}); run it again with --overwrite, or set keep=last."
                )
    finally:
        progress.finish()
        checkpoints.close()
        writer.close()
    network = program.whole(program.deployment.variables(state, teacher_variables))
    result = describe(program, seed, data_seed, facts, track, teacher)
    result["teacher_frozen"] = None if freezing is None else str(freezing)
    result["teacher_cache"] = feed.facts() if program.cached else None
    return keep(network, own_variables(program, experiment, phase, state), program, place, result)


def own_variables(program: Program, experiment: Experiment, phase: Phase, state: TrainState) -> Variables | None:
    """What a phase's objective has trained, if there is something and a later phase begins with it."""
    goes_on = program.bound.modules and any(later.start == phase.name for later in experiment.phases)
    return program.whole(Variables(state.params["objective"], state.state["objective"])) if goes_on else None


def teacher_of(phase: Phase, finished: dict[str, Finished]) -> Finished | None:
    """The finished phase that teaches, several as one, or None."""
    found = [finished[name] for name in phase.teachers]
    if len(found) < 2:
        return next(iter(found), None)
    return Finished(
        join_networks([item.network for item in found]), {"hash": "+".join(item.result["hash"] for item in found)}
    )


def join_networks(networks: list[Variables]) -> Variables | None:
    """Variables of one network, or of the ensemble of several."""
    if len(networks) < 2:
        return next(iter(networks), None)
    return Variables(join_members([n.params for n in networks]), join_members([n.state for n in networks]))


def adopt(program: Program, phase: Phase, place: Path, builder: Builder, finished: dict[str, "Finished"]) -> Finished:
    """Takes a finished network as a phase's result: it stays where it is, and is evaluated on this experiment's images."""
    source = network_folder(phase, place).absolute()
    if (source, program) not in builder.networks:
        network, facts = stored_network(program, source)
        teaching = teacher_of(phase, finished)
        teacher = None if teaching is None else teaching.network
        before = read_result(source) or {}
        result = {name: before.get(name) for name in ("steps", "seconds", "images_per_s", "seed", "data_seed")} | {
            "phase": phase.name,
            "network": program.deployment.network.name,
            "parameters": count_parameters(network.params),
            "last": {"step": before.get("steps", 0), **program.evaluate(network, teacher)},
            "hash": facts["hash"],
            "from": str(source),
        }
        builder.networks[source, program] = Finished(network, result)
    found = builder.networks[source, program]
    before = read_result(place)
    if before is not None and before["hash"] != found.result["hash"]:
        raise ExperimentError(
            f"The network in {source} is not the one this run began with (hash {found.result['hash']}, was "
            f"{before['hash']}); put that one back, or start anew with --overwrite."
        )
    place.mkdir(parents=True, exist_ok=True)
    by_first(lambda: write_json(place / RESULT, found.result), ExperimentError)
    return found


def keep(
    network: Variables, objective: Variables | None, program: Program, place: Path, result: dict[str, Any]
) -> Finished:
    """Saves a network, what its objective trained, and its result; the result last: it says that the phase has ended."""
    facts = {
        "phase": program.phase.name,
        "network": program.deployment.network.name,
        "num_classes": program.images.info.num_classes,
    }
    if objective is not None:
        save_network(place / OBJECTIVE, objective, facts)
    result["hash"] = save_network(place, network, facts)
    by_first(lambda: write_json(place / RESULT, result), ExperimentError)
    return Finished(network, result, objective)


def load_phase(program: Program, place: Path) -> Finished:
    """A phase that has ended, from its folder."""
    network, _ = stored_network(program, place)
    objective = None
    if (place / OBJECTIVE).exists():
        objective, _ = load_network(place / OBJECTIVE, program.objective_template())
    return Finished(network, read_result(place), objective)


def stored_network(program: Program, folder: Path) -> tuple[Variables, dict[str, Any]]:
    """A finished network and its facts, checked against what the program expects."""
    check_classes(folder, program)
    return load_network(folder, program.network_template())


def check_classes(folder: Path, program: Program) -> None:
    """Refuses a network for another number of classes in words, rather than by the shape of its last layer."""
    path = folder / "network.json"
    there = json.loads(path.read_text()).get("num_classes") if path.exists() else None
    here = program.images.info.num_classes
    if there is not None and there != here:
        raise ExperimentError(
            f"The network in {folder} has {there} classes, the data set {program.images.train.name} has {here}; "
            "use a network and a data set with the same classes."
        )


def describe(
    program: Program, seed: int, data_seed: int, facts: dict[str, Any], track: dict[str, Any], teacher: Finished | None
) -> dict[str, Any]:
    """What a phase came to, as data."""
    params, _ = jax.eval_shape(program.deployment.network.init, jax.random.key(0))
    steps, seconds = facts["timed_steps"], facts["train_seconds"]
    device = jax.devices()[0]
    return {
        "phase": program.phase.name,
        "network": program.deployment.network.name,
        "parameters": count_parameters(params),
        "extra_parameters": program.extra_parameters(),
        "seed": seed,
        "data_seed": data_seed,
        "steps": program.clock.total_steps,
        "examples_visited": len(program.rows),
        "last": track["last"],
        "best": track["best"],
        "kept": program.phase.keep,
        "seconds": facts["seconds"],
        "train_seconds": seconds,
        **account(program, steps, seconds, facts["input_seconds"]),
        "images_per_s": steps * program.clock.batch_size / seconds if seconds else None,
        "teacher_hash": None if teacher is None else teacher.result["hash"],
        "device": f"{jax.device_count()} x {device.device_kind}",
    }


def evaluate_run(folder: Path, data_dir: str | None = None) -> dict[str, dict[str, Any]]:
    """Metrics of every finished network of a run, by phase; each beside its teacher."""
    saved = folder / EXPERIMENT
    if not saved.exists():
        raise ExperimentError(
            f"{folder} is not a run: it has no {EXPERIMENT}; give the folder that kdjax distill wrote."
        )
    if (folder / COMPARISON).exists():
        raise ExperimentError(f"{folder} is a comparison; name one of its runs, such as {folder}/kd/seed0.")
    experiment = serialization.load(saved)
    builder = Builder(data_dir)
    networks: dict[str, Variables] = {}
    results = {}
    for phase in experiment.phases:
        place = folder / phase.name
        if not phase.weights and read_result(place) is None:
            continue
        program = builder.program(experiment, phase)
        networks[phase.name], _ = stored_network(program, network_folder(phase, place))
        teachers = [networks[name] for name in phase.teachers if name in networks]
        together = join_networks(teachers) if len(teachers) == len(phase.teachers) else None
        means = program.evaluate(networks[phase.name], together)["student"]
        results[phase.name] = means | {"examples": f"{len(program.images.held_index):,} {experiment.data.evaluate_on}"}
    if not results:
        raise ExperimentError(f"No phase of {folder} has finished; go on with it by --resume.")
    return results


def load_trained(
    folder: str | Path, phase: str | None = None, data_dir: str | None = None
) -> Callable[[jax.Array], ModelOutput]:
    """A finished network of a run as a function from images to its output, to be used or jitted like any other.

    Args:
      folder: run folder.
      phase: which network; the last phase's, the student, if not given.
      data_dir: folder of prepared data sets; that of TFDS if not given.

    Returns:
      A pure function from uint8 images `[B, H, W, C]`, as the data set stores them, to a `ModelOutput`. Its attributes
      `network` and `variables` are what it is made of.
    """
    experiment = serialization.load(Path(folder) / EXPERIMENT)
    chosen = experiment.phase(phase) if phase else experiment.student
    program = Builder(data_dir).program(experiment, chosen)
    variables, _ = stored_network(program, network_folder(chosen, Path(folder) / chosen.name))
    network = program.deployment.network

    def predict(images):
        inputs = experiment.data.views.evaluate(images)
        return network.apply(variables.params, variables.state, inputs, train=False)[0]

    predict.network, predict.variables = network, variables
    return predict

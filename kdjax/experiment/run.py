"""Runs an experiment, phase after phase, in a folder; goes on where it was stopped."""

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax

from kdjax.experiment.accounting import account
from kdjax.experiment.artifacts import Finished, adopt, keep, load_phase, teacher_of
from kdjax.experiment.builder import Builder
from kdjax.experiment.folder import (
    open_run,
    read_result,
)
from kdjax.experiment.program import Program, open_checkpoints
from kdjax.experiment.spec import Experiment, ExperimentError, Phase, seeds_of
from kdjax.experiment.warm_start import carry
from kdjax.training import TrainState, Variables, count_parameters
from kdjax.training.checkpoints import Checkpoints
from kdjax.training.processes import by_first, is_first
from kdjax.training.progress import Progress, Silent
from kdjax.training.writers import MetricWriter, Nowhere


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
    teacher, taught = teaching(program, phase, finished, data_seed)
    checkpoints = open_checkpoints(place, phase, taught["teacher_hash"])
    state = first_state(program, phase, (seed, data_seed), finished, teacher)
    facts, resumed = None, checkpoints.latest()
    if resumed is not None:
        state, facts = checkpoints.restore(state)
        checkpoints.forget_best_after(resumed)
    feed = program.feed(data_seed, teacher)
    loop = program.loop(feed, teacher, place / "profile" if profile else None)
    with recorded([place], resumed, checkpoints, progress) as writers:
        state, facts = loop.run(state, program.frozen(teacher), checkpoints, writers, progress, facts)
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
    result = describe(program, seed, data_seed, facts, track) | taught
    result["teacher_cache"] = feed.facts() if program.cached else None
    return conclude(program, experiment, phase, place, state, teacher, result)


def teaching(
    program: Program, phase: Phase, finished: dict[str, Finished], data_seed: int
) -> tuple[Variables | None, dict[str, str | None]]:
    """The teacher of a phase as its step wants it, and what a result says of it."""
    teacher = teacher_of(phase, finished)
    if teacher is None:
        return None, {"teacher_hash": None, "teacher_frozen": None}
    variables = program.ready_teacher(teacher.network, data_seed)
    freezing = program.freezing(variables)
    return variables, {
        "teacher_hash": teacher.result["hash"], "teacher_frozen": None if freezing is None else str(freezing)
    }  # fmt: skip


def first_state(
    program: Program, phase: Phase, seeds: tuple[int, int], finished: dict[str, Finished], teacher: Variables | None
) -> TrainState:
    """The state a phase begins with, of `(seed, data_seed)` and of the phase it starts from."""
    start = finished[phase.start] if phase.start else None
    state = program.fresh_state(*seeds, start and start.network, teacher)
    return carry(state, program.bound, start and start.objective, phase.name)


@contextlib.contextmanager
def recorded(places: Sequence[Path], resumed: int | None, checkpoints: Checkpoints, progress: Progress):
    """Writers of metrics into phase folders, one each; everything is closed at the end, whatever comes."""
    writers = [MetricWriter(place, resumed) if is_first() else Nowhere() for place in places]
    try:
        yield writers
    finally:
        progress.finish()
        checkpoints.close()
        for writer in writers:
            writer.close()


def conclude(
    program: Program,
    experiment: Experiment,
    phase: Phase,
    place: Path,
    state: TrainState,
    teacher: Variables | None,
    result: dict[str, Any],
) -> Finished:
    """Keeps what a phase has come to: the network it deploys, and what its objective trained if a later phase wants that."""
    network = program.whole(program.deployment.variables(state, teacher))
    return keep(network, own_variables(program, experiment, phase, state), program, place, result)


def own_variables(program: Program, experiment: Experiment, phase: Phase, state: TrainState) -> Variables | None:
    """What a phase's objective has trained, if there is something and a later phase begins with it."""
    goes_on = program.bound.modules and any(later.start == phase.name for later in experiment.phases)
    return program.whole(Variables(state.params["objective"], state.state["objective"])) if goes_on else None


def describe(
    program: Program, seed: int, data_seed: int, facts: dict[str, Any], track: dict[str, Any]
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
        "device": f"{jax.device_count()} x {device.device_kind}",
    }

"""Runs an experiment, phase after phase, in a folder; goes on where it was stopped."""

from pathlib import Path
from typing import Any

import jax

from kdjax.experiment import serialization
from kdjax.experiment.accounting import check_replicated
from kdjax.experiment.artifacts import Finished, adopt, check_all_alike, check_sources, load_phase, take
from kdjax.experiment.folder import keep_data, open_run, read_result
from kdjax.experiment.lock import locked
from kdjax.experiment.phase import train_phase
from kdjax.experiment.program import Builder
from kdjax.experiment.spec import Experiment, ExperimentError
from kdjax.experiment.teacher_outputs import check_outputs_folder
from kdjax.places import hear_once
from kdjax.training.processes import by_first
from kdjax.training.progress import Progress, Silent


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
      builder: keeps data and compiled steps between runs.
      progress: what a person sees.
      profile: write a profile of some steps of each phase into its folder.

    Returns:
      The result of every phase by name.

    Raises:
      ExperimentError: if something does not fit; nothing was written, or what was written stays valid.
      TrainingError, CheckpointError, Stopped: see `kdjax.training`.
    """
    builder, progress = builder or Builder(), progress or Silent()
    hear_once()
    problems = serialization.problems(experiment)
    if jax.process_count() > 1 and experiment.runner == "pmap":
        problems.insert(0, "Several processes run under jit or fsdp, not under pmap; set runner to jit.")
    if problems:
        raise ExperimentError(problems[0])
    # Everything is built and found before anything is written: what does not fit is said at once.
    programs = {phase.name: builder.program(experiment, phase) for phase in experiment.phases}
    check_sources(experiment, programs, folder)
    for phase in experiment.phases:
        if not (phase.weights or phase.network.trained):
            check_replicated(programs[phase.name])
    if any(phase.teacher_cache for phase in experiment.phases):
        check_outputs_folder(experiment.cache_dir)
    with locked([folder]):
        by_first(lambda: open_run(folder, experiment, resume=resume, overwrite=overwrite), ExperimentError)
        by_first(lambda: keep_data(folder, builder.dataset(experiment.data)), ExperimentError)
        check_all_alike(experiment, builder)
        finished: dict[str, Finished] = {}
        for phase in experiment.phases:
            program = programs[phase.name]
            place = folder / phase.name
            place.mkdir(exist_ok=True)
            if phase.weights:
                finished[phase.name] = adopt(program, phase, place, builder, finished)
            elif phase.network.trained:
                finished[phase.name] = take(program, phase, place, finished)
            elif read_result(place) is not None:
                finished[phase.name] = load_phase(program, place)
            else:
                finished[phase.name] = train_phase(program, experiment, place, finished, progress, profile)
        return {name: item.result for name, item in finished.items()}

"""The seeds of a method as one program: they share the batches and one pass of the teacher, and end in a folder each."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax

from kdjax.experiment.carry import carry
from kdjax.experiment.folder import open_run, read_result
from kdjax.experiment.program import Builder, Program, dispatched, open_checkpoints
from kdjax.experiment.run import Finished, adopt, describe, keep, load_phase, own_variables, teacher_of
from kdjax.experiment.spec import Experiment, ExperimentError, Phase, seeds_of
from kdjax.training.feed import scanned
from kdjax.training.processes import by_first, is_first
from kdjax.training.progress import Progress, Silent
from kdjax.training.replicas import join, replicated, take
from kdjax.training.writers import MetricWriter, Nowhere


def run_together(
    experiments: Sequence[Experiment],
    folders: Sequence[Path],
    shared: Path,
    *,
    builder: Builder | None = None,
    progress: Progress | None = None,
) -> list[dict[str, dict[str, Any]]]:
    """Runs experiments that differ in their seed alone, each phase of all of them at once; goes on where it was stopped.

    Args:
      experiments: alike but for name and seed; their `data_seed` is one.
      folders: a run folder for each.
      shared: folder for the state of all while they train.
      builder, progress: see `kdjax.experiment.run.run`.

    Returns:
      The results of each, by phase.

    Raises:
      ExperimentError: if they differ in more, or are of a kind that is not trained together.
    """
    builder, progress = builder or Builder(), progress or Silent()
    first = experiments[0]
    check(experiments)
    programs = {phase.name: builder.program(first, phase) for phase in first.phases}
    for experiment, folder in zip(experiments, folders, strict=True):
        by_first(lambda e=experiment, f=folder: open_run(f, e, resume=True), ExperimentError)
    finished: list[dict[str, Finished]] = [{} for _ in experiments]
    for phase in first.phases:
        program, places = programs[phase.name], [folder / phase.name for folder in folders]
        for place in places:
            place.mkdir(exist_ok=True)
        if phase.weights:
            ended = [adopt(program, phase, place, builder, own) for place, own in zip(places, finished, strict=True)]
        elif all(read_result(place) is not None for place in places):
            ended = [load_phase(program, place) for place in places]
        else:
            ended = train_together(program, experiments, phase, places, shared / phase.name, finished, progress)
        for own, item in zip(finished, ended, strict=True):
            own[phase.name] = item
    return [{name: item.result for name, item in own.items()} for own in finished]


def check(experiments: Sequence[Experiment]) -> None:
    """Refuses what cannot be one program."""
    first = experiments[0]
    plain = {dataclasses.replace(experiment, name="", seed=0) for experiment in experiments}
    if len(plain) > 1 or first.data_seed is None:
        raise ExperimentError("Runs together differ in their seed alone, and have one data_seed; run these apart.")
    if first.runner != "jit":
        raise ExperimentError(f"Runs together need runner=jit, this is {first.runner}; run the seeds apart.")
    for phase in first.lineage:
        if phase.keep != "last":
            raise ExperimentError(
                f"Phase {phase.name!r} keeps its best weights, which are of another step for each seed; set keep to last, or "
                "run the seeds apart."
            )


def train_together(
    program: Program,
    experiments: Sequence[Experiment],
    phase: Phase,
    places: Sequence[Path],
    shared: Path,
    finished: Sequence[dict[str, Finished]],
    progress: Progress,
) -> list[Finished]:
    """Trains one phase of all, from its last checkpoint if there is one."""
    count, data_seed = len(experiments), seeds_of(experiments[0])[1]
    seeds = [experiment.seed + phase.seed_offset for experiment in experiments]
    teacher = teacher_of(phase, finished[0])
    teacher_variables = None if teacher is None else program.ready_teacher(teacher.network, data_seed)
    freezing = program.freezing(teacher_variables)
    states = []
    for seed, own in zip(seeds, finished, strict=True):
        start = own[phase.start] if phase.start else None
        state = program.fresh_state(seed, data_seed, start and start.network, teacher_variables)
        states.append(carry(state, program.bound, start and start.objective, phase.name))
    state = jax.jit(lambda *trees: join(trees), out_shardings=program.runner.replicated)(*states)
    checkpoints = open_checkpoints(shared, phase, teacher and teacher.result["hash"])
    facts, resumed = None, checkpoints.latest()
    if resumed is not None:
        state, facts = checkpoints.restore(state)
    writers = [MetricWriter(place, resumed) if is_first() else Nowhere() for place in places]
    steps = replicated(program.one, count)

    def evaluate(state):
        own = [program.deployment.variables(take(state, i), teacher_variables) for i in range(count)]
        return [program.evaluate(student, teacher_variables) for student in own]

    loop = dataclasses.replace(
        program.loop(program.feed(data_seed, teacher_variables), teacher_variables),
        step=program.runner.compile(steps),
        steps=program.runner.compile(scanned(steps), stacked=True) if dispatched(experiments[0]) > 1 else None,
        evaluate=evaluate,
    )
    try:
        state, facts = loop.run(state, program.frozen(teacher_variables), checkpoints, writers, progress, facts)
    finally:
        progress.finish()
        checkpoints.close()
        for writer in writers:
            writer.close()
    ended = []
    shares = {name: facts[name] / count for name in ("seconds", "train_seconds", "input_seconds")}
    for i, (seed, place) in enumerate(zip(seeds, places, strict=True)):
        own = take(state, i)
        network = program.whole(program.deployment.variables(own, teacher_variables))
        result = describe(program, seed, data_seed, facts | shares, facts["tracks"][i], teacher)
        result |= {
            "teacher_frozen": freezing and str(freezing), "together": count,
            "flops_per_s": None, "peak_share": None,  # the teacher's are not each one's
        }  # fmt: skip
        ended.append(keep(network, own_variables(program, experiments[i], phase, own), program, place, result))
    return ended

"""The seeds of a method as one program: they share the batches and one pass of the teacher, and end in a folder each."""

import dataclasses
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import jax

from kdjax.experiment.artifacts import Finished, adopt, check_all_alike, load_phase
from kdjax.experiment.artifacts import take as take_network
from kdjax.experiment.folder import keep_data, open_run, read_result
from kdjax.experiment.lock import locked
from kdjax.experiment.phase import (
    conclude,
    describe,
    first_state,
    make_loop,
    newest,
    open_checkpoints,
    ordered_batches,
    phase_seeds,
    ready_teacher,
    recorded,
    train_phase,
)
from kdjax.experiment.program import Builder, Program
from kdjax.experiment.spec import Experiment, ExperimentError, Phase
from kdjax.json_files import read_json, write_json
from kdjax.training import TrainState
from kdjax.training.feed import scanned
from kdjax.training.processes import by_first, of_first
from kdjax.training.progress import Progress, Silent
from kdjax.training.replicas import Form, join, replicated, take

How = Literal["measured", "unrolled", "vmapped", "apart"]
HOW = "how.json"  # in the shared folder of a phase
TIMED_STEPS = 3


def run_together(
    experiments: Sequence[Experiment],
    folders: Sequence[Path],
    shared: Path,
    *,
    how: How = "measured",
    builder: Builder | None = None,
    progress: Progress | None = None,
) -> list[dict[str, dict[str, Any]]]:
    """Runs experiments that differ in their seed alone, each phase of all of them at once; goes on where it was stopped.

    Args:
      experiments: alike but for name and seed; their `data_seed` is one.
      folders: a run folder for each.
      shared: folder for the state of all while they train.
      how: see `kdjax.training.replicas.replicated`; "apart" one after the other, on the same data all the same; "measured"
        whichever is fastest here, found by a few steps of each and kept for when the run is gone on with.
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
    with locked([*folders, shared]):
        for experiment, folder in zip(experiments, folders, strict=True):
            by_first(lambda e=experiment, f=folder: open_run(f, e, resume=True), ExperimentError)
            by_first(lambda f=folder: keep_data(f, builder.dataset(first.data)), ExperimentError)
            check_all_alike(experiment, builder)
        finished: list[dict[str, Finished]] = [{} for _ in experiments]
        for phase in first.phases:
            program, places = programs[phase.name], [folder / phase.name for folder in folders]
            for place in places:
                place.mkdir(exist_ok=True)
            if phase.weights:
                ended = [
                    adopt(program, phase, place, builder, own) for place, own in zip(places, finished, strict=True)
                ]
            elif phase.network.trained:
                ended = [take_network(program, phase, place, own) for place, own in zip(places, finished, strict=True)]
            elif all(read_result(place) is not None for place in places):
                ended = [load_phase(program, place) for place in places]
            else:
                ended = train_together(
                    program, experiments, phase, places, shared / phase.name, finished, progress, how
                )
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
    how: How = "measured",
) -> list[Finished]:
    """Trains one phase of all, from its last checkpoint if there is one."""
    count, compiled = len(experiments), program.compiled
    seeds = [phase_seeds(experiment, phase) for experiment in experiments]
    data_seed = seeds[0][1]
    teacher, taught = ready_teacher(program, phase, finished[0], data_seed)
    states = [first_state(program, phase, own, before, teacher) for own, before in zip(seeds, finished, strict=True)]
    joined = jax.jit(lambda *trees: join(trees), out_shardings=compiled.runner.replicated)
    batches, frozen = ordered_batches(program, data_seed, teacher), program.feeding.frozen(teacher)
    if how == "measured":
        how = fastest(shared / HOW, lambda: measure(program, joined, states, frozen, batches))
    if how == "apart":
        return [
            train_phase(program, experiment, place, own, progress)
            if read_result(place) is None
            else load_phase(program, place)
            for experiment, place, own in zip(experiments, places, finished, strict=True)
        ]
    # Of these seeds in this order, whatever others were trained together here before.
    checkpoints = open_checkpoints(shared / "-".join(str(own) for own, _ in seeds), phase, taught["teacher_hash"])
    state, facts, resumed = newest(checkpoints, joined(*states))
    steps = replicated(compiled.one, count, how)

    def evaluate(state):
        own = [program.networks.deployment.variables(take(state, i), teacher) for i in range(count)]
        return [program.evaluate(student, teacher) for student in own]

    loop = dataclasses.replace(
        make_loop(program, experiments[0], batches, teacher),
        step=compiled.runner.compile(steps),
        steps=compiled.runner.compile(scanned(steps), stacked=True) if compiled.steps is not None else None,
        evaluate=evaluate,
    )
    with recorded(places, resumed, checkpoints, progress) as writers:
        state, facts = loop.run(state, frozen, checkpoints, writers, progress, facts)
    shares = {name: facts[name] / count for name in ("seconds", "train_seconds", "input_seconds")}
    unknown = {"flops_per_s": None, "peak_share": None}  # the teacher's are not each one's
    ended = []
    for i, (experiment, place) in enumerate(zip(experiments, places, strict=True)):
        result = describe(program, *seeds[i], facts | shares, facts["tracks"][i]) | taught | unknown
        result |= {"together": count, "form": how}
        ended.append(conclude(program, experiment, place, take(state, i), teacher, result))
    return ended


def measure(program: Program, joined, states: Sequence[TrainState], frozen: Any, feed: Any) -> dict[str, float]:
    """Seconds of a step of all, in each way: the shortest of a few, after one that compiles."""
    compiled, count = program.compiled, len(states)
    runner = compiled.runner
    batch = runner.place_batch(next(iter(feed.iterate(0))))

    def shortest(step, state):
        seconds = []
        for _ in range(1 + TIMED_STEPS):
            began = time.perf_counter()
            state, metrics = step(state, frozen, batch)
            jax.block_until_ready((state, metrics))
            seconds.append(time.perf_counter() - began)
        return min(seconds[1:])

    found = {
        form: shortest(runner.compile(replicated(compiled.one, count, form)), joined(*states))
        for form in get_args(Form)
    }
    first = jax.jit(lambda states: take(states, 0))(joined(*states))
    return found | {"apart": count * shortest(compiled.step, first)}


def fastest(path: Path, measure: Callable[[], dict[str, float]]) -> How:
    """The fastest way, as it was measured when the run began."""
    if not path.exists():
        seconds = measure()
        ways = list(seconds)
        found = ways[of_first(min(range(len(ways)), key=lambda i: seconds[ways[i]]))]
        path.parent.mkdir(parents=True, exist_ok=True)
        by_first(lambda: write_json(path, {"how": found, "seconds": seconds}), ExperimentError)
        return found
    return read_json(path, ExperimentError, "delete it: the ways are measured again")["how"]

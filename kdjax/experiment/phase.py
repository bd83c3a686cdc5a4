"""One phase trained in its folder, from its program to its result."""

import contextlib
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax

from kdjax.data import Pipeline
from kdjax.data.outputs import outputs_hash
from kdjax.experiment.accounting import account
from kdjax.experiment.artifacts import Finished, keep, teacher_of
from kdjax.experiment.compiled import steps_per_dispatch
from kdjax.experiment.program import Program
from kdjax.experiment.spec import Experiment, ExperimentError, Phase, seeds_of
from kdjax.experiment.teacher_outputs import TeacherOutputs
from kdjax.experiment.warm_start import warm_start
from kdjax.objectives import Objective
from kdjax.training import TrainState, Variables, count_parameters
from kdjax.training.checkpoints import Checkpoints, Damaged, best_step
from kdjax.training.finite import all_finite, missing_numbers
from kdjax.training.loop import Loop, TrainingError
from kdjax.training.processes import is_first, same_in_all, say
from kdjax.training.progress import Progress
from kdjax.training.writers import MetricWriter, Nowhere


def train_phase(
    program: Program, experiment: Experiment, place: Path, finished: dict[str, Finished], progress: Progress,
    profile: bool = False,
) -> Finished:  # fmt: skip
    """Trains a phase of an experiment in the folder `place`, from its last checkpoint if there is one.

    Args:
      program: of the phase; the experiment may differ from its own in what `Builder.program` leaves out.
      place: made by the caller.
      finished: the phases before.
      progress: what a person sees.
      profile: write a profile of some steps into the folder.
    """
    phase = experiment.phase(program.phase.name)
    seed, data_seed = phase_seeds(experiment, phase)
    teacher, taught = ready_teacher(program, phase, finished, data_seed)
    checkpoints = open_checkpoints(place, phase, taught["teacher_hash"])
    # To be read into, shapes do: a state made for that would need the memory of a second one.
    there = checkpoints.latest() is not None
    state = (
        program.compiled.state_template()
        if there
        else first_state(program, phase, (seed, data_seed), finished, teacher)
    )
    state, facts, resumed = newest(checkpoints, state, keeps_best=phase.keep == "best")
    batches = ordered_batches(program, data_seed, teacher)
    loop = make_loop(program, experiment, batches, teacher, place / "profile" if profile else None)
    with recorded([place], resumed, checkpoints, progress) as writers:
        frozen = program.feeding.frozen(teacher)
        state, facts = loop.run(state, frozen, checkpoints, writers, progress, facts)
        (track,) = facts["tracks"]
        state = chosen(program, place, state, track, checkpoints)
    result = describe(program, seed, data_seed, facts, track) | taught
    result["teacher_cache"] = batches.facts() if isinstance(batches, TeacherOutputs) else None
    return conclude(program, experiment, place, state, teacher, result)


def phase_seeds(experiment: Experiment, phase: Phase) -> tuple[int, int]:
    """`(seed, data_seed)` of a phase."""
    seed, data_seed = seeds_of(experiment)
    return seed + phase.seed_offset, data_seed


def ready_teacher(
    program: Program, phase: Phase, finished: dict[str, Finished], data_seed: int
) -> tuple[Variables | None, dict[str, str | None]]:
    """The variables of a phase's teacher, with its mean gradient over the data if the objective corrects by that, and what a
    result says of it."""
    teacher = teacher_of(phase, finished)
    if teacher is None:
        outputs = program.networks.outputs
        said = None if outputs is None else outputs_hash(outputs)
        if not same_in_all(str(said)):
            raise ExperimentError(
                f"The processes of this run read different outputs from {phase.teacher_outputs}; name a file that all see."
            )
        return None, {"teacher_hash": said, "teacher_frozen": None}
    variables, networks, runner = teacher.network, program.networks, program.compiled.runner
    if runner.fsdp:  # of a phase of this run it is whole on every device
        variables = jax.jit(lambda tree: tree, out_shardings=runner.placement(variables))(variables)
    if networks.objective.corrects_over_data:
        one_pass = program.feeding.pipeline(data_seed, inputs=True).iterate(0, program.compiled.clock.steps_per_pass)
        variables = program.compiled.with_mean_gradient(variables, data_seed, one_pass)
    unfit(program, variables)
    try:
        freezing = networks.freezer and networks.freezing(variables, program.feeding.sample())
    except ValueError as error:
        raise ExperimentError(f"Phase {phase.name!r}, teacher_precision: {error}") from error
    return variables, {
        "teacher_hash": teacher.result["hash"], "teacher_frozen": None if freezing is None else str(freezing)
    }  # fmt: skip


def unfit(program: Program, teacher: Variables) -> None:
    """Raises ExperimentError where a part of the objective has no use for what the teacher says, as its weights tell."""
    asking = [
        part for part in program.networks.objective.parts.values()
        if type(part).check_teacher is not Objective.check_teacher
    ]  # fmt: skip
    if not asking or len(program.phase.teachers) > 1:
        return
    said = _teacher_of(program)(program.compiled.whole(teacher), program.feeding.sample())
    for sentence in filter(None, (part.check_teacher(said) for part in asking)):
        raise ExperimentError(f"Phase {program.phase.name!r}: {sentence}")


@functools.lru_cache(maxsize=1)  # compiled once for the seeds of a method
def _teacher_of(program: Program) -> Any:
    network = program.networks.teacher
    return jax.jit(lambda v, x: network.apply(v.params, v.state, x, train=False)[0])


def first_state(
    program: Program, phase: Phase, seeds: tuple[int, int], finished: dict[str, Finished], teacher: Variables | None
) -> TrainState:
    """The state a phase begins with, of `(seed, data_seed)` and of the phase it starts from."""
    start = finished[phase.start] if phase.start else None
    fresh = program.compiled.fresh_state(*seeds, start and start.network, teacher)
    state = warm_start(fresh, program.networks.objective, start and start.objective, phase.name)
    if state is fresh:
        return state
    there = jax.tree.map(lambda x: x.sharding, program.compiled.state_template())
    return jax.jit(lambda state: state, out_shardings=there)(state)  # what the phase before left may lie elsewhere


def open_checkpoints(folder: Path, phase: Phase, teacher_hash: str | None) -> Checkpoints:
    return Checkpoints(folder / "checkpoints", {"phase": phase.name, "teacher": teacher_hash})


def newest(
    checkpoints: Checkpoints, state: TrainState, *, keeps_best: bool = False
) -> tuple[TrainState, dict[str, Any] | None, int | None]:
    """The newest sound checkpoint's state and facts, and its step; else the given state, and None."""
    if checkpoints.latest() is None:
        return state, None, None
    state, facts = checkpoints.restore(state, keeps_best=keeps_best)
    if not keeps_best:
        try:
            checkpoints.check_best(best_step(facts))
        except Damaged as error:
            say(f"{error}; training goes on, since the phase keeps its last state")
    resumed = checkpoints.latest()
    checkpoints.forget_best_after(resumed)
    return state, facts, resumed


def ordered_batches(program: Program, data_seed: int, teacher: Variables | None) -> Pipeline | TeacherOutputs:
    """The phase's batches in the order of a data seed, with what the teacher says where that is kept."""
    teacher = program.compiled.whole(teacher) if program.networks.cached else None
    return program.feeding.batches(data_seed, program.compiled.clock, teacher)


def make_loop(
    program: Program, experiment: Experiment, batches: Any, teacher: Variables | None, profile: Path | None = None
) -> Loop:
    """The phase's loop over its batches, as often interrupted as the experiment says."""
    compiled = program.compiled
    clock = compiled.clock

    def steps(duration) -> int:
        return max(1, duration.steps(clock.steps_per_epoch, clock.batch_size, clock.total_steps))

    def evaluate(state: TrainState) -> list[dict[str, dict[str, float]]]:
        return [program.evaluate(program.networks.deployment.variables(state, teacher), teacher)]

    return Loop(
        name=program.phase.name,
        step=compiled.step,
        steps=compiled.steps,
        steps_per_dispatch=steps_per_dispatch(experiment, compiled.runner),
        evaluate=evaluate,
        metric=experiment.data.metric,
        batches=batches.iterate,
        runner=compiled.runner,
        total_steps=clock.total_steps,
        log_every=experiment.log_every,
        evaluate_every=steps(experiment.evaluate_every),
        checkpoint_every=steps(experiment.checkpoint_every),
        batch_size=clock.batch_size,
        noun=experiment.data.noun,
        on_nan=experiment.on_nan,
        profile=profile,
    )


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


def chosen(
    program: Program, place: Path, state: TrainState, track: dict[str, Any], checkpoints: Checkpoints
) -> TrainState:
    """The state whose weights are the phase's result: the last, or the best, as the phase says."""
    total = program.compiled.clock.total_steps
    if track["last"] is None or track["last"]["step"] != total:
        raise ExperimentError(f"{place} was never evaluated at its last step; run it again with --overwrite.")
    if program.phase.keep == "last" or track["best"]["step"] == total:
        return state
    state, _ = checkpoints.restore(state, best=True)
    if int(state.step) != track["best"]["step"]:
        raise ExperimentError(
            f"The best state of {place}, of step {track['best']['step']}, is gone (there is one of step "
            f"{int(state.step)}); run it again with --overwrite, or set keep=last."
        )
    return state


def describe(
    program: Program, seed: int, data_seed: int, facts: dict[str, Any], track: dict[str, Any]
) -> dict[str, Any]:
    """What a phase came to, as data."""
    network, clock = program.networks.deployment.network, program.compiled.clock
    params, _ = jax.eval_shape(network.init, jax.random.key(0))
    steps, seconds = facts["timed_steps"], facts["train_seconds"]
    device = jax.devices()[0]
    unusual = {name: track[name] for name in ("skipped", "diverged") if track.get(name)}
    unusual |= {"restored": facts["restored"]} if facts.get("restored") else {}
    return {
        "phase": program.phase.name,
        "network": network.name,
        "parameters": count_parameters(params),
        "extra_parameters": program.compiled.extra_parameters(),
        "seed": seed,
        "data_seed": data_seed,
        "steps": clock.total_steps,
        "examples_visited": len(program.feeding.rows),
        "last": track["last"],
        "best": track["best"],
        "kept": program.phase.keep,
        "seconds": facts["seconds"],
        "train_seconds": seconds,
        **account(program, steps, seconds, facts["input_seconds"]),
        "examples_per_s": steps * clock.batch_size / seconds if seconds else None,
        "device": f"{jax.device_count()} x {device.device_kind}",
        **unusual,
    }


def conclude(
    program: Program,
    experiment: Experiment,
    place: Path,
    state: TrainState,
    teacher: Variables | None,
    result: dict[str, Any],
) -> Finished:
    """Keeps what a phase has come to: the network it deploys, and what its objective trained if a later phase wants that.

    Raises:
      TrainingError: the network, or a number of its evaluation, is not finite; nothing is kept.
    """
    compiled, objective = program.compiled, None
    if program.networks.objective.modules and any(later.start == program.phase.name for later in experiment.phases):
        objective = compiled.whole(Variables(state.params["objective"], state.state["objective"]))
    network = compiled.whole(program.networks.deployment.variables(state, teacher))
    bad = missing_numbers(result["last"]["student"], "last.student")
    bad += [] if jax.jit(all_finite)((network.params, network.state)) else ["the network"]
    if bad:
        raise TrainingError(
            f"Phase {program.phase.name!r} ended with what is not finite ({', '.join(bad)}), and nothing of it is kept but "
            "its checkpoints; start anew with --overwrite and a lower learning rate."
        )
    return keep(network, objective, program, place, result)

"""Phases that have ended: kept, found again, taken over from other runs, evaluated, and used."""

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import jax

from kdjax.data.errors import note
from kdjax.data.outputs import outputs_hash
from kdjax.experiment import serialization
from kdjax.experiment.folder import (
    COMPARISON,
    EXPERIMENT,
    NETWORK,
    OBJECTIVE,
    OF_MACHINE,
    RESULT,
    check_data,
    network_folder,
    read_network,
    read_result,
)
from kdjax.experiment.program import Builder, Program
from kdjax.experiment.spec import Experiment, ExperimentError, Phase
from kdjax.json_files import write_json
from kdjax.models import join_members
from kdjax.tasks.facts import facts_of
from kdjax.tasks.given import GivenNetwork
from kdjax.training import Variables, count_parameters
from kdjax.training.checkpoints import load_network, on_host, save_network
from kdjax.training.processes import by_first, same_in_all
from kdjax.training.state import content_hash
from kdjax.training.writers import METRICS, read_metrics


@dataclasses.dataclass
class Finished:
    """A phase that has ended: its network, what it came to, and what its objective trained (None for nothing)."""

    network: Variables
    result: dict[str, Any]
    objective: Variables | None = None


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
    """Takes a finished network as a phase's result: it stays where it is, and is evaluated on this experiment's data."""
    source = network_folder(phase, place).absolute()
    if (source, program) not in builder.networks:
        network, facts = stored_network(program, source)
        if (source.parent / EXPERIMENT).exists():
            theirs = serialization.load(source.parent / EXPERIMENT)
            seen = theirs.seen_by(theirs.phase(facts["phase"])) if "phase" in facts else theirs
            otherwise = program.experiment.data.unlike(seen.data, phase.network)
            if otherwise:
                note(f"the network in {source} was trained on other inputs than it sees here: {otherwise}")
        teaching = teacher_of(phase, finished)
        teacher = None if teaching is None else teaching.network
        before = read_result(source) or {}
        result = {name: before.get(name) for name in ("steps", "seconds", "examples_per_s", "seed", "data_seed")} | {
            "phase": phase.name,
            "network": program.networks.deployment.network.name,
            "parameters": count_parameters(network.params),
            "last": {"step": before.get("steps", 0), **program.evaluate(network, teacher)},
            "hash": facts["hash"],
        }
        builder.networks[source, program] = Finished(network, result)
    # What was named from here on is found from here on, so that runs that belong together can be moved.
    there = str(source) if os.path.isabs(phase.weights) else os.path.relpath(source, place.absolute())
    found = builder.networks[source, program]
    found = Finished(found.network, found.result | {"from": there})
    record(place, found, f"The network in {source}")
    return found


def take(program: Program, phase: Phase, place: Path, finished: dict[str, Finished]) -> Finished:
    """Takes a network that has its weights already, one that was handed over or of a folder, as a phase's result, and evaluates
    it."""
    network, variables = program.networks.student, has_already(program)
    teaching = teacher_of(phase, finished)
    teacher = None if teaching is None else teaching.network
    result = {
        "phase": phase.name,
        "network": network.name,
        "parameters": count_parameters(variables.params),
        "last": {"step": 0, **program.evaluate(variables, teacher)},
        "hash": content_hash(*on_host((variables.params, variables.state))),
        "data": facts_of(program.dataset),
    }
    found = Finished(variables, result)
    how = "was handed over" if isinstance(phase.network, GivenNetwork) else "is taken as it is"
    record(place, found, f"The network {network.name!r} that {how}")
    return found


def has_already(program: Program) -> Variables:
    """The variables of a network that brings them."""
    return program.compiled.runner.place(Variables(*program.networks.student.init(jax.random.key(0))))


def record(place: Path, found: Finished, what: str) -> None:
    """Writes the result of a network that was not trained here; one that is not the same as before is refused."""
    check_same_network(place, found.result["hash"], what)
    place.mkdir(parents=True, exist_ok=True)
    by_first(lambda: write_json(place / RESULT, found.result), ExperimentError)


def check_same_network(place: Path, now: str, what: str) -> None:
    """Refuses a network that was not trained here, and is not the one of which the phase's result is."""
    before = read_result(place)
    if before is not None and before["hash"] != now:
        raise ExperimentError(
            f"{what} is not the one this run began with (hash {now}, was {before['hash']}); put that one back, or start anew "
            "with --overwrite."
        )


def keep(
    network: Variables, objective: Variables | None, program: Program, place: Path, result: dict[str, Any]
) -> Finished:
    """Saves a network, what its objective trained, and its result; the result last: it says that the phase has ended."""
    info = program.dataset.info
    known = program.phase.network.known_classes(info.class_names)
    facts = {
        "phase": program.phase.name,
        "network": program.networks.deployment.network.name,
        "num_classes": info.num_classes if known == info.class_names else len(known),
        "class_names": list(known),
        "data": facts_of(program.dataset),
    }
    if objective is not None:
        save_network(place / OBJECTIVE, objective, facts)
    result["hash"] = save_network(place, network, facts)
    by_first(lambda: write_json(place / RESULT, result), ExperimentError)
    return Finished(network, result, objective)


def load_phase(program: Program, place: Path) -> Finished:
    """A phase that has ended, from its folder."""
    read_metrics(place / METRICS, ended=True)  # refuses what is damaged
    network, _ = stored_network(program, place)
    objective = None
    if (place / OBJECTIVE).exists():
        objective, _ = load_network(place / OBJECTIVE, program.compiled.objective_template())
    result = read_result(place)
    lacking = [name for name in ("network", "parameters", "last") if name not in result]
    if lacking:
        raise ExperimentError(f"{place / RESULT} is damaged: it has no {lacking[0]}; delete it and say --resume.")
    outputs = program.networks.outputs
    if outputs is not None and result.get("teacher_hash") not in (None, outputs_hash(outputs)):
        raise ExperimentError(
            f"{program.phase.teacher_outputs} is not what {place} was trained with (hash {outputs_hash(outputs)}, was "
            f"{result['teacher_hash']}); put that file back, or use another folder with --run."
        )
    return Finished(network, result, objective)


def check_sources(experiment: Experiment, programs: dict[str, Program], folder: Path) -> None:
    """Finds every network that a run in `folder` takes from elsewhere, before anything is written.

    Raises:
      ExperimentError: one is not there, or has other classes.
    """
    for phase in experiment.phases:
        if phase.weights:
            check_classes(network_folder(phase, folder / phase.name), programs[phase.name])


def stored_network(program: Program, folder: Path) -> tuple[Variables, dict[str, Any]]:
    """A finished network and its facts, checked against what the program expects."""
    check_classes(folder, program)
    return load_network(folder, program.compiled.network_template())


def check_classes(folder: Path, program: Program) -> None:
    """Refuses a network for another number of classes in words, rather than by the shape of its last layer, and one that knows
    the same classes by other numbers."""
    facts = read_network(folder) if (folder / NETWORK).exists() else {}
    info = program.dataset.info
    ours = program.phase.network.known_classes(info.class_names)
    there, here = facts.get("num_classes"), info.num_classes if ours == info.class_names else len(ours)
    if there is not None and there != here:
        raise ExperimentError(
            f"The network in {folder} has {there} classes, the data set {program.dataset.train.name} has {here}; "
            "use a network and a data set with the same classes, or say by network.classes which ones it knows."
        )
    theirs = tuple(facts.get("class_names", ()))
    if theirs != ours and sorted(theirs) == sorted(ours):
        number = next(i for i, name in enumerate(ours) if theirs[i] != name)
        raise ExperimentError(
            f"The network in {folder} knows the classes of {program.dataset.train.name} in another order: number {number} is "
            f"{theirs[number]!r} to it and {ours[number]!r} in the data; give the classes the same order."
        )


def saved_experiment(folder: Path) -> Experiment:
    """What a run folder holds a run of.

    Raises:
      ExperimentError: it is no run, or a comparison.
    """
    saved = folder / EXPERIMENT
    if not saved.exists():
        raise ExperimentError(
            f"{folder} is not a run: it has no {EXPERIMENT}; give the folder that kdjax distill wrote."
        )
    if (folder / COMPARISON).exists():
        raise ExperimentError(f"{folder} is a comparison; name one of its runs, such as {folder}/kd/seed0.")
    return serialization.load(saved)


def evaluate_run(folder: Path, data_dir: str | None = None) -> dict[str, dict[str, Any]]:
    """Metrics of every finished network of a run, by phase; each beside its teacher."""
    experiment = saved_experiment(folder)
    builder = Builder(data_dir)
    check_data(folder, builder.dataset(experiment.data))
    networks: dict[str, Variables] = {}
    results = {}
    for phase in experiment.phases:
        place = folder / phase.name
        if not phase.weights and read_result(place) is None:
            continue
        program = builder.program(experiment, phase)
        if phase.network.trained and not phase.weights:
            networks[phase.name] = has_already(program)
        else:
            source = network_folder(phase, place)
            networks[phase.name], facts = stored_network(program, source)
            if phase.weights:
                check_same_network(place, facts["hash"], f"The network in {source}")
        for name in phase.teachers:
            if name not in networks:
                raise ExperimentError(
                    f"{folder / name} has no network that has ended, and {phase.name!r} is evaluated beside it; copy the "
                    "whole run."
                )
        together = join_networks([networks[name] for name in phase.teachers])
        means = program.evaluate(networks[phase.name], together)["student"]
        results[phase.name] = means | {
            "examples": f"{len(program.dataset.held_index):,} {program.dataset.evaluated_on}"
        }
    if not results:
        raise ExperimentError(f"No phase of {folder} has finished; go on with it by --resume.")
    return results


def check_all_alike(experiment: Experiment, builder: Builder) -> None:
    """Refuses to train where the processes of a run were started otherwise, or read other data: their parameters would drift
    apart.

    Raises:
      ExperimentError: they were, or do.
    """
    if jax.process_count() == 1:
        return
    asked = {name: value for name, value in serialization.to_data(experiment).items() if name not in OF_MACHINE}
    if not same_in_all(json.dumps(asked, sort_keys=True)):
        raise ExperimentError(
            "The processes of this run were started with different configurations; start all by one line."
        )
    if not same_in_all(json.dumps(builder.dataset(experiment.data).fingerprints, sort_keys=True)):
        raise ExperimentError(
            f"The processes of this run read different data under the name {experiment.data.name!r}; give all hosts the "
            "same files."
        )

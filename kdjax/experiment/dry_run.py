"""What an experiment would do, without doing it: shapes, sizes, costs, and what is wrong."""

import dataclasses
from pathlib import Path
from typing import Any

import jax

from kdjax.data import DataError
from kdjax.experiment import serialization
from kdjax.experiment.accounting import check_replicated, costs, readable, size, step_arguments
from kdjax.experiment.networks import (
    Networks,
    make_network,
    make_teacher,
    network_inputs,
    stored_outputs,
    teacher_shapes,
)
from kdjax.experiment.program import Builder, Program
from kdjax.experiment.spec import Experiment, ExperimentError, Phase
from kdjax.models import output_shapes
from kdjax.objectives import check
from kdjax.objectives.catalogue import written
from kdjax.tasks.dataset import NOT_HERE
from kdjax.terminal import visible
from kdjax.training import count_parameters
from kdjax.types import Tree


@dataclasses.dataclass
class PhaseReport:
    """What the dry run found about a phase."""

    phase: Phase
    shapes: list[tuple[str, str, str]]  # (what, student's shape, teacher's shape)
    parameters: dict[str, int]
    trained: list[tuple[str, str]]  # (module of an objective, names and shapes of its parameters)
    numbers: dict[str, str]
    problems: list[str]


def inspect_experiment(
    experiment: Experiment, builder: Builder | None = None, described: str = ""
) -> list[PhaseReport]:
    """A report a phase. Everything that is wrong is collected instead of raised.

    Args:
      experiment: what to look at.
      builder: builds its programs, for its devices.
      described: name of the slice these are, where they are not here: the step of the last phase is then compiled for them.
    """
    builder = builder or Builder()
    problems = serialization.problems(experiment)
    try:
        builder.dataset(experiment.data, stand_in=True)
    except (DataError, ValueError) as error:
        first, *rest = experiment.phases
        return [
            PhaseReport(first, [], {}, [], {}, [*problems, str(error)]),
            *(PhaseReport(phase, [], {}, [], {}, []) for phase in rest),
        ]
    reports = []
    for phase in experiment.phases:
        report = PhaseReport(phase, [], {}, [], {}, list(problems))
        problems = []
        reports.append(report)
        try:
            seen = experiment.seen_by(phase)
            dataset = builder.dataset(seen.data, stand_in=True)
            inputs = network_inputs(seen, dataset)
            student = make_network(seen.data, seen.phase(phase.name).network, dataset)
            teacher = make_teacher(seen, phase, dataset)
            outputs = stored_outputs(seen.data, phase, dataset)
        except (ValueError, ExperimentError, DataError) as error:
            report.problems.append(str(error))
            continue
        student_output = output_shapes(student, inputs)
        teacher_output = teacher_shapes(teacher, outputs, inputs)
        report.shapes = shape_table(student_output, teacher_output)
        report.problems += check(phase.objective, student_output, teacher_output, dataset.info)
        visited = dataset.visited(phase.taught, phase.labels)
        if dataset.description.endswith(NOT_HERE):
            report.numbers["data"] = dataset.description
        report.numbers["examples visited"] = f"{len(visited):,} of {len(dataset.train_index):,}"
        known = int(dataset.usable(phase.labels)[visited].sum())
        if known < len(visited) and any("labels" in part.reads for part in phase.objective.parts):
            size = experiment.data.batch_size
            report.numbers["labels"] = (
                f"of {known:,} of them, {size * known / len(visited):.1f} of a batch of {size}, over which their loss is a mean"
            )
        if report.problems:
            continue
        try:
            program = builder.program(experiment, phase)
            if not (phase.weights or phase.network.trained):
                check_replicated(program)
        except ExperimentError as error:
            report.problems.append(str(error))
            continue
        measure(program, report, described)
    return reports


def measure(program: Program, report: PhaseReport, described: str = "") -> None:
    """Parameter counts, FLOPs by part, and memory of one step, as the compiler sees them."""
    compiled, (state, frozen, batch) = program.compiled, step_arguments(program)
    teacher = compiled.teacher_template()
    report.parameters["student"] = count_parameters(state.params["student"])
    if teacher is not None:
        report.parameters["teacher"] = count_parameters(
            jax.eval_shape(program.networks.teacher.init, jax.random.key(0))[0]
        )
    report.parameters["trained beside it"] = compiled.extra_parameters()
    report.trained = module_table(state.params["objective"])
    report.numbers["steps"] = f"{compiled.clock.total_steps:,} of {program.experiment.data.batch_size} examples"
    report.numbers |= of_large_vocabulary(program.networks)
    if described:
        if program.phase == program.experiment.student:
            measure_ahead(program, report, described)
        return
    cost = costs(program)
    if cost.step:
        report.numbers["FLOPs a step"] = f"{cost.step:.3g}"
        report.numbers["of them teacher"] = f"{cost.teacher:.3g} ({100 * cost.teacher_share:.0f} %)"
        report.numbers["of them student"] = f"{cost.step - cost.teacher:.3g} ({100 * (1 - cost.teacher_share):.0f} %)"
    held = {
        "state": size(state),
        "teacher": size(teacher),
        "inputs on the devices": size(frozen) - size(teacher),
        "batch": size(batch),
    }
    memory = (
        compiled.step.lower(state, frozen, batch).compile().memory_analysis() if not compiled.runner.mapped else None
    )
    if memory is not None:
        held["temporaries"] = memory.temp_size_in_bytes
    report.numbers["memory of a step"] = ", ".join(f"{name} {readable(n)}" for name, n in held.items() if n)


def of_large_vocabulary(networks: Networks) -> dict[str, str]:
    """How the step makes logits of tokens, where there are many kinds."""
    if networks.in_chunks:
        return {"logits": "of a few tokens at a time, by fused_linear_kd, since the vocabulary is large"}
    return {"logits": f"whole, though the vocabulary is large: {networks.whole}"} if networks.whole else {}


def measure_ahead(program: Program, report: PhaseReport, described: str) -> None:
    """The same for a slice that is not here, as far as its compiler says it."""
    from kdjax.experiment.ahead.compiling import compile_ahead
    from kdjax.experiment.ahead.showing import in_short

    try:
        ahead = compile_ahead(program)
    except ExperimentError as error:
        report.problems.append(str(error))
        return
    report.numbers["compiled for"] = f"{described}, {ahead.reading.devices} × {ahead.kind}, which is not here"
    report.numbers |= in_short(ahead)
    report.problems += ahead.faults


def shape_table(student: Any, teacher: Any) -> list[tuple[str, str, str]]:
    """Rows `(what, student's shape, teacher's shape)` of all that the networks give."""

    def rows(output):
        """By names as Python writes them: "logits", "features[0]", "taps['stage3']"."""
        leaves = jax.tree_util.tree_leaves_with_path(output)
        return {jax.tree_util.keystr(path).removeprefix("."): leaf.shape for path, leaf in leaves}

    first, second = rows(student), rows(teacher)
    names = [*first, *(name for name in second if name not in first)]
    return [(name, times(first.get(name)), times(second.get(name))) for name in names]


def module_table(params: Tree) -> list[tuple[str, str]]:
    """Rows `(module, its parameters with their shapes)` of what objectives train: projectors, heads, temperatures."""
    modules: dict[str, list[str]] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        *where, name = (str(getattr(key, "key", key)) for key in path)
        modules.setdefault(".".join(where), []).append(f"{name} {times(leaf.shape) or 'a number'}")
    return [(module, ", ".join(leaves)) for module, leaves in modules.items()]


def times(shape: tuple[int, ...] | None) -> str:
    return "–" if shape is None else "×".join(map(str, shape))


def show(reports: list[PhaseReport], console: Any) -> int:
    """Prints the reports; returns the number of problems."""
    from rich.table import Table

    for report in reports:
        phase = report.phase
        taught = f", taught by {phase.teacher}" if phase.teacher else ""
        console.rule(visible(f"{phase.name}: {phase.network.name}{taught}"))
        if phase.weights:
            console.print(f"weights are taken from {Path(phase.weights)}")
        elif phase.network.trained:
            console.print("it is taken as it is, and not trained")
        console.print(f"objective: {written(phase.objective)}", highlight=False)
        if report.shapes:
            table = Table("output", "student", "teacher", box=None, pad_edge=False)
            for row in report.shapes:
                table.add_row(*row)
            console.print(table)
        for name, count in report.parameters.items():
            console.print(f"{name} parameters: {count:,}")
        for module, text in report.trained:
            console.print(f"  {module}: {text}", highlight=False)
        for name, text in report.numbers.items():
            console.print(f"{name}: {text}", highlight=False)
        for problem in report.problems:
            console.print(f"wrong: {problem}", style="red")
    count = sum(len(report.problems) for report in reports)
    said = (f"{count} problem(s).", "bold red") if count else ("Nothing is wrong.", "bold green")
    console.print(said[0], style=said[1])
    return count

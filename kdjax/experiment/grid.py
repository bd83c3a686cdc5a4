"""Settings of a method tried on examples held out of the training split; the best one alone sees the test examples."""

import ast
import dataclasses
import itertools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from kdjax.experiment.compare import BASELINE, check_alike, compare
from kdjax.experiment.folder import COMPARISON, check_place
from kdjax.experiment.lock import locked
from kdjax.experiment.program import Builder
from kdjax.experiment.spec import Experiment, ExperimentError
from kdjax.json_files import read_json, write_json
from kdjax.objectives import Objective, Sum, part_names
from kdjax.schedules import Duration
from kdjax.tasks import Task
from kdjax.training.processes import by_first
from kdjax.training.progress import Progress

GRID, TUNED, TESTED = "grid.json", "validation", "test"


class Axis(NamedTuple):
    """A setting of the student's objective and what is tried: `("kd.temperature", (1.0, 2.0, 4.0))`."""

    path: str
    values: tuple[Any, ...]


def grid(
    experiment: Experiment,
    method: str,
    axes: Sequence[Axis],
    seeds: Sequence[int],
    folder: Path,
    *,
    baseline: Experiment | None = None,
    resume: bool = False,
    overwrite: bool = False,
    builder: Builder | None = None,
    progress: Progress | None = None,
    announce: Callable[[str], None] = lambda line: None,
    profile: bool = False,
) -> dict[str, Any]:
    """Tries every combination, chooses by the mean over seeds on validation examples, and trains the choice for the test.

    Args:
      experiment: whose student's objective is varied; its task must hold validation examples out.
      method: what its objective is called.
      axes: what is varied.
      seeds: each combination is trained once with each.
      folder: of all: `validation/`, a comparison of the combinations; `test/`, one of the choice and the baseline.
      baseline: the same experiment without a teacher, to compare the choice with; None for none.
      resume, overwrite, builder, progress, announce, profile: as in `kdjax.experiment.compare.compare`.

    Returns:
      The grid as data, also written to grid.json: `axes`, `points` with their settings, `chosen`, `edges` (settings whose
      choice is the smallest or largest tried), and both comparisons.

    Raises:
      ExperimentError: something does not fit.
      TrainingError: no combination could be trained, or the choice could not.
    """
    builder = builder or Builder()
    check_place(folder)
    try:
        task = experiment.data.tuned()
    except ValueError as error:
        raise ExperimentError(str(error)) from error
    if task == experiment.data:
        raise ExperimentError(
            "The config evaluates on the examples that settings are chosen by; evaluate it on the test examples."
        )
    axes = [Axis(full_path(experiment.student.objective, axis.path), axis.values) for axis in axes]
    _check(axes)
    points = dict(combinations(dataclasses.replace(experiment, data=task), axes))
    check_alike({name: one for name, (one, _) in points.items()})
    if not (resume or overwrite) and any((folder / name).exists() for name in (GRID, TUNED, TESTED)):
        raise ExperimentError(
            f"{folder} holds a grid; say --resume to go on with it, --overwrite to delete it, or --run for another folder."
        )
    common = {
        "overwrite": overwrite,
        "builder": builder,
        "progress": progress,
        "announce": announce,
        "profile": profile,
    }
    with locked([folder]):
        again = lambda place: (folder / place / COMPARISON).exists() and not overwrite
        tuned = compare(
            {n: one for n, (one, _) in points.items()}, seeds, folder / TUNED, resume=again(TUNED), **common
        )
        chosen = best(tuned, task)
        announce(f"chosen on {tuned['data']['evaluated']:,} validation {task.noun}: {chosen}")
        settings = points[chosen][1]
        if not overwrite:
            by_first(lambda: set_aside(folder, chosen, announce), ExperimentError)
        entries = {BASELINE: baseline} if baseline is not None and method != BASELINE else {}
        entries[method] = with_settings(experiment, settings)
        tested = compare(
            {name: _taught(one) for name, one in entries.items()},
            seeds,
            folder / TESTED,
            resume=again(TESTED),
            **common,
        )
        found = {
            "method": method, "axes": [{"setting": a.path, "values": list(a.values)} for a in axes],
            "points": {name: settings for name, (_, settings) in points.items()}, "chosen": chosen,
            "edges": edges(settings, axes), TUNED: tuned, TESTED: tested,
        }  # fmt: skip
        by_first(lambda: write_json(folder / GRID, found), ExperimentError)
        return found


def set_aside(folder: Path, chosen: str, announce: Callable[[str], None]) -> None:
    """Moves the test runs of another choice out of the way, that of a grid which was smaller."""
    if not (folder / GRID).exists():
        return
    before = read_json(folder / GRID, ExperimentError, "delete it: the report is made anew").get("chosen")
    if before in (None, chosen) or not (folder / TESTED).exists():
        return
    number = next(i for i in itertools.count(1) if not (folder / f"{TESTED}-before{i}").exists())
    (folder / TESTED).rename(folder / f"{TESTED}-before{number}")
    announce(f"the choice was {before} before, whose test runs are now in {TESTED}-before{number}: the test examples were looked "
             "at more than once")  # fmt: skip


def axes_of(words: Sequence[str]) -> list[Axis]:
    """Axes from a command line's words, such as "kd.temperature=1,2,4".

    Raises:
      ExperimentError: one says no values.
    """
    found = []
    for word in words:
        path, _, values = word.partition("=")
        if not path or not values:
            raise ExperimentError(
                f"--over {word!r} says no values; write a setting and what to try, kd.temperature=1,2,4."
            )
        found.append(Axis(path.replace("-", "_"), tuple(map(_value, values.split(",")))))
    return found


def _value(text: str) -> Any:
    try:
        return ast.literal_eval(text.strip())
    except (ValueError, SyntaxError):
        return text.strip()


def _check(axes: Sequence[Axis]) -> None:
    if not axes:
        raise ExperimentError("A grid is over something; say --over kd.temperature=1,2,4.")
    for axis in axes:
        if len(set(axis.values)) != len(axis.values) or [a.path for a in axes].count(axis.path) > 1:
            raise ExperimentError(
                f"{axis.path} is tried at {', '.join(map(str, axis.values))}; give each setting and value once."
            )


def full_path(objective: Objective, path: str) -> str:
    """A setting of an objective by its full name, PART.FIELD, from that or from a field that one part alone has.

    Raises:
      ExperimentError: there is none, or several parts have it.
    """
    there = [name for name, _ in fields_of(objective)]
    found = [name for name in there if name == path or name.rpartition(".")[2] == path]
    exact = [name for name in found if name == path] or found
    if len(exact) == 1:
        return exact[0]
    if found:
        raise ExperimentError(f"Several parts of the objective have {path!r}; say one of {', '.join(found)}.")
    raise ExperimentError(f"The objective has no setting {path!r}; it has {', '.join(there)}.")


def fields_of(objective: Objective) -> Iterator[tuple[str, Any]]:
    """`(path, value)` of every plain setting of an objective's parts, those of what they hold included."""

    def walk(prefix: str, value: Any) -> Iterator[tuple[str, Any]]:
        for field in dataclasses.fields(value):
            item = getattr(value, field.name)
            path = f"{prefix}.{field.name}"
            if isinstance(item, Objective):
                yield from walk(path, item)
            elif not isinstance(item, Duration):
                yield path, item

    for name, part in part_names(objective).items():
        yield from walk(name, part)


def combinations(
    experiment: Experiment, axes: Sequence[Axis]
) -> Iterator[tuple[str, tuple[Experiment, dict[str, Any]]]]:
    """`(name, (experiment, settings))` of every combination; the name is of settings, "kd.temperature=2, kd.weight=0.9"."""
    for values in itertools.product(*(axis.values for axis in axes)):
        settings = {axis.path: value for axis, value in zip(axes, values, strict=True)}
        name = ", ".join(f"{path}={value}" for path, value in settings.items())
        yield name, (with_settings(experiment, settings), settings)


def with_settings(experiment: Experiment, settings: dict[str, Any]) -> Experiment:
    """The experiment with settings of its student's objective changed."""
    objective, now = experiment.student.objective, dict(fields_of(experiment.student.objective))
    for path, value in settings.items():
        if not _fits(now[path], value):
            raise ExperimentError(f"{path} is {now[path]!r} and cannot be {value!r}; give values of that kind.")
        objective = _changed(objective, path, value)
    return experiment.replace_phase(experiment.student.name, objective=objective)


def _fits(now: Any, value: Any) -> bool:
    if isinstance(now, bool) or isinstance(value, bool):
        return isinstance(now, bool) and isinstance(value, bool)
    if isinstance(now, int):
        return isinstance(value, int)
    if isinstance(now, str | tuple):
        return isinstance(value, type(now))
    return isinstance(value, int | float)  # in place of a number or a schedule


def _changed(objective: Objective, path: str, value: Any) -> Objective:
    first, *rest = path.split(".")
    parts = {n: _replaced(part, rest, value) if n == first else part for n, part in part_names(objective).items()}
    return Sum(objectives=tuple(parts.values()))


def _replaced(part: Any, path: list[str], value: Any) -> Any:
    new = _replaced(getattr(part, path[0]), path[1:], value) if len(path) > 1 else value
    try:
        return dataclasses.replace(part, **{path[0]: new})
    except ValueError as error:
        raise ExperimentError(str(error)) from error


def best(comparison: dict[str, Any], task: Task) -> str:
    """The combination with the best mean; the first of several."""
    sign, methods = (1 if task.metric.higher_is_better else -1), comparison["methods"]
    return max(methods, key=lambda name: sign * methods[name]["metrics"][task.metric.name]["mean"])


def edges(settings: dict[str, Any], axes: Sequence[Axis]) -> list[str]:
    """Settings whose choice has nothing better on one side only because nothing was tried there."""
    number = lambda value: isinstance(value, int | float) and not isinstance(value, bool)
    numbers = (axis for axis in axes if len(axis.values) > 1 and all(map(number, axis.values)))
    return [axis.path for axis in numbers if settings[axis.path] in (min(axis.values), max(axis.values))]


def _taught(experiment: Experiment) -> Experiment:
    """The experiment with the teachers that were trained for the grid, named from where the runs lie: the task they were
    trained on differs in what is evaluated alone."""
    phases = tuple(
        p
        if p in experiment.lineage or p.weights or p.network.trained
        else dataclasses.replace(p, weights=f"../../{TUNED}/teacher/{p.name}")
        for p in experiment.phases
    )
    return dataclasses.replace(experiment, phases=phases)

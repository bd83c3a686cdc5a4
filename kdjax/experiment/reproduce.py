"""The comparisons of a published table: several pairs, methods and seeds, each teacher once, all results in one file."""

import dataclasses
import functools
import itertools
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from kdjax import __version__
from kdjax.experiment import serialization
from kdjax.experiment.compare import check_alike, compare
from kdjax.experiment.folder import COMPARISON, EXPERIMENT, check_place
from kdjax.experiment.given_teacher import WEIGHTS, taught_by
from kdjax.experiment.lock import locked
from kdjax.experiment.program import Builder
from kdjax.experiment.report import write_report
from kdjax.experiment.run import run
from kdjax.experiment.spec import Experiment, ExperimentError, Phase
from kdjax.experiment.summary import write_summary
from kdjax.json_files import read_json, write_json
from kdjax.tasks import Task
from kdjax.training.loop import TrainingError
from kdjax.training.processes import by_first
from kdjax.training.progress import Progress

RESULTS, TEACHERS = "results.json", "teachers"


def reproduce(
    pairs: Mapping[str, Mapping[str, Experiment]],
    seeds: Sequence[int],
    folder: Path,
    *,
    teachers: Path | None = None,
    resume: bool = False,
    overwrite: bool = False,
    builder: Builder | None = None,
    progress: Progress | None = None,
    announce: Callable[[str], None] = lambda line: None,
    together: bool = False,
    profile: bool = False,
) -> dict[str, Any]:
    """Compares the methods for each pair of networks.

    Args:
      pairs: by the name of the pair, an experiment a method, alike but for the last phase's objective.
      seeds: each method is trained once with each.
      folder: of all: `teachers/NETWORK`, a comparison a pair, results.json and report.html.
      teachers: folder of finished runs or files of weights, see `find_teacher`; without it each teacher is trained here, once
        for all pairs that it teaches.
      resume: what is finished is kept, and what was stopped is gone on with; pairs that are not named stay in the results.
      overwrite, builder, progress, announce, together, profile: as in `kdjax.experiment.compare.compare`.

    Returns:
      The results as data, also written to results.json as they come: `pairs`, a comparison each, `failed`, why a pair
      could not be trained, and `teachers`, in which folder whose is.

    Raises:
      ExperimentError: something does not fit.
    """
    builder = builder or Builder()
    check_place(folder)
    for name, experiments in pairs.items():  # what does not fit is said now, not when the pairs before are trained
        if name == TEACHERS or not re.fullmatch(r"[\w.-]*\w[\w.-]*", name):
            raise ExperimentError(
                f"A pair is called {name!r}, and has a folder of its name; use letters, digits, - and _."
            )
        check_alike(dict(experiments))
        for experiment in experiments.values():
            for phase in experiment.phases:
                builder.program(experiment, phase)
    given = {name: _given(next(iter(experiments.values())), teachers) for name, experiments in pairs.items()}
    begun = folder / RESULTS
    if not (resume or overwrite) and any((folder / name).exists() for name in (RESULTS, TEACHERS, *pairs)):
        raise ExperimentError(
            f"{folder} holds results; say --resume to go on with them, --overwrite to delete them, or --run for another folder."
        )
    before = read_json(begun, ExperimentError, "say --overwrite", {"pairs": dict}) if begun.exists() and resume else {}
    results = {"kdjax": __version__, "seeds": list(seeds), "failed": {}}
    results |= {part: dict(before.get(part, {})) for part in ("pairs", "teachers")}
    common = {"builder": builder, "progress": progress, "profile": profile}
    with locked([folder]):
        folder.mkdir(parents=True, exist_ok=True)
        trained: dict[Any, Path] = {}
        for name, experiments in pairs.items():
            announce(name)
            try:
                teacher = given[name] or _train_teacher(
                    name, next(iter(experiments.values())), trained, folder, results["teachers"], overwrite=overwrite,
                    announce=announce, **common,
                )  # fmt: skip
                by_first(functools.partial(write_json, begun, results), ExperimentError)
                if teacher is not None:
                    experiments = {m: _taught(e, teacher, folder / name, builder) for m, e in experiments.items()}
                comparison = compare(
                    dict(experiments), seeds, folder / name, resume=(folder / name / COMPARISON).exists() and not overwrite,
                    overwrite=overwrite, announce=announce, together=together, **common,
                )  # fmt: skip
                results["pairs"][name] = comparison
            except TrainingError as error:
                announce(f"{name} failed, the others go on: {error}")
                results["failed"][name] = str(error)
            by_first(
                functools.partial(_record, folder, results, name, next(iter(experiments.values())).data),
                ExperimentError,
            )
        return results


def _record(folder: Path, results: dict[str, Any], pair: str, task: Task) -> None:
    """Writes what there is, and the report of the pair that was the last."""
    if pair not in results["failed"]:
        write_report(folder / pair, results["pairs"][pair], task)
    write_json(folder / RESULTS, results)
    write_summary(folder, results, task)


def _given(experiment: Experiment, teachers: Path | None) -> Path | None:
    """Where a pair's teacher is, if it was trained before."""
    if teachers is None or not experiment.student.teacher:
        return None
    phase = _shared(experiment)
    if phase is None:
        raise ExperimentError(
            f"--teachers was given, but the teacher of {experiment.name} is not one phase that needs no other; leave it out."
        )
    return find_teacher(teachers, _file_name(phase))


def _shared(experiment: Experiment) -> Phase | None:
    """The teacher of an experiment, where it is one phase that needs no other: several pairs may have it."""
    earlier = [phase for phase in experiment.phases if phase not in experiment.lineage]
    plain = len(earlier) == 1 and earlier[0].name == experiment.student.teacher and not earlier[0].taught
    return earlier[0] if plain and not (earlier[0].weights or earlier[0].start or earlier[0].network.trained) else None


def _train_teacher(
    pair: str, experiment: Experiment, trained: dict[Experiment, Path], folder: Path, names: dict[str, str], *,
    overwrite: bool, announce: Callable[[str], None], **common: Any,
) -> Path | None:  # fmt: skip
    """The folder of a pair's teacher, trained now if no pair before had it; None where it is no phase by itself. Its name there
    is kept in `names`, by which it is found again."""
    phase = _shared(experiment)
    if phase is None:
        return None
    alone = dataclasses.replace(experiment, name=f"teacher-{phase.network.name}", phases=(phase,))
    if alone not in trained:
        announce(f"teacher {phase.network.name}")
        place = folder / TEACHERS / (names.get(pair) or _free_name(alone, folder / TEACHERS, phase, names))
        run(alone, place, resume=not overwrite, overwrite=overwrite, **common)
        trained[alone] = place
    names[pair] = trained[alone].name
    return trained[alone]


def _file_name(phase: Phase) -> str:
    """The network's name, as the name of a file: a network of one's own is named by a path and a colon."""
    return re.sub(r"[^\w.-]", "-", str(phase.network.name))


def _free_name(teacher: Experiment, folder: Path, phase: Phase, names: Mapping[str, str]) -> str:
    """The network's name, with a number behind it where other pairs have one of that network on other data."""
    stem = _file_name(phase)

    def free(name):
        saved = folder / name / EXPERIMENT
        return name not in names.values() or (saved.exists() and serialization.load(saved) == teacher)

    return next(name for name in itertools.chain([stem], (f"{stem}-{i}" for i in itertools.count(2))) if free(name))


def _taught(experiment: Experiment, teacher: Path, place: Path, builder: Builder) -> Experiment:
    """The experiment with a finished teacher, named from where its runs lie if that is in the same folder."""
    taught = taught_by(experiment, teacher.absolute(), builder)
    if teacher.parent.parent != place.parent:
        return taught
    return taught.replace_phase(experiment.student.teacher, weights=f"../../{TEACHERS}/{teacher.name}")


def find_teacher(folder: Path, network: str) -> Path:
    """A trained network by its name in a folder: a run NETWORK/, a file NETWORK.pth (or of another kind that `kdjax convert`
    reads), or NETWORK_vanilla/FILE.pth as the released CIFAR-100 teachers lie; of several files there, the last by name.

    Raises:
      ExperimentError: there is none.
    """
    wanted = {network.lower(), f"{network}_vanilla".lower(), network.removesuffix("_cifar").lower() + "_vanilla"}
    places = sorted(folder.iterdir()) if folder.is_dir() else []
    for place in places:
        if place.is_dir() and place.name.lower() in wanted:
            files = [
                file for file in sorted(place.iterdir(), key=_by_number) if file.suffix in WEIGHTS and file.is_file()
            ]
            return files[-1] if files else place
        if place.is_file() and place.suffix in WEIGHTS and place.stem.lower() in wanted:
            return place
    there = ", ".join(place.name for place in places) or "nothing"
    raise ExperimentError(
        f"{folder} has no {network}: give a finished run {network}/ or a file {network}.pth there; it has {there}."
    )


def _by_number(path: Path) -> list[Any]:
    """ "epoch_90" before "epoch_240"."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", path.name)]

"""Run folders: what is in them, and the rule that none is overwritten unasked."""

import dataclasses
import os
import re
import secrets
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from kdjax.experiment import serialization
from kdjax.experiment.spec import Experiment, ExperimentError, Phase
from kdjax.json_files import NUMBER, read_json, write_json
from kdjax.places import is_address, local
from kdjax.tasks import Dataset
from kdjax.training.processes import say

EXPERIMENT, RESULT, COMPARISON = "experiment.json", "result.json", "comparison.json"
CHANGES = "changes.txt"  # what was changed of a run that was gone on with
DATA = "data.json"  # what tells a run's data from others of the same name
NETWORK = "network.json"
OF_MACHINE = ("cache_dir", "workers")  # of an experiment: what changes nothing of a run
OBJECTIVE = "objective"  # folder of what a phase's objective trained, where a later phase begins with it
DAMAGED = "train that phase again"
REMOVED = ".overwritten-"  # begins the name of a folder of what is being deleted

EVALUATION = {"step": int | None, "student": dict[str, NUMBER | None], "teacher?": dict[str, NUMBER | None]}
RESULT_FIELDS = {
    "hash": str, "phase?": str, "network?": str, "parameters?": int, "last?": EVALUATION, "best?": (type(None), EVALUATION),
    "extra_parameters?": int, "examples_visited?": int, "seed?": int | None, "data_seed?": int | None,
    "steps?": int | None, "seconds?": NUMBER | None, "train_seconds?": NUMBER | None, "kept?": str,
    "examples_per_s?": NUMBER | None, "flops_per_step?": NUMBER | None, "teacher_share?": NUMBER | None,
    "flops_per_s?": NUMBER | None, "peak_share?": NUMBER | None, "input_share?": NUMBER | None,
    "device_bytes?": NUMBER | None, "device?": str, "teacher_hash?": str | None, "teacher_frozen?": str | None,
    "teacher_cache?": (type(None), {"storage": str, "found": int, "computed": int, "largest_change?": NUMBER,
                                    "mass?": NUMBER}),
    "from?": str,
}  # fmt: skip
NETWORK_FIELDS = {
    "hash": str, "shapes": dict[str, str], "phase?": str, "network?": str, "num_classes?": int, "class_names?": list[str],
    "data?": (type(None), {"name": str, "num_classes": int, "num_examples": int, "targets": list[str],
                           "class_names?": list[str]}),
}  # fmt: skip


def open_run(folder: Path, experiment: Experiment, *, resume: bool = False, overwrite: bool = False) -> None:
    """Makes a run folder and saves the experiment in it.

    Raises:
      ExperimentError: if the folder exists and neither `resume` nor `overwrite` is said, if what is to be resumed is
        another experiment, or if what is to be overwritten is no run.
    """
    if resume and overwrite:
        raise ExperimentError("--resume and --overwrite exclude each other; say one of them.")
    saved = folder / EXPERIMENT
    check_place(folder)
    if folder.exists() and any(map(counts, folder.iterdir())):
        if overwrite:
            _remove(folder, experiment)
        elif not resume:
            raise ExperimentError(
                f"Run folder {folder} exists; say --resume to go on with it, --overwrite to delete it, or --run for another."
            )
        elif saved.exists():
            _check_same(saved, experiment)
        elif not (folder / COMPARISON).exists():
            raise ExperimentError(f"{folder} holds no run to resume; choose another folder with --run.")
    folder.mkdir(parents=True, exist_ok=True)
    if not saved.exists():
        serialization.save(experiment, saved)


def counts(path: Path) -> bool:
    """Whether something in a folder is more than what a system or a killed run leaves behind."""
    return not path.name.startswith(".") and path.suffix != ".tmp" and path.name.lower() not in RUBBISH


RUBBISH = ("thumbs.db", "desktop.ini", "__macosx")


def run_place(path: str | Path) -> Path:
    """The folder that a person wrote for a run, with ~ as the home folder; refused where there can be none."""
    check_place(Path(path))
    folder = local(path, ExperimentError, "A run folder")
    check_place(folder)
    return folder


def check_place(folder: Path) -> None:
    """Refuses a path at which there can be no run folder, before anything is made.

    Raises:
      ExperimentError: an address, a file, or something below a file.
    """
    if is_address(folder):
        raise ExperimentError(
            f"Runs are written to local folders, and {folder} is an address; give a folder, and copy it there afterwards."
        )
    try:
        folder.exists()
    except OSError as error:  # a name that is too long
        raise ExperimentError(
            f"{str(folder)[:60]}... cannot be a run folder ({error.strerror}); choose another with --run."
        ) from error
    for place in (folder, *folder.parents):
        if place.is_symlink() and not place.exists():
            raise ExperimentError(
                f"{place} is a link to {os.readlink(place)}, which is not there, so {folder} cannot be a run folder; mend "
                "the link, or choose another with --run."
            )
        if place.exists():
            if not place.is_dir():
                raise ExperimentError(
                    f"{place} is a file, so {folder} cannot be a run folder; choose another with --run."
                )
            return


def _check_same(saved: Path, experiment: Experiment) -> None:
    """Refuses another experiment than was saved; what may change while a run is gone on with is saved anew, and said."""
    there = serialization.load(saved)
    before, now = (serialization.to_data(from_anywhere(e, saved.parent)) for e in (there, experiment))
    differing = serialization.differences(before, now)
    differing = [line for line in differing if line.partition(":")[0] not in OF_MACHINE]
    others = [line for line in differing if not _may_change(line, saved.parent, experiment)]
    if others:
        raise ExperimentError(
            f"{saved.parent} was started with another configuration ({others[0]}"
            f"{f', and {len(others) - 1} more' if len(others) > 1 else ''}); "
            "resume with the same one, or use another folder with --run."
        )
    if differing:
        with (saved.parent / CHANGES).open("a", encoding="utf-8") as file:
            file.writelines(f"{line}\n" for line in differing)
        phases = (
            dataclasses.replace(p, weights=old.weights) for p, old in zip(experiment.phases, there.phases, strict=True)
        )
        serialization.save(dataclasses.replace(experiment, phases=tuple(phases)), saved)
        say(f"{saved.parent} goes on with another configuration ({', '.join(differing)}), as {CHANGES} there says")


def _may_change(difference: str, folder: Path, experiment: Experiment) -> bool:
    """Whether a run may be gone on with in spite of a difference: of what is done where training is not finite, and of a phase
    that has not ended its learning rate and which of its weights are kept. Of a comparison the first alone, for its runs are to
    be alike."""
    if difference.startswith("on_nan:"):
        return True
    if (folder / COMPARISON).exists():
        return False
    found = re.match(r"phases\.(\d+)\.(optimizer\.learning_rate\b|keep:)", difference)
    return found is not None and not (folder / experiment.phases[int(found[1])].name / RESULT).exists()


def check_data(folder: Path, dataset: Dataset) -> None:
    """Refuses other data than those a run was started with. (Runs of before this was written down are taken as they are.)"""
    path = folder / DATA
    if not path.exists():
        return
    before = read_json(
        path,
        ExperimentError,
        "delete it if the data are those the run was started with",
        {"train?": str, "evaluated?": str},
    )
    for part, now in dataset.fingerprints.items():
        if before.get(part, now) != now:
            examples = dataset.train if part == "train" else dataset.held
            raise ExperimentError(
                f"{examples.name} ({examples.split}) has other examples than when the run in {folder} was started; put those "
                "back, or use another folder with --run."
            )


def keep_data(folder: Path, dataset: Dataset) -> None:
    """Writes down which data a run is started with, or refuses others."""
    check_data(folder, dataset)
    if not (folder / DATA).exists():
        write_json(folder / DATA, dataset.fingerprints)


def _remove(folder: Path, experiment: Experiment) -> None:
    """Empties a run folder, unless the experiment needs something in it."""
    if not ((folder / EXPERIMENT).exists() or (folder / COMPARISON).exists()):
        raise ExperimentError(
            f"{folder} is not a run of kdjax, so --overwrite will not delete it; choose another with --run."
        )
    for phase in experiment.phases:
        if phase.weights:
            source = network_folder(phase, folder / phase.name).resolve()
            if folder.resolve() in (source, *source.parents):
                raise ExperimentError(
                    f"--overwrite would delete {folder} with the network in {source} that phase {phase.name!r} takes; "
                    "choose another folder with --run."
                )
    # Not the folder itself, which may be a link. What says that it is a run goes last, and no phase is left in half.
    children = [child for child in folder.iterdir() if not child.name.endswith("lock")]  # this run's own lock stays
    children.sort(key=lambda child: child.name in (EXPERIMENT, COMPARISON))
    rubbish = folder / f"{REMOVED}{secrets.token_hex(4)}"
    rubbish.mkdir()
    for child in children:
        child.rename(rubbish / child.name)
    shutil.rmtree(rubbish)


def read_result(folder: Path) -> dict[str, Any] | None:
    """What a phase came to, or None if it has not ended."""
    path = folder / RESULT
    if not path.exists():
        return None
    mend = "delete it and say --resume: the phase goes on from its last checkpoint"
    result = read_json(path, ExperimentError, mend, RESULT_FIELDS)
    if "images_per_s" in result:  # as it was called before there were other tasks
        result["examples_per_s"] = result.pop("images_per_s")
    return result


def read_network(folder: Path) -> dict[str, Any]:
    """What a finished network is, from its folder."""
    return read_json(folder / NETWORK, ExperimentError, DAMAGED, NETWORK_FIELDS)


def find_network(path: Path, phase: str, seen: tuple[Path, ...] = ()) -> Path:
    """The folder of a finished network: `path` itself, its phase of that name, or its last finished phase.

    A phase that took its network from elsewhere leads there.
    """
    folders = [child for child in path.glob("*/") if counts(child)]
    candidates = [path, path / phase, *sorted(folders, key=_order_of(path), reverse=True)]
    for candidate in candidates:
        if (candidate / NETWORK).exists():
            return candidate
        result = read_result(candidate)
        if result is not None and "from" in result:
            there = Path(os.path.normpath(candidate.absolute() / result["from"]))
            if there in seen:
                raise ExperimentError(
                    f"{path} took its network from {there}, which took it from there; name another run."
                )
            return find_network(there, phase, (*seen, there))
    raise ExperimentError(f"{path} holds no finished network; give the folder of a run or phase that has ended.")


def _order_of(path: Path) -> Callable[[Path], Any]:
    """By what the folders of a run's phases are in order: of the phases, or where these are not known of time."""
    try:
        names = [phase.name for phase in serialization.load(path / EXPERIMENT).phases]
    except (ExperimentError, OSError):
        names = []
    return lambda folder: (names.index(folder.name) if folder.name in names else -1, folder.stat().st_mtime)


def network_folder(phase: Phase, place: Path) -> Path:
    """Where the network of a phase lies: in its own folder `place`, or where it is taken from.

    A relative path is meant from the run folder, if there is something, so that runs that belong together can be moved.
    """
    return find_network(Path(beside(place.parent, phase.weights)), phase.name) if phase.weights else place


def beside(run: Path, weights: str) -> str:
    """Where weights lie that a phase of a run takes: from its folder on, if there is something, else as it is written."""
    there = os.path.normpath(run / weights)  # also where the run's own folder is not there yet
    return there if weights and os.path.exists(there) else weights


def from_anywhere(experiment: Experiment, run: Path) -> Experiment:
    """An experiment of a run's folder, with the weights that it names from there on by their whole path."""
    phases = (dataclasses.replace(p, weights=os.path.abspath(beside(run, p.weights)) if beside(run, p.weights) != p.weights
                                  else p.weights) for p in experiment.phases)  # fmt: skip
    return dataclasses.replace(experiment, phases=tuple(phases))

"""A teacher from elsewhere: of a finished run, a file of weights or of outputs, or a folder of Hugging Face."""

import dataclasses
import hashlib
import os
import shutil
from pathlib import Path
from typing import Any

import jax

from kdjax.data.outputs import SUFFIXES
from kdjax.experiment import serialization
from kdjax.experiment.folder import EXPERIMENT, RESULT, network_folder, read_network
from kdjax.experiment.program import Builder
from kdjax.experiment.spec import Experiment, ExperimentError
from kdjax.models.weights.files import SUFFIXES as WEIGHTS
from kdjax.places import cache_folder
from kdjax.tasks import Model
from kdjax.tasks.given import GivenNetwork


def taught_by(experiment: Experiment, folder: Path, builder: Builder) -> Experiment:
    """An experiment with its student's teacher taken from the folder of a finished run or phase: the network that it is, seeing
    images as it was trained to and knowing the classes that it knows; or from a file of weights, or a folder of Hugging Face.

    Raises:
      ExperimentError: there is none, or the student has no teacher.
    """
    name = experiment.student.teacher
    if not name:
        raise ExperimentError("--teacher was given, but the student of this config has no teacher phase.")
    if folder.suffix in SUFFIXES:
        return taught_by_file(experiment, folder)
    if (model := taken_as_it_is(experiment, name, folder)) is not None:
        return experiment.replace_phase(name, network=model, weights="", start="", teacher="")
    if folder.suffix in WEIGHTS and not folder.is_dir():
        folder = converted(folder, experiment.phase(name).network, getattr(experiment.data, "views", None))
    source = network_folder(dataclasses.replace(experiment.phase(name), weights=str(folder)), folder / name)
    changes: dict[str, Any] = {"weights": str(folder)}
    facts = read_network(source)
    if (source.parent / EXPERIMENT).exists():
        saved = serialization.load(source.parent / EXPERIMENT)
        if type(saved.data) is type(experiment.data):
            model, classes = saved.phase(facts.get("phase", "")).network, facts.get("class_names", ())
            changes["network"] = experiment.data.as_trained(
                model, saved.data, classes, builder.dataset(experiment.data)
            )
    return experiment.replace_phase(name, **changes)


def taken_as_it_is(experiment: Experiment, name: str, folder: Path) -> Model | None:
    """The network of a folder of Hugging Face, for the phase of that name; or the one that a run has from such a folder; or
    None."""
    run = folder if (folder / EXPERIMENT).exists() else folder.parent
    if run != folder and (folder / "config.json").exists():
        try:
            return experiment.data.taken(experiment.phase(name).network, folder)
        except ValueError as error:
            raise ExperimentError(str(error)) from error
    if (run / EXPERIMENT).exists():
        saved, wanted = serialization.load(run / EXPERIMENT), name if run == folder else folder.name
        for phase in saved.phases if type(saved.data) is type(experiment.data) else ():
            if phase.name == wanted and phase.network.trained and not isinstance(phase.network, GivenNetwork):
                return experiment.data.as_trained(phase.network, saved.data, (), None)
    return None


def converted(path: Path, model: Any, views: Any = None) -> Path:
    """The folder of a finished run that a file of published weights becomes, in the user's cache: once for each content.

    The network is the one that the config has for the teacher, and its `mean` and `std` if it has them, else those of the views.
    """
    from kdjax.experiment.convert import PHASE, Usual, convert

    try:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256")
    except OSError as error:
        raise ExperimentError(f"{path} cannot be read ({error.strerror or error}); give a file of weights.") from error
    options = {name: getattr(model, name, None) or getattr(views, name, None) or () for name in ("mean", "std")}
    digest.update(repr((model, options, Usual.of(getattr(model, "name", "")))).encode())
    folder = cache_folder("converted") / f"{model.name}-{digest.hexdigest()[:16]}"
    if (folder / PHASE / RESULT).exists():
        return folder
    if jax.process_count() > 1:
        raise ExperimentError(
            f"{path} is not made a network by several processes; run kdjax convert {path} --network {model.name} --run FOLDER "
            "once, and give --teacher FOLDER."
        )
    temporary = folder.with_name(f"{folder.name}-{os.getpid()}.tmp")
    convert(path, model.name, temporary, width=getattr(model, "width", 0), **options, overwrite=True)
    try:
        temporary.rename(folder)
    except OSError as error:  # another process was quicker
        if not (folder / PHASE / RESULT).exists():
            raise ExperimentError(f"{folder} is no whole network ({error.strerror}); delete that folder.") from error
        shutil.rmtree(temporary)
    return folder


def taught_by_file(experiment: Experiment, path: Path) -> Experiment:
    """An experiment whose student learns from a file of a teacher's outputs; phases that only taught it are left out."""
    changed = {
        p.name: dataclasses.replace(p, teacher="", teacher_outputs=str(path)) for p in experiment.lineage if p.teacher
    }
    phases = [changed.get(phase.name, phase) for phase in experiment.phases]
    needed = {experiment.student.name}
    for phase in reversed(phases):
        if phase.name in needed:
            needed |= {*phase.teachers, phase.start}
    return dataclasses.replace(experiment, phases=tuple(phase for phase in phases if phase.name in needed))

"""Experiments as plain data and back. Reading makes known dataclasses only: it imports and executes nothing."""

import dataclasses
import types
import typing
from collections.abc import Iterator
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal

import numpy as np

from kdjax import objectives, schedules
from kdjax.data.errors import note
from kdjax.experiment.spec import Experiment, ExperimentError, Phase
from kdjax.json_files import read_json, shown, write_json
from kdjax.objectives import ByReference, Objective, Sum
from kdjax.objectives.by_reference import by_reference
from kdjax.tasks import kinds as task_kinds
from kdjax.training import optimizers

KINDS: dict[str, type] = {
    cls.__name__: cls
    for cls in (
        Experiment, Phase, Sum, schedules.Duration, optimizers.SGD, optimizers.AdamW, optimizers.DOT,
        schedules.Constant, schedules.Linear, schedules.Cosine, schedules.WarmUp, schedules.Steps, schedules.Product,
        schedules.Adaptive,
        *(cls for cls in vars(objectives).values()
          if isinstance(cls, type) and issubclass(cls, Objective) and cls is not Objective),
    )
}  # fmt: skip


def to_data(value: Any) -> Any:
    """A dataclass as a dict with its class's name under "kind"; tuples as lists, numbers of NumPy as Python's."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        name = type(value).__name__
        known = (KINDS | task_kinds()).get(name)
        if isinstance(value, Objective) and known is not type(value):
            return to_data(_own_objective(value))
        # A config that is read twice defines its classes twice.
        if known is None or known.__module__ != type(value).__module__:
            raise ExperimentError(
                f"{name} cannot be saved as data: it is not one of kdjax's own kinds; `kdjax.tasks.register` makes a "
                "task's known."
            )
        saved = [f.name for f in dataclasses.fields(value) if f.metadata.get("saved", True)]
        fields = {name: to_data(getattr(value, name)) for name in saved}
        return {"kind": type(value).__name__, **fields}
    if isinstance(value, np.generic):
        return value.item()
    return [to_data(item) for item in value] if isinstance(value, tuple | list) else value


def problems(experiment: Experiment) -> list[str]:
    """What is wrong with an experiment, a sentence each: values that fields of kdjax's own classes do not take, which nobody
    could read again once they are saved, or else what `Experiment.problems` finds."""
    return list(_unfit(experiment, "experiment")) or experiment.problems()


def _unfit(value: Any, where: str) -> Iterator[str]:
    """Sentences on the values that do not fit their fields. Classes of somebody else's are theirs to check."""
    if isinstance(value, tuple):
        for i, item in enumerate(value):
            yield from _unfit(item, f"{where}.{i}")
    if (
        not dataclasses.is_dataclass(value)
        or isinstance(value, type)
        or not type(value).__module__.startswith("kdjax.")
    ):
        return
    hints = typing.get_type_hints(type(value))
    for field in dataclasses.fields(value):
        if not field.metadata.get("saved", True):
            continue
        item, hint, place = getattr(value, field.name), hints[field.name], f"{where}.{field.name}"
        if dataclasses.is_dataclass(item) and not isinstance(item, type):
            choices = [a for a in (typing.get_args(hint) or (hint,)) if isinstance(a, type)]
            if isinstance(item, tuple(choices)):
                yield from _unfit(item, place)
            else:
                yield f"{place}: expected a {' or '.join(a.__name__ for a in choices)}, found a {type(item).__name__}."
        elif isinstance(item, tuple) and any(map(dataclasses.is_dataclass, item)):
            yield from _unfit(item, place)
        else:
            try:
                _convert(to_data(item), hint, place)
            except ExperimentError as error:
                yield str(error)


def _own_objective(objective: Objective) -> ByReference:
    try:
        return by_reference(objective)
    except ValueError as error:
        raise ExperimentError(f"{type(objective).__name__} cannot be saved with the run: {error}") from error


def from_data(data: Any, where: str = "experiment") -> Any:
    """The dataclass that `to_data` made `data` of. Fields that are not given keep their defaults.

    Raises:
      ExperimentError: naming the place, for an unknown kind or key, or a value of the wrong type.
    """
    if not isinstance(data, dict):
        raise ExperimentError(f'{where}: expected an object with a "kind", found {shown(data)}.')
    known = KINDS | task_kinds()
    cls = known.get(data["kind"]) if isinstance(data.get("kind"), str) else None
    if cls is None:
        raise ExperimentError(
            f"{where}: unknown kind {shown(data.get('kind'))}{_nearest(data.get('kind'), known)}. (A task of your own must be "
            "imported before its experiments are read: --import its file.)"
        )
    hints = typing.get_type_hints(cls)
    names = [field.name for field in dataclasses.fields(cls) if field.metadata.get("saved", True)]
    values = {}
    for key, item in data.items():
        if key == "kind":
            continue
        if key not in names:
            raise ExperimentError(f"{where}.{key}: {cls.__name__} has no such field{_nearest(key, names)}.")
        values[key] = _convert(item, hints[key], f"{where}.{key}")
    missing = [
        f.name for f in dataclasses.fields(cls)
        if f.name not in values and f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
    ]  # fmt: skip
    if missing:
        raise ExperimentError(f"{where}: {cls.__name__} needs {', '.join(missing)}.")
    try:
        return cls(**values)
    except ValueError as error:
        raise ExperimentError(f"{where}: {error}") from error


def save(experiment: Experiment, path: Path) -> None:
    """Writes the experiment to `path`, whole or not at all."""
    try:
        write_json(path, to_data(experiment))
    except TypeError as error:  # of a task's fields, such as a Path
        raise ExperimentError(
            f"The experiment cannot be saved as data ({error}); its fields are numbers and texts."
        ) from error


def load(path: Path) -> Experiment:
    """The experiment saved at `path`.

    Raises:
      ExperimentError: naming the file, and the place in it.
    """
    edited = lambda what: note(f"{what}; it is read as it is now, as if that was on purpose")
    found = read_json(path, ExperimentError, "give a saved experiment or a .py config", changed=edited)
    try:
        experiment = from_data(found)
    except ExperimentError as error:
        said = " ".join(str(error).split())
        raise ExperimentError(f"{path} cannot be read: {said if len(said) < 1500 else said[:1500] + ' ...'}") from error
    except RecursionError as error:
        raise ExperimentError(f"{path} cannot be read: its fields are nested too deeply.") from error
    if not isinstance(experiment, Experiment):
        raise ExperimentError(f"{path} holds a {type(experiment).__name__}, not an Experiment.")
    return experiment


def differences(first: Any, second: Any, where: str = "") -> list[str]:
    """The fields in which two experiments differ, as "path: this != that"."""
    if isinstance(first, dict) and isinstance(second, dict):
        keys = [*first, *(key for key in second if key not in first)]
        pairs = [(key, first.get(key), second.get(key)) for key in keys]
    elif isinstance(first, list) and isinstance(second, list) and len(first) == len(second):
        pairs = [(i, *pair) for i, pair in enumerate(zip(first, second, strict=True))]
    else:
        return [] if first == second else [f"{where}: {first!r} != {second!r}"]
    return [line for key, a, b in pairs for line in differences(a, b, f"{where}.{key}".lstrip("."))]


def _convert(value: Any, hint: Any, where: str) -> Any:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        choices = [
            a for a in arguments if a is not type(None) and dataclasses.is_dataclass(a) == isinstance(value, dict)
        ]
        for choice in choices:
            try:
                return _convert(value, choice, where)
            except ExperimentError:
                if choice is choices[-1]:
                    raise
        raise ExperimentError(f"{where}: {shown(value)} is not a {hint}.")
    if origin is Literal:
        if value not in arguments:
            raise ExperimentError(f"{where}: {shown(value)} is not one of {', '.join(map(repr, arguments))}.")
        return value
    if origin is tuple:
        if not isinstance(value, list):
            raise ExperimentError(f"{where}: expected a list, found {shown(value)}.")
        return tuple(_convert(item, arguments[0], f"{where}.{i}") for i, item in enumerate(value))
    if dataclasses.is_dataclass(hint):
        if not isinstance(value, dict):
            raise ExperimentError(f"{where}: expected a {hint.__name__}, found {shown(value)}.")
        item = from_data(value, where)
        if not isinstance(item, hint):
            raise ExperimentError(f"{where}: expected a {hint.__name__}, found a {type(item).__name__}.")
        return item
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if origin is not None:  # of a task of one's own, such as dict[str, int]
        return value
    if not isinstance(value, hint) or (hint is not bool and isinstance(value, bool)):
        raise ExperimentError(f"{where}: expected a {hint.__name__}, found {shown(value)}.")
    return value


def _nearest(name: Any, known) -> str:
    near = get_close_matches(str(name), list(known), n=1, cutoff=0.5)
    return f"; did you mean {near[0]!r}?" if near else f"; there are {', '.join(known)}"

"""Where experiments come from: a Python file, a saved experiment, or a run folder; and overrides from a command line."""

import ast
import dataclasses
import functools
import inspect
import itertools
import textwrap
import types
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any

from kdjax.experiment import configs, serialization
from kdjax.experiment.folder import EXPERIMENT, from_anywhere
from kdjax.experiment.schemes import with_method
from kdjax.experiment.spec import Experiment, ExperimentError
from kdjax.objectives import Sum, method, part_names
from kdjax.places import local
from kdjax.references import label, load_file

Config = Callable[[str | None], Experiment]


def load_config(path: str) -> Config:
    """A function `method name or None -> Experiment` from a path, or from the name of a config that comes with kdjax.

    A Python file defines `experiment()`, or `experiment(method)` to say what suits each method here. Anything else is read
    as data, and nothing in it is executed.
    """
    place = local(path, ExperimentError, "A config")
    if not place.exists():
        place = configs.find(path) or place
    if place.is_dir():
        place = place / EXPERIMENT
    if not place.exists():
        near = get_close_matches(path, configs.names(), n=1, cutoff=0.5) or ["digits/smoke"]
        raise ExperimentError(
            f"There is no config {path}; give a .py file, a run folder, or a name such as {near[0]} (`kdjax configs` lists them)."
        )
    if place.suffix != ".py":
        saved = from_anywhere(serialization.load(place), place.parent)
        return lambda name: saved if name is None else by_method(saved, name)
    module = load_file(place)
    function = getattr(module, "experiment", None)
    if function is None:
        raise ExperimentError(f"{path} defines no function experiment(); it must return an Experiment.")
    takes_name = bool(inspect.signature(function).parameters)

    def config(name):
        try:
            made = function() if name is None or not takes_name else function(name)
        except (KeyError, ValueError) as error:
            if name is None or (isinstance(error, KeyError) and error.args != (name,)):
                raise
            check_method(name)  # most often it is the name that is wrong
            raise ExperimentError(f"{path} has no method {name!r} ({error}).") from error
        if not isinstance(made, Experiment):
            raise ExperimentError(f"{path}: experiment() returned a {type(made).__name__}, not an Experiment.")
        return made if name is None or takes_name else by_method(made, name)

    return config


def configs_of_folder(place: str, wanted: Sequence[str]) -> dict[str, Path]:
    """Configs of a folder by name, of one's own or of those that come with kdjax.

    Args:
      place: its path, or a name such as "cifar100".
      wanted: names without .py; "all" for those that are called TEACHER_STUDENT after their networks, or for every one if
        none is.

    Raises:
      ExperimentError: there is no such folder, or no such config in it.
    """
    here = local(place, ExperimentError, "A folder of configs")
    here = here if here.is_dir() else configs.folder() / place.removeprefix("configs/").rstrip("/")
    there = {path.stem: path for path in sorted(here.glob("*.py"))}
    if not there:
        known = ", ".join(sorted({name.split("/")[0] for name in configs.names()}))
        raise ExperimentError(f"There is no folder of configs {place}; give a path, or one of {known}.")
    if "all" in wanted:
        return {name: path for name, path in there.items() if _is_pair(path)} or there
    for name in wanted:
        if name.removesuffix(".py") not in there:
            near = get_close_matches(name, there, n=1, cutoff=0.4) or list(there)[:1]
            raise ExperimentError(
                f"{place} has no config {name!r}; did you mean {near[0]!r}? It has {', '.join(there)}."
            )
    return {name.removesuffix(".py"): there[name.removesuffix(".py")] for name in wanted}


def _is_pair(path: Path) -> bool:
    experiment = load_config(str(path))(None)
    networks = [
        getattr(phase.network, "name", "")
        for phase in experiment.phases
        if phase is experiment.student or not phase.teacher
    ]
    return path.stem == "_".join(networks)


def check_method(name: str) -> None:
    """Raises ExperimentError if there is no method of this name."""
    try:
        method(name)
    except ValueError as error:
        raise ExperimentError(str(error)) from error


def called(methods: Sequence[str]) -> list[str]:
    """What methods are called, each by itself.

    Raises:
      ExperimentError: two are called alike.
    """
    names = [label(name) for name in methods]
    if len(set(names)) < len(names):
        raise ExperimentError(f"Of {', '.join(names)} two are called alike; give each its own name.")
    return names


def by_method(experiment: Experiment, name: str) -> Experiment:
    """The experiment with its student trained by a method, with the weights of the method's source."""
    check_method(name)
    return with_method(experiment, name)


def mirror(
    value: Any, name: str = "Options", shown: Callable[[str], bool] = lambda path: True, within: str = ""
) -> type:
    """A dataclass type with every field of `value` and of what it holds, at their present values, for tyro.

    Fields are named as a person would say them: phases by name, the parts of an objective by method. The help says those whose
    dotted path is to be `shown`.
    """
    import tyro

    fields = []
    for i, (key, item, hint, text) in enumerate(_children(value)):
        kind, path = _leaf_type(item, hint), f"{within}.{key}".lstrip(".")
        options = tyro.conf.arg(name=key, help=text or None)
        if kind is None:
            kind = mirror(item, type(item).__name__, shown, path)
            annotated = Annotated[kind, options] if kind.any_shown else Annotated[kind, options, tyro.conf.Suppress]
            fields.append((f"field_{i}", annotated, dataclasses.field(default_factory=kind)))
        else:
            annotated = Annotated[kind, options] if shown(path) else Annotated[kind, options, tyro.conf.Suppress]
            fields.append((f"field_{i}", annotated, dataclasses.field(default=item)))
    made = dataclasses.make_dataclass(name, fields, frozen=True)
    made.any_shown = any(tyro.conf.Suppress not in typing.get_args(kind)[1:] for _, kind, _ in fields)
    made.__doc__ = (inspect.getdoc(type(value)) or name).splitlines()[0]
    return made


def rebuild(value: Any, mirrored: Any) -> Any:
    """`value` with the fields that a filled-in `mirror` of it has."""
    items = []
    for i, (key, item, hint, _) in enumerate(_children(value)):
        new = getattr(mirrored, f"field_{i}")
        items.append((key, new if _leaf_type(item, hint) is not None else rebuild(item, new)))
    if isinstance(value, Sum):
        return Sum(objectives=tuple(item for _, item in items))
    if isinstance(value, tuple):
        return tuple(item for _, item in items)
    try:
        return dataclasses.replace(value, **dict(items))
    except ValueError as error:
        raise ExperimentError(str(error)) from error


def paths(value: Any, within: str = "") -> Iterator[str]:
    """The dotted path of every field that a command line may set."""
    for key, item, hint, _ in _children(value):
        path = f"{within}.{key}".lstrip(".")
        if _leaf_type(item, hint) is None:
            yield from paths(item, path)
        else:
            yield path


def of_each(argv: Sequence[str], experiments: Mapping[str, Experiment]) -> dict[str, list[str]]:
    """The command line of each of several methods: without what it says of objectives that a method has not.

    Raises:
      ExperimentError: none of them has a setting of an objective that is named.
    """
    kept: dict[str, list[str]] = {}
    used, missed = set(), set()
    for name, experiment in experiments.items():
        there, words, dropping = set(paths(experiment)), [], False
        for word in argv:
            if word.startswith("--"):
                path = word[2:].partition("=")[0].replace("-", "_")
                dropping = ".objective." in path and path not in there
                (missed if dropping else used).add(path)
            words += [] if dropping else [word]
        kept[name] = words
    for path in sorted(missed - used):
        objectives = [p for experiment in experiments.values() for p in paths(experiment) if ".objective." in p]
        near = get_close_matches(path, objectives, n=1)
        raise ExperimentError(
            f"No method of these has --{path}"
            + (f"; did you mean --{near[0]}?" if near else "; `--help all` lists what there is.")
        )
    return kept


def _children(value: Any) -> list[tuple[str, Any, Any, str]]:
    """`(name, value, type, help)` of everything directly in a dataclass, a sum, or a tuple of dataclasses."""
    if isinstance(value, Sum):
        return [(name, part, type(part), "") for name, part in part_names(value).items()]
    if isinstance(value, tuple):
        return [(getattr(item, "name", str(i)), item, type(item), "") for i, item in enumerate(value)]
    hints, texts = typing.get_type_hints(type(value)), field_help(type(value))
    return [
        (field.name, getattr(value, field.name), hints[field.name], texts.get(field.name, ""))
        for field in dataclasses.fields(value)
        if field.metadata.get("saved", True)  # networks and arrays at hand are no words
    ]


def _leaf_type(value: Any, hint: Any) -> Any:
    """What a command line may give for a field, or None where the field holds further ones."""
    if dataclasses.is_dataclass(value) or (isinstance(value, tuple) and value and dataclasses.is_dataclass(value[0])):
        return None
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        plain = [arm for arm in typing.get_args(hint) if not dataclasses.is_dataclass(arm)]
        return functools.reduce(lambda a, b: a | b, plain)
    return hint


@functools.cache
def field_help(cls: type) -> dict[str, str]:
    """The string after each field of a dataclass, its bases' included."""
    texts: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        if not dataclasses.is_dataclass(base):
            continue
        try:
            body = ast.parse(textwrap.dedent(inspect.getsource(base))).body[0].body
        except (OSError, TypeError, SyntaxError):
            continue  # no source at hand: no help, but the option works
        for node, after in itertools.pairwise(body):
            if (
                isinstance(node, ast.AnnAssign)
                and isinstance(after, ast.Expr)
                and isinstance(after.value, ast.Constant)
            ):
                texts[node.target.id] = str(after.value.value)
    return texts

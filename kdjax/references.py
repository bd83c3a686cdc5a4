"""Objects of the user's own by where they are: `my_models.py:TinyNet`, `package.module:Class`. They are saved as this text."""

import ast
import functools
import hashlib
import importlib
import importlib.util
import sys
from difflib import get_close_matches
from pathlib import Path
from types import ModuleType
from typing import Any


def is_reference(text: str) -> bool:
    """Whether a name is `FILE.py:NAME` or `MODULE:NAME` rather than one of kdjax's own."""
    return ":" in text


def label(text: str) -> str:
    """What a method or network is called: the name behind the colon of a reference, any other name as it is."""
    return text.rpartition(":")[2]


def absolute(text: str) -> str:
    """A reference that means the same from any working folder."""
    place, colon, name = text.rpartition(":")
    return f"{Path(place).expanduser().absolute()}:{name}" if colon and place.endswith(".py") else text


def load_reference(text: str) -> Any:
    """The object that a reference names. Its file or module is executed, once in a process.

    Raises:
      ValueError: no such file, module or name, or it cannot be imported; in one sentence.
    """
    place, colon, name = text.rpartition(":")
    if not (colon and place and name):
        raise ValueError(f"{text!r} is no reference; write FILE.py:NAME or package.module:NAME.")
    found: Any = import_place(place)
    module = found
    for part in name.split("."):
        if not hasattr(found, part):
            near = get_close_matches(part, public(module), n=1, cutoff=0.4)
            there = f"did you mean {near[0]!r}?" if near else f"it has {', '.join(public(module)) or 'nothing'}."
            raise ValueError(f"{place} has no {name!r}; {there}")
        found = getattr(found, part)
    return found


def import_place(place: str) -> ModuleType:
    """A file `FILE.py` or a module, imported once in a process.

    Raises:
      ValueError: there is none, or it cannot be imported.
    """
    try:
        return load_file(Path(place)) if place.endswith(".py") else importlib.import_module(place)
    except FileNotFoundError as error:
        raise ValueError(f"There is no file {place}.") from error
    except Exception as error:
        raise ValueError(f"{place} cannot be imported: {type(error).__name__}: {error}") from error


def reference_to(cls: type) -> str:
    """The reference of a class: to its file where a file was loaded by `load_file`, else to its module."""
    module = sys.modules.get(cls.__module__)
    file = getattr(module, "__kdjax_file__", None)
    return f"{file or cls.__module__}:{cls.__qualname__}"


def load_file(path: Path) -> ModuleType:
    """A Python file as a module; the same one for the same contents, so that its classes are the same."""
    path = path.expanduser().absolute()
    return _load(path, path.read_bytes())


@functools.lru_cache
def _load(path: Path, source: bytes) -> ModuleType:
    name = f"kdjax_file_{path.stem}_{hashlib.sha256(str(path).encode() + source).hexdigest()[:8]}"
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    module.__kdjax_file__ = str(path)
    sys.modules[name] = module  # where classes that the file defines are looked up
    if str(path.parent) not in sys.path:
        sys.path.append(str(path.parent))  # for its neighbours
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def public(module: ModuleType) -> list[str]:
    """Names that a module defines itself."""
    return [
        name for name, value in vars(module).items()
        if not name.startswith("_") and getattr(value, "__module__", module.__name__) == module.__name__
        and not isinstance(value, ModuleType)
    ]  # fmt: skip


def read_options(options: tuple[str, ...]) -> dict[str, Any]:
    """`("depth=3", "act=relu")` as `{"depth": 3, "act": "relu"}`: Python literals, and words as they are.

    Raises:
      ValueError: one that is not NAME=VALUE.
    """
    found = {}
    for option in options:
        name, sign, value = option.partition("=")
        if not sign or not name.isidentifier():
            raise ValueError(f"The option {option!r} is not NAME=VALUE, such as depth=3.")
        try:
            found[name] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            found[name] = value
    return found


def write_options(values: dict[str, Any]) -> tuple[str, ...]:
    """What `read_options` reads back.

    Raises:
      ValueError: a value that is no Python literal.
    """
    for name, value in values.items():
        try:
            same = ast.literal_eval(repr(value)) == value
        except (ValueError, SyntaxError):
            same = False
        if not same:
            raise ValueError(
                f"{name}={value!r} is no number, text, truth value or tuple of these, so it cannot be saved."
            )
    return tuple(f"{name}={value!r}" for name, value in values.items())

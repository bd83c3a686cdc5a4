"""Which classes a saved experiment may name for its data and networks. kdjax's own are found here by name when needed."""

import dataclasses
import importlib

# The task folders of kdjax; each `register`s what it adds.
FOLDERS = (
    "kdjax.tasks.classification", "kdjax.tasks.detection", "kdjax.tasks.text", "kdjax.tasks.language", "kdjax.tasks.given",
)  # fmt: skip

_KINDS: dict[str, type] = {}


def register(*classes: type, former: dict[str, type] | None = None) -> None:
    """Lets saved experiments hold these dataclasses, by their class names.

    Args:
      classes: a task, its kind of model, and what their fields hold.
      former: classes by the names that they had in experiments saved earlier.

    Raises:
      ValueError: a name that another class has.
    """
    for name, cls in (former or {}).items() | {cls.__name__: cls for cls in classes}.items():
        if not dataclasses.is_dataclass(cls):
            raise ValueError(f"{cls.__name__} is no dataclass, so experiments cannot hold it.")
        known = _KINDS.get(name)
        if known is not None and (known.__module__, known.__qualname__) != (cls.__module__, cls.__qualname__):
            raise ValueError(
                f"Two tasks have a class called {name}, of {known.__module__} and {cls.__module__}; rename one."
            )
        _KINDS[name] = cls


def kinds() -> dict[str, type]:
    """Every registered class by name."""
    for folder in FOLDERS:
        importlib.import_module(folder)
    return _KINDS

"""The configs that come with kdjax, by name wherever it is installed."""

import shutil
from pathlib import Path

from kdjax.experiment.spec import ExperimentError
from kdjax.places import local

INSTALLED = Path(__file__).parents[1] / "configs"  # where the wheel puts them
CLONE = Path(__file__).parents[2] / "configs"


def folder() -> Path:
    """Where the configs are: in the installed package, or in the clone it is run from."""
    return INSTALLED if INSTALLED.exists() else CLONE


def names() -> list[str]:
    """Names of all configs, such as "digits/smoke"."""
    return sorted(path.relative_to(folder()).with_suffix("").as_posix() for path in folder().glob("*/*.py"))


def find(name: str) -> Path | None:
    """The file of a config by its name, with or without "configs/" and ".py"; None if there is none of that name."""
    plain = name.removeprefix("configs/").removesuffix(".py")
    return folder() / f"{plain}.py" if plain in names() else None


def summary(name: str) -> str:
    """What a config is, in its own words: the second paragraph of its docstring, up to the first full stop."""
    import ast

    text = ast.get_docstring(ast.parse((folder() / f"{name}.py").read_text(encoding="utf-8"))) or ""
    paragraphs = text.split("\n\n")
    return " ".join(paragraphs[min(1, len(paragraphs) - 1)].split()).split(". ")[0].rstrip(".")


def copy(name: str, to: str | Path) -> Path:
    """Copies a config to a file, or into a folder, to be changed there.

    Raises:
      ExperimentError: there is no such config, or a file in its place.
    """
    source = find(name)
    if source is None:
        raise ExperimentError(f"There is no config {name!r}; there are {', '.join(names())}.")
    place = local(to, ExperimentError, "A copy")
    place = place / source.name if place.is_dir() else place
    if place.exists():
        raise ExperimentError(f"{place} exists; copy {name} to another name.")
    place.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, place)
    return place

"""The files of YOLO: a description a picture, and the names of the classes."""

from pathlib import Path
from typing import Any

import numpy as np

from kdjax.data.class_names import named_twice
from kdjax.data.errors import DataError
from kdjax.data.text_files import read_text

# By how much a box may reach beyond its picture, in shares of it: what rounding does, and not pixels for shares.
BEYOND = 0.02
MOST = 2**24  # classes
GAPS = 100  # of classes without names, so many may have no object


def described(file: Path) -> np.ndarray:
    """`[n, 5]` of the objects of a picture: class, centre and size in shares of it. Without a file it has none.

    Raises:
      DataError: a line is no object, or is not within the picture.
    """
    lines = read_text(file).splitlines() if file.is_file() else []
    try:
        rows = np.array([_row(line) for line in lines if line.strip()], np.float64).reshape(-1, 5)
    except ValueError as error:
        raise DataError(f"{file} is no description of YOLO (class, centre, size a line): {error}.") from error
    if not ((rows[:, 0] >= 0) & (rows[:, 0] < MOST) & (rows[:, 0] == np.trunc(rows[:, 0]))).all():
        raise DataError(f"{file} has a class that is no number from 0 on.")
    centre, size = rows[:, 1:3], rows[:, 3:5]
    outside = ((centre - size / 2 < -BEYOND) | (centre + size / 2 > 1 + BEYOND)).any(axis=1)
    if outside.any():
        raise DataError(
            f"{file} has a box that reaches beyond its picture, {rows[outside][0, 1:].tolist()}; centre and size are shares of "
            "the picture, 0 to 1, and no pixels."
        )
    return rows


def _row(line: str) -> list[float]:
    """Class, centre and size; of a polygon those of the box around it.

    Raises:
      ValueError: it is neither.
    """
    label, *numbers = map(float, line.split())
    if len(numbers) in (4, 5):  # the fifth says how sure somebody was
        return [label, *numbers[:4]]
    if len(numbers) < 6 or len(numbers) % 2:
        raise ValueError(f"{len(numbers) + 1} numbers in a line")
    edges = [(min(along), max(along)) for along in (numbers[0::2], numbers[1::2])]
    return [label, *((low + high) / 2 for low, high in edges), *(high - low for low, high in edges)]


def class_names(root: Path, labels: np.ndarray) -> tuple[str, ...]:
    """Names of the classes: a line each in classes.txt, or `names` of data.yaml; their numbers where there are none.

    Args:
      root: of the set.
      labels: of all objects of a split.

    Raises:
      DataError: names are missing, or a file is none of these.
    """
    largest = int(labels.max(initial=-1))
    names = _listed(root)
    if not names:
        kinds = len(np.unique(labels))
        if largest >= kinds + GAPS:
            raise DataError(
                f"{root} has an object of class {largest:,} and objects of {kinds} classes in all; name them in classes.txt."
            )
        return tuple(map(str, range(largest + 1)))
    if largest >= len(names):
        raise DataError(
            f"{root} names {len(names)} classes, and there is an object of class {largest}; classes count from 0."
        )
    return names


def _listed(root: Path) -> tuple[str, ...]:
    for name in ("classes.txt", "obj.names"):
        if (root / name).is_file():
            return tuple(line.strip() for line in read_text(root / name).splitlines() if line.strip())
    for file in sorted((*root.glob("*.yaml"), *root.glob("*.yml"))):
        names = _of_yaml(file)
        if names:
            return _in_order(file, names)
    return ()


def _of_yaml(file: Path) -> Any:
    import yaml

    try:
        whole = yaml.load(read_text(file), Loader=yaml.BaseLoader)  # texts alone: a class may be called "no", or 7
    except yaml.YAMLError as error:
        raise DataError(f"{file} is no YAML: {' '.join(str(error).split())}.") from error
    return whole.get("names") if isinstance(whole, dict) else None


def _in_order(file: Path, names: Any) -> tuple[str, ...]:
    """A list of names, or names by number, all of them from 0 on."""
    if isinstance(names, str):
        names = [word.strip() for word in names.split(",")]
    if isinstance(names, dict):
        if set(names) != set(map(str, range(len(names)))):
            raise DataError(f"{file} names classes {', '.join(names)}; name all from 0 on, each by its number.")
        names = [names[str(number)] for number in range(len(names))]
    if not isinstance(names, list) or any(isinstance(name, dict | list) for name in names):
        raise DataError(f"{file} has names that are no list of names.")
    twice = named_twice(names)
    if twice is not None:
        raise DataError(f"{file} names {twice!r} twice; give every class a name of its own.")
    return tuple(names)

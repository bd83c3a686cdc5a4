"""What a finished network says of files."""

import functools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from kdjax.experiment.spec import ExperimentError
from kdjax.experiment.trained import Trained, load_trained

AT_ONCE = 32


def predict(
    run: str | Path | Trained,
    files: Sequence[Path | str],
    *,
    phase: str | None = None,
    top: int = 5,
    draw: Path | None = None,
) -> Iterator[tuple[Path | str, list[tuple[str, float]]]]:
    """What a network says of files, the surest first, one file after the other: of pictures and texts their classes, or the
    boxes in a picture.

    Args:
      run: folder of a finished run, of training or of `kdjax convert`; or what `load_trained`, or `trained` of results, gives.
      files: paths of pictures of any size, or of texts; or texts themselves, as `str`. See `kdjax.tasks.Task.decoded`.
      phase: whose network; the student's if not given.
      top: how many classes, or boxes.
      draw: a folder for the files with what was found in them, FILE.found.png; none is overwritten.

    Yields:
      `(file, [(class, probability)])`, see `kdjax.tasks.Task.answers`; a class without a name is called by its number.

    Raises:
      ExperimentError: there is no such network, a file cannot be read, or the network says no classes of a whole file.
    """
    trained = run if isinstance(run, Trained) else load_trained(run, phase)
    task = trained.task
    said_of = jax.jit(trained)
    places = _places(files, draw)
    for start in range(0, len(files), AT_ONCE):
        some = files[start : start + AT_ONCE]
        try:
            inputs = [task.decoded(file, trained.inputs) for file in some]
            answers: list[Any] = [None] * len(some)
            for alike in _of_one_shape(inputs):
                more = AT_ONCE - len(alike) if len(files) > AT_ONCE else 0  # one program for all
                shown = jax.tree.map(lambda *each: np.stack(each), *(inputs[i] for i in alike + alike[:1] * more))
                output = jax.device_get(said_of(shown))
                for row, said in enumerate(task.answers(shown, output, trained.classes, top)[: len(alike)]):
                    answers[alike[row]] = said, jax.tree.map(functools.partial(_row, row), (shown, output))
            for i, (file, (said, one)) in enumerate(zip(some, answers, strict=True), start):
                if draw is not None:
                    task.drawn(*one, trained.classes, places[i])
                yield file, said
        except ValueError as error:
            raise ExperimentError(f"{str(error).rstrip('.')}.") from error


def _places(files: Sequence[Any], draw: Path | None) -> list[Path]:
    """Where each file's picture goes: under its name, with a number where several have one.

    Raises:
      ExperimentError: one of them is there.
    """
    if draw is None:
        return []
    names = [Path(file).name for file in files]
    several = len(set(names)) < len(names)
    places = [draw / f"{f'{i}-' * several}{name}.found.png" for i, name in enumerate(names, 1)]
    for place in places:
        if place.exists():
            raise ExperimentError(f"{place} exists; name another folder with --draw.")
    return places


def _row(row: int, x: Any) -> Any:
    """Of an array by example one of them; numbers of the whole batch are as they are."""
    return x[row : row + 1] if np.ndim(x) else x


def _of_one_shape(inputs: Sequence[Any]) -> list[list[int]]:
    """Places of the inputs, those of one shape together."""
    alike: dict[Any, list[int]] = {}
    for place, one in enumerate(inputs):
        alike.setdefault(tuple(np.shape(x) for x in jax.tree.leaves(one)), []).append(place)
    return list(alike.values())

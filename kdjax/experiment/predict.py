"""What a finished network says of files."""

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
    for start in range(0, len(files), AT_ONCE):
        some = files[start : start + AT_ONCE]
        try:
            inputs = [task.decoded(file, trained.inputs) for file in some]
            answers: list[Any] = [None] * len(some)
            for places in _of_one_shape(inputs):
                more = AT_ONCE - len(places) if len(files) > AT_ONCE else 0  # one program for all
                shown = jax.tree.map(lambda *each: np.stack(each), *(inputs[i] for i in places + places[:1] * more))
                output = jax.device_get(said_of(shown))
                for row, said in enumerate(task.answers(shown, output, trained.classes, top)[: len(places)]):
                    answers[places[row]] = said, jax.tree.map(lambda x, row=row: x[row : row + 1], (shown, output))
            for file, (said, one) in zip(some, answers, strict=True):
                if draw is not None:
                    place = draw / f"{Path(file).name}.found.png"
                    if place.exists():
                        raise ExperimentError(f"{place} exists; name another folder with --draw.")
                    task.drawn(*one, trained.classes, place)
                yield file, said
        except ValueError as error:
            raise ExperimentError(f"{str(error).rstrip('.')}.") from error


def _of_one_shape(inputs: Sequence[Any]) -> list[list[int]]:
    """Places of the inputs, those of one shape together."""
    alike: dict[Any, list[int]] = {}
    for place, one in enumerate(inputs):
        alike.setdefault(tuple(np.shape(x) for x in jax.tree.leaves(one)), []).append(place)
    return list(alike.values())

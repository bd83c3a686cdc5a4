"""What a finished network says of files: its likeliest classes, with their probabilities."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import jax
import numpy as np

from kdjax.experiment.artifacts import saved_experiment
from kdjax.experiment.spec import ExperimentError
from kdjax.experiment.trained import load_trained

AT_ONCE = 32


def predict(
    run: str | Path, files: Sequence[Path], *, phase: str | None = None, top: int = 5
) -> Iterator[tuple[Path, list[tuple[str, float]]]]:
    """The likeliest classes of files, likeliest first, one file after the other.

    Args:
      run: folder of a finished run, of training or of `kdjax convert`.
      files: pictures of any size; see `kdjax.tasks.Task.decoded`.
      phase: whose network; the student's if not given.
      top: how many classes.

    Yields:
      `(file, [(class, probability)])`; a class without a name is called by its number.

    Raises:
      ExperimentError: there is no such network, a file cannot be read, or the network says no classes of a whole file.
    """
    trained, task = load_trained(run, phase), saved_experiment(Path(run)).data
    said = jax.eval_shape(trained, trained.inputs).logits
    if said.ndim != 2:
        raise ExperimentError(f"{trained.network.name} gives logits {list(said.shape)}, not one class of a file.")
    numbers = tuple(map(str, range(said.shape[1])))
    names = trained.classes if len(trained.classes) == len(numbers) else numbers
    probabilities = jax.jit(lambda inputs: jax.nn.softmax(trained(inputs).logits.astype(np.float32)))
    for start in range(0, len(files), AT_ONCE):
        some = files[start : start + AT_ONCE]
        try:
            inputs = [task.decoded(file, trained.inputs) for file in some]
        except ValueError as error:
            raise ExperimentError(f"{str(error).rstrip('.')}.") from error
        rows = inputs + inputs[:1] * (AT_ONCE - len(some) if len(files) > AT_ONCE else 0)  # one program for all
        for file, row in zip(some, np.asarray(probabilities(np.stack(rows))), strict=False):
            best = np.argsort(-row, kind="stable")[:top]
            yield file, [(names[i], float(row[i])) for i in best]

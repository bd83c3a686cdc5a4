"""Networks of a study: trained as a comparison, and what they say of images."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from kdjax.experiment.compare import compare
from kdjax.experiment.program import Builder
from kdjax.experiment.spec import Experiment, ExperimentError
from kdjax.experiment.trained import Trained, load_trained


def train(
    experiments: dict[str, Experiment], seeds: Sequence[int], folder: Path, *, overwrite: bool, data_dir: str | None,
    **common: Any,
) -> dict[str, Any]:  # fmt: skip
    """Trains students side by side, as `kdjax.experiment.compare` does; returns its methods. Runs that are there are kept.

    Raises:
      ExperimentError: a student failed, so that the study would say nothing.
    """
    resume = folder.exists() and not overwrite
    found = compare(experiments, seeds, folder, resume=resume, overwrite=overwrite, builder=Builder(data_dir), **common)
    if found["failed"]:
        raise ExperimentError(f"The study says nothing, since a student failed: {'; '.join(found['failed'].values())}")
    return found["methods"]


def students(folder: Path, name: str, seeds: Sequence[int]) -> list[Trained]:
    """The students of one name that `train` left in a folder, by seed."""
    return [load_trained(folder / name / f"seed{seed}") for seed in seeds]


def teacher(folder: Path) -> Trained:
    """The teacher of the students that `train` left in a folder."""
    return load_trained(folder / "teacher")


def answers(network: Trained, images: Any, batch: int = 500) -> Any:
    """What a network says of stored images `[N, H, W, C]`: its output's arrays as NumPy, `[N, ...]`, batch by batch."""
    run = jax.jit(
        lambda variables, x: network.network.apply(variables.params, variables.state, network.view(x), train=False)[0]
    )
    parts = []
    for start in range(0, len(images), batch):
        x = images[start : start + batch]
        padded = np.concatenate([x, np.repeat(x[-1:], batch - len(x), axis=0)]) if len(x) < batch else x
        parts.append(jax.tree.map(lambda y, n=len(x): np.asarray(y)[:n], run(network.variables, padded)))
    return jax.tree.map(lambda *ys: np.concatenate(ys), *parts)

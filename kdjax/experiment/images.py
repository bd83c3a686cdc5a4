"""The images of an experiment: split, and kept on the devices where they are small."""

import dataclasses
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from kdjax.data import Source, evaluation_batches, load, make_splits
from kdjax.experiment.spec import Data, Phase
from kdjax.training import Runner
from kdjax.types import Batch, DataInfo

RESIDENT_BYTES = 512 * 2**20  # images below this stay on the devices


@dataclasses.dataclass(frozen=True)
class Images:
    """The examples of an experiment, split.

    Attributes:
      train: the training split.
      train_index: rows of it that are trained on (validation held out).
      labelled: `[len(train)]` bool, whose labels a taught network may use.
      held: the split that is evaluated, and `held_index` its rows.
      description: what they are, for reports.
    """

    train: Source
    train_index: np.ndarray
    labelled: np.ndarray
    held: Source
    held_index: np.ndarray

    @property
    def info(self) -> DataInfo:
        return DataInfo(self.train.num_classes, len(self.train))

    def info_for(self, phase: Phase) -> DataInfo:
        """With the labels that a phase may use; -1 for the others, -2 for examples that are held out."""
        visible = self.train.labels if phase.labels == "all" else np.where(self.labelled, self.train.labels, -1)
        trained = np.isin(np.arange(len(self.train)), self.train_index)
        visible = np.where(trained, visible, -2)
        return dataclasses.replace(self.info, labels=visible.astype(np.int32))

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one image, `(H, W, C)`."""
        return self.train.fetch([0])[0].shape[1:]

    def evaluated_batches(self, batch_size: int) -> Iterator[Batch]:
        return evaluation_batches(
            self.held, self.held_index, batch_size, process_index=jax.process_index(), process_count=jax.process_count()
        )


def load_images(data: Data, data_dir: str | None = None) -> Images:
    """Loads and splits the images that `data` asks for."""
    train = load(data.name, split="train", data_dir=data_dir)
    splits = make_splits(train.labels, validation=data.validation, labelled=data.labelled, split_seed=data.split_seed)
    if data.evaluate_on == "validation":
        held, rows = train, splits.validation
    else:
        held = load(data.name, split="test", data_dir=data_dir)
        rows = np.arange(len(held))
    if 0 < data.eval_examples < len(rows):
        rows = rows[np.linspace(0, len(rows) - 1, data.eval_examples).round().astype(int)]
    return Images(train, splits.train, splits.labelled, held, rows)


def visited(phase: Phase, images: Images) -> np.ndarray:
    """Rows of the training split a phase visits: those that can teach it something.

    An objective that reads no teacher learns nothing from an unlabelled example, which would only thin its batches.
    """
    if phase.taught or phase.labels == "all":
        return images.train_index
    return images.train_index[images.labelled[images.train_index]]


class Resident:
    """What stays on the devices: evaluation batches, and the training images where they are small."""

    def __init__(self):
        self.evaluated: list[Batch] = []
        self._images: Any = None

    def images(self, images: Images, runner: Runner) -> Any:
        if self._images is None:
            self._images = jax.device_put(images.train.images, runner.replicated)
        return self._images


def fits(images: np.ndarray | None) -> bool:
    """Whether a training split is in memory and small enough to stay on every device."""
    return images is not None and images.nbytes <= RESIDENT_BYTES

"""The examples of an experiment, split: what a task loads."""

import dataclasses
import functools
from typing import Any

import jax
import numpy as np

from kdjax.data import Examples
from kdjax.types import DataInfo, Tree

NOT_HERE = "not here: shapes alone"  # end of the description of a stand-in
BESIDE = "teacher"  # what a teacher alone is shown of examples: inputs of this name, beside those of all
RESIDENT_BYTES = 512 * 2**20  # inputs below this may stay on the devices


@dataclasses.dataclass(frozen=True, eq=False)
class Dataset:
    """The examples of an experiment, split.

    Attributes:
      train: the training split.
      train_index: rows of it that are trained on (validation held out).
      labelled: `[len(train)]` bool, whose targets a taught network may use.
      held: the split that is evaluated, and `held_index` its rows.
      evaluated_on: what reports call these, "test" or "validation".
      info: what objectives may know; its labels are those of all of `train`, or None.
      arrays: the inputs of all of `train`, arrays `[N, ...]`, where they are in memory; else None.
      description: what there is to say of the data beyond counts, such as "10 classes".
      validation: examples that were held out of training for what a phase goes by as it runs, where a task has any.
    """

    train: Examples
    train_index: np.ndarray
    labelled: np.ndarray
    held: Examples
    held_index: np.ndarray
    evaluated_on: str
    info: DataInfo
    arrays: Tree | None = None
    description: str = ""
    validation: Examples | None = None

    def usable(self, labels: str) -> np.ndarray:
        """`[len(train)]` bool, whose targets a network may use: "all", or those of "labelled" examples."""
        return np.ones(len(self.train), bool) if labels == "all" else self.labelled

    def info_for(self, labels: str) -> DataInfo:
        """`info` with the classes that a network may know; -1 for the others, -2 for examples that are held out."""
        if self.info.labels is None:
            return self.info
        visible = np.where(self.usable(labels), self.info.labels, -1)
        trained = np.isin(np.arange(len(self.train)), self.train_index)
        return dataclasses.replace(self.info, labels=np.where(trained, visible, -2).astype(np.int32))

    def visited(self, taught: bool, labels: str) -> np.ndarray:
        """Rows of the training split that a network learns something from.

        An objective that reads no teacher learns nothing from an unlabelled example, which would only thin its batches.
        """
        return self.train_index if taught else self.train_index[self.usable(labels)[self.train_index]]

    @functools.cached_property
    def fingerprints(self) -> dict[str, str]:
        """What tells these examples from others of the same name: hashes of what is trained on and of what is evaluated."""
        trained = self.train.fingerprint()
        return {"train": trained, "evaluated": trained if self.held is self.train else self.held.fingerprint()}

    @property
    def resident(self) -> bool:
        """Whether the training inputs are small enough to stay on every device."""
        return self.arrays is not None and sum(x.nbytes for x in jax.tree.leaves(self.arrays)) <= RESIDENT_BYTES

    def shapes(self, size: int) -> dict[str, Any]:
        """Shapes and types of what `Examples.read` gives of so many examples."""
        one = self.train.read(np.zeros(1, np.int32))
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct((size, *x.shape[1:]), x.dtype), one)

"""What a finished network must know of the data it was trained on, to be built again where that data is not."""

import dataclasses
import math
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from kdjax.tasks.dataset import Dataset
from kdjax.types import DataInfo, Tree

LARGEST = 10**8  # examples of a set, or values of an example


def facts_of(dataset: Dataset) -> dict[str, Any]:
    """Counts, targets and shapes of a data set, JSON-like."""
    info = dataset.info
    return {
        "name": dataset.train.name,
        "num_classes": info.num_classes,
        "num_examples": info.num_examples,
        "targets": list(info.targets),
        "class_names": list(info.class_names),
        "inputs": jax.tree.map(lambda x: f"{x.dtype}{list(x.shape[1:])}", dataset.shapes(1)["inputs"]),
    }


def dataset_of(facts: dict[str, Any]) -> Dataset:
    """A data set of which only `facts_of` is known: it has the shapes, and zeros in place of the examples.

    Raises:
      ValueError: these are no facts of a data set.
    """
    count, classes = facts["num_examples"], facts["num_classes"]
    if not (0 <= count <= LARGEST and 0 <= classes <= LARGEST):
        raise ValueError(
            f"The network's data are said to have {count:,} examples and {classes:,} classes; train it again."
        )
    if not jax.tree.leaves(facts.get("inputs")):
        raise ValueError("The network does not say what its inputs are; train it again.")
    examples = Remembered(facts["name"], "train", jax.tree.map(_shape, facts.get("inputs", {})), count)
    rows = np.arange(count)
    labels = (rows % max(classes, 1)).astype(np.int32)
    info = DataInfo(
        classes, count, labels=labels, targets=tuple(facts["targets"]), class_names=tuple(facts.get("class_names", ()))
    )
    return Dataset(examples, rows, np.ones(count, bool), examples, rows, "train", info)


@dataclasses.dataclass(frozen=True)
class Remembered:
    """Examples of which only the shapes are known."""

    name: str
    split: str
    inputs: Tree
    count: int

    def __len__(self) -> int:
        return self.count

    def read(self, indices, **options: Any) -> dict[str, Any]:
        size = len(np.asarray(indices))
        return {
            "inputs": jax.tree.map(lambda x: np.zeros((size, *x.shape), x.dtype), self.inputs),
            "targets": np.zeros(size, np.int32),
        }

    def fingerprint(self) -> str:
        raise ValueError(f"Of {self.name} only the shapes are known here.")


def _shape(text: str) -> jax.ShapeDtypeStruct:
    found = re.fullmatch(r"((?:u?int|float|bfloat|bool)\d*)\[((?:\d{1,8}(?:, )?)*)\]", str(text))
    if not found:
        raise ValueError(f"The network's inputs are said to be {text!r}, which is no type and shape; train it again.")
    shape = tuple(int(size) for size in found[2].split(",") if size.strip())
    if math.prod(shape) > LARGEST:
        raise ValueError(f"The network's inputs are said to have the shape {list(shape)}; train it again.")
    try:
        return jax.ShapeDtypeStruct(shape, jnp.dtype(found[1]))
    except TypeError as error:
        raise ValueError(
            f"The network's inputs are said to be {text!r}, which is no type and shape; train it again."
        ) from error

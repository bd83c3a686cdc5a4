"""Networks and data that a program hands over, rather than names: what `kdjax.distill` makes of its arguments."""

import dataclasses
import hashlib
from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import nnx

from kdjax.data import DataError
from kdjax.models import from_linen, from_nnx
from kdjax.tasks.dataset import Dataset
from kdjax.tasks.registry import register
from kdjax.tasks.task import Model, NumberedViews, Task
from kdjax.training.metrics import Metric
from kdjax.types import Array, DataInfo, MultiView, Network, Tree

AGREEMENT = Metric("agreement", "agreement %", 100, 2, unit="points")
NLL = Metric("nll", "NLL", 1, 2, higher_is_better=False)
TEACHER_KL = Metric("teacher_kl", "KL from teacher", 1, 3, higher_is_better=False)
UNSAVED = {"saved": False}  # metadata of fields that a saved experiment does not hold


@dataclasses.dataclass(frozen=True, kw_only=True)
class GivenNetwork(Model):
    """A network at hand. Saved experiments hold its name only."""

    trained: bool = False
    """whether it has its weights already, and is taken as it is"""
    network: Any = dataclasses.field(default=None, compare=False, repr=False, metadata=UNSAVED)
    """a Network, an NNX module or what makes one of `nnx.Rngs`, or a Linen module"""

    def build(self, inputs: Tree) -> Network:
        """The network for inputs of these shapes.

        Raises:
          ValueError: it is not at hand, or none of what it may be.
        """
        found = self.network
        if found is None:
            raise ValueError(
                f"The network {self.name!r} was handed over by a program; run that again with resume=True, or "
                "give kdjax.load_trained network=."
            )
        if isinstance(found, Network):
            return found
        if self.trained and not (
            isinstance(found, nnx.Module) or (isinstance(found, nn.Module) and found.scope is not None)
        ):
            kind = "Linen module" if isinstance(found, nn.Module) else "constructor"
            raise ValueError(
                f"{self.name!r} is to teach as it is, and is a {kind} without "
                "weights; give a trained NNX module, or kdjax.models.from_linen(module, inputs, variables=...)."
            )
        if isinstance(found, nn.Module):
            return from_linen(found, inputs, name=self.name)
        if isinstance(found, nnx.Module) or callable(found):
            return from_nnx(found, name=self.name)
        raise ValueError(
            f"{self.name!r} is a {type(found).__name__}; give an NNX module or its constructor, a Linen module, or a Network."
        )


@dataclasses.dataclass(frozen=True, eq=False)
class Arrays:
    """Examples in memory.

    Attributes:
      name, split: for messages.
      inputs: pytree of NumPy arrays `[N, ...]`.
      targets: array `[N, ...]`, or several by name, or None.
    """

    name: str
    split: str
    inputs: Tree
    targets: Any

    def __len__(self) -> int:
        return len(jax.tree.leaves(self.inputs)[0])

    def read(self, indices, *, inputs: bool = True, **_: Any) -> dict[str, Any]:
        chosen = np.asarray(indices)
        take = lambda tree: jax.tree.map(lambda x: x[chosen], tree)
        return {"inputs": take(self.inputs) if inputs else None, "targets": take(self.targets)}

    def fingerprint(self) -> str:
        digest = hashlib.sha256()
        for path, leaf in jax.tree_util.tree_leaves_with_path((self.inputs, self.targets)):
            digest.update(f"{path} {leaf.dtype} {leaf.shape}".encode())
            digest.update(np.ascontiguousarray(leaf))
        return digest.hexdigest()


@dataclasses.dataclass(frozen=True, kw_only=True)
class GivenData(Task):
    """Examples at hand, each with a class, or with one for each of its elements, or without. Saved experiments hold their
    fingerprint."""

    fingerprint: str = ""
    """of the examples: a run is gone on with only with the same"""
    num_classes: int = 0
    """number of classes"""
    preprocessed: bool = False
    """whether there is a `preprocess`"""
    augmented: bool = False
    """whether there is an `augment`"""
    judged_by: Literal["labels", "teacher"] = "labels"
    """what a network is evaluated by: labels, or where there are none agreement with its teacher"""
    train: Any = dataclasses.field(default=None, compare=False, repr=False, metadata=UNSAVED)
    """`Arrays` to train on"""
    test: Any = dataclasses.field(default=None, compare=False, repr=False, metadata=UNSAVED)
    """`Arrays` to evaluate on"""
    preprocess: Any = dataclasses.field(default=None, compare=False, repr=False, metadata=UNSAVED)
    """`inputs [B, ...] -> what the networks see`, or None"""
    augment: Any = dataclasses.field(default=None, compare=False, repr=False, metadata=UNSAVED)
    """`(key, inputs of one example) -> inputs`, for training, or None"""

    @property
    def metric(self) -> Metric:
        return Task.metric if self.judged_by == "labels" else AGREEMENT

    @property
    def columns(self) -> tuple[Metric, ...]:
        return (AGREEMENT, NLL) if self.judged_by == "labels" else (TEACHER_KL,)

    def load(self, data_dir: str | None = None) -> Dataset:
        if self.train is None:
            raise DataError(
                f"The examples {self.name!r} were handed over by a program; run that again with resume=True."
            )
        labels = self.train.targets
        classes = labels if labels is not None and labels.ndim == 1 else None
        rows = np.arange(len(self.train), dtype=np.int32)
        names = () if labels is None else ("labels",)
        info = DataInfo(self.num_classes, len(self.train), labels=classes, targets=names)
        return Dataset(
            self.train, rows, np.ones(len(rows), bool), self.test, np.arange(len(self.test), dtype=np.int32), "test", info,
            arrays=self.train.inputs, description=f"{self.num_classes} classes",
        )  # fmt: skip

    def train_views(self, inputs: Any, index: Array, epoch: Array, key: Array, *, names: tuple[str, ...]) -> Any:
        if names != ("main",):
            return super().train_views(inputs, index, epoch, key, names=names)
        if self.augment is not None:
            key = jax.random.fold_in(key, epoch)
            inputs = jax.vmap(lambda i, one: self.augment(jax.random.fold_in(key, i), one))(index, inputs)
        return MultiView({"main": self.evaluation_view(inputs)})

    def evaluation_view(self, inputs: Any) -> Any:
        if self.preprocess is None:
            if self.preprocessed:
                raise ValueError(
                    f"The network was trained on {self.name!r} behind a preprocess=, which is not at hand; give it."
                )
            return inputs
        return self.preprocess(inputs)

    def numbered_views(self) -> NumberedViews:
        if self.augment is not None:
            raise ValueError(
                "augment= shows examples anew in every pass, and no view comes twice; leave out it or teacher_cache."
            )
        same = lambda index, epoch, key: jnp.zeros(len(index), jnp.int32)
        facts = {"given": self.name, "shown": self._shown_digest()}
        return NumberedViews(1, same, lambda inputs, numbers: self.evaluation_view(inputs), facts)

    def _shown_digest(self) -> str:
        """What a thousand examples look like behind `preprocess`, which is a function that nobody can name."""
        if self.preprocess is None:
            return "as they are"
        rows = np.unique(np.linspace(0, len(self.train) - 1, 1000).astype(int))
        shown = jax.device_get(jax.jit(self.preprocess)(self.train.read(rows)["inputs"]))
        return Arrays("", "", shown, None).fingerprint()[:16]

    def network(self, model: Model, dataset: Dataset, *, remat: bool = False) -> Network:
        raise ValueError(f"The network {model.name!r} is no network at hand; hand one over.")


def given_data(
    train: tuple[Tree, Any], test: tuple[Tree, Any], *, num_classes: int | None = None, name: str = "given",
    preprocess: Callable[[Any], Any] | None = None, augment: Callable[[Array, Any], Any] | None = None,
    batch_size: int = 128, eval_batch_size: int = 512,
) -> GivenData:  # fmt: skip
    """A task of arrays at hand.

    Args:
      train, test: `(inputs, labels)` each: a pytree of arrays `[N, ...]`, and classes `[N]` or `[N, L]` of integers, or None.
      num_classes: the largest label and one, if not given; needed where no part has labels.
      name: for reports.
      preprocess, augment: see `GivenData`.
      batch_size, eval_batch_size: examples in a step.

    Raises:
      DataError: arrays of different lengths or kinds, labels that are no classes, or none and no `num_classes`.
    """
    splits = {}
    for split, (inputs, labels) in {"train": train, "test": test}.items():
        inputs, labels = jax.tree.map(np.asarray, inputs), None if labels is None else np.asarray(labels)
        _check_inputs(f"{name}, {split}", inputs)
        labels = _classes_of(f"{name}, {split}", inputs, labels)
        sizes = sorted({len(leaf) for leaf in jax.tree.leaves((inputs, labels))})
        if len(sizes) != 1 or sizes[0] == 0:
            raise DataError(
                f"The arrays of {name}, {split}, have {' and '.join(map(str, sizes))} rows; give as many of each."
            )
        if labels is not None and not np.issubdtype(labels.dtype, np.integer):
            raise DataError(
                f"The labels of {name}, {split}, are {labels.dtype}; give classes as integers from 0, or None if there are none."
            )
        splits[split] = Arrays(name, split, inputs, None if labels is None else labels.astype(np.int32))
    kinds = [jax.tree.map(lambda x: str(jax.dtypes.canonicalize_dtype(x.dtype)), splits[s].inputs) for s in splits]
    if kinds[0] != kinds[1]:
        raise DataError(f"The inputs of {name} are {kinds[0]} to train on and {kinds[1]} to evaluate; give them alike.")
    trained, tested = splits["train"].targets, splits["test"].targets
    given = {split: arrays.targets for split, arrays in splits.items() if arrays.targets is not None}
    if num_classes is None and trained is None:
        raise DataError(
            f"{name} has no labels to train on, which would say how many classes there are; give num_classes."
        )
    largest = max((int(labels.max()) for labels in given.values()), default=0)
    if num_classes is None and tested is not None and trained.ndim == 1 and tested.max() > trained.max():
        raise DataError(
            f"Label {tested.max()} of {name}, test, at {tested.argmax()}, is none of the training part, whose labels go to "
            f"{trained.max()}; mend it, or give num_classes={largest + 1}."
        )
    classes = int(largest) + 1 if num_classes is None else num_classes
    for split, labels in given.items():
        wrong = np.flatnonzero((labels < 0) | (labels >= classes))
        if len(wrong):
            raise DataError(
                f"Label {labels.flat[wrong[0]]} of {name}, {split}, at {wrong[0]}, is not among the {classes} classes."
            )
    return GivenData(
        name=name, batch_size=batch_size, eval_batch_size=eval_batch_size, num_classes=classes,
        judged_by="teacher" if tested is None else "labels",
        fingerprint=" ".join(arrays.fingerprint()[:16] for arrays in splits.values()),
        preprocess=preprocess, augment=augment, preprocessed=preprocess is not None, augmented=augment is not None, **splits,
    )  # fmt: skip


def _check_inputs(where: str, inputs: Tree) -> None:
    """Refuses inputs that hold no arrays of numbers."""
    for leaf in jax.tree.leaves(inputs):
        if leaf.ndim == 0 or leaf.dtype.kind in "OSU":
            what = "single numbers, as lists do" if leaf.ndim == 0 else f"{leaf.dtype}"
            raise DataError(
                f"The inputs of {where}, hold {what}; give arrays of numbers [N, ...], numpy.asarray(inputs)."
            )
        if np.issubdtype(leaf.dtype, np.floating) and not np.isfinite(leaf).all():
            row = int(np.argwhere(~np.isfinite(leaf))[0][0])
            raise DataError(f"The inputs of {where}, are not finite in row {row}; mend it, or leave it out.")


def _classes_of(where: str, inputs: Tree, labels: Any) -> Any:
    """Labels `[N, 1]`, as Keras has them, without that axis; classes spelt out as rows of 0 and a 1 are refused."""
    if labels is None or labels.ndim != 2 or any(leaf.ndim > 1 and leaf.shape[1] == labels.shape[1] for leaf in
                                                 jax.tree.leaves(inputs)):  # fmt: skip
        return labels  # a class of each element
    if labels.shape[1] == 1:
        return labels[:, 0]
    if ((labels == 0) | (labels == 1)).all() and (labels.sum(axis=1) == 1).all():
        raise DataError(
            f"The labels of {where}, are rows of 0 and a 1, {list(labels.shape)}; give classes, labels.argmax(axis=1)."
        )
    return labels


def named(found: Any, fallback: str) -> str:
    """What a network at hand is called."""
    if isinstance(found, Network):
        return found.name
    kind = found if isinstance(found, type) or not isinstance(found, nn.Module | nnx.Module) else type(found)
    name = getattr(kind, "__name__", fallback)
    return fallback if name == "<lambda>" else name


register(GivenData, GivenNetwork)

__all__: Sequence[str] = ("Arrays", "GivenData", "GivenNetwork", "given_data", "named")

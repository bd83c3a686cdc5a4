"""How a config names images and their classes, and how they become batches, views and a table."""

import contextlib
import dataclasses
import os
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Literal

import jax
import numpy as np

from kdjax.data import Crop, Reading, Source, load, make_splits, stand_in
from kdjax.data.errors import DataError, note
from kdjax.data.overlap import said as overlapping
from kdjax.data.pictures import Unreadable
from kdjax.data.sources import own_path
from kdjax.models.zoo.catalogue import LEAST_WIDTHS
from kdjax.references import is_reference
from kdjax.tasks.classification.foreign import reclassified, renormalised
from kdjax.tasks.classification.networks import Classifier, make_classifier
from kdjax.tasks.classification.views import FloatViews, VectorViews, Views
from kdjax.tasks.dataset import NOT_HERE, Dataset
from kdjax.tasks.task import NumberedViews, Task
from kdjax.training.metrics import Metric
from kdjax.types import DataInfo, Network


@dataclasses.dataclass(frozen=True, kw_only=True)
class Classification(Task):
    """Which images, how many of them with labels, and how they are shown."""

    name: str = "fashion_mnist/subset"
    """data set: fashion_mnist/subset, fashion_mnist/full, digits, a TFDS image set such as cifar100, a folder of pictures (a
    folder a class), or an .npz or .npy file"""
    image_size: int = 0
    """pictures are cropped to squares of so many pixels; 0 for pictures that are all of one size, as they are"""
    channels: Literal[1, 3] = 3
    """what pictures are read as: 3 for RGB, 1 for grey"""
    crop: Crop = Crop()
    """which part of a picture is shown, on the host; only with image_size"""
    background: int = 255
    """0 to 255, what shows through where a picture is transparent"""
    skip_unreadable: bool = False
    """leave out pictures that cannot be read, and say how many; all are read for it once"""
    eval_examples: int = 0
    """evaluate at most so many examples, evenly spaced over the split; 0 for all"""
    validation: int = 0
    """examples held out of the training split, for tuning"""
    evaluate_on: Literal["test", "validation"] = "test"
    """which examples are evaluated"""
    labelled: int = 0
    """training examples whose label a taught network may use; 0 for all"""
    split_seed: int = 0
    """seed of the choice of validation and labelled examples, and of test ones where a set has none"""
    views: Views = Views()
    """augmentation and normalisation, on the device; one number for mean or std is that of all channels"""

    def __post_init__(self):
        if self.name.endswith((".npz", ".npy")) or os.path.isdir(os.path.expanduser(self.name)):
            with contextlib.suppress(DataError):  # which is said where it is read
                own = own_path(self.name)
                if own is not None:  # a saved run is read from anywhere
                    object.__setattr__(self, "name", os.path.abspath(own))

    metric: ClassVar = Metric("top1", "top-1 %", 100, 2, unit="points")
    columns: ClassVar = (
        Metric("agreement", "agreement %", 100, 1), Metric("nll", "NLL", 1, 2, higher_is_better=False),
        Metric("ece", "ECE %", 100, 1, higher_is_better=False),
    )  # fmt: skip
    noun: ClassVar = "images"
    legend: ClassVar = "Agreement: same prediction as the teacher. NLL in nats. ECE: calibration error over 15 bins."

    @classmethod
    def of_published(
        cls, network: str, width: int, *, data: str, image_size: int, channels: int, mean: Sequence[float],
        std: Sequence[float],
    ) -> "tuple[Classification, Classifier]":  # fmt: skip
        """The task that a published network was trained on, as far as it matters for using it, and the network."""
        views = Views(mean=tuple(mean), std=tuple(std))
        task = cls(name=data, image_size=image_size, channels=channels, crop=Crop(train="center"), views=views)
        return task, Classifier(name=network, width=width)

    def load(self, data_dir: str | None = None) -> Dataset:
        def split(name):
            return load(self.name, split=name, data_dir=data_dir, reading=self.reading, split_seed=self.split_seed)

        return self._dataset(split)

    def stand_in(self, data_dir: str | None = None) -> Dataset | None:
        def split(name):
            return stand_in(self.name, split=name, data_dir=data_dir, reading=self.reading)

        if split("train") is None:
            return None
        dataset = self._dataset(split, real=False)
        return dataclasses.replace(dataset, description=f"{self.name}, {dataset.description}, is {NOT_HERE}")

    def _dataset(self, split: Callable[[str], Source], *, real: bool = True) -> Dataset:
        train = split("train")
        splits = make_splits(
            train.labels, validation=self.validation, labelled=self.labelled, split_seed=self.split_seed
        )
        if self.evaluate_on == "validation":
            held, rows = train, splits.validation
        else:
            held = split("test")
            rows = np.arange(len(held))
        _check_alike(train, held)
        if real and self.evaluate_on != "validation" and (shared := overlapping(train, held)):
            note(shared)
        if len(splits.train) < self.batch_size:
            note(
                f"{train.name} ({train.split}) has {len(splits.train):,} examples to train on, fewer than a batch of "
                f"{self.batch_size:,}: each batch repeats them, and counts them once"
            )
        if held.soft is not None:  # evaluated by the likeliest class
            held = dataclasses.replace(held, soft=None)
        if 0 < self.eval_examples < len(rows):
            rows = rows[np.linspace(0, len(rows) - 1, self.eval_examples).round().astype(int)]
        info = DataInfo(
            train.num_classes,
            len(train),
            labels=train.labels,
            soft=train.soft is not None,
            class_names=train.class_names,
        )
        arrays = None if train.varies else train.images
        return Dataset(
            train,
            splits.train,
            splits.labelled,
            held,
            rows,
            self.evaluate_on,
            info,
            arrays,
            f"{train.num_classes} classes",
        )

    @property
    def reading(self) -> Reading:
        """How pictures become arrays."""
        return Reading(self.image_size, self.channels, self.crop, self.background, self.skip_unreadable)

    def problems(self) -> list[str]:
        found = []
        if self.evaluate_on == "validation" and self.validation == 0:
            found.append("data.evaluate_on is 'validation', but data.validation is 0; hold some examples out.")
        if self.image_size < 0:
            found.append(f"data.image_size={self.image_size}; give pixels, or 0 for pictures that are all of one size.")
        if not 0 <= self.background <= 255:
            found.append(f"data.background={self.background}; give a grey value from 0 to 255.")
        return found

    def tuned(self):
        if self.validation == 0:
            raise ValueError(
                "data.validation is 0, so that settings would be chosen on the test images; hold some out of the training "
                "split, such as --data.validation 2000."
            )
        return dataclasses.replace(self, evaluate_on="validation")

    def shrunk(self):
        return dataclasses.replace(super().shrunk(), eval_examples=256)

    @property
    def mixup(self) -> float:
        return self.views.mixup

    @property
    def cutmix(self) -> float:
        return self.views.cutmix

    def train_views(self, inputs, index, epoch, key, *, names):
        return self._views(inputs).train_views(inputs, index, epoch, key, names=names)

    def evaluation_view(self, inputs):
        return self._views(inputs).evaluate(inputs)

    def decoded(self, file: Any, inputs: Any) -> Any:
        """A picture, cropped as for evaluation; where the data's are of one size, its middle square at that size."""
        if inputs.dtype != np.uint8 or inputs.shape[1] != inputs.shape[2] or inputs.shape[3] not in (1, 3):
            raise ValueError(
                f"the network takes {inputs.dtype} {list(inputs.shape[1:])}, which is not made of picture files"
            )
        _, height, _, channels = inputs.shape
        crop = self.crop if self.image_size else Crop(train="center", share=1.0)
        try:
            return Reading(height, channels, crop, self.background).decode(str(file))
        except Unreadable as error:
            raise ValueError(f"{file} {error}") from error

    def unlike(self, other: Task, model: Any) -> str:
        theirs = getattr(other, "views", self.views)
        if model.mean or model.std:  # it sees its own
            return ""
        changed = [name for name in ("mean", "std") if getattr(theirs, name) != getattr(self.views, name)]
        return "; ".join(f"data.views.{n} was {getattr(theirs, n)}, and is {getattr(self.views, n)}" for n in changed)

    def numbered_views(self) -> NumberedViews:
        views = self.views
        for name in ("mixup", "cutmix"):
            if getattr(views, name):
                raise ValueError(
                    f"data.views.{name}={getattr(views, name)} mixes each view with a neighbour's in the batch, so that none "
                    f"comes twice; set {name} to 0, or teacher_cache to empty."
                )
        for name, off in (("policy", not views.policy.slots), ("jitter", views.jitter.off), ("erase", views.erase.off)):
            if not off:
                raise ValueError(
                    f"data.views.{name} changes every view anew, so that none comes twice; switch it off, or set teacher_cache "
                    "to empty."
                )
        if self.image_size and self.crop.varies:
            raise ValueError(
                f"data.crop.train={self.crop.train} crops every picture anew in every pass, so that no view comes twice; set it "
                "to center, or teacher_cache to empty."
            )
        facts = {name: getattr(views, name) for name in ("crop_padding", "flip", "mean", "std")}
        facts |= {"reading": self.reading.facts()} if self.image_size else {}
        show = lambda inputs, numbers: self._views(inputs).show(inputs, numbers)
        return NumberedViews(views.num_views(), views.numbers, show, facts)

    def _views(self, images) -> Views:
        """The views as these images want them."""
        views = self.views.spread(images.shape[-1])
        if images.ndim == 2:
            return VectorViews(**vars(views))
        return views if images.dtype == np.uint8 else FloatViews(**vars(views))

    def network(self, model: Classifier, dataset: Dataset, *, remat: bool = False) -> Network:
        inputs = jax.eval_shape(self.evaluation_view, dataset.shapes(2)["inputs"])
        info, views = dataset.info, self.views.spread(inputs.shape[-1])
        network = make_classifier(model, inputs, len(model.classes) or info.num_classes, remat=remat)
        if model.mean or model.std:
            network = renormalised(network, (views.mean, views.std), (model.mean, model.std))
        return reclassified(network, model.classes, info.class_names) if model.classes else network

    def as_trained(self, model: Any, other: Any, classes: Sequence[str], dataset: Dataset) -> Any:
        ours, theirs = self.views, other.views
        if not (model.mean or model.std) and (ours.mean, ours.std) != (theirs.mean, theirs.std):
            channels = dataset.shapes(1)["inputs"].shape[-1]
            seen = theirs.spread(channels)
            model = dataclasses.replace(model, mean=seen.mean or (0.0,) * channels, std=seen.std or (1.0,) * channels)
        if not model.classes and classes and tuple(classes) != dataset.info.class_names:
            model = dataclasses.replace(model, classes=tuple(classes))
        return model

    def shrunk_network(self, model: Any) -> Any:
        if is_reference(model.name):
            return model
        return dataclasses.replace(model, width=LEAST_WIDTHS.get(model.name, 4))


def _check_alike(train: Source, held: Source) -> None:
    """Refuses inputs that are of one kind where they are trained on, and of another where they are evaluated."""
    kinds = [None if x.images is None else f"{x.images.dtype} {list(x.images.shape[1:])}" for x in (train, held)]
    if None not in kinds and kinds[0] != kinds[1]:
        raise DataError(
            f"The inputs of {train.name} are {kinds[0]} in {train.split} and {kinds[1]} in {held.split}; give them alike."
        )

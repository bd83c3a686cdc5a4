"""How a config names images and their classes, and how they become batches, views and a table."""

import dataclasses
from typing import Any, ClassVar, Literal

import jax
import numpy as np

from kdjax.data import load, make_splits
from kdjax.references import is_reference
from kdjax.tasks.classification.networks import Classifier, make_classifier
from kdjax.tasks.classification.views import Views
from kdjax.tasks.task import Dataset, NumberedViews, Task
from kdjax.training.metrics import Metric
from kdjax.types import DataInfo, Network


@dataclasses.dataclass(frozen=True, kw_only=True)
class Classification(Task):
    """Which images, how many of them with labels, and how they are shown."""

    name: str = "fashion_mnist/subset"
    """data set: fashion_mnist/subset, fashion_mnist/full, digits, or a TFDS image set such as cifar100"""
    eval_examples: int = 0
    """evaluate at most so many examples, evenly spaced over the split; 0 for all"""
    validation: int = 0
    """examples held out of the training split, for tuning"""
    evaluate_on: Literal["test", "validation"] = "test"
    """which examples are evaluated"""
    labelled: int = 0
    """training examples whose label a taught network may use; 0 for all"""
    split_seed: int = 0
    """seed of the choice of validation and labelled examples"""
    views: Views = Views()
    """augmentation and normalisation, on the device"""

    metric: ClassVar = Metric("top1", "top-1 %", 100, 2, unit="points")
    columns: ClassVar = (
        Metric("agreement", "agreement %", 100, 1), Metric("nll", "NLL", 1, 2, higher_is_better=False),
        Metric("ece", "ECE %", 100, 1, higher_is_better=False),
    )  # fmt: skip
    noun: ClassVar = "images"
    legend: ClassVar = "Agreement: same prediction as the teacher. NLL in nats. ECE: calibration error over 15 bins."

    def load(self, data_dir: str | None = None) -> Dataset:
        train = load(self.name, split="train", data_dir=data_dir)
        splits = make_splits(
            train.labels, validation=self.validation, labelled=self.labelled, split_seed=self.split_seed
        )
        if self.evaluate_on == "validation":
            held, rows = train, splits.validation
        else:
            held = load(self.name, split="test", data_dir=data_dir)
            rows = np.arange(len(held))
        if 0 < self.eval_examples < len(rows):
            rows = rows[np.linspace(0, len(rows) - 1, self.eval_examples).round().astype(int)]
        return Dataset(
            train, splits.train, splits.labelled, held, rows, self.evaluate_on,
            DataInfo(train.num_classes, len(train), labels=train.labels), train.images, f"{train.num_classes} classes",
        )  # fmt: skip

    def problems(self) -> list[str]:
        if self.evaluate_on == "validation" and self.validation == 0:
            return ["data.evaluate_on is 'validation', but data.validation is 0; hold some examples out."]
        return []

    def shrunk(self):
        return dataclasses.replace(super().shrunk(), eval_examples=256)

    @property
    def mixup(self) -> float:
        return self.views.mixup

    def train_views(self, inputs, index, epoch, key, *, names):
        return self.views.train_views(inputs, index, epoch, key, names=names)

    def evaluation_view(self, inputs):
        return self.views.evaluate(inputs)

    def numbered_views(self) -> NumberedViews:
        views = self.views
        if views.mixup:
            raise ValueError(
                f"data.views.mixup={views.mixup} mixes each view with a neighbour's in the batch, so that none comes twice; "
                "set mixup to 0, or teacher_cache to empty."
            )
        facts = {name: getattr(views, name) for name in ("crop_padding", "flip", "mean", "std")}
        return NumberedViews(views.num_views(), views.numbers, views.show, facts)

    def network(self, model: Classifier, dataset: Dataset, *, remat: bool = False) -> Network:
        inputs = jax.eval_shape(self.evaluation_view, dataset.shapes(2)["inputs"])
        return make_classifier(model, inputs, dataset.info.num_classes, remat=remat)

    def shrunk_network(self, model: Any) -> Any:
        return model if is_reference(model.name) else dataclasses.replace(model, width=4)

"""A task of one's own in one file, and a config of it: tagging, where several of many tags are right at once.

    kdjax distill tests/tasks/tagging.py --method bernoulli_kd

An example is a dict of values and which of them are known; a network answers yes or no for each tag. Nothing outside this
file knows of it.
"""

import dataclasses
import hashlib
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from kdjax.experiment import Experiment, Phase
from kdjax.experiment.schemes import student_phases
from kdjax.losses import binary_cross_entropy
from kdjax.models import from_nnx
from kdjax.reduction import per_example
from kdjax.schedules import steps
from kdjax.tasks import Dataset, Model, NumberedViews, Task, register
from kdjax.training.metrics import Metric
from kdjax.training.optimizers import SGD
from kdjax.types import DataInfo

VALUES, TAGS = 12, 5


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tagger(Model):
    """Two layers over the known values."""

    name: str = "tagger"
    width: int = 16
    """units of the hidden layer"""


class TaggerNet(nnx.Module):
    def __init__(self, width: int, rngs: nnx.Rngs):
        self.hidden, self.out = nnx.Linear(2 * VALUES, width, rngs=rngs), nnx.Linear(width, TAGS, rngs=rngs)

    def __call__(self, inputs):
        known = inputs["known"].astype(jnp.float32)
        return self.out(nnx.relu(self.hidden(jnp.concatenate([inputs["values"] * known, known], axis=-1))))


class Examples:
    """Made-up examples whose tags follow from their values."""

    def __init__(self, split: str, size: int):
        self.name, self.split = "made-up tags", split
        rng = np.random.default_rng(["train", "test"].index(split))
        self.values = rng.standard_normal((size, VALUES)).astype(np.float32)
        self.known = rng.random((size, VALUES)) < 0.9
        rule = np.random.default_rng(7).standard_normal((VALUES, TAGS))
        self.tags = (np.where(self.known, self.values, 0) @ rule > 0.5).astype(np.int32)

    def __len__(self):
        return len(self.tags)

    def read(self, indices, *, inputs=True):
        shown = {"values": self.values[indices], "known": self.known[indices]} if inputs else None
        return {"inputs": shown, "targets": {"multi_hot": self.tags[indices]}}

    def fingerprint(self):
        return hashlib.sha256(b"".join(x.tobytes() for x in (self.values, self.known, self.tags))).hexdigest()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tagging(Task):
    """Made-up examples and their tags."""

    examples: int = 192
    """size of the training split"""
    noise: float = 0.1
    """what a view moves the values by"""

    metric: ClassVar = Metric("f1", "F1 %", 100, 2, unit="points")
    columns: ClassVar = (Metric("bce", "BCE", 1, 3, higher_is_better=False), Metric("agreement", "agreement %", 100, 1))
    noun: ClassVar = "notes"

    def load(self, data_dir=None):
        train, held = Examples("train", self.examples), Examples("test", 100)
        return Dataset(
            train, np.arange(len(train)), np.ones(len(train), bool), held, np.arange(len(held)), "test",
            DataInfo(TAGS, len(train), targets=("multi_hot",)), description=f"{TAGS} tags",
        )  # fmt: skip

    def numbered_views(self):
        """Two an example: a little more, or a little less, of everything."""
        numbers = lambda index, epoch, key: jax.vmap(
            lambda i: jax.random.bernoulli(jax.random.fold_in(jax.random.fold_in(key, epoch), i)).astype(jnp.int32)
        )(index)
        move = lambda inputs, numbers: {
            **inputs,
            "values": inputs["values"] + self.noise * (2.0 * numbers - 1.0)[:, None],
        }
        return NumberedViews(2, numbers, move, {"noise": self.noise})

    def train_views(self, inputs, index, epoch, key, *, names):
        views = self.numbered_views()
        return views.show(inputs, views.numbers(index, epoch, key))

    def network(self, model, dataset, *, remat=False):
        return from_nnx(lambda rngs: TaggerNet(model.width, rngs), name=f"tagger {model.width}")

    def fit(self, student, teacher, batch):
        right = (student.logits > 0) == batch.target("multi_hot")
        return {"right": per_example(right.mean(-1), batch, labelled=True)}

    def sums(self, student, teacher, batch):
        def of(output):
            said, tags = output.logits > 0, batch.target("multi_hot") > 0
            where = batch.mask(batch.where.shape)
            total = lambda x: jnp.sum(jnp.where(where, x.reshape(len(where), -1).sum(-1), 0), dtype=jnp.float32)
            hits, wrong = said & tags, said != tags
            return {"count": total(where), "hits": total(hits), "wrong": total(wrong),
                    "bce": total(binary_cross_entropy(output.logits, tags))}  # fmt: skip

        if teacher is None:
            return {"student": of(student)}
        same = jnp.where(batch.where[:, None], (student.logits > 0) == (teacher.logits > 0), False)
        return {"student": of(student) | {"same": jnp.sum(same, dtype=jnp.float32)}, "teacher": of(teacher)}

    def means(self, sums):
        f1 = 2 * sums["hits"] / max(2 * sums["hits"] + sums["wrong"], 1)
        means = {"f1": float(f1), "bce": float(sums["bce"] / sums["count"])}
        return means | ({"agreement": float(sums["same"] / (TAGS * sums["count"]))} if "same" in sums else {})


register(Tagging, Tagger)


def experiment(method: str = "bernoulli_kd") -> Experiment:
    name = "multi_label" if method == "labels" else method
    sgd = SGD(learning_rate=0.02)
    student = Phase(network=Tagger(width=4), duration=steps(9), optimizer=sgd, teacher="teacher")
    teacher = Phase(name="teacher", network=Tagger(), duration=steps(30), optimizer=sgd)
    return Experiment(
        name="tags", data=Tagging(batch_size=32, eval_batch_size=64), evaluate_every=steps(3), checkpoint_every=steps(3),
        phases=(dataclasses.replace(teacher, objective=student_phases("multi_label", student)[-1].objective),
                *student_phases(name, student)), log_every=2,
    )  # fmt: skip

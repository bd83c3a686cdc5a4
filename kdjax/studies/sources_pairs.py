"""Teachers, the settings in which they have students, and what is measured of a student."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from kdjax import analysis, losses
from kdjax.studies.sources_training import LABELS, Task, Trainer, images_of, make_network, sources

TEACHER_WIDTH = 16
GAPS = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)


class Plan(NamedTuple):
    """How large a study is; `few` leaves so many images of each set, `tried` so many sources."""

    steps: int
    teacher_steps: int
    seeds: int
    ratios: tuple[float, ...]
    axes: dict[str, tuple[int, ...]]
    few: int | None = None
    tried: tuple[str, ...] = ()


class Setting(NamedTuple):
    """A pair of teacher and student, and the images they know, of which training uses the first `count`."""

    trainer: Trainer
    train: Task
    validation: Task
    test: Task
    count: int
    teacher_layers: tuple[np.ndarray, ...]  # of `LAYERS`, of test images

    @property
    def teacher_top1(self) -> float:
        return top1(self.test.logits, self.test.labels)

    def student(self, source: str, ratio: float, seed: int) -> Any:
        """One that has learned from labels and a source, of `ratio` times the weight that makes gradients as large."""
        weight = ratio * (1.0 if source == LABELS else self.trainer.weight(self.train, source))
        return self.trainer.trained(self.train, seed, source, weight, self.count)

    def measured(self, source: str, ratio: float, seeds: Sequence[int]) -> dict[str, list[Any]]:
        """What students say of test images, by measure and seed."""
        values: dict[str, list[Any]] = {}
        for seed in seeds:
            said = self.trainer.said(self.student(source, ratio, seed), self.test.inputs)
            for name, value in measures(said, self.teacher_layers, np.asarray(self.test.labels)).items():
                values.setdefault(name, []).append(value)
        return values


class Laboratory:
    """Teachers by their number of classes, and settings; a teacher is trained once."""

    def __init__(self, plan: Plan, announce: Callable[[str], None]):
        self.plan, self.announce, self.teachers, self.trainers = plan, announce, {}, {}

    def teacher(self, classes: int) -> Any:
        """`(training, validation and test images with what it says, its head, its layers of test images)`."""
        if classes not in self.teachers:
            self.announce(f"teacher of {classes} classes")
            trainer = Trainer(make_network(TEACHER_WIDTH, classes, 2), self.plan.teacher_steps)
            splits = images_of(classes, self.plan.few)
            trained = trainer.trained(splits[0], 1000)
            params, state = trained
            head = lambda z: trainer.network.parts["classify"](params["network"], state, z)
            taught = tuple(trainer.teach(trained, split) for split in splits)
            self.teachers[classes] = taught, head, trainer.said(trained, splits[-1].inputs)
        return self.teachers[classes]

    def setting(self, classes: int, images: int, width: int, names: Sequence[str]) -> Setting:
        """One in which the sources of these names are tried; those asked for first are compiled."""
        (train, validation, test), head, said = self.teacher(classes)
        if (classes, width) not in self.trainers:
            network, known = make_network(width, classes, 1), sources(head)
            taught = {name: known[name] for name in names}
            self.trainers[classes, width] = Trainer(network, self.plan.steps, taught, train.embeddings.shape[-1])
        count = min(images, len(train.labels))
        return Setting(self.trainers[classes, width], train, validation, test, count, said)


def top1(logits: Any, labels: Any) -> float:
    return float(np.mean(np.argmax(logits, axis=-1) == np.asarray(labels)))


def measures(said: tuple[np.ndarray, ...], teacher: tuple[np.ndarray, ...], labels: np.ndarray) -> dict[str, Any]:
    """A student's layers beside its teacher's of the same images."""
    with jax.enable_x64(True):
        z, t = (jnp.asarray(layers[-1], jnp.float64) for layers in (said, teacher))
        gap = z - t
        gap = gap - jnp.mean(gap, axis=-1, keepdims=True)
        few = slice(0, 1000)
        aligned = [[float(analysis.linear_cka(a[few], b[few])) for b in teacher] for a in said]
        return {
            "top1": top1(z, labels), "agreement": float(analysis.agreement(z, t)),
            "kl": float(jnp.mean(losses.kd(z, t, temperature=1.0))),
            "second_order": float(jnp.mean(losses.second_order_kd(z, t))),
            "gap": float(jnp.median(jnp.linalg.norm(gap, axis=-1))), "cka": aligned,
        }  # fmt: skip


def second_order(teacher_logits: np.ndarray, seed: int = 0) -> dict[float, dict[str, float]]:
    """How far the quadratic form is from KL, relative to KL, by the size of the gap: median and 95th percentile over images of
    gaps of independent normal entries, centred and scaled to `||Δ||`. In float64."""
    with jax.enable_x64(True):
        t = jnp.asarray(teacher_logits, jnp.float64)
        direction = np.random.default_rng(seed).normal(size=t.shape)
        direction -= direction.mean(axis=-1, keepdims=True)
        direction /= np.linalg.norm(direction, axis=-1, keepdims=True)
        found = {}
        for size in GAPS:
            exact = losses.kd(t + size * direction, t, temperature=1.0)
            error = jnp.abs(losses.second_order_kd(t + size * direction, t) / exact - 1)
            found[size] = {"median": float(jnp.median(error)), "p95": float(jnp.percentile(error, 95))}
        return found

"""A teacher, a student, data, and the steps whose times are compared."""

import argparse
import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarking.options import at_least, new_file
from benchmarking.timing import Subject
from kdjax.models import from_nnx, in_precision, output_shapes, zoo
from kdjax.models.precision import PRECISIONS
from kdjax.objectives import Bound, bind, method
from kdjax.tasks.classification import Views
from kdjax.training import Runner, TrainState, Variables, init_state, make_runner, make_step
from kdjax.types import Batch, Clock, DataInfo, Network

EXAMPLES = 4096  # of the data, random images
VIEWS = Views(crop_padding=4, flip=True, mean=(0.5,) * 3, std=(0.25,) * 3)


@dataclasses.dataclass(frozen=True)
class Setting:
    """What is benchmarked.

    Attributes:
      teacher, student: names in the zoo.
      classes, size: of the images, `[size, size, 3]` each.
      batch_size: rows of a batch.
      precision: in which both networks compute.
      rounds: in which the subjects take turns.
      large: whether sizes that only an accelerator can take are wanted.
      width: of the first stage of both; None is as published.
    """

    teacher: str = "resnet32x4"
    student: str = "resnet8x4"
    classes: int = 100
    size: int = 32
    batch_size: int = 8
    precision: str = "float32"
    rounds: int = 10
    large: bool = False
    width: int | None = None

    def network(self, name: str, precision: str | None = None) -> Network:
        """One of the zoo."""
        build = lambda rngs: zoo.build(name, num_classes=self.classes, in_channels=3, rngs=rngs, width=self.width)
        return in_precision(from_nnx(build, name=name), precision or self.precision)

    @property
    def tolerance(self) -> float:
        """How far an outcome may be from the slow path's, see `compare`: rounding of the precision that is computed in."""
        if self.precision == "bfloat16":
            return 0.1
        return 1e-3 if jax.default_backend() == "cpu" else 2e-2  # others multiply float32 in shorter types


def add_options(parser: argparse.ArgumentParser, networks: Sequence[str], *, rounds: int) -> None:
    """The options that say what is benchmarked; sizes by the device."""
    accelerator = jax.default_backend() != "cpu"
    parser.add_argument("--batch-size", type=at_least(1), default=64 if accelerator else 8)
    parser.add_argument("--rounds", type=at_least(1), default=2 * rounds if accelerator else rounds)
    parser.add_argument("--precision", choices=PRECISIONS, default="bfloat16" if accelerator else "float32")
    parser.add_argument("--teacher", choices=networks, default="resnet32x4")
    parser.add_argument("--student", choices=networks, default="resnet8x4")
    parser.add_argument(
        "--width", type=at_least(1), help="channels of the first stage of both networks; as published if not given"
    )
    parser.add_argument("--classes", type=at_least(2), default=100)
    parser.add_argument("--size", type=at_least(1), default=32, help="of the images, in pixels")
    parser.add_argument("--json", type=new_file, help="also write facts and rows here")


def setting_of(options: argparse.Namespace) -> Setting:
    """What the options say."""
    large = jax.default_backend() != "cpu"
    return Setting(options.teacher, options.student, options.classes, options.size, options.batch_size,
                   options.precision, options.rounds, large, options.width)  # fmt: skip


class Pair:
    """The networks with their weights, the batches, and compiled steps; each is made when it is first asked for."""

    def __init__(self, setting: Setting, *, devices: Any = None, augment: bool = True):
        """Draws the data.

        Args:
          setting: sizes and names.
          devices: the first one if not given.
          augment: whether steps crop and flip uint8 images; without it they take normalised ones as they come.
        """
        self.setting, self.augment = setting, augment
        self.runner: Runner = make_runner("jit", jax.devices()[:1] if devices is None else devices)
        rng = np.random.default_rng(0)
        self.images = rng.integers(0, 256, (EXAMPLES, setting.size, setting.size, 3), np.uint8)
        self.labels = rng.integers(0, setting.classes, EXAMPLES).astype(np.int32)
        self.student, self.teacher = setting.network(setting.student), setting.network(setting.teacher)
        self.optimizer = optax.sgd(0.01, momentum=0.9)
        self.clock = Clock(
            total_steps=1000, steps_per_epoch=EXAMPLES // setting.batch_size, batch_size=setting.batch_size
        )

    def objective(self, name: str = "kd", student: Network | None = None, teacher: Network | None = None) -> Bound:
        """A method bound to both networks."""
        shape = jax.ShapeDtypeStruct((self.setting.batch_size, self.setting.size, self.setting.size, 3), np.float32)
        shapes = output_shapes(student or self.student, shape), output_shapes(teacher or self.teacher, shape)
        return bind(method(name).objective, *shapes, DataInfo(self.setting.classes, EXAMPLES))

    def host_batch(self, number: int = 0) -> Batch:
        """The batch of this number, as numpy arrays."""
        size = self.setting.batch_size
        index = ((np.arange(size) + number * size) % EXAMPLES).astype(np.int32)
        images = self.images[index] if self.augment else np.asarray(VIEWS.normalise(self.images[index]))
        return Batch(images, self.labels[index], index, np.ones(size, bool), np.ones(size, bool))

    @functools.cached_property
    def batch(self) -> Batch:
        """The first batch, on the devices."""
        return self.runner.place_batch(self.host_batch())

    @functools.cached_property
    def variables(self) -> Variables:
        """The teacher's: random weights, and the statistics of one batch, so that activations keep their scale."""
        plain = self.setting.network(self.setting.teacher, "float32")
        inputs = VIEWS.evaluate(jnp.asarray(self.images[:64]))

        @jax.jit
        def make(key):
            params, before = plain.init(key)
            _, after = plain.apply(params, before, inputs, train=True)
            return params, jax.tree.map(lambda old, new: old + (new - old) / 0.1, before, after)

        return self.runner.place(Variables(*make(jax.random.key(1))))

    def state(self, seed: int = 0, objective: str = "kd") -> TrainState:
        """The state before the first step, a fresh copy; the views' key is the same for all seeds."""
        make = self._states[objective]
        return self.runner.place(make(seed))

    @functools.cached_property
    def _states(self) -> dict[str, Callable[[int], TrainState]]:
        def maker(name: str):
            bound = self.objective(name)
            return jax.jit(lambda seed: init_state(self.student, bound, self.optimizer, seed=seed, data_seed=7))

        return {name: maker(name) for name in ("kd", "labels")}

    def views(self, inputs, index, epoch, key):
        """What the networks see: crops and flips of the images."""
        return VIEWS.train(inputs, index, epoch, key) if self.augment else inputs

    def step(self, objective: str = "kd", *, student=None, teacher=None, **options) -> Any:
        """A step that is not compiled yet: "kd" teaches, "labels" trains the student alone."""
        student, teacher = student or self.student, teacher or self.teacher
        bound = self.objective(objective, student, teacher)
        teacher = teacher if bound.needs_teacher and not options.get("cached") else None
        return make_step(student, teacher, bound, self.optimizer, clock=self.clock, views=self.views, **options)

    @functools.cached_property
    def live(self) -> Any:
        """The compiled step of both networks."""
        return self.runner.compile(self.step())

    @functools.cached_property
    def alone(self) -> Any:
        """The compiled step of the student by labels only."""
        return self.runner.compile(self.step("labels"))

    @functools.cached_property
    def cached(self) -> Any:
        """The compiled step whose batches bring the teacher's outputs."""
        return self.runner.compile(self.step(cached=True))

    @functools.cached_property
    def forward(self) -> Any:
        """The teacher's logits, compiled: `(variables, inputs) -> [B, C]`."""
        return jax.jit(lambda v, x: self.teacher.apply(v.params, v.state, x, train=False)[0].logits)

    @functools.cached_property
    def inputs(self) -> jax.Array:
        """What the first step shows of the first batch."""
        return jax.jit(self.views)(self.batch.inputs, self.batch.index, 0, self.state().keys["data"])


def stepping(name: str, compiled: Any, state: Any, frozen: Any, batch: Any, units: int = 1) -> Subject:
    """A compiled step as a subject. It goes on from where it was, and gives its old state up."""
    kept = [state]

    def call():
        kept[0], metrics = compiled(kept[0], frozen, batch)
        return kept[0], metrics

    return Subject(name, call, units)


@dataclasses.dataclass(frozen=True)
class Difference:
    """How far an outcome is from the slow path's.

    Attributes:
      loss: relative.
      update: of what a state's parts changed by, the norm of the difference over the norm of the change; the worst part.
      largest: of any value of the state.
    """

    loss: float
    update: float
    largest: float

    def __str__(self) -> str:
        return f"loss {self.loss:.1e}, update {self.update:.1e}, any value {self.largest:.1e}"

    def within(self, tolerance: float) -> bool:
        return self.loss <= tolerance and self.update <= tolerance


def outcome(state: TrainState, metrics: Any) -> Any:
    """What a step made, on the host."""
    return jax.device_get(((state.params, state.state, state.opt_state), last_loss(metrics)))


def last_loss(metrics: Any) -> Any:
    """The loss of the (last) step."""
    total, count = metrics["loss"]
    return jnp.ravel(total / count)[-1]


def compare(found: Any, wanted: Any, before: TrainState) -> Difference:
    """The difference of two outcomes from one state."""
    (ours, loss), (theirs, expected) = found, wanted
    start = jax.device_get((before.params, before.state, before.opt_state))
    norm = lambda tree: float(np.sqrt(sum(np.sum(np.square(np.asarray(x, np.float64))) for x in jax.tree.leaves(tree))))
    less = lambda a, b: jax.tree.map(lambda x, y: np.asarray(x, np.float64) - np.asarray(y, np.float64), a, b)
    parts = [norm(less(a, b)) / max(norm(less(b, c)), 1e-30) for a, b, c in zip(ours, theirs, start, strict=True)
             if norm(less(b, c))]  # fmt: skip
    largest = max(float(np.max(np.abs(x))) for x in jax.tree.leaves(less(ours, theirs)) if x.size)
    update = float(np.max(parts)) if parts else float("inf")  # np.max lets nan through, and a step changes something
    return Difference(float(abs(loss - expected) / max(abs(expected), 1e-30)), update, largest)

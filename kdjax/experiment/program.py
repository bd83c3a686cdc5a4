"""One phase of an experiment made real: its networks, its compiled step, its batches, its loop."""

import dataclasses
import functools
import itertools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from kdjax.data import Pipeline
from kdjax.experiment.images import RESIDENT_BYTES, Images, Resident, fits
from kdjax.experiment.spec import Experiment, ExperimentError, Phase
from kdjax.experiment.teacher_outputs import Remembered
from kdjax.models import Freezer, FreezeReport
from kdjax.objectives import Bound
from kdjax.training import (
    Runner,
    TrainState,
    Variables,
    count_parameters,
    init_state,
)
from kdjax.training.checkpoints import Checkpoints
from kdjax.training.deployment import Deployment
from kdjax.training.evaluation import evaluate
from kdjax.training.loop import Loop
from kdjax.training.mutual import PEER_SEED, join
from kdjax.training.step import make_teacher_gradient
from kdjax.training.teacher_cache import Storage
from kdjax.types import Clock, Network, Tree

FREEZE_SAMPLE = 256  # images on which a frozen teacher is compared with the original


@dataclasses.dataclass(frozen=True, eq=False)
class Program:
    """One phase, compiled for any seed."""

    experiment: Experiment
    phase: Phase
    images: Images
    student: Network
    teacher: Network | None
    freezer: Freezer | None  # makes the teacher cheap for the step; evaluations use it as it is
    bound: Bound
    optimizer: Any
    clock: Clock
    runner: Runner
    deployment: Deployment
    views: Any
    one: Any  # the step before it is compiled
    step: Any
    steps: Any  # several in one dispatch, or None
    evaluation: Any
    rows: np.ndarray
    resident: "Resident"  # what is on the devices already; programs of the same data share it

    def fresh_state(
        self, seed: int, data_seed: int, start: Variables | None = None, teacher: Variables | None = None
    ) -> TrainState:
        """The state before the first step, on the devices. Without a teacher at hand its statistics are fresh ones."""

        def make(start, statistics):
            return make_state(self.student, self.teacher, self.bound, self.optimizer, self.phase, (seed, data_seed), start,
                              statistics)  # fmt: skip

        given = None if start is None else (start.params, start.state), None if teacher is None else teacher.state
        return jax.jit(make, out_shardings=self.runner.placement(jax.eval_shape(make, *given)))(*given)

    def ready_teacher(self, teacher: Variables | None, data_seed: int) -> Variables | None:
        """The teacher as the step wants it: with its mean gradient over the data, if the objective corrects by that."""
        if teacher is None or not self.bound.corrects_over_data:
            return teacher
        function = make_teacher_gradient(
            self.student, self.bound, clock=self.clock, views=self.views, axis=self.runner.axis
        )
        compiled = self.runner.compile(function, donate=False)
        state = self.fresh_state(0, data_seed)
        batches = itertools.islice(self.pipeline(data_seed, inputs=True).iterate(0), self.clock.steps_per_pass)
        total, count = None, 0
        for batch in batches:
            gradient, rows = compiled(state, teacher, self.runner.place_batch(batch))
            share = jax.tree.map(functools.partial(jnp.multiply, rows), gradient)
            total = share if total is None else jax.tree.map(jnp.add, total, share)
            count = count + rows
        return dataclasses.replace(teacher, gradient=jax.tree.map(lambda g: g / jnp.maximum(count, 1), total))

    def extra_parameters(self) -> int:
        """How many parameters are trained beside the student: those of the objective, and of a peer."""
        params = jax.eval_shape(lambda: self.fresh_state(0, 0)).params
        return count_parameters({name: tree for name, tree in params.items() if name != "student"})

    def network_template(self) -> Variables:
        """Shapes of the deployed student's variables, with the sharding they are wanted in."""
        return template_of(self.deployment.network, self.runner)

    def objective_template(self) -> Variables:
        """The same of what the objective trains."""
        params, state = jax.eval_shape(self.bound.init, jax.random.key(0))
        return with_sharding(Variables(params, state), self.runner)

    @property
    def step_teacher(self) -> Network | None:
        """The teacher as the step runs it."""
        return self.teacher if self.freezer is None else self.freezer.network

    def frozen(self, teacher: Variables | None) -> Any:
        """The second argument of the step: the teacher, and the images if they stay on the devices."""
        if self.cached:
            teacher = None
        elif teacher is not None and self.freezer is not None:
            teacher = Variables(*self.freezer.convert(teacher.params, teacher.state))
        return (teacher, self.resident.images(self.images, self.runner)) if self.keeps_images else teacher

    @property
    def keeps_images(self) -> bool:
        """Whether the training images stay on the devices."""
        return fits(self.images.train.images)

    def freezing(self, teacher: Variables | None) -> FreezeReport | None:
        """What freezing the teacher changes, on images that are evaluated; None if it is not frozen."""
        if self.freezer is None:
            return None
        images, _ = self.images.held.fetch(self.images.held_index[:FREEZE_SAMPLE])
        sample = self.experiment.data.views.evaluate(images)
        try:
            return self.freezer.compare(teacher.params, teacher.state, sample)
        except ValueError as error:
            raise ExperimentError(f"Phase {self.phase.name!r}, teacher_precision: {error}") from error

    def pipeline(self, data_seed: int, *, inputs: bool | None = None) -> Pipeline:
        """The phase's batches in the order of `data_seed`; with their images, unless these are on the devices."""
        # Without a choice of labelled examples (or for a network that may use all labels) every label counts.
        images = self.images
        labelled = np.ones(len(images.train), bool) if self.phase.labels == "all" else images.labelled
        return Pipeline(
            images.train, self.rows, batch_size=self.experiment.data.batch_size, data_seed=data_seed,
            labelled_mask=labelled, process_index=jax.process_index(), process_count=jax.process_count(),
            inputs=not self.keeps_images if inputs is None else inputs,
        )  # fmt: skip

    def whole(self, network: Variables) -> Variables:
        """The variables, on every device whole."""
        return (
            jax.jit(lambda tree: tree, out_shardings=self.runner.replicated)(network) if self.runner.fsdp else network
        )

    @property
    def cached(self) -> bool:
        """Whether batches bring what the teacher says."""
        return bool(self.phase.teacher_cache) and self.bound.needs_teacher

    def feed(self, data_seed: int, teacher: Variables | None) -> Pipeline | Remembered:
        """The phase's batches, with what the teacher says where that is kept."""
        pipeline, data = self.pipeline(data_seed), self.experiment.data
        if not self.cached:
            return pipeline
        if self.freezer is not None:
            teacher = Variables(*self.freezer.convert(teacher.params, teacher.state))
        return Remembered(
            pipeline, self.images, data.views, self.step_teacher, self.whole(teacher), storage=Storage(self.phase.teacher_cache),
            folder=self.experiment.cache_dir, data_seed=data_seed, clock=self.clock, runner=self.runner,
            at_once=data.eval_batch_size,
        )  # fmt: skip

    def loop(self, feed: Pipeline | Remembered, teacher: Variables | None, profile: Path | None = None) -> Loop:
        """The phase's loop over its batches."""
        data, steps = self.experiment.data, self._steps
        return Loop(
            name=self.phase.name,
            step=self.step,
            steps=self.steps,
            steps_per_dispatch=dispatched(self.experiment),
            evaluate=lambda state: [self.evaluate(self.deployment.variables(state, teacher), teacher)],
            batches=feed.iterate,
            runner=self.runner,
            total_steps=self.clock.total_steps,
            log_every=self.experiment.log_every,
            evaluate_every=max(1, steps(self.experiment.evaluate_every)),
            checkpoint_every=max(1, steps(self.experiment.checkpoint_every)),
            batch_size=data.batch_size,
            profile=profile,
        )

    def evaluate(self, student: Variables, teacher: Variables | None) -> dict[str, dict[str, float]]:
        """Metrics of the deployed student, and of the teacher beside it."""
        return evaluate(self.evaluation, student, teacher, self._evaluation_batches(), self.images.info.num_classes)

    def _evaluation_batches(self):
        batches = self.images.evaluated_batches(self.experiment.data.eval_batch_size)
        placed = (self.runner.place_batch(batch) for batch in batches)
        if len(self.images.held_index) * int(np.prod(self.images.shape)) > RESIDENT_BYTES:
            return placed
        if not self.resident.evaluated:
            self.resident.evaluated.extend(placed)
        return self.resident.evaluated

    def _steps(self, duration) -> int:
        return duration.steps(self.clock.steps_per_epoch, self.clock.batch_size, self.clock.total_steps)


def make_state(
    student: Network,
    teacher: Network | None,
    bound: Bound,
    optimizer: Any,
    phase: Phase,
    seeds: tuple[int, int],
    start: tuple | None = None,
    teacher_state: Any = None,
) -> TrainState:
    """The state before a phase's first step, of `(seed, data_seed)`; pure. Two networks' in mutual learning."""
    seed, data_seed = seeds
    if bound.teacher_mode == "train" and teacher_state is None:
        teacher_state = teacher.init(jax.random.key(0))[1]
    state = init_state(
        student, bound, optimizer, seed=seed, data_seed=data_seed, ema=phase.ema_decay > 0, start=start,
        teacher_state=teacher_state,
    )  # fmt: skip
    if not bound.needs_peer:
        return state
    return join(state, init_state(student, bound, optimizer, seed=seed + PEER_SEED, data_seed=data_seed))


def template_of(network: Network, runner: Runner) -> Variables:
    """Shapes and shardings of a network's variables."""
    params, state = jax.eval_shape(network.init, jax.random.key(0))
    return with_sharding(Variables(params, state), runner)


def with_sharding(shapes: Tree, runner: Runner) -> Tree:
    """Shapes with where they belong."""
    place = runner.placement(shapes)
    return jax.tree.map(lambda x, where: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where), shapes, place)


def dispatched(experiment: Experiment) -> int:
    """Steps in one dispatch. One on CPU unless asked for: loops around convolutions are slow there."""
    return experiment.steps_per_dispatch or (1 if jax.default_backend() == "cpu" else 16)


def open_checkpoints(folder: Path, phase: Phase, teacher_hash: str | None) -> Checkpoints:
    return Checkpoints(folder / "checkpoints", {"phase": phase.name, "teacher": teacher_hash})

"""A phase's step and evaluation, compiled, and the states that they take."""

import dataclasses
import functools
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from kdjax.data.errors import note
from kdjax.experiment.networks import Networks
from kdjax.experiment.spec import Experiment, ExperimentError, Phase
from kdjax.models import float32_products, in_microbatches, in_precision
from kdjax.models.weights.beginning import begun, given_by
from kdjax.objectives import Bound
from kdjax.schedules import Adaptive
from kdjax.tasks import Dataset
from kdjax.training import Runner, TrainState, Variables, count_parameters, init_state, make_step, optimizers
from kdjax.training.evaluation import make_evaluation
from kdjax.training.feed import from_resident, scanned
from kdjax.training.mutual import PEER_SEED, join, make_mutual_step
from kdjax.training.on_policy import WRITING, judge_by, on_policy, writing_state
from kdjax.training.state import check_trainable
from kdjax.training.step import make_teacher_gradient
from kdjax.types import Batch, Clock, Network, Tree

JUDGED = 64  # validation examples at most that an adaptive share goes by


@dataclasses.dataclass(frozen=True, eq=False)
class Compiled:
    """A phase for any seed.

    Attributes:
      phase, networks: what it is of.
      runner: how it is compiled.
      clock: the phase's length in steps.
      optimizer: an optax transformation.
      views: what the networks see of a training batch, and `moved` the targets of that.
      one: the step before it is compiled.
      step: one step; `steps` several in one dispatch, or None.
      evaluation: of the deployed student beside its teacher.
    """

    phase: Phase
    networks: Networks
    runner: Runner
    clock: Clock
    optimizer: Any
    views: Any
    moved: Any
    one: Any
    step: Any
    steps: Any
    evaluation: Any

    def fresh_state(
        self, seed: int, data_seed: int, start: Variables | None = None, teacher: Variables | None = None
    ) -> TrainState:
        """The state before the first step, on the devices. Without a teacher at hand its statistics are fresh ones."""
        given = None if start is None else (start.params, start.state), None if teacher is None else teacher.state
        return self._fresh((np.int64(seed), np.int64(data_seed)), *given, given_by(self.networks.student))

    @functools.cached_property
    def _fresh(self) -> Any:
        """Seeds are arguments: one program makes the states of all of them. So are weights that the student begins with."""

        def make(seeds, start, statistics, weights):
            student = begun(self.networks.student, weights) if weights else self.networks.student
            networks = dataclasses.replace(self.networks, student=student)
            return make_state(networks, self.optimizer, self.phase, seeds, start, statistics)

        place = jax.tree.map(lambda x: x.sharding, self.state_template())
        return jax.jit(make, out_shardings=place, compiler_options=compiled_once())

    def with_mean_gradient(self, teacher: Variables, data_seed: int, batches: Iterable[Batch]) -> Variables:
        """The teacher with its mean gradient over a pass of batches, for objectives that correct by it."""
        function = make_teacher_gradient(
            self.networks.student, self.networks.objective, clock=self.clock, views=self.views, moved=self.moved,
            axis=self.runner.axis,
        )  # fmt: skip
        compiled = self.runner.compile(function, donate=False)
        state = self.fresh_state(0, data_seed)
        total, count = None, 0
        for batch in batches:
            gradient, rows = compiled(state, teacher, self.runner.place_batch(batch))
            share = jax.tree.map(functools.partial(jnp.multiply, rows), gradient)
            total = share if total is None else jax.tree.map(jnp.add, total, share)
            count = count + rows
        return dataclasses.replace(teacher, gradient=jax.tree.map(lambda g: g / jnp.maximum(count, 1), total))

    def extra_parameters(self) -> int:
        """How many parameters are trained beside the student: those of the objective, and of a peer."""
        params = self.state_template().params
        return count_parameters({name: tree for name, tree in params.items() if name != "student"})

    def state_template(self) -> TrainState:
        """Shapes and shardings of the state."""
        shapes = jax.eval_shape(lambda: make_state(self.networks, self.optimizer, self.phase, (0, 0)))
        return with_sharding(shapes, self.runner)

    def network_template(self) -> Variables:
        """Shapes of the deployed student's variables, with the sharding they are wanted in."""
        return template_of(self.networks.deployment.network, self.runner)

    def teacher_template(self) -> Variables | None:
        """Shapes of the teacher as the step takes it; None where it does not run."""
        if self.networks.step_teacher is None or self.networks.cached:
            return None
        template = template_of(self.networks.step_teacher, self.runner)
        gradient = template.params if self.networks.objective.corrects_over_data else None
        return dataclasses.replace(template, gradient=gradient)

    def objective_template(self) -> Variables:
        """The same of what the objective trains."""
        params, state = jax.eval_shape(self.networks.objective.init, jax.random.key(0))
        return with_sharding(Variables(params, state), self.runner)

    def whole(self, network: Variables) -> Variables:
        """The variables, on every device whole."""
        return (
            jax.jit(lambda tree: tree, out_shardings=self.runner.replicated)(network) if self.runner.fsdp else network
        )


def compile_phase(
    experiment: Experiment, phase: Phase, networks: Networks, dataset: Dataset, runner: Runner, visited: int
) -> Compiled:
    """Compiles one phase that visits so many examples in a pass; nothing runs yet.

    Raises:
      ValueError, ExperimentError: one sentence for what does not fit.
    """
    task, objective = experiment.data, networks.objective
    clock = make_clock(experiment, phase, len(dataset.train_index), visited)
    views = functools.partial(task.train_views, names=objective.views)
    optimizer = optimizers.build(phase.optimizer, clock, objective)
    in_step = in_precision(networks.student, phase.precision), networks.step_teacher if networks.teacher_runs else None
    step = make_step(
        *(network and in_microbatches(network, phase.microbatches) for network in in_step),
        objective, optimizer, clock=clock, views=views, moved=task.train_targets, fit=task.fit,
        mix=phase.mix * task.mixup, cut=phase.mix * task.cutmix,
        axis=runner.axis, ema_decay=phase.ema_decay or None, cached=networks.cached, skip=experiment.on_nan == "skip",
        in_chunks=networks.in_chunks,
    )  # fmt: skip
    if phase.precision != "float32":
        tell_slow_products(in_step[0], networks.inputs, phase)
    if phase.on_policy:
        if objective.needs_peer:
            raise ExperimentError(f"Phase {phase.name!r} trains two networks, and on_policy is of one; set it to 0.")
        teacher = networks.step_teacher if networks.teacher_runs else None
        judge = None
        if isinstance(phase.on_policy, Adaptive):
            held = held_out(dataset, phase)
            judge = judge_by(
                networks.student, teacher, objective, held, task.evaluation_view, clock, in_chunks=networks.in_chunks
            )
        step = on_policy(
            step, networks.student, task.written, phase.on_policy, clock, teacher=teacher,
            teacher_writes=phase.teacher_writes, judge=judge,
        )  # fmt: skip
    if objective.needs_peer:
        step = make_mutual_step(step, objective.peer_order)
    if dataset.resident:
        step = from_resident(step, dataset.arrays)
    several = scanned(step) if steps_per_dispatch(experiment, runner) > 1 else None
    state = jax.eval_shape(lambda: make_state(networks, optimizer, phase, (0, 0)))
    if not (phase.weights or phase.network.trained):
        check_trainable(state.params)
    evaluation = make_evaluation(
        networks.deployment.network, networks.teacher, views=task.evaluation_view, sums=task.sums, axis=runner.axis
    )
    return Compiled(
        phase, networks, runner, clock, optimizer, views, task.train_targets, step, runner.compile(step, state=state),
        several and runner.compile(several, state=state, stacked=True), runner.compile(evaluation, donate=False),
    )  # fmt: skip


def tell_slow_products(network: Network, inputs: Tree, phase: Phase) -> None:
    """Says which part of a network computes in float32 although its phase does not."""
    slow, products = float32_products(network, inputs)
    if slow:
        note(
            f"{slow} of {products} convolutions and matrix products of {network.name} take float32, though phase {phase.name!r} "
            f"has precision {phase.precision}: a layer before them gives it; if unmeant, tell it dtype={phase.precision}"
        )


def make_clock(experiment: Experiment, phase: Phase, examples: int, visited: int) -> Clock:
    """A phase's length in steps. An epoch is as many examples as there are to train on, whether or not all are visited, so
    that every method has the same budget."""
    size = experiment.data.batch_size
    per_epoch = -(-examples // size)
    total = phase.duration.steps(per_epoch, size)
    if total < 1:
        raise ExperimentError(f"Phase {phase.name!r} lasts {phase.duration}, which is no step at all; make it longer.")
    return Clock(total, per_epoch, size, -(-visited // size))


def held_out(dataset: Dataset, phase: Phase) -> Batch:
    """Some of the validation examples, evenly spaced, that an adaptive share goes by.

    Raises:
      ExperimentError: there are none.
    """
    rows = dataset.validation
    if rows is None:
        raise ExperimentError(f"Phase {phase.name!r} has its student write the more often, the worse it does on validation "
                              "documents, and there are none; set data.validation, such as --data.validation 8.")  # fmt: skip
    chosen = np.unique(np.linspace(0, len(rows) - 1, min(len(rows), JUDGED)).round().astype(np.int32))
    everything = np.ones(len(chosen), bool)
    return Batch(**rows.read(chosen), index=chosen, where=everything, labelled=everything)


def make_state(
    networks: Networks,
    optimizer: Any,
    phase: Phase,
    seeds: tuple[int, int],
    start: tuple | None = None,
    teacher_state: Any = None,
) -> TrainState:
    """The state before a phase's first step, of `(seed, data_seed)`; pure. Two networks' in mutual learning."""
    seed, data_seed = seeds
    bound: Bound = networks.objective
    if bound.teacher_mode == "train" and teacher_state is None:
        teacher_state = networks.teacher.init(jax.random.key(0))[1]
    state = init_state(
        networks.student, bound, optimizer, seed=seed, data_seed=data_seed, ema=phase.ema_decay > 0, start=start,
        teacher_state=teacher_state,
    )  # fmt: skip
    if networks.rows is not None:
        state = dataclasses.replace(
            state, state={**state.state, WRITING: writing_state(phase.on_policy, networks.rows)}
        )
    if not bound.needs_peer:
        return state
    return join(state, init_state(networks.student, bound, optimizer, seed=seed + PEER_SEED, data_seed=data_seed))


def template_of(network: Network, runner: Runner) -> Variables:
    """Shapes and shardings of a network's variables."""
    params, state = jax.eval_shape(network.init, jax.random.key(0))
    return with_sharding(Variables(params, state), runner)


def with_sharding(shapes: Tree, runner: Runner) -> Tree:
    """Shapes with where they belong."""
    place = runner.placement(shapes)
    return jax.tree.map(lambda x, where: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where), shapes, place)


def compiled_once() -> dict[str, int] | None:
    """Compiler options of a program that runs once: on CPU less optimisation, which gives the same bits in 0.4 of the time."""
    return {"xla_backend_optimization_level": 1} if jax.default_backend() == "cpu" else None


def steps_per_dispatch(experiment: Experiment, runner: Runner) -> int:
    """Steps in one dispatch. One on CPU unless asked for: loops around convolutions are slow there. One where batches differ in
    shape."""
    if not experiment.data.one_shape:
        return 1
    return experiment.steps_per_dispatch or (1 if runner.mesh.devices.flat[0].platform == "cpu" else 16)

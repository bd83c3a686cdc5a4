"""Programs made of experiments, once for all runs that differ in seeds alone: images, networks, objectives, compiled steps."""

import dataclasses
import functools
from pathlib import Path
from typing import Any

import jax
import numpy as np

from kdjax.experiment.images import Images, Resident, fits, load_images, visited
from kdjax.experiment.program import Program, dispatched, make_state
from kdjax.experiment.spec import Data, Experiment, ExperimentError, Model, Phase
from kdjax.experiment.teacher_outputs import check_views
from kdjax.models import Freezer, ensemble, from_nnx, in_microbatches, in_precision, output_shapes, zoo
from kdjax.objectives import Bound, bind
from kdjax.training import make_runner, make_step, optimizers
from kdjax.training.deployment import deploy
from kdjax.training.evaluation import make_evaluation
from kdjax.training.feed import from_resident, scanned
from kdjax.training.mutual import make_mutual_step
from kdjax.training.processes import by_first
from kdjax.training.teacher_cache import Storage
from kdjax.types import Clock, Network


class Builder:
    """Builds programs and keeps them: runs that differ only in seeds share images, compiled steps and teachers."""

    def __init__(self, data_dir: str | None = None, devices: Any = None):
        self.data_dir, self.devices = data_dir, devices
        self.networks: dict[tuple[Path, Program], Any] = {}
        self._images: dict[Data, Images] = {}
        self._resident: dict[tuple[Data, str], Resident] = {}
        self._programs: dict[tuple[Experiment, str], Program] = {}

    def images(self, data: Data) -> Images:
        key = dataclasses.replace(data, batch_size=1, eval_batch_size=1)
        if key not in self._images:
            if jax.process_count() > 1:  # a data set that is not there yet is made by one of them
                by_first(lambda: load_images(data, self.data_dir), ExperimentError)
            self._images[key] = load_images(data, self.data_dir)
        return self._images[key]

    def program(self, experiment: Experiment, phase: Phase) -> Program:
        # Seeds, names and where a network comes from change neither shapes nor code, nor does a phase that does not teach.
        taking_part = [p for p in experiment.phases if p.name in (phase.name, *phase.teachers)]
        phases = tuple(
            dataclasses.replace(p, weights="", start="")
            if p.name == phase.name
            else Phase(name=p.name, network=p.network)
            for p in taking_part
        )
        key = (dataclasses.replace(experiment, name="", seed=0, data_seed=0, phases=phases), phase.name)
        if key not in self._programs:
            resident = self._resident.setdefault((experiment.data, experiment.runner), Resident())
            self._programs[key] = build(experiment, phase, self.images(experiment.data), resident, self.devices)
        return self._programs[key]


def build(experiment: Experiment, phase: Phase, images: Images, resident: Resident, devices: Any = None) -> Program:
    """Builds one phase of an experiment; `resident` keeps what is on the devices.

    Raises:
      ExperimentError: one sentence for the first thing that does not fit.
    """
    problems = experiment.problems()
    if problems:
        raise ExperimentError(problems[0])
    data = experiment.data
    try:
        runner = make_runner(experiment.runner, devices)
        runner.check_batch_size(data.batch_size // phase.microbatches)
        runner.check_batch_size(data.eval_batch_size)
        jax.eval_shape(data.views.evaluate, jax.ShapeDtypeStruct((1, *images.shape), np.uint8))  # do the channels fit?
        student = make_network(phase.network, images, remat=phase.remat)
        teacher = make_teacher(experiment, phase, images)
        inputs = jax.ShapeDtypeStruct((data.batch_size, *images.shape), np.float32)
        bound = bind(
            phase.objective,
            output_shapes(student, inputs),
            None if teacher is None else output_shapes(teacher, inputs),
            images.info_for(phase),
        )
    except ValueError as error:
        raise ExperimentError(str(error)) from error
    rows = visited(phase, images)
    clock = make_clock(experiment, phase, images, len(rows))
    views = functools.partial(data.views.train_views, names=bound.views)
    try:
        optimizer = optimizers.build(phase.optimizer, clock, bound)
        # A teacher that the objective does not read is only evaluated beside the student.
        freezer = make_freezer(phase, teacher, bound, inputs)
        step_teacher = teacher if freezer is None else freezer.network
        cached = bool(phase.teacher_cache) and bound.needs_teacher
        if cached:
            Storage(phase.teacher_cache)
            check_views(data.views)
        runs = bound.needs_teacher and not cached
        networks = in_precision(student, phase.precision), step_teacher if runs else None
        step = make_step(
            *(network and in_microbatches(network, phase.microbatches) for network in networks),
            bound, optimizer, clock=clock, views=views,
            mix=data.views.mixup, axis=runner.axis, ema_decay=phase.ema_decay or None, cached=cached,
        )  # fmt: skip
    except ValueError as error:
        raise ExperimentError(str(error)) from error
    if bound.needs_peer:
        step = make_mutual_step(step, bound.peer_order)
    if fits(images.train.images):
        step = from_resident(step)
    several = scanned(step) if dispatched(experiment) > 1 else None
    state = jax.eval_shape(lambda: make_state(student, teacher, bound, optimizer, phase, (0, 0)))
    deployment = deploy(student, teacher, bound, inputs)
    evaluation = make_evaluation(deployment.network, teacher, views=data.views.evaluate, axis=runner.axis)
    return Program(
        experiment, phase, images, student, teacher, freezer, bound, optimizer, clock, runner, deployment, views, step,
        runner.compile(step, state=state), several and runner.compile(several, state=state, stacked=True),
        runner.compile(evaluation, donate=False), rows, resident,
    )  # fmt: skip


def make_clock(experiment: Experiment, phase: Phase, images: Images, rows: int) -> Clock:
    """A phase's length in steps. An epoch is as many examples as there are to train on, whether or not all are visited, so
    that every method has the same budget."""
    size = experiment.data.batch_size
    per_epoch = -(-len(images.train_index) // size)
    total = phase.duration.steps(per_epoch, size)
    if total < 1:
        raise ExperimentError(f"Phase {phase.name!r} lasts {phase.duration}, which is no step at all; make it longer.")
    return Clock(total, per_epoch, size, -(-rows // size))


def make_network(model: Model, images: Images, *, remat: bool = False) -> Network:
    """A network of the zoo for these images; `remat` as in `kdjax.models.zoo.catalogue.build`."""
    options = {"num_classes": images.info.num_classes, "in_channels": images.shape[-1], "width": model.width or None,
               "batchnorm_groups": model.batchnorm_groups, "remat": remat}  # fmt: skip
    name = f"{model.name} (width {model.width})" if model.width else model.name
    return from_nnx(lambda rngs: zoo.build(model.name, rngs=rngs, **options), parts=("classify", "norms"), name=name)


def make_teacher(experiment: Experiment, phase: Phase, images: Images) -> Network | None:
    """The network that teaches a phase, an ensemble of several, or None."""
    models = [experiment.phase(name).network for name in phase.teachers]
    made = {
        model: make_network(model, images) for model in models
    }  # equal ones are one network, for the ensemble's sake
    networks = [made[model] for model in models]
    return ensemble(networks) if len(networks) > 1 else next(iter(networks), None)


def make_freezer(phase: Phase, teacher: Network | None, bound: Bound, inputs: jax.ShapeDtypeStruct) -> Freezer | None:
    """What freezes a phase's teacher, if that is asked for.

    Raises:
      ValueError: the objective needs the teacher as it is.
    """
    if not phase.teacher_precision or teacher is None or not bound.needs_teacher:
        return None
    if bound.teacher_mode == "train" or bound.correct:
        what = "the teacher's statistics to go on" if bound.teacher_mode == "train" else "the gradient at the teacher"
        raise ValueError(
            f"Phase {phase.name!r} freezes its teacher (teacher_precision={phase.teacher_precision}), and its objective wants "
            f"{what}; leave teacher_precision empty."
        )
    return Freezer(teacher, inputs, precision=phase.teacher_precision)

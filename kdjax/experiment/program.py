"""A phase made ready to run: its networks, its compiled step, its batches. Built once for all runs that differ in seeds."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import numpy as np

from kdjax.data import DataError
from kdjax.experiment import serialization
from kdjax.experiment.compiled import Compiled, compile_phase
from kdjax.experiment.feeding import Feeding, Resident
from kdjax.experiment.networks import Networks, make_networks
from kdjax.experiment.spec import Experiment, ExperimentError, Phase
from kdjax.schedules import epochs
from kdjax.tasks import Dataset, Task
from kdjax.training import Variables, make_runner
from kdjax.training.evaluation import evaluate
from kdjax.training.processes import by_first


@dataclasses.dataclass(frozen=True, eq=False)
class Program:
    """One phase of an experiment, for any seed. Its three parts are each built of the ones before.

    Attributes:
      experiment, phase: what it is of.
      dataset: the examples.
      networks: who takes part.
      compiled: the step and the evaluation.
      feeding: what they are fed with.
    """

    experiment: Experiment
    phase: Phase
    dataset: Dataset
    networks: Networks
    compiled: Compiled
    feeding: Feeding

    def evaluate(self, student: Variables, teacher: Variables | None) -> dict[str, dict[str, float]]:
        """Metrics of the deployed student, and of the teacher beside it."""
        batches = self.feeding.evaluated()
        return evaluate(self.compiled.evaluation, student, teacher, batches, self.experiment.data.means)


class Builder:
    """Builds programs and keeps them: runs that differ only in seeds share data, compiled steps and finished teachers."""

    def __init__(self, data_dir: str | None = None, devices: Any = None):
        self.data_dir, self.devices = data_dir, devices
        self.networks: dict[tuple[Path, Program], Any] = {}
        self._datasets: dict[Task, Dataset] = {}
        self._resident: dict[tuple[Task, str], Resident] = {}
        self._programs: dict[tuple[Experiment, str], Program] = {}

    def dataset(self, task: Task, *, stand_in: bool = False) -> Dataset:
        """The examples of a task; read once. With `stand_in`, others of the same shapes where they are not there."""
        key = dataclasses.replace(task, batch_size=1, eval_batch_size=1)
        if key not in self._datasets:
            if jax.process_count() > 1:  # a data set that is not there yet is made by one of them
                by_first(lambda: task.load(self.data_dir), ExperimentError)
            try:
                self._datasets[key] = task.load(self.data_dir)
            except DataError:
                made = task.stand_in(self.data_dir) if stand_in else None
                if made is None:
                    raise
                self._datasets[key] = made
        return self._datasets[key]

    def program(self, experiment: Experiment, phase: Phase) -> Program:
        """The program of a phase; built once for all experiments that differ in nothing that is compiled.

        Raises:
          ExperimentError: one sentence for the first thing that does not fit.
        """
        try:
            seen = experiment.seen_by(phase)
        except (ValueError, DataError) as error:
            raise ExperimentError(str(error)) from error
        if seen is not experiment:
            experiment, phase = seen, dataclasses.replace(phase, network=experiment.data.written_out(phase.network))
        # Seeds, names, where a network comes from and how often one looks change neither shapes nor code, nor does a phase
        # that does not teach.
        taking_part = [p for p in experiment.phases if p.name in (phase.name, *phase.teachers)]
        phases = tuple(
            dataclasses.replace(p, weights="", start="")
            if p.name == phase.name
            else Phase(name=p.name, network=p.network)
            for p in taking_part
        )
        left_out = {"name": "", "seed": 0, "data_seed": 0, "log_every": 1}
        left_out |= {"evaluate_every": epochs(1), "checkpoint_every": epochs(1)}
        key = (dataclasses.replace(experiment, **left_out, phases=phases), phase.name)
        if key not in self._programs:
            resident = self._resident.setdefault((experiment.data, experiment.runner), Resident())
            self._programs[key] = build(experiment, phase, self.dataset(experiment.data), resident, self.devices)
        return self._programs[key]


def build(experiment: Experiment, phase: Phase, dataset: Dataset, resident: Resident, devices: Any = None) -> Program:
    """Builds one phase of an experiment; `resident` keeps what is on the devices."""
    problems = serialization.problems(experiment)
    if problems:
        raise ExperimentError(problems[0])
    try:
        runner = make_runner(experiment.runner, devices)
        runner.check_batch_size(experiment.data.batch_size // phase.microbatches)
        runner.check_batch_size(experiment.data.eval_batch_size)
        networks = make_networks(experiment, phase, dataset)
        rows = np.asarray(dataset.visited(phase.taught, phase.labels))
        compiled = compile_phase(experiment, phase, networks, dataset, runner, len(rows))
    except ValueError as error:
        raise ExperimentError(str(error)) from error
    feeding = Feeding(experiment, phase, dataset, networks, runner, rows, resident)
    return Program(experiment, phase, dataset, networks, compiled, feeding)

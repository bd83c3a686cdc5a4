"""What a phase is fed with: batches in the order of a seed, arrays that stay on the devices, what is evaluated."""

import dataclasses
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from kdjax.data import Pipeline, evaluation_batches
from kdjax.experiment.networks import Networks
from kdjax.experiment.spec import Experiment, Phase
from kdjax.experiment.teacher_outputs import StoredOutputs, TeacherOutputs
from kdjax.models import output_shapes
from kdjax.tasks import Dataset
from kdjax.tasks.dataset import RESIDENT_BYTES
from kdjax.training import Runner, Variables
from kdjax.training.feed import laid_flat
from kdjax.training.teacher_cache import Storage
from kdjax.types import Batch, Clock, Tree

FREEZE_SAMPLE = 256  # examples on which a frozen teacher is compared with the original


class Resident:
    """What stays on the devices: evaluation batches, and the training inputs where they are small."""

    def __init__(self):
        self.evaluated: list[Batch] = []
        self._inputs: Any = None

    def inputs(self, dataset: Dataset, runner: Runner) -> Tree:
        if self._inputs is None:
            self._inputs = jax.device_put(laid_flat(dataset.arrays), runner.replicated)
        return self._inputs


@dataclasses.dataclass(frozen=True, eq=False)
class Feeding:
    """The batches of a phase, for any seed.

    Attributes:
      experiment, phase, dataset: what they are of.
      networks: whose teacher may have been asked before, see `teacher_outputs`.
      runner: places them.
      rows: examples of the training split that are visited.
      resident: what is on the devices already; phases of the same data share it.
    """

    experiment: Experiment
    phase: Phase
    dataset: Dataset
    networks: Networks
    runner: Runner
    rows: np.ndarray
    resident: Resident

    def pipeline(self, data_seed: int, *, inputs: bool | None = None) -> Pipeline:
        """Batches in the order of `data_seed`; with their inputs, unless these are on the devices."""
        return Pipeline(
            self.dataset.train, self.rows, batch_size=self.experiment.data.batch_size, data_seed=data_seed,
            # Without a choice of labelled examples (or for a network that may use all labels) every label counts.
            labelled_mask=self.dataset.usable(self.phase.labels), process_index=jax.process_index(),
            process_count=jax.process_count(), inputs=not self.dataset.resident if inputs is None else inputs,
            workers=self.experiment.workers,
        )  # fmt: skip

    def batches(
        self, data_seed: int, clock: Clock, teacher: Variables | None
    ) -> Pipeline | TeacherOutputs | StoredOutputs:
        """The phase's batches, with what the teacher says where that is kept. `teacher` has its whole variables."""
        pipeline, data = self.pipeline(data_seed), self.experiment.data
        if not self.networks.cached:
            return pipeline
        if self.networks.outputs is not None:
            return StoredOutputs(pipeline, self.networks.outputs)
        return TeacherOutputs(
            pipeline, data, self.dataset, self.networks.step_teacher, self.networks.frozen(teacher),
            storage=Storage(self.phase.teacher_cache), folder=self.experiment.cache_dir, data_seed=data_seed, clock=clock,
            runner=self.runner,
        )  # fmt: skip

    def frozen(self, teacher: Variables | None) -> Any:
        """The second argument of the step: the teacher as it runs there, and the inputs if they stay on the devices."""
        teacher = None if self.networks.cached else self.networks.frozen(teacher)
        return (teacher, self.resident.inputs(self.dataset, self.runner)) if self.dataset.resident else teacher

    def sample(self) -> Tree:
        """What a network sees of a few examples that are evaluated."""
        read = self.dataset.held.read(self.dataset.held_index[:FREEZE_SAMPLE])
        return self.experiment.data.evaluation_view(read["inputs"])

    def evaluated(self) -> Iterator[Batch] | list[Batch]:
        """The batches of an evaluation, on the devices."""
        dataset = self.dataset
        batches = evaluation_batches(
            dataset.held, dataset.held_index, self.experiment.data.eval_batch_size, process_index=jax.process_index(),
            process_count=jax.process_count(),
        )  # fmt: skip
        placed = (self.runner.place_batch(batch) for batch in batches)
        one = sum(int(np.prod(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(dataset.shapes(1)["inputs"]))
        if len(dataset.held_index) * one > RESIDENT_BYTES:
            return placed
        if not self.resident.evaluated:
            self.resident.evaluated = list(placed)  # all or, where that is interrupted, none
        return self.resident.evaluated

    def batch_template(self, stacked: int = 0) -> Batch:
        """Shapes and shardings of a batch as the step takes it; with `stacked`, of the batches of so many steps."""
        rows, devices, steps = self.experiment.data.batch_size, self.runner.mesh.size, (stacked,) * bool(stacked)

        def spec(x):
            if self.runner.mapped:
                return jax.ShapeDtypeStruct((*steps, devices, rows // devices, *x.shape[1:]), x.dtype)
            where = self.runner.rows(bool(stacked))
            return jax.ShapeDtypeStruct((*steps, rows, *x.shape[1:]), x.dtype, sharding=where)

        one = self.dataset.shapes(1)
        if self.dataset.resident:
            one["inputs"] = None
        index, mask = np.zeros(1, np.int32), np.ones(1, bool)
        said = None
        if self.networks.cached:
            storage, logits = Storage(self.phase.teacher_cache or "float32"), cached_shape(self.networks)
            said = storage.unpack(np.zeros(1, storage.row(logits)))
        return jax.tree.map(spec, Batch(**one, index=index, where=mask, labelled=mask, teacher=said))

    def resident_template(self) -> Tree | None:
        """Shapes of the inputs that stay on the devices."""
        where = self.runner.replicated
        spec = lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where)
        return jax.tree.map(spec, laid_flat(self.dataset.arrays)) if self.dataset.resident else None


def cached_shape(networks: Networks) -> tuple[int, ...]:
    """Shape of the teacher's logits of one example."""
    if networks.outputs is not None:
        return networks.outputs.shape[1:]
    return output_shapes(networks.teacher, networks.inputs).logits.shape[1:]

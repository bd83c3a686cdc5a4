"""What a step costs, and how much of the device a run used: FLOPs, their rate, and memory."""

import dataclasses
import functools
from typing import Any

import jax
import numpy as np

from kdjax.experiment.program import Program
from kdjax.experiment.spec import ExperimentError
from kdjax.training import TrainState
from kdjax.training.devices import flops, peak_of
from kdjax.types import Batch, Tree


@dataclasses.dataclass(frozen=True)
class Costs:
    """Of one training step, as XLA counts before it optimises; 0 where it cannot say.

    Attributes:
      step: FLOPs of the whole step, over all devices.
      teacher: those of the teacher's forward pass.
    """

    step: float
    teacher: float

    @property
    def teacher_share(self) -> float | None:
        return self.teacher / self.step if self.step else None


def step_arguments(program: Program, stacked: int = 0) -> tuple[TrainState, Any, Batch]:
    """Shapes and shardings of what a program's step takes: state, frozen, batch. With `stacked`, of so many steps at once."""
    compiled, feeding = program.compiled, program.feeding
    teacher, inputs = compiled.teacher_template(), feeding.resident_template()
    return compiled.state_template(), teacher if inputs is None else (teacher, inputs), feeding.batch_template(stacked)


def check_replicated(program: Program) -> None:
    """Refuses a program under pmap whose step has results that differ between the devices.

    Raises:
      ExperimentError: it has.
    """
    if program.compiled.runner.mapped:
        try:
            program.compiled.step.check(*step_arguments(program))
        except ValueError as error:
            raise ExperimentError(f"Phase {program.phase.name!r}: {error}") from error


@functools.lru_cache(maxsize=64)  # lowering takes a second
def costs(program: Program) -> Costs:
    """What a program's step costs."""
    compiled, networks, teacher = program.compiled, program.networks, 0.0
    if networks.teacher_runs:
        forward = jax.jit(lambda v, x: networks.step_teacher.apply(v.params, v.state, x, train=False)[0])
        teacher = flops(forward, compiled.teacher_template(), networks.inputs)
    step, runner = flops(compiled.step, *step_arguments(program)), compiled.runner
    return Costs(step * (runner.mesh.size if runner.mapped else 1), teacher)  # pmap's is of one device


def account(program: Program, timed_steps: int, seconds: float, input_seconds: float) -> dict[str, float | None]:
    """What a run used, as data: None for what is not known.

    Args:
      program: what was run.
      timed_steps: how many steps the time is of.
      seconds: in training steps, on the host's clock.
      input_seconds: of these, in putting batches together and handing them over. The devices need not have waited for it.
    """
    cost = costs(program) if program.experiment.data.one_shape else Costs(0.0, 0.0)
    rate = cost.step * timed_steps / seconds if seconds and cost.step else None
    peak = peak_of(jax.devices()[0].device_kind)
    devices = program.compiled.runner.mesh.size
    memory = (program.compiled.runner.mesh.local_devices[0].memory_stats() or {}).get("peak_bytes_in_use")
    return {
        "flops_per_step": cost.step or None,
        "teacher_share": cost.teacher_share,
        "flops_per_s": rate,
        "peak_share": rate / (peak * devices) if rate and peak else None,
        "input_share": input_seconds / seconds if seconds else None,
        "device_bytes": memory,
    }


def size(tree: Tree) -> int:
    """Bytes of all arrays."""
    return sum(int(np.prod(x.shape)) * (4 if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key) else x.dtype.itemsize)
               for x in jax.tree.leaves(tree))  # fmt: skip


def readable(count: float, unit: str = "B", base: int = 1024) -> str:
    """`3.2 MiB` of bytes; with base 1000 `3.2 GFLOP/s`."""
    prefixes = ("", "Ki", "Mi", "Gi", "Ti") if base == 1024 else ("", "k", "M", "G", "T", "P")
    value = float(count)
    for prefix in prefixes:
        if value < base or prefix == prefixes[-1]:
            break
        value /= base
    return f"{value:.3g} {prefix}{unit}"


def in_words(used: dict[str, Any]) -> str:
    """One line of what `account` found, of what is known."""
    said = []
    if used.get("flops_per_s"):
        said.append(readable(used["flops_per_s"], "FLOP/s", 1000))
    if used.get("peak_share"):
        said.append(f"{100 * used['peak_share']:.0f} % of the peak in bfloat16")
    if used.get("teacher_share"):
        said.append(f"{100 * used['teacher_share']:.0f} % of the FLOPs in the teacher")
    if used.get("input_share") is not None:
        said.append(f"{100 * used['input_share']:.0f} % of the host's time for batches")
    if used.get("device_bytes"):
        said.append(f"{readable(used['device_bytes'])} at most on a device")
    return ", ".join(said)

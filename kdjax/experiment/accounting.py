"""What a step costs, and how much of the device a run used: FLOPs, their rate, and memory."""

import dataclasses
import functools
from typing import Any

import jax
import numpy as np

from kdjax.experiment.program import Program, template_of, with_sharding
from kdjax.training import TrainState, Variables
from kdjax.training.devices import flops, peak_of
from kdjax.training.teacher_cache import Storage
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


def step_arguments(program: Program) -> tuple[TrainState, Any, Batch]:
    """Shapes and shardings of what a program's step takes: state, frozen, batch."""
    state = with_sharding(jax.eval_shape(lambda: program.fresh_state(0, 0)), program.runner)
    rows, sharded = program.experiment.data.batch_size, program.runner.sharded
    devices = program.runner.mesh.size

    def spec(dtype, *shape):
        if program.runner.mapped:
            return jax.ShapeDtypeStruct((devices, rows // devices, *shape), dtype)
        return jax.ShapeDtypeStruct((rows, *shape), dtype, sharding=sharded)

    inputs = None if program.keeps_images else spec(np.uint8, *program.images.shape)
    said = None
    if program.cached:
        storage, classes = Storage(program.phase.teacher_cache), program.images.info.num_classes
        said = jax.tree.map(lambda x: spec(x.dtype, *x.shape[1:]), storage.unpack(np.zeros(1, storage.row(classes))))
    batch = Batch(inputs, spec(np.int32), spec(np.int32), spec(bool), spec(bool), said)
    frozen: Any = None if program.cached else teacher_template(program)
    if program.keeps_images:
        kept = program.images.train.images
        frozen = frozen, jax.ShapeDtypeStruct(kept.shape, kept.dtype, sharding=program.runner.replicated)
    return state, frozen, batch


def teacher_template(program: Program) -> Variables | None:
    """Shapes of the teacher as the step takes it."""
    if program.step_teacher is None:
        return None
    template = template_of(program.step_teacher, program.runner)
    return dataclasses.replace(template, gradient=template.params) if program.bound.corrects_over_data else template


@functools.lru_cache(maxsize=64)  # lowering takes a second
def costs(program: Program) -> Costs:
    """What a program's step costs."""
    teacher = 0.0
    if program.bound.needs_teacher and not program.cached:
        inputs = jax.ShapeDtypeStruct((program.experiment.data.batch_size, *program.images.shape), np.float32)
        forward = jax.jit(lambda v, x: program.step_teacher.apply(v.params, v.state, x, train=False)[0].logits)
        teacher = flops(forward, teacher_template(program), inputs)
    step = flops(program.step, *step_arguments(program))
    return Costs(step * (program.runner.mesh.size if program.runner.mapped else 1), teacher)  # pmap's is of one device


def account(program: Program, timed_steps: int, seconds: float, input_seconds: float) -> dict[str, float | None]:
    """What a run used, as data: None for what is not known.

    Args:
      program: what was run.
      timed_steps: how many steps the time is of.
      seconds: in training steps, on the host's clock.
      input_seconds: of these, in putting batches together and handing them over. The devices need not have waited for it.
    """
    cost = costs(program)
    rate = cost.step * timed_steps / seconds if seconds and cost.step else None
    peak = peak_of(jax.devices()[0].device_kind)
    devices = program.runner.mesh.size
    memory = (program.runner.mesh.local_devices[0].memory_stats() or {}).get("peak_bytes_in_use")
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

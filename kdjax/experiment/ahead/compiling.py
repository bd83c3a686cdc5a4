"""A phase's step compiled for a slice: what it holds, what it costs by the compiler's estimate, and what is wrong with it."""

import dataclasses
import re
import time
from collections.abc import Iterable

from kdjax.experiment.accounting import readable, step_arguments
from kdjax.experiment.ahead.hlo import parse
from kdjax.experiment.ahead.products import Product, asked
from kdjax.experiment.ahead.reading import Reading, read
from kdjax.experiment.compiled import steps_per_dispatch
from kdjax.experiment.program import Program
from kdjax.experiment.spec import ExperimentError, Phase
from kdjax.training.devices import Chip, chip_of


@dataclasses.dataclass(frozen=True)
class Ahead:
    """A compiled step and what it says. Times are seconds of one step.

    Attributes:
      kind: of the devices, as JAX calls it.
      chip: what is known of it.
      batch_size: examples in a step, over all devices; `total` steps are the phase.
      dispatched: steps in the compiled program, as a run dispatches them.
      memory: bytes on one device by kind.
      reading: of the program.
      faults: a sentence each.
      seconds: that compiling took.
    """

    kind: str
    chip: Chip | None
    batch_size: int
    total: int
    dispatched: int
    memory: dict[str, int]
    reading: Reading
    faults: tuple[str, ...]
    seconds: float

    @property
    def needed(self) -> int:
        """Bytes on one device: what is aliased is there once."""
        memory = self.memory
        return memory["arguments"] + memory["outputs"] - memory["aliased"] + memory["temporaries"] + memory["code"]

    def times(self) -> dict[str, float]:
        """The least time each of the device's means allows, and that of the compiler's cycles; of what is known."""
        chip, reading = self.chip or Chip(0.0), self.reading
        sent = sum(collective.sent(reading.devices) for collective in reading.collectives)
        work = {
            "FLOPs": (sum(reading.flops.values()), chip.flops), "HBM": (reading.traffic, chip.bandwidth),
            "interconnect": (sent, chip.links), "estimated cycles": (sum(reading.cycles.values()), chip.clock),
        }  # fmt: skip
        return {name: amount / rate for name, (amount, rate) in work.items() if rate and (amount or name != "FLOPs")}

    @property
    def step_time(self) -> float | None:
        """Estimated seconds of a step: its cycles, and what it sends as if nothing were done meanwhile."""
        times = self.times()
        if not times.get("estimated cycles"):
            return None
        return times["estimated cycles"] + times.get("interconnect", 0.0)


def compile_ahead(program: Program) -> Ahead:
    """Compiles what a run of the program dispatches, for the devices of its runner, which need not be here.

    Raises:
      ExperimentError: it cannot be compiled: it needs more memory than a device has, or its runner is pmap.
    """
    compiled, experiment = program.compiled, program.experiment
    runner = compiled.runner
    if runner.mapped:
        raise ExperimentError("A step under runner=pmap is not compiled ahead of time; use jit or fsdp.")
    steps = steps_per_dispatch(experiment, runner)
    arguments = step_arguments(program, stacked=steps if steps > 1 else 0)
    began = time.perf_counter()
    traced = (compiled.steps if steps > 1 else compiled.step).trace(*arguments)
    try:
        executable = traced.lower().compile()
    except Exception as error:  # jax.errors.JaxRuntimeError, by its text
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise ExperimentError(f"The step does not fit: {shortened(str(error))}") from error
    seconds = time.perf_counter() - began
    reading = read(parse(executable.as_text()), steps)
    kind = getattr(runner.mesh.devices.flat[0], "device_kind", "")
    made = Ahead(
        kind, chip_of(kind), experiment.data.batch_size, compiled.clock.total_steps, steps, memory_of(executable),
        reading, (), seconds,
    )  # fmt: skip
    return dataclasses.replace(made, faults=tuple(faults(made, program.phase, asked(traced.jaxpr.jaxpr))))


def memory_of(executable) -> dict[str, int]:
    """Bytes on one device by kind."""
    said = executable.memory_analysis()
    return {
        "arguments": said.argument_size_in_bytes, "outputs": said.output_size_in_bytes, "aliased": said.alias_size_in_bytes,
        "temporaries": said.temp_size_in_bytes, "code": said.generated_code_size_in_bytes,
    }  # fmt: skip


def faults(ahead: Ahead, phase: Phase, products: Iterable[Product]) -> list[str]:
    """What is wrong with a compiled step, a sentence each; `products` are those that were asked for."""
    reading, found = ahead.reading, []
    if not reading.aliased:
        found.append("No array of the state gives its memory to the new state.")
    elif reading.not_aliased:
        found.append(
            f"{len(reading.not_aliased)} arrays of the state keep their memory beside the new state's, such as "
            f"{reading.not_aliased[0]}."
        )
    if reading.differentiated:
        found.append(f"The teacher is differentiated, at {reading.differentiated[0]}.")
    computes = {"student": phase.precision, "teacher": phase.teacher_precision}
    wide = [p.place for p in products if "float32" in p.kinds[:2] and computes.get(p.part.split()[0]) == "bfloat16"]
    if wide:
        found.append(f"{len(wide)} products are in float32 where bfloat16 was asked for, such as {wide[0]}.")
    if reading.callbacks:
        found.append(f"The step waits for the host, at {reading.callbacks[0]}.")
    if ahead.chip and ahead.chip.memory and ahead.needed > ahead.chip.memory:
        found.append(f"A step needs {readable(ahead.needed)} a device, which has {readable(ahead.chip.memory)}.")
    return found


def shortened(message: str) -> str:
    """The first sentence of a compiler's message."""
    words = re.sub(r"\s+", " ", message)
    said = re.search(r"(Ran out of memory[^.]*(?:\.\d+\w*[^.]*)*\.)", words)
    return said[1] if said else words[:300]

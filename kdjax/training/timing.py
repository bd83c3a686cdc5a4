"""Where the time of a phase goes: a stopwatch for its training steps, and a profile of a few of them."""

import contextlib
import time
from pathlib import Path
from typing import Any

import jax

PROFILED = 10  # steps in a profile


class Stopwatch:
    """Time spent in training steps, without compilation, evaluation and checkpoints, and how much of it on batches."""

    def __init__(self):
        self.restart()

    def restart(self) -> None:
        self.steps, self.waited, self.began = 0, 0.0, time.perf_counter()

    @contextlib.contextmanager
    def reading(self):
        """While the host puts a batch together and hands it to the devices."""
        began = time.perf_counter()
        yield
        self.waited += time.perf_counter() - began

    def pause(self, facts: dict[str, Any]) -> None:
        if self.steps:
            facts["train_seconds"] += time.perf_counter() - self.began
            facts["input_seconds"] += self.waited
            facts["timed_steps"] += self.steps

    def rate(self, batch_size: int) -> float:
        return self.steps * batch_size / (time.perf_counter() - self.began) if self.steps else 0.0


class Profiler:
    """Writes a profile of some steps once everything is compiled; of none without a folder."""

    def __init__(self, folder: Path | None):
        self.folder, self.first, self.running = folder, None, False

    def before(self, step: int) -> None:
        """Called before every dispatch: the profile begins with the first one after compilation."""
        if self.first is not None and self.folder is not None and not self.running:
            several = jax.process_count() > 1  # of one host, where they would write one file
            jax.profiler.start_trace(str(self.folder / f"process{jax.process_index()}" if several else self.folder))
            self.first, self.running = step, True

    def after(self, step: int, metrics: Any) -> None:
        """Called after every dispatch of what was compiled before, with what it gave."""
        if self.running and step - self.first >= PROFILED:
            jax.block_until_ready(metrics)
            self.stop()
        elif self.first is None:
            self.first = step

    def stop(self) -> None:
        if self.running:
            jax.profiler.stop_trace()
            self.running, self.folder = False, None

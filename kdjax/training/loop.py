"""The loop around the compiled step: metrics a step late, evaluation, checkpoints, stopping."""

import contextlib
import dataclasses
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from kdjax.training.checkpoints import Checkpoints
from kdjax.training.feed import ahead, dispatches, grouped
from kdjax.training.metrics import Metric
from kdjax.training.processes import any_of
from kdjax.training.progress import Progress
from kdjax.training.runners import Runner
from kdjax.training.state import TrainState
from kdjax.training.writers import MetricWriter

PROFILED = 10  # steps in a profile


class TrainingError(Exception):
    """Why training cannot go on, and the mend, in one sentence."""


class Stopped(Exception):
    """Training was asked to stop, and its state is saved."""


@dataclasses.dataclass(frozen=True)
class Loop:
    """One phase's loop, ready to run.

    Attributes:
      name: of the phase.
      step: compiled `(state, frozen, batch) -> (state, metrics)`.
      steps: the same for `steps_per_dispatch` stacked batches, see `kdjax.training.feed.scanned`; None for one at a time.
      steps_per_dispatch: how many steps that is.
      evaluate: `state -> {"student": means, "teacher": means}` of the student as it would be deployed now, a list with one
        for each network that is trained.
      metric: which of them counts: by it the best state is chosen.
      batches: `start step -> iterator of batches`, endless.
      runner: places the batches.
      total_steps: length of the phase.
      log_every, evaluate_every, checkpoint_every: in steps.
      batch_size: examples a step, for examples/s, and `noun` what they are called.
      profile: folder for a profile of a few steps, or None.
    """

    name: str
    step: Callable
    steps: Callable | None
    steps_per_dispatch: int
    evaluate: Callable[[TrainState], list[dict[str, dict[str, float]]]]
    metric: Metric
    batches: Callable[[int], Any]
    runner: Runner
    total_steps: int
    log_every: int
    evaluate_every: int
    checkpoint_every: int
    batch_size: int
    noun: str = "examples"
    profile: Path | None = None

    def run(
        self,
        state: TrainState,
        frozen: Any,
        checkpoints: Checkpoints,
        writers: list[MetricWriter],
        progress: Progress,
        facts: dict[str, Any] | None = None,
    ) -> tuple[TrainState, dict[str, Any]]:
        """Trains to the end.

        Args:
          state: where to begin: fresh, or restored.
          frozen: the step's second argument: the teacher's variables, or these and the images on the devices.
          checkpoints: where states go.
          writers: where metrics go, one for each network that is trained: several are replicas, and then every array of the
            state and of the metrics has a first axis of them.
          progress: what the user sees.
          facts: those of the restored checkpoint.

        Returns:
          The last state, and facts: seconds in all and in training steps, and for each network ("tracks") its best and its
          last evaluation.

        Raises:
          TrainingError: at a loss that is not finite; no checkpoint is written after it.
          Stopped: at SIGTERM or SIGINT, after a checkpoint was written.
        """
        facts = dict.fromkeys(("seconds", "train_seconds", "input_seconds"), 0.0) | {
            "timed_steps": 0, "tracks": [{"best": None, "last": None, "window": {}} for _ in writers], **(facts or {})
        }  # fmt: skip
        began, before = time.perf_counter(), facts["seconds"]
        begin = int(np.ravel(state.step)[0])
        pending: list = []
        logs = list(zip(facts["tracks"], writers, strict=True))
        stopwatch = Stopwatch()
        with stop_signals() as stop:
            progress.start(self.name, begin, self.total_steps, self.batch_size, self.noun)
            step, compiled = begin, set()
            feed = self._feed(begin)
            profiler = Profiler(self.profile)
            while step < self.total_steps:
                profiler.before(step)
                with stopwatch.reading():
                    size, batch = next(feed)
                before_it, step = step, step + size
                state, metrics = (self.step if size == 1 else self.steps)(state, frozen, batch)
                if size in compiled:
                    stopwatch.steps += size
                    profiler.after(step, metrics)
                else:
                    jax.block_until_ready(metrics)  # the first time compiles; keep that out of examples/s
                    compiled.add(size)
                    stopwatch.restart()
                pending.append((before_it + 1, size, metrics))
                ends = step == self.total_steps
                evaluates = ends or step % self.evaluate_every == 0
                saves = ends or step % self.checkpoint_every == 0
                if evaluates or saves or (step - 1) // self.log_every > (before_it - 1) // self.log_every:
                    # A dispatch late, unless the state is needed now anyway: the device never waits for the log.
                    late = pending if evaluates or saves else pending[:-1]
                    self._log(late, logs, progress, stopwatch)
                    pending = pending[len(late) :]
                progress.advance(step)
                if evaluates:
                    jax.block_until_ready(state)
                    stopwatch.pause(facts)
                    self._evaluate(state, step, checkpoints, logs, progress, facts)
                    stopwatch.restart()
                stopping = self._stopping(stop, before_it, step)
                if saves or stopping:
                    self._log(pending, logs, progress, stopwatch)
                    pending = []
                    jax.block_until_ready(state)
                    stopwatch.pause(facts)
                    facts["seconds"] = before + time.perf_counter() - began
                    checkpoints.save(state, step, facts)
                    stopwatch.restart()
                if stopping:
                    checkpoints.wait()
                    why = stop[0] if stop else "another process"
                    raise Stopped(f"Stopped by {why} at step {step} of {self.total_steps} of phase {self.name!r}.")
            profiler.stop()
        checkpoints.wait()
        progress.finish()
        return state, facts

    def _stopping(self, stop: list[str], before_it: int, step: int) -> bool:
        """Whether to stop here. Read once: a signal may come at any moment, and what it stops must be saved. Several
        processes ask each other as often as they log, so that all stop at the same step."""
        if jax.process_count() == 1:
            return bool(stop)
        return step // self.log_every > before_it // self.log_every and any_of(bool(stop))

    def _feed(self, begin: int) -> Iterator[tuple[int, Any]]:
        """`(steps, placed batch)` of every dispatch from step `begin` on."""
        if begin >= self.total_steps:
            return iter(())
        sizes = dispatches(
            begin, self.total_steps, self.steps_per_dispatch, (self.evaluate_every, self.checkpoint_every)
        )
        place = lambda item: (item[0], self.runner.place_batch(item[1], stacked=item[0] > 1))
        return ahead(grouped(self.batches(begin), sizes), place)

    def _log(self, pending, logs, progress, stopwatch) -> None:
        """Adds metrics to the window `{name: [sum, count]}` of each network, which becomes a row every `log_every` steps, and
        is part of a checkpoint so that a resumed run writes the same rows."""
        for step, metrics in rows_of(pending):
            for i, (track, writer) in enumerate(logs):
                row = metrics if len(logs) == 1 else jax.tree.map(lambda x, i=i: x[i], metrics)
                self._check_finite(row, step)
                window = track["window"]
                for name, (value, count) in row.items():
                    before = window.get(name, (0.0, 0.0))
                    window[name] = [before[0] + float(value), before[1] + float(count)]
                if step % self.log_every == 0 or step == self.total_steps:
                    means = {name: value / max(count, 1.0) for name, (value, count) in window.items()}
                    rate = stopwatch.rate(self.batch_size)
                    writer.write(step, "train", means | ({"examples_per_s": rate} if rate else {}))
                    progress.show(means, rate)
                    window.clear()

    def _check_finite(self, row, step) -> None:
        if not (np.isfinite(row["loss"][0]) and np.isfinite(row["gradient_norm"][0])):
            bad = [name for name, (value, _) in row.items() if not np.isfinite(value)]
            raise TrainingError(
                f"Phase {self.name!r}: {', '.join(bad)} is not finite at step {step}; lower the learning rate or the "
                "objective's weight, or set the optimizer's clip. Checkpoints from before are kept."
            )

    def _evaluate(self, state, step, checkpoints, logs, progress, facts) -> None:
        for results, (track, writer) in zip(self.evaluate(state), logs, strict=True):
            student = results["student"]
            flat = dict(student) | {f"teacher_{k}": v for k, v in results.get("teacher", {}).items()}
            writer.write(step, "eval", flat)
            value = student[self.metric.name]
            progress.evaluated(self.metric.said(value))
            track["last"] = {"step": step, **results}
            if track["best"] is None or self.metric.better(value, track["best"]["student"][self.metric.name]):
                track["best"] = {"step": step, **results}
                if len(logs) == 1:
                    checkpoints.save(state, step, dict(facts), best=True)


class Profiler:
    """Writes a profile of some steps once everything is compiled; of none without a folder."""

    def __init__(self, folder: Path | None):
        self.folder, self.first, self.running = folder, None, False

    def before(self, step: int) -> None:
        """Called before every dispatch: the profile begins with the first one after compilation."""
        if self.first is not None and self.folder is not None and not self.running:
            jax.profiler.start_trace(str(self.folder))
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


def rows_of(pending: list) -> Iterator[tuple[int, dict]]:
    """`(step, metrics)` on the host for every step of the dispatches `(first step, how many, metrics)`."""
    for (first, size, _), metrics in zip(pending, jax.device_get([item[2] for item in pending]), strict=True):
        for i in range(size):
            yield first + i, metrics if size == 1 else jax.tree.map(lambda x, i=i: x[i], metrics)


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


@contextlib.contextmanager
def stop_signals():
    """Collects the names of SIGTERM and SIGINT instead of dying of them; a second SIGINT does interrupt."""
    received: list[str] = []
    previous = {}

    def receive(number, frame):
        if number == signal.SIGINT and received:
            raise KeyboardInterrupt
        received.append(signal.Signals(number).name)

    try:
        for number in (signal.SIGTERM, signal.SIGINT):
            previous[number] = signal.signal(number, receive)
    except ValueError:  # not in the main thread: signals are somebody else's
        pass
    try:
        yield received
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)

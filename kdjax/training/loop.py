"""The loop around the compiled step: metrics a step late, evaluation, checkpoints, stopping."""

import dataclasses
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from kdjax.training import finite
from kdjax.training.checkpoints import Checkpoints
from kdjax.training.feed import ahead, dispatches, grouped
from kdjax.training.metrics import Metric
from kdjax.training.optimizers import counted_to
from kdjax.training.processes import any_of, say
from kdjax.training.progress import Progress
from kdjax.training.runners import Runner
from kdjax.training.signals import stop_signals
from kdjax.training.state import TrainState
from kdjax.training.timing import Profiler, Stopwatch
from kdjax.training.writers import MetricWriter

SKIPPED = "skipped"  # metric: steps of a row that were left out


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
      on_nan: what is done where training is not finite, see `kdjax.experiment.spec.Experiment`; the step itself skips.
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
    on_nan: finite.OnNan = "stop"
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
          TrainingError: at what is not finite, see `on_nan`; no checkpoint is written after it.
          Stopped: at SIGTERM, SIGINT or SIGHUP, after a checkpoint was written.
        """
        facts = dict.fromkeys(("seconds", "train_seconds", "input_seconds"), 0.0) | {
            "timed_steps": 0, "tracks": [{"best": None, "last": None, "window": {}} for _ in writers], "restored": [],
            **(facts or {}),
        }  # fmt: skip
        logs = list(zip(facts["tracks"], writers, strict=True))
        shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)
        session = Session(facts, logs, checkpoints, progress, Stopwatch(), Profiler(self.profile),
                          time.perf_counter() - facts["seconds"])  # fmt: skip
        for track in facts["tracks"]:
            if "diverged" in track:
                checkpoints.keep_for_good(max(track["diverged"] - 2, 0))
        if self.on_nan == "restore" and checkpoints.latest() is None:
            checkpoints.save(state, step_of(state), facts)
        with stop_signals() as stop:
            progress.start(self.name, step_of(state), self.total_steps, self.batch_size, self.noun)
            try:
                while step_of(state) < self.total_steps:
                    try:
                        state = self._train(state, frozen, session, stop)
                    except finite.NotFinite as error:
                        state = self._go_back(error, shapes, session)
            finally:
                session.profiler.stop()
            checkpoints.wait()
            if any_of(bool(stop)):  # since the last step: the next phase is not begun
                why = stop[0] if stop else "another process"
                raise Stopped(
                    f"Stopped by {why} at the end of phase {self.name!r}, all {self.total_steps} steps of which are kept."
                )
        progress.finish()
        return state, facts

    def _train(self, state: TrainState, frozen: Any, session: "Session", stop: list[str]) -> TrainState:
        """Trains from a state to the end of the phase.

        Raises:
          NotFinite: a step or an evaluation is not finite.
        """
        checkpoints, progress, stopwatch = session.checkpoints, session.progress, session.stopwatch
        pending: list = []
        step, compiled = step_of(state), set()
        feed = self._feed(step)
        profiler = session.profiler
        stopwatch.restart()
        while step < self.total_steps:
            profiler.before(step)
            with stopwatch.reading():
                size, batch = next(feed)
            before_it, step = step, step + size
            state, metrics = (self.step if size == 1 else self.steps)(state, frozen, batch)
            session.params = state.params
            kind = size, *(x.shape for x in jax.tree.leaves(batch.inputs))
            if kind in compiled:
                stopwatch.steps += size
                profiler.after(step, metrics)
            else:
                jax.block_until_ready(metrics)  # the first time compiles; keep that out of examples/s
                compiled.add(kind)
                stopwatch.restart()
            pending.append((before_it + 1, size, metrics))
            ends = step == self.total_steps
            evaluates = ends or step % self.evaluate_every == 0
            saves = ends or step % self.checkpoint_every == 0
            if evaluates or saves or (step - 1) // self.log_every > (before_it - 1) // self.log_every:
                # A dispatch late, unless the state is needed now anyway: the device never waits for the log.
                late = pending if evaluates or saves else pending[:-1]
                self._log(late, session)
                pending = pending[len(late) :]
            progress.advance(step)
            if evaluates:
                jax.block_until_ready(state)
                stopwatch.pause(session.facts)
                self._evaluate(state, step, session)
                stopwatch.restart()
            stopping = self._stopping(stop, before_it, step)
            if saves or stopping:
                self._log(pending, session)
                pending = []
                jax.block_until_ready(state)
                self._save(state, step, session)
            if stopping:
                checkpoints.wait()
                why = stop[0] if stop else "another process"
                raise Stopped(f"Stopped by {why} at step {step} of {self.total_steps} of phase {self.name!r}.")
        return state

    def _save(self, state: TrainState, step: int, session: "Session") -> None:
        session.stopwatch.pause(session.facts)
        session.facts["seconds"] = time.perf_counter() - session.began
        for _, writer in session.logs:
            writer.sync()
        session.checkpoints.save(state, step, session.facts)
        session.stopwatch.restart()

    def _go_back(self, error: finite.NotFinite, shapes: TrainState, session: "Session") -> TrainState:
        """What to go on from where training is not finite: the newest state that is known to give a finite loss, with the
        batches left out that came after it.

        Raises:
          TrainingError: it stops here, and what it can be gone on from is kept.
        """
        checkpoints, facts = session.checkpoints, session.facts
        written = self._write_down(error, session)
        checkpoints.wait()
        diverged = [max(track["diverged"] - 2, 0) for track in facts["tracks"] if "diverged" in track]
        sound = checkpoints.keep_until(min([error.sound, *diverged]))
        often = len(facts["restored"]) >= finite.RESTORED
        if self.on_nan != "restore" or often or sound is None:
            mend = "lower the learning rate" + {
                "stop": " or say --on-nan skip or restore", "skip": " or say --on-nan restore", "restore": "",
            }[self.on_nan]  # fmt: skip
            mend += f" with --resume, which {'begins anew' if sound is None else f'goes on from step {sound}'}"
            mend = f"it was gone back {finite.RESTORED} times; {mend}" if often else mend
            raise TrainingError(f"Phase {self.name!r}: {error}; {mend}. {written} says what that step was.") from error
        state, _ = checkpoints.restore(shapes)
        step = min(error.step, self.total_steps - 1)
        moved = counted_to(state.opt_state, step)  # the learning rate follows the number of steps, as all schedules do
        state = dataclasses.replace(state, step=state.step * 0 + step, opt_state=moved)
        facts["restored"].append({"step": error.step, "from": sound})
        for track in facts["tracks"]:
            track.pop("diverged", None)
        say(
            f"Phase {self.name!r}: {error}; it goes on from there with the state of step {sound}. {written} says what it was"
        )
        self._save(state, step, session)
        return state

    def _write_down(self, error: finite.NotFinite, session: "Session") -> Path:
        batch = next(iter(self.batches(error.step - 1)))
        return finite.write_down(session.checkpoints.folder.parent, self.name, error, batch.index, session.params)

    def _stopping(self, stop: list[str], before_it: int, step: int) -> bool:
        """Whether to stop here. Read once: a signal may come at any moment, and what it stops must be saved. Several
        processes ask each other as often as they log, so that all stop at the same step."""
        if jax.process_count() == 1:
            return bool(stop)
        asks = step // self.log_every > before_it // self.log_every or step == self.total_steps
        return asks and any_of(bool(stop))

    def _feed(self, begin: int) -> Iterator[tuple[int, Any]]:
        """`(steps, placed batch)` of every dispatch from step `begin` on."""
        if begin >= self.total_steps:
            return iter(())
        sizes = dispatches(
            begin, self.total_steps, self.steps_per_dispatch, (self.evaluate_every, self.checkpoint_every)
        )
        place = lambda item: (item[0], self.runner.place_batch(item[1], stacked=item[0] > 1))
        return ahead(grouped(self.batches(begin), sizes), place)

    def _log(self, pending, session) -> None:
        """Adds metrics to the window `{name: [sum, count]}` of each network, which becomes a row every `log_every` steps, and
        is part of a checkpoint so that a resumed run writes the same rows."""
        for step, metrics in rows_of(pending):
            for i, (track, writer) in enumerate(session.logs):
                row = metrics if len(session.logs) == 1 else jax.tree.map(lambda x, i=i: x[i], metrics)
                row = self._checked(row, step, track, session)
                window = track["window"]
                for name, (value, count) in row.items():
                    before = window.get(name, (0.0, 0.0))
                    window[name] = [before[0] + float(value), before[1] + float(count)]
                if step % self.log_every == 0 or step == self.total_steps:
                    means = {
                        name: value / max(count, 1.0) for name, (value, count) in window.items() if name != SKIPPED
                    }
                    means |= {SKIPPED: window[SKIPPED][0]} if SKIPPED in window else {}
                    rate = session.stopwatch.rate(self.batch_size)
                    writer.write(step, "train", means | ({"examples_per_s": rate} if rate else {}))
                    if "loss" in means:
                        session.progress.show(means, rate)
                    window.clear()

    def _checked(self, row, step, track, session) -> dict[str, tuple[float, float]]:
        """What of a step goes into the log: its metrics, or that it was left out.

        Raises:
          NotFinite: it is not finite, and not left out.
        """
        bad, row = finite.not_finite(row), finite.without_flags(row)
        if bad:
            values = {name: value / max(count, 1.0) for name, (value, count) in row.items()}
            error = finite.NotFinite(step, bad, values, sound=max(step - 2, 0))
            if self.on_nan != "skip":
                raise error
            track["skipped"], track["in_a_row"] = track.get("skipped", 0) + 1, track.get("in_a_row", 0) + 1
            if track["in_a_row"] == 1:
                session.checkpoints.keep_for_good(error.sound)
            error.sound = max(step - track["in_a_row"] - 1, 0)  # the first in a row may be the fault of those before
            if track["in_a_row"] > finite.IN_A_ROW or track["skipped"] > finite.IN_ALL:
                raise error
            say(f"Phase {self.name!r}: {error}, and is left out; {self._write_down(error, session)} says what it was")
            return {SKIPPED: (1.0, 1.0)}
        loss = float(row["loss"][0])
        first = track.setdefault("first_loss", loss)
        if abs(loss) > finite.ABSURD * max(1.0, abs(first)) and "diverged" not in track:
            track["diverged"] = step
            session.checkpoints.keep_for_good(max(step - 2, 0))
            say(f"Phase {self.name!r} diverges: its loss is {loss:.3g} at step {step} and began with {first:.3g}; lower the "
                "learning rate")  # fmt: skip
        track["in_a_row"] = 0
        return row

    def _evaluate(self, state, step, session) -> None:
        logs = session.logs
        for results, (track, writer) in zip(self.evaluate(state), logs, strict=True):
            student = results["student"]
            value = student[self.metric.name]
            bad = finite.missing_numbers(student, "student")  # a teacher that lacks classes has an infinite nll
            if bad and (step == self.total_steps or not np.isfinite(value)):
                values = {f"{role}.{name}": number for role, means in results.items() for name, number in means.items()}
                raise finite.NotFinite(step, [f"the evaluation ({', '.join(bad)})"], values, sound=step - 1)
            flat = dict(student) | {f"teacher_{k}": v for k, v in results.get("teacher", {}).items()}
            writer.write(step, "eval", flat)
            session.progress.evaluated(self.metric.said(value))
            track["last"] = {"step": step, **results}
            if track["best"] is None or self.metric.better(value, track["best"]["student"][self.metric.name]):
                track["best"] = {"step": step, **results}
                if len(logs) == 1:
                    session.checkpoints.save(state, step, dict(session.facts), best=True)


@dataclasses.dataclass
class Session:
    """What one call of `Loop.run` works with.

    Attributes:
      facts: of the checkpoint that is written next.
      logs: the track and the writer of each network.
      checkpoints, progress, stopwatch, profiler: what they are called.
      began: when the phase would have begun, had it never been stopped.
      params: of the newest state.
    """

    facts: dict[str, Any]
    logs: list[tuple[dict[str, Any], MetricWriter]]
    checkpoints: Checkpoints
    progress: Progress
    stopwatch: Stopwatch
    profiler: Profiler
    began: float
    params: Any = None


def step_of(state: TrainState) -> int:
    """How many steps a state, or joined states, have done."""
    return int(np.ravel(state.step)[0])


def rows_of(pending: list) -> Iterator[tuple[int, dict]]:
    """`(step, metrics)` on the host for every step of the dispatches `(first step, how many, metrics)`."""
    for (first, size, _), metrics in zip(pending, jax.device_get([item[2] for item in pending]), strict=True):
        for i in range(size):
            yield first + i, metrics if size == 1 else jax.tree.map(lambda x, i=i: x[i], metrics)

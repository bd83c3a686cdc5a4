"""A run that was stopped and resumed is, bit for bit, the run that was not."""

import dataclasses
import json
import os
import signal

import pytest

from kdjax.experiment.phase import open_checkpoints
from kdjax.experiment.run import run
from kdjax.objectives import DKD, CrossEntropy, FitNet
from kdjax.schedules import WarmUp, steps
from kdjax.training.loop import Stopped
from kdjax.training.progress import Silent
from tests.experiment.conftest import small

# A scheduled weight, a projector with BatchNorm and parameters of its own, a moving average, crops, partial labels.
EXPERIMENT = small(
    CrossEntropy() + WarmUp(length=steps(5)) * DKD(beta=2.0, temperature=2.0) + 10.0 * FitNet(stage=1),
    student={"ema_decay": 0.5, "keep": "best"},
    data={"labelled": 300},
    length=9,
)


class StopAt(Silent):
    """Sends a signal while a step is being counted."""

    def __init__(self, step, phase="student"):
        self.step, self.phase = step, phase

    def start(self, name, step, total, batch_size, noun):
        self.name = name

    def advance(self, step):
        if step == self.step and self.name == self.phase:
            os.kill(os.getpid(), signal.SIGTERM)


def rows(folder):
    """Everything logged but speeds."""
    lines = [json.loads(line) for line in (folder / "student/metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "examples_per_s"} for line in lines]


def outcome(folder):
    result = json.loads((folder / "student/result.json").read_text())
    return {key: result[key] for key in ("hash", "teacher_hash", "last", "best")}


@pytest.fixture(scope="module")
def whole(tmp_path_factory, builder):
    folder = tmp_path_factory.mktemp("whole") / "run"
    run(EXPERIMENT, folder, builder=builder)
    return folder


@pytest.mark.parametrize("at", [3, 4, 7])
def test_a_stopped_and_resumed_run_is_the_same(at, whole, tmp_path, builder):
    folder = tmp_path / "run"
    with pytest.raises(Stopped, match="SIGTERM at step"):
        run(EXPERIMENT, folder, builder=builder, progress=StopAt(at))
    assert not (folder / "student/result.json").exists()
    run(EXPERIMENT, folder, resume=True, builder=builder)
    assert outcome(folder) == outcome(whole)
    assert rows(folder) == rows(whole)


def test_a_run_stopped_twice_and_in_the_teacher_is_the_same(whole, tmp_path, builder):
    folder = tmp_path / "run"
    with pytest.raises(Stopped, match="'teacher'"):
        run(EXPERIMENT, folder, builder=builder, progress=StopAt(1, "teacher"))
    with pytest.raises(Stopped):
        run(EXPERIMENT, folder, resume=True, builder=builder, progress=StopAt(5))
    run(EXPERIMENT, folder, resume=True, builder=builder)
    assert outcome(folder) == outcome(whole)
    assert rows(folder) == rows(whole)


def test_a_killed_run_goes_on_from_its_last_checkpoint(whole, tmp_path, builder):
    """Killed between checkpoints, nothing of the state after the last one survives; the log is cut back to it."""

    class Killed(BaseException):
        pass

    class KillAt(Silent):
        def start(self, name, step, total, batch_size, noun):
            self.name = name

        def advance(self, step):
            if self.name == "student" and step == 5:
                raise Killed

    folder = tmp_path / "run"
    with pytest.raises(Killed):
        run(EXPERIMENT, folder, builder=builder, progress=KillAt())
    run(EXPERIMENT, folder, resume=True, builder=builder)
    assert outcome(folder) == outcome(whole)
    assert rows(folder) == rows(whole)


def test_another_seed_is_another_run(whole, tmp_path, builder):
    """The comparison above would be empty if every run came out alike."""
    folder = tmp_path / "run"
    run(dataclasses.replace(EXPERIMENT, seed=1), folder, builder=builder)
    assert outcome(folder)["hash"] != outcome(whole)["hash"]


def test_a_finished_run_is_not_run_again(whole, builder):
    before = (whole / "student/metrics.jsonl").stat().st_mtime_ns
    results = run(EXPERIMENT, whole, resume=True, builder=builder)
    assert (whole / "student/metrics.jsonl").stat().st_mtime_ns == before
    assert results["student"]["hash"] == outcome(whole)["hash"]


class StopDuringEvaluation(Silent):
    """Sends a signal while a phase is being evaluated at a step where no checkpoint is due."""

    def __init__(self, phase, count):
        self.phase, self.count = phase, count

    def start(self, name, step, total, batch_size, noun):
        self.name, self.seen = name, 0

    def evaluated(self, said):
        self.seen += 1
        if (self.name, self.seen) == (self.phase, self.count):
            os.kill(os.getpid(), signal.SIGTERM)


def test_a_signal_during_evaluation_saves_what_it_says_it_saves(tmp_path, builder):
    experiment = dataclasses.replace(EXPERIMENT, evaluate_every=steps(2), checkpoint_every=steps(9))
    with pytest.raises(Stopped, match="at step 4 of 9"):
        run(experiment, tmp_path / "run", builder=builder, progress=StopDuringEvaluation("student", 2))
    assert [p.name for p in (tmp_path / "run/student/checkpoints/last").iterdir()] == ["4"]


def test_a_signal_at_the_end_of_a_phase_is_not_lost(whole, tmp_path, builder):
    """A scheduler sends it once: the next phase must not begin."""
    folder = tmp_path / "run"
    with pytest.raises(Stopped, match="at step 4 of 4 of phase 'teacher'"):
        run(EXPERIMENT, folder, builder=builder, progress=StopDuringEvaluation("teacher", 2))
    assert not (folder / "student").exists()
    run(EXPERIMENT, folder, resume=True, builder=builder)
    assert outcome(folder) == outcome(whole)


def test_a_best_state_of_an_abandoned_future_is_forgotten(tmp_path, builder):
    """A run killed after its best evaluation, but before a checkpoint, must not ship that state unless it comes there again."""
    experiment = small(length=9)
    program = builder.program(experiment, experiment.student)
    checkpoints = open_checkpoints(tmp_path, experiment.student, None)
    state = program.compiled.fresh_state(0, 0)
    for step in (3, 8):
        checkpoints.save(dataclasses.replace(state, step=state.step + step), step, {}, best=True)
        if step == 3:
            checkpoints.save(state, 6, {"tracks": [{"best": {"step": 3}}]})
    checkpoints.forget_best_after(6)
    restored, _ = checkpoints.restore(state, best=True)
    assert int(restored.step) == 3
    checkpoints.save(dataclasses.replace(state, step=state.step + 33), 3, {}, best=True)
    checkpoints.wait()
    assert int(checkpoints.restore(state, best=True)[0].step) == 33, "a state saved anew replaces the old one"
    checkpoints.close()


def test_facts_are_saved_as_they_were(tmp_path, builder, monkeypatch):
    """They are written by another thread, while the loop goes on with its own."""
    experiment = small(length=9)
    state = builder.program(experiment, experiment.student).compiled.fresh_state(0, 0)
    checkpoints = open_checkpoints(tmp_path, experiment.student, None)
    later = []
    monkeypatch.setattr(checkpoints._last, "save", lambda step, *, args, force: later.append(args))
    facts = {"tracks": [{"window": {"loss": [3.0, 2.0]}}]}
    checkpoints.save(state, 1, facts)
    facts["tracks"][0]["window"].clear()
    monkeypatch.undo()
    checkpoints._last.save(1, args=later[0], force=True)
    checkpoints.wait()
    assert checkpoints.restore(state)[1] == {"tracks": [{"window": {"loss": [3.0, 2.0]}}]}
    checkpoints.close()

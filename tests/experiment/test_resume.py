"""A run that was stopped and resumed is, bit for bit, the run that was not."""

import dataclasses
import json
import os
import shutil
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdjax.experiment.phase import open_checkpoints
from kdjax.experiment.program import Builder
from kdjax.experiment.run import run
from kdjax.objectives import CRD, DKD, KD, CrossEntropy, FitNet
from kdjax.schedules import Steps, WarmUp, steps
from kdjax.tasks.classification import Views
from kdjax.training import TrainState
from kdjax.training.checkpoints import CheckpointError, Checkpoints, load_network
from kdjax.training.loop import Stopped
from kdjax.training.optimizers import SGD
from kdjax.training.progress import Silent
from kdjax.training.writers import read_metrics
from tests.experiment.conftest import small
from tests.objectives.conformance import bound, subjects
from tests.training.test_checkpoints import equal
from tests.training.test_writers import points

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


def rows(folder, phase="student"):
    """Everything logged but speeds."""
    lines = read_metrics(folder / phase / "metrics.jsonl")
    return [{key: value for key, value in line.items() if key != "examples_per_s"} for line in lines]


def outcome(folder):
    result = json.loads((folder / "student/result.json").read_text())
    return {key: result[key] for key in ("hash", "teacher_hash", "last", "best")}


def drawn(folder):
    return sorted(point for point in points(folder / "student") if "examples_per_s" not in point[0])


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
    assert drawn(folder) == drawn(whole)


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


def test_a_number_that_changed_in_the_metrics_of_a_phase_that_has_ended_is_said(whole, tmp_path, builder):
    shutil.copytree(whole, tmp_path / "run")
    metrics = tmp_path / "run/teacher/metrics.jsonl"
    metrics.write_bytes(metrics.read_bytes().replace(b'"loss": 2.', b'"loss": 1.', 1))
    with pytest.raises(CheckpointError, match=r"Line 1 of .*teacher/metrics.jsonl is not as it was written; delete"):
        run(EXPERIMENT, tmp_path / "run", resume=True, builder=builder)
    shutil.move(tmp_path / "run/teacher", tmp_path / "elsewhere")  # as the sentence says
    run(EXPERIMENT, tmp_path / "run", resume=True, builder=builder)
    assert rows(tmp_path / "run", "teacher") == rows(whole, "teacher")
    assert outcome(tmp_path / "run") == outcome(whole)


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


# What the experiment above has not, and tests/experiment/test_schemes.py (heads, mutual learning, control variates, DOT) neither.
OTHERS = {
    "several steps at once, in pieces, mixed": small(
        KD(), student={"microbatches": 2, "ema_decay": 0.5}, data={"views": Views(crop_padding=1, mixup=1.0)},
        steps_per_dispatch=2,
    ),
    "a memory bank": small(CrossEntropy() + CRD(negatives=16)),
    "the teacher's outputs kept": small(CrossEntropy() + KD(), student={"teacher_cache": "float32"}),
    "steps left out": small(CrossEntropy(), on_nan="skip").replace_phase(
        "student", optimizer=SGD(learning_rate=Steps(0.05, 1e40, (4,), "steps"))
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", OTHERS)
def test_so_it_is_with(name, tmp_path, builder):
    experiment = dataclasses.replace(OTHERS[name], cache_dir=str(tmp_path / "cache"))
    run(experiment, tmp_path / "whole", builder=builder)
    with pytest.raises(Stopped):
        run(experiment, tmp_path / "run", builder=builder, progress=StopAt(5 if "several" not in name else 6))
    run(experiment, tmp_path / "run", resume=True, builder=builder)
    assert outcome(tmp_path / "run") == outcome(tmp_path / "whole")
    assert rows(tmp_path / "run") == rows(tmp_path / "whole")


def test_on_more_devices_it_goes_on_with_a_difference_of_rounding(whole, tmp_path, builder):
    folder = tmp_path / "run"
    with pytest.raises(Stopped):
        run(EXPERIMENT, folder, builder=builder, progress=StopAt(5))
    run(EXPERIMENT, folder, resume=True, builder=Builder(builder.data_dir, devices=jax.devices()[:2]))
    program = builder.program(EXPERIMENT, EXPERIMENT.student)
    template = program.compiled.network_template()
    one, two = (jax.device_get(load_network(f / "student", template)[0].params) for f in (whole, folder))
    difference = jax.tree.map(lambda a, b: float(abs(a - b).max() / abs(a).max()), one, two)
    assert max(jax.tree.leaves(difference)) < 1e-4
    assert [row["step"] for row in rows(folder)] == [row["step"] for row in rows(whole)]
    assert rows(folder)[:3] == rows(whole)[:3], "what was before it was stopped stays as it was"


def test_what_an_objective_keeps_comes_back_bit_for_bit(tmp_path):
    """Of every method: its modules, banks and statistics, by the names and types that they have."""
    rng = np.random.default_rng(0)
    fill = lambda x: jnp.asarray(rng.integers(0, 100, x.shape) / 7, x.dtype)
    shapes = {name: jax.eval_shape(bound(name).init, jax.random.key(0)) for name in subjects()}
    kept = {
        f"{number}": dict(zip(("params", "state"), jax.tree.map(fill, trees), strict=True))
        for number, trees in enumerate(shapes.values()) if jax.tree.leaves(trees)
    }  # fmt: skip
    assert len(kept) > 10
    make = lambda tree: TrainState(jnp.zeros((), jnp.int32), {}, tree, (), None, {"train": jax.random.key(0)})
    checkpoints = Checkpoints(tmp_path, {})
    checkpoints.save(make(kept), 1, {})
    checkpoints.wait()
    empty = jax.tree.map(lambda x: jnp.asarray(np.zeros(x.shape, x.dtype)), kept)
    restored, _ = checkpoints.restore(make(empty))
    checkpoints.close()
    assert equal(restored.state, kept) and not equal(empty, kept)

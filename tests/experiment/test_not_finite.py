"""What is not finite stops, is left out, or is gone back from; nothing of it is kept for good, and what helps is said."""

import dataclasses
import json

import numpy as np
import pytest

from kdjax.experiment import ExperimentError
from kdjax.experiment.run import run
from kdjax.objectives import CrossEntropy
from kdjax.schedules import Steps, steps
from kdjax.training import finite
from kdjax.training.loop import TrainingError
from kdjax.training.optimizers import SGD
from tests.experiment.conftest import small


# One rate for the first four steps, another after.
def rates(early, late):
    return SGD(learning_rate=Steps(early, late / early, (4,), "steps"))


def student_only(optimizer, **fields):
    experiment = small(CrossEntropy(), length=9, checkpoint_every=steps(1), evaluate_every=steps(9), **fields)
    phase = dataclasses.replace(experiment.student, teacher="", optimizer=optimizer)
    return dataclasses.replace(experiment, phases=(phase,))


def result(folder):
    return json.loads((folder / "student/result.json").read_text())


def kept(folder):
    return sorted(int(p.name) for p in (folder / "student/checkpoints/last").iterdir())


def test_an_overflow_in_the_last_step_finishes_nothing(tmp_path, builder):
    experiment = student_only(SGD(learning_rate=1e38), log_every=20).replace_phase("student", duration=steps(1))
    with pytest.raises(
        TrainingError,
        match=r"the evaluation \(.*nll.*\) is not finite at step 1; lower the learning rate .*begins anew",
    ):
        run(experiment, tmp_path / "run", builder=builder)
    assert not (tmp_path / "run/student/result.json").exists()
    assert not (tmp_path / "run/student/network.json").exists()


@pytest.fixture(scope="module")
def exploded(tmp_path_factory, builder):
    """A run whose learning rate is absurd from its fifth step on, and what it said."""
    folder = tmp_path_factory.mktemp("exploded") / "run"
    with pytest.raises(TrainingError) as raised:
        run(student_only(rates(0.05, 1e30)), folder, builder=builder)
    return folder, str(raised.value)


def test_it_stops_with_a_sentence_that_helps(exploded):
    folder, said = exploded
    assert "not finite at step 6; lower the learning rate or say --on-nan skip or restore" in said
    assert "goes on from step 4" in said, "that of step 5 is past the overflow already"
    assert kept(folder)[-1] == 4 and (folder / "student/checkpoints/aside/last-5").exists()


def test_what_the_step_was_is_written_down(exploded):
    folder, said = exploded
    path = folder / "student/not-finite-6.json"
    assert str(path) in said
    found = json.loads(path.read_text())
    assert found["step"] == 6 and "loss" in found["not_finite"] and found["values"]["loss"] in ("nan", "inf")
    assert len(set(found["examples"])) == 32, "the whole batch"
    assert found["parameter_norms"]["student/classifier/kernel"] == "nan"


def test_it_goes_on_with_a_lower_learning_rate(exploded, tmp_path, builder, capsys):
    folder, _ = exploded
    run(student_only(rates(0.05, 0.01)), folder, resume=True, builder=builder)
    assert "goes on with another configuration (phases.0.optimizer.learning_rate.factor" in capsys.readouterr().err
    assert "learning_rate.factor" in (folder / "changes.txt").read_text()
    run(student_only(rates(0.05, 0.01)), tmp_path / "run", builder=builder)
    assert result(folder)["hash"] == result(tmp_path / "run")["hash"], "nothing of the explosion is left"
    with pytest.raises(ExperimentError, match="another configuration"):
        run(student_only(rates(0.05, 0.02)), folder, resume=True, builder=builder)


def test_steps_are_left_out_a_bounded_number_of_times(tmp_path, builder, monkeypatch, capsys):
    """Every step after the fourth overflows, and the parameters stay those of the fourth."""
    experiment = student_only(rates(0.05, 1e38), on_nan="skip")
    run(experiment, tmp_path / "run", builder=builder)
    assert result(tmp_path / "run")["skipped"] == 5
    assert "parameters is not finite at step 5, and is left out" in capsys.readouterr().err
    run(experiment.replace_phase("student", duration=steps(4)), tmp_path / "four", builder=builder)
    assert result(tmp_path / "run")["hash"] == result(tmp_path / "four")["hash"]
    rows = [json.loads(line) for line in (tmp_path / "run/student/metrics.jsonl").read_text().splitlines()]
    assert [row.get("skipped", 0) for row in rows if row["kind"] == "train"] == [0, 0, 2, 2, 1]
    monkeypatch.setattr(finite, "IN_A_ROW", 3)
    with pytest.raises(TrainingError, match="not finite at step 8"):
        run(experiment, tmp_path / "bounded", builder=builder)


def test_going_back_is_bounded_too(tmp_path, builder, capsys):
    with pytest.raises(TrainingError, match=r"it was gone back 3 times; lower the learning rate with --resume"):
        run(student_only(rates(1e38, 1e38), on_nan="restore"), tmp_path / "run", builder=builder)
    assert capsys.readouterr().err.count("it goes on from there with the state of step") == 3
    run(student_only(rates(0.05, 0.01), on_nan="restore"), tmp_path / "run", resume=True, builder=builder)
    assert np.isfinite(result(tmp_path / "run")["last"]["student"]["nll"])


def test_a_loss_that_is_finite_and_absurd_is_reported(tmp_path, builder, capsys, monkeypatch):
    monkeypatch.setattr(finite, "ABSURD", 3.0)
    run(student_only(rates(0.05, 100.0)), tmp_path / "run", builder=builder)
    assert "Phase 'student' diverges: its loss is" in capsys.readouterr().err
    assert result(tmp_path / "run")["diverged"] == 6
    assert 4 in kept(tmp_path / "run"), "the newest from before stays"

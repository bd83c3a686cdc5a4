"""Two runs do not share a folder; what died in one does not block it."""

import json
import os
import socket
import subprocess
import sys

import pytest

from kdjax.experiment import ExperimentError, lock
from kdjax.experiment.compare import compare
from kdjax.experiment.lock import LOCK, locked
from kdjax.experiment.replicas import run_together
from kdjax.experiment.run import run
from tests.experiment.conftest import small


def holder(**changes):
    return {"pid": os.getpid(), "host": socket.gethostname(), "began": lock.began(os.getpid())} | changes


@pytest.fixture(scope="module")
def dead():
    """The number of a process that is gone."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_the_second_is_refused_and_told_who_is_there(tmp_path):
    folder = tmp_path / "a" / "run"
    with locked([folder]):
        with (
            pytest.raises(
                ExperimentError, match=rf"Another run is in .*run \(process {os.getpid()} on .*\); wait for it"
            ),
            locked([tmp_path / "b", folder]),
        ):
            pass
        assert not (tmp_path / "b").exists()
        with locked([tmp_path / "b"]):
            pass
    assert not list(tmp_path.iterdir()), "what was made for nothing is taken away"
    with locked([folder]):
        (folder / "experiment.json").touch()
    assert os.listdir(folder) == ["experiment.json"]


def test_a_lock_that_was_left_behind_blocks_nobody(tmp_path, dead):
    for left in (holder(pid=dead), holder(host="elsewhere"), {}, []):
        (tmp_path / LOCK).write_text(json.dumps(left))
        with locked([tmp_path]):
            assert json.loads((tmp_path / LOCK).read_text()) == holder()


def test_without_locks_of_the_system_a_live_process_is_known_by_its_number_and_its_beginning(
    tmp_path, dead, monkeypatch, capsys
):
    monkeypatch.setattr(lock, "flock", lambda handle: None)
    for left in (holder(pid=dead), holder(began="1"), holder(pid="x"), {}):  # gone; its number used again; nonsense
        (tmp_path / LOCK).write_text(json.dumps(left))
        with locked([tmp_path]):
            pass
    assert "is on a file system without locks" in capsys.readouterr().err
    for left in (holder(), holder(host="elsewhere", pid=dead)):
        (tmp_path / LOCK).write_text(json.dumps(left))
        with (
            pytest.raises(ExperimentError, match=rf"Another run is in .* if it is gone, delete .*{LOCK}"),
            locked([tmp_path]),
        ):
            pass


def test_runs_and_comparisons_are_locked(tmp_path, builder):
    experiment = small(data_seed=0)
    places = {
        "a": lambda: run(experiment, tmp_path / "a", builder=builder),
        "b": lambda: compare({"kd": experiment}, (0,), tmp_path / "b", builder=builder),
        "c": lambda: run_together([experiment], [tmp_path / "c"], tmp_path / "t", builder=builder),
    }
    with locked([tmp_path / name for name in places]):
        for begin in places.values():
            with pytest.raises(ExperimentError, match="Another run is in"):
                begin()
    assert not list(tmp_path.iterdir())

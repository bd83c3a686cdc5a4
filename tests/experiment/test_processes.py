"""Several processes are one run: the same numbers, one set of files, stopped together and gone on with."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time

import jax
import pytest

from kdjax.cli import main
from kdjax.experiment.config import load_config
from kdjax.experiment.program import Builder
from kdjax.experiment.run import run
from kdjax.training.processes import any_of, by_first, connect, is_first, of_first

CONFIG = """
from kdjax.objectives import KD, CrossEntropy, FitNet
from kdjax.schedules import steps
from tests.experiment.conftest import small

def experiment():
    return small(CrossEntropy() + KD(temperature=2.0) + FitNet(stage=1), length={length}, student={{"ema_decay": 0.5}})
"""


def start(config, folder, data_dir, processes, devices, *options):
    """The processes of a run, begun one after the other; each has its own devices."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    begun = []
    for number in range(processes):
        quick = re.sub(r"(?<=device_count=)\d+", str(devices), os.environ["XLA_FLAGS"])  # as tests/conftest.py compiles
        environment = os.environ | {"XLA_FLAGS": quick, "NPROC": "16"}
        together = ["--distributed", f"127.0.0.1:{port},{processes},{number}"] if processes > 1 else []
        command = [
            sys.executable,
            "-m",
            "kdjax.cli",
            "distill",
            str(config),
            "--run",
            str(folder),
            "--data-dir",
            data_dir,
        ]
        begun.append(
            subprocess.Popen([*command, *together, *options], env=environment, text=True,
                             stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        )  # fmt: skip
    return begun


def finish(begun):
    """`(status, what was said)` of every process."""
    said = [process.communicate(timeout=300)[0] for process in begun]
    return [(process.returncode, text) for process, text in zip(begun, said, strict=True)]


def outcome(folder):
    result = json.loads((folder / "student/result.json").read_text())
    return {"teacher": result["teacher_hash"] is not None} | result["last"]["student"]


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    path = tmp_path_factory.mktemp("config") / "config.py"
    path.write_text(CONFIG.format(length=6))
    return path


@pytest.fixture(scope="module")
def alone(config, tmp_path_factory, data_dir):
    """What one process with four devices comes to."""
    folder = tmp_path_factory.mktemp("alone") / "run"
    run(load_config(str(config))(None), folder, builder=Builder(data_dir, devices=jax.devices()[:4]))
    return outcome(folder)


@pytest.mark.parametrize(
    ("processes", "devices", "options"),
    [
        (2, 2, ()),
        pytest.param(4, 1, (), marks=pytest.mark.slow),
        pytest.param(2, 2, ("--runner", "fsdp"), marks=pytest.mark.slow),
    ],
)
def test_processes_come_to_what_one_comes_to(processes, devices, options, config, alone, tmp_path, data_dir):
    folder = tmp_path / "run"
    ended = finish(start(config, folder, data_dir, processes, devices, *options))
    assert all(status == 0 for status, _ in ended), ended
    assert "Run folder" in ended[0][1] and all("Run folder" not in text for _, text in ended[1:]), "one of them talks"
    assert outcome(folder) == pytest.approx(alone, rel=1e-4)
    rows = (folder / "student/metrics.jsonl").read_text().splitlines()
    assert [json.loads(row)["step"] for row in rows if '"train"' in row] == [2, 4, 6], "one of them writes"


@pytest.mark.slow
def test_one_that_is_told_to_stop_stops_all_and_they_go_on_together(tmp_path, data_dir):
    config, folder = tmp_path / "config.py", tmp_path / "run"
    config.write_text(CONFIG.format(length=20_000))
    begun = start(config, folder, data_dir, 2, 1)
    metrics = folder / "student/metrics.jsonl"
    deadline = time.monotonic() + 200
    while not (metrics.exists() and '"step": 40' in metrics.read_text()) and time.monotonic() < deadline:
        time.sleep(0.2)
    begun[1].send_signal(signal.SIGTERM)  # not the first one
    ended = finish(begun)
    assert [status for status, _ in ended] == [128 + signal.SIGTERM] * 2, ended
    assert "Stopped by another process" in ended[0][1] and "Stopped by SIGTERM" in ended[1][1]
    saved = {int(path.name) for path in (folder / "student/checkpoints/last").iterdir() if path.name.isdigit()}
    config.write_text(CONFIG.format(length=20_000))
    begun = start(config, folder, data_dir, 2, 1, "--resume")
    beyond = f'"step": {max(saved) + 20}'
    while beyond not in metrics.read_text() and time.monotonic() < deadline:
        time.sleep(0.2)
    begun[0].send_signal(signal.SIGTERM)
    assert next(status for status, _ in finish(begun)) == 128 + signal.SIGTERM
    steps = [json.loads(row)["step"] for row in metrics.read_text().splitlines() if '"train"' in row]
    assert steps == sorted(set(steps)) and max(steps) > max(saved)


@pytest.mark.slow
def test_they_keep_the_same_outputs_of_the_teacher(config, tmp_path, data_dir):
    """And find them again, whether many look or one."""
    plain = tmp_path / "config.py"
    plain.write_text(config.read_text().replace(" + FitNet(stage=1)", ""))
    options = ("--teacher", str(tmp_path / "live/teacher"), "--phases.student.teacher-cache", "float32",
               "--cache-dir", str(tmp_path / "cache"))  # fmt: skip
    found = {}
    for name, processes, devices in (("live", 1, 4), ("two", 2, 2), ("again", 2, 2), ("one", 1, 4)):
        begun = start(plain, tmp_path / name, data_dir, processes, devices, *(options if name != "live" else ()))
        assert all(status == 0 for status, _ in finish(begun))
        found[name] = json.loads((tmp_path / name / "student/result.json").read_text())
        assert outcome(tmp_path / name) == pytest.approx(outcome(tmp_path / "live"), rel=1e-4)
    computed = found["two"]["teacher_cache"]["computed"]
    assert computed > 300 and found["again"]["teacher_cache"] == found["one"]["teacher_cache"]
    assert found["again"]["teacher_cache"] == {"storage": "float32", "found": computed, "computed": 0}


def test_what_the_first_finds_wrong_is_said_by_all(config, tmp_path, data_dir):
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "thesis.tex").write_text("years of work")
    ended = finish(start(config, folder, data_dir, 2, 1))
    for status, text in ended:
        assert status == 1 and "exists; say --resume" in text, text
    assert (folder / "thesis.tex").read_text() == "years of work"


@pytest.mark.slow  # two scripts without a run show it below
def test_one_that_breaks_ends_all(config, tmp_path, data_dir):
    """And does not leave the others waiting for it."""
    broken = tmp_path / "broken.py"
    broken.write_text(
        config.read_text()
        + """
import sys
from kdjax.experiment import phase

def describe(*arguments):
    raise RuntimeError("the disk of this host is gone")

if any(word.endswith(",2,1") for word in sys.argv):
    phase.describe = describe
"""
    )
    first, second = finish(start(broken, tmp_path / "run", data_dir, 2, 2))  # whose programs are compiled already
    assert second[0] == 1 and "the disk of this host is gone" in second[1]
    assert first[0] != 0 and not (tmp_path / "run/student/result.json").exists()


TOGETHER = """
import sys, time
from kdjax.training.processes import any_of, connect
connect(sys.argv[1])
while True:
    any_of(False)
    print("together", flush=True)
    time.sleep(0.1)
"""


def together(script, *arguments):
    """Two processes of one's own script, not of the command."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    return [
        subprocess.Popen([sys.executable, "-c", script, f"127.0.0.1:{port},2,{number}", *arguments], text=True,
                         stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        for number in range(2)
    ]  # fmt: skip


@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_one_ends_the_others_with_a_sentence(victim):
    """Soon, and not by an abort; one that is stopped for a while is waited for."""
    begun = together(TOGETHER)
    for process in begun:
        assert any("together" in line for line in process.stdout)
    begun[victim].send_signal(signal.SIGSTOP)
    time.sleep(2)
    begun[victim].send_signal(signal.SIGCONT)
    assert any("together" in line for line in begun[1 - victim].stdout)
    begun[victim].kill()
    killed = time.monotonic()
    _, said = begun[1 - victim].communicate(timeout=60)
    assert time.monotonic() - killed < 15 and begun[1 - victim].returncode == 1
    assert f"Process {victim} of this run is gone" in said and "start all of them again with --resume" in said
    assert "Traceback" not in said and "***" not in said
    begun[victim].communicate()


@pytest.mark.parametrize("victim", [0, 1])
def test_an_error_nobody_catches_ends_the_others_too(victim):
    """Though an ordinary exit would have JAX wait for them."""
    error = f'    if sys.argv[1].endswith(",{victim}"):\n        raise RuntimeError("the disk of this host is gone")\n'
    began = time.monotonic()
    begun = together(TOGETHER + error)
    said = [process.communicate(timeout=60)[1] for process in begun]
    assert [process.returncode for process in begun] == [1, 1] and time.monotonic() - began < 40
    assert "RuntimeError: the disk of this host is gone" in said[victim]
    assert f"Process {victim} of this run is gone" in said[1 - victim]


ALIKE = """
import errno, json, sys
from pathlib import Path
import jax, jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec
from kdjax.training import Variables, make_runner
from kdjax.training.checkpoints import CheckpointError, Damaged, load_network, save_network
from kdjax.training.processes import any_of, by_first, connect, same_in_all
connect(sys.argv[1])
me, place = jax.process_index(), Path(sys.argv[2])
runner = make_runner("fsdp")
network = Variables({"kernel": jnp.arange(256.0 * 128).reshape(256, 128)}, {})
placed = runner.place(network)
assert not placed.params["kernel"].is_fully_addressable and runner.place(jax.random.key(3)).shape == ()
save_network(place, network, {})
any_of(False)
template = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), placed)
loaded, _ = load_network(place, template)
assert loaded.params["kernel"].sharding.spec == placed.params["kernel"].sharding.spec
def unreadable():
    raise CheckpointError("cannot be read")
def full():
    raise OSError(errno.ENOSPC, "No space left on device", "/run/x")
for function in (unreadable, full):
    try:
        by_first(function, Damaged, CheckpointError)
    except Exception as error:
        print(json.dumps([type(error).__name__, str(error), error.said_by_all]), flush=True)
assert same_in_all("one") and not same_in_all(str(me))
"""


def test_two_processes_place_load_and_raise_alike(tmp_path):
    """Keys and a network that fsdp spreads over both; an error of the first keeps its kind and is a sentence in the other."""
    begun = together(ALIKE, str(tmp_path / "network"))
    ended = [process.communicate(timeout=120) for process in begun]
    assert [process.returncode for process in begun] == [0, 0], ended
    first, second = ([json.loads(line) for line in out.splitlines() if line.startswith('["')] for out, _ in ended)
    assert first[0] == second[0] == ["CheckpointError", "cannot be read", True]
    assert first[1][0] == "OSError" and second[1][0] == "Damaged" and "disk of /run/x is full" in second[1][1], second


def test_alone_nothing_is_asked_of_others(capsys, config):
    assert is_first() and any_of(True) and not any_of(False) and of_first(3) == 3
    done = []
    by_first(lambda: done.append(1), RuntimeError)
    assert done == [1]
    with pytest.raises(KeyError):
        by_first(lambda: {}["missing"], RuntimeError)
    connect("")
    for wrong in ("node0", "node0:1,2", "node0:1,two,0", "1,2,3"):
        with pytest.raises(ValueError, match="is neither auto nor HOST:PORT,COUNT,INDEX, such as node0:9876,4,0"):
            connect(wrong)
    assert main(["distill", str(config), "--distributed", "node0"]) == 1
    assert "is neither auto nor HOST:PORT" in capsys.readouterr().err

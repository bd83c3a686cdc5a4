"""Batches that other processes put together: the same, in order, and nothing left behind when a process ends."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from PIL import Image

from kdjax.data import DataError, Pipeline, Reading, load
from kdjax.data.workers import _why


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two classes of six pictures each, of many sizes and shades."""
    root, rng = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    for label, name in enumerate(("cat", "dog")):
        for i in range(6):
            path = root / "train" / name / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 255, (20 + i, 30 - label, 3), np.uint8)).save(path)
    return root


def pipelines(folder, **options):
    """Batches of this process, and the same by two others."""
    source = load(str(folder), split="train", reading=Reading(size=8))
    rows = np.arange(len(source))
    return [Pipeline(source, rows, batch_size=4, data_seed=3, workers=n, **options) for n in (0, 2)]


def test_batches_are_the_same_and_errors_name_the_picture(folder):
    plain, by_others = pipelines(folder)
    for one, other in zip(plain.iterate(5, 12), by_others.iterate(5, 12), strict=True):
        jax.tree.map(np.testing.assert_array_equal, one, other)
        jax.device_put(other)
    assert not list(by_others.iterate(5, 5))
    gone = folder / "train/dog/3.png"
    kept = gone.read_bytes()
    gone.unlink()
    try:
        with pytest.raises(DataError, match=r"dog/3\.png is not there; mend or delete it"):
            list(by_others.iterate(0, 5))
    finally:
        gone.write_bytes(kept)


def test_one_that_is_killed_is_told_of(folder):
    _, by_others = pipelines(folder)
    batches = by_others.iterate(0)
    next(batches)
    os.kill(multiprocessing.active_children()[0].pid, signal.SIGKILL)
    with pytest.raises(DataError, match=r"exit code -9: it was killed, .*fewer --workers"):
        list(zip(range(1000), batches, strict=False))


def test_they_end_with_the_process_that_began_them(folder):
    program = f"""
import multiprocessing, time
import numpy as np
from kdjax.data import Pipeline, Reading, load
source = load({str(folder)!r}, split="train", reading=Reading(size=8))
batches = Pipeline(source, np.arange(len(source)), batch_size=4, data_seed=0, workers=2).iterate(0)
next(batches)
print(*(one.pid for one in multiprocessing.active_children()), flush=True)
time.sleep(60)
"""
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    there = [int(pid) for pid in process.stdout.readline().split()]
    assert len(there) == 2 and all(map(_runs, there))
    process.kill()
    process.wait()
    end = time.time() + 30
    while any(map(_runs, there)) and time.time() < end:
        time.sleep(0.1)
    assert not any(map(_runs, there))


def test_how_one_ended():
    said = "Worker process was terminated unexpectedly with exit code {}. Search the logs above."
    assert "/dev/shm" in _why(said.format(-7)) and "__main__" in _why(said.format(1))
    assert _why(said.format(-11)).startswith("A process that reads data ended with exit code -11: ")
    assert not _why("something else")


def test_what_is_in_memory_needs_none(subset, capsys):
    pipeline = Pipeline(subset, np.arange(64), batch_size=32, data_seed=0, workers=4)
    assert pipeline.workers == 0 and "is in memory, so that no workers read it" in capsys.readouterr().err


def _runs(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True

"""What the command says of signals, disks and listeners that fail; and the scripts that break runs and files, quickly."""

import collections
import errno
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time

import fuzz_readers
import pytest

from kdjax.endings import Terminated, guarded, in_the_background
from kdjax.terminal import Unheard


def killed_by(number):
    os.kill(os.getpid(), number)
    time.sleep(5)
    return 0


@pytest.fixture
def heard():
    """Signals as in a terminal, also where the tests run under nohup or in the background."""
    usual = {signal.SIGTERM: signal.SIG_DFL, signal.SIGHUP: signal.SIG_DFL, signal.SIGINT: signal.default_int_handler}
    before = {number: signal.signal(number, handler) for number, handler in usual.items()}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize(("name", "status"), [("SIGTERM", 143), ("SIGHUP", 143), ("SIGINT", 130)])
def test_a_signal_before_there_is_anything_to_save_is_a_sentence(name, status, heard, capsys):
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)}
    assert guarded(lambda: killed_by(getattr(signal, name))) == status
    said = capsys.readouterr().err
    assert (
        said.startswith("kdjax: stopped by SIG")
        and "say --resume to go on from there" in said
        and said.count("\n") == 1
    )
    assert {number: signal.getsignal(number) for number in before} == before


def test_a_terminal_that_is_closed_is_ignored_under_nohup():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        assert guarded(lambda: os.kill(os.getpid(), signal.SIGHUP) or 0) == 0
    finally:
        signal.signal(signal.SIGHUP, before)


def failing(error):
    def command():
        raise error

    return command


def test_a_full_disk_is_one_sentence_wherever_it_shows_up(capsys):
    full = OSError(errno.ENOSPC, "No space left on device", "/runs/x/state")
    for error in (full, ExceptionGroup("a", [full]), ValueError("Failed to write: No space left on device")):
        assert guarded(failing(error)) == 1
        said = capsys.readouterr().err
        assert said.startswith("kdjax: error: The disk of ") and said.count("\n") == 1
    thread = threading.Thread(target=failing(full))
    thread.start()  # under the hook that `guarded` set
    thread.join()
    assert capsys.readouterr().err == "" and threading.excepthook is in_the_background


def test_other_errors_are_not_hidden():
    for error in (ValueError("shapes"), OSError(errno.ENOENT, "No such file"), ExceptionGroup("a", [KeyError("x")])):
        with pytest.raises(type(error)):
            guarded(failing(error))


def test_nobody_listening_is_no_error_of_the_run(capfd):
    kept = os.dup(1)
    try:
        assert guarded(failing(Unheard("Broken pipe"))) == 141
        assert guarded(failing(BrokenPipeError())) == 141
    finally:
        os.dup2(kept, 1)
    assert "what was run is kept" in capfd.readouterr().err


@pytest.fixture(scope="module", autouse=True)
def hooks():
    kept = threading.excepthook, sys.unraisablehook
    yield
    threading.excepthook, sys.unraisablehook = kept


class Clearing:
    """What is raised while it goes is nobody's."""

    def __init__(self, error):
        self.error = error

    def __del__(self):
        raise self.error


def test_a_signal_that_comes_while_the_interpreter_clears_up_shows_no_traceback(capfd):
    def command():
        for error in (KeyboardInterrupt(), Terminated("SIGTERM"), ValueError("of somebody else")):
            Clearing(error)
        return 0

    assert guarded(command) == 0
    said = capfd.readouterr().err
    assert "of somebody else" in said and "KeyboardInterrupt" not in said and "Terminated" not in said


@pytest.mark.parametrize("reader", fuzz_readers.readers(), ids=lambda reader: reader.name)
def test_readers_read_or_say_what_is_wrong(reader, tmp_path):
    path = reader.make(tmp_path)
    fuzz_readers.KEPT["changed"] = fuzz_readers.KEPT.get("torch")
    raw, sound = path.read_bytes(), reader.read(path)
    found = collections.Counter()
    for number in range(60):
        outcome, said = fuzz_readers.one(reader, path, raw, sound, random.Random(f"{reader.name} {number}"))
        assert outcome in ("read", "said"), f"input {number}: {outcome}: {said}"
        found[outcome] += 1
    assert found["said"] and (found["read"] or reader.name == "picture, .png")  # of which every part has a checksum


def test_a_reader_that_fails_is_found():
    """The fuzzer itself: a traceback, nonsense and a hang are told from a sentence."""
    reader = fuzz_readers.readers()[1]

    def outcome(read, sound=lambda *_: ""):
        chance = random.Random(0)
        return fuzz_readers.one(reader._replace(read=read, sound=sound), path, b"{}", {}, chance)[0]

    path = fuzz_readers.Path(os.devnull)
    assert outcome(failing_reader(KeyError("x"))) == "traceback"
    assert outcome(failing_reader(ValueError("a sentence of another kind"))) == "traceback"
    assert outcome(failing_reader(MemoryError())) == "memory"
    assert outcome(lambda path: 3, lambda *_: "three") == "nonsense"
    assert outcome(failing_reader(fuzz_readers.TooLong())) == "hang"


def failing_reader(error):
    def read(path):
        raise error

    return read


def test_runs_that_are_broken_lose_nothing(tmp_path):
    one_device = re.sub(r"(?<=device_count=)\d+", "1", os.environ["XLA_FLAGS"])
    run = subprocess.run(
        [sys.executable, "scripts/soak.py", "--quick", "--folder", str(tmp_path / "soak")],
        capture_output=True, text=True, env={**os.environ, "XLA_FLAGS": one_device, "PYTHONPATH": "."}, timeout=300,
    )  # fmt: skip
    assert run.returncode == 0, run.stdout[-3000:] + run.stderr[-3000:]
    assert run.stdout.count("nothing lost") == 6  # of each fault, and in the table

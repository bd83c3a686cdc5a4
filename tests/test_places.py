"""Paths as people write them, and what a disk has against being written."""

import errno
import io
from pathlib import Path

import pytest

from kdjax.places import cache_folder, disk_fault, is_address, local
from kdjax.terminal import make_console, visible


class WrongPlace(Exception):
    pass


def test_addresses_are_no_paths():
    for text in ("gs://bucket/run", "s3://b", "hdfs://x/y", "http://x", str(Path("gs://bucket/run"))):
        assert is_address(text)
        with pytest.raises(WrongPlace, match="is an address; copy it there"):
            local(text, WrongPlace)
    for text in ("runs/kd", "/tmp/a:b", "C:\\runs", "C:/runs", "a b/ü", "./gs:x", "[x]", "~/x"):
        assert not is_address(text)


def test_home_folders(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert local("~/run", WrongPlace) == tmp_path / "run"
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert cache_folder("teachers") == tmp_path / ".cache/kdjax/teachers"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert cache_folder("teachers") == tmp_path / "cache/kdjax/teachers"
    with pytest.raises(WrongPlace, match="home folder that is not known here; set HOME"):
        local("~nobody-of-this-name/run", WrongPlace)
    with pytest.raises(WrongPlace, match="zero byte"):
        local("a\0b", WrongPlace)
    with pytest.raises(WrongPlace, match="no letters for it; set PYTHONUTF8=1"):
        local("a\udcc3", WrongPlace)


def test_without_a_home_caches_are_in_the_temporary_folder(monkeypatch):
    def homeless():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", homeless)
    assert cache_folder("teachers").name == "teachers" and "cache-" in str(cache_folder("teachers"))


def chained(how):
    full = OSError(errno.ENOSPC, "No space left on device", "/runs/kd/metrics.jsonl")
    if how == "itself":
        return full
    if how == "group":
        return ExceptionGroup("several", [ValueError("x"), RuntimeError("y"), full])
    try:
        try:
            raise full
        except OSError as error:
            if how == "cause":
                raise RuntimeError("the writer failed") from error
            raise ValueError("while closing")  # noqa: B904  its context is what is tried
    except Exception as error:
        return error


@pytest.mark.parametrize("how", ["itself", "group", "cause", "context"])
def test_a_full_disk_is_found_along_the_causes(how):
    said = disk_fault(chained(how))
    assert said.startswith("The disk of /runs/kd/metrics.jsonl is full") and "say --resume" in said


def test_other_faults_of_disks_are_told_apart():
    def of(number, *file):
        return disk_fault(OSError(number, "...", *file))

    assert "your quota there is used up" in of(errno.EDQUOT, "/runs")
    assert "/runs cannot be written" in of(errno.EROFS, "/runs") and "/runs cannot" in of(errno.EACCES, "/runs")
    assert "The disk of the run fails" in of(errno.EIO)
    text = 'RESOURCE_EXHAUSTED: Error writing local file "/runs/d/x": Failed to write: No space left on device [28]'
    assert disk_fault(ValueError(text)).startswith("The disk of /runs/d/x is full")
    for other in (ValueError("shapes"), OSError(errno.ENOENT, "No such file"), KeyboardInterrupt()):
        assert disk_fault(other) is None


def test_a_terminal_obeys_nothing_of_a_name():
    name = "[bold]a[/x] :smile: \x1b[2J\x07 \u202ecba\tü\n"
    assert visible(name) == "[bold]a[/x] :smile: \\x1b[2J\\x07 \\u202ecba\tü\n"
    console = make_console(file=io.StringIO(), width=80)
    console.print(name)
    assert console.file.getvalue().rstrip() == visible(name).expandtabs(8).rstrip()

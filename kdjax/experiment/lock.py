"""One run at a time in a folder: a lock that dies with the process that holds it."""

import contextlib
import json
import os
import socket
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from kdjax.experiment.spec import ExperimentError
from kdjax.training.processes import by_first, is_first

LOCK = ".lock"  # in a run folder while something runs there


@contextlib.contextmanager
def locked(folders: Sequence[Path]) -> Iterator[None]:
    """Holds run folders while the block runs; the first of several processes holds them for all. Folders that are not there
    are made, and taken away again if nothing came into them.

    Raises:
      ExperimentError: another run is in one of them.
    """
    held: list[tuple[Path, int, list[Path]]] = []

    def take():
        for folder in folders:
            held.append(acquire(folder))

    try:
        by_first(take, ExperimentError)
        yield
    finally:
        if is_first():
            for folder, handle, made in reversed(held):
                release(folder, handle, made)


def acquire(folder: Path) -> tuple[Path, int, list[Path]]:
    """Takes the lock of a folder: `(folder, handle, folders that were made for it)`, for `release`.

    Raises:
      ExperimentError: it is held, naming by whom.
    """
    made = [place for place in (folder, *folder.parents) if not place.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / LOCK
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            alone = flock(handle)
            if alone and not same_file(handle, path):  # given back meanwhile, and taken by another
                os.close(handle)
                continue
            holder = read(handle)
            if alone is False or (alone is None and holder and alive(holder)):
                raise ExperimentError(in_use(folder, holder, sure=alone is False))
            if alone is None:
                print(f"kdjax: {folder} is on a file system without locks, so that only runs of this host are kept apart.",
                      file=sys.stderr)  # fmt: skip
            os.ftruncate(handle, 0)
            os.pwrite(handle, json.dumps(myself()).encode(), 0)
            return folder, handle, made
        except BaseException:
            with contextlib.suppress(OSError):
                os.close(handle)
            raise


def release(folder: Path, handle: int, made: list[Path]) -> None:
    """Gives a lock back."""
    with contextlib.suppress(OSError):
        (folder / LOCK).unlink()
    os.close(handle)
    for place in made:
        with contextlib.suppress(OSError):  # there is something in it
            place.rmdir()


def flock(handle: int) -> bool | None:
    """Whether the file is now this process's; None where the system has no such locks."""
    try:
        import fcntl
    except ModuleNotFoundError:  # Windows
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # ENOLCK, ENOTSUP, EINVAL: not on this file system
        return None
    return True


def same_file(handle: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), os.stat(path))
    except FileNotFoundError:
        return False


def myself() -> dict[str, Any]:
    return {"pid": os.getpid(), "host": socket.gethostname(), "began": began(os.getpid())}


def began(pid: int) -> str | None:
    """When a process began, in ticks since its host did, None where that is not known: numbers of processes are used again."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return None


def alive(holder: dict[str, Any]) -> bool:
    """Whether the process that wrote a lock is still there; of another host that is not known, and taken to be so."""
    pid = holder.get("pid")
    if holder.get("host") != socket.gethostname() or not isinstance(pid, int) or pid <= 0:
        return holder.get("host") != socket.gethostname()
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:  # somebody else's
        pass
    return holder.get("began") in (None, began(pid))


def read(handle: int) -> dict[str, Any]:
    """Who a lock says holds it, {} if it does not say."""
    try:
        found = json.loads(os.pread(handle, 4096, 0))
    except (ValueError, OSError):
        return {}
    return found if isinstance(found, dict) else {}


def in_use(folder: Path, holder: dict[str, Any], sure: bool) -> str:
    who = f"process {holder['pid']} on {holder.get('host')}" if holder.get("pid") else "another process"
    mend = "wait for it, stop it, or choose another folder with --run"
    if not sure:
        mend += f"; if it is gone, delete {folder / LOCK}"
    return f"Another run is in {folder} ({who}); {mend}."

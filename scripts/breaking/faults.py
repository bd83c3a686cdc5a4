"""The faults: each is done to a run, which is gone on with afterwards."""

import dataclasses
import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from breaking.runs import Run


@dataclasses.dataclass
class Trial:
    """One run that something is done to.

    Attributes:
      folder: of the run; it may hold one that has begun.
      spare: the same run, undisturbed.
      random: of this trial.
      seconds: how long an undisturbed run takes.
      notes: what happened, for whoever reads the log.
    """

    folder: Path
    spare: Path
    random: random.Random
    seconds: float
    notes: list[str] = dataclasses.field(default_factory=list)

    def moment(self) -> float:
        return self.random.uniform(0.02, self.seconds)


def saving(folder: Path) -> bool:
    """Whether a checkpoint is being written just now."""
    return any(folder.glob("student/checkpoints/*/*tmp*"))


def killed(trial: Trial) -> None:
    """SIGKILL at one to three random moments"""
    for _ in range(trial.random.randint(1, 3)):
        run = Run(trial.folder)
        run.wait(seconds=trial.moment())
        run.signal(signal.SIGKILL)
        run.wait()


def killed_while_saving(trial: Trial) -> None:
    """SIGKILL while a checkpoint is being written"""
    run = Run(trial.folder)
    skip = trial.random.randint(0, 8)
    for _ in range(skip):
        run.wait(lambda: saving(trial.folder))
        run.wait(lambda: not saving(trial.folder), seconds=1)
    run.wait(lambda: saving(trial.folder))
    time.sleep(trial.random.choice((0, 0, 0.001, 0.003, 0.01)))
    run.signal(signal.SIGKILL)
    run.wait()


def signalled(trial: Trial, number: int, again_within: float | None = None) -> None:
    """A signal at a random moment, which may come again; the run saves its state and says so, or has ended before."""
    run = Run(trial.folder)
    run.wait(seconds=trial.moment())
    run.signal(number)
    if again_within is not None:
        run.wait(seconds=trial.random.uniform(0, again_within))
        run.signal(number)
    expect(trial, run, (0, 130 if number == signal.SIGINT else 143))


def stopped_once(trial: Trial) -> None:
    """SIGTERM, at a random moment"""
    signalled(trial, signal.SIGTERM)


def stopped_twice(trial: Trial) -> None:
    """SIGTERM twice within half a second"""
    signalled(trial, signal.SIGTERM, 0.5)


def interrupted_twice(trial: Trial) -> None:
    """SIGINT twice (Ctrl-C) within a second"""
    signalled(trial, signal.SIGINT, 1.0)


def hung_up(trial: Trial) -> None:
    """SIGHUP: the terminal is closed"""
    signalled(trial, signal.SIGHUP)


def frozen(trial: Trial) -> None:
    """SIGSTOP and SIGCONT, three times"""
    run = Run(trial.folder)
    for _ in range(3):
        run.wait(seconds=trial.random.uniform(0.02, trial.seconds / 3))
        run.signal(signal.SIGSTOP)
        time.sleep(trial.random.uniform(0, 0.2))
        run.signal(signal.SIGCONT)
    expect(trial, run, (0,))


def power_cut(trial: Trial) -> None:
    """power cut: the folder copied at a random moment; of files written within the last second and not synced by the writer,
    some are lost, cut or end in zeros"""
    run = Run(trial.folder)
    run.wait(seconds=trial.moment())
    run.signal(signal.SIGSTOP)
    now = time.time()
    lost = trial.folder.with_name(f"{trial.folder.name}.cut")
    if trial.folder.exists():
        shutil.copytree(trial.folder, lost)
    run.signal(signal.SIGKILL)
    run.signal(signal.SIGCONT)
    run.wait()
    shutil.rmtree(trial.folder, ignore_errors=True)
    if not lost.exists():
        return
    lost.rename(trial.folder)
    for path in sorted(trial.folder.rglob("*")):
        # kdjax syncs its JSON files before their renames, tensorstore its arrays: all others may be lost.
        synced = path.suffix == ".json" or "ocdbt.process_0" in path.parts or path.name == "manifest.ocdbt"
        if path.is_file() and not synced and now - path.stat().st_mtime < 1.0 and trial.random.random() < 0.5:
            cut(path, trial.random)
            trial.notes.append(f"cut {path.relative_to(trial.folder)}")


def cut(path: Path, random: random.Random) -> None:
    """A file as after a power cut: gone, shorter, or with zeros in place of its end."""
    raw = path.read_bytes()
    kept = raw[: random.randint(0, len(raw))]
    how = random.choice(("shorter", "zeros", "empty"))
    path.write_bytes({"shorter": kept, "zeros": kept.ljust(len(raw), b"\0"), "empty": b""}[how])


def flip(path: Path, random: random.Random) -> None:
    """Flips one bit of a file."""
    raw = bytearray(path.read_bytes())
    raw[random.randrange(len(raw))] ^= 1 << random.randrange(8)
    path.write_bytes(raw)


def flipped(where: str) -> Callable[[Trial], None]:
    def fault(trial: Trial) -> None:
        run = Run(trial.folder)
        run.wait(lambda: len(list(trial.folder.glob("student/checkpoints/last/[0-9]*"))) > 1)
        run.wait(seconds=trial.random.uniform(0, trial.seconds / 3))
        run.signal(signal.SIGKILL)
        run.wait()
        files = [path for path in sorted(trial.folder.glob(where)) if path.is_file() and path.stat().st_size]
        if files:
            path = trial.random.choice(files)
            flip(path, trial.random)
            trial.notes.append(f"flipped {path.relative_to(trial.folder)}")

    return fault


def newest_state(trial: Trial) -> None:
    """one bit flipped in the arrays or facts of the newest checkpoint"""
    run = Run(trial.folder)
    run.wait(lambda: len(list(trial.folder.glob("student/checkpoints/last/[0-9]*"))) > 1)
    run.wait(seconds=trial.random.uniform(0, trial.seconds / 3))
    run.signal(signal.SIGKILL)
    run.wait()
    steps = [path for path in trial.folder.glob("student/checkpoints/last/*") if path.name.isdigit()]
    newest = max(steps, key=lambda path: int(path.name), default=None)
    files = [path for path in sorted(newest.rglob("*")) if path.is_file() and path.stat().st_size] if newest else []
    if files:
        sizes = [path.stat().st_size for path in files]
        path = trial.random.choices(files, sizes)[0]
        flip(path, trial.random)
        trial.notes.append(f"flipped {path.relative_to(trial.folder)}")


def on_small_disk(trial: Trial) -> None:
    """a disk (tmpfs) of 40 to 600 KiB gets full; room is made, the run resumed"""
    with_disk(trial, f"size={trial.random.randint(40, 600)}k", lambda disk: mount("remount,size=64m", disk))


def on_read_only_disk(trial: Trial) -> None:
    """the disk turns read-only at a random moment; is writable again, the run resumed"""

    def meanwhile(disk: Path, run: Run) -> None:
        run.wait(seconds=trial.moment())
        mount("remount,ro", disk)

    with_disk(trial, "size=64m", lambda disk: mount("remount,rw", disk), meanwhile)


def with_disk(trial: Trial, options: str, mend: Callable[[Path], None], meanwhile: Callable | None = None) -> None:
    disk = trial.folder.parent / "disk"
    disk.mkdir(exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(disk)], check=True)
    try:
        place, output = disk / "run", disk.with_name("disk.out")
        if trial.folder.exists() and meanwhile:  # of a small disk, what has begun may be larger
            shutil.copytree(trial.folder, place)
        run = Run(place, output=output)
        if meanwhile:
            meanwhile(disk, run)
        status = run.wait()
        text = run.said()
        trial.notes.append(f"status {status}: {text[-400:]}")
        if status not in (0, 1) or "Traceback" in text or ("kdjax: error" not in text and status != 0):
            trial.notes.append("UNSAID")
        mend(disk)
        shutil.rmtree(trial.folder, ignore_errors=True)
        if place.exists():
            shutil.copytree(place, trial.folder)
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=False)


def mount(options: str, disk: Path) -> None:
    subprocess.run(["mount", "-o", options, str(disk)], check=False, capture_output=True)


def short_of_memory(trial: Trial) -> None:
    """address space limited to 20 to 400 MiB more than a run begins with"""
    run = Run(trial.folder, memory=trial.random.randint(20, 400) * 2**20)
    status = run.wait()
    trial.notes.append(f"status {status}")


def unheard(trial: Trial) -> None:
    """standard output closed while it runs (a pipe to `head`), or a full disk behind it"""
    run = Run(trial.folder, work=lambda: _run_unheard(trial))
    expect(trial, run, (0,))


def _run_unheard(trial: Trial) -> int:
    from breaking.runs import experiment
    from kdjax.experiment.run import run
    from kdjax.training.progress import Heard, Lines

    if trial.random.random() < 0.5:
        os.dup2(os.open("/dev/full", os.O_WRONLY), 1)
    else:
        read, write = os.pipe()
        os.close(read)
        os.dup2(write, 1)
    run(experiment(), trial.folder, resume=True, progress=Heard(Lines(seconds=0.0)))
    return 0


def expect(trial: Trial, run: Run, statuses: tuple[int, ...]) -> None:
    """Notes an end that is none of these, or a traceback. A signal may come once all is said: a shell's status is the same."""
    status, text = run.wait(), run.said()
    if isinstance(status, int) and status < 0 and "--resume to go on" in text:
        status = 128 - status
    if status not in statuses or "Traceback" in text:
        trial.notes.append(f"UNSAID status {status}: {text[-1500:]}")


@dataclasses.dataclass(frozen=True)
class Fault:
    name: str
    how: str
    do: Callable[[Trial], None]
    share: int = 2  # how often it comes
    root: bool = False  # needs to mount


def fault(name: str, do: Callable[[Trial], None], share: int = 2, *, how: str = "", root: bool = False) -> Fault:
    return Fault(name, how or " ".join((do.__doc__ or "").split()), do, share, root)


FAULTS = (
    fault("killed", killed, 8),
    fault("killed while saving", killed_while_saving, 8),
    fault("stopped", stopped_once, 3),
    fault("stopped twice", stopped_twice, 3),
    fault("interrupted twice", interrupted_twice, 2),
    fault("terminal closed", hung_up, 1),
    fault("frozen", frozen, 1),
    fault("power cut", power_cut, 6),
    fault("flipped bit, newest checkpoint", newest_state, 4),
    fault("flipped bit, finished teacher", flipped("teacher/weights/**/*"), 2,
          how="one bit flipped in the teacher's weights, the student being gone on with"),
    fault("flipped bit, JSON files", flipped("**/[!m]*.json"), 2,
          how="one bit flipped in experiment.json, data.json, result.json or network.json"),
    fault("flipped bit, anywhere", flipped("**/*"), 3, how="one bit flipped in any file of the run folder"),
    fault("disk full", on_small_disk, 3, root=True),
    fault("disk read-only", on_read_only_disk, 1, root=True),
    fault("short of memory", short_of_memory, 1),
    fault("nobody listens", unheard, 1),
)  # fmt: skip

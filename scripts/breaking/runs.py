"""A tiny real run in a process of its own, and what it comes to: what can be killed, resumed and compared."""

import contextlib
import json
import os
import re
import resource
import shutil
import signal
import struct
import sys
import time
from pathlib import Path
from typing import Any

LONGEST = 120.0  # seconds of a run, from which on it hangs
STUDENT_STEPS = 16


def prepare(cache: Path) -> None:
    """Imports all that a run needs, and nothing that starts a thread: this process is to be forked."""
    import warnings

    import grain  # noqa: F401
    import jax
    import orbax.checkpoint  # noqa: F401
    import sklearn.datasets  # noqa: F401
    import tensorboardX  # noqa: F401

    import kdjax.experiment.run  # noqa: F401

    warnings.filterwarnings("ignore", message=".*fork.*")
    jax.config.update("jax_compilation_cache_dir", str(cache))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


def experiment(student_steps: int = STUDENT_STEPS, every: int = 2) -> Any:
    """Two perceptrons on scikit-learn's digits: a teacher, and a student with a moving average that keeps its best state."""
    import jax
    import numpy as np
    from sklearn.datasets import load_digits

    from kdjax.experiment import Experiment, Phase
    from kdjax.models import from_apply
    from kdjax.objectives import KD, CrossEntropy
    from kdjax.schedules import WarmUp, steps
    from kdjax.tasks.given import GivenNetwork, given_data
    from kdjax.training.optimizers import SGD

    def perceptron(width):
        def init(key):
            first, second = jax.random.split(key)
            return {
                "first": 0.1 * jax.random.normal(first, (64, width)),
                "second": 0.1 * jax.random.normal(second, (width, 10)),
            }

        apply = lambda p, x: jax.nn.relu(x.reshape(x.shape[0], 64) @ p["first"]) @ p["second"]
        return GivenNetwork(name=f"perceptron{width}", network=from_apply(apply, init=init, name=f"perceptron{width}"))

    digits = load_digits()
    x, y = (digits.images / 16).astype(np.float32), digits.target
    sgd = SGD(learning_rate=0.05)
    objective = 0.5 * CrossEntropy() + WarmUp(length=steps(5)) * KD(temperature=2.0)
    return Experiment(
        name="soak",
        data=given_data((x[:1500], y[:1500]), (x[1500:], y[1500:]), batch_size=16, eval_batch_size=297),
        phases=(
            Phase(name="teacher", network=perceptron(32), duration=steps(4), optimizer=sgd, labels="all"),
            Phase(
                name="student", network=perceptron(8), duration=steps(student_steps), optimizer=sgd, objective=objective,
                teacher="teacher", ema_decay=0.5, keep="best",
            ),
        ),
        evaluate_every=steps(2 * every), checkpoint_every=steps(every), log_every=every,
    )  # fmt: skip


class Run:
    """A run in a process of its own, as the command line runs it.

    Args:
      folder: of the run.
      resume: whether to go on with what is there.
      memory: bytes of address space it may take beyond what it has, or None.
      work: what it does instead, for other things than a run.
      output: file of what it prints, beside the folder if not given.
    """

    def __init__(
        self,
        folder: Path,
        *,
        resume: bool = True,
        memory: int | None = None,
        work: Any = None,
        output: Path | None = None,
    ):
        self.folder, self.output = folder, output or folder.with_name(f"{folder.name}.out")
        sys.stdout.flush()
        self.pid = os.fork()
        if self.pid == 0:
            self._run(resume, memory, work)
        self.began, self.status = time.monotonic(), None

    def _run(self, resume: bool, memory: int | None, work: Any) -> None:
        status = 99
        try:
            handle = os.open(self.output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(handle, 1)
            os.dup2(handle, 2)
            if memory is not None:
                now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
                resource.setrlimit(resource.RLIMIT_AS, (now + memory, now + memory))
            from kdjax.endings import guarded
            from kdjax.experiment.run import run
            from kdjax.training.progress import Heard, Lines

            def command():
                run(experiment(), self.folder, resume=resume, progress=Heard(Lines(seconds=0.5)))
                return 0

            status = guarded(work or command, own_process=True)
        except BaseException:
            import traceback

            traceback.print_exc()
        finally:
            with contextlib.suppress(BaseException):
                sys.stdout.flush()
                sys.stderr.flush()
            os._exit(status)

    def ended(self) -> bool:
        if self.status is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.status = os.waitstatus_to_exitcode(status)
            elif time.monotonic() - self.began > LONGEST:
                os.kill(self.pid, signal.SIGKILL)
                os.waitpid(self.pid, 0)
                self.status = "hang"
        return self.status is not None

    def wait(self, until: Any = lambda: False, seconds: float = LONGEST) -> int | str | None:
        """Its exit status, or None once `until` holds or the time is over."""
        end = time.monotonic() + seconds
        while not self.ended() and not until() and time.monotonic() < end:
            time.sleep(0.002)
        return self.status

    def signal(self, number: int) -> None:
        if not self.ended():
            os.kill(self.pid, number)

    def said(self) -> str:
        return self.output.read_text(errors="replace") if self.output.exists() else ""


def end_of(folder: Path) -> dict[str, Any]:
    """What a run has come to, without times: results, metrics, and points of TensorBoard."""
    found: dict[str, Any] = {}
    for phase in ("teacher", "student"):
        result = json.loads((folder / phase / "result.json").read_text())
        keys = ("hash", "last", "best", "steps", "parameters", "teacher_hash", "seed", "data_seed")
        found[phase] = {key: result.get(key) for key in keys}
        rows = [json.loads(line) for line in (folder / phase / "metrics.jsonl").read_text().splitlines()]
        found[f"{phase} rows"] = [
            {k: v for k, v in row.items() if k not in ("examples_per_s", "checksum")} for row in rows
        ]
    return found


def curves_of(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """The points of TensorBoard's curves, without speeds; of a step that is there twice the last."""
    from tensorboardX.proto import event_pb2

    points: dict[str, dict[int, float]] = {}
    for file in sorted(folder.glob("*/tensorboard/events*"), key=lambda path: path.stat().st_mtime):
        raw, at = file.read_bytes(), 0
        while at + 16 <= len(raw):
            size = struct.unpack_from("<Q", raw, at)[0]
            if at + 16 + size > len(raw):
                break
            event = event_pb2.Event()
            try:
                event.ParseFromString(raw[at + 12 : at + 12 + size])
            except Exception:  # of zeros
                break
            at += 16 + size
            for value in event.summary.value:
                if "per_s" not in value.tag:
                    points.setdefault(f"{file.parents[1].name}/{value.tag}", {})[event.step] = value.simple_value
    return {name: sorted(found.items()) for name, found in points.items()}


MENDS = re.compile(r"(/[^\s'\"(),;:]+)")


def gone_on_with(folder: Path, spare: Path, limit: int = 5) -> tuple[str, list[str]]:
    """Resumes a run to its end, doing what its sentences say.

    Args:
      folder: of the run.
      spare: a sound run of the same configuration, from which its experiment.json may be taken.
      limit: how often.

    Returns:
      `(outcome, sentences)`; the outcome is "ended", "hang", "traceback", or "stuck" where sentences did not help.
    """
    sentences: list[str] = []
    for _ in range(limit):
        run = Run(folder)
        status = run.wait()
        if status == 0:
            return "ended", sentences
        if status == "hang":
            return "hang", [*sentences, run.said()[-300:]]
        text = run.said()
        said = [line for line in text.splitlines() if line.startswith("kdjax: error:")]
        if "Traceback" in text or not said:
            return "traceback", [*sentences, text[-1500:]]
        sentences.append(said[-1].removeprefix("kdjax: error: "))
        if not mended(folder, spare, sentences[-1]):
            return "stuck", sentences
    return "stuck", sentences


def mended(folder: Path, spare: Path, sentence: str) -> bool:
    """Does what a sentence says about a damaged file or folder: puts it aside. Whether there was one. Of several ways it takes
    the one that loses nothing."""
    named = [Path(found.rstrip(".")) for found in MENDS.findall(sentence.split("move ")[-1])]
    for path in named:
        if folder in path.parents and path.exists():
            aside = folder.with_name(f"{folder.name}.aside") / f"{time.monotonic_ns()}"
            aside.mkdir(parents=True)
            shutil.move(path, aside / path.name)
            if path.name == "experiment.json":
                shutil.copy(spare / path.name, path)
            return True
    return False

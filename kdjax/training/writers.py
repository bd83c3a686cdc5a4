"""Where metrics go: a JSON line each, always, and TensorBoard."""

import json
import math
import os
import zlib
from pathlib import Path

from kdjax.json_files import CHECKSUM, NUMBER, parse, write_whole, wrong_field
from kdjax.training.checkpoints import CheckpointError

METRICS = "metrics.jsonl"


class MetricWriter:
    """Appends rows to `metrics.jsonl` and mirrors their numbers to TensorBoard.

    Args:
      folder: of the phase; both go below it.
      resume_at: rows of later steps, left by a run that was stopped, are dropped, so that the file reads as if it had never
        been; None starts an empty file.
    """

    def __init__(self, folder: Path, resume_at: int | None = None):
        from tensorboardX import SummaryWriter  # imported here: a third of a second

        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / METRICS
        rows = [] if resume_at is None else [row for row in read_metrics(self.path) if row["step"] <= resume_at]
        write_whole(self.path, "".join(map(_line, rows)))
        self._file = self.path.open("a", encoding="utf-8")
        for events in (folder / "tensorboard").glob("events.out.tfevents.*"):
            events.unlink()  # written anew: the last points of a run that was killed are in no such file
        self._board = SummaryWriter(str(folder / "tensorboard"), flush_secs=30)
        for row in rows:
            self._draw(row.pop("step"), row.pop("kind"), row)

    def write(self, step: int, kind: str, values: dict[str, float]) -> None:
        """One row: the step, what kind of row it is ("train", "eval"), its numbers, and a checksum; nan is written as null."""
        clean = {name: value if math.isfinite(value) else None for name, value in values.items()}
        self._file.write(_line({"step": step, "kind": kind, **clean}))
        self._file.flush()
        self._draw(step, kind, values)

    def _draw(self, step: int, kind: str, values: dict[str, float | None]) -> None:
        for name, value in values.items():
            self._board.add_scalar(f"{kind}/{name}", math.nan if value is None else value, step)

    def sync(self) -> None:
        """Brings the rows to the disk, so that no checkpoint is there without those before it."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()
        self._board.close()


class Nowhere:
    """Writes nothing: of the processes of a run, the first writes for all."""

    def write(self, step: int, kind: str, values: dict[str, float]) -> None:
        pass

    def sync(self) -> None:
        pass

    def close(self) -> None:
        pass


def read_metrics(path: Path, *, ended: bool = False) -> list[dict]:
    """The rows of a metrics file, without an end that was cut short or is zeros; [] if there is none.

    Args:
      path: of the file.
      ended: of a phase that has ended, whose end is no more cut short than any other line.

    Raises:
      CheckpointError: a row is not as it was written; its line is named.
    """
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
    rows, damaged = [], None
    for number, line in enumerate(lines, 1):
        row = _row(line)
        if row is None and number == len(lines):
            row = _row(line[:-1])  # it has something else in place of its line break
        if row is None:
            damaged = damaged or number * bool(line.strip())
        elif damaged:
            raise _not_as_written(path, damaged)
        else:
            rows.append(row)
    if damaged and (ended or damaged < len(lines)):  # a line with its end was not cut short
        raise _not_as_written(path, damaged)
    return rows


def _not_as_written(path: Path, line: int) -> CheckpointError:
    return CheckpointError(
        f"Line {line} of {path} is not as it was written; delete that line to go on without it, or move {path.parent} "
        "elsewhere to train this phase anew by --resume, which comes to the same."
    )


def _line(row: dict) -> str:
    """A row as a line: its last entry is the CRC-32 of the others."""
    return json.dumps({**row, CHECKSUM: _checksum(row)}) + "\n"


def _checksum(row: dict) -> str:
    return f"{zlib.crc32(json.dumps(row).encode()):08x}"


def _row(line: str) -> dict | None:
    """A row, or None where the line is none. One without a checksum is taken: kdjax wrote none once."""
    try:
        row = parse(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(row, dict) or wrong_field(row, {"step": int, "kind": str}):
        return None
    said = row.pop(CHECKSUM, None)
    numbers = {name: value for name, value in row.items() if name != "kind"}
    if wrong_field({"numbers": numbers}, {"numbers": dict[str, NUMBER | None]}):
        return None
    return row if said in (None, _checksum(row)) else None

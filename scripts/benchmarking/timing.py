"""Timing by turns, and how its results are shown: what slows the machine slows all that is compared."""

import dataclasses
import datetime
import importlib.metadata
import json
import os
import platform
import time
import traceback
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import jax
import numpy as np


@dataclasses.dataclass(frozen=True)
class Subject:
    """What is timed.

    Attributes:
      name: of it.
      call: starts the work and returns arrays (or anything) that are there when it is done.
      units: how many steps a call does; times are of one.
      wait: for what `call` returned.
    """

    name: str
    call: Callable[[], Any]
    units: int = 1
    wait: Callable[[Any], Any] = jax.block_until_ready

    def seconds(self, calls: int) -> float:
        """Of one unit, on average of so many calls, which may overlap."""
        began = time.perf_counter()
        for _ in range(calls):
            result = self.call()
        self.wait(result)
        return (time.perf_counter() - began) / (calls * self.units)


def turns(subjects: list[Subject], rounds: int, *, least: float = 0.05, budget: float = 60.0) -> dict[str, np.ndarray]:
    """Seconds a unit by subject, `[rounds]` each: in every round each has its turn, another one first in each.

    Args:
      subjects: run once beforehand, which compiles them.
      rounds: at most.
      least: seconds that a turn should take; calls are repeated up to 50 times for that.
      budget: seconds from which on no further round begins, but for the first three.
    """
    calls = {}
    for subject in subjects:
        subject.seconds(1)
        one = subject.seconds(1) * subject.units
        calls[subject.name] = int(np.clip(np.ceil(least / one), 1, 50))
    found: dict[str, list[float]] = {subject.name: [] for subject in subjects}
    began = time.perf_counter()
    for number in range(rounds):
        if number >= 3 and time.perf_counter() - began > budget:
            break
        first = number % len(subjects)
        for subject in subjects[first:] + subjects[:first]:
            found[subject.name].append(subject.seconds(calls[subject.name]))
    return {name: np.array(seconds) for name, seconds in found.items()}


@dataclasses.dataclass
class Row:
    """A line of the table.

    Attributes:
      name: what is measured.
      value: the median, or None if it was not measured.
      quartiles: the first and the third, or None for what does not vary.
      unit: of these; "" for a ratio.
      target: in words, "" for none.
      met: whether the value meets it; None where nothing is judged.
      check: what was compared besides the time, and what came out.
      correct: whether that was as it must be; None where nothing was compared.
      note: whatever else a reader needs; of a row that failed, why.
      failed: whether it could not be measured.
    """

    name: str
    value: float | None = None
    quartiles: tuple[float, float] | None = None
    unit: str = ""
    target: str = ""
    met: bool | None = None
    check: str = ""
    correct: bool | None = None
    note: str = ""
    failed: bool = False

    def cells(self) -> list[str]:
        """As the table shows it."""
        written = "failed" if self.failed else "not measured"
        if self.value is not None:
            written = figure(self.value, self.unit)
        spread = " to ".join(figure(end, self.unit).removesuffix(self.unit).strip() for end in self.quartiles or ())
        verdict = {True: "met", False: "**missed**", None: ""}[self.met]
        right = {True: "", False: "**wrong**: ", None: ""}[self.correct]
        return [self.name, written, spread, self.target, verdict, right + self.check, self.note]


HEADER = ("row", "median", "quartiles", "target", "", "outcome beside the slow path's", "note")


def of_samples(name: str, samples: Iterable[float], *, most: float | None = None, least: float | None = None, **fields):
    """A row of the samples' median and quartiles, judged by the most or the least that it may be."""
    low, middle, high = (float(x) for x in np.quantile(np.asarray(list(samples)), (0.25, 0.5, 0.75)))
    unit = fields.get("unit", "")
    if most is not None:
        fields |= {"target": f"≤ {figure(most, unit)}", "met": middle <= most}
    elif least is not None:
        fields |= {"target": f"≥ {figure(least, unit)}", "met": middle >= least}
    return Row(name, middle, (low, high), **fields)


def for_accelerators(row: Row) -> Row:
    """The row, not judged on CPU: its target is for accelerators. Several CPU devices are one, in turns."""
    if jax.default_backend() == "cpu" and row.target:
        row.met, row.note = None, f"{row.note}; the target is for accelerators".removeprefix("; ")
    return row


def figure(value: float, unit: str = "") -> str:
    """A number with the digits that mean something, and its unit."""
    written = f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3f}" if not unit else f"{value:.3g}"
    return f"{written} {unit}".rstrip()


def line(row: Row) -> str:
    """A row of the Markdown table."""
    return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in row.cells()) + " |"


def heading() -> str:
    """The first two lines of the table."""
    return f"| {' | '.join(HEADER)} |\n|{' --- |' * len(HEADER)}"


def run_rows(makers: dict[str, Callable[[], list[Row]]], show: Callable[[str], Any] = print) -> list[Row]:
    """The rows that each maker gives, shown one by one. One that raises gives a row that says why, and the rest goes on."""
    rows = []
    show(heading())
    for name, make in makers.items():
        try:
            made = make()
        except Exception as error:
            traceback.print_exc()
            reason = (str(error) or "no reason given").strip().splitlines()[0][:300]
            made = [Row(name, failed=True, note=f"{type(error).__name__}: {reason}")]
        for row in made:
            rows.append(row)
            show(line(row))
    return rows


def facts(**further: Any) -> dict[str, Any]:
    """The machine, versions and the day."""
    device = jax.devices()[0]
    versions = {}
    for package in ("jax", "jaxlib", "flax", "optax", "numpy"):
        versions[package] = importlib.metadata.version(package)
    return {
        "device": device.device_kind,
        "platform": device.platform,
        "devices": jax.device_count(),
        "machine": platform.machine(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "python": platform.python_version(),
        "versions": versions,
        "date": datetime.date.today().isoformat(),
        **further,
    }


def in_words(found: dict[str, Any]) -> str:
    """One line of the facts."""
    where = f"{found['devices']} × {found['device']}"
    if found["platform"] == "cpu":
        where = f"{found['cores']} CPU cores ({found['machine']})"
    return f"{where}, jax {found['versions']['jax']}, Python {found['python']}, {found['date']}"


def write(path: Path | None, found: dict[str, Any], rows: list[Row]) -> None:
    """Everything as JSON, if a path is given."""
    if path:
        path.write_text(
            json.dumps({"facts": found, "rows": [dataclasses.asdict(row) for row in rows]}, indent=2) + "\n"
        )


def status(rows: list[Row]) -> int:
    """0, or 1 if a row failed or an outcome was wrong. A missed target alone is a result."""
    return int(any(row.failed or row.correct is False for row in rows))

"""What a study found: its page, which needs no other file, and every number as data."""

import dataclasses
import html
from pathlib import Path
from typing import Any, Literal

import jax

from kdjax import __version__
from kdjax.experiment.report import embedded, page
from kdjax.experiment.spec import ExperimentError
from kdjax.experiment.tables import html_table
from kdjax.json_files import read_json, write_json, write_whole

Size = Literal["tiny", "default", "full"]
PAGE, NUMBERS = "index.html", "numbers.json"


@dataclasses.dataclass(frozen=True)
class Table:
    """A table of a page: its head is the first row."""

    title: str
    rows: list[tuple[str, ...]]
    note: str = ""


@dataclasses.dataclass(frozen=True)
class Finding:
    """What came out.

    Attributes:
      question: what was asked.
      papers: whose question it is.
      design: what was done, in a few sentences: networks, data, seeds, what is varied, which control.
      verdict: the answer in a sentence or two, whichever way it fell.
      published: what the papers report, and where the settings differ.
      tables, pictures: what the verdict rests on; a picture is its title, what it shows, and its file.
      numbers: all of it as data.
    """

    question: str
    papers: tuple[str, ...]
    design: str
    verdict: str
    published: str
    tables: tuple[Table, ...]
    pictures: tuple[tuple[str, str, Path], ...]
    numbers: dict[str, Any]


def write_page(folder: Path, name: str, found: Finding, *, size: Size, seconds: float) -> Path:
    """Writes index.html and numbers.json; returns the path of the first."""
    facts = {
        "size": size, "kdjax": __version__, "jax": jax.__version__, "device": jax.devices()[0].device_kind,
        "time": f"{seconds:.0f} s", "papers": "; ".join(found.papers),
    }  # fmt: skip
    tables = "".join(
        f"<h2>{html.escape(table.title)}</h2>{html_table(table.rows)}"
        + (f"<p class=note>{html.escape(table.note)}</p>" if table.note else "")
        for table in found.tables
    )
    tiny = "<p class=note>A tiny run, to see that it works: its numbers say nothing.</p>" if size == "tiny" else ""
    body = (
        f"<h1>{html.escape(found.question)}</h1><p class=lead>{html.escape(name)}</p>{tiny}"
        f"<div class=verdict>{html.escape(found.verdict)}</div>"
        f"<h2>What was done</h2><p>{html.escape(found.design)}</p>{tables}"
        + "".join(embedded(*picture) for picture in found.pictures)
        + f"<h2>What was published</h2><p>{html.escape(found.published)}</p><h2>How</h2><dl>"
        + "".join(f"<dt>{html.escape(k)}</dt><dd>{html.escape(v)}</dd>" for k, v in facts.items())
        + "</dl>"
    )
    write_json(folder / NUMBERS, {"study": name, "verdict": found.verdict, **facts, "numbers": found.numbers})
    write_whole(folder / PAGE, page(found.question, body))
    return folder / PAGE


def check_folder(folder: Path, size: Size, *, overwrite: bool, resume: bool) -> None:
    """Refuses a folder in which a study is, unless it may be gone on with, at the size that it has, or written over."""
    if (folder / PAGE).exists() and not (overwrite or resume):
        raise ExperimentError(
            f"{folder} holds a study; say --overwrite to write it anew, --resume to keep its runs, or --run for another."
        )
    if overwrite or not (folder / NUMBERS).exists():
        return
    there = read_json(
        folder / NUMBERS, ExperimentError, "say --overwrite to write it anew", changed=lambda what: None
    ).get("size")
    if there != size:
        raise ExperimentError(
            f"{folder} holds a study of the size {there!r}, and {size!r} is another; say --overwrite to write it anew, or "
            "--run for another folder."
        )

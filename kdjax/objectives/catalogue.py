"""The methods for a reader: as a table, and one explained."""

import dataclasses
import inspect
from typing import Any

from kdjax.objectives.base import Objective, part_names
from kdjax.objectives.methods import METHODS, method


def rows() -> list[tuple[str, str, str, str, str, str]]:
    """`(name, source, family, reads, trains, what it does)` of every method."""
    return [
        (
            name,
            source(entry.objective),
            entry.family,
            ", ".join(reads(entry.objective)),
            trains(entry.objective),
            entry.summary,
        )
        for name, entry in METHODS.items()
    ]


def markdown() -> str:
    """The methods as the table that the README carries."""
    lines = ["| method | source | family | reads | trains | what it does |", "| --- | --- | --- | --- | --- | --- |"]
    lines += ["| `" + "` | ".join((row[0], " | ".join(row[1:]))) + " |" for row in rows()]
    return "\n".join(lines)


def show_methods(console: Any) -> None:
    from rich.table import Table

    table = Table("method", "source", "family", "reads", "trains", "what it does", box=None, pad_edge=False)
    for row in rows():
        table.add_row(*row)
    console.print(table)
    console.print("\n`kdjax methods NAME` explains one.")


def show_method(name: str, console: Any) -> None:
    entry = method(name)
    console.print(f"[bold]{name}[/bold]: {entry.summary}", highlight=False)
    console.print(f"weights from: {entry.setting or 'no published setting; see the objective'}", highlight=False)
    for part_name, part in part_names(entry.objective).items():
        console.print(f"\n[bold]{part.weight} × {part_name}[/bold]", highlight=False)
        console.print(inspect.getdoc(type(part)), highlight=False, markup=False)
        for field in dataclasses.fields(part):
            if field.name != "weight":
                console.print(f"  {field.name} = {getattr(part, field.name)!r}", highlight=False, markup=False)
        if part.paper is not None:
            paper = part.paper
            arxiv = f", arXiv {paper.arxiv}" if paper.arxiv else ""
            console.print(f"  {paper.authors}: {paper.title}. {paper.venue} {paper.year}{arxiv}", highlight=False)


def source(objective: Objective) -> str:
    """Venue and year of the first part that has a paper."""
    papers = [part.paper for part in objective.parts if part.paper is not None]
    return f"{papers[0].authors}, {papers[0].venue} {papers[0].year}" if papers else ""


def reads(objective: Objective) -> list[str]:
    found: list[str] = []
    for part in objective.parts:
        found += [read for read in part.reads if read not in found]
    return found


def trains(objective: Objective) -> str:
    """What modules of their own its parts train."""
    return ", ".join(part.trains for part in objective.parts if part.trains) or "–"

"""The whole grid beside what was chosen of it: report.html, a picture, and the table on the terminal."""

import html
from pathlib import Path
from typing import Any

from kdjax.experiment.grid import TESTED, TUNED
from kdjax.experiment.plots import figure, plain_texts, save
from kdjax.experiment.report import embedded, listed, page
from kdjax.experiment.tables import (
    empty_table,
    headings,
    html_table,
    mean_sd,
    rows_of,
    setting,
    show_comparison,
    verdicts,
)
from kdjax.tasks import Task

PICTURE = "grid.png"


def write_grid_report(folder: Path, found: dict[str, Any], task: Task) -> Path:
    """Writes report.html and, for one or two settings, grid.png; returns the path of the first."""
    pictures = ""
    if len(found["axes"]) <= 2:
        plot_grid(found, task, folder / PICTURE)
        pictures = embedded("The grid", f"{task.metric.title} on validation {task.noun} by setting", folder / PICTURE)
    title = f"Grid over {', '.join(axis['setting'] for axis in found['axes'])}"
    test = found[TESTED]
    facts = "".join(f"<dt>{html.escape(k)}</dt><dd>{html.escape(v)}</dd>" for k, v in setting(test, task))
    body = (
        f"<h1>{html.escape(title)}</h1><div class=verdict><ul>{listed(tuple(sentences(found, task)))}</ul></div>{pictures}"
        f"<h2>Every combination, on validation {html.escape(task.noun)}</h2>{html_table(grid_rows(found, task))}"
        f"<h2>The choice, on {html.escape(test['data']['evaluated_on'])} {html.escape(task.noun)}</h2>"
        f"{html_table([headings(test, task), *rows_of(test, task)])}<ul>{listed(tuple(verdicts(test, task)))}</ul>"
        f"<h2>What was compared</h2><dl>{facts}</dl>"
    )
    path = folder / "report.html"
    path.write_text(page(title, body), encoding="utf-8")
    return path


def sentences(found: dict[str, Any], task: Task) -> list[str]:
    """What was chosen and how far that is to be trusted."""
    data, metrics = found[TUNED]["data"], found[TUNED]["methods"][found["chosen"]]["metrics"]
    said = [
        f"{found['chosen']} is the best of {len(found['points'])} combinations on {data['evaluated']:,} validation {task.noun} "
        f"({mean_sd(metrics[task.metric.name], task.metric)}); the test {task.noun} had no part in the choice."
    ]
    said += [
        f"{path} is at the end of what was tried: a better value may lie beyond; try more on that side."
        for path in found["edges"]
    ]
    failed = found[TUNED].get("failed") or {}
    return said + [f"{name} failed and is left out: {why}" for name, why in failed.items()]


def grid_rows(found: dict[str, Any], task: Task) -> list[tuple[str, ...]]:
    """A row a combination, the chosen one marked."""
    rows = [(*(axis["setting"] for axis in found["axes"]), task.metric.title, "")]
    for name, settings in found["points"].items():
        summary = found[TUNED]["methods"].get(name)
        text = "failed" if summary is None else mean_sd(summary["metrics"][task.metric.name], task.metric)
        rows.append((*(str(value) for value in settings.values()), text, "chosen" if name == found["chosen"] else ""))
    return rows


def show_grid(found: dict[str, Any], task: Task, console: Any) -> None:
    """The grid on the terminal, and the choice's comparison on the test examples."""
    head, *rows = grid_rows(found, task)
    table = empty_table(f"on {found[TUNED]['data']['evaluated']:,} validation {task.noun}", head, 0)
    for row in rows:
        table.add_row(*row)
    console.print(table)
    for sentence in sentences(found, task):
        console.print(sentence)
    show_comparison(found[TESTED], task, console)


@plain_texts
def plot_grid(found: dict[str, Any], task: Task, path: Path) -> None:
    """One setting: mean ± standard deviation along it. Two: a square for each combination."""
    metric, axes = task.metric, found["axes"]
    value = lambda name: found[TUNED]["methods"].get(name, {}).get("metrics", {}).get(metric.name)
    cells = {name: value(name) for name in found["points"]}
    if len(axes) == 1:
        made, plot = figure(6.4, 3.4)
        tried = [(i, cell) for i, cell in enumerate(cells.values()) if cell is not None]
        plot.errorbar(
            [i for i, _ in tried], [metric.scale * cell["mean"] for _, cell in tried],
            yerr=[metric.scale * (cell["sd"] or 0.0) for _, cell in tried], fmt="o-", capsize=4, color="#1f77b4",
        )  # fmt: skip
        plot.set_ylabel(metric.title)
    else:
        made, plot = figure(max(4.8, 1.6 + 0.9 * len(axes[0]["values"])), 1.6 + 0.6 * len(axes[1]["values"]))
        plot.grid(visible=False)
        width = len(axes[1]["values"])
        means = [float("nan") if cell is None else metric.scale * cell["mean"] for cell in cells.values()]
        plot.imshow(
            [[means[i * width + j] for i in range(len(axes[0]["values"]))] for j in range(width)],
            cmap="Blues",
            aspect="auto",
        )
        for at, (name, cell) in enumerate(cells.items()):
            text = "failed" if cell is None else metric.text(cell["mean"])
            bold = {"weight": "bold"} if name == found["chosen"] else {}
            box = {"facecolor": "white", "alpha": 0.7, "edgecolor": "none", "pad": 1}
            plot.text(at // width, at % width, text, ha="center", va="center", fontsize=9, bbox=box, **bold)
        plot.set_yticks(range(width), [str(v) for v in axes[1]["values"]])
        plot.set_ylabel(axes[1]["setting"])
    plot.set_xticks(range(len(axes[0]["values"])), [str(v) for v in axes[0]["values"]])
    plot.set_xlabel(axes[0]["setting"])
    plot.set_title(f"{metric.title} on validation {task.noun}, mean over seeds", fontsize=9, loc="left", color="#555")
    save(made, path)

"""What several comparisons say side by side: report.html, results.md and a picture of a folder of results."""

import html
from pathlib import Path
from typing import Any

from kdjax import __version__
from kdjax.analysis.statistics import LEVEL
from kdjax.experiment.compare import BASELINE
from kdjax.experiment.plots import COLOURS, figure, plain_texts, save
from kdjax.experiment.report import embedded, lead, listed, page
from kdjax.experiment.tables import (
    empty_table,
    failures,
    gain_text,
    headings,
    html_table,
    markdown,
    markdown_table,
    mean_sd,
    rows_of,
    setting,
    shared_note,
    show_comparison,
    verdicts,
)
from kdjax.json_files import write_whole
from kdjax.tasks import Task

Rows = list[tuple[str, ...]]


def write_summary(folder: Path, results: dict[str, Any], task: Task) -> Path:
    """Writes report.html, results.md and gains.png; returns the path of the first."""
    pairs = results["pairs"]
    pictures = ""
    if any("gain" in summary for pair in pairs.values() for summary in pair["methods"].values()):
        plot_gains(pairs, task, folder / "gains.png")
        shows = f"Difference to {BASELINE} by method and pair"
        pictures = embedded(f"Difference to {BASELINE}", shows, folder / "gains.png")
    tables = [(title, matrix(pairs, task, cell)) for title, cell in CELLS.items()]
    body = "".join(
        f"<h2>{html.escape(title.format(metric=task.metric.title))}</h2>{html_table(rows)}" for title, rows in tables
    )
    sections = "".join(
        f'<h2><a href="{html.escape(name)}/report.html">{html.escape(name)}</a>: {html.escape(lead(pair))}</h2>'
        + html_table([headings(pair, task), *rows_of(pair, task)])
        + f"<ul>{listed((*verdicts(pair, task), *shared_note(pair)))}</ul>"
        for name, pair in pairs.items()
    )
    title, failed = folder.name, [f"{name} failed: {why}" for name, why in results["failed"].items()]
    note = f"<p class=note>{html.escape(NOTE)} {html.escape(task.legend)}</p>"
    facts = "".join(
        f"<dt>{html.escape(k)}</dt><dd>{html.escape(v)}</dd>" for k, v in (("kdjax", __version__), *_facts(pairs, task))
    )
    head = f"<h1>{html.escape(title)}</h1><p class=lead>{len(pairs)} pair(s), seeds {', '.join(map(str, results['seeds']))}</p>"
    write_whole(folder / "results.md", summary_markdown(results, task))
    path = folder / "report.html"
    write_whole(
        path, page(title, f"{head}<ul>{listed(tuple(failed))}</ul>{body}{note}{pictures}{sections}<dl>{facts}</dl>")
    )
    return path


def summary_markdown(results: dict[str, Any], task: Task) -> str:
    """The tables as Markdown: all pairs side by side, then each with what it says."""
    pairs, text = results["pairs"], ""
    if len(pairs) > 1:
        for title, cell in CELLS.items():
            text += f"**{title.format(metric=task.metric.title)}**\n\n{_markdown(matrix(pairs, task, cell))}\n"
    for name, pair in pairs.items():
        text += f"### {markdown(name)}: {markdown(lead(pair))}\n\n{markdown_table(pair, task)}\n"
        text += "".join(f"- {markdown(sentence)}\n" for sentence in (*verdicts(pair, task), *shared_note(pair)))
        text += "\n" + "".join(f"- {markdown(key)}: {markdown(value)}\n" for key, value in setting(pair, task)) + "\n"
    return text + "".join(f"{name} failed: {markdown(why)}\n" for name, why in results["failed"].items())


def show_summary(results: dict[str, Any], task: Task, console: Any) -> None:
    """All pairs side by side on the terminal; of a single one, its whole table."""
    pairs = results["pairs"]
    if len(pairs) == 1:
        show_comparison(next(iter(pairs.values())), task, console)
    for title, cell in CELLS.items() if len(pairs) > 1 else ():
        head, *rows = matrix(pairs, task, cell)
        table = empty_table(title.format(metric=task.metric.title), head, 1)
        for row in rows:
            table.add_row(*row)
        console.print(table)
    if len(pairs) > 1:
        console.print(NOTE)
        for name, pair in pairs.items():
            for sentence in failures(pair):
                console.print(f"{name}: {sentence}", soft_wrap=True)
    for name, why in results["failed"].items():
        console.print(f"{name} failed: {why}", soft_wrap=True)


def matrix(pairs: dict[str, Any], task: Task, cell: Any) -> Rows:
    """A row a method, a column a pair."""
    methods = list(dict.fromkeys(name for pair in pairs.values() for name in pair["methods"]))
    rows = [("method", *pairs)]
    for name in methods:
        found = [pair["methods"].get(name) for pair in pairs.values()]
        rows.append((name, *("–" if summary is None else cell(summary, task) for summary in found)))
    return rows


def _result(summary: dict[str, Any], task: Task) -> str:
    return mean_sd(summary["metrics"][task.metric.name], task.metric)


def _gain(summary: dict[str, Any], task: Task) -> str:
    gain = summary.get("gain")
    return gain_text(gain, task.metric) + (" *" if gain and gain.get("p_holm", 1) < LEVEL else "")


CELLS = {"{metric}": _result, f"{{metric}}, difference to {BASELINE}": _gain}
NOTE = (
    f"Mean ± standard deviation over seeds, after the last step. Differences to {BASELINE} are paired by seed, ± the half-width "
    f"of their 95 % interval; *: not by chance, all methods of the pair taken together (Holm's correction, {100 * LEVEL:.0f} %)."
)


@plain_texts
def plot_gains(pairs: dict[str, Any], task: Task, path: Path) -> None:
    """A row a method, a dot with its interval a pair; methods by their mean difference over pairs."""
    metric, found = task.metric, {}
    for name, pair in pairs.items():
        for method, summary in pair["methods"].items():
            if "gain" in summary:
                found.setdefault(method, {})[name] = summary["gain"]
    order = sorted(found, key=lambda method: sum(g["mean"] for g in found[method].values()) / len(found[method]))
    made, axes = figure(7.2, 1.6 + 0.32 * len(order))
    for i, name in enumerate(pairs):
        shift = 0.0 if len(pairs) == 1 else 0.5 * (i / (len(pairs) - 1) - 0.5)
        rows = [(row - shift, found[method][name]) for row, method in enumerate(order) if name in found[method]]
        axes.errorbar(
            [metric.scale * gain["mean"] for _, gain in rows], [row for row, _ in rows],
            xerr=[metric.scale * (gain["half_width"] or 0.0) for _, gain in rows], fmt="o", markersize=4, linewidth=1.2,
            color=COLOURS[(i + 1) % len(COLOURS)], label=name, alpha=0.85,
        )  # fmt: skip
    axes.axvline(0, color="#111", linewidth=1)
    axes.set_yticks(range(len(order)), order)
    axes.set_xlabel(f"{metric.title}, difference to {BASELINE}")
    axes.legend(frameon=False, fontsize=8)
    axes.set_title(
        "dots: means over seeds;  bars: 95 % intervals, each by itself", fontsize=9, loc="left", color="#555"
    )
    save(made, path)


def _facts(pairs: dict[str, Any], task: Task) -> list[tuple[str, str]]:
    wanted = ("data", "labels", "budget", "evaluated on", "device")
    return [
        (f"{name}: {key}", value) for name, pair in pairs.items() for key, value in setting(pair, task) if key in wanted
    ]


def _markdown(rows: Rows) -> str:
    lines = [rows[0], ("---", *["---:"] * (len(rows[0]) - 1)), *rows[1:]]
    return "".join(f"| {' | '.join(row if i == 1 else map(markdown, row))} |\n" for i, row in enumerate(lines))

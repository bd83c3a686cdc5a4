"""report.html of a comparison: its table, pictures and facts in one file that needs no other."""

import base64
import html
from pathlib import Path
from typing import Any

from kdjax.experiment.compare import BASELINE
from kdjax.experiment.plots import plot_comparison, plot_curves
from kdjax.experiment.tables import (
    headings,
    html_table,
    markdown_table,
    mean_sd,
    rows_of,
    setting,
    shared_note,
    verdicts,
)
from kdjax.experiment.trained import load_trained
from kdjax.json_files import write_whole
from kdjax.tasks import Task


def write_report(folder: Path, comparison: dict[str, Any], task: Task) -> Path:
    """Draws the pictures, writes table.md, and report.html; returns the path of the last."""
    metric, noun = task.metric, html.escape(task.noun)
    pictures = [
        ("Where every seed ended", f"{metric.title} by method, a dot a seed", folder / "comparison.png"),
        ("How training went", f"{metric.title} over training steps by method", folder / "curves.png"),
    ]
    plot_comparison(comparison, task, pictures[0][-1])
    plot_curves(comparison, task, folder, pictures[1][-1])
    pictures += task.pictures(comparison, folder, load_trained)
    methods = comparison["methods"]
    seeds = "".join(
        f"<tr><td>{html.escape(name)}</td>"
        + "".join(f"<td>{metric.text(value)}</td>" for value in summary["metrics"][metric.name]["values"])
        + f"<td>{mean_sd(summary['best'], metric)}</td></tr>"
        for name, summary in methods.items()
    )
    body = COMPARISON.format(
        title=html.escape(comparison["name"]), lead=html.escape(lead(comparison)),
        verdicts=listed((*verdicts(comparison, task), *shared_note(comparison))),
        table=html_table([headings(comparison, task), *rows_of(comparison, task)]),
        facts="".join(f"<dt>{html.escape(k)}</dt><dd>{html.escape(v)}</dd>" for k, v in setting(comparison, task)),
        pictures="".join(embedded(*picture) for picture in pictures), seeds=seeds,
        seed_heads="".join(f"<th>seed {html.escape(str(seed))}</th>" for seed in next(iter(methods.values()))["seeds"]),
        baseline=html.escape(BASELINE), metric=html.escape(metric.title), noun=noun, legend=html.escape(task.legend),
    )  # fmt: skip
    write_whole(folder / "table.md", markdown_table(comparison, task))
    path = folder / "report.html"
    write_whole(path, page(comparison["name"], body))
    return path


def lead(comparison: dict[str, Any]) -> str:
    teacher = comparison["teacher"]
    if teacher is None:
        return f"{comparison['student']}, no teacher"
    return f"{comparison['student']} learns from {teacher['network']}"


def listed(sentences: tuple[str, ...]) -> str:
    return "".join(f"<li>{html.escape(sentence)}</li>" for sentence in sentences)


def embedded(heading: str, shows: str, path: Path) -> str:
    """A picture within the page."""
    data = base64.b64encode(path.read_bytes()).decode()
    return f'<h2>{html.escape(heading)}</h2><img alt="{html.escape(shows)}" src="data:image/png;base64,{data}">'


def page(title: str, body: str) -> str:
    """A whole page that needs no other file; `body` is HTML."""
    before, _, after = FRAME.partition("BODY")
    return before.replace("TITLE", html.escape(title)) + body + after


FRAME = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>TITLE</title>
<style>
:root { --ink: #1d2330; --soft: #5b6475; --line: #e3e6ee; --paper: #fff; --tint: #f6f7fb; --accent: #1f6feb; }
body { margin: 0 auto; max-width: 60rem; padding: 2.5rem 1.25rem 4rem; color: var(--ink); background: var(--paper);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
h1 { font-size: 1.7rem; margin: 0; } h2 { font-size: 1.1rem; margin: 2.4rem 0 .6rem; }
.lead { color: var(--soft); margin: .2rem 0 1.6rem; }
.verdict { background: var(--tint); border-left: 4px solid var(--accent); padding: .8rem 1.2rem; border-radius: 4px; }
.verdict ul { margin: 0; padding-left: 1.1rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; font-size: .93rem; }
th, td { padding: .42rem .6rem; border-bottom: 1px solid var(--line); text-align: right; white-space: nowrap; }
th { font-weight: 600; color: var(--soft); } th:first-child, td:first-child { text-align: left; }
td:first-child { font-weight: 600; }
img { width: 100%; height: auto; border: 1px solid var(--line); border-radius: 6px; background: #fff; }
dl { display: grid; grid-template-columns: 9rem 1fr; gap: .35rem 1rem; margin: 0; }
dt { color: var(--soft); } dd { margin: 0; }
p.note { color: var(--soft); font-size: .9rem; }
</style></head><body>
BODY</body></html>
"""
COMPARISON = """<h1>{title}</h1><p class="lead">{lead}</p>
<div class="verdict"><ul>{verdicts}</ul></div>
<h2>Side by side</h2>
{table}
<p class="note">Mean ± standard deviation over seeds, after the last step. {legend} Time: one run, evaluation included, and
compilation in the first run of each method; {noun}/s: training steps alone. “{baseline}” is the same student without a
teacher.</p>
{pictures}
<h2>What was compared</h2><dl>{facts}</dl>
<h2>Seed by seed</h2>
<div class="scroll"><table><thead><tr><th>{metric}, last step</th>{seed_heads}<th>best step (chosen on the evaluated
{noun})</th></tr></thead><tbody>{seeds}</tbody></table></div>
<p class="note">Every run's resolved configuration is its experiment.json:
<code>kdjax distill RUN_FOLDER</code> runs it again.</p>
"""

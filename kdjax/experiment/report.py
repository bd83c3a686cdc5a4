"""What a person reads at the end: tables on the terminal, and report.html."""

import base64
import html
from pathlib import Path
from typing import Any

from kdjax import __version__
from kdjax.experiment.accounting import in_words
from kdjax.experiment.compare import BASELINE, paired_gain
from kdjax.experiment.plots import plot_comparison, plot_curves
from kdjax.experiment.spec import Experiment

HEADINGS = (
    "method", "parameters", "top-1 %", "vs labels", "agreement %", "NLL", "ECE %", "images/s", "time",
)  # fmt: skip


def rows_of(comparison: dict[str, Any]) -> list[tuple[str, ...]]:
    """The rows of the table, teacher first, as texts in the order of `HEADINGS`."""
    rows = []
    teacher = comparison["teacher"]
    if teacher is not None:
        metrics = teacher["metrics"]
        rows.append((
            "teacher", f"{teacher['parameters']:,}", f"{100 * metrics['top1']:.2f}", "", "", f"{metrics['nll']:.2f}",
            f"{100 * metrics['ece']:.1f}", _rate(teacher["images_per_s"]), _seconds(teacher["seconds"]),
        ))  # fmt: skip
    for name, summary in comparison["methods"].items():
        metrics = summary["metrics"]
        extra = f" (+{summary['extra_parameters']:,})" if summary["extra_parameters"] else ""
        rows.append((
            name, f"{summary['parameters']:,}{extra}", mean_sd(metrics["top1"], 100, 2), gain_text(summary.get("gain")),
            mean_sd(metrics.get("agreement"), 100, 1), mean_sd(metrics["nll"], 1, 2), mean_sd(metrics["ece"], 100, 1),
            _rate(summary["images_per_s"]["mean"]), _seconds(summary["seconds"]["mean"]),
        ))  # fmt: skip
    return rows


def markdown_table(comparison: dict[str, Any]) -> str:
    """The table for a README."""
    lines = [" | ".join(HEADINGS), " | ".join(["---", *["---:"] * (len(HEADINGS) - 1)])]
    lines += [" | ".join(row) for row in rows_of(comparison)]
    return "".join(f"| {line} |\n" for line in lines)


def mean_sd(value: dict[str, Any] | None, scale: float, digits: int) -> str:
    """ "85.31 ± 0.24": mean and sample standard deviation over seeds."""
    if value is None:
        return "–"
    text = f"{scale * value['mean']:.{digits}f}"
    return text if value["sd"] is None else f"{text} ± {scale * value['sd']:.{digits}f}"


def gain_text(gain: dict[str, Any] | None) -> str:
    if gain is None:
        return ""
    text = f"{100 * gain['mean']:+.2f}"
    return text if gain["half_width"] is None else f"{text} ± {100 * gain['half_width']:.2f}"


def verdicts(comparison: dict[str, Any]) -> list[str]:
    """What the table says in sentences: each method against labels only, the gap to the teacher, the best two."""
    sentences = []
    methods, teacher = comparison["methods"], comparison["teacher"]
    for name, summary in methods.items():
        gain = summary.get("gain")
        if gain is None:
            continue
        count = len(gain["values"])
        points = f"{abs(100 * gain['mean']):.2f} points of top-1"
        direction = "gains" if gain["mean"] > 0 else "loses"
        if gain["half_width"] is None:
            sentences.append(f"{name} {direction} {points} over labels only, with one seed: no spread, so no verdict.")
        elif not clear(gain):
            sentences.append(
                f"{name} shows no clear difference to labels only "
                f"({100 * gain['mean']:+.2f} points, {interval(gain)}, {count} seeds)."
            )
        else:
            closed = ""
            gap = teacher["metrics"]["top1"] - methods[BASELINE]["metrics"]["top1"]["mean"] if teacher else 0.0
            if 0 < gain["mean"] <= gap:
                closed = f", and closes {100 * gain['mean'] / gap:.0f} % of the gap to the teacher"
            sentences.append(f"{name} {direction} {points} over labels only ({interval(gain)}, {count} seeds){closed}.")
    return sentences + best_two(methods)


def best_two(methods: dict[str, Any]) -> list[str]:
    """Whether the best method is really better than the second: a table invites reading more into it."""
    ranked = sorted(
        (name for name in methods if name != BASELINE), key=lambda n: -methods[n]["metrics"]["top1"]["mean"]
    )
    if len(ranked) < 2:
        return []
    first, second = ranked[:2]
    gain = paired_gain(*(methods[name]["metrics"]["top1"]["values"] for name in (first, second)))
    if gain["half_width"] is None:
        return []
    difference = f"{100 * gain['mean']:+.2f} points, {interval(gain)}, {len(gain['values'])} seeds"
    said = "is better than" if clear(gain) else "is not clearly better than"
    return [f"{first}, the best, {said} {second}, the second ({difference})."]


def clear(gain: dict[str, Any]) -> bool:
    """Whether the 95 % interval of a paired difference leaves out 0."""
    return abs(gain["mean"]) > gain["half_width"]


def interval(gain: dict[str, Any]) -> str:
    low, high = 100 * (gain["mean"] - gain["half_width"]), 100 * (gain["mean"] + gain["half_width"])
    return f"95 % interval {low:+.2f} to {high:+.2f}"


def setting(comparison: dict[str, Any]) -> list[tuple[str, str]]:
    """What was compared, as a list of facts."""
    data, teacher = comparison["data"], comparison["teacher"]
    facts = [
        ("data", f"{data['name']}, {data['trained_on']:,} training images, {data['classes']} classes"),
        ("labels", f"the student may use {data['labelled']:,} of them"),
    ]
    if teacher is not None:
        used = data["trained_on"] if teacher["labels"] == "all" else data["labelled"]
        facts.append(("teacher", f"{teacher['network']}, trained once with {used:,} labels; weights {teacher['hash']}"))
    visits = ", ".join(f"{name} {s['examples_visited']:,}" for name, s in comparison["methods"].items())
    seeds = len(next(iter(comparison["methods"].values()))["seeds"])
    return [
        *facts,
        ("student", comparison["student"]),
        ("budget", f"{comparison['steps']:,} steps of {comparison['batch_size']} examples for every method"),
        ("images visited", visits),
        ("evaluated on", f"{data['evaluated']:,} {data['evaluated_on']} images, after the last step"),
        ("spread", f"sample standard deviation over {seeds} seed(s): initial weights, order of examples and their views; "
                   "one teacher, one split. “vs labels” is paired by seed, ± the half-width of its 95 % interval"),
        ("device", comparison["device"]),
        ("kdjax", __version__),
    ]  # fmt: skip


def show_comparison(comparison: dict[str, Any], console: Any) -> None:
    from rich import box
    from rich.table import Table

    table = Table(title=comparison["name"], title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for i, heading in enumerate(HEADINGS):
        table.add_column(heading, justify="left" if i == 0 else "right", no_wrap=i == 0, overflow="fold")
    for row in rows_of(comparison):
        table.add_row(*row)
    console.print(table)
    data = comparison["data"]
    console.print(
        f"Mean ± standard deviation over seeds; {comparison['steps']:,} steps of {comparison['batch_size']} each; "
        f"{data['labelled']:,} of {data['trained_on']:,} training images labelled; "
        f"{data['evaluated']:,} {data['evaluated_on']} images."
    )
    for sentence in (*shared_note(comparison), *verdicts(comparison)):
        console.print(sentence)


def cache_in_words(facts: dict[str, Any]) -> str:
    said = f"{facts['computed']:,} computed as {facts['storage']}, {facts['found']:,} found from earlier runs"
    if "largest_change" in facts:
        said += f"; keeping them changed a logit by {facts['largest_change']:.2g} at most"
    if "mass" in facts:
        said += f"; the classes kept have {100 * facts['mass']:.1f} % of the probability"
    return said


def shared_note(comparison: dict[str, Any]) -> list[str]:
    """What the spread does not cover, where seeds were trained together."""
    count = comparison.get("together")
    return [] if not count else [
        f"The {count} seeds of a method were trained together and share the order and the views of the examples: their spread "
        "is of initial weights and dropout alone. Where they were one program, times are each one's share."
    ]  # fmt: skip


def show_results(experiment: Experiment, results: dict[str, dict[str, Any]], folder: Path, console: Any) -> None:
    from rich import box
    from rich.table import Table

    table = Table(title=experiment.name, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for i, heading in enumerate(("phase", "network", "parameters", "top-1 %", "best (step)", "agreement %", "NLL", "ECE %",
                                 "images/s", "time")):  # fmt: skip
        table.add_column(heading, justify="left" if i < 2 else "right", no_wrap=i == 0, overflow="fold")
    for name, result in results.items():
        last, best = result["last"]["student"], result.get("best")
        agreement = f"{100 * last['agreement']:.1f}" if "agreement" in last else "–"
        table.add_row(
            name, result["network"], f"{result['parameters']:,}", f"{100 * last['top1']:.2f}",
            f"{100 * best['student']['top1']:.2f} ({best['step']})" if best else "–", agreement,
            f"{last['nll']:.3f}", f"{100 * last['ece']:.1f}", _rate(result.get("images_per_s")),
            _seconds(result.get("seconds")),
        )  # fmt: skip
    console.print(table)
    for name, result in results.items():
        used = in_words(result)
        if used:
            console.print(f"{name}: {used}", soft_wrap=True)
        if result.get("teacher_cache"):
            console.print(
                f"{name}, its teacher's outputs kept: {cache_in_words(result['teacher_cache'])}", soft_wrap=True
            )
        if result.get("teacher_frozen"):
            console.print(f"{name}, its teacher frozen: {result['teacher_frozen']}", soft_wrap=True)
    console.print(f"Run folder: {folder}", soft_wrap=True)


def show_evaluation(results: dict[str, dict[str, Any]], console: Any) -> None:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for i, heading in enumerate(("network", "examples", "top-1 %", "agreement %", "NLL", "ECE %")):
        table.add_column(heading, justify="left" if i == 0 else "right")
    for name, row in results.items():
        agreement = f"{100 * row['agreement']:.1f}" if "agreement" in row else "–"
        table.add_row(
            name, row["examples"], f"{100 * row['top1']:.2f}", agreement, f"{row['nll']:.3f}", f"{100 * row['ece']:.1f}"
        )
    console.print(table)


def write_report(folder: Path, comparison: dict[str, Any]) -> Path:
    """Draws the pictures, writes table.md, and report.html, which needs no other file; returns the path of the last."""
    pictures = {"comparison": folder / "comparison.png", "curves": folder / "curves.png"}
    plot_comparison(comparison, pictures["comparison"])
    plot_curves(comparison, folder, pictures["curves"])
    images = {name: base64.b64encode(path.read_bytes()).decode() for name, path in pictures.items()}
    head = "".join(f"<th>{html.escape(heading)}</th>" for heading in HEADINGS)
    body = "".join(
        "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in rows_of(comparison)
    )
    facts = "".join(f"<dt>{html.escape(k)}</dt><dd>{html.escape(v)}</dd>" for k, v in setting(comparison))
    said = "".join(
        f"<li>{html.escape(sentence)}</li>" for sentence in (*verdicts(comparison), *shared_note(comparison))
    )
    teacher = comparison["teacher"]
    lead = (
        f"{comparison['student']} learns from {teacher['network']}"
        if teacher
        else f"{comparison['student']}, no teacher"
    )
    seeds = "".join(
        f"<tr><td>{html.escape(name)}</td>"
        + "".join(f"<td>{100 * value:.2f}</td>" for value in summary["metrics"]["top1"]["values"])
        + f"<td>{mean_sd(summary['best_top1'], 100, 2)}</td></tr>"
        for name, summary in comparison["methods"].items()
    )
    seed_heads = "".join(f"<th>seed {seed}</th>" for seed in next(iter(comparison["methods"].values()))["seeds"])
    page = TEMPLATE.format(
        title=html.escape(comparison["name"]), lead=html.escape(lead), verdicts=said, head=head, body=body, facts=facts,
        comparison=images["comparison"], curves=images["curves"], seeds=seeds, seed_heads=seed_heads,
        baseline=html.escape(BASELINE),
    )  # fmt: skip
    (folder / "table.md").write_text(markdown_table(comparison))
    path = folder / "report.html"
    path.write_text(page)
    return path


def _rate(value: float | None) -> str:
    return f"{value:,.0f}" if value else "–"


def _seconds(value: float | None) -> str:
    return f"{value:.0f} s" if value else "–"


TEMPLATE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
:root {{ --ink: #1d2330; --soft: #5b6475; --line: #e3e6ee; --paper: #fff; --tint: #f6f7fb; --accent: #1f6feb; }}
body {{ margin: 0 auto; max-width: 60rem; padding: 2.5rem 1.25rem 4rem; color: var(--ink); background: var(--paper);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }}
h1 {{ font-size: 1.7rem; margin: 0; }} h2 {{ font-size: 1.1rem; margin: 2.4rem 0 .6rem; }}
.lead {{ color: var(--soft); margin: .2rem 0 1.6rem; }}
.verdict {{ background: var(--tint); border-left: 4px solid var(--accent); padding: .8rem 1.2rem; border-radius: 4px; }}
.verdict ul {{ margin: 0; padding-left: 1.1rem; }}
.scroll {{ overflow-x: auto; }}
table {{ border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; font-size: .93rem; }}
th, td {{ padding: .42rem .6rem; border-bottom: 1px solid var(--line); text-align: right; white-space: nowrap; }}
th {{ font-weight: 600; color: var(--soft); }} th:first-child, td:first-child {{ text-align: left; }}
td:first-child {{ font-weight: 600; }}
img {{ width: 100%; height: auto; border: 1px solid var(--line); border-radius: 6px; background: #fff; }}
dl {{ display: grid; grid-template-columns: 9rem 1fr; gap: .35rem 1rem; margin: 0; }}
dt {{ color: var(--soft); }} dd {{ margin: 0; }}
p.note {{ color: var(--soft); font-size: .9rem; }}
</style></head><body>
<h1>{title}</h1><p class="lead">{lead}</p>
<div class="verdict"><ul>{verdicts}</ul></div>
<h2>Side by side</h2>
<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>
<p class="note">Mean ± standard deviation over seeds, after the last step. Agreement: same prediction as the teacher.
NLL in nats. ECE: calibration error over 15 bins. Time: one run, evaluation included, and compilation in the first run of
each method; images/s: training steps alone. “{baseline}” is the same student without a teacher.</p>
<h2>Where every seed ended</h2><img alt="top-1 accuracy by method, a dot a seed" src="data:image/png;base64,{comparison}">
<h2>How training went</h2><img alt="top-1 accuracy over training steps by method" src="data:image/png;base64,{curves}">
<h2>What was compared</h2><dl>{facts}</dl>
<h2>Seed by seed</h2>
<div class="scroll"><table><thead><tr><th>top-1 %, last step</th>{seed_heads}<th>best step (chosen on the evaluated
images)</th></tr></thead><tbody>{seeds}</tbody></table></div>
<p class="note">Every run's resolved configuration is its experiment.json:
<code>kdjax distill RUN_FOLDER</code> runs it again.</p>
</body></html>
"""

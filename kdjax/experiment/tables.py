"""What a person reads at the end: the tables on the terminal, and what they say in sentences."""

import html
import re
from pathlib import Path
from typing import Any

from kdjax import __version__
from kdjax.analysis.statistics import LEVEL, paired_gain
from kdjax.experiment.accounting import in_words
from kdjax.experiment.compare import BASELINE
from kdjax.experiment.spec import Experiment
from kdjax.tasks import Task
from kdjax.terminal import visible
from kdjax.training.metrics import Metric


def headings(comparison: dict[str, Any], task: Task) -> tuple[str, ...]:
    """Of a comparison's table: the task's metric and gain, and the columns that any of the methods has."""
    columns = (column.title for column in present(comparison, task))
    others = ("published",) if published(comparison) else ()
    return ("method", "parameters", task.metric.title, f"vs {BASELINE}", *others, *columns, f"{task.noun}/s", "time")


def published(comparison: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """What others printed of these networks, by method."""
    return {name: one["published"] for name, one in comparison["methods"].items() if one.get("published")}


def published_text(value: dict[str, Any] | None) -> str:
    """ "76.32 (best epoch)": of the last epoch, where nothing is said."""
    if value is None:
        return "–"
    rule = {"last epoch": "", "not stated": " (?)"}.get(value["rule"], f" ({value['rule']})")
    text = value["text"] if "text" in value else f"{value['top1']:.2f}"  # of runs from before
    return f"{text}{rule}"


def published_sources(comparison: dict[str, Any]) -> list[str]:
    """Where the published values are from, in a sentence; none where there are none."""
    named: dict[str, list[str]] = {}
    for name, value in published(comparison).items():
        named.setdefault(value["source"], []).append(name)
    said = "; ".join(f"{source} ({', '.join(names)})" for source, names in named.items())
    return (
        [f"Published values are of others: {said}. Of the last epoch, but where it is said; (?): it is not."]
        if said
        else []
    )


def present(comparison: dict[str, Any], task: Task) -> list[Metric]:
    """The task's columns that there are numbers for."""
    return [c for c in task.columns if any(c.name in s["metrics"] for s in comparison["methods"].values())]


def rows_of(comparison: dict[str, Any], task: Task) -> list[tuple[str, ...]]:
    """The rows of the table, teacher first, as texts in the order of `headings`."""
    rows, metric, columns, theirs = [], task.metric, present(comparison, task), published(comparison)
    teacher = comparison["teacher"]
    if teacher is not None:
        metrics = teacher["metrics"]
        rows.append((
            "teacher", f"{teacher['parameters']:,}", metric.text(metrics[metric.name]), "", *([""] if theirs else []),
            *(column.text(metrics[column.name]) if column.name in metrics else "" for column in columns),
            _rate(teacher["examples_per_s"]), _seconds(teacher["seconds"]),
        ))  # fmt: skip
    for name, summary in comparison["methods"].items():
        metrics = summary["metrics"]
        extra = f" (+{summary['extra_parameters']:,})" if summary["extra_parameters"] else ""
        rows.append((
            name, f"{summary['parameters']:,}{extra}", mean_sd(metrics[metric.name], metric),
            gain_text(summary.get("gain"), metric), *([published_text(theirs.get(name))] if theirs else []),
            *(mean_sd(metrics.get(column.name), column) for column in columns),
            _rate(summary["examples_per_s"]["mean"]), _seconds(summary["seconds"]["mean"]),
        ))  # fmt: skip
    return rows


def html_table(rows: list[tuple[str, ...]]) -> str:
    """A table for a page, its head first."""
    head = "".join(f"<th>{html.escape(text)}</th>" for text in rows[0])
    body = "".join("<tr>" + "".join(f"<td>{html.escape(text)}</td>" for text in row) + "</tr>" for row in rows[1:])
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def markdown_table(comparison: dict[str, Any], task: Task) -> str:
    """The table for a README."""
    titles = headings(comparison, task)
    lines = [" | ".join(map(markdown, titles)), " | ".join(["---", *["---:"] * (len(titles) - 1)])]
    lines += [" | ".join(map(markdown, row)) for row in rows_of(comparison, task)]
    return "".join(f"| {line} |\n" for line in lines)


def markdown(text: str) -> str:
    """A text in a cell of a Markdown table, of which nothing is markup."""
    shown = re.sub(r"([\\\\`*\[\]|$~]|(?<!\w)_|_(?!\w))", r"\\\1", " ".join(visible(text).split()))
    return html.escape(shown, quote=False)


def mean_sd(value: dict[str, Any] | None, metric: Metric) -> str:
    """ "85.31 ± 0.24": mean and sample standard deviation over seeds."""
    if value is None:
        return "–"
    return metric.text(value["mean"]) + ("" if value["sd"] is None else f" ± {metric.text(value['sd'])}")


def gain_text(gain: dict[str, Any] | None, metric: Metric) -> str:
    if gain is None:
        return ""
    text = f"{metric.scale * gain['mean']:+.{metric.digits}f}"
    return text if gain["half_width"] is None else f"{text} ± {metric.text(gain['half_width'])}"


def verdicts(comparison: dict[str, Any], task: Task) -> list[str]:
    """What the table says in sentences: each method against labels only, the gap to the teacher, the best two."""
    sentences, metric = [], task.metric
    methods, teacher = comparison["methods"], comparison["teacher"]
    for name, summary in methods.items():
        gain = summary.get("gain")
        if gain is None:
            continue
        count = len(gain["values"])
        difference = metric.amount(gain["mean"])
        direction = "gains" if (gain["mean"] > 0) == metric.higher_is_better else "loses"
        if gain["half_width"] in (None, 0.0) and gain["mean"] == 0:
            sentences.append(
                f"{name} ends where {BASELINE} only does, with {count} seed{'s' * (count > 1)}: no spread, so no verdict."
            )
        elif gain["half_width"] == 0.0:
            sentences.append(
                f"{name} {direction} {difference} over {BASELINE} only with each of {count} seeds: no spread, so no verdict."
            )
        elif gain["half_width"] is None:
            sentences.append(
                f"{name} {direction} {difference} over {BASELINE} only, with one seed: no spread, so no verdict."
            )
        elif not clear(gain):
            sentences.append(
                f"{name} shows no clear difference to {BASELINE} only "
                f"({metric.change(gain['mean'])}, {interval(gain, metric)}, {count} seeds)."
            )
        else:
            closed, gap = "", 0.0
            if teacher and not comparison.get("teacher_apart"):
                gap = teacher["metrics"][metric.name] - methods[BASELINE]["metrics"][metric.name]["mean"]
            if gap and 0 < gain["mean"] / gap <= 1:
                closed = f", and closes {100 * gain['mean'] / gap:.0f} % of the gap to the teacher"
            sentences.append(
                f"{name} {direction} {difference} over {BASELINE} only ({interval(gain, metric)}, {count} seeds){closed}."
            )
    return (
        sentences
        + best_two(methods, metric)
        + all_at_once(methods)
        + failures(comparison)
        + published_sources(comparison)
    )


def all_at_once(methods: dict[str, Any]) -> list[str]:
    """Which methods differ from the baseline, several having been tried: one in twenty intervals leaves out 0 by chance."""
    adjusted = {name: s["gain"]["p_holm"] for name, s in methods.items() if s.get("gain", {}).get("p_holm") is not None}
    if len(adjusted) < 2:
        return []
    found = [name for name, p in adjusted.items() if p < LEVEL]
    return [
        f"All {len(adjusted)} comparisons with {BASELINE} taken together (Holm's correction, "
        f"{100 * LEVEL:.0f} %): {', '.join(found) if found else 'none'} differ{'s' if len(found) < 2 else ''}."
    ]


def failures(comparison: dict[str, Any]) -> list[str]:
    """Methods that could not be trained, and why."""
    return [f"{name} failed and is left out: {why}" for name, why in (comparison.get("failed") or {}).items()]


def best_two(methods: dict[str, Any], metric: Metric) -> list[str]:
    """Whether the best method is really better than the second: a table invites reading more into it."""
    sign = -1 if metric.higher_is_better else 1
    ranked = sorted(
        (name for name in methods if name != BASELINE), key=lambda n: sign * methods[n]["metrics"][metric.name]["mean"]
    )
    if len(ranked) < 2:
        return []
    first, second = ranked[:2]
    gain = paired_gain(*(methods[name]["metrics"][metric.name]["values"] for name in (first, second)))
    if gain["half_width"] is None:
        return []
    difference = f"{metric.change(gain['mean'])}, {interval(gain, metric)}, {len(gain['values'])} seeds"
    said = "is better than" if clear(gain) else "is not clearly better than"
    return [f"{first}, the best, {said} {second}, the second ({difference})."]


def clear(gain: dict[str, Any]) -> bool:
    """Whether the 95 % interval of a paired difference leaves out 0. One without width says nothing, nor a single seed."""
    return gain["half_width"] is not None and abs(gain["mean"]) > gain["half_width"] > 0


def interval(gain: dict[str, Any], metric: Metric) -> str:
    ends = (metric.scale * (gain["mean"] + side * gain["half_width"]) for side in (-1, 1))
    low, high = (f"{end:+.{metric.digits}f}" for end in ends)
    return f"95 % interval {low} to {high}"


def setting(comparison: dict[str, Any], task: Task) -> list[tuple[str, str]]:
    """What was compared, as a list of facts."""
    data, teacher, noun = comparison["data"], comparison["teacher"], task.noun
    described = f", {data['description']}" if data["description"] else ""
    facts = [
        ("data", f"{data['name']}, {data['trained_on']:,} training {noun}{described}"),
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
        (f"{noun} visited", visits),
        ("evaluated on", f"{data['evaluated']:,} {data['evaluated_on']} {noun}, after the last step"),
        ("spread", f"sample standard deviation over {seeds} seed(s): initial weights, order of examples and their views; "
                   f"one teacher, one split. “vs {BASELINE}” is paired by seed, ± the half-width of its 95 % interval"),
        ("device", comparison["device"]),
        ("kdjax", __version__),
    ]  # fmt: skip


def shared_note(comparison: dict[str, Any]) -> list[str]:
    """What the spread does not cover, where seeds were trained together."""
    count = comparison.get("together")
    return [] if not count else [
        f"The {count} seeds of a method were trained together and share the order and the views of the examples: their spread "
        "is of initial weights and dropout alone. Where they were one program, times are each one's share."
    ]  # fmt: skip


def show_comparison(comparison: dict[str, Any], task: Task, console: Any) -> None:
    """The table of a comparison and what it says."""
    table = empty_table(comparison["name"], headings(comparison, task), 1)
    for row in rows_of(comparison, task):
        table.add_row(*row)
    console.print(table)
    data = comparison["data"]
    console.print(
        f"Mean ± standard deviation over seeds; {comparison['steps']:,} steps of {comparison['batch_size']} each; "
        f"{data['labelled']:,} of {data['trained_on']:,} training {task.noun} labelled; "
        f"{data['evaluated']:,} {data['evaluated_on']} {task.noun}."
    )
    for sentence in (*shared_note(comparison), *verdicts(comparison, task)):
        console.print(sentence)


def show_results(experiment: Experiment, results: dict[str, dict[str, Any]], folder: Path, console: Any) -> None:
    """The table of a run, a row a phase."""
    task, metric = experiment.data, experiment.data.metric
    last = [result["last"]["student"] for result in results.values()]
    columns = [column for column in task.columns if any(column.name in row for row in last)]
    titles = ("phase", "network", "parameters", metric.title, "best (step)", *(column.title for column in columns))
    table = empty_table(experiment.name, (*titles, f"{task.noun}/s", "time"), 2)
    for (name, result), row in zip(results.items(), last, strict=True):
        best = result.get("best")
        table.add_row(
            name, result["network"], f"{result['parameters']:,}", _cell(row, metric),
            f"{_cell(best['student'], metric)} ({best['step']})" if best else "–",
            *(_cell(row, column) for column in columns), _rate(result.get("examples_per_s")),
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


def show_evaluation(task: Task, results: dict[str, dict[str, Any]], console: Any) -> None:
    """The table of an evaluation, a row a network."""
    columns = [task.metric, *(c for c in task.columns if any(c.name in row for row in results.values()))]
    table = empty_table(None, ("network", "examples", *(column.title for column in columns)), 1)
    for name, row in results.items():
        table.add_row(name, row["examples"], *(_cell(row, column) for column in columns))
    console.print(table)


def cache_in_words(facts: dict[str, Any]) -> str:
    said = f"{facts['computed']:,} computed as {facts['storage']}, {facts['found']:,} found from earlier runs"
    if "largest_change" in facts:
        said += f"; keeping them changed a logit by {facts['largest_change']:.2g} at most"
    if "mass" in facts:
        said += f"; the classes kept have {100 * facts['mass']:.1f} % of the probability"
    return said


def empty_table(title: str | None, titles: tuple[str, ...], words: int) -> Any:
    """A table for the terminal; its first columns are words, the others numbers."""
    from rich import box
    from rich.table import Table

    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for i, heading in enumerate(titles):
        table.add_column(heading, justify="left" if i < words else "right", no_wrap=i == 0, overflow="fold")
    return table


def _cell(row: dict[str, float], column: Metric) -> str:
    return "–" if row.get(column.name) is None else column.text(row[column.name])


def _rate(value: float | None) -> str:
    return f"{value:,.0f}" if value else "–"


def _seconds(value: float | None) -> str:
    return f"{value:.0f} s" if value else "–"

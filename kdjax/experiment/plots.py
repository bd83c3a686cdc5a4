"""The two pictures that every comparison has: where every seed ended, and how training went."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

from kdjax.tasks import Task
from kdjax.training.writers import METRICS, read_metrics

COLOURS = ("#4c566a", "#1f77b4", "#d1495b", "#2a9d8f", "#8e6bbf", "#e09f3e", "#6c8ead", "#9b5de5")


def plain_texts(draw: Callable[..., None]) -> Callable[..., None]:
    """Draws with texts as they are: a name with two dollar signs is no formula."""

    @functools.wraps(draw)
    def plainly(*given: Any) -> None:
        import matplotlib

        with matplotlib.rc_context({"text.parse_math": False, "text.usetex": False}):
            draw(*given)

    return plainly


def figure(width: float, height: float):
    made, (axes,) = panels(1, width, height)
    return made, axes


def panels(count: int, width: float, height: float):
    """A figure with several axes side by side."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    made, row = pyplot.subplots(1, count, figsize=(width, height), layout="constrained", squeeze=False)
    for axes in row[0]:
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="both", color="#e8e8ee", linewidth=0.8)
        axes.set_axisbelow(True)
    return made, row[0]


@plain_texts
def plot_comparison(comparison: dict[str, Any], task: Task, path: Path) -> None:
    """One row a method: a dot a seed, a bar for mean ± sd; the teacher as a line."""
    methods, metric = comparison["methods"], task.metric
    made, axes = figure(7.2, 1.5 + 0.55 * len(methods))
    names = list(methods)[::-1]
    for row, name in enumerate(names):
        found = methods[name]["metrics"][metric.name]
        mean, sd = metric.scale * found["mean"], metric.scale * (found["sd"] or 0.0)
        colour = COLOURS[list(methods).index(name) % len(COLOURS)]
        values = [metric.scale * v for v in found["values"]]
        axes.errorbar(
            mean, row, xerr=sd, fmt="|", markersize=16, capsize=4, color=colour, linewidth=2, alpha=0.9,
        )  # fmt: skip
        axes.scatter(values, [row] * len(values), s=34, color=colour, alpha=0.6, zorder=3, edgecolors="white")
        axes.annotate(metric.text(found["mean"]), (mean, row), (0, 11), textcoords="offset points", ha="center",
                      fontsize=9, color=colour)  # fmt: skip
    if comparison["teacher"] is not None:
        value = metric.scale * comparison["teacher"]["metrics"][metric.name]
        axes.axvline(value, color="#111", linewidth=1, linestyle=(0, (4, 3)))
        axes.annotate(
            "teacher", (value, len(names) - 0.45), (-4, 0), textcoords="offset points", ha="right", fontsize=9
        )
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(-0.6, len(names) - 0.3)
    data = comparison["data"]
    axes.set_xlabel(f"{metric.title}, {data['evaluated']:,} {data['evaluated_on']} {task.noun}")
    axes.set_title("dots: seeds;  bars: mean ± standard deviation", fontsize=9, loc="left", color="#555")
    save(made, path)


@plain_texts
def plot_curves(comparison: dict[str, Any], task: Task, folder: Path, path: Path) -> None:
    """The metric over training: mean over seeds, and their range as a band."""
    metric = task.metric
    made, axes = figure(7.2, 3.6)
    for i, (name, summary) in enumerate(comparison["methods"].items()):
        curves: dict[int, list[float]] = {}
        for seed in summary["seeds"]:
            for file in (folder / name / f"seed{seed}").glob(f"*/{METRICS}"):
                for row in read_metrics(file):
                    if row["kind"] == "eval" and row.get(metric.name) is not None:
                        curves.setdefault(row["step"], []).append(metric.scale * row[metric.name])
        steps = sorted(step for step, values in curves.items() if len(values) == len(summary["seeds"]))
        if not steps:
            continue
        means = [sum(curves[s]) / len(curves[s]) for s in steps]
        colour = COLOURS[i % len(COLOURS)]
        axes.plot(steps, means, color=colour, label=name, linewidth=2, marker="o", markersize=3)
        axes.fill_between(steps, [min(curves[s]) for s in steps], [max(curves[s]) for s in steps], color=colour, alpha=0.15,
                          linewidth=0)  # fmt: skip
    if comparison["teacher"] is not None:
        axes.axhline(metric.scale * comparison["teacher"]["metrics"][metric.name], color="#111", linewidth=1,
                     linestyle=(0, (4, 3)), label="teacher")  # fmt: skip
    axes.set_xlabel("optimizer steps")
    axes.set_ylabel(metric.title)
    axes.legend(frameon=False, fontsize=9)
    axes.set_title("line: mean over seeds;  band: their range", fontsize=9, loc="left", color="#555")
    save(made, path)


def save(made, path: Path) -> None:
    from matplotlib import pyplot

    made.savefig(path, dpi=150)
    pyplot.close(made)

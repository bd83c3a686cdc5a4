"""Tables and pictures of the study of entropy."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from kdjax.experiment.plots import COLOURS, panels, plain_texts, save
from kdjax.studies.entropy_training import ERM, LARGE, SMALL, Arm
from kdjax.studies.finding import Table
from kdjax.studies.words import mean_of, points

Directions = Mapping[str, tuple[str, str]]


def factor(gain: Mapping[str, Any]) -> str:
    """A difference of logarithms as a ratio with its interval: "1.52 (1.40 to 1.65)"."""
    ends = [gain["mean"] + side * (gain["half_width"] or 0) for side in (-1, 1)]
    low, high = (f"{np.exp(end):.2f}" for end in ends)
    return f"{np.exp(gain['mean']):.2f}" + ("" if gain["half_width"] is None else f" ({low} to {high})")


def setting(arm: Arm) -> str:
    if arm == ERM:
        return "labels"
    return f"α = {arm.alpha:g}, T = {arm.temperature:g}" if arm.alpha else f"α = {arm.smoothing:g}"


def tables(
    found: Mapping[str, Any], said: Mapping[str, Any], tuned: Mapping[str, Any], chosen: Mapping[str, Any],
    directions: Directions,
) -> tuple[Table, ...]:  # fmt: skip
    made = []
    for name in found:
        made += [
            _students(name, found[name], said[name], chosen[name], directions),
            _versus(name, said[name], directions),
        ]
    return (*made, *(_grid(name, by) for name, by in tuned.items()))


def _students(
    name: str, found: Mapping[str, Any], said: Mapping[str, Any], chosen: Mapping[str, Arm], directions: Directions
) -> Table:
    rows: list[tuple[str, ...]] = [
        ("student", "learns by", "setting", "accuracy %", "entropy, nats", "ratio to labels (95 % interval)", "p (Holm)",
         "accuracy, points over labels", "p (Holm)", "NLL", "ECE %", "n")
    ]  # fmt: skip
    for size in (SMALL, LARGE):
        arms = [f"{size}, labels", f"{size}, smoothing", *(f"{d} KD" for d, (_, s) in directions.items() if s == size)]
        for arm in arms:
            by, ratio, gain = found[arm], said["entropy"].get(arm), said["top1"].get(arm)
            rows.append((
                size, arm.removeprefix(f"{size}, "), setting(chosen[arm]) if arm in chosen else "",
                mean_of(by["top1"], 100, 2), mean_of(by["entropy"], 1, 3), factor(ratio) if ratio else "1", _p(ratio),
                points(gain, 2).removesuffix(" points") if gain else "", _p(gain), mean_of(by["nll"], 1, 3),
                mean_of(by["ece"], 100, 1), str(len(by["top1"])),
            ))  # fmt: skip
    note = (
        "Mean ± standard deviation over seeds. The networks by labels are the control of the other rows of their size, and the "
        "teachers: the large ones of standard KD, the small ones of self and of reverse KD."
    )
    return Table(f"{name.capitalize()}: what students say", rows, note)


def _versus(name: str, said: Mapping[str, Any], directions: Directions) -> Table:
    ratios = said["entropy"]
    rows: list[tuple[str, ...]] = [
        ("entropy of", "over that of", "ratio (95 % interval)", "p (Holm)", "higher in", "n")
    ]
    add = lambda of, over, gain: rows.append(
        (of, over, factor(gain), _p(gain), f"{gain['better']} of {len(gain['values'])}", str(len(gain["values"])))
    )
    for direction, (teacher, student) in directions.items():
        add(f"{direction} KD", f"{student}, smoothing", ratios[f"{direction} KD / smoothing"])
        if teacher != student:
            add(f"its teacher ({teacher}, labels)", f"{student}, labels", ratios[f"teacher, {direction}"])
    add("standard KD, smoothed teacher", "standard KD", ratios["standard KD, smoothed teacher"])
    note = "Holm's correction is over these and the ratios to labels of the table above."
    return Table(f"{name.capitalize()}: is it smoothing, and does it follow the teacher?", rows, note)


def _grid(name: str, tuned: Mapping[str, Any]) -> Table:
    rows: list[tuple[str, ...]] = [
        ("student", "setting", "accuracy %", "entropy, nats", "ratio to labels", "NLL", "ECE %")
    ]
    for arm, tries in tuned.items():
        alone = tries[0]["entropy"]
        for t in tries:
            rows.append((arm, setting(t["arm"]), f"{100 * t['top1']:.2f}", f"{t['entropy']:.3f}",
                         f"{t['entropy'] / alone:.2f}", f"{t['nll']:.3f}", f"{100 * t['ece']:.1f}"))  # fmt: skip
    return Table(
        f"{name.capitalize()}: every setting tried", rows, "Validation examples; means over the seeds for choosing."
    )


def _p(gain: Mapping[str, Any] | None) -> str:
    return f"{gain['p_holm']:.2g}" if gain and "p_holm" in gain else "" if gain is None else "–"


@plain_texts
def plot_ratios(said: Mapping[str, Any], directions: Directions, path: Path) -> None:
    names = [
        name for size in (SMALL, LARGE)
        for name in (f"{size}, smoothing", *(f"{d} KD" for d, (_, s) in directions.items() if s == size))
    ][::-1]  # fmt: skip
    made, row = panels(len(said), 10.0, 3.4)
    for axes, (domain, by) in zip(row, said.items(), strict=True):
        for place, name in enumerate(names):
            gain, colour = by["entropy"][name], COLOURS[2] if "smoothing" in name else COLOURS[1]
            middle, half = np.exp(gain["mean"]), gain["half_width"] or 0
            spans = [[middle - np.exp(gain["mean"] - half)], [np.exp(gain["mean"] + half) - middle]]
            axes.errorbar([middle], [place], xerr=spans, fmt="o", capsize=3, markersize=6, color=colour)
            axes.scatter(np.exp(gain["values"]), [place] * len(gain["values"]), s=10, color=colour, alpha=0.4)
            teacher = by["entropy"].get(f"teacher, {name.removesuffix(' KD')}")
            if teacher:
                axes.plot([np.exp(teacher["mean"])], [place], "D", markersize=7, color="#111", fillstyle="none",
                          label="its teacher" if name == "standard KD" else None)  # fmt: skip
        axes.axvline(1, color="#111", linewidth=1)
        axes.set_xscale("log")
        low, high = axes.get_xlim()
        ticks = [tick for tick in (0.1, 0.2, 0.35, 0.5, 0.7, 1, 1.5, 2, 3, 5, 10) if low <= tick <= high]
        axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        axes.minorticks_off()
        axes.set_yticks(range(len(names)), names if axes is row[0] else [""] * len(names))
        axes.set_title(domain, fontsize=10, loc="left")
        axes.set_xlabel("entropy over that by labels alone; mean, 95 % interval, every seed", fontsize=8)
    row[-1].legend(frameon=False, fontsize=8)
    save(made, path)


@plain_texts
def plot_grid(tuned: Mapping[str, Any], directions: Directions, path: Path) -> None:
    made, row = panels(len(directions), 10.0, 3.4)
    for axes, (direction, (teacher, student)) in zip(row, directions.items(), strict=True):
        tries = tuned[f"{direction} KD"]
        alone, temperatures = tries[0]["entropy"], sorted({t["arm"].temperature for t in tries[1:]})
        lines = {"smoothing": [(t["arm"].smoothing, t["entropy"]) for t in tuned[f"{student}, smoothing"][1:]]}
        for temperature in temperatures:
            lines[f"KD, T = {temperature:g}"] = [
                (t["arm"].alpha, t["entropy"]) for t in tries[1:] if t["arm"].temperature == temperature
            ]
        for i, (title, ends) in enumerate(lines.items()):
            colour = COLOURS[2] if title == "smoothing" else COLOURS[(1, 3, 4, 5, 6)[(i - 1) % 5]]
            axes.plot(*zip((0.0, alone), *ends, strict=True), "o-", markersize=4, color=colour, label=title)
        axes.axhline(tries[0]["teacher"], color="#111", linewidth=1, linestyle=(0, (4, 3)), label="teacher")
        axes.set_title(f"{direction}: {teacher} to {student}", fontsize=10, loc="left")
        axes.set_xlabel("α (0: labels alone)")
        axes.set_ylim(bottom=0)
    row[0].set_ylabel("mean entropy, nats")
    row[0].legend(frameon=False, fontsize=7)
    save(made, path)

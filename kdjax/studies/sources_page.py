"""Tables and pictures of the study of sources."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from kdjax.experiment.plots import COLOURS, figure, panels, plain_texts, save
from kdjax.studies.finding import Table
from kdjax.studies.sources_training import LABELS, LAYERS
from kdjax.studies.words import difference, mean_of, points

COLOUR = {LABELS: COLOURS[0], "logits": COLOURS[1], "features": COLOURS[2], "gradients": COLOURS[3]}
AXES = {"classes": "classes", "images": "images", "width": "width of the student"}
Gains = Mapping[Any, Mapping[str, Any]]


def tables(
    found: Mapping[str, Any], said: Mapping[str, Any], tuned: Mapping[str, Any], ratios: Mapping[str, float],
    kind_of: Mapping[str, str], chosen: Mapping[str, str], axes: Mapping[str, Any], later: Mapping[str, Any],
    errors: Mapping[float, Any], facts: Mapping[str, Any],
) -> tuple[Table, ...]:  # fmt: skip
    return (
        _sources(found, said["over_labels"], kind_of, ratios), _between(said["between"], chosen),
        _settings(axes, said["along"], chosen), _changes(said["changes"], said["along"]),
        _later(later, said["later"]), _alike(found, said["cka_over_labels"]), _orders(errors), _trained(found),
        _tuned(tuned, facts),
    )  # fmt: skip


def _sources(found: Mapping[str, Any], gains: Gains, kind_of: Mapping[str, str], ratios: Mapping[str, float]) -> Table:
    rows: list[tuple[str, ...]] = [
        ("source", "kind", "top-1 %", "over labels, points", "p (Holm)", "agreement %", "KL from the teacher, nats", "factor",
         "n")
    ]  # fmt: skip
    for name, by in found.items():
        gain, p = (points(gains[name], 2).removesuffix(" points"), _p(gains[name])) if name in gains else ("", "")
        rows.append((
            name, kind_of.get(name, "–"), mean_of(by["top1"], 100, 2), gain, p, mean_of(by["agreement"], 100, 1),
            mean_of(by["kl"], 1, 3), f"{ratios[name]:g}" if name in ratios else "", str(len(by["top1"])),
        ))  # fmt: skip
    note = (
        "Mean ± standard deviation over seeds, which are initial weights and images drawn; one teacher. Differences are paired "
        "by seed, with half their 95 % interval; p is corrected for all sources. factor: of the weight that makes gradients as "
        "large. drawn F: of one class drawn from the teacher at each visit."
    )
    return Table("Labels and one source", rows, note)


def _between(gains: Gains, chosen: Mapping[str, str]) -> Table:
    rows: list[tuple[str, ...]] = [("the best of", "less the best of", "points", "p (Holm)", "n")]
    for (a, b), gain in gains.items():
        title = lambda kind: f"{kind} ({chosen[kind]})"
        rows.append((title(a), title(b), points(gain, 2).removesuffix(" points"), _p(gain), str(len(gain["values"]))))
    note = "Best by validation images with another seed: logits and gradients had more to choose from than features."
    return Table("One kind against another", rows, note)


def _settings(axes: Mapping[str, Any], along: Mapping[str, Any], chosen: Mapping[str, str]) -> Table:
    rows: list[tuple[str, ...]] = [("", "", "teacher %", "labels %", *(f"{k}, gain" for k in chosen), "n")]
    for axis, levels in axes.items():
        for level, cell in levels.items():
            labels = cell["students"][LABELS]["top1"]
            gains = [points(along[axis][level][kind], 2).removesuffix(" points") for kind in chosen]
            rows.append((AXES[axis], f"{level:,}", f"{100 * cell['teacher']:.1f}", mean_of(labels, 100, 2), *gains,
                         str(len(labels))))  # fmt: skip
    note = (
        "Points of top-1 over labels alone in the same setting, with half the 95 % interval, not corrected. "
        "Fewer classes are harder ones, of 1,000 images each, and fewer test images. A student as wide as the teacher has no "
        "projection."
    )
    return Table("When", rows, note)


def _changes(changes: Gains, along: Mapping[str, Any]) -> Table:
    rows: list[tuple[str, ...]] = [("from", "to", "kind", "its gain over labels changes by, points", "p (Holm)", "n")]
    for (axis, kind), gain in changes.items():
        ends = (
            f"{end(along[axis]):,} {axis}" if axis != "width" else f"width {end(along[axis])}" for end in (min, max)
        )
        rows.append((*ends, kind, points(gain, 2).removesuffix(" points"), _p(gain), str(len(gain["values"]))))
    return Table("What changes a gain", rows, "The gain at one end less that at the other, of the same seeds.")


def _later(later: Mapping[str, Any], gains: Gains) -> Table:
    parts = ("old", "new", "old among old", "new among new", "mean")
    rows: list[tuple[str, ...]] = [
        ("", "factor", *(f"{part} %" for part in parts), "mean, over labels", "p (Holm)", "n")
    ]
    before = later["before"]
    rows.append(("before", "", *(f"{100 * before[part]:.2f}" for part in parts), "", "", "1"))
    for kind, by in later["found"].items():
        gain = (points(gains[kind], 2).removesuffix(" points"), _p(gains[kind])) if kind in gains else ("", "")
        title = f"{kind} ({later['sources'][kind]})" if kind in gains else kind
        factor = f"{later['factors'][kind]:g}" if kind in gains else ""
        cells = [mean_of(by[part], 100, 2) for part in parts]
        rows.append((title, factor, *cells, *gain, str(len(by["mean"]))))
    note = (
        "Test images of old and of new classes, told apart among all ten, and among the five of their part; mean: of the latter "
        "two, since among all ten little that is old survives without an old image, whatever the source. The best of each kind "
        "above, but for the gradient at the label, which an old teacher of new classes has not."
    )
    return Table("Class after class: what its former self keeps a network from forgetting", rows, note)


def _alike(found: Mapping[str, Any], gains: Gains) -> Table:
    rows: list[tuple[str, ...]] = [("source", *LAYERS, "embedding, over labels", "p (Holm)", "n")]
    for name, by in found.items():
        cells = [mean_of([c[i][i] for c in by["cka"]], 1, 3) for i in range(len(LAYERS))]
        gain = (difference(gains[name], 1, 3), _p(gains[name])) if name in gains else ("", "")
        rows.append((name, *cells, *gain, str(len(by["cka"]))))
    return Table("CKA of a layer with the teacher's same layer", rows, "Before the projection. Labels are the control.")


def _orders(errors: Mapping[float, Any]) -> Table:
    rows = [("||Δ||", "median error %", "95th percentile %")]
    rows += [(f"{gap:g}", f"{100 * e['median']:.3g}", f"{100 * e['p95']:.3g}") for gap, e in errors.items()]
    note = (
        "|second order / KL - 1| at gaps of the logits in directions of chance, over test images, from the teacher's own "
        "logits; float64, T = 1."
    )
    return Table("Is second-order KD the KL divergence for small gaps?", rows, note)


def _trained(found: Mapping[str, Any]) -> Table:
    rows: list[tuple[str, ...]] = [("source", "||Δ||, median image", "KL, nats", "second order, nats", "ratio", "n")]
    for name, by in found.items():
        ratio = np.asarray(by["second_order"]) / np.asarray(by["kl"])
        rows.append((
            name, mean_of(by["gap"], 1, 2), mean_of(by["kl"], 1, 3), mean_of(by["second_order"], 1, 3), mean_of(ratio, 1, 2),
            str(len(ratio)),
        ))  # fmt: skip
    note = "Means over test images; Δ is the gap of centred logits between student and teacher."
    return Table("And at the gaps that trained students have?", rows, note)


def _tuned(tuned: Mapping[str, Any], facts: Mapping[str, Any]) -> Table:
    columns = (0.0, *facts["ratios"])
    rows: list[tuple[str, ...]] = [("source", *(f"factor {ratio:g}" for ratio in columns))]
    rows += [
        (name, *(f"{100 * by[ratio]:.2f}" if ratio in by else "–" for ratio in columns)) for name, by in tuned.items()
    ]
    note = (
        f"Top-1 % of {facts['validation']:,} validation images, one seed. Of labels it is the factor of their cross-entropy once "
        "more, that is, of the step. In a first run at a rate of 0.05 a factor of 10 gave labels 5 points: sources and labels "
        "differed by their steps. The rate was raised for that."
    )
    return Table("How weights were found", rows, note)


def _p(gain: Mapping[str, Any]) -> str:
    return f"{gain['p_holm']:.2g}" if "p_holm" in gain else "–"


@plain_texts
def plot_gains(gains: Gains, kind_of: Mapping[str, str], path: Path) -> None:
    names = list(gains)[::-1]
    made, axes = figure(7.2, 1.0 + 0.36 * len(names))
    for kind in dict.fromkeys(kind_of.values()):
        places = [row for row, name in enumerate(names) if kind_of[name] == kind]
        shown = [gains[names[row]] for row in places]
        axes.errorbar(
            [100 * g["mean"] for g in shown], places, xerr=[100 * (g["half_width"] or 0) for g in shown], fmt="o", capsize=3,
            markersize=6, color=COLOUR[kind], label=kind,
        )  # fmt: skip
        for gain, row in zip(shown, places, strict=True):
            values = [100 * value for value in gain["values"]]
            axes.scatter(values, [row] * len(values), s=10, color=COLOUR[kind], alpha=0.45)
    axes.axvline(0, color="#111", linewidth=1)
    axes.set_yticks(range(len(names)), names)
    axes.set_xlabel("points of top-1 over labels alone; mean, 95 % interval, and every seed")
    axes.legend(frameon=False, fontsize=8)
    save(made, path)


@plain_texts
def plot_axes(along: Mapping[str, Any], chosen: Mapping[str, str], usual: Mapping[str, int], path: Path) -> None:
    made, row = panels(len(along), 10.0, 3.6)
    for axes, (axis, levels) in zip(row, along.items(), strict=True):
        for i, kind in enumerate(chosen):
            places = [level * 1.06 ** (i - 1) for level in levels]
            gains = [by[kind] for by in levels.values()]
            axes.errorbar(
                places, [100 * g["mean"] for g in gains], yerr=[100 * (g["half_width"] or 0) for g in gains], fmt="o-",
                capsize=3, markersize=5, color=COLOUR[kind], label=f"{kind}: {chosen[kind]}",
            )  # fmt: skip
        axes.axhline(0, color="#111", linewidth=1)
        axes.set_xscale("log")
        axes.set_xticks(list(levels), [f"{level:,}" for level in levels])
        axes.minorticks_off()
        axes.set_xlabel(f"{AXES[axis]} ({usual[axis]:,} elsewhere)")
    row[0].set_ylabel("points of top-1 over labels alone")
    row[-1].legend(frameon=False, fontsize=7)
    save(made, path)


@plain_texts
def plot_alignment(found: Mapping[str, Any], shown: Mapping[str, str], names: Sequence[str], path: Path) -> None:
    made, row = panels(len(shown), 2.8 * len(shown), 3.6)
    for axes, (kind, name) in zip(row, shown.items(), strict=True):
        mean = np.mean(found[name]["cka"], axis=0)
        axes.imshow(mean, vmin=0, vmax=1, cmap="viridis", origin="lower")
        axes.grid(visible=False)
        for i, j in np.ndindex(*mean.shape):
            axes.text(j, i, f"{mean[i, j]:.2f}", ha="center", va="center", fontsize=8,
                      color="white" if mean[i, j] < 0.6 else "black")  # fmt: skip
        axes.set_xticks(range(len(names)), names, rotation=30, ha="right", fontsize=8)
        axes.set_yticks(range(len(names)), names if axes is row[0] else [""] * len(names), fontsize=8)
        axes.set_xlabel("the teacher's layer", fontsize=8)
        axes.set_title(name if kind == name else f"{kind}: {name}", fontsize=8)
    row[0].set_ylabel("the student's layer", fontsize=8)
    save(made, path)

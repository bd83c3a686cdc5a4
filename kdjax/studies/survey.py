"""Which methods win at one budget, and what do teacher, temperature and augmentation do? (Ruffy, Chahal, 2019)"""

import dataclasses
import itertools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from kdjax.analysis.statistics import LEVEL, holm, paired_gain
from kdjax.experiment.config import load_config
from kdjax.experiment.plots import COLOURS, figure, plain_texts, save
from kdjax.experiment.run import run
from kdjax.experiment.spec import Experiment
from kdjax.experiment.tables import clear, interval, mean_sd
from kdjax.objectives import KD, CrossEntropy, Objective, method, reads_teacher
from kdjax.schedules import Cosine, Duration, WarmUp, percent, steps
from kdjax.studies.finding import Finding, Size, Table
from kdjax.studies.students import train
from kdjax.tasks import Task
from kdjax.training.metrics import Metric
from kdjax.training.optimizers import SGD

PAPERS = ("Ruffy, Chahal, The State of Knowledge Distillation for Classification, 2019, arXiv 1912.10850",)
METRIC = Metric("top1", "top-1 %", 100, 2, unit="points")
LABELS, TUNED = "labels", "kd tuned"
FEATURES = ("feature", "relational", "contrastive")  # families that the paper sets KD against
METHODS = {
    "tiny": (LABELS, "kd", "at"),
    "default": (LABELS, "kd", "uda_kd", "dkd", "fitnet", "at", "rkd"),
    "full": (
        LABELS, "hard_label", "kd", "uda_kd", "dkd", "dist", "lskd", "fitnet", "at", "vid", "reviewkd", "rkd", "sp", "pkt", "cc",
        "crd",
    ),
}  # fmt: skip
TEACHERS = {"small": 8, "medium": 16, "large": 32}
GRID = {
    "tiny": ((0.5, 1.0), (5.0,)),
    "default": ((0.1, 0.5, 1.0), (1.0, 5.0, 20.0)),
    "full": ((0.1, 0.4, 0.5, 0.7, 1.0), (1.0, 5.0, 10.0, 15.0, 20.0)),
}
OWN = {"kd": (0.5, 5.0)}  # of the paper, whose uda_kd is in the catalogue


def study(size: Size, folder: Path, *, announce: Callable[[str], None], **options: Any) -> Finding:
    """One student by every method with and without augmentation; KD by teacher; KD by weight and temperature."""
    seeds = tuple(range({"tiny": 2, "default": 3, "full": 10}[size]))
    base = experiment(size, folder)
    teachers = train_teachers(base, size, folder, announce, **options)
    common = {"announce": announce, **options}
    alphas, temperatures = GRID[size]
    points = {f"α={a:g}, T={t:g}": (a, t) for a, t in itertools.product(alphas, temperatures)}
    tuned = train(
        students_of(base, "medium", {n: mixed(*p) for n, p in points.items()}, data=base.data.tuned()),
        seeds[:2], folder / "students" / "grid", **common,
    )  # fmt: skip
    chosen = max(points, key=lambda name: tuned[name]["metrics"]["top1"]["mean"])
    announce(f"chosen on validation images: {chosen}")
    objectives = {name: mixed(*OWN[name]) if name in OWN else method(name).objective for name in METHODS[size]}
    objectives |= (
        {} if points[chosen] == OWN["kd"] else {TUNED: mixed(*points[chosen])}
    )  # it may be the one that is there
    plain = dataclasses.replace(base.data, views=dataclasses.replace(base.data.views, crop_padding=0, flip=False))
    runs = {
        "with": train(students_of(base, "medium", objectives), seeds, folder / "students" / "with", **common),
        "without": train(
            students_of(base, "medium", objectives, data=plain), seeds, folder / "students" / "without", **common
        ),
    }
    sweep = {
        name: train(students_of(base, name, {"kd": objectives["kd"]}), seeds, folder / "students" / name, **common)["kd"]
        for name in TEACHERS if name != "medium"
    } | {"medium": runs["with"]["kd"]}  # fmt: skip
    top1 = {way: {n: m["metrics"]["top1"] for n, m in by.items()} for way, by in runs.items()}
    swept = {name: sweep[name]["metrics"]["top1"] for name in TEACHERS}
    facts = {"steps": base.student.duration.amount, "batch": base.data.batch_size, "validation": base.data.validation}
    return finding(
        folder, top1, swept, teachers, {n: tuned[n]["metrics"]["top1"] for n in points}, points, chosen, facts
    )


def finding(folder, top1, swept, teachers, tuned, points, chosen, facts) -> Finding:
    """What the runs say together."""
    seeds, found = len(top1["with"][LABELS]["values"]), compared(top1, swept)
    plot(top1, folder / "methods.png")
    return Finding(
        question="Which methods win at one budget?",
        papers=PAPERS,
        design=(
            f"small_cnn of width {TEACHERS['medium']}, trained with crops and flips, teaches small_cnn of width 8 on 10,000 "
            f"embedded images of Fashion-MNIST, all labelled. Every method has {facts['steps']:g} steps of "
            f"{facts['batch']} images, the same optimizer, and {seeds} seeds, the same for all; "
            "its settings are those of its source, of CIFAR-100, and KD and UDA-KD those of the paper (half the weight, T = 5). "
            f"UDA-KD sees two views of an image a step, the others one. {TUNED} is KD with the weight α and the temperature "
            f"that were best of {len(points)} on {facts['validation']:,} validation images, "
            f"{len(tuned[chosen]['values'])} seeds (it has no row if these are kd's own). With: crops and flips of the student's "
            "images; without: none. Sweep: KD from teachers of width "
            f"{', '.join(map(str, TEACHERS.values()))}. Top-1 on test images after the last step."
        ),
        verdict=verdict(found, top1, chosen, teachers, swept, facts['steps']),
        published=(
            "The paper says that well tuned KD with strong augmentation beats most feature methods; its tables were not "
            "available to us. It trains for 100 epochs on CIFAR; the sweep of temperatures in its released code never changes "
            "T. Here budgets are short, which does not suit augmentation, images grey, augmentation is weak but for UDA-KD's, "
            "and feature losses have weights that were published for other networks: a method that loses here may win with "
            "weights of its own. No test of a shift such as CIFAR-10.1 was made."
        ),
        tables=(_methods(top1, found), _sweep(teachers, swept), _grid(tuned, points, chosen)),
        pictures=(("Methods with and without augmentation", "top-1 by method", folder / "methods.png"),),
        numbers={
            "top1": top1, "compared": found, "sweep": {"teachers": teachers, "students": swept}, "chosen": chosen,
            "grid": tuned, "facts": facts,
        },
    )  # fmt: skip


# --- networks ---


def experiment(size: Size, folder: Path) -> Experiment:
    """A teacher and its student."""
    made = load_config("fashion_mnist/few_labels")("kd")
    network = dataclasses.replace(made.phase("teacher").network, width=TEACHERS["medium"])
    made = made.replace_phase("teacher", network=network, duration=steps(600))
    rate = 0.05 * (WarmUp(length=percent(10)) * Cosine())
    made = made.replace_phase(
        "student", duration=steps(6000 if size == "full" else 300),
        optimizer=SGD(learning_rate=rate, nesterov=True, weight_decay=5e-4, clip=5.0),
    )  # fmt: skip
    made = dataclasses.replace(
        made, name="survey", data=dataclasses.replace(made.data, labelled=0, eval_batch_size=500),
        evaluate_every=Duration(100, "percent"), checkpoint_every=Duration(100, "percent"), cache_dir=str(folder / "cache"),
    )  # fmt: skip
    return made.tiny() if size == "tiny" else made


def train_teachers(base, size, folder, announce, *, overwrite, progress, data_dir) -> dict[str, float]:
    """Top-1 of every teacher, by name, after it is trained in `teachers/NAME`."""
    found = {}
    for name in TEACHERS:
        announce(f"teacher {name}")
        alone = dataclasses.replace(of_width(base, name), phases=of_width(base, name).phases[:1])
        place = folder / "teachers" / name
        result = run(alone, place, resume=place.exists() and not overwrite, overwrite=overwrite, progress=progress)
        found[name] = result["teacher"]["last"]["student"]["top1"]
    return found


def of_width(base: Experiment, teacher: str) -> Experiment:
    """The experiment with a teacher of this size; a tiny one keeps its own."""
    network, tiny = base.phase("teacher").network, base.name.endswith("tiny")
    return base.replace_phase(
        "teacher", network=network if tiny else dataclasses.replace(network, width=TEACHERS[teacher])
    )


def students_of(
    base: Experiment, teacher: str, objectives: Mapping[str, Objective], data: Task | None = None
) -> dict[str, Experiment]:
    """Experiments that train the student by each objective, taught by a finished teacher."""
    base = of_width(base, teacher).replace_phase("teacher", weights=f"../../../teachers/{teacher}/teacher")
    base = dataclasses.replace(base, data=data or base.data)
    return {
        name: base.replace_phase("student", objective=objective, teacher_cache="float32" if kept(objective) else "")
        for name, objective in objectives.items()
    }


def kept(objective: Objective) -> bool:
    """Whether all that the objective reads of its teacher are the logits of the main view, which are then kept for all runs."""
    reads = [read for part in objective.parts for read in part.reads]
    views = {view for part in objective.parts for view in getattr(part, "views", ("main",))}
    logits = all(read.startswith(("student.", "teacher.logits", "labels")) for read in reads)
    return reads_teacher(objective.parts) and logits and views <= {"main"}


def mixed(alpha: float, temperature: float) -> Objective:
    """(1 - α) cross-entropy + α KD, as the paper has it."""
    soft = alpha * KD(temperature=temperature)
    return soft if alpha == 1 else (1 - alpha) * CrossEntropy() + soft


# --- what they say ---


def compared(top1: dict[str, dict[str, Any]], swept: dict[str, Any]) -> dict[str, Any]:
    """Differences paired by seed: of methods to labels, of tuned KD to each, of augmentation by method, of teachers."""
    between = lambda one, other: paired_gain(one["values"], other["values"])
    gains = {way: {n: between(v, by[LABELS]) for n, v in by.items() if n != LABELS} for way, by in top1.items()}
    for by in gains.values():
        for name, p in holm({n: gain["p"] for n, gain in by.items()}).items():
            by[name]["p_holm"] = p
    ranked = {way: sorted(by, key=lambda n: -by[n]["mean"]) for way, by in top1.items()}
    pairs = list(itertools.combinations(top1["with"], 2))
    order = lambda way, a, b: ranked[way].index(a) < ranked[way].index(b)
    tuned = TUNED if TUNED in top1["with"] else "kd"
    return {
        "gains": gains, "tuned": tuned, "ranked": ranked,
        "same_order": sum(order("with", *p) == order("without", *p) for p in pairs) / len(pairs),
        "best_two": {way: between(*(by[n] for n in ranked[way][:2])) for way, by in top1.items()},
        "tuned_over": {n: between(top1["with"][tuned], v) for n, v in top1["with"].items() if n != tuned},
        "augmentation": {n: between(v, top1["without"][n]) for n, v in top1["with"].items()},
        "large_over_small": between(swept["large"], swept["small"]),
    }  # fmt: skip


def verdict(found, top1, chosen, teachers, swept, steps) -> str:
    """Who wins, and whether more than by chance."""
    said = lambda gain: f"{METRIC.change(gain['mean'])}, {interval(gain, METRIC)}"
    better = lambda gain: "is better than" if clear(gain) else "is not distinguishable from"
    (first, second), plain = found["ranked"]["with"][:2], found["ranked"]["without"][:2]
    above = [
        n for n, g in found["gains"]["with"].items() if g.get("p_holm", 1.0) < LEVEL and g["mean"] > 0
    ]  # fmt: skip
    features = [n for n in found["tuned_over"] if method(n).family in FEATURES]
    beaten = [n for n in features if clear(found["tuned_over"][n]) and found["tuned_over"][n]["mean"] > 0]
    beating = [n for n in features if clear(found["tuned_over"][n]) and found["tuned_over"][n]["mean"] < 0]
    moved = [f"{n} ({METRIC.change(g['mean'])})" for n, g in found["augmentation"].items() if clear(g)]
    large = found["large_over_small"]
    return (
        f"After {steps:g} steps, with augmentation, {first} has the highest top-1 ({METRIC.text(top1['with'][first]['mean'])} %) "
        f"and {better(found['best_two']['with'])} {second}, the second ({said(found['best_two']['with'])}, "
        f"{len(large['values'])} seeds). Above labels by Holm's correction: {', '.join(above) or 'none'}. Tuned KD ({chosen}) is "
        f"clearly above {', '.join(beaten) or 'none'} of the {len(features)} feature methods and clearly below "
        f"{', '.join(beating) or 'none'}. Without augmentation {100 * found['same_order']:.0f} % of the pairs of methods keep "
        f"their order, and the best, {plain[0]}, {better(found['best_two']['without'])} {plain[1]} "
        f"({said(found['best_two']['without'])}); augmentation changes "
        f"{', '.join(moved) or 'no method'} clearly. KD from the large teacher ({METRIC.text(teachers['large'])} %) "
        f"{'differs from' if clear(large) else 'is not distinguishable from'} that from the small one "
        f"({METRIC.text(teachers['small'])} %): {said(large)}."
    )


@plain_texts
def plot(top1: dict[str, dict[str, Any]], path: Path) -> None:
    names = sorted(top1["with"], key=lambda n: top1["with"][n]["mean"])
    made, axes = figure(7.2, 1.2 + 0.36 * len(names))
    for i, (way, by) in enumerate(top1.items()):
        places = [row + 0.12 - 0.24 * i for row in range(len(names))]
        axes.errorbar(
            [100 * by[n]["mean"] for n in names], places, xerr=[100 * (by[n]["sd"] or 0) for n in names], fmt="o",
            color=COLOURS[1 + i], capsize=3, markersize=5, label=f"{way} augmentation",
        )  # fmt: skip
    axes.set_yticks(range(len(names)), names)
    axes.set_xlabel("top-1 %, mean and standard deviation over seeds")
    axes.legend(frameon=False, fontsize=8)
    save(made, path)


def _methods(top1: dict[str, dict[str, Any]], found: dict[str, Any]) -> Table:
    rows = [
        ("method", "with, %", "over labels", "p (Holm)", "without, %", "over labels", "p (Holm)", "augmentation", "n")
    ]
    said = lambda gain: f"{100 * gain['mean']:+.2f} ± {100 * gain['half_width']:.2f}"
    for name in found["ranked"]["with"]:
        row = [name]
        for way in ("with", "without"):
            gain = found["gains"][way].get(name)
            row.append(mean_sd(top1[way][name], METRIC))
            row += ["", ""] if gain is None else [said(gain), f"{gain['p_holm']:.2g}" if "p_holm" in gain else "–"]
        rows.append((*row, said(found["augmentation"][name]), str(len(top1["with"][name]["values"]))))
    return Table(
        "Methods at one budget, best first",
        rows,
        "Mean ± standard deviation; differences with half their 95 % interval.",
    )


def _sweep(teachers: dict[str, float], swept: dict[str, Any]) -> Table:
    rows = [("teacher", "width", "its top-1 %", "student by KD, %", "n")]
    for name, width in TEACHERS.items():
        values = swept[name]
        rows.append(
            (name, str(width), METRIC.text(teachers[name]), mean_sd(values, METRIC), str(len(values["values"])))
        )
    return Table("Teachers of rising size", rows, "With augmentation; each teacher is one network.")


def _grid(tuned: dict[str, Any], points: dict[str, tuple[float, float]], chosen: str) -> Table:
    rows = [("α", "T", "validation %", "n", "")]
    for name, (alpha, temperature) in points.items():
        values = tuned[name]
        mark = "chosen" if name == chosen else ""
        rows.append((f"{alpha:g}", f"{temperature:g}", mean_sd(values, METRIC), str(len(values["values"])), mark))
    return Table(
        "KD by weight and temperature", rows, "(1 - α) cross-entropy + α T² KL; with augmentation, validation images."
    )

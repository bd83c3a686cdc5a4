"""Does distillation transfer knowledge, or regularise? (Mason-Williams et al., arXiv 2510.12615)"""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from kdjax.analysis import functional_similarity
from kdjax.analysis.statistics import holm, paired_gain, rank_sum
from kdjax.data.fashion_mnist import embedded
from kdjax.experiment.plots import COLOURS, panels, plain_texts, save
from kdjax.experiment.program import Builder
from kdjax.experiment.spec import Experiment
from kdjax.objectives import KD, CrossEntropy, Objective
from kdjax.studies.finding import Finding, Size, Table
from kdjax.studies.runs import alone, logits_of, of_seed, taught, train_each
from kdjax.studies.words import difference, falls, mean_of, points, rises

PAPERS = (
    "Mason-Williams, Mason-Williams, Yannakoudakis, Rethinking Knowledge Distillation: A Data Dependent Regulariser With a "
    "Negative Asymmetric Payoff, 2025, arXiv 2510.12615",
)
CONTROL = "SIDDO"
METRICS = {  # how a metric is called, and which way a student nearer to its teacher lies
    "js_divergence": ("JS divergence", "less"), "activation_distance": ("activation distance", "less"),
    "rank_disagreement": ("rank disagreement", "less"), "agreement": ("agreement", "greater"),
}  # fmt: skip
LEVEL = 0.05
Values = dict[str, dict[str, np.ndarray]]  # by condition and metric [teachers, orders]


def study(size: Size, folder: Path, *, announce: Callable[[str], None], **options: Any) -> Finding:
    """Students of several teachers, each with the teacher's own initial weights, by labels, by KD and by two false teachers."""
    teachers, orders, steps = {"tiny": (2, 2, 6), "default": (3, 4, 600), "full": (5, 10, 4000)}[size]
    strengths = {"tiny": (0.9,), "default": (0.9,), "full": (0.1, 0.5, 0.9)}[size]
    logits, labels = train(size, folder / "networks", teachers, orders, steps, strengths, announce=announce, **options)
    return finding(measured(logits, labels, teachers, orders), steps, folder / "similarity.png")


def finding(found: Values, steps: int, path: Path) -> Finding:
    """What the values say; its picture is drawn at `path`."""
    (teachers, orders), tests = found[CONTROL]["top1"].shape, ranks(found)
    gains = {
        name: {m: paired_gain(by[m].mean(1), found[CONTROL][m].mean(1)) for m in by if by[m].ndim == 2}
        for name, by in found.items() if name != CONTROL
    }  # fmt: skip
    strongest = [name for name in found if name.startswith("KD")][-1]
    payoff = asymmetry(found[strongest], found[CONTROL])
    plot(found, path)
    return Finding(
        question="Does distillation transfer knowledge, or regularise?",
        papers=PAPERS,
        design=(
            f"Self-distillation, where most could be transferred: small_cnn of width 8 teaches its like, {steps:,} steps of 64 "
            f"of 12,000 Fashion-MNIST images. {teachers} teachers; every student begins with its own teacher's initial weights, "
            f"and sees the images in one of {orders} other orders. {CONTROL} (same initialisation, different data order) has "
            "labels only. KD α is (1 - α) cross-entropy + α KL at T = 1. Two false teachers enter by the same loss: noise, a row "
            "of standard normal logits for each image, and shuffled, the teacher's own logits of another image of the same "
            "class, which have its confidence, its share of errors and its class similarities, and nothing of the image. All is "
            "measured on 4,000 test images against the student's own teacher, and against the others. Differences are of "
            f"the means over orders, paired by teacher; rank tests are of the {orders} orders of one teacher."
        ),
        verdict=verdict(found, gains, tests, payoff, strongest),
        published=(
            "The paper reports significant transfer in some architectures and modalities only, smaller than expected, and where "
            "there is any, that the teacher's errors are passed on more than what it has right (12 setups in its first version, "
            "22 in its second; its cells were not at hand, nor its code). Its formulas of the distances, its values of α and the "
            "noise of its random control were not verified; the shuffled teacher and the look at the other teachers are ours. "
            "Networks here are small, trained for few epochs, and far from fitting their labels; published ones fit them. The "
            "feature-map variants, other architectures and temperatures were not run."
        ),
        tables=(
            _similarity(found, gains), _tests(tests, teachers, orders), _payoff(found, gains),
        ),
        pictures=(
            ("How near to its teacher, every student", "JS divergence and share of same errors by condition",
path),
        ),
        numbers={
            "values": {n: {m: v.tolist() for m, v in by.items()} for n, by in found.items()}, "less_control": gains,
            "rank_tests": tests, "asymmetry": payoff,
        },
    )  # fmt: skip


def train(
    size: Size, folder: Path, teachers: int, orders: int, steps: int, strengths: tuple[float, ...], *,
    data_dir: str | None = None, **options: Any,
) -> tuple[dict[str, np.ndarray], np.ndarray]:  # fmt: skip
    """`(logits [N, C] of test images by name, labels [N])` of teachers "teacherK" and students "CONDITION-K-ORDER"."""
    builder, plain = Builder(data_dir), alone(size, width=8, steps=steps)
    first = {f"teacher{k}": of_seed(plain, f"teacher{k}", k, k) for k in range(teachers)}
    networks = train_each(first, folder, builder, **options)
    images, labels, _ = embedded("train")
    said = logits_of(networks, images[..., None])
    students: dict[str, Experiment] = {}
    rng = np.random.default_rng(0)
    noise = written(folder / "noise.npz", rng.normal(size=said["teacher0"].shape))
    for k in range(teachers):
        false = written(folder / f"shuffled{k}.npz", shuffled(said[f"teacher{k}"], labels, rng))
        kinds = {CONTROL: plain}
        kinds |= {f"KD {a:g}": taught(plain, mixed(a), [f"teacher{k}"], plain) for a in strengths}
        kinds |= {f"noise {a:g}": by_file(plain, mixed(a), noise) for a in strengths}
        kinds[f"shuffled {strengths[-1]:g}"] = by_file(plain, mixed(strengths[-1]), false)
        for kind, experiment in kinds.items():
            for order in range(orders):
                name = f"{kind.replace(' ', '_')}-{k}-{order}"
                students[name] = of_seed(experiment, name, k, 100 + order)
    networks |= train_each(students, folder, builder, **options)
    images, labels, _ = embedded("test")
    return logits_of(networks, images[..., None]), labels


def mixed(strength: float) -> Objective:
    """`(1 - α) CE + α KL`."""
    return (1 - strength) * CrossEntropy() + strength * KD(temperature=1.0)


def by_file(student: Experiment, objective: Objective, path: Path) -> Experiment:
    """The student with what a file says of the images for a teacher."""
    return student.replace_phase(student.student.name, objective=objective, teacher_outputs=str(path.absolute()))


def written(path: Path, logits: np.ndarray) -> Path:
    np.savez(path, logits=logits.astype(np.float32))
    return path


def shuffled(logits: np.ndarray, labels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Logits `[N, C]`, those of each class `[N]` in another order: nothing of an image is left but its class."""
    found = logits.copy()
    for label in np.unique(labels):
        rows = np.flatnonzero(labels == label)
        found[rows] = logits[rng.permutation(rows)]
    return found


def measured(logits: dict[str, np.ndarray], labels: np.ndarray, teachers: int, orders: int) -> Values:
    """Similarity of every student to its teacher, accuracy, and `own_agreement`, how much more
    it agrees with it than with the other teachers."""
    conditions = list(dict.fromkeys(name.split("-")[0] for name in logits if "-" in name))
    similarity = jax.jit(functional_similarity)
    found: Values = {}
    for condition in conditions:
        rows: dict[str, list[float]] = {}
        for k in range(teachers):
            for order in range(orders):
                own = logits[f"{condition}-{k}-{order}"]
                one = dict(similarity(own, logits[f"teacher{k}"], labels.astype(np.int32)))
                one["top1"] = np.mean(own.argmax(-1) == labels)
                others = [logits[f"teacher{i}"].argmax(-1) for i in range(teachers) if i != k]
                one["own_agreement"] = one["agreement"] - np.mean([np.mean(own.argmax(-1) == o) for o in others])
                for metric, value in one.items():
                    rows.setdefault(metric, []).append(float(value))
        found[condition.replace("_", " ")] = {m: np.reshape(v, (teachers, orders)) for m, v in rows.items()}
    return found


def ranks(found: Values) -> dict[str, dict[str, dict[str, Any]]]:
    """One-sided rank-sum tests by condition, control and metric: in how many teachers a true teacher's students are nearer to
    it than the control's, after Holm's correction over the teachers."""
    tests: dict[str, dict[str, dict[str, Any]]] = {}
    for name, by in found.items():
        if not name.startswith("KD"):
            continue
        for other, control in found.items():
            if other.startswith("KD"):
                continue
            tests.setdefault(name, {})[other] = {
                metric: _over_teachers(by[metric], control[metric], way) for metric, (_, way) in METRICS.items()
            }
    return tests


def _over_teachers(values: np.ndarray, control: np.ndarray, way: str) -> dict[str, Any]:
    p = {str(k): rank_sum(v, c, way)["p"] for k, (v, c) in enumerate(zip(values, control, strict=True))}
    adjusted = holm(p)
    return {"p": p, "p_holm": adjusted, "teachers": sum(value < LEVEL for value in adjusted.values())}


def asymmetry(by: dict[str, np.ndarray], control: dict[str, np.ndarray]) -> dict[str, Any]:
    """How much more the share of the teacher's errors rises over the control than that of what it has right: `points`, as the
    paper asks, and `of_room`, each rise as a share of what there was left to rise, since the second is near its ceiling."""
    means = {m: (by[m].mean(1), control[m].mean(1)) for m in ("same_errors", "when_right")}
    room = {m: (value - base) / np.maximum(1 - base, 1e-9) for m, (value, base) in means.items()}
    points = {m: value - base for m, (value, base) in means.items()}
    return {
        name: paired_gain(rise["same_errors"], rise["when_right"])
        for name, rise in {"points": points, "of_room": room}.items()
    }


def verdict(found: Values, gains: dict, tests: dict, payoff: dict[str, Any], name: str) -> str:
    """What the numbers of one strength say of knowledge, of regularisation, and of errors."""
    strength, (teachers, orders) = name.removeprefix("KD "), found[name]["top1"].shape
    shuffle, noise = f"shuffled {strength}", f"noise {strength}"
    nearer = {c: tests[name][c]["js_divergence"]["teachers"] for c in (CONTROL, shuffle, noise)}
    own = paired_gain(*(found[c]["own_agreement"].mean(1) for c in (name, CONTROL)))
    transferred = all(count == teachers for count in nearer.values()) and rises(own)
    what = "Knowledge of this teacher is transferred" if transferred else "A transfer of knowledge is not established"
    top1 = {c: gains[c]["top1"] for c in (name, shuffle, noise)}
    way = {c: "a gain" if rises(g) else "a loss" if falls(g) else "no clear change" for c, g in top1.items()}
    more, room = payoff["points"], payoff["of_room"]
    return (
        f"{what}: at α = {strength} students are nearer to it in JS divergence than {CONTROL} with {nearer[CONTROL]} of "
        f"{teachers} teachers, than shuffled with {nearer[shuffle]}, than noise with {nearer[noise]} (rank tests of {orders} "
        f"students a teacher, Holm), and agree with it rather than with others {points(own)} more than {CONTROL} does. "
        f"Accuracy: {way[name]} over {CONTROL} by KD ({points(top1[name])}), {way[shuffle]} by the shuffled teacher "
        f"({points(top1[shuffle])}), {way[noise]} by noise ({points(top1[noise])}). The share of the teacher's errors rises "
        f"{points(more)} more than that of what it has right: a payoff that is {_payoff_is(more)}; of the room there was to "
        f"rise, {points(room)}: {_payoff_is(room)}."
    )


def _payoff_is(gain: dict[str, Any]) -> str:
    return "negative" if rises(gain) else "positive" if falls(gain) else "not distinguishable from even"


def _similarity(found: Values, gains: dict) -> Table:
    shown = {m: (title, 100 if m == "agreement" else 1) for m, (title, _) in METRICS.items()}
    shown |= {"own_agreement": ("less agreement with others", 100), "top1": ("top-1 %", 100)}
    rows: list[tuple[str, ...]] = [("condition", *(title for title, _ in shown.values()), "n")]
    for condition, by in found.items():
        cells = []
        for name, (_, scale) in shown.items():
            digits = 1 if scale == 100 else 4
            gain = f" ({difference(gains[condition][name], scale, digits)})" if condition in gains else ""
            cells.append(mean_of(by[name].ravel(), scale, digits) + gain)
        rows.append((condition, *cells, str(by["top1"].size)))
    note = (
        f"Mean ± standard deviation over students; (difference to {CONTROL} ± half its 95 % interval, of the means of "
        f"{len(by['top1'])} teachers). Divergence in nats, agreement in %; less agreement with others: in points, how much more "
        "students agree with their own teacher than with the others."
    )
    return Table("How near to its teacher", rows, note)


def _tests(tests: dict, teachers: int, orders: int) -> Table:
    rows: list[tuple[str, ...]] = [("students, against", *(title for title, _ in METRICS.values()))]
    for name, controls in tests.items():
        for control, by in controls.items():
            cells = (f"{t['teachers']} of {teachers} (p ≤ {max(t['p_holm'].values()):.3f})" for t in by.values())
            rows.append((f"{name}, {control}", *cells))
    note = (
        f"With how many teachers students are nearer by a one-sided Mann-Whitney test at {LEVEL:g}, {orders} students "
        f"against {orders}, after Holm's correction over teachers; in brackets the largest corrected p. Before the correction p "
        f"can be no less than {1 / math.comb(2 * orders, orders):.3f}."
    )
    return Table("Rank tests", rows, note)


def _payoff(found: Values, gains: dict) -> Table:
    rows: list[tuple[str, ...]] = [
        ("condition", "same answer where right %", "same error where wrong %", "rises, right", "rises, wrong", "n")
    ]
    for condition, by in found.items():
        cells = [mean_of(by[m].ravel(), 100, 1) for m in ("when_right", "same_errors")]
        rise = [points(gains[condition][m]) if condition in gains else "" for m in ("when_right", "same_errors")]
        rows.append((condition, *cells, *rise, str(by["top1"].size)))
    errors, right = (100 * float(np.mean(found[CONTROL][m])) for m in ("teacher_errors", "when_right"))
    note = (
        f"Teachers are wrong in {errors:.1f} % of the 4,000 images. The first share is {right:.1f} % without any teacher, and "
        "has less room to rise than the second. Rises are over SIDDO, paired by teacher, with half their 95 % interval."
    )
    return Table("Whose answers are passed on", rows, note)


@plain_texts
def plot(found: Values, path: Path) -> None:
    names = list(found)[::-1]
    made, both = panels(2, 9.0, 1.2 + 0.42 * len(names))
    titles = {
        "js_divergence": "JS divergence from its teacher, nats",
        "same_errors": "share of the teacher's errors repeated",
    }
    for axes, (metric, title) in zip(both, titles.items(), strict=True):
        for row, name in enumerate(names):
            for k, values in enumerate(found[name][metric]):
                label = f"teacher {k}" if row == 0 else None
                axes.scatter(
                    values, [row + 0.12 * (k - 1)] * len(values), s=22, color=COLOURS[1 + k], label=label, alpha=0.8
                )
        axes.set_xlabel(title)
        axes.set_yticks(range(len(names)), names)
    both[0].set_xscale("log")
    both[0].xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    both[0].xaxis.set_minor_formatter(lambda value, _: "")
    both[0].legend(frameon=False, fontsize=8)
    save(made, path)

"""Is label smoothing of the teacher incompatible with distillation? (Shen et al., ICLR 2021)"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from kdjax import analysis
from kdjax.analysis.statistics import holm, paired_gain
from kdjax.data.fashion_mnist import CLASS_NAMES, embedded
from kdjax.experiment.plots import COLOURS, panels, plain_texts, save
from kdjax.experiment.program import Builder
from kdjax.experiment.spec import Experiment
from kdjax.experiment.trained import Trained
from kdjax.objectives import KD, LabelSmoothing
from kdjax.studies.finding import Finding, Size, Table
from kdjax.studies.runs import alone, asked, of_seed, taught, train_each
from kdjax.studies.words import difference, falls, mean_of, points, rises

PAPERS = (
    "Shen, Liu, Xu, Chen, Cheng, Savvides, Is Label Smoothing Truly Incompatible with Knowledge Distillation?, ICLR 2021, "
    "arXiv 2104.00676",
    "Müller, Kornblith, Hinton, When Does Label Smoothing Help?, NeurIPS 2019, arXiv 1906.02629",
)
SMOOTHING = 0.1
DRAWN = (0, 2, 6)  # t-shirt, pullover and shirt, which are taken for each other
APART = 1000  # seed of the first student
Values = dict[str, dict[str, list[float]]]


def study(size: Size, folder: Path, *, announce: Callable[[str], None], **options: Any) -> Finding:
    """Teachers with and without smoothing, and what they teach by soft labels alone at several temperatures."""
    count, steps, temperatures = {
        "tiny": (2, 6, (1.0,)), "default": (3, 400, (1.0, 2.0, 3.0)), "full": (8, 4000, (1.0, 2.0, 3.0, 5.0)),
    }[size]  # fmt: skip
    networks = train(size, folder / "networks", count, steps, temperatures, announce=announce, **options)
    images, labels, _ = embedded("test")
    said = asked(
        {n: v for n, v in networks.items() if n.startswith(("hard", "smooth"))}, images[..., None],
        lambda output: (output.logits, output.embedding),
    )  # fmt: skip
    teachers = {kind: [geometry(*said[f"{kind}-{k}"], labels) for k in range(count)] for kind in ("hard", "smooth")}
    students = asked({n: v for n, v in networks.items() if n.startswith("from")}, images[..., None], lambda o: o.logits)
    found = measured(students, {n: logits for n, (logits, _) in said.items()}, labels, count)
    picture(networks, said, labels, folder / "plane.png")
    return finding(teachers, found, steps, folder / "plane.png")


def finding(teachers: dict[str, list[dict[str, float]]], found: Values, steps: int, path: Path) -> Finding:
    """What the values of teachers and students say; the picture is at `path`."""
    count = len(teachers["hard"])
    temperatures = [float(name.removeprefix("from hard, T = ")) for name in found if name.startswith("from hard, T")]
    effects = {
        f"T = {t:g}": {m: paired_gain(found[f"from smooth, T = {t:g}"][m], found[f"from hard, T = {t:g}"][m])
                       for m in ("top1", "nll", "agreement")}
        for t in temperatures
    }  # fmt: skip
    adjusted = holm({name: by["top1"]["p"] for name, by in effects.items()})
    shape = {
        m: paired_gain(*([one[m] for one in teachers[kind]] for kind in ("smooth", "hard")))
        for m in teachers["hard"][0]
    }
    by_labels = found["from hard labels"]["top1"]
    return Finding(
        question="Is label smoothing of the teacher incompatible with distillation?",
        papers=PAPERS,
        design=(
            f"{count} pairs of teachers, small_cnn of width 12, {steps:,} steps of 64 of 12,000 Fashion-MNIST images: with hard "
            f"labels, and with a share of {SMOOTHING:g} spread over the other classes; a pair has one seed. Each teaches one "
            "student, small_cnn of width 8, as long, by KD alone and no labels, at each temperature; the students of a pair have "
            "the same first weights and order of images. Beside them students by hard labels. All is measured on "
            "4,000 test images. 1 - S is the variation of probabilities within classes (whole vectors); the features' scatter "
            "within classes is relative to the squared distances of the class means from their mean."
        ),
        verdict=verdict(effects, adjusted, shape, paired_gain(found[f"from hard, T = {temperatures[0]:g}"]["top1"], by_labels)),
        published=(
            "ImageNet, ResNet-50 teaches ResNet-18 and ResNet-50 by soft labels at T = 1: unsmoothed teacher 76.056, students "
            "71.425 and 76.325; smoothed teacher 76.128, students 71.816 and 77.052. On CUB-200 79.931, 77.116 and 80.910 "
            "against 81.497, 78.382 and 82.355. 1 - S falls from 0.3217 to 0.3106 for ResNet-50. Müller et al. had found that "
            "smoothed teachers teach worse; Chandrasegaran et al. (ICML 2022) that the finding turns at raised temperatures, "
            "which is why they are swept. Here there are 10 classes instead of 1,000 or 200, small images and networks, and "
            "few epochs; the paper's own choice between the readings of S was not verified. Müller et al. show tighter "
            "clusters of smoothed networks in pictures, of networks trained to the end; the scatter here is of test images, "
            "the misplaced ones included."
        ),
        tables=(_teachers(teachers, shape), _students(found, effects, adjusted)),
        pictures=(
            ("What smoothing does to features", "embeddings on the plane of three classes' templates", path),
        ),
        numbers={"teachers": teachers, "smooth_less_hard": shape, "students": found, "smoothed_teacher_less_hard": effects,
                 "p_holm": adjusted},
    )  # fmt: skip


def train(
    size: Size, folder: Path, count: int, steps: int, temperatures: tuple[float, ...], *, data_dir: str | None = None,
    **options: Any,
) -> dict[str, Trained]:  # fmt: skip
    """Teachers "hard-K" and "smooth-K", students "from KIND, T = T-K" and "from hard labels-K"."""
    builder = Builder(data_dir)
    smoothed = LabelSmoothing(smoothing=SMOOTHING, over_all_classes=False)
    wide, narrow = alone(size, width=12, steps=steps), alone(size, width=8, steps=steps)
    of_labels = {"hard": lambda e: e, "smooth": lambda e: e.replace_phase(e.student.name, objective=smoothed)}
    runs: dict[str, tuple[str, Experiment]] = {}
    add = lambda name, short, experiment, seed: runs.update({name: (short, of_seed(experiment, short, seed, seed))})
    for k in range(count):
        for kind, made in of_labels.items():
            add(f"{kind}-{k}", f"{kind}-{k}", made(wide), k)
    for k in range(count):
        add(f"from hard labels-{k}", f"labels-{k}", narrow, APART + k)
        for kind in of_labels:
            for t in temperatures:
                experiment = taught(narrow, KD(temperature=t), [f"{kind}-{k}"], wide)
                add(f"from {kind}, T = {t:g}-{k}", f"student-{kind}-T{t:g}-{k}", experiment, APART + k)
    trained = train_each(dict(runs.values()), folder, builder, **options)
    return {name: trained[short] for name, (short, _) in runs.items()}


def geometry(logits: np.ndarray, embedding: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """What a teacher says of images: accuracy, calibration, and how much of an image beside its class is left in its
    probabilities (1 - S, by both readings) and in its features."""
    probs, classes = jax.nn.softmax(jnp.asarray(logits)), jnp.asarray(labels.astype(np.int32))
    erased = {e: 1 - analysis.stability_metric(probs, classes, logits.shape[-1], entry=e) for e in ("vector", "label")}
    found = {
        "top1": np.mean(logits.argmax(-1) == labels), "ece": analysis.ece(logits, classes),
        "nll": analysis.nll(logits, classes), "confidence": analysis.confidence(logits),
        "one_less_s": erased["vector"], "one_less_s_label": erased["label"],
        "scatter": analysis.within_class_scatter(embedding, classes, logits.shape[-1]),
    }  # fmt: skip
    return {name: float(value) for name, value in found.items()}


def measured(
    students: dict[str, np.ndarray], teachers: dict[str, np.ndarray], labels: np.ndarray, count: int
) -> Values:
    """Accuracy, NLL, and of those with a teacher agreement with it, by condition and a value a pair."""
    found: Values = {}
    for condition in dict.fromkeys(name.rsplit("-", 1)[0] for name in students):
        for k in range(count):
            logits = students[f"{condition}-{k}"]
            one = {
                "top1": np.mean(logits.argmax(-1) == labels), "nll": analysis.nll(logits, labels.astype(np.int32)),
                "ece": analysis.ece(logits, labels.astype(np.int32)),
            }  # fmt: skip
            if "T =" in condition:
                kind = condition.removeprefix("from ").split(",")[0]
                one["agreement"] = analysis.agreement(logits, teachers[f"{kind}-{k}"])
            for metric, value in one.items():
                found.setdefault(condition, {}).setdefault(metric, []).append(float(value))
    return found


def verdict(effects: dict, adjusted: dict[str, float], shape: dict[str, Any], kd: dict[str, Any]) -> str:
    """Whether students of smoothed teachers are worse, by temperature, how large a loss is left open, and what smoothing does
    to the teacher; `kd` is what the unsmoothed teachers' students have more than those by labels, at the first temperature."""
    sure = {name: adjusted.get(name, 1.0) < 0.05 for name in effects}
    worse = [n for n, by in effects.items() if sure[n] and by["top1"]["mean"] < 0]
    better = [n for n, by in effects.items() if sure[n] and by["top1"]["mean"] > 0]
    answer = (
        f"Incompatible at {', '.join(worse)}" if worse
        else f"Not incompatible: students of smoothed teachers are better at {', '.join(better)}" if better
        else "No incompatibility is shown, and none is excluded: students of smoothed and of unsmoothed teachers differ at no "
        "temperature beyond chance in accuracy"
    )  # fmt: skip
    if worse and better:
        answer += f", and better at {', '.join(better)}"
    each = "; ".join(f"{name} {points(by['top1'])}" for name, by in effects.items())
    least = 100 * min(by["top1"]["mean"] - by["top1"]["half_width"] for by in effects.values())
    left = f", so that a loss of {-least:.1f} points is left open" if not worse and not better and least < 0 else ""
    way = lambda gain: "rises" if rises(gain) else "falls" if falls(gain) else "does not change beyond chance"
    pairs = len(next(iter(effects.values()))["top1"]["values"])
    nll = holm({name: by["nll"]["p"] for name, by in effects.items()})
    moved = [f"{'higher' if by['nll']['mean'] > 0 else 'lower'} at {n} ({difference(by['nll'], 1, 3)})"
             for n, by in effects.items() if nll[n] < 0.05]  # fmt: skip
    likely = f"their NLL is {', '.join(moved)}" if moved else "nor in NLL"
    return (
        f"{answer} (top-1 of students of smoothed teachers less those of unsmoothed: {each}; {pairs} pairs, Holm over "
        f"temperatures){left}; {likely}. Smoothed, the teacher's accuracy {way(shape['top1'])} ({points(shape['top1'])}), "
        "the variation within classes that its probabilities leave, 1 - S, "
        f"{way(shape['one_less_s'])} ({difference(shape['one_less_s'])}), the scatter of its features {way(shape['scatter'])} "
        f"({difference(shape['scatter'], 1, 3)}). Top-1 of students of unsmoothed teachers less that of students by labels: "
        f"{points(kd)} at {next(iter(effects))}."
    )


def _teachers(teachers: dict[str, list[dict[str, float]]], shape: dict[str, Any]) -> Table:
    shown = {"top1": ("top-1 %", 100, 2), "nll": ("NLL", 1, 3), "ece": ("ECE %", 100, 1), "confidence": ("confidence %", 100, 1),
             "one_less_s": ("1 - S", 1, 4), "one_less_s_label": ("1 - S, label's entry", 1, 4),
             "scatter": ("scatter within classes", 1, 3)}  # fmt: skip
    rows: list[tuple[str, ...]] = [("teacher", *(title for title, _, _ in shown.values()), "n")]
    for kind, ones in teachers.items():
        cells = (mean_of([one[m] for one in ones], scale, digits) for m, (_, scale, digits) in shown.items())
        rows.append((kind, *cells, str(len(ones))))
    cells = (difference(shape[m], scale, digits) for m, (_, scale, digits) in shown.items())
    rows.append(("smooth less hard", *cells, str(len(teachers["hard"]))))
    note = "Mean ± standard deviation over teachers; the difference is paired by seed, with half its 95 % interval."
    return Table("What smoothing does to the teacher", rows, note)


def _students(found: Values, effects: dict, adjusted: dict[str, float]) -> Table:
    rows: list[tuple[str, ...]] = [
        ("student", "top-1 %", "NLL", "ECE %", "agreement %", "smooth less hard, top-1", "p", "n")
    ]
    for name, by in found.items():
        at = name.removeprefix("from smooth, ")
        agreement = mean_of(by["agreement"], 100, 1) if "agreement" in by else "–"
        gain = points(effects[at]["top1"], 2) if at in effects else ""
        p = f"{adjusted[at]:.3f}" if at in adjusted else ""
        cells = (mean_of(by["top1"], 100, 2), mean_of(by["nll"], 1, 3), mean_of(by["ece"], 100, 1), agreement)
        rows.append((name, *cells, gain, p, str(len(by["top1"]))))
    note = (
        "Mean ± standard deviation over students; the difference is paired by seed, with half its 95 % interval; p after Holm's "
        "correction over temperatures. Students by hard labels are the control: the same network and steps without a teacher."
    )
    return Table("What the student gets", rows, note)


@plain_texts
def picture(networks: dict[str, Trained], said: dict[str, Any], labels: np.ndarray, path: Path) -> None:
    """Embeddings of three classes on the plane of their templates, by the first teacher of each kind."""
    made, both = panels(2, 9.5, 4.2)
    for axes, (kind, title) in zip(both, {"hard": "hard labels", "smooth": "smoothed labels"}.items(), strict=True):
        kernel = np.asarray(networks[f"{kind}-0"].variables.params["classifier"]["kernel"])
        places = np.asarray(analysis.class_plane(jnp.asarray(said[f"{kind}-0"][1]), jnp.asarray(kernel.T[list(DRAWN)])))
        for i, label in enumerate(DRAWN):
            rows = labels == label
            axes.scatter(*places[rows].T, s=6, alpha=0.5, color=COLOURS[1 + i], label=CLASS_NAMES[label], linewidths=0)
        axes.set_title(f"teacher of {title}", fontsize=10, loc="left")
        axes.set_xlabel("on the plane of three templates")
        axes.set_aspect("equal", adjustable="datalim")
    both[0].legend(frameon=False, fontsize=8, markerscale=2)
    save(made, path)

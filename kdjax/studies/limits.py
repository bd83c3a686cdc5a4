"""When is distillation logit matching, when hard labels, and what kind of smoothing is it? (Chen, arXiv 2109.06458)"""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from kdjax import losses
from kdjax.analysis.statistics import paired_gain
from kdjax.experiment.config import load_config
from kdjax.experiment.plots import figure, plain_texts, save
from kdjax.experiment.tables import clear, interval, mean_sd
from kdjax.objectives import KD, CrossEntropy, HardLabel, LogitMSE
from kdjax.studies.finding import Finding, Size, Table
from kdjax.studies.students import train as train_students

PAPERS = ("Chen, A Note on Knowledge Distillation Loss Function for Object Classification, 2021, arXiv 2109.06458",)
TEMPERATURES = (0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 1000.0)
MASS = 0.1  # of the soft part beside the labels, for the three regularisers
CLOSE = 0.99  # cosine from which two gradients are called one


def study(size: Size, folder: Path, *, announce: Callable[[str], None], **options: Any) -> Finding:
    """Gradients on logits of known spread, then students trained at each temperature."""
    rows = {"tiny": 64, "default": 4096, "full": 65_536}[size]
    gradients = {classes: cosines(rows, classes) for classes in (10, 100)}
    smoothing = regularisers(rows)
    task, trained = train(size, folder / "students", announce=announce, **options)
    plot(gradients, folder / "gradients.png")
    matching = {
        classes: next((t for t in TEMPERATURES if c["matching"][t] > CLOSE), None) for classes, c in gradients.items()
    }
    hard = {
        classes: max((t for t in TEMPERATURES if c["hard"][t] > CLOSE), default=None)
        for classes, c in gradients.items()
    }
    best = max(
        (name for name in trained if name.startswith("kd T=")),
        key=lambda name: trained[name]["metrics"]["top1"]["mean"],
    )
    against = paired_gain(
        *(trained[n]["metrics"]["top1"]["values"] for n in (f"kd T={TEMPERATURES[-1]:g}", "logit_mse"))
    )
    values = lambda name: trained[name]["metrics"]["top1"]["values"]
    alike = [
        n.removeprefix("kd T=") for n in trained
        if n.startswith("kd T=") and n != best and not clear(paired_gain(values(best), values(n)))
    ]  # fmt: skip
    cold = paired_gain(*(trained[n]["metrics"]["top1"]["values"] for n in (f"kd T={TEMPERATURES[0]:g}", "hard_label")))
    metric = task.metric
    verdict = (
        f"On logits of standard deviation 3, KD's gradient is that of centred logit matching (cosine above {CLOSE}) from "
        f"{_g(matching[10])} on with 10 classes and from {_g(matching[100])} with 100, and that of the teacher's hard labels, "
        f"the student's softmax at the same temperature, up to {_g(hard[10])} and {_g(hard[100])}. Students trained at "
        f"T = {TEMPERATURES[-1]:g} differ from logit matching by {_gain(against, metric)}, at T = {TEMPERATURES[0]:g} from hard "
        f"labels by {_gain(cold, metric)}; of the temperatures tried {best.removeprefix('kd ')} was the best, not "
        f"distinguishable from {', '.join(alike) or 'none'}."
    )
    return Finding(
        question="When is distillation logit matching, when hard labels, and what kind of smoothing is it?",
        papers=PAPERS,
        design=(
            f"{rows:,} pairs of student's and teacher's logits, independent and normal with standard deviation 3, in float64: "
            "cosine of KD's gradient by the student's logits with that of its limits, all rows together. Three "
            "regularisers beside the "
            f"labels with a mass of {MASS:g}: KD, label smoothing, confidence penalty. Then students of "
            f"fashion_mnist/few_labels "
            "(500 labels, 10,000 images, the teacher had all), 0.1 cross-entropy and KD at each temperature, below 1 divided by "
            "it, so that its gradient keeps its size; the same seeds."
        ),
        verdict=verdict,
        published=(
            "The note derives the limits and trains nothing; they are tests of the losses here too. The centred "
            "limit leaves out the mean gap of the logits, which no softmax sees."
        ),
        tables=(*(_table(classes, c) for classes, c in gradients.items()), _smoothing(smoothing), _students(trained, task)),
        pictures=(("Which loss KD is, by temperature", "cosine of gradients over temperature", folder / "gradients.png"),),
        numbers={
            "cosines": gradients,
            "regularisers": smoothing, "students": trained, "hottest_less_logit_mse": against, "coldest_less_hard_label": cold,
        },
    )  # fmt: skip


def cosines(rows: int, classes: int) -> dict[str, dict[float, float]]:
    """Cosine of KD's gradient, of all rows together, at each temperature with centred logit matching's, and with the teacher's
    hard labels', of the student's softmax at that temperature and at 1."""
    with jax.enable_x64(True):
        s, t = (3.0 * x for x in jax.random.normal(jax.random.key(classes), (2, rows, classes), jnp.float64))
        of = lambda loss: jax.grad(lambda z: jnp.sum(loss(z, t)))(s)
        found: dict[str, dict[float, float]] = {"matching": {}, "hard": {}, "hard_at_1": {}}
        for temperature in TEMPERATURES:
            gradient = of(lambda z, t, hot=temperature: losses.kd(z, t, temperature=hot))
            limits = {
                "matching": of(lambda z, t: losses.logit_mse(z, t, center=True)),
                "hard": of(lambda z, t, hot=temperature: losses.hard_label(z / hot, t)),
                "hard_at_1": of(losses.hard_label),
            }
            for name, other in limits.items():
                norms = jnp.linalg.norm(gradient) * jnp.linalg.norm(other)
                found[name][temperature] = float(jnp.sum(gradient * other) / norms)
    return found


def regularisers(rows: int, classes: int = 10) -> dict[str, dict[str, float]]:
    """What a mass of `MASS` beside the labels does to the labels' gradient: its size, and where it points."""
    with jax.enable_x64(True):
        key = jax.random.key(0)
        s, t = (3.0 * x for x in jax.random.normal(key, (2, rows, classes), jnp.float64))
        labels = jnp.argmax(t, axis=-1)
        hard = lambda z: losses.cross_entropy(z, labels=labels)
        parts = {
            "kd": lambda z: losses.kd(z, t, temperature=1.0),
            "label_smoothing": lambda z: losses.cross_entropy_with_targets(z, jnp.full_like(z, 1 / classes)),
            "confidence_penalty": lambda z: -losses.predictive_entropy(z),
        }
        of = lambda loss: jax.grad(lambda z: jnp.sum(loss(z)))(s)
        main, found = of(hard), {}
        for name, part in parts.items():
            gradient = MASS * of(part)
            norms = jnp.linalg.norm(gradient, axis=-1), jnp.linalg.norm(main, axis=-1)
            found[name] = {
                "relative_size": float(jnp.mean(norms[0]) / jnp.mean(norms[1])),
                "cosine_with_labels": float(jnp.mean(jnp.sum(gradient * main, axis=-1) / (norms[0] * norms[1]))),
            }
    return found


def train(size: Size, folder: Path, **options: Any):
    """`(task, methods of the comparison)` of students at each temperature and of the two limits."""
    objectives = {"labels": CrossEntropy(), "hard_label": 0.1 * CrossEntropy() + HardLabel()}
    tried = TEMPERATURES[:: len(TEMPERATURES) - 1] if size == "tiny" else TEMPERATURES
    # Below 1 the factor T² would let the gradient vanish beside the labels': the limit of KL T² is T times a cross-entropy.
    objectives |= {f"kd T={t:g}": 0.1 * CrossEntropy() + max(1.0, 1 / t) * KD(temperature=t) for t in tried}
    objectives["logit_mse"] = 0.1 * CrossEntropy() + 0.1 * LogitMSE(center=True)  # 10 classes: the limit has a mean
    base = load_config("fashion_mnist/few_labels")("kd")
    base = base.tiny() if size == "tiny" else base
    optimizer = dataclasses.replace(
        base.student.optimizer, clip=1.0
    )  # alike for all: gradients of far logits are large
    experiments = {
        name: base.replace_phase(base.student.name, objective=objective, optimizer=optimizer)
        for name, objective in objectives.items()
    }
    seeds = tuple(range({"tiny": 2, "default": 3, "full": 10}[size]))
    return base.data, train_students(experiments, seeds, folder, **options)


@plain_texts
def plot(gradients: dict[int, dict[str, dict[float, float]]], path: Path) -> None:
    made, axes = figure(7.2, 3.6)
    for (classes, found), style in zip(gradients.items(), ("-", "--"), strict=True):
        axes.plot(TEMPERATURES, [found["matching"][t] for t in TEMPERATURES], style, color="#1f77b4", marker="o", markersize=4,
                  label=f"centred logit matching, {classes} classes")  # fmt: skip
        axes.plot(TEMPERATURES, [found["hard"][t] for t in TEMPERATURES], style, color="#d1495b", marker="o", markersize=4,
                  label=f"hard labels, {classes} classes")  # fmt: skip
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.set_xlabel("temperature")
    axes.set_ylabel("cosine of gradients")
    axes.legend(frameon=False, fontsize=8)
    save(made, path)


def _table(classes: int, found: dict[str, dict[float, float]]) -> Table:
    rows = [("temperature", "logit matching", "hard labels, T", "hard labels, T = 1")]
    rows += [(f"{t:g}", *(f"{found[name][t]:.4f}" for name in ("matching", "hard", "hard_at_1"))) for t in TEMPERATURES]
    note = "Cosines. As T falls the student's softmax sharpens too: the limit is hard labels at T, which asks for no margin."
    return Table(f"KD's gradient and its limits, {classes} classes", rows, note)


def _smoothing(found: dict[str, dict[str, float]]) -> Table:
    rows = [("regulariser", "size of its gradient, labels' = 1", "cosine with the labels' gradient")]
    rows += [(name, f"{f['relative_size']:.3f}", f"{f['cosine_with_labels']:+.3f}") for name, f in found.items()]
    note = "A cosine below 0 pulls back what the labels ask for; labels are the teacher's most likely class, T = 1."
    return Table(f"Three regularisers with a mass of {MASS:g}, 10 classes", rows, note)


def _students(trained: dict[str, Any], task: Any) -> Table:
    rows = [("objective", task.metric.title, "agreement %", "n")]
    for name, summary in trained.items():
        metrics = summary["metrics"]
        agreement = metrics.get("agreement")
        shown = "–" if agreement is None else f"{100 * agreement['mean']:.1f}"
        rows.append((name, mean_sd(metrics[task.metric.name], task.metric), shown, str(len(summary["seeds"]))))
    return Table("Students trained with each", rows, "Mean ± standard deviation over seeds; one teacher.")


def _gain(gain: dict[str, Any], metric: Any) -> str:
    return f"{metric.change(gain['mean'])} ({interval(gain, metric)}, {len(gain['values'])} seeds)"


def _g(value: float | None) -> str:
    return "no temperature tried" if value is None else f"T = {value:g}"

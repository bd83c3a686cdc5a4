"""Does the student match its teacher, and could it? (Stanton et al., NeurIPS 2021)"""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from kdjax import analysis
from kdjax.analysis.statistics import holm, paired_gain
from kdjax.data.fashion_mnist import embedded
from kdjax.experiment.plots import COLOURS, panels, plain_texts, save
from kdjax.experiment.program import Builder
from kdjax.experiment.spec import Experiment
from kdjax.experiment.trained import Trained
from kdjax.losses import forward_kl
from kdjax.objectives import KD
from kdjax.studies import pools
from kdjax.studies.finding import Finding, Size, Table
from kdjax.studies.runs import alone, asked, beginning, first_weights, of_seed, taught, train_each
from kdjax.studies.words import difference, falls, mean_of, points, rises
from kdjax.training import Variables

PAPERS = (
    "Stanton, Izmailov, Kirichenko, Alemi, Wilson, Does Knowledge Distillation Really Work?, NeurIPS 2021, arXiv 2106.05945",
)
BASE, OTHER, HOT = "KD", "next teacher's", 4.0
CLOSE = 0.01  # share of training images on which those that match may disagree
SEEN = 4000  # training images on which agreement is taken
APART = 1000  # seed of the first student, so that none begins as a teacher did
SHOWN = {
    "test": ("agreement, test %", 100, 1), "train": ("agreement, training %", 100, 1), "kl": ("KL, test", 1, 3),
    "cka": ("CKA", 1, 3), "top1": ("top-1 %", 100, 1), "nll": ("NLL", 1, 3), "ece": ("ECE %", 100, 1),
}  # fmt: skip
Values = dict[str, dict[str, list[float]]]  # by condition and measure, of each teacher


def study(size: Size, folder: Path, *, announce: Callable[[str], None], **options: Any) -> Finding:
    """Students of teachers of their own kind, by more data, more steps, several teachers, and from nearer the teacher."""
    count, steps, longer = {"tiny": (2, 6, 2), "default": (3, 400, 3), "full": (6, 4000, 5)}[size]
    shares = {"tiny": (0.5,), "default": (0.25, 0.5, 1.0), "full": (0.125, 0.25, 0.375, 0.5, 0.75, 1.0)}[size]
    networks, begins = train(size, folder / "networks", count, steps, longer, shares, announce=announce, **options)
    found = measured(networks, count)
    announce("the way to the teacher")
    ways = barriers(networks, [BASE, *(f"start {share:g}" for share in shares)], count)
    picture(networks, begins, 5 if size == "tiny" else 11, folder / "plane.png")
    return finding(found, ways, steps, longer, folder / "plane.png")


def finding(found: Values, ways: dict[str, Any], steps: int, longer: int, path: Path) -> Finding:
    """What the values and the ways to the teacher say; the picture is at `path`."""
    count = len(found[BASE]["test"])
    gains = {name: {m: paired_gain(found[name][m], found[BASE][m]) for m in SHOWN} for name in tried(found)}
    adjusted = holm({n: g["test"]["p"] for n, g in gains.items()})
    return Finding(
        question="Does the student match its teacher, and could it?",
        papers=PAPERS,
        design=(
            f"{count} teachers, small_cnn of width 8, {steps:,} steps of 64 of 12,000 Fashion-MNIST images with their labels; "
            f"students of the same architecture, a student a teacher in each condition, by KD alone at T = {HOT:g} without "
            "labels, as long, cropped and flipped. Controls: students by labels alone, and the students of the next teacher. "
            "Then T = 1; mixup, Beta(1, 1); as many images again that a Gaussian of each class draws (synthetic), or turned "
            f"and negative ones (out of domain), at the same number of steps; {longer} times the steps; first weights λ "
            "θ_teacher + (1 - λ) θ_random (start λ); and all teachers as one, by their mean probability, whose students are "
            f"measured against the ensemble. Agreement is of top-1 classes on 4,000 test and {SEEN:,} training images as "
            "evaluated. CKA of embeddings is of 2,000 test images; ECE has 10 bins. The barrier is how far KL from the "
            "teacher, over 1,000 training images by statistics of their batch, rises between student and teacher above the "
            "line between both ends. Students match where the 95 % interval of their disagreement on training images lies "
            "below 1 %, and do not where it lies above."
        ),
        verdict=verdict(found, gains, adjusted, ways),
        published=(
            "CIFAR-100, five ResNet-56 as teacher of one (paper, bars read to 0.005): accuracy and test agreement 0.725 and "
            "0.79 at T = 1, 0.745 and 0.835 at T = 4, 0.75 and 0.835 with mixup, 0.745 and 0.855 with mixup at T = 4. "
            "ResNet-20 agrees with a teacher of its kind on 79 % of training images after 300 epochs, 83 % after 5,000; it "
            "finds the teacher's basin from λ = 0.375 on. There images are harder, training is tens of times longer, "
            "GroupNorm or LayerNorm replace BatchNorm where weights are interpolated, synthetic images are a GAN's, and rates "
            "and decay are others. The paper's loss is the cross-entropy with the teacher, whose gradient is KD's."
        ),
        tables=(_fidelity(found, gains, adjusted), _basin(ways, found, count)),
        pictures=(
            ("KL from the first teacher: on the plane of its weights and its student's first and last (others projected), and on "
             "the lines from students to it", "contours on the plane, and curves by share of the teacher's weights", path),
        ),
        numbers={"values": found, "less_kd": gains, "p_holm": adjusted, "barriers": ways},
    )  # fmt: skip


def tried(found: Any) -> list[str]:
    """The conditions that are KD with one thing changed, measured against the same teacher."""
    return [name for name in found if name not in (BASE, "labels", OTHER) and not name.startswith("ensemble")]


def train(
    size: Size, folder: Path, count: int, steps: int, longer: int, shares: tuple[float, ...], *,
    data_dir: str | None = None, **options: Any,
) -> tuple[dict[str, Trained], list[Variables]]:  # fmt: skip
    """Networks by name, "teacherK" and "CONDITION-K", and the first weights of KD's students."""
    builder, plain = Builder(data_dir), alone(size, width=8, steps=steps)
    teachers = {f"teacher{k}": of_seed(plain, f"teacher{k}", k, k) for k in range(count)}
    networks = train_each(teachers, folder, builder, **options)
    images, labels, _ = embedded("train")
    rng = np.random.default_rng(0)
    on = lambda **changes: dataclasses.replace(plain, data=dataclasses.replace(plain.data, **changes))
    mixed = on(views=dataclasses.replace(plain.data.views, mixup=1.0))
    drawn = on(name=pools.written(folder / "synthetic.npz", pools.synthetic(images, labels, rng)))
    apart = on(name=pools.written(folder / "foreign.npz", pools.foreign(images, rng)))
    duration = dataclasses.replace(plain.student.duration, amount=longer * plain.student.duration.amount)
    students = {"KD": plain, "mixup": mixed, "synthetic": drawn, "out of domain": apart,
                f"{longer}x longer": plain.replace_phase(plain.student.name, duration=duration)}  # fmt: skip
    runs: dict[str, Experiment] = {}
    begins = [first_weights(networks["teacher0"], APART + k) for k in range(count)]
    add = lambda name, k, experiment: runs.update(
        {f"{name}-{k}": of_seed(experiment, f"{name}-{k}", APART + k, APART + k)}
    )
    for k in range(count):
        add("labels", k, plain)
        for name, student in students.items():
            add(name, k, taught(student, KD(temperature=HOT), [f"teacher{k}"], plain))
        add("T = 1", k, taught(plain, KD(temperature=1.0), [f"teacher{k}"], plain))
        for share in shares:
            weights = between(networks[f"teacher{k}"].variables, begins[k], share)
            experiment = taught(plain, KD(temperature=HOT), [f"teacher{k}"], plain)
            add(
                f"start {share:g}",
                k,
                beginning(experiment, weights, folder / f"begin-{share:g}-{k}", folder / f"teacher{k}"),
            )
        add("ensemble", k, taught(plain, KD(temperature=HOT), list(teachers), plain))
    named = {name.replace(" = ", "").replace(" ", "_"): name for name in runs}
    trained = train_each({short: runs[name] for short, name in named.items()}, folder, builder, **options)
    return networks | {named[short]: network for short, network in trained.items()}, begins


def between(first: Variables, second: Variables, share: float) -> Variables:
    """A network on the way from the second to the first; its statistics too, which training soon replaces."""
    return Variables(
        *(analysis.interpolated(getattr(first, n), getattr(second, n), share) for n in ("params", "state"))
    )


def measured(networks: dict[str, Trained], count: int) -> Values:
    """All of `SHOWN` by condition, a value a teacher."""
    (images, labels, _), (seen, _, _) = embedded("test"), embedded("train")
    said = asked(networks, images[..., None], lambda output: (output.logits, output.embedding))
    train = asked(networks, seen[:SEEN, ..., None], lambda output: output.logits)
    members = [f"teacher{k}" for k in range(count)]
    mean = lambda logits: np.log(np.mean([jax.nn.softmax(logits[m]) for m in members], axis=0))
    whole = mean({m: said[m][0] for m in members}), mean(train)
    found: Values = {}
    for condition in dict.fromkeys(name.split("-")[0] for name in networks if "-" in name):
        for k in range(count):
            logits, embedding = said[f"{condition}-{k}"]
            targets = [(condition, said[f"teacher{k}"][0], train[f"teacher{k}"], said[f"teacher{k}"][1])]
            if condition.startswith("ensemble"):
                targets = [(condition, *whole, None)]
            elif condition == BASE:
                other = f"teacher{(k + 1) % count}"
                targets.append((OTHER, said[other][0], train[other], said[other][1]))
            for name, test, taught_on, features in targets:
                one = {
                    "test": analysis.agreement(logits, test), "train": analysis.agreement(train[f"{condition}-{k}"], taught_on),
                    "kl": analysis.predictive_kl(logits, test), "top1": np.mean(logits.argmax(-1) == labels),
                    "cka": np.nan if features is None else analysis.linear_cka(embedding[:2000], features[:2000]),
                    "nll": analysis.nll(logits, labels.astype(np.int32)),
                    "ece": analysis.ece(logits, labels.astype(np.int32), bins=10),
                }  # fmt: skip
                for metric, value in one.items():
                    found.setdefault(name, {}).setdefault(metric, []).append(float(value))
    return found


def distances(network: Trained, teacher: Trained, count: int = 1000) -> Callable[[Any], Any]:
    """`params -> KL(teacher || network)`, the mean over training images, by the statistics of this batch: weights that nobody
    trained have no others."""
    images = embedded("train")[0][:count, ..., None]
    inputs = network.view(images)
    of = lambda v, params: network.network.apply(params, v.state, inputs, train=True)[0].logits
    target = of(teacher.variables, teacher.variables.params)
    return jax.jit(lambda params: jnp.mean(forward_kl(of(network.variables, params), target, temperature=1.0)))


def barriers(networks: dict[str, Trained], conditions: list[str], count: int, places: int = 11) -> dict[str, Any]:
    """KL from the teacher on the line from student to teacher, by condition: `ways` of each teacher, and their `barrier`."""
    found: dict[str, Any] = {c: {"ways": [], "barrier": []} for c in conditions}
    for k in range(count):
        teacher = networks[f"teacher{k}"]
        distance = distances(teacher, teacher)
        for condition in conditions:
            ends = teacher.variables.params, networks[f"{condition}-{k}"].variables.params
            way = [float(distance(analysis.interpolated(*ends, share))) for share in np.linspace(0, 1, places)]
            found[condition]["ways"].append(way)
            found[condition]["barrier"].append(float(analysis.barrier(jnp.asarray(way))))
    return found


def verdict(found: Values, gains: dict[str, Any], adjusted: dict[str, float], ways: dict[str, Any]) -> str:
    """Whether they match, whether the networks could, what helps beyond chance, and what that does for accuracy."""
    share = lambda name, metric: f"{mean_of(found[name][metric], 100, 1)} %"
    less = lambda name, metric: paired_gain(found[BASE][metric], found[name][metric])
    more = lambda gain: (
        f"{'more' if rises(gain) else 'less' if falls(gain) else 'no more beyond chance'} ({points(gain)})"
    )
    apart = paired_gain(np.ones(len(found[BASE]["train"])), found[BASE]["train"])  # disagreement on training images
    least, most = (apart["mean"] + side * (apart["half_width"] or 0) for side in (-1, 1))
    match = (
        f"match their teacher to {100 * CLOSE:g} %" if most <= CLOSE
        else "do not match their teacher" if least > CLOSE else "may or may not match their teacher"
    )  # fmt: skip
    near = less("labels", "kl")
    closer = "nearer" if falls(near) else "farther" if rises(near) else "not distinguishable"
    sure = {name for name in gains if adjusted.get(name, 1.0) < 0.05}
    raised, lowered = (
        ", ".join(f"{n} ({points(gains[n]['test'])})" for n in gains if n in sure and way(gains[n]["test"]))
        or "nothing"
        for way in (rises, falls)
    )
    alone = [n for n in gains if n not in sure and (rises(gains[n]["test"]) or falls(gains[n]["test"]))]
    before = f"; by its own interval alone, not after the correction, by {', '.join(alone)}" if alone else ""
    nearest = [name for name in ways if name.startswith("start")][-1]
    top1 = gains[nearest]["top1"]
    follows = "rises" if rises(top1) else "falls" if falls(top1) else "does not change beyond chance"
    low = next(
        (n for n, w in ways.items() if n != BASE and np.mean(w["barrier"]) < 0.1 * np.mean(ways[BASE]["barrier"])), None
    )
    height = lambda name: f"{mean_of(ways[name]['barrier'], 1, 2)} nats"
    basin = f"below a tenth of it from {low} on ({height(low)})" if low else "and with no start below a tenth of it"
    return (
        f"Students {match}: they agree with it on {share(BASE, 'test')} of test images and "
        f"{share(BASE, 'train')} of those they were distilled on (n = {len(found[BASE]['test'])}). On test images they agree "
        f"with it {more(less('labels', 'test'))} than students by labels do, and {more(less(OTHER, 'test'))} than with the "
        f"next teacher; in KL they are {closer} than students by labels ({difference(near, 1, 3)} nats). The same "
        f"architecture, begun at λ = {nearest.removeprefix('start ')}, ends at {share(nearest, 'test')} "
        f"({points(gains[nearest]['test'])}), and accuracy {follows} ({points(top1)}). KD's barrier to the teacher is "
        f"{height(BASE)}, {basin}. Of {len(gains)} changes, after Holm's correction, agreement is raised by {raised}, lowered "
        f"by {lowered}{before}."
    )


def _fidelity(found: Values, gains: dict[str, Any], adjusted: dict[str, float]) -> Table:
    rows: list[tuple[str, ...]] = [("student", *(title for title, _, _ in SHOWN.values()), "less KD's, test", "p", "n")]
    for name, by in found.items():
        cells = [
            "–" if np.isnan(by[m]).any() else mean_of(by[m], scale, digits) for m, (_, scale, digits) in SHOWN.items()
        ]
        gain = points(gains[name]["test"]) if name in gains else ""
        p = f"{adjusted[name]:.3f}" if name in adjusted else ""
        rows.append((name, *cells, gain, p, str(len(by["test"]))))
    note = (
        "Mean ± standard deviation over students, each of another teacher; of an ensemble all have the same. Difference: "
        "paired by teacher, with half its 95 % interval; p after Holm's correction. next teacher's: KD's students measured "
        "against a teacher that was not theirs. Top-1, NLL and ECE are by the labels. So few "
        "students show large differences only."
    )
    return Table("How far students match", rows, note)


def _basin(ways: dict[str, Any], found: Values, count: int) -> Table:
    rows: list[tuple[str, ...]] = [
        ("student", "barrier to the teacher, nats", "KL at the student, nats", "agreement, test %", "n")
    ]
    for name, way in ways.items():
        ends = [one[0] for one in way["ways"]]
        rows.append(
            (name, mean_of(way["barrier"], 1, 3), mean_of(ends, 1, 3), mean_of(found[name]["test"], 100, 1), str(count))
        )
    note = "start λ: first weights λ θ_teacher + (1 - λ) θ_random; KD begins at λ = 0."
    return Table("Is the student in the teacher's basin?", rows, note)


@plain_texts
def picture(networks: dict[str, Trained], begins: list[Variables], places: int, path: Path) -> None:
    """KL from the first teacher on the plane of it, the student's first and last weights, and on the lines to students."""
    teacher, student = networks["teacher0"], networks[f"{BASE}-0"]
    distance = distances(teacher, teacher)
    origin, first, last = teacher.variables.params, begins[0].params, student.variables.params
    at, place = analysis.plane(origin, last, first)
    spots = {name: tuple(map(float, place(w))) for name, w in {"teacher": origin, "first": first, "last": last}.items()}
    starts = [name for name in networks if name.startswith("start") and name.endswith("-0")]
    spots |= {name.removesuffix("-0"): tuple(map(float, place(networks[name].variables.params))) for name in starts}
    reach = np.array(list(spots.values()))
    low, high = reach.min(axis=0), reach.max(axis=0)
    axis = [np.linspace(a - 0.2 * (b - a), b + 0.2 * (b - a), places) for a, b in zip(low, high, strict=True)]
    heights = np.array([[float(distance(at(x, y))) for x in axis[0]] for y in axis[1]])
    made, (left, right) = panels(2, 9.5, 4.0)
    filled = left.contourf(*axis, np.log10(np.maximum(heights, 1e-4)), levels=20, cmap="viridis")
    made.colorbar(filled, ax=left, label="log10 KL from the teacher, nats")
    for (name, (x, y)), colour in zip(spots.items(), ("white", *COLOURS[1:]), strict=False):
        left.scatter(x, y, s=40, color=colour, edgecolors="black", zorder=3)
        box = {"boxstyle": "round,pad=0.15", "facecolor": "white", "alpha": 0.7, "linewidth": 0}
        left.annotate(name, (x, y), (6, 6), textcoords="offset points", fontsize=8, bbox=box)
    left.set_xlabel("distance from the teacher, towards the last weights")
    left.set_ylabel("towards the first weights")
    for i, name in enumerate([f"{BASE}-0", *starts]):
        ends = origin, networks[name].variables.params
        shares = np.linspace(0, 1, 2 * places)
        line = [float(distance(analysis.interpolated(*ends, share))) for share in shares]
        right.plot(shares, line, color=COLOURS[1 + i], label=name.removesuffix("-0"))
    right.set_xlabel("share of the teacher's weights")
    right.set_ylabel("KL from the teacher, nats")
    right.legend(frameon=False, fontsize=8)
    save(made, path)

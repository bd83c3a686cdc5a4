"""Is distillation label smoothing? By the entropy of what students say. (Sultan, EMNLP 2023)"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from kdjax import analysis
from kdjax.analysis.statistics import LEVEL, holm, paired_gain
from kdjax.studies.entropy_page import factor, plot_grid, plot_ratios, tables
from kdjax.studies.entropy_training import (
    ERM,
    LARGE,
    PICTURES,
    RATES,
    ROWS,
    SMALL,
    TEXTS,
    Arm,
    Domain,
    Trainer,
    pictures,
    texts,
)
from kdjax.studies.finding import Finding, Size
from kdjax.studies.words import falls, rises
from kdjax.types import Array

PAPERS = ("Sultan, Knowledge Distillation ≈ Label Smoothing: Fact or Fallacy?, EMNLP 2023 (2023.emnlp-main.271)",)
DIRECTIONS = {
    "standard": (LARGE, SMALL),
    "self": (SMALL, SMALL),
    "reverse": (SMALL, LARGE),
}  # sizes of teacher and student
CONTROL = "standard KD, smoothed teacher"  # the same students and settings, of teachers that are less sure
SMALLEST = 0.02  # change of entropy that is called one
APART = 500  # seed of the first student by which settings are chosen
Values = dict[str, dict[str, list[float]]]


class Plan(NamedTuple):
    """How large the study of one kind of examples is: seeds, seeds by which settings are chosen, and the settings tried."""

    seeds: int
    tuning: int
    steps: int
    alphas: tuple[float, ...]
    temperatures: tuple[float, ...]
    few: int | None = None  # examples of each split


PLANS = {
    "tiny": {TEXTS: Plan(2, 1, 4, (0.1, 0.5), (1.0, 2.0), 128), PICTURES: Plan(2, 1, 2, (0.5,), (1.0,), 128)},
    "default": {
        TEXTS: Plan(5, 1, 500, (0.1, 0.5, 0.9), (1.0, 4.0)),
        PICTURES: Plan(5, 1, 400, (0.1, 0.5, 0.9), (1.0, 4.0)),
    },
    "full": {
        TEXTS: Plan(10, 3, 1500, (0.1, 0.3, 0.5, 0.7, 0.9), (1.0, 2.0, 4.0, 8.0)),
        PICTURES: Plan(10, 3, 3000, (0.1, 0.3, 0.5, 0.7, 0.9), (1.0, 2.0, 4.0, 8.0)),
    },
}  # fmt: skip


def study(size: Size, folder: Path, *, announce: Callable[[str], None], **options: Any) -> Finding:
    """Texts, then pictures: networks by labels, the settings of smoothing and of distillation, and students with these."""
    del options  # nothing is kept but the page
    plans = PLANS[size]
    of = lambda name: (
        pictures(plans[name].few) if name == PICTURES else texts(plans[name].few, transformers=size == "full")
    )
    domains = {name: of(name) for name in plans}
    done = {
        name: of_domain(domains[name], plan, RATES[name], lambda line, name=name: announce(f"{name}: {line}"))
        for name, plan in plans.items()
    }
    found, tuned, chosen = ({name: each[i] for name, each in done.items()} for i in range(3))
    return finding(folder, found, tuned, chosen, domains, plans)


def of_domain(
    domain: Domain, plan: Plan, rate: float, announce: Callable[[str], None]
) -> tuple[Values, dict[str, list[dict[str, Any]]], dict[str, Arm]]:
    """What is measured on test examples by arm, of the settings on validation examples, and the settings chosen, by arm."""
    trainers = {s: Trainer(net, domain.train, plan.steps, rate) for s, net in domain.networks.items()}

    def learned(size: str, seed: int, arm: Arm, taught: Any, *splits: str) -> dict[str, np.ndarray]:
        """Logits of examples by split."""
        trained = trainers[size].trained(seed, arm, taught)
        return {split: trainers[size].logits(trained, getattr(domain, split).inputs) for split in splits}

    said: dict[str, list[dict[str, np.ndarray]]] = {}
    for size in (SMALL, LARGE):
        announce(f"{size}, labels")
        said[f"{size}, labels"] = [learned(size, k, ERM, None, *Domain._fields[:3]) for k in range(plan.seeds)]
    tuned = tune(domain, plan, learned, said, announce)
    chosen = {name: best(tries) for name, tries in tuned.items()}
    for size in (SMALL, LARGE):
        name = f"{size}, smoothing"
        announce(name)
        said[name] = [learned(size, k, chosen[name], None, "train", "test") for k in range(plan.seeds)]
    taught = {f"{d} KD": (size, chosen[f"{d} KD"], teachers_of(d, said)) for d, (_, size) in DIRECTIONS.items()}
    taught[CONTROL] = (SMALL, chosen["standard KD"], said[f"{LARGE}, smoothing"])
    for name, (size, arm, teachers) in taught.items():
        announce(name)
        said[name] = [learned(size, k, arm, teacher["train"], "test") for k, teacher in enumerate(teachers)]
    found: Values = {}
    for name, each in said.items():
        for logits in each:
            for metric, value in measured(logits["test"], domain.test.labels).items():
                found.setdefault(name, {}).setdefault(metric, []).append(value)
            if "train" in logits:
                learned_by_heart = measured(logits["train"], domain.train.labels)["top1"]
                found[name].setdefault("train_top1", []).append(learned_by_heart)
    return found, tuned, chosen


def teachers_of(direction: str, said: Mapping[str, list]) -> list:
    """The teacher of each seed's student: the network by labels of that seed; in self-distillation of the next, since a student
    that begins as its teacher did would be no other network."""
    teacher, student = DIRECTIONS[direction]
    found = said[f"{teacher}, labels"]
    return [*found[1:], found[0]] if teacher == student else found


def tune(
    domain: Domain, plan: Plan, learned: Callable[..., dict[str, np.ndarray]], said: Mapping[str, list],
    announce: Callable[[str], None],
) -> dict[str, list[dict[str, Any]]]:  # fmt: skip
    """Every setting of smoothing and of KD with seeds of their own, measured on validation examples, beside labels alone with
    the same seeds (alpha 0) and the teachers."""
    seeds = range(plan.tuning)
    measures = lambda each: averages([measured(logits["validation"], domain.validation.labels) for logits in each])
    held = lambda size, arm, taught=None: measures(
        [learned(size, APART + k, arm, taught and taught[k]["train"], "validation") for k in seeds]
    )
    alone = {size: held(size, ERM) for size in (SMALL, LARGE)}
    found = {}
    for size in (SMALL, LARGE):
        announce(f"{size}, smoothing: its alpha")
        found[f"{size}, smoothing"] = [{"arm": ERM, **alone[size]}] + [
            {"arm": arm, **held(size, arm)} for arm in (Arm(smoothing=alpha) for alpha in plan.alphas)
        ]
    for direction, (_, size) in DIRECTIONS.items():
        announce(f"{direction} KD: its alpha and temperature")
        teachers = teachers_of(direction, said)[: plan.tuning]
        of_teachers = measures(teachers)["entropy"]
        found[f"{direction} KD"] = [{"arm": ERM, "teacher": of_teachers, **alone[size]}] + [
            {
                "arm": arm,
                "teacher": of_teachers,
                **held(size, arm, teachers),
            }
            for arm in (Arm(alpha=alpha, temperature=t) for t in plan.temperatures for alpha in plan.alphas)
        ]
    return found


def best(tries: list[dict[str, Any]]) -> Arm:
    """The setting of most accuracy, of several alike that of the lowest NLL; labels alone are none."""
    return max((t for t in tries if t["arm"] != ERM), key=lambda t: (t["top1"], -t["nll"]))["arm"]


def measured(logits: np.ndarray, labels: Any) -> dict[str, float]:
    """Accuracy, and mean entropy, NLL and ECE at temperature 1."""
    return {name: float(value) for name, value in _measures(logits, jnp.asarray(labels)).items()}


@jax.jit
def _measures(logits: Array, labels: Array) -> dict[str, Array]:
    return {
        "top1": jnp.mean(jnp.argmax(logits, axis=-1) == labels), "entropy": analysis.entropy(logits),
        "nll": analysis.nll(logits, labels), "ece": analysis.ece(logits, labels),
    }  # fmt: skip


def averages(each: list[dict[str, float]]) -> dict[str, float]:
    return {name: float(np.mean([one[name] for one in each])) for name in each[0]}


# --- what it says ---


def compared(found: Values) -> dict[str, dict[str, dict[str, Any]]]:
    """Of one kind of examples, paired by seed: "entropy", differences of its logarithm, and "top1"; each family by Holm.

    Names are those of arms; "ARM / smoothing" is against the smoothed student of the same size, "teacher, DIRECTION" the teacher
    against the student by labels; all others are against the student by labels.
    """
    log = lambda name: np.log(np.maximum(found[name]["entropy"], 1e-12))
    ratios, gains = {}, {}
    for size in (SMALL, LARGE):
        name = f"{size}, smoothing"
        ratios[name] = paired_gain(log(name), log(f"{size}, labels"))
        gains[name] = paired_gain(found[name]["top1"], found[f"{size}, labels"]["top1"])
    for direction, (teacher, student) in DIRECTIONS.items():
        name, alone = f"{direction} KD", f"{student}, labels"
        ratios[name] = paired_gain(log(name), log(alone))
        ratios[f"{name} / smoothing"] = paired_gain(log(name), log(f"{student}, smoothing"))
        gains[name] = paired_gain(found[name]["top1"], found[alone]["top1"])
        if teacher != student:  # else they are the same networks
            ratios[f"teacher, {direction}"] = paired_gain(log(f"{teacher}, labels"), log(alone))
    ratios[CONTROL] = paired_gain(log(CONTROL), log("standard KD"))
    gains[CONTROL] = paired_gain(found[CONTROL]["top1"], found["standard KD"]["top1"])
    return {"entropy": corrected(ratios), "top1": corrected(gains)}


def corrected(gains: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The gains with `p_holm`, corrected for their number."""
    for name, p in holm({name: gain["p"] for name, gain in gains.items()}).items():
        gains[name]["p_holm"] = p
    return gains


def way(gain: Mapping[str, Any]) -> int:
    """1 where a difference of logarithms is above 0 after the correction, -1 below; 0 where it is not beyond chance, or
    smaller than `SMALLEST`."""
    if gain.get("p_holm", 1.0) >= LEVEL or abs(gain["mean"]) < np.log1p(SMALLEST):
        return 0
    return 1 if rises(gain) else -1 if falls(gain) else 0


def verdict(said: Mapping[str, Mapping[str, Mapping[str, Any]]], chosen: Mapping[str, Mapping[str, Arm]]) -> str:
    """What smoothing does to entropy and what distillation does, whether the latter is the former, and whether it follows the
    teacher; `said` is `compared` by kind of examples, `chosen` by which settings."""
    share = lambda domain, name: f"α {chosen[domain][name].smoothing or chosen[domain][name].alpha:g}"
    kd = [(domain, direction) for domain in said for direction in DIRECTIONS]
    ratio = lambda domain, name: said[domain]["entropy"][name]
    places = lambda cells: ", ".join(f"{direction} on {domain}" for domain, direction in cells) or "none"
    smooth = [way(ratio(domain, f"{size}, smoothing")) for domain in said for size in (SMALL, LARGE)]
    raised = f"raises entropy in {smooth.count(1)} of {len(smooth)} cases"
    ways = {cell: way(ratio(cell[0], f"{cell[1]} KD")) for cell in kd}
    below = [cell for cell in kd if way(ratio(cell[0], f"{cell[1]} KD / smoothing")) < 0]
    lower, higher = ([cell for cell in kd if ways[cell] == sign] for sign in (-1, 1))
    answer = (
        "By entropy KD is not label smoothing here" if len(below) == len(kd) and smooth.count(1) == len(smooth)
        else "By entropy KD and label smoothing differ in part here" if below or lower
        else "By entropy KD is not told from label smoothing here"
    )  # fmt: skip
    each = "; ".join(
        f"{domain}: smoothing "
        + ", ".join(f"{factor(ratio(domain, n))} by {share(domain, n)}" for n in (f"{s}, smoothing" for s in (SMALL, LARGE)))
        + ", KD " + ", ".join(f"{d} {factor(ratio(domain, f'{d} KD'))} by {share(domain, f'{d} KD')}" for d in DIRECTIONS)
        for domain in said
    )  # fmt: skip
    apart = [cell for cell in kd if DIRECTIONS[cell[1]][0] != DIRECTIONS[cell[1]][1]]
    towards = [cell for cell in apart if ways[cell] and ways[cell] == way(ratio(cell[0], f"teacher, {cell[1]}"))]
    against = [cell for cell in apart if ways[cell] and ways[cell] == -way(ratio(cell[0], f"teacher, {cell[1]}"))]
    control = "; ".join(f"{domain} {factor(ratio(domain, CONTROL))}" for domain in said)
    moved = [domain for domain in said if way(ratio(domain, CONTROL)) > 0]
    follows = "follows its teacher's" if len(moved) == len(said) else (
        f"follows its teacher's on {' and '.join(moved)} only" if moved else "does not rise with its teacher's beyond chance"
    )  # fmt: skip
    return (
        f"{answer}: smoothing {raised}, KD lowers it in {len(lower)} of {len(kd)} ({places(lower)}) and raises it in "
        f"{len(higher)} ({places(higher)}), and leaves it below smoothing's in {len(below)}. Entropy at T = 1 over that of the "
        f"same student by labels (small, large student; 95 % intervals; the settings best on validation examples, by which the "
        f"factors differ too), {each}. A student's entropy {follows} when the same "
        f"teacher's kind is smoothed instead ({control} times as high), and where teacher and student differ in size it moved "
        f"towards the teacher's in {len(towards)} of {len(apart)} cases and away from it in {len(against)}."
    )


def finding(
    folder: Path, found: Mapping[str, Values], tuned: Mapping[str, Any], chosen: Mapping[str, Mapping[str, Arm]],
    domains: Mapping[str, Domain], plans: Mapping[str, Plan],
) -> Finding:  # fmt: skip
    """What all of it says; pictures are drawn in the folder."""
    said = {name: compared(values) for name, values in found.items()}
    plot_ratios(said, DIRECTIONS, folder / "ratios.png")
    for name in found:
        plot_grid(tuned[name], DIRECTIONS, folder / f"grid_{name}.png")
    as_data = lambda tries: [{**t, "arm": t["arm"]._asdict()} for t in tries]
    return Finding(
        question="Is distillation label smoothing?",
        papers=PAPERS,
        design=design(domains, plans, found),
        verdict=verdict(said, chosen),
        published=(
            "On MRPC, QNLI, SST-2 and MNLI, one seed a cell, label smoothing raises the mean entropy of predictions three to six "
            "times; standard KD (BERT-base to DistilBERT) and self-distillation (DistilBERT) lower it almost everywhere, with "
            "more accuracy; reverse KD (DistilBERT to BERT-base) raises it, much less than smoothing; so KD is not smoothing: "
            "the student takes over its teacher's confidence. The values of its tables, its grid, and whether KD has a factor T² "
            "were not verified. There networks are pretrained and finetuned, texts are GLUE's, of two and three classes, and "
            "settings are chosen on the split that is evaluated; here networks are small and begin fresh, there are 7 and 10 "
            "classes, settings are chosen on other examples than the test's, and there are several seeds."
        ),
        tables=tables(found, said, tuned, chosen, DIRECTIONS),
        pictures=(
            ("Entropy against labels alone", "ratio of mean entropies of test examples, with intervals", folder / "ratios.png"),
            *((f"Entropy by setting, {name}", "mean entropy of validation examples by α and T", folder / f"grid_{name}.png")
              for name in found),
        ),
        numbers={
            "found": found, "compared": said, "tuned": {n: {a: as_data(t) for a, t in by.items()} for n, by in tuned.items()},
            "chosen": {n: {a: arm._asdict() for a, arm in by.items()} for n, by in chosen.items()},
            "plans": {name: plan._asdict() for name, plan in plans.items()},
            "examples": {n: [len(s.labels) for s in (d.train, d.validation, d.test)] for n, d in domains.items()},
        },
    )  # fmt: skip


def design(domains: Mapping[str, Domain], plans: Mapping[str, Plan], found: Mapping[str, Values]) -> str:
    parts = []
    for name, domain in domains.items():
        plan = plans[name]
        counts = ", ".join(f"{len(split.labels):,}" for split in (domain.train, domain.validation, domain.test))
        nets = "; ".join(f"{size}: {network.name}" for size, network in domain.networks.items())
        parts.append(
            f"{name.capitalize()}: {domain.words}; {counts} to train on, to choose settings by and to test on. Networks, {nets}. "
            f"{plan.steps:,} steps, {plan.seeds} seeds. By labels they come to "
            + " and ".join(
                f"{100 * np.mean(found[name][f'{s}, labels']['train_top1']):.1f} % ({s})" for s in (SMALL, LARGE)
            )
            + " on what they are trained on, which is what a teacher is asked about: the nearer to 100 %, the less its answers "
            "at T = 1 say beyond the labels."
        )
    return (
        "A student learns by labels (empirical risk minimisation), by labels of which a share α is spread over all classes, or "
        "by 1 - α times the cross-entropy of labels and α T² times KL from a teacher at temperature T. All know the same "
        f"labelled examples, and take the same steps of {ROWS}, drawn by the same seed, by AdamW with a cosine; one program "
        "trains all. Standard: a large network by labels teaches the small one; self: the small one teaches the small one; "
        "reverse: the small one teaches the large one. A student of a seed has the teacher of that seed, in self-distillation of "
        "the next one; so the spread covers teachers. α and T are those of the best validation accuracy with other seeds, which "
        "share the first teachers. Entropy is the mean over test examples of what is said at T = 1; ratios are paired by seed, "
        "with Student's interval of the logarithm, and Holm's correction within a kind of examples; the first "
        f"paragraph calls a change only what is also {SMALLEST:.0%} or more. Control of what a student's entropy follows: "
        "standard KD of a teacher that was itself smoothed, all else alike. " + " ".join(parts)
    )

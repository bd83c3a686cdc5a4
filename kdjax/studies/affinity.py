"""Which affinity, which normalisation, which loss? (Li, Maki, 2022; Tung, Mori, ICCV 2019)"""

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from kdjax.analysis.factors import main_effects, noise_share, variance_shares
from kdjax.analysis.statistics import LEVEL, holm, paired_gain, spread
from kdjax.experiment.plots import COLOURS, figure, plain_texts, save
from kdjax.experiment.tables import clear, interval, mean_sd
from kdjax.studies.affinity_training import CHOICES, KD, LABELLED, LABELS, ROWS, Trainer, data
from kdjax.studies.finding import Finding, Size, Table
from kdjax.training.metrics import Metric

PAPERS = (
    "Li, Maki, Towards a Unified View of Affinity-Based Knowledge Distillation, 2022, arXiv 2209.15555",
    "Tung, Mori, Similarity-Preserving Knowledge Distillation, ICCV 2019, arXiv 1907.09682",
)
OPTIONS = {
    "tiny": (("dot", "cosine"), ("none", "row_l2"), ("mse", "cosine")),
    "default": (("dot", "cosine", "l2"), ("none", "row_l2", "mean", "row_softmax"), ("mse", "smooth_l1", "cosine")),
    "full": (
        ("dot", "cosine", "l2", "sq_l2", "gaussian", "gaussian_taylor", "poly"),
        ("none", "row_l2", "frobenius", "mean", "row_softmax", "row_sum", "zscore"), ("mse", "l1", "smooth_l1", "cosine"),
    ),
}  # fmt: skip
NAMED = {
    "sp": ("dot", "row_l2", "mse"), "rkd_distance": ("l2", "mean", "smooth_l1"), "pkt": ("cosine", "row_sum", "kl"),
    "cc": ("gaussian_taylor", "none", "mse"),
}  # fmt: skip
BOUNDED = ("cosine", "gaussian", "gaussian_taylor")  # affinities between 0 and 1 of embeddings that are not negative
METRIC = Metric("top1", "top-1 %", 100, 2, unit="points")


def study(size: Size, folder: Path, *, announce: Callable[[str], None], **options: Any) -> Finding:
    """A grid of students, what each choice does to them, and the best beside the named ones with other seeds."""
    steps, seeds, again, ratios = {
        "tiny": (4, (0,), (10, 11), (1.0,)), "default": (300, (0, 1), (10, 11, 12, 13, 14), (1.0,)),
        "full": (2000, (0, 1, 2, 3), tuple(range(10, 20)), (0.3, 1.0, 3.0)),
    }[size]  # fmt: skip
    network, (train, validation, test), teacher_top1 = data(size, folder, announce, **options)
    grid = list(itertools.product(*OPTIONS[size]))
    with_kl = [(affinity, "row_softmax", "kl") for affinity in OPTIONS[size][0]] if size != "tiny" else []
    choices = list(dict.fromkeys((*grid, *with_kl, *NAMED.values())))
    trainer = Trainer(network, train, choices, steps)
    announce("how large each loss is")
    weights = {choice: trainer.weight(choice) for choice in choices}
    found: dict[tuple[str, ...], dict[str, Any]] = {}
    for choice in (*grid, *with_kl):
        announce(", ".join(choice))
        tried = {}
        for ratio in ratios:
            ends = [trainer.student(choice, ratio * weights[choice], seed) for seed in seeds]
            tried[ratio] = {
                "validation": [trainer.top1(end, validation) for end in ends],
                "test": [trainer.top1(end, test) for end in ends],
            }  # fmt: skip
        ratio = max(ratios, key=lambda r: np.mean(tried[r]["validation"]))
        found[choice] = {"ratio": ratio, "weight": ratio * weights[choice], **tried[ratio]}
    best = max(found, key=lambda choice: np.mean(found[choice]["validation"]))
    announce(f"best on validation images: {', '.join(best)}")
    ahead: dict[str, Any] = {LABELS: None, KD: KD} | NAMED | {"best": best}
    confirmed = {}
    for name, choice in ahead.items():
        announce(f"{name}, seeds {again[0]} to {again[-1]}")
        weight = found[choice]["weight"] if choice in found else weights.get(choice, 1.0)
        confirmed[name] = spread([trainer.top1(trainer.student(choice, weight, seed), test) for seed in again])
    facts = {"teacher_top1": teacher_top1, "labelled": len(trainer.with_labels), "steps": steps,
             "validation": len(validation.labels), "test": len(test.labels), "ratios": ratios}  # fmt: skip
    return finding(size, folder, found, confirmed, best, facts)


def finding(
    size: Size, folder: Path, found: dict, confirmed: dict, best: tuple[str, ...], facts: dict[str, Any]
) -> Finding:
    """What the grid and the runs with other seeds say."""
    grid = list(itertools.product(*OPTIONS[size]))
    seeds, again = len(found[best]["test"]), len(confirmed[LABELS]["values"])
    gains = {n: paired_gain(c["values"], confirmed[LABELS]["values"]) for n, c in confirmed.items() if n != LABELS}
    cells = {choice: float(np.mean(found[choice]["test"])) for choice in grid}
    effects = dict(zip(CHOICES, main_effects(cells, same), strict=True))
    correct(effects), correct({"gains": gains})
    alone, rest = variance_shares(cells)
    noise = noise_share({choice: found[choice]["test"] for choice in grid})
    left = {"interactions and noise": rest} if np.isnan(noise) else {"interactions": rest - noise, "noise": noise}
    shares = dict(zip(CHOICES, alone, strict=True)) | left
    plot(effects, folder / "effects.png")
    return Finding(
        question="Which affinity, which normalisation, which loss?",
        papers=PAPERS,
        design=(
            "small_cnn of width 24, trained with 10,000 labels of the embedded Fashion-MNIST (top-1 "
            f"{100 * facts['teacher_top1']:.1f} %), teaches small_cnn of width 8, which has {facts['labelled']} of these labels, "
            f"in {facts['steps']} steps without augmentation: cross-entropy of {LABELLED} labelled images, the affinity loss of "
            f"these and {ROWS - LABELLED} others, on pooled embeddings. All {len(grid)} combinations of "
            f"{' x '.join(str(len(several)) for several in OPTIONS[size])} options ({len(set(map(same, grid)))} of which are "
            f"different losses), and kl after row_softmax, {seeds} seeds each, the same for all. A loss's weight is that at "
            "which its gradient by the embedding of a fresh network is as large as the cross-entropy's, times "
            f"{' or '.join(f'{r:g}' for r in facts['ratios'])}"
            f"{', whichever is best on validation images' if len(facts['ratios']) > 1 else '; a loss may do better at another'}. "
            f"The best of {len(found)} by the mean on {facts['validation']:,} validation images is trained again with {again} "
            f"other seeds, beside the named losses, KD and no teacher. Top-1 on {facts['test']:,} test images."
        ),
        verdict=verdict(effects, shares, gains, confirmed, best, seeds),
        published=(
            "Which combination Li and Maki find best, and their tables, were not available to us and are not compared. For SP "
            "the benchmark codes report on CIFAR-100, all labels, 73.83 for WRN-40-2 to WRN-16-2 (student alone 73.26, KD 74.92) "
            "and 69.67 for ResNet-56 to ResNet-20 (69.06, KD 70.66): above no teacher, below KD. There SP reads the last maps, "
            "unpooled, with a weight of 3000; here all losses read the pooled embedding, with weights by the rule above, and the "
            "student has few labels."
        ),
        tables=(_shares(shares, len(grid)), *(_effects(c, by) for c, by in effects.items()), _confirmed(confirmed, gains),
                _grid(found)),
        pictures=(("What an option does", "top-1 against the other options of its choice", folder / "effects.png"),),
        numbers={
            "grid": [dict(zip(CHOICES, choice, strict=True)) | cell for choice, cell in found.items()], "effects": effects,
            "shares": shares, "confirmed": confirmed, "gains": gains, "best": best, **facts,
        },
    )  # fmt: skip


def correct(families: dict[str, dict[str, dict[str, Any]]]) -> None:
    """Adds `p_holm` to every gain, corrected within all that are given."""
    tests = {(a, b): gain["p"] for a, by in families.items() for b, gain in by.items()}
    for (a, b), p in holm(tests).items():
        families[a][b]["p_holm"] = p


def same(choice: tuple[str, ...]) -> tuple[str, ...]:
    """One name for combinations that are one loss up to its weight: the cosine of rows does not see their scale, and smooth L1 is
    half the square where no gap is above 1, as of entries from 0 to 1 (embeddings are not negative)."""
    affinity, normalization, loss = choice
    if loss == "cosine" and normalization in ("none", "row_l2", "frobenius", "mean"):
        normalization = "none"
    small = ("row_l2", "frobenius", "row_softmax", "row_sum")
    if loss == "smooth_l1" and (normalization in small or (affinity in BOUNDED and normalization == "none")):
        loss = "mse"
    return affinity, normalization, loss


def verdict(effects, shares, gains, confirmed, best, seeds) -> str:
    """Which choice matters, which options do, and what the best combination is worth."""
    first = max(CHOICES, key=lambda choice: shares[choice])
    options = [
        f"{name} ({METRIC.change(gain['mean'])})"
        for by in effects.values() for name, gain in by.items() if gain.get("p_holm", 1.0) < LEVEL
    ]  # fmt: skip
    values = lambda name: confirmed[name]["values"]
    over = lambda name: paired_gain(values("best"), values(name))
    said = lambda gain: f"{METRIC.change(gain['mean'])}, {interval(gain, METRIC)}"
    differs = lambda gain: "differs from" if clear(gain) else "is not distinguishable from"
    others = [f"{differs(over(name))} {name} ({said(over(name))})" for name in (*NAMED, KD)]
    clearly = [name for name, gain in gains.items() if gain.get("p_holm", 1.0) < LEVEL and gain["mean"] > 0]
    return (
        f"Of the variance of top-1 over the combinations ({seeds} seed{'s' * (seeds > 1)} each) the {first} alone explains "
        f"{100 * shares[first]:.0f} %, all three choices {100 * sum(shares[c] for c in CHOICES):.0f} %, "
        f"{' and '.join(f'{name} {100 * share:.0f} %' for name, share in shares.items() if name not in CHOICES)}. Options that "
        f"differ from the others of their choice (Holm, {100 * LEVEL:.0f} %): "
        f"{', '.join(options) or 'none'}. The best on validation images, {', '.join(best)}, gains {said(gains['best'])} over "
        f"labels ({len(values('best'))} other seeds); it {', '.join(others)}. Above labels by Holm's correction: "
        f"{', '.join(clearly) or 'none'}."
    )


@plain_texts
def plot(effects: dict[str, dict[str, dict[str, Any]]], path: Path) -> None:
    rows = [(f"{name}", gain, i) for i, by in enumerate(effects.values()) for name, gain in by.items()][::-1]
    made, axes = figure(7.2, 0.8 + 0.34 * len(rows))
    for i, choice in enumerate(effects):
        places = [place for place, row in enumerate(rows) if row[2] == i]
        gains = [rows[place][1] for place in places]
        axes.errorbar(
            [100 * g["mean"] for g in gains], places, xerr=[100 * g["half_width"] for g in gains], fmt="o", capsize=3,
            markersize=5, color=COLOURS[1 + i], label=choice,
        )  # fmt: skip
    axes.axvline(0, color="#111", linewidth=1)
    axes.set_yticks(range(len(rows)), [row[0] for row in rows])
    axes.set_xlabel("points of top-1 against the others, mean and 95 % interval over combinations")
    axes.legend(frameon=False, fontsize=8)
    save(made, path)


def _shares(shares: dict[str, float], count: int) -> Table:
    rows = [("choice", "share of the variance, %"), *((name, f"{100 * share:.1f}") for name, share in shares.items())]
    note = "Of the means over seeds; kl is left out, and losses by two names are in it twice."
    return Table(f"Which choice matters, {count} combinations", rows, note)


def _effects(choice: str, by: dict[str, dict[str, Any]]) -> Table:
    rows = [(choice, "against the others, points", "95 % interval", "p (Holm)", "better in", "n")]
    for name, gain in by.items():
        chance = f"{gain['p_holm']:.2g}" if "p_holm" in gain else "–"
        count = len(gain["values"])
        ends = interval(gain, METRIC).removeprefix("95 % interval ")
        rows.append((name, f"{100 * gain['mean']:+.2f}", ends, chance, f"{gain['better']} of {count}", str(count)))
    note = (
        "Each option less the mean of the others with all else alike; n: combinations of the other two choices, "
        "those that are one loss by two names counting once."
    )
    return Table(f"The {choice}", rows, note + " p is corrected for all options of all three choices.")


def _confirmed(confirmed: dict[str, Any], gains: dict[str, dict[str, Any]]) -> Table:
    rows = [("loss", "top-1 %", "over labels", "p (Holm)", "n")]
    for name, values in confirmed.items():
        gain = gains.get(name)
        said = ("", "") if gain is None else (
            f"{100 * gain['mean']:+.2f} ({interval(gain, METRIC)})", f"{gain['p_holm']:.2g}" if "p_holm" in gain else "–"
        )  # fmt: skip
        rows.append((name, mean_sd(values, METRIC), *said, str(len(values["values"]))))
    note = "Seeds of their own, paired. " + "; ".join(f"{n}: {', '.join(c)}" for n, c in NAMED.items()) + ". kd: T = 4."
    return Table("The best and the named ones", rows, note)


def _grid(found: dict[tuple[str, ...], dict[str, Any]]) -> Table:
    rows = [(*CHOICES, "weight", "validation %", "test %", "n")]
    order = sorted(found, key=lambda choice: -np.mean(found[choice]["validation"]))
    for choice in order:
        cell = found[choice]
        ends = (mean_sd(spread(cell[of]), METRIC) for of in ("validation", "test"))
        rows.append((*choice, f"{cell['weight']:.3g}", *ends, str(len(cell["test"]))))
    return Table("Every combination, best on validation images first", rows, "Mean ± standard deviation over seeds.")

"""Features, logits or gradients: which source of the teacher's knowledge helps, and when? (Hsu et al., arXiv 2203.10163)"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from kdjax.analysis.statistics import LEVEL, holm, paired_gain
from kdjax.studies.finding import Finding, Size
from kdjax.studies.sources_incremental import FACTORS, OLD, incremental
from kdjax.studies.sources_page import AXES, plot_alignment, plot_axes, plot_gains, tables
from kdjax.studies.sources_pairs import TEACHER_WIDTH, Laboratory, Plan, Setting, second_order, top1
from kdjax.studies.sources_training import LABELS, LAYERS, RATE
from kdjax.studies.words import difference, falls, mean_of, points, rises

PAPERS = (
    "Hsu, Smith, Shen, Kira, Jin, A Closer Look at Knowledge Distillation with Features, Logits, and Gradients, 2022, arXiv "
    "2203.10163",
)
AT_LABEL = "features label gradient"  # a teacher that does not know the label's class has none
KINDS = {
    "logits": ("KL T=1", "KL T=4", "logits L2", "logits diag F", "logits full F"),
    "features": ("features L2",),
    "gradients": (
        "features diag F", "features drawn F", AT_LABEL, "features full F",
    ),
}  # fmt: skip
USUAL = {"classes": 10, "images": 10_000, "width": 8}
CLOSE = 0.05  # relative error up to which the second order is called KL
MATCHED = LAYERS.index("embedding")


PLANS = {
    "tiny": Plan(
        3, 4, 2, (1.0,), {"classes": (2, 10), "images": (100, 10_000)}, few=400,
        tried=("KL T=4", "features L2", "features diag F"),
    ),
    "default": Plan(
        300, 600, 5, (0.3, 1.0, 3.0, 10.0), {"classes": (2, 10), "images": (500, 2000, 10_000), "width": (2, 4, 8)},
    ),
    "full": Plan(
        4000, 6000, 10, (0.1, 0.3, 1.0, 3.0, 10.0, 30.0),
        {"classes": (2, 5, 10), "images": (250, 500, 1000, 2000, 5000, 10_000), "width": (2, 4, 8, 16, 32)},
    ),
}  # fmt: skip


def study(size: Size, folder: Path, *, announce: Callable[[str], None], **options: Any) -> Finding:
    """Students by every source, their weights tuned; then the best of each kind in other settings."""
    del options  # nothing is kept but the page
    plan = PLANS[size]
    kinds = {kind: [n for n in names if n in (plan.tried or names)] for kind, names in KINDS.items()}
    laboratory = Laboratory(plan, announce)
    usual = laboratory.setting(**USUAL, names=[name for names in kinds.values() for name in names])
    tuned = tune(usual, plan, announce)
    best = lambda names: max(names, key=lambda name: max(tuned[name].values()))
    chosen = {kind: best(names) for kind, names in kinds.items()}
    ratios = {name: max(by, key=by.__getitem__) for name, by in tuned.items()}
    found = {}
    for name in tuned:
        announce(f"{name}, {plan.seeds} seeds")
        found[name] = usual.measured(name, ratios[name], range(plan.seeds))
    axes = {
        axis: {level: elsewhere(laboratory, axis, level, chosen, ratios, found, announce) for level in levels}
        for axis, levels in plan.axes.items()
    }
    facts = {
        "teacher_top1": usual.teacher_top1, "steps": plan.steps, "teacher_steps": plan.teacher_steps,
        "ratios": plan.ratios, "test": len(usual.test.labels), "validation": len(usual.validation.labels),
        "images": len(usual.train.labels),
    }  # fmt: skip
    without = {kind: best([name for name in names if name != AT_LABEL]) for kind, names in kinds.items()}
    later = incremental(usual, plan, without, announce)
    errors = second_order(np.asarray(usual.test.logits))
    return finding(folder, found, tuned, ratios, chosen, axes, later, errors, facts)


def tune(usual: Setting, plan: Plan, announce: Callable[[str], None]) -> dict[str, dict[float, float]]:
    """Top-1 on validation images by source and ratio, of a seed of its own."""
    found: dict[str, dict[float, float]] = {}
    for name in usual.trainer.names:
        announce(f"{name}: its weight")
        for ratio in (0.0, *plan.ratios) if name == LABELS else plan.ratios:
            logits = usual.trainer.said(usual.student(name, ratio, 500), usual.validation.inputs)[-1]
            found.setdefault(name, {})[ratio] = top1(logits, usual.validation.labels)
    return found


def elsewhere(
    laboratory: Laboratory, axis: str, level: int, chosen: Mapping[str, str], ratios: Mapping[str, float],
    found: Mapping[str, Any], announce: Callable[[str], None],
) -> dict[str, Any]:  # fmt: skip
    """Top-1 and alignment of embeddings by kind and seed, and the teacher's top-1, in the usual setting but for one thing."""
    setting = laboratory.setting(**(USUAL | {axis: level}), names=list(chosen.values()))
    names = {LABELS: LABELS} | dict(chosen)
    if level == USUAL[axis]:
        values = {kind: found[name] for kind, name in names.items()}
    else:
        announce(f"{axis}: {level:,}")
        seeds = range(laboratory.plan.seeds)
        values = {kind: setting.measured(name, ratios[name], seeds) for kind, name in names.items()}
    kept = {kind: {"top1": v["top1"], "cka": [c[MATCHED][MATCHED] for c in v["cka"]]} for kind, v in values.items()}
    return {"teacher": setting.teacher_top1, "students": kept}


# --- what it says ---


def compared(
    found: Mapping[str, Any], chosen: Mapping[str, str], axes: Mapping[str, Any], later: Mapping[str, Any]
) -> dict[str, Any]:
    """Gains over labels, differences between kinds, and how gains change along an axis, each family of tests corrected."""
    values = lambda name, of="top1": np.asarray(found[name][of])
    taught = [name for name in found if name != LABELS]
    kinds = list(chosen)
    pairs = [(a, b) for i, a in enumerate(kinds) for b in kinds[i + 1 :]]
    embedding = lambda name: np.asarray(found[name]["cka"])[:, MATCHED, MATCHED]
    gains = {
        axis: {
            level: {k: paired_gain(cell["students"][k]["top1"], cell["students"][LABELS]["top1"]) for k in kinds}
            for level, cell in levels.items()
        }
        for axis, levels in axes.items()
    }
    return {
        "over_labels": corrected({name: paired_gain(values(name), values(LABELS)) for name in taught}),
        "between": corrected({(a, b): paired_gain(values(chosen[a]), values(chosen[b])) for a, b in pairs}),
        "cka_over_labels": corrected({name: paired_gain(embedding(name), embedding(LABELS)) for name in taught}),
        "along": gains,
        "changes": corrected({
            (axis, kind): paired_gain(levels[max(levels)][kind]["values"], levels[min(levels)][kind]["values"])
            for axis, levels in gains.items() for kind in kinds
        }),
        "cka_and_top1": rank_correlation(found),
        "later": corrected({kind: paired_gain(later[kind]["mean"], later[LABELS]["mean"]) for kind in kinds}),
    }  # fmt: skip


def corrected(gains: dict[Any, dict[str, Any]]) -> dict[Any, dict[str, Any]]:
    """The gains with `p_holm`, corrected for their number; a gain that has no p has none."""
    for name, p in holm({name: gain["p"] for name, gain in gains.items()}).items():
        gains[name]["p_holm"] = p
    return gains


def rank_correlation(found: Mapping[str, Any]) -> dict[str, float]:
    """Spearman's, over sources, of how alike embeddings are to the teacher's and top-1."""
    from scipy import stats

    result = stats.spearmanr([alike(by) for by in found.values()], [np.mean(by["top1"]) for by in found.values()])
    return {"rho": float(result.statistic), "p": float(result.pvalue), "sources": len(found)}


def alike(by: Mapping[str, Any]) -> float:
    """CKA of embeddings with the teacher's, the mean over seeds."""
    return float(np.mean([cka[MATCHED][MATCHED] for cka in by["cka"]]))


def sure(gain: Mapping[str, Any]) -> bool:
    """Whether a difference is one after the correction."""
    return gain.get("p_holm", 1.0) < LEVEL


def verdict(
    found: Mapping[str, Any], said: Mapping[str, Any], chosen: Mapping[str, str], errors: Mapping[float, Any],
    later: Mapping[str, Any],
) -> str:  # fmt: skip
    """Which source helps, which more than another, when, and whether it makes networks alike."""
    over, along, count = said["over_labels"], said["along"], len(found[LABELS]["top1"])
    best = "; ".join(f"{kind}, {name}: {points(over[name])}" for kind, name in chosen.items())
    names = lambda way: ", ".join(n for n, g in over.items() if sure(g) and way(g)) or "none"
    versus = ", ".join(
        f"{a} {'are above' if rises(g) else 'are below'} {b} ({points(g)})" if sure(g)
        else f"{a} and {b} are not distinguishable ({points(g)})" for (a, b), g in said["between"].items()
    )  # fmt: skip
    moved = [
        f"{kind} gain {'more' if rises(g) else 'less'} with more {AXES[axis]} ({points(along[axis][min(along[axis])][kind])} at "
        f"{min(along[axis]):,}, {points(along[axis][max(along[axis])][kind])} at {max(along[axis]):,})"
        for (axis, kind), g in said["changes"].items() if sure(g)
    ]  # fmt: skip
    nearest, rank = max(said["cka_over_labels"], key=lambda name: alike(found[name])), said["cka_and_top1"]
    kept = "; ".join(
        f"{kind} {points(g)}{'' if sure(g) else ', not distinguishable'}" for kind, g in said["later"].items()
    )
    whole = ", ".join(f"{kind} {100 * np.mean(by['old']):.1f} %" for kind, by in later["found"].items())
    edge = [kind for kind, factor in later["factors"].items() if factor in (min(FACTORS), max(FACTORS))]
    edge = f" (the weight of {' and '.join(edge)} is at the edge of those tried)" if edge else ""
    together = "do not go together beyond chance"
    if rank["p"] < LEVEL:
        together = "go together" if rank["rho"] > 0 else "go against each other"
    close = max((gap for gap, error in errors.items() if error["p95"] <= CLOSE), default=None)
    return (
        f"Over labels alone (top-1 {mean_of(found[LABELS]['top1'], 100, 1)} %, n = {count}) the best of each kind by validation "
        f"images gains: {best}. After Holm's correction {names(rises)} of {len(over)} sources are above labels, {names(falls)} "
        f"below; of the kinds' best, {versus}. When: of {len(said['changes'])} differences between the ends of an axis, "
        f"{'; '.join(moved) or 'none is more than chance'}. {nearest} makes embeddings most like the teacher's (CKA "
        f"{alike(found[nearest]):.2f}, by labels {alike(found[LABELS]):.2f}: "
        f"{difference(said['cka_over_labels'][nearest], 1, 2)}); over the {rank['sources']} rows, likeness and top-1 {together} "
        f"(ρ = {rank['rho']:.2f}, p = {rank['p']:.2g}). Against forgetting, five classes after five, the part known, "
        f"mean top-1 over labels alone: {kept}{edge}; told apart among all classes, of old images are still known: {whole}. "
        f"Second-order KD is KL within {100 * CLOSE:g} % for 95 % of images "
        f"{'at no gap tried' if close is None else f'up to a gap of {close:g}'}."
    )


def finding(
    folder: Path, found: dict[str, Any], tuned: dict[str, Any], ratios: dict[str, float], chosen: dict[str, str],
    axes: dict[str, Any], later: dict[str, Any], errors: dict[float, Any], facts: dict[str, Any],
) -> Finding:  # fmt: skip
    """What all of it says; pictures are drawn in the folder."""
    said = compared(found, chosen, axes, later["found"])
    kind_of = {name: kind for kind, names in KINDS.items() for name in names}
    plot_gains(said["over_labels"], kind_of, folder / "gains.png")
    plot_axes(said["along"], chosen, USUAL, folder / "axes.png")
    plot_alignment(found, {LABELS: LABELS} | chosen, LAYERS, folder / "cka.png")
    seeds = len(found[LABELS]["top1"])
    joined = lambda by, word: {word.join(key): gain for key, gain in by.items()}
    return Finding(
        question="Features, logits or gradients: which source of the teacher's knowledge helps, and when?",
        papers=PAPERS,
        design=design(facts, seeds),
        verdict=verdict(found, said, chosen, errors, later),
        published=(
            "The paper's abstract says that logits are generally the more efficient source, and that a sufficient feature "
            "dimension is crucial; its tables were not available to us, there is no official code, and how it scales its "
            "weights, at which temperature, and which gradients it takes is not verified. The formulas here follow from the "
            "second-order form of KL. It studies compression and incremental learning, with networks and data that were not "
            "verified; here networks are small, images grey, training short, the features one layer's, the pooled embedding, "
            "and the teacher's head on it linear, so that full F on features is second-order KD through the teacher's own head."
        ),
        tables=tables(found, said, tuned, ratios, kind_of, chosen, axes, later, errors, facts),
        pictures=(
            ("What a source is worth", "gain of top-1 over labels by source, with intervals", folder / "gains.png"),
            ("When", "gain of top-1 over labels by number of classes, images and width", folder / "axes.png"),
            ("Which layers become alike", "CKA of the student's layers and the teacher's", folder / "cka.png"),
        ),
        numbers={
            "found": found, "tuned": tuned, "ratios": ratios, "chosen": chosen, "axes": axes, "second_order": errors,
            "over_labels": said["over_labels"], "between": joined(said["between"], " less "),
            "changes": joined(said["changes"], ", "), "incremental": later, "incremental_over_labels": said["later"],
            "along": said["along"], "cka_over_labels": said["cka_over_labels"], "cka_and_top1": said["cka_and_top1"],
            "facts": facts,
        },
    )  # fmt: skip


def design(facts: Mapping[str, Any], seeds: int) -> str:
    ratios = ", ".join(f"{r:g}" for r in facts["ratios"])
    return (
        f"small_cnn of width {TEACHER_WIDTH}, two convolutions a stage, learns {facts['images']:,} embedded images of "
        f"Fashion-MNIST with their labels in {facts['teacher_steps']:,} steps (test top-1 {100 * facts['teacher_top1']:.1f} %), "
        f"and teaches small_cnn of width {USUAL['width']}, one convolution a stage: {facts['steps']:,} steps of 64 images, drawn "
        f"with replacement, none cropped or flipped, by SGD (rate {RATE:g}, momentum 0.9, cosine). A student's loss is the "
        "cross-entropy of labels, and a weight times one source: KL of logits; the squared gap of logits or pooled embeddings "
        "with weight 1, with the diagonal of the teacher's Fisher information F there (exact; of one class drawn from the "
        "teacher; the squared gradient of the label's log-likelihood), or in the quadratic form of all of F. Gradients are "
        "features weighed by the teacher's gradients. Embeddings of another width go through a learned linear projection. The "
        "weight is that at which both gradients by the embedding of fresh networks are as large, times "
        f"{ratios}: the best on {facts['validation']:,} validation images with one other seed. The control has labels alone, "
        "their cross-entropy once more with a factor tuned likewise, so that it is not behind by the length of its steps. "
        f"{seeds} seeds, the same for all; {facts['test']:,} test images. Then the best of each kind with fewer classes, more "
        "alike (two: t-shirt, shirt; in the full size also five: tops), with fewer images, or by another width of the student, "
        "one thing changed at a "
        "time; weights by the same rule, the factor as tuned. The teacher always knows all images of its classes. CKA is "
        "linear, of 1,000 test images, maps averaged over places. Incremental: a student learns the images of classes 0 to "
        f"{OLD - 1}, then, without them, those of the other classes, with its former self the teacher of its former classes' "
        "logits or of its features; the factor of the weight is the best for both parts of the validation images, as one who "
        "had forgotten could not choose it. Spread there is of the images drawn, after one first network."
    )

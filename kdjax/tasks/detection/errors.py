"""What is wrong with detections: their errors by kind with the average precision each costs, and how far edges are off."""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from kdjax.tasks.detection.average_precision import check_classes, curve, outcomes
from kdjax.tasks.detection.matching import AREAS, Detections, Matches, Objects, match, overlaps

KINDS = ("classification", "localization", "both", "duplicate", "background")
"""Kinds of wrong detections. Objects may be "missed" beside."""

WHOLE = {"all": AREAS["all"]}


@dataclasses.dataclass(frozen=True, eq=False)
class ErrorSplit:
    """Errors by kind.

    Attributes:
      ap: average precision at the threshold, mean of the classes that have objects; -1 where none has.
      counts: of each of `KINDS` the wrong detections, and "missed" objects.
      lost: how much the average precision rises if all errors of the kind, and no other, are mended. They do not add up to
        what is missing to 1.
      kinds: `[D]` index of the kind of each detection, -1 for one that is right, ignored or beyond `max_detections`.
      targets: `[D]` row of the object that a "classification" or "localization" error, or a "duplicate", is about; else -1.
      missed: `[G]` bool.
    """

    ap: float
    counts: dict[str, int]
    lost: dict[str, float]
    kinds: np.ndarray
    targets: np.ndarray
    missed: np.ndarray


def split_errors(
    detections: Detections,
    objects: Objects,
    num_classes: int,
    *,
    threshold: float = 0.5,
    background: float = 0.1,
    max_detections: int = 100,
) -> ErrorSplit:
    r"""Says of every detection that finds no object what is wrong with it, and of every object whether it was missed.

    With $t_f$ the threshold, $t_b$ the background threshold, and the largest IoU with objects of the same image, the first of

    1. localization: with one of its class $t_b \le \mathrm{IoU} < t_f$. Mended: the object is found.
    2. classification: with one of another class $\mathrm{IoU} \ge t_f$. Mended: its class is changed and the object found.
    3. duplicate: with one of its class $\mathrm{IoU} \ge t_f$, which a surer detection has found. Mended: left out.
    4. background: with any object $\mathrm{IoU} \le t_b$. Mended: left out.
    5. both: what remains, $t_b < \mathrm{IoU} < t_f$ with one of another class. Mended: left out.

    Missed are objects that nothing finds and that no error of the first two kinds would find if mended. Mended: they need not
    be found.

    Of several errors of the first two kinds about one object the surest finds it; the others are left out when their kind is
    mended, and so are all where the object is found already.

    Args:
      detections: what was found.
      objects: what there is. Crowds and difficult objects take part as in `evaluate`; what finds one is no error, and no
        error is about one.
      num_classes: classes are 0 … K - 1.
      threshold, background: $t_f$ and $t_b$.
      max_detections: so many of each class and image take part.

    Raises:
      ValueError: a class that there is not, or not `0 < background < threshold`.

    Source: Bolya, Foley, Hays, Hoffman, "TIDE: A General Toolbox for Identifying Object Detection Errors", ECCV 2020, arXiv
    2008.08115. Counts and losses are those of the authors' program, tidecv 1.0.1, but for what is ours: which
    detections are right, and how many an image has, is decided as in COCO's evaluation, recalls are COCO's, and classes
    without objects do not count. A class all of whose objects are missed leaves the mean when that is mended, and if none remains
    the mended precision is 1. A loss may be a little below 0, which tidecv cuts.
    """
    check_classes(detections, objects, num_classes)
    if not 0 < background < threshold:
        raise ValueError(f"background is {background}, threshold {threshold}; give 0 < background < threshold.")
    matches = match(detections, objects, thresholds=(threshold,), areas=WHOLE, max_detections=max_detections)
    places = np.arange(len(matches.rows))
    right, wrong = (outcome[0] for outcome in outcomes(matches, 0, places))
    counted = ~matches.object_ignored[0]
    kinds, targets = _kinds(detections, objects, matches, wrong, counted, threshold, background)

    labels, scores = detections.labels[matches.rows], detections.scores[matches.rows]
    found = np.zeros(len(counted) + 1, bool)  # one beyond, for what is about no object
    found[matches.found[0, 0][right]] = True
    totals = np.bincount(objects.labels[counted], minlength=num_classes)
    ap = _mean_precision(labels, scores, right, wrong, totals)
    about_one = np.isin(kinds, [KINDS.index("classification"), KINDS.index("localization")])
    finding = _surest(places[about_one & ~found[targets]], scores, targets)
    lost = {}
    for number, kind in enumerate(KINDS):
        mended_labels, mended = labels.copy(), right.copy()
        these = finding[kinds[finding] == number]
        mended[these], mended_labels[these] = True, objects.labels[targets[these]]
        lost[kind] = _mean_precision(mended_labels, scores, mended, wrong & (kinds != number), totals) - ap
    reachable = found.copy()
    reachable[targets[finding]] = True
    missed = counted & ~reachable[:-1]
    left = totals - np.bincount(objects.labels[missed], minlength=num_classes)
    without = _mean_precision(labels, scores, right, wrong, left)
    lost["missed"] = (1.0 if without < 0 <= ap else without) - ap

    counts = {kind: int((kinds == number).sum()) for number, kind in enumerate(KINDS)} | {"missed": int(missed.sum())}
    by_row = np.full((2, len(detections.scores)), -1)
    by_row[:, matches.rows] = kinds, targets
    return ErrorSplit(ap, counts, lost, by_row[0], by_row[1], missed)


@dataclasses.dataclass(frozen=True, eq=False)
class EdgeErrors:
    """How far the edges of found objects are off: left, top, right, bottom.

    Attributes:
      count: objects found.
      bias: `[4]` mean of detection minus object, in pixels.
      absolute: `[4]` mean of its absolute value, in pixels.
      relative: `[4]` mean of the absolute value by the object's width (left, right) or height (top, bottom).
    """

    count: int
    bias: np.ndarray
    absolute: np.ndarray
    relative: np.ndarray


def edge_differences(
    detections: Detections, objects: Objects, *, threshold: float = 0.5, max_detections: int = 100
) -> tuple[np.ndarray, np.ndarray]:
    """Edges of what was found at an IoU threshold.

    Returns:
      `[P]` rows of the objects, and `[P, 4]` edges of the detection minus those of the object, in pixels.
    """
    finding, rows = found_pairs(detections, objects, threshold=threshold, max_detections=max_detections)
    return rows, detections.boxes[finding] - objects.boxes[rows]


def found_pairs(
    detections: Detections, objects: Objects, *, threshold: float, max_detections: int
) -> tuple[np.ndarray, np.ndarray]:
    """`[P]` rows of the detections that found an object, and of these objects."""
    matches = match(detections, objects, thresholds=(threshold,), areas=WHOLE, max_detections=max_detections)
    right = outcomes(matches, 0, np.arange(len(matches.rows)))[0][0]
    return matches.rows[right], matches.found[0, 0][right]


def edge_errors(
    detections: Detections,
    objects: Objects,
    *,
    threshold: float = 0.5,
    areas: Mapping[str, tuple[float, float]] = AREAS,
    max_detections: int = 100,
) -> dict[str, EdgeErrors]:
    """`edge_differences` by the object's area; a range of which nothing was found is left out."""
    finding, rows = found_pairs(detections, objects, threshold=threshold, max_detections=max_detections)
    inside = {name: (objects.area[rows] >= low) & (objects.area[rows] <= high) for name, (low, high) in areas.items()}
    return _edge_errors(detections.boxes[finding], objects.boxes[rows], inside)


def edge_errors_by_level(
    detections: Detections,
    levels: np.ndarray,
    objects: Objects,
    *,
    threshold: float = 0.5,
    max_detections: int = 100,
) -> dict[int, EdgeErrors]:
    """`edge_differences` by the level of the pyramid, `[D]` of the detections, that found the object; a level that found
    nothing is left out."""
    finding, rows = found_pairs(detections, objects, threshold=threshold, max_detections=max_detections)
    own = np.asarray(levels)[finding]
    inside = {int(level): own == level for level in np.unique(own)}
    return _edge_errors(detections.boxes[finding], objects.boxes[rows], inside)


def _edge_errors(found: np.ndarray, true: np.ndarray, inside: Mapping[Any, np.ndarray]) -> dict[Any, EdgeErrors]:
    """Of pairs of boxes `[P, 4]`, by masks of them; of those without a pair nothing."""
    differences, sides = found - true, np.tile(true[:, 2:] - true[:, :2], 2)
    errors = {}
    for name, these in inside.items():
        if these.any():
            off = differences[these]
            relative = np.mean(np.abs(off) / sides[these], axis=0)
            errors[name] = EdgeErrors(int(these.sum()), off.mean(axis=0), np.abs(off).mean(axis=0), relative)
    return errors


def _kinds(
    detections: Detections, objects: Objects, matches: Matches, wrong, counted, threshold, background
) -> tuple[np.ndarray, np.ndarray]:
    """Index of the kind of each place of the matches, and the row of the object it is about; -1 for none."""
    kinds, targets = np.full((2, len(matches.rows)), -1)
    images = detections.images[matches.rows]
    for here, there in _by_image(np.flatnonzero(wrong), images, np.flatnonzero(counted), objects.images):
        rows = matches.rows[here]
        iou = np.pad(
            overlaps(detections.boxes[rows], objects.boxes[there]), ((0, 0), (0, 1))
        )  # one beyond, of no class
        same = detections.labels[rows][:, None] == np.append(objects.labels[there], -1)[None]
        own, other = np.where(same, iou, 0), np.where(same, 0, iou)
        nearest, instead = own.argmax(axis=1), other.argmax(axis=1)
        own, other = own.max(axis=1), other.max(axis=1)
        poorly = same.any(axis=1) & (own >= background) & (own < threshold)
        questions = poorly, other >= threshold, own >= threshold, np.maximum(own, other) <= background
        names = "localization", "classification", "duplicate", "background"
        kinds[here] = np.select(questions, [KINDS.index(name) for name in names], KINDS.index("both"))
        at = np.select(questions[:3], [nearest, instead, nearest], len(there))
        targets[here] = np.append(there, -1)[at]
    return kinds, targets


def _by_image(places, images, rows, object_images) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Places and rows of every image that has a place."""
    places = places[np.argsort(images[places], kind="stable")]
    rows = rows[np.argsort(object_images[rows], kind="stable")]
    each = np.unique(images[places])
    starts, ends = (np.searchsorted(object_images[rows], each, side=side) for side in ("left", "right"))
    groups = np.split(places, np.searchsorted(images[places], each)[1:]) if len(each) else []
    for group, start, end in zip(groups, starts, ends, strict=True):
        yield group, rows[start:end]


def _surest(places: np.ndarray, scores: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Of the places that are about one object that of the highest score."""
    places = places[np.argsort(-scores[places], kind="stable")]
    return places[np.unique(targets[places], return_index=True)[1]]


def _mean_precision(labels, scores, right, wrong, totals) -> float:
    """Mean average precision of the classes that have objects, -1 where none has."""
    order = np.lexsort((-scores, labels))
    begins = np.searchsorted(labels[order], np.arange(len(totals) + 1))
    found = []
    for k in np.flatnonzero(totals):
        rows = order[begins[k] : begins[k + 1]]
        rows = rows[right[rows] | wrong[rows]]
        found.append(curve(right[rows], wrong[rows], totals[k])[0].mean())
    return float(np.mean(found)) if found else -1.0

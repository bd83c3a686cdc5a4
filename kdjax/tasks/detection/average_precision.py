"""Average precision and recall as COCO computes them: on the host, in float64."""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from kdjax.tasks.detection.matching import AREAS, Detections, Matches, Objects, match

THRESHOLDS = np.linspace(0.5, 0.95, 10)
RECALLS = np.linspace(0, 1, 101)
SHORT = {"small": "S", "medium": "M", "large": "L"}


@dataclasses.dataclass(frozen=True, eq=False)
class Evaluation:
    """Precision and recall of T overlap thresholds, R recalls, K classes, A ranges of area, M numbers of detections.

    Attributes:
      precision: `[T, R, K, A, M]`, the best at this recall or a higher one; 0 where it is not reached. -1 for a class without
        any object that counts.
      recall: `[T, K, A, M]`, the highest that is reached; -1 likewise.
      scores: `[T, R, K, A, M]`, of the detection that reaches the recall; 0 where none does, -1 likewise.
      thresholds, recalls, areas, max_detections: what the axes stand for.
    """

    precision: np.ndarray
    recall: np.ndarray
    scores: np.ndarray
    thresholds: np.ndarray
    recalls: np.ndarray
    areas: tuple[str, ...]
    max_detections: tuple[int, ...]

    def summary(self) -> dict[str, float]:
        """Means over classes, from 0 to 1, or -1 where no class has an object that counts.

        "AP" over all thresholds, "AP50" and "AP75" at one of them if it is there, "AP_S", "AP_M", "AP_L" of objects by size, all
        with the largest number of detections; "AR1", "AR10", "AR100" by that number, over thresholds, "AR_S", "AR_M", "AR_L".
        """
        whole = self.areas[0]
        found = {"AP": self.mean_precision(whole)}
        for threshold in (0.5, 0.75):
            if np.isclose(self.thresholds, threshold).any():
                found[f"AP{threshold * 100:.0f}"] = self.mean_precision(whole, threshold)
        others = [(name, f"_{SHORT.get(name, name)}") for name in self.areas[1:]]
        found |= {f"AP{short}": self.mean_precision(name) for name, short in others}
        found |= {f"AR{most}": _mean(self.recall[:, :, 0, m]) for m, most in enumerate(self.max_detections)}
        return found | {f"AR{short}": _mean(self.recall[:, :, a, -1]) for a, (_, short) in enumerate(others, 1)}

    def mean_precision(self, area: str, threshold: float | None = None) -> float:
        """Over recalls and classes, with the most detections; over all thresholds or at the one that is given."""
        chosen = slice(None) if threshold is None else np.isclose(self.thresholds, threshold)
        return _mean(self.precision[chosen][..., self.areas.index(area), -1])

    def by_class(self) -> np.ndarray:
        """`[K]` AP of each class, -1 for one without objects."""
        return np.array([_mean(self.precision[:, :, k, 0, -1]) for k in range(self.precision.shape[2])])


def evaluate(
    detections: Detections,
    objects: Objects,
    num_classes: int,
    *,
    thresholds: Sequence[float] = tuple(THRESHOLDS),
    areas: Mapping[str, tuple[float, float]] = AREAS,
    max_detections: Sequence[int] = (1, 10, 100),
    class_agnostic: bool = False,
) -> Evaluation:
    """COCO's evaluation of boxes: the numbers of pycocotools, table for table.

    Args:
      detections: what was found, of all images.
      objects: what there is. An image in which nothing is and nothing was found need not be named.
      num_classes: K, classes are 0 … K - 1.
      thresholds: IoU from which on an object counts as found: COCO's from 0.5 to 0.95. `(0.5,)` with `Objects.difficult`
        is VOC's choice, with COCO's 101 recalls.
      areas: ranges by name, both ends included; the first is that of the main numbers.
      max_detections: how many of each class *and* image count, rising.
      class_agnostic: all classes are one, K is 1 in the result.

    Returns:
      The tables, with their means.

    Raises:
      ValueError: a class that there is not, or `max_detections` does not rise.

    Source: Lin et al., "Microsoft COCO: Common Objects in Context", ECCV 2014, arXiv 1405.0312; the rules are those of the
    program, pycocotools 2.0.

    >>> one = Objects(np.array([[0.0, 0.0, 40.0, 40.0]]), np.array([0]), np.array([7]))
    >>> found = Detections(np.array([[0.0, 0.0, 40.0, 32.0]]), np.array([0.9]), np.array([0]), np.array([7]))
    >>> print({name: round(value, 2) for name, value in evaluate(found, one, 1).summary().items() if value >= 0})
    {'AP': 0.7, 'AP50': 1.0, 'AP75': 1.0, 'AP_M': 0.7, 'AR1': 0.7, 'AR10': 0.7, 'AR100': 0.7, 'AR_M': 0.7}
    """
    check_classes(detections, objects, num_classes)
    most = tuple(int(number) for number in max_detections)
    if not most or list(most) != sorted(set(most)) or most[0] < 1:
        raise ValueError(f"max_detections is {max_detections}; give numbers from 1 on that rise, such as (1, 10, 100).")
    matches = match(
        detections, objects, thresholds=thresholds, areas=areas, max_detections=most[-1], class_agnostic=class_agnostic
    )
    if class_agnostic:
        num_classes = 1
        detections = dataclasses.replace(detections, labels=np.zeros_like(detections.labels))
        objects = dataclasses.replace(objects, labels=np.zeros_like(objects.labels))
    labels, scores = detections.labels[matches.rows], detections.scores[matches.rows]
    begins = np.searchsorted(labels, np.arange(num_classes + 1))
    counted = np.stack([np.bincount(objects.labels[~gone], minlength=num_classes) for gone in matches.object_ignored])

    shape = (len(thresholds), len(RECALLS), num_classes, len(areas), len(most))
    precision, recall, reached = np.full(shape, -1.0), np.full((shape[0], *shape[2:]), -1.0), np.full(shape, -1.0)
    for k in range(num_classes):
        for m, number in enumerate(most):
            rows = np.arange(begins[k], begins[k + 1])
            rows = rows[matches.rank[rows] < number]
            rows = rows[np.argsort(-scores[rows], kind="stable")]
            for a in np.flatnonzero(counted[:, k]):
                right, wrong = outcomes(matches, a, rows)
                for t in range(len(thresholds)):
                    precision[t, :, k, a, m], recall[t, k, a, m], at = curve(right[t], wrong[t], counted[a, k])
                    reached[t, :, k, a, m] = np.append(scores[rows], 0)[at]
    return Evaluation(precision, recall, reached, np.asarray(thresholds), RECALLS, tuple(areas), most)


def outcomes(matches: Matches, area: int, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """`[T, len(rows)]` bools each: the detections at these places of the matches that are right, and those that are wrong."""
    counts, found = ~matches.ignored[area][:, rows], matches.found[area][:, rows] >= 0
    return found & counts, ~found & counts


def curve(right: np.ndarray, wrong: np.ndarray, total: int) -> tuple[np.ndarray, float, np.ndarray]:
    """Precision at 101 recalls, of detections by falling score: `[D]` bools of which are right and which are wrong.

    Returns:
      `[101]` precision, the highest recall, and `[101]` the detection that reaches each recall, D for none.
    """
    right, wrong = np.cumsum(right, dtype=np.float64), np.cumsum(wrong, dtype=np.float64)
    recall, precision = right / total, right / (wrong + right + np.spacing(1))
    best = np.maximum.accumulate(precision[::-1])[::-1]
    at = np.searchsorted(recall, RECALLS, side="left")
    return np.append(best, 0)[at], recall[-1] if len(recall) else 0.0, at


def check_classes(detections: Detections, objects: Objects, num_classes: int) -> None:
    """Raises unless all labels are below `num_classes`."""
    for name, labels in (("detections", detections.labels), ("objects", objects.labels)):
        if labels.max(initial=-1) >= num_classes:
            row = labels.argmax()
            raise ValueError(
                f"{name}.labels is {labels[row]} in row {row}, there are {num_classes} classes; they count from 0."
            )


def _mean(table: np.ndarray) -> float:
    """Of what is defined."""
    table = table[table > -1]
    return float(table.mean()) if table.size else -1.0

"""Which detection finds which object, by the rules of COCO's evaluation: on the host, in float64."""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

AREAS = {"all": (0.0, 1e10), "small": (0.0, 32.0**2), "medium": (32.0**2, 96.0**2), "large": (96.0**2, 1e10)}
"""COCO's ranges of area in square pixels, both ends inclusive."""
OF_OBJECTS = ("area", "crowd", "difficult")
"""What a batch may say of its objects besides."""


@dataclasses.dataclass(frozen=True, eq=False)
class Detections:
    """What a detector found in any number of images, in any order.

    Attributes:
      boxes: `[D, 4]` corners (left, top, right, bottom) in pixels, of the same scale as the objects'.
      scores: `[D]`, higher is surer. Of equal scores the earlier row comes first.
      labels: `[D]` class indices from 0 on.
      images: `[D]` integers, which image. Their order is that of the images.
      area: `[D]` in square pixels; None for width times height.

    Raises:
      ValueError: shapes do not fit, or a value is nan.
    """

    boxes: np.ndarray
    scores: np.ndarray
    labels: np.ndarray
    images: np.ndarray
    area: np.ndarray | None = None

    def __post_init__(self):
        boxes, labels, images = _columns(self, "detections")
        scores = _column(self.scores, len(boxes), "detections.scores", np.float64)
        area = _areas(boxes) if self.area is None else _column(self.area, len(boxes), "detections.area", np.float64)
        if np.isnan(scores).any():
            raise ValueError(
                f"detections.scores is nan in row {np.isnan(scores).argmax()}; leave out what was not found."
            )
        _set(self, boxes=boxes, scores=scores, labels=labels, images=images, area=area)

    @classmethod
    def of_batch(cls, boxes, scores, labels, images) -> "Detections":
        """Those of `[B, M, 4]`, `[B, M]`, `[B, M]` arrays whose score is above 0, of the images `[B]`."""
        scores = np.asarray(scores)
        there = scores > 0
        image = np.broadcast_to(np.asarray(images)[:, None], scores.shape)
        return cls(np.asarray(boxes)[there], scores[there], np.asarray(labels)[there], image[there])


@dataclasses.dataclass(frozen=True, eq=False)
class Objects:
    """What there is to be found.

    Attributes:
      boxes: `[G, 4]` corners.
      labels: `[G]` class indices from 0 on.
      images: `[G]` integers, which image.
      area: `[G]` by which sizes are told apart: COCO's is that of the mask. None for width times height.
      crowd: `[G]` bool, boxes around many objects (COCO's `iscrowd`): how much of a *detection* is inside counts as overlap;
        any number of detections in it count for nothing. None for no crowd.
      difficult: `[G]` bool, objects that need not be found (VOC's): any number of detections of one, by their IoU, count for
        nothing. None for no such object.

    Raises:
      ValueError: shapes do not fit, or a value is nan.
    """

    boxes: np.ndarray
    labels: np.ndarray
    images: np.ndarray
    area: np.ndarray | None = None
    crowd: np.ndarray | None = None
    difficult: np.ndarray | None = None

    def __post_init__(self):
        boxes, labels, images = _columns(self, "objects")
        area = _areas(boxes) if self.area is None else _column(self.area, len(boxes), "objects.area", np.float64)
        none = np.zeros(len(boxes), bool)
        crowd = none if self.crowd is None else _column(self.crowd, len(boxes), "objects.crowd", bool)
        difficult = none if self.difficult is None else _column(self.difficult, len(boxes), "objects.difficult", bool)
        _set(self, boxes=boxes, labels=labels, images=images, area=area, crowd=crowd, difficult=difficult)

    @classmethod
    def of_batch(cls, boxes, labels, mask, images, **more) -> "Objects":
        """Those of `[B, G, 4]`, `[B, G]`, `[B, G]` arrays where the mask is True, of the images `[B]`.

        `area`, `crowd` and `difficult` are `[B, G]` too.
        """
        there = np.asarray(mask, bool)
        image = np.broadcast_to(np.asarray(images)[:, None], there.shape)
        more = {name: np.asarray(array)[there] for name, array in more.items()}
        return cls(np.asarray(boxes)[there], np.asarray(labels)[there], image[there], **more)


@dataclasses.dataclass(frozen=True, eq=False)
class Matches:
    """Who found what, for A ranges of area and T thresholds; D detections, sorted by class, then image, then falling score.

    Attributes:
      rows: `[D]` rows of the detections that take part.
      rank: `[D]` of each among those of its class and image, from 0 on.
      found: `[A, T, D]` int32 row of the object that it found, or -1.
      ignored: `[A, T, D]` bool, neither right nor wrong.
      object_ignored: `[A, G]` bool, objects that need not be found; by row.
    """

    rows: np.ndarray
    rank: np.ndarray
    found: np.ndarray
    ignored: np.ndarray
    object_ignored: np.ndarray


def match(
    detections: Detections,
    objects: Objects,
    *,
    thresholds: Sequence[float],
    areas: Mapping[str, tuple[float, float]] = AREAS,
    max_detections: int = 100,
    class_agnostic: bool = False,
) -> Matches:
    """Matches detections with objects of their class and image, the surest first.

    A detection takes, of the objects that overlap it at least by the threshold and are not taken, the one of the largest
    overlap, of equal ones the last; one that need not be found (crowd, difficult, of another size) only if there is no other.
    What finds such an object is ignored, and so is what finds nothing and is itself of another size.

    Args:
      detections: what was found.
      objects: what there is.
      thresholds: least overlaps, each on its own.
      areas: ranges of area by name, each on its own; both ends belong to them.
      max_detections: so many of each class *and* image take part, by falling score.
      class_agnostic: classes make no difference; the limit is one of the image then.

    Returns:
      The matches.
    """
    group = np.zeros_like if class_agnostic else np.asarray
    _, image = np.unique(np.concatenate([detections.images, objects.images]), return_inverse=True)
    count = image.max(initial=0) + 1
    place = group(detections.labels) * count + image[: len(detections.images)]
    object_place = group(objects.labels) * count + image[len(detections.images) :]

    rows = np.lexsort((detections.labels, -detections.scores, place))
    place = place[rows]
    rank = np.arange(len(rows)) - np.searchsorted(place, place)
    kept = rank < max_detections
    rows, rank, place = rows[kept], rank[kept], place[kept]

    limits = np.array(list(areas.values()), np.float64).reshape(-1, 2, 1)
    outside = lambda area: (area < limits[:, 0]) | (area > limits[:, 1])
    object_ignored = objects.crowd | objects.difficult | outside(objects.area)
    least = np.minimum(np.asarray(thresholds, np.float64), 1 - 1e-10)

    found = np.full((len(limits), len(least), len(rows)), -1, np.int32)
    object_rows = np.lexsort((objects.labels, object_place))
    places, starts = np.unique(object_place[object_rows], return_index=True)
    ends = np.append(starts, len(object_rows))[1:]
    firsts, lasts = np.searchsorted(place, places), np.searchsorted(place, places, side="right")
    for start, end, first, last in zip(starts, ends, firsts, lasts, strict=True):
        if first < last:
            theirs = object_rows[start:end]
            overlap = overlaps(detections.boxes[rows[first:last]], objects.boxes[theirs], objects.crowd[theirs])
            free = objects.crowd[theirs] | objects.difficult[theirs]
            _match(overlap, least, object_ignored[:, theirs], free, theirs, found[..., first:last])
    which = np.arange(len(limits))[:, None, None]
    padded = np.concatenate([object_ignored, np.zeros((len(limits), 1), bool)], axis=1)
    ignored = np.where(found >= 0, padded[which, found], outside(detections.area[rows])[:, None])
    return Matches(rows, rank, found, ignored, object_ignored)


def overlaps(boxes: np.ndarray, others: np.ndarray, crowd: np.ndarray | None = None) -> np.ndarray:
    """IoU `[M, K]` of boxes `[M, 4]` with others `[K, 4]`; with a crowd, the share of the box inside. Empty boxes have none."""
    low = np.maximum(boxes[:, None, :2], others[None, :, :2])
    high = np.minimum(boxes[:, None, 2:], others[None, :, 2:])
    shared = np.prod(np.maximum(high - low, 0), axis=-1)
    own = np.broadcast_to(_areas(boxes)[:, None], shared.shape)
    union = own + _areas(others)[None] - shared
    whole = union if crowd is None else np.where(crowd[None], own, union)
    return np.divide(shared, whole, out=np.zeros_like(shared), where=shared > 0)


def _match(overlap, least, ignored, free, names, found) -> None:
    """One class of one image: writes `names` of the objects into `found` `[A, T, D]`, detections by falling score.

    `overlap` is `[D, G]`, `ignored` `[A, G]`; objects that are `free` may be taken again.
    """
    ordinary = ~ignored[:, None]
    open_ = np.ones((*found.shape[:2], len(names)), bool)
    a, t = np.ogrid[: found.shape[0], : found.shape[1]]
    for d in np.flatnonzero(overlap.max(axis=1) >= least.min()):
        may = open_ & (overlap[d] >= least[:, None])
        better = may & ordinary
        may = np.where(better.any(axis=-1, keepdims=True), better, may)
        which = len(names) - 1 - np.argmax(np.where(may, overlap[d], -1.0)[..., ::-1], axis=-1)
        taken = may[a, t, which]
        found[..., d] = np.where(taken, names[which], -1)
        open_[a, t, which] &= ~taken | free[which]


def _areas(boxes: np.ndarray) -> np.ndarray:
    return np.prod(np.maximum(boxes[:, 2:] - boxes[:, :2], 0), axis=1)


def _columns(arrays, name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    boxes = np.asarray(arrays.boxes, np.float64)
    if boxes.ndim != 2 or boxes.shape[1] != 4:
        raise ValueError(
            f"{name}.boxes has shape {boxes.shape}; it must be [N, 4], the boxes of all images in one list."
        )
    if np.isnan(boxes).any():
        raise ValueError(f"{name}.boxes is nan in row {np.isnan(boxes).any(axis=1).argmax()}; leave padding out.")
    labels = _column(arrays.labels, len(boxes), f"{name}.labels", np.int64)
    if (labels < 0).any():
        row = (labels < 0).argmax()
        raise ValueError(f"{name}.labels is {labels[row]} in row {row}; leave padding out, classes count from 0.")
    return boxes, labels, _column(arrays.images, len(boxes), f"{name}.images", np.int64)


def _column(array, rows: int, name: str, dtype) -> np.ndarray:
    array = np.asarray(array)
    if array.shape != (rows,):
        raise ValueError(f"{name} has shape {array.shape}, there are {rows} boxes: give one value for each.")
    return array.astype(dtype)


def _set(arrays, **values) -> None:
    for name, value in values.items():
        object.__setattr__(arrays, name, value)


def found_and_true(sums: dict[str, np.ndarray]) -> tuple[Detections, Objects]:
    """What was found and what there is of an evaluation's examples, by the order of the data set."""
    rows = np.flatnonzero(sums["where"])
    rows = rows[np.argsort(sums["index"][rows], kind="stable")]
    of = {name: value[rows] for name, value in sums.items()}
    scale = np.tile(of["scale"], 2)[:, None] if "scale" in of else 1.0  # areas are those of the pictures as they are
    more = {name: of[name] for name in OF_OBJECTS if name in of}
    return (
        Detections.of_batch(of["boxes"] / scale, of["scores"], of["labels"], of["index"]),
        Objects.of_batch(of["true_boxes"] / scale, of["true_labels"], of["true_labels"] >= 0, of["index"], **more),
    )

"""From the outputs of a dense head to detections, on the device and in fixed shapes."""

import functools
from collections.abc import Sequence
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from kdjax.losses import distance2bbox, integral
from kdjax.tasks.detection.suppression import nms, take

Array = jax.Array
Rule = Literal["pairs", "locations"]


class Detected(NamedTuple):
    """M detections an image, by falling score.

    Attributes:
      boxes: `[B, M, 4]` corners in pixels of the original image, 0 where there is none.
      scores: `[B, M]` in 0 … 1, 0 where there is none.
      labels: `[B, M]` int32 class indices, -1 where there is none.
      levels: `[B, M]` int32, of which level of the pyramid each is, -1 where there is none; None where there are no levels.
    """

    boxes: Array
    scores: Array
    labels: Array
    levels: Array | None = None


@functools.partial(
    jax.jit,
    static_argnames=("level_sizes", "iou_threshold", "candidates", "max_detections", "rule", "background"),
)
def detect(
    class_logits: ArrayLike,
    edges: ArrayLike,
    points: ArrayLike | None,
    strides: ArrayLike | None,
    image_sizes: ArrayLike,
    scale_factors: ArrayLike | None = None,
    *,
    centreness: ArrayLike | None = None,
    level_sizes: Sequence[int],
    score_threshold: ArrayLike = 0.05,
    iou_threshold: float = 0.6,
    candidates: int = 1000,
    max_detections: int = 100,
    rule: Rule = "pairs",
    background: bool = False,
) -> Detected:
    r"""The detections of a head such as GFL's: score, choose, decode, cut to the image, suppress.

    Of each level the `candidates` pairs of location and class whose score, a sigmoid, is highest and above `score_threshold`;
    their boxes from the distances of the edges, cut to the image; of those of one class that overlap more than
    `iou_threshold` the surest (`nms`); the `max_detections` surest of all levels and classes.

    Args:
      class_logits: `[B, A, C]`, locations level by level. nan counts as no detection, and so does a box that is not finite.
      edges: `[B, A, 4 K]` logits of K bins for each of left, top, right, bottom, edge by edge; or `[B, A, 4]` distances. Both in
        strides. Without points, `[B, A, 4]` corners of boxes in pixels of the batch.
      points: `[A, 2]` (x, y) of the locations, in pixels of the batch; None where `edges` are boxes.
      strides: `[A]` pixels of each location's level; None likewise.
      image_sizes: `[B, 2]` height and width of each image as the network sees it, without padding; boxes are cut to it.
      scale_factors: `[B, 2]` of width and height, by how much each image was enlarged; boxes are divided by it. None: they were
        not. (mmdetection repeats the two: `[:2]` of its four.)
      centreness: `[B, A]` logits; the scores of the chosen are multiplied by their sigmoid. The threshold is of scores without.
      level_sizes: locations of each level, a tuple.
      score_threshold: a score must be above it; may be traced.
      iou_threshold, max_detections: of `nms`.
      candidates: the most of a level.
      rule: "pairs" as above, mmdetection 3's. "locations": of each level those of the highest best score, each with all its
        classes, whatever their score: mmdetection 2's, which published results of localization distillation used. The two
        differ only where more pairs are above the threshold than `candidates`, and the second compares C times the boxes.
      background: scores are a softmax whose last class, the background, is no detection.

    Returns:
      The detections.

    Raises:
      TypeError: outputs are not floating point.
      ValueError: shapes do not fit, or `rule` is neither.

    Source: `filter_scores_and_topk` and `_bbox_post_process` of mmdetection 3.3.

    >>> logits = jnp.array([[[-9.0, 2.0], [-9.0, 1.0]]])
    >>> points, strides = jnp.array([[8.0, 8.0], [10.0, 8.0]]), jnp.array([4.0, 4.0])
    >>> found = detect(logits, jnp.ones((1, 2, 4)), points, strides, jnp.array([[64, 64]]), level_sizes=(2,), max_detections=1)
    >>> print(found.boxes[0, 0], found.labels[0])
    [ 4.  4. 12. 12.] [1]
    """
    class_logits, edges = jnp.asarray(class_logits), jnp.asarray(edges)
    if points is not None:
        points, strides = jnp.asarray(points), jnp.asarray(strides)
    _check(class_logits, edges, points, strides, image_sizes, scale_factors, centreness, level_sizes, rule)
    dtype = jnp.promote_types(class_logits.dtype, jnp.float32)
    class_logits = class_logits.astype(dtype)
    scores = jax.nn.softmax(class_logits)[..., :-1] if background else jax.nn.sigmoid(class_logits)
    scores = jnp.where(scores > score_threshold, scores, 0)  # and where it is nan

    chosen = _pairs if rule == "pairs" else _locations
    found, start = [], 0
    for number, size in enumerate(level_sizes):
        score, location, label = chosen(lax.slice_in_dim(scores, start, start + size, axis=1), candidates)
        found.append((score, location + start, label, jnp.full_like(location, number)))
        start += size
    score, location, label, level = (jnp.concatenate(parts, axis=1) for parts in zip(*found, strict=True))

    edges = jnp.take_along_axis(edges, location[..., None], axis=1).astype(dtype)
    if points is None:
        boxes = edges
    else:
        distances = edges if edges.shape[-1] == 4 else integral(jnp.reshape(edges, (*edges.shape[:-1], 4, -1)))
        distances = distances * jnp.take(strides, location)[..., None].astype(dtype)
        boxes = distance2bbox(jnp.take(points, location, axis=0).astype(dtype), distances)
    if centreness is not None:
        central = jax.nn.sigmoid(jnp.take_along_axis(jnp.asarray(centreness, dtype), location, axis=1))
        score = jnp.where(score > 0, score * central, 0)
    limit = jnp.tile(jnp.asarray(image_sizes, dtype)[:, ::-1], 2)[:, None]
    boxes = jnp.clip(boxes, 0, jnp.broadcast_to(limit, boxes.shape))
    if scale_factors is not None:
        boxes = boxes / jnp.tile(jnp.asarray(scale_factors, dtype), 2)[:, None]

    there = (score > 0) & jnp.all(jnp.isfinite(boxes), axis=-1)
    ranked = jnp.where(there, score, -jnp.inf)
    keep = nms(boxes, ranked, label, iou_threshold=iou_threshold, max_detections=max_detections)
    return Detected(take(keep, boxes, 0), take(keep, score, 0), take(keep, label, -1), take(keep, level, -1))


def _pairs(scores: Array, candidates: int) -> tuple[Array, Array, Array]:
    """Score, location and class, `[B, n]` each, of the best pairs of one level `[B, A, C]`."""
    batch, size, classes = scores.shape
    best, index = lax.top_k(jnp.reshape(scores, (batch, size * classes)), min(candidates, size * classes))
    return best, index // classes, index % classes


def _locations(scores: Array, candidates: int) -> tuple[Array, Array, Array]:
    """The same of all classes of the best locations of one level."""
    batch, size, _ = scores.shape
    location = lax.top_k(jnp.max(scores, axis=-1), min(candidates, size))[1]
    best = jnp.take_along_axis(scores, location[..., None], axis=1)
    label = lax.broadcasted_iota(jnp.int32, best.shape, 2)
    location = jnp.broadcast_to(location[..., None], best.shape)
    return tuple(jnp.reshape(part, (batch, -1)) for part in (best, location, label))


def _check(class_logits, edges, points, strides, image_sizes, scale_factors, centreness, level_sizes, rule) -> None:
    if class_logits.ndim != 3:
        raise ValueError(f"class_logits has shape {class_logits.shape}; it must be [B, A, C].")
    for name, array in (("class_logits", class_logits), ("edges", edges)):
        if not jnp.issubdtype(array.dtype, jnp.floating):
            raise TypeError(f"{name} is {array.dtype}; it must be floating point.")
    batch, locations, _ = class_logits.shape
    if edges.ndim != 3 or edges.shape[:2] != (batch, locations) or edges.shape[2] % 4 or not edges.shape[2]:
        raise ValueError(f"edges has shape {edges.shape}; it must be {[batch, locations]} with 4 or 4 K values each.")
    expected = {"image_sizes": (jnp.asarray(image_sizes), (batch, 2))}
    if points is not None:
        expected |= {"points": (points, (locations, 2)), "strides": (strides, (locations,))}
    elif edges.shape[2] != 4:
        raise ValueError(f"edges has shape {edges.shape}; without points it must be boxes, {[batch, locations, 4]}.")
    if centreness is not None:
        expected["centreness"] = jnp.asarray(centreness), (batch, locations)
    if scale_factors is not None:
        expected["scale_factors"] = jnp.asarray(scale_factors), (batch, 2)
    for name, (array, shape) in expected.items():
        if array.shape != shape:
            raise ValueError(f"{name} has shape {array.shape}; class_logits {class_logits.shape} asks for {shape}.")
    if sum(level_sizes) != locations:
        raise ValueError(f"level_sizes adds up to {sum(level_sizes)}, there are {locations} locations.")
    if rule not in ("pairs", "locations"):
        raise ValueError(f'rule is {rule!r}; use "pairs" or "locations".')

"""How sure networks are of an object's edges, their distributions at one location over each other; and how far off they are."""

from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from kdjax.losses import pairwise_box_iou
from kdjax.models.detectors import DetectorOutput
from kdjax.objectives.detection.locations import decoded
from kdjax.tasks.detection.drawing import COLOURS, TRUE, draw_box, pyplot, show_picture
from kdjax.tasks.detection.errors import EdgeErrors

EDGES = ("left", "top", "right", "bottom")
MOST = 4  # objects that are drawn


class Place(NamedTuple):
    """An object of a picture, and the location that is looked at."""

    picture: int
    object: int
    location: int


def comparable(outputs: dict[str, DetectorOutput]) -> dict[str, DetectorOutput]:
    """Those whose edges are distributions at the same locations and of the same bins as the first that has any."""
    distributed = {name: output for name, output in outputs.items() if getattr(output, "edge_logits", None) is not None}
    of = lambda output: (output.places, output.edge_logits.shape)
    first = next((of(output) for output in distributed.values()), None)
    return {name: output for name, output in distributed.items() if of(output) == first}


def places(output: DetectorOutput, boxes: np.ndarray, labels: np.ndarray) -> list[Place]:
    """Of each picture the object whose edges a network is least sure of, at the location whose box fits it best."""
    found = []
    said = np.asarray(decoded(output, output.grid))
    spreads = np.mean(spread(np.asarray(output.edge_logits)), axis=-1)
    for i, (own, kinds) in enumerate(zip(boxes, labels, strict=True)):
        there = np.flatnonzero(kinds >= 0)
        if not len(there):
            continue
        best = np.asarray(pairwise_box_iou(said[i], own[there].astype(said.dtype))).argmax(axis=0)
        widest = int(spreads[i][best].argmax())
        found.append(Place(i, int(there[widest]), int(best[widest])))
    return found


def spread(edge_logits: np.ndarray) -> np.ndarray:
    """`[..., K]` to the standard deviation of the distribution, in bins."""
    p, bins = np.asarray(jax.nn.softmax(edge_logits)), np.arange(edge_logits.shape[-1])
    mean = (p * bins).sum(axis=-1, keepdims=True)
    return np.sqrt((p * (bins - mean) ** 2).sum(axis=-1))


def draw_edges(chosen: dict[str, Any], outputs: dict[str, DetectorOutput], path: Path) -> bool:
    """A row an object, the picture and its four edges: the probability of every distance from the location, a line a network;
    the true distance dotted. Nothing where no two networks have distributions that compare: False."""
    outputs = comparable(outputs)
    if len(outputs) < 2:
        return False
    first = next(iter(outputs.values()))
    targets = chosen["targets"]
    rows = places(first, targets["boxes"], targets["labels"])[:MOST]
    if not rows:
        return False
    plt = pyplot()
    made, axes = plt.subplots(len(rows), 5, figsize=(9.5, 1.8 * len(rows) + 0.5), squeeze=False, layout="constrained")
    points, strides = np.asarray(first.grid.points), np.asarray(first.grid.strides)
    for place, row in zip(rows, axes, strict=True):
        box, point = targets["boxes"][place.picture][place.object], points[place.location]
        stride = strides[place.location]
        show_picture(row[0], chosen["inputs"]["image"][place.picture])
        draw_box(row[0], box, TRUE, style=":")
        row[0].plot(*(point - 0.5), "+", color=TRUE)
        truth = np.concatenate([point - box[:2], box[2:] - point])
        for edge, axis in enumerate(row[1:]):
            for i, (name, output) in enumerate(outputs.items()):
                p = np.asarray(jax.nn.softmax(output.edge_logits[place.picture, place.location, edge]))
                width = 1.2 if i else 3.0  # under the others
                axis.plot(np.arange(len(p)) * stride, p, color=COLOURS[i % len(COLOURS)], label=name, linewidth=width)
            axis.axvline(truth[edge], color="#111", linestyle=":", linewidth=1)
            axis.set_ylim(0, 1)
            axis.set_yticks([])
            axis.spines[["top", "right", "left"]].set_visible(False)
            axis.tick_params(labelsize=7)
    for edge, axis in zip(EDGES, axes[0][1:], strict=True):
        axis.set_title(f"{edge}, pixels", fontsize=8)
    handles, names = axes[0][1].get_legend_handles_labels()
    made.legend(handles, names, loc="outside lower center", ncols=min(len(names), 6), frameon=False, fontsize=8)
    made.savefig(path, dpi=150)
    plt.close(made)
    return True


def draw_level_errors(off: dict[str, dict[int, EdgeErrors]], path: Path) -> bool:
    """For each edge bars by the stride of the level, a colour a network; under a stride how many objects each of them found.
    Nothing where no network found anything: False."""
    strides = sorted({stride for errors in off.values() for stride in errors})
    if not strides:
        return False
    plt = pyplot()
    made, axes = plt.subplots(1, 4, figsize=(9.5, 2.8), sharey=True, layout="constrained")
    width = 0.8 / len(off)
    counts = ["\n".join(str(errors[s].count) if s in errors else "0" for errors in off.values()) for s in strides]
    for edge, (side, axis) in enumerate(zip(EDGES, axes, strict=True)):
        for i, (name, errors) in enumerate(off.items()):
            height = [errors[stride].absolute[edge] if stride in errors else 0 for stride in strides]
            axis.bar(np.arange(len(strides)) + i * width, height, width, label=name, color=COLOURS[i % len(COLOURS)])
        axis.set_xticks(np.arange(len(strides)) + 0.4 - width / 2,
                        [f"{s}\n{n}" if edge == 0 else str(s) for s, n in zip(strides, counts, strict=True)])  # fmt: skip
        axis.set_title(side, fontsize=8)
        axis.spines[["top", "right"]].set_visible(False)
        axis.tick_params(labelsize=7)
    axes[0].set_ylabel("pixels", fontsize=8)
    axes[0].set_xlabel("stride, and objects found", fontsize=8)
    handles, names = axes[0].get_legend_handles_labels()
    made.legend(handles, names, loc="outside lower center", ncols=min(len(names), 6), frameon=False, fontsize=8)
    made.savefig(path, dpi=150)
    plt.close(made)
    return True

"""Pictures of a comparison's report: what was found, how sure the networks are of edges and how far off, and what precision is
lost to."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from kdjax.data import evaluation_batches
from kdjax.data.errors import DataError, note
from kdjax.tasks.detection.drawing import draw_errors, draw_side_by_side
from kdjax.tasks.detection.edges import draw_edges, draw_level_errors
from kdjax.tasks.detection.errors import EdgeErrors, edge_errors_by_level
from kdjax.tasks.detection.matching import OF_OBJECTS, Detections, Objects

SHOWN, MOST_SHOWN = 6, 6  # pictures, and networks beside each other
MEASURED = 256  # pictures, evenly spaced, in which edges are measured by level


def pictures_of(
    data: Any, comparison: dict[str, Any], folder: Path, load: Callable[[Path], Callable]
) -> tuple[tuple[str, str, Path], ...]:
    """As `Task.pictures`, of the task `data`."""
    draw_errors(comparison["methods"], folder / "errors.png")
    errors = ("What average precision is lost to", "points by kind of error and method", folder / "errors.png")
    try:
        held = data.load().held
    except DataError as error:  # a folder of data sets that is not the usual one
        note(f"the report shows no pictures: {error}")
        return (errors,)
    groups = getattr(held, "groups", None)
    alike = np.arange(len(held)) if groups is None else np.flatnonzero(groups == groups[0])  # on one canvas
    more = {} if groups is None else {"together": alike[:SHOWN]}
    chosen = held.read(alike[:SHOWN], **more)
    networks = {"teacher": folder / "teacher"} if (folder / "teacher").exists() else {}
    for name, summary in comparison["methods"].items():
        networks[name] = folder / name / f"seed{summary['seeds'][0]}"
    found, said, off = {}, {}, {}
    measured = measured_rows(len(held), data.eval_batch_size)
    for name, place in list(networks.items())[:MOST_SHOWN]:
        network = jax.jit(load(place))
        output = said[name] = network(chosen["inputs"])
        found[name] = jax.device_get(data.found(output, chosen["inputs"]))
        off[name] = by_level(data, held, measured, network) if found[name].levels is not None else {}
    draw_side_by_side(chosen, found, held.class_names, folder / "found.png")
    edges = (
        "How sure they are of edges",
        "distributions of the distance of each edge, of the object that the first is least sure of; the true one dotted",
        folder / "edges.png",
    )
    levels = (
        "How far edges are off",
        f"mean distance in pixels, of what the first seed of each finds in {len(measured)} pictures, by the stride of "
        "the level that found it",
        folder / "levels.png",
    )
    return (
        *((edges,) if draw_edges(chosen, said, folder / "edges.png") else ()),
        *((levels,) if draw_level_errors(off, folder / "levels.png") else ()),
        (
            "What was found",
            "pictures with their objects, and what the first seed of each finds",
            folder / "found.png",
        ),
        errors,
    )


def measured_rows(size: int, batch_size: int) -> np.ndarray:
    """Rows of the pictures in which edges are measured: whole batches, so that nothing is compiled twice."""
    most = min(size, MEASURED)
    step = min(batch_size, most)
    return np.linspace(0, size - 1, most // step * step).astype(int)


def by_level(data: Any, held: Any, rows: np.ndarray, network: Callable) -> dict[int, EdgeErrors]:
    """How far the edges of what a network finds in some pictures are off, by the stride of the level that found it; in pixels of
    their files."""
    found, there, levels = [], [], []
    for batch in evaluation_batches(held, rows, min(data.eval_batch_size, len(rows))):
        output = network(batch.inputs)
        said = jax.device_get(data.found(output, batch.inputs))
        real, targets = batch.where, batch.targets
        scale = np.tile(targets["scale"], 2)[:, None] if "scale" in targets else 1.0
        found.append(tuple(x[real] for x in (said.boxes / scale, said.scores, said.labels, batch.index)))
        levels.append(said.levels[real][said.scores[real] > 0])
        there.append(
            {name: x[real] for name, x in (targets | {"boxes": targets["boxes"] / scale, "index": batch.index}).items()}
        )
    targets = {name: np.concatenate([each[name] for each in there]) for name in there[0]}
    more = {name: targets[name] for name in OF_OBJECTS if name in targets}
    detections = Detections.of_batch(*(np.concatenate(parts) for parts in zip(*found, strict=True)))
    objects = Objects.of_batch(targets["boxes"], targets["labels"], targets["labels"] >= 0, targets["index"], **more)
    errors = edge_errors_by_level(detections, np.concatenate(levels), objects, max_detections=data.max_detections)
    return {output.strides[level]: error for level, error in errors.items()}

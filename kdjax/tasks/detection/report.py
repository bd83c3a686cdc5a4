"""Pictures of a comparison's report: what was found, how sure the networks are of edges, and what precision is lost to."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from kdjax.data.errors import DataError, note
from kdjax.tasks.detection.drawing import draw_errors, draw_side_by_side
from kdjax.tasks.detection.edges import draw_edges

SHOWN, MOST_SHOWN = 6, 6  # pictures, and networks beside each other


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
    chosen = held.read(np.arange(min(len(held), SHOWN)))
    networks = {"teacher": folder / "teacher"} if (folder / "teacher").exists() else {}
    for name, summary in comparison["methods"].items():
        networks[name] = folder / name / f"seed{summary['seeds'][0]}"
    found, said = {}, {}
    for name, place in list(networks.items())[:MOST_SHOWN]:
        output = said[name] = jax.jit(load(place))(chosen["inputs"])
        found[name] = jax.device_get(data.found(output, chosen["inputs"]))
    draw_side_by_side(chosen, found, held.class_names, folder / "found.png")
    edges = (
        "How sure they are of edges",
        "distributions of the distance of each edge, of the object that the first is least sure of; the true one dotted",
        folder / "edges.png",
    )
    return (
        *((edges,) if draw_edges(chosen, said, folder / "edges.png") else ()),
        (
            "What was found",
            "pictures with their objects, and what the first seed of each finds",
            folder / "found.png",
        ),
        errors,
    )

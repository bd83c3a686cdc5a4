"""Pictures with boxes in them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from kdjax.tasks.detection.decoding import Detected

TRUE, SURE = "#ffffff", 0.3  # what is less sure is not drawn beside others
COLOURS = ("#ff6b6b", "#4dabf7", "#69db7c", "#ffd43b", "#da77f2", "#ffa94d", "#38d9a9", "#f783ac")
KINDS = ("classification", "localization", "both", "duplicate", "background", "missed")


def pyplot() -> Any:
    """matplotlib's, without a window."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as made

    return made


def show_picture(axes: Any, image: np.ndarray) -> None:
    axes.imshow(image[..., 0] if image.shape[-1] == 1 else image, cmap="gray", vmin=0, vmax=255)
    axes.set_xticks([])
    axes.set_yticks([])


def draw_box(axes: Any, box: np.ndarray, colour: str, text: str = "", style: str = "-") -> None:
    left, top, right, bottom = box - 0.5  # a pixel is drawn around its number
    axes.plot([left, right, right, left, left], [top, top, bottom, bottom, top], style, color=colour, linewidth=1.3)
    if text:
        axes.annotate(text, (left, top), (1, 1), textcoords="offset points", color=colour, fontsize=7)


def called(names: Sequence[str], label: int) -> str:
    """The name of a class, or its number where it has none."""
    return names[label] if label < len(names) else str(label)


def draw_one(image: np.ndarray, found: Detected, names: Sequence[str], path: Path) -> None:
    """One picture with what was found in it, into a file."""
    height, width = image.shape[:2]
    made, axes = pyplot().subplots(figsize=(5, 5 * height / width), layout="constrained")
    show_picture(axes, image)
    for box, score, label in zip(found.boxes[0], found.scores[0], found.labels[0], strict=True):
        if label >= 0 and score >= SURE:
            draw_box(axes, box, COLOURS[label % len(COLOURS)], f"{called(names, label)} {score:.2f}")
    made.savefig(path, dpi=120)
    pyplot().close(made)


def draw_side_by_side(chosen: dict[str, Any], found: dict[str, Detected], names: Sequence[str], path: Path) -> None:
    """A row a network, a column a picture: objects dotted, and what was found with a score of 0.3 and more, coloured by class."""
    images, targets = chosen["inputs"]["image"], chosen["targets"]
    plt = pyplot()
    size = (1.7 * len(images), 1.7 * len(found) + 0.4)
    made, rows = plt.subplots(len(found), len(images), figsize=size, squeeze=False, layout="constrained")
    for (name, said), row in zip(found.items(), rows, strict=True):
        for i, axes in enumerate(row):
            show_picture(axes, images[i])
            for box, label in zip(targets["boxes"][i], targets["labels"][i], strict=True):
                if label >= 0:
                    draw_box(axes, box, TRUE, style=":")
            for box, score, label in zip(said.boxes[i], said.scores[i], said.labels[i], strict=True):
                if label >= 0 and score >= SURE:
                    draw_box(axes, box, COLOURS[label % len(COLOURS)])
        row[0].set_ylabel(name, fontsize=9)
    handles = [plt.Line2D([], [], color=COLOURS[i % len(COLOURS)], label=name) for i, name in enumerate(names)]
    made.legend(handles=handles, loc="outside lower center", ncols=min(len(names), 8), frameon=False, fontsize=8)
    made.savefig(path, dpi=150)
    plt.close(made)


def draw_errors(methods: dict[str, Any], path: Path) -> None:
    """Bars: points of AP50 that are lost to each kind of error, by method, the mean over seeds."""
    plt = pyplot()
    made, axes = plt.subplots(figsize=(7.2, 3.4), layout="constrained")
    width = 0.8 / max(len(methods), 1)
    for i, (name, summary) in enumerate(methods.items()):
        lost = [100 * summary["metrics"][f"lost_{kind}"]["mean"] for kind in KINDS]
        axes.bar(np.arange(len(KINDS)) + i * width, lost, width, label=name)
    axes.set_xticks(np.arange(len(KINDS)) + 0.4 - width / 2, KINDS)
    axes.set_ylabel("points of AP50 lost")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8)
    made.savefig(path, dpi=150)
    plt.close(made)

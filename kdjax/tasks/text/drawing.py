"""Pictures for reports: texts, and what networks say of them."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from kdjax.data.texts import Texts

MOST = 108  # letters of a text
RIGHT, WRONG = "#1a7f37", "#b42318"


def draw_answers(texts: Texts, answers: Mapping[str, Sequence[tuple[str, float]]], path: Path) -> None:
    """A table: a text a row with its class, and a column a network: the class it says, green where it is right, and how sure."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    names = list(answers)
    height = 0.3 * (len(texts) + 2)
    figure = plt.figure(figsize=(9.5 + 1.6 * len(names), height), dpi=110)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.axis("off")
    axes.set_xlim(0, 9.5 + 1.6 * len(names))
    axes.set_ylim(len(texts) + 1.5, -0.5)
    places = [8.0 + 1.6 * (i + 1) for i in range(len(names))]
    for x, text in ((0.1, "text"), (7.9, "class"), *zip(places, names, strict=True)):
        axes.text(x, 0, text[:20], weight="bold", fontsize=9, va="center")
    for row in range(len(texts)):
        whole = texts.first[row] if texts.second is None else f"{texts.first[row]} | {texts.second[row]}"
        line = " ".join(whole.split())
        line = line if len(line) <= MOST else line[: MOST - 1] + "…"
        truth = texts.class_names[texts.labels[row]]
        axes.text(0.1, row + 1, _plain(line), fontsize=8, va="center", family="DejaVu Sans Mono")
        axes.text(7.9, row + 1, _plain(truth[:18]), fontsize=8, va="center")
        for x, name in zip(places, names, strict=True):
            said, sure = answers[name][row]
            colour = RIGHT if said == truth else WRONG
            axes.text(x, row + 1, _plain(f"{said[:14]} {sure:.2f}"), fontsize=8, va="center", color=colour)
    figure.savefig(path)
    plt.close(figure)


def _plain(text: str) -> str:
    """Without what matplotlib takes for mathematics."""
    return text.replace("$", r"\$")

"""Pictures for reports: what networks write behind prompts."""

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path

COLUMNS = 112  # letters of a line
LINES = 3  # of a text
LETTER, LINE = 0.077, 0.17  # inches


def draw_written(
    prompts: Sequence[str], references: Sequence[str], said: Mapping[str, Sequence[str]], path: Path
) -> None:
    """A block for each prompt: its end, how the data goes on, and how each network does."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    lines: list[tuple[str, str]] = []  # (who, a line of text)
    for i, prompt in enumerate(prompts):
        tail = textwrap.wrap(" ".join(prompt.split()), COLUMNS)[-LINES:] or [""]
        lines += [("prompt" * (j == 0), line) for j, line in enumerate(tail)]
        for name, text in {"data": references[i], **{name: texts[i] for name, texts in said.items()}}.items():
            head = textwrap.wrap(" ".join(text.split()), COLUMNS)[:LINES] or ["(nothing)"]
            lines += [(name * (j == 0), line) for j, line in enumerate(head)]
        lines.append(("", ""))
    width, height = LETTER * (COLUMNS + 20), LINE * (len(lines) + 1)
    figure = plt.figure(figsize=(width, height), dpi=110)
    for i, (who, line) in enumerate(lines):
        y = 1 - LINE * (i + 1) / height
        figure.text(0.1 / width, y, _plain(who[:18]), fontsize=8, weight="bold", va="center")
        figure.text(LETTER * 19 / width, y, _plain(line), fontsize=8, va="center", family="DejaVu Sans Mono")
    figure.savefig(path)
    plt.close(figure)


def _plain(text: str) -> str:
    """Without what matplotlib takes for mathematics; letters that its font may lack are question marks."""
    return "".join(c if c.isprintable() and ord(c) < 384 else "?" for c in text).replace("$", r"\$")

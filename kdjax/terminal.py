"""What a terminal is told: the console, and letters that its locale lacks."""

import codecs
import io
import sys
import unicodedata
from typing import Any

SIGNS = {
    "±": "+-", "×": "x", "·": "*", "–": "-", "—": "-", "−": "-", "‖": "||", "“": '"', "”": '"', "’": "'", "…": "...",
    "≥": ">=", "≤": "<=", "≠": "!=", "→": "->", "÷": "/", "√": "sqrt", "²": "^2", "∈": "in", "∞": "inf", "∑": "sum",
}  # fmt: skip


def make_console() -> Any:
    """Where tables go; at least 140 columns wide where nobody looks at it, in a file or pipe."""
    from rich.console import Console

    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=max(console.width, 140))


def say_all() -> None:
    """Lets standard output and error say what their locale has no letter for, by its nearest plain one."""
    codecs.register_error("kdjax.plain", lambda error: (plain(error.object[error.start : error.end]), error.end))
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="kdjax.plain")


def plain(text: str) -> str:
    """A text in ASCII, such that formulas and tables stay legible: `τ² ± ½` is `tau^2 +- 1/2`."""
    return "".join(map(_plain, text))


def _plain(sign: str) -> str:
    if sign.isascii():
        return sign
    if sign in SIGNS:
        return SIGNS[sign]
    name = unicodedata.name(sign, "?").split()
    if name[0] == "GREEK":
        return name[3].lower()  # GREEK SMALL LETTER TAU
    decomposed = unicodedata.normalize("NFKD", sign).replace("⁄", "/")  # the slash of a fraction
    letters = "".join(part for part in decomposed if part.isascii())
    return letters or "?"

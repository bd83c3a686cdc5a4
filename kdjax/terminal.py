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


def make_console(**options: Any) -> Any:
    """Where tables go; at least 140 columns wide where nobody looks at it, in a file or pipe. Texts are shown as they are:
    names and paths may have brackets, colons and escape sequences, none of which means anything."""
    from rich.console import Console

    class Plain(Console):
        def print(self, *things: Any, **style: Any) -> None:
            try:
                super().print(*things, **style)
            except OSError as error:
                raise Unheard(str(error)) from error

        def render_str(self, text: str, **style: Any) -> Any:
            return super().render_str(visible(text), **style)

    options = {"highlight": False, "markup": False, "emoji": False, **options}
    console = Plain(**options)
    return console if console.is_terminal or "width" in options else Plain(width=max(console.width, 140), **options)


class Unheard(Exception):
    """Standard output takes no more: a pipe that is closed, a terminal that is gone, a full disk behind it."""


def visible(text: str) -> str:
    """A text of which a terminal obeys nothing: control characters and turns of direction become `\\x1b`; lines stay."""
    return "".join(sign if sign in "\n\t" or not _obeyed(sign) else ascii(sign)[1:-1] for sign in text)


def _obeyed(sign: str) -> bool:
    kind = unicodedata.category(sign)
    return kind in ("Cc", "Cs") or (kind == "Cf" and unicodedata.bidirectional(sign) in TURNS)


TURNS = (
    "LRE",
    "RLE",
    "LRO",
    "RLO",
    "PDF",
    "LRI",
    "RLI",
    "FSI",
    "PDI",
    "R",
    "L",
    "AL",
)  # of formats: they hide what is said


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

"""Files as chance, a broken disk or an enemy would have them."""

import copy
import json
import random
from typing import Any

NASTY = (
    None, True, False, 0, -1, 1, 3.5, -0.0, 10**30, 2**63, -(2**63), 1e308, "", " ", "x", "0", "nan", "../..", "/etc/passwd",
    "<script>alert(1)</script>", "[bold]x[/bold]", "a|b\nc", "\x1b[2J\x1b]0;x\x07", "$\\frac{$", "\u202ecba", "\ud800", "ü" * 300,
    "__import__('os').system('false')", "gs://a/b", [], [[]], [None], {}, {"kind": []}, {"kind": "Experiment"}, {"": 0},
    [1, 2, 3], [1.5, "a"], ["a", "b"],
)  # fmt: skip
RAW = (
    b"\0",
    b"\xff",
    b"{",
    b"}",
    b"[",
    b"]",
    b'"',
    b"1e999",
    b"NaN",
    b"-Infinity",
    b"9" * 5000,
    b"[" * 3000,
    b"\r\n",
    b"\xef\xbb\xbf",
)


def bytes_changed(raw: bytes, chance: random.Random) -> bytes:
    """A file with some bytes flipped, cut, zeroed, put in, or twice."""
    made = bytearray(raw)
    for _ in range(chance.choice((1, 1, 1, 2, 4))):
        size = len(made)
        at = chance.randrange(size) if size else 0
        end = min(size, at + chance.choice((1, 2, 8, 64, 512)))
        match chance.randrange(8):
            case 0 | 1 | 2 if size:
                made[at] ^= 1 << chance.randrange(8)
            case 3:
                del made[at:]
            case 4:
                made[at:end] = bytes(end - at)
            case 5:
                del made[at:end]
            case 6:
                made[at:at] = chance.choice(RAW)
            case 7:
                made[at:at] = made[at:end]
    return bytes(made)


def data_changed(data: Any, chance: random.Random) -> Any:
    """JSON-like data with an entry replaced, taken out, called otherwise, added or nested."""
    made = json.loads(json.dumps(data))
    for _ in range(chance.choice((1, 1, 2, 3))):
        places = list(_places(made))
        if not places:
            return chance.choice(NASTY)
        holder, key = chance.choice(places)
        match chance.randrange(8):
            case 0 | 1 | 2 | 3:
                holder[key] = copy.deepcopy(chance.choice(NASTY))
            case 4:
                del holder[key]
            case 5 if isinstance(holder, dict):
                holder[f"{key}x"] = holder.pop(key)
            case 6:
                for _ in range(chance.choice((2, 50, 300))):
                    holder[key] = [holder[key]]
            case _:
                other, name = chance.choice(places)
                if not (isinstance(other[name], list | dict) or isinstance(holder[key], list | dict)):
                    holder[key] = other[name]
    return chance.choice(NASTY) if chance.random() < 0.02 else made


def _places(data: Any):
    items = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    for key, value in list(items):
        yield data, key
        yield from _places(value)

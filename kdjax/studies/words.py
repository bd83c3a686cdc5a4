"""How studies write numbers of several seeds."""

from collections.abc import Sequence
from typing import Any

from kdjax.analysis.statistics import spread
from kdjax.experiment.tables import clear


def points(gain: dict[str, Any], digits: int = 1) -> str:
    """A difference of shares with half its 95 % interval: "+1.2 ± 0.3 points"."""
    return f"{difference(gain, 100, digits)} points"


def difference(gain: dict[str, Any], scale: float = 1, digits: int = 4) -> str:
    """A difference with half its 95 % interval: "+0.012 ± 0.003"; without, of a single seed."""
    half = "" if gain["half_width"] is None else f" ± {scale * gain['half_width']:.{digits}f}"
    return f"{scale * gain['mean']:+.{digits}f}{half}"


def mean_of(values: Sequence[float], scale: float = 1, digits: int = 4) -> str:
    """Mean and standard deviation: "0.512 ± 0.003"."""
    found = spread(values)
    return f"{scale * found['mean']:.{digits}f}" + (
        "" if found["sd"] is None else f" ± {scale * found['sd']:.{digits}f}"
    )


def rises(gain: dict[str, Any]) -> bool:
    """Whether a difference is above 0 beyond chance, by its 95 % interval."""
    return clear(gain) and gain["mean"] > 0


def falls(gain: dict[str, Any]) -> bool:
    """Whether a difference is below 0 beyond chance, by its 95 % interval."""
    return clear(gain) and gain["mean"] < 0

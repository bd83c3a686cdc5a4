"""What several seeds say together: spread, paired differences, and how many differences are more than chance."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

LEVEL = 0.05  # of a family of tests


def spread(values: Sequence[float]) -> dict[str, Any]:
    """Mean and sample standard deviation (None for a single value), and the values."""
    array = np.asarray(values, np.float64)
    sd = float(array.std(ddof=1)) if len(array) > 1 else None
    return {"mean": float(array.mean()), "sd": sd, "values": [float(v) for v in array]}


def paired_gain(values: Sequence[float], baseline: Sequence[float]) -> dict[str, Any]:
    """Difference to the baseline, seed by seed (a seed fixes the initial weights), by Student's t.

    Returns:
      mean, sd and values of the difference; `better`, seeds in which it is above 0; `half_width` of its 95 % interval, and
      `p`, two-sided, of no difference. Both are None for a single seed, and `p` where all differences are alike.
    """
    difference = np.asarray(values) - np.asarray(baseline)
    gain = spread(difference) | {"better": int((difference > 0).sum()), "half_width": None, "p": None}
    if len(difference) > 1:
        from scipy import stats

        error = gain["sd"] / np.sqrt(len(difference))
        gain["half_width"] = float(stats.t.ppf(1 - LEVEL / 2, len(difference) - 1) * error)
        if error > 0:
            gain["p"] = float(2 * stats.t.sf(abs(gain["mean"]) / error, len(difference) - 1))
    return gain


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """p-values adjusted for being several (Holm, 1979): those below 0.05 hold together, with at most 5 % for any false one."""
    adjusted, largest = {}, 0.0
    for rank, (name, p) in enumerate(sorted(p_values.items(), key=lambda item: item[1])):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p))
        adjusted[name] = largest
    return {name: adjusted[name] for name in p_values}

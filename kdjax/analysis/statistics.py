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
    largest = max(np.abs(values).max(), np.abs(baseline).max())
    if np.ptp(difference) <= 1e-12 * largest:  # alike but for rounding
        difference = np.full(difference.shape, difference[0])
    gain = spread(difference) | {"better": int((difference > 0).sum()), "half_width": None, "p": None}
    if len(difference) > 1:
        from scipy import stats

        gain["sd"] *= float(np.ptp(difference) > 0)  # that of equal numbers is not 0 in floats
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


def rank_sum(values: Sequence[float], control: Sequence[float], alternative: str = "two-sided") -> dict[str, float]:
    """Whether values tend to lie above ("greater"), below ("less") or elsewhere than a control's: the Mann-Whitney test, of
    samples that are not paired.

    Returns:
      `p`, and `better`, the share of pairs in which the value is above the control, ties counting half.
    """
    from scipy import stats

    found = stats.mannwhitneyu(values, control, alternative=alternative)
    return {"p": float(found.pvalue), "better": float(found.statistic) / (len(values) * len(control))}


def effect_size(values: Sequence[float], control: Sequence[float]) -> float:
    """The difference of two means in standard deviations, corrected for small samples (Hedges' g). nan without spread."""
    a, b = np.asarray(values, np.float64), np.asarray(control, np.float64)
    free = len(a) + len(b) - 2
    pooled = np.sqrt(((len(a) - 1) * a.var(ddof=1) + (len(b) - 1) * b.var(ddof=1)) / free)
    return float((a.mean() - b.mean()) / pooled * (1 - 3 / (4 * free - 1))) if pooled > 0 else float("nan")


def bootstrap(values: Sequence[float], *, draws: int = 10_000, seed: int = 0) -> tuple[float, float]:
    """The 95 % interval of a mean, by drawing from the values again (bias-corrected and accelerated, by scipy)."""
    from scipy import stats

    found = stats.bootstrap(
        (np.asarray(values, np.float64),), np.mean, n_resamples=draws, rng=np.random.default_rng(seed)
    )
    return float(found.confidence_interval.low), float(found.confidence_interval.high)

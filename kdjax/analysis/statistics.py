"""What several seeds say together: spread, paired differences, and how many differences are more than chance."""

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

LEVEL = 0.05  # of a family of tests
ROUNDING = 4e-7  # share of the largest value that may be rounding: float32 keeps 1.2e-7, and metrics are float32 means
SPLITS = 200_000  # ways to part two samples that tie; with so many all are tried: of 10 and 10 values there are 184,756


def spread(values: Sequence[float]) -> dict[str, Any]:
    """Mean and sample standard deviation (None for a single value), and the values."""
    array = np.asarray(values, np.float64)
    sd = float(array.std(ddof=1)) if len(array) > 1 else None
    return {"mean": float(array.mean()), "sd": sd, "values": [float(v) for v in array]}


def paired_gain(values: Sequence[float], baseline: Sequence[float]) -> dict[str, Any]:
    """Difference to the baseline, seed by seed (a seed fixes the initial weights), by Student's t.

    Values are taken for float32 means, whatever holds them: a difference within their rounding, 4e-7 of the largest value, is 0,
    and differences that lie no farther apart are alike.

    Args:
      values: a number a seed.
      baseline: those of the same seeds. One that is not finite, such as what a diverged network gives, is no error: mean, sd and
        half_width are not finite then either, and there is no p.

    Returns:
      mean, sd and values of the difference; `better`, seeds in which it is above 0; `half_width` of its 95 % interval, and
      `p`, two-sided, of no difference. Both are None for a single seed, and `p` where all differences are alike.

    Raises:
      ValueError: not one number a seed of each, of as many seeds.
    """
    ours, theirs = np.asarray(values, np.float64), np.asarray(baseline, np.float64)
    if ours.ndim != 1 or ours.shape != theirs.shape or not len(ours):
        raise ValueError(
            f"values have shape {ours.shape}, baseline {theirs.shape}; give one number a seed of each, of the same seeds."
        )
    with np.errstate(invalid="ignore"):  # inf - inf
        return _gain(ours - theirs, max(_rounding(ours), _rounding(theirs)))


def _gain(difference: np.ndarray, rounding: float) -> dict[str, Any]:
    alike = np.ptp(difference) <= rounding
    if alike:
        difference = np.full(difference.shape, difference[0])
    difference = np.where(np.abs(difference) <= rounding, 0.0, difference)
    gain = spread(difference) | {"better": int((difference > 0).sum()), "half_width": None, "p": None}
    if len(difference) > 1:
        from scipy import stats

        gain["sd"] = 0.0 if alike else gain["sd"]  # that of equal numbers is not 0 in floats
        error = gain["sd"] / np.sqrt(len(difference))
        gain["half_width"] = float(stats.t.ppf(1 - LEVEL / 2, len(difference) - 1) * error)
        if error > 0:
            gain["p"] = float(2 * stats.t.sf(abs(gain["mean"]) / error, len(difference) - 1))
    return gain


def holm(p_values: Mapping[str, float | None]) -> dict[str, float]:
    """p-values adjusted for being several (Holm, 1979): those below 0.05 hold together, with at most 5 % for any false one.

    Args:
      p_values: by name. A test that has none, None or nan, is one of the family all the same, with p = 1: as `paired_gain` gives
        where all differences are alike. Leaving it out would correct the others for too few.

    Returns:
      The adjusted values, in the order given.
    """
    known = {name: 1.0 if p is None or math.isnan(p) else float(p) for name, p in p_values.items()}
    adjusted, largest = {}, 0.0
    for rank, (name, p) in enumerate(sorted(known.items(), key=lambda item: item[1])):
        largest = max(largest, min(1.0, (len(known) - rank) * p))
        adjusted[name] = largest
    return {name: adjusted[name] for name in known}


def rank_sum(values: Sequence[float], control: Sequence[float], alternative: str = "two-sided") -> dict[str, float]:
    """Whether values tend to lie above ("greater"), below ("less") or elsewhere than a control's: the Mann-Whitney test, of
    samples that are not paired.

    Where values tie and are few, such as 10 and 10, p is exact: all ways to part them are tried. Elsewhere it is scipy's.

    Returns:
      `p`, and `better`, the share of pairs in which the value is above the control, ties counting half.
    """
    from scipy import stats

    found = stats.mannwhitneyu(values, control, alternative=alternative)
    p, count = float(found.pvalue), len(values)
    ranks = stats.rankdata([*values, *control])
    tie = len(np.unique(ranks)) < len(ranks) and not np.isnan(ranks).any()
    if tie and math.comb(len(ranks), count) <= SPLITS:  # scipy has the normal approximation there, which is too small
        sums = np.array(list(itertools.combinations(ranks.tolist(), count))).sum(axis=1)
        above, below = np.mean(sums >= ranks[:count].sum()), np.mean(sums <= ranks[:count].sum())
        p = float({"greater": above, "less": below, "two-sided": min(1.0, 2 * min(above, below))}[alternative.lower()])
    return {"p": p, "better": float(found.statistic) / (count * len(control))}


def effect_size(values: Sequence[float], control: Sequence[float]) -> float:
    """The difference of two means in standard deviations, corrected for small samples (Hedges' g). nan without spread, that is
    where the values of each lie no farther apart than the rounding of float32."""
    a, b = np.asarray(values, np.float64), np.asarray(control, np.float64)
    if all(np.ptp(x) <= _rounding(x) for x in (a, b)):
        return float("nan")
    free = len(a) + len(b) - 2
    pooled = np.sqrt(sum(np.sum((x - x.mean()) ** 2) for x in (a, b)) / free)
    return float((a.mean() - b.mean()) / pooled * (1 - 3 / (4 * free - 1))) if pooled > 0 else float("nan")


def bootstrap(values: Sequence[float], *, draws: int = 10_000, seed: int = 0) -> tuple[float, float]:
    """The 95 % interval of a mean, by drawing from the values again (bias-corrected and accelerated, by scipy).

    Returns:
      Its ends. Of values that are alike, but for the rounding of float32, the smallest and the largest of them.

    Raises:
      ValueError: a single value, or none.
    """
    from scipy import stats

    array = np.asarray(values, np.float64)
    if array.ndim != 1 or len(array) < 2:
        raise ValueError(f"values have shape {array.shape}; an interval by drawing again needs two or more numbers.")
    if np.ptp(array) <= _rounding(array):
        return float(array.min()), float(array.max())
    found = stats.bootstrap((array,), np.mean, n_resamples=draws, rng=np.random.default_rng(seed))
    return float(found.confidence_interval.low), float(found.confidence_interval.high)


def _rounding(array: np.ndarray) -> float:
    """How far float32 may have moved values that are alike; those that are not finite aside."""
    return ROUNDING * float(np.max(np.abs(array), where=np.isfinite(array), initial=0.0))

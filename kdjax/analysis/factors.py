"""What a grid over several choices says of each: differences between its options, and how much of the spread is its own."""

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import numpy as np

from kdjax.analysis.statistics import paired_gain

Cells = Mapping[tuple[str, ...], float]


def main_effects(
    cells: Cells, same: Callable[[tuple[str, ...]], Hashable] = lambda combination: combination
) -> list[dict[str, dict[str, Any]]]:
    """Each option against the mean of the other options of its choice, matched: all else is alike.

    Args:
      cells: a value for every combination of options, such as `{("dot", "none", "mse"): 0.81, ...}`.
      same: what a combination comes to, alike for two that are the same thing by another name. Combinations of the other choices
        that come to the same with every option are averaged and count once.

    Returns:
      For each choice, in its place in the combinations, `paired_gain` by option; its n are the combinations of the other choices.
      Its interval takes the interactions with these for chance: it is of options in combinations like those tried.

    Raises:
      ValueError: a combination is missing, or a choice has a single option.
    """
    array, options = _table(cells)
    known = np.empty(array.shape, object)
    for place in np.ndindex(array.shape):
        known[place] = same(tuple(names[i] for names, i in zip(options, place, strict=True)))
    effects = []
    for axis, names in enumerate(options):
        rows, keys = (np.moveaxis(x, axis, 0).reshape(len(names), -1) for x in (array, known))
        alike: dict[tuple, list[int]] = {}
        for column in range(rows.shape[1]):
            alike.setdefault(tuple(keys[:, column]), []).append(column)
        rows = np.stack([rows[:, columns].mean(axis=1) for columns in alike.values()], axis=1)
        others = (rows.sum(0, keepdims=True) - rows) / (len(names) - 1)
        effects.append({name: paired_gain(rows[i], others[i]) for i, name in enumerate(names)})
    return effects


def variance_shares(cells: Cells) -> tuple[list[float], float]:
    """`(share of each choice alone, share of all interactions)` in the variance over combinations; they add up to 1, and are nan
    where there is none. Noise of single values is within the interactions. Raises as `main_effects`."""
    array, options = _table(cells)
    total, centred = array.var(), array - array.mean()
    alone = []
    for axis in range(len(options)):
        means = centred.mean(axis=tuple(i for i in range(len(options)) if i != axis))
        alone.append(float(np.mean(means**2) / total) if total > 0 else float("nan"))
    return alone, float(1 - sum(alone))


def noise_share(runs: Mapping[tuple[str, ...], Sequence[float]]) -> float:
    """How much of the variance over combinations of their means is expected of the runs' noise alone: a share, which
    `variance_shares` has among the interactions. nan of a single run each.

    Args:
      runs: the values of each combination, of the same seeds in the same order; what a seed does to all of them is no noise.
    """
    array = np.asarray(list(runs.values()), np.float64)
    count, seeds = array.shape
    if seeds < 2 or count < 2:
        return float("nan")
    left = array - array.mean(axis=1, keepdims=True) - array.mean(axis=0, keepdims=True) + array.mean()
    noise = np.sum(left**2) / ((count - 1) * (seeds - 1)) / seeds
    return float(min(noise / array.mean(axis=1).var(ddof=1), 1.0)) if np.ptp(array.mean(axis=1)) > 0 else float("nan")


def _table(cells: Cells) -> tuple[np.ndarray, list[list[str]]]:
    """The values as an array with an axis a choice, and the options of each."""
    options = [list(dict.fromkeys(of)) for of in zip(*cells, strict=True)]
    if any(len(names) < 2 for names in options):
        raise ValueError(f"A choice has a single option, {options}; compare two or more.")
    array = np.full([len(names) for names in options], np.nan)
    for combination, value in cells.items():
        array[tuple(names.index(name) for names, name in zip(options, combination, strict=True))] = value
    if np.isnan(array).any():
        missing = tuple(names[i] for names, i in zip(options, np.argwhere(np.isnan(array))[0], strict=True))
        raise ValueError(f"There is no value for {missing}; main effects need every combination.")
    return array, options

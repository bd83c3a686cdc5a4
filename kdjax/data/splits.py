"""What each training example is for: held out for validation, trained on with its label, or without it."""

import dataclasses

import numpy as np

from kdjax.data.errors import DataError

# Streams of Philox under one seed: the two choices are independent, and far from the pipeline's, which are epochs.
_VALIDATION, _LABELLED, _TEST = 2**63, 2**63 + 1, 2**63 + 2


@dataclasses.dataclass(frozen=True, eq=False)
class Splits:
    """A partition of `N` training examples, by their positions.

    Attributes:
      train: `[N - validation]` int32, ascending.
      validation: `[validation]` int32, ascending; never trained on.
      labelled: `[N]` bool: the example's label may be used in training. False for every held-out example.
    """

    train: np.ndarray
    validation: np.ndarray
    labelled: np.ndarray


def make_splits(labels, *, validation: int = 0, labelled: int | None = None, split_seed: int = 0) -> Splits:
    """Holds out a validation part and chooses whose labels may be used, both balanced over the classes.

    The same for the same labels and seed on every machine and NumPy, and independent of any other seed. Choices nest:
    for one seed the validation part of 500 lies in that of 1,000, and, with the validation part fixed, the 100 labelled
    examples are among the 1,000. Classes take turns, so their counts differ by one at most unless a class runs out.

    Args:
      labels: `[N]` classes of the training examples, used to balance even where training may not use them.
      validation: how many examples to hold out.
      labelled: how many of the rest keep their labels; 0 or None means all.
      split_seed: which choice.

    Raises:
      DataError: fewer examples than asked for, or fewer labelled ones than classes.
    """
    labels = np.asarray(labels)
    total = len(labels)
    if validation < 0 or (labelled or 0) < 0 or split_seed < 0:
        raise DataError(f"validation={validation}, labelled={labelled}, split_seed={split_seed}: none may be negative.")
    if validation >= total:
        raise DataError(f"validation={validation} leaves nothing to train on: there are {total} training examples.")
    held_out = _balanced(labels, np.arange(total), validation, split_seed, _VALIDATION)
    train = np.setdiff1d(np.arange(total), held_out)
    mask = np.zeros(total, bool)
    if not labelled:
        mask[train] = True
    else:
        if labelled > len(train):
            raise DataError(f"labelled={labelled} is more than the {len(train)} training examples there are.")
        classes = len(np.unique(labels[train]))
        if labelled < classes:
            raise DataError(f"labelled={labelled} leaves a class without a label: there are {classes} classes.")
        mask[_balanced(labels, train, labelled, split_seed, _LABELLED)] = True
    return Splits(train=train.astype(np.int32), validation=held_out.astype(np.int32), labelled=mask)


def test_part(labels, *, share: float = 0.2, split_seed: int = 0) -> np.ndarray:
    """A test part of a set that has none: `[N]` bool, the same share of every class, at least one of two examples.

    The same for the same labels and seed on every machine and NumPy.

    Args:
      labels: `[N]` classes.
      share: of each class, rounded to whole examples.
      split_seed: which choice.
    """
    labels, chosen = np.asarray(labels), np.zeros(len(labels), bool)
    scores = np.random.Philox(key=np.array([split_seed, _TEST], np.uint64)).random_raw(len(labels))
    for cls in np.unique(labels):
        rows = np.flatnonzero(labels == cls)
        count = min(max(1, round(share * len(rows))), len(rows) - 1)
        chosen[rows[np.argsort(scores[rows], kind="stable")[:count]]] = True
    return chosen


def _balanced(labels, candidates, count: int, seed: int, stream: int) -> np.ndarray:
    """`count` of the candidates, ascending: the classes take turns, each giving its examples in a keyed order."""
    # Raw Philox words, for NumPy promises them for ever and a Generator's permutation only for a version.
    words = np.random.Philox(key=np.array([seed, stream], np.uint64))
    class_order = words.random_raw(int(labels.max()) + 1)
    scores = words.random_raw(len(labels))
    by_class = candidates[np.lexsort((scores[candidates], labels[candidates]))]
    classes = labels[by_class]
    turn = np.arange(len(by_class)) - np.searchsorted(classes, classes)  # 0 for the first of its class
    return np.sort(by_class[np.lexsort((class_order[classes], turn))[:count]])

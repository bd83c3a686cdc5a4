"""Data sets of arrays: an .npz file, .npy files, or arrays at hand."""

import dataclasses
import re
from pathlib import Path
from typing import Any

import numpy as np

from kdjax.data.errors import DataError, note
from kdjax.data.folders import SPLITS
from kdjax.data.npz import BROKEN, check_npz, why
from kdjax.data.splits import test_part

INPUTS = ("x", "images", "image", "imgs", "data", "inputs", "features")
TARGETS = ("y", "labels", "label", "targets", "target")
NAMES = ("class_names", "classes", "label_names")
HELD_OUT = 0.2  # of each class, where a set has no test part

_AT_HAND: dict[str, "Parts"] = {}


@dataclasses.dataclass(frozen=True, eq=False)
class Parts:
    """Arrays by split: `{"train": (x, y), "test": (x, y), "validation": (x, y)}`, the last two where there are any, and the
    classes' names, empty if they have none."""

    splits: dict[str, tuple[Any, Any]]
    class_names: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True, eq=False)
class Arrays:
    """One split, checked.

    Attributes:
      inputs: images `[N, H, W, C]` uint8 or float32, or vectors `[N, D]` float32.
      labels: `[N]` int32, of soft labels the most likely class.
      soft: `[N, C]` float32 probabilities of the classes, or None where each example has one class.
      class_names: one name a class.
    """

    inputs: np.ndarray
    labels: np.ndarray
    soft: np.ndarray | None
    class_names: tuple[str, ...]


def from_arrays(x, y, *, test=None, validation=None, class_names=(), name: str = "mine") -> str:
    """Makes arrays at hand a data set: `Classification(name=from_arrays(x, y), ...)`.

    Args:
      x: images `[N, H, W]` or `[N, H, W, C]`, uint8 or floats (which are not divided by 255); or vectors `[N, D]` of floats.
      y: classes `[N]`, integers from 0 on; or soft labels `[N, C]`, whose rows add up to 1.
      test: `(x, y)` to evaluate; if not given, a fifth of each class is held out.
      validation: `(x, y)` for `evaluate_on="validation"`.
      class_names: one a class.
      name: what reports call the set.

    Returns:
      The name to give to `Classification`, "arrays:" and `name`. It holds in this process: a program that goes on with the run
      calls `from_arrays` first. The arrays are not copied; don't write to them.

    Raises:
      DataError: what does not fit, in a sentence.
    """
    splits = {"train": (x, y), "test": test, "validation": validation}
    known = f"arrays:{name}"
    parts = Parts({split: pair for split, pair in splits.items() if pair is not None}, _names(class_names))
    check_split(known, parts, "train", 0)
    _AT_HAND[known] = parts
    return known


def at_hand(name: str) -> Parts:
    """The arrays that `from_arrays` was given.

    Raises:
      DataError: it was not called in this process.
    """
    if name not in _AT_HAND:
        raise DataError(f"{name} are arrays that were at hand in another program; call kdjax.data.from_arrays(..., "
                        f"name={name.partition(':')[2]!r}) with them before.")  # fmt: skip
    return _AT_HAND[name]


def read_arrays(path: Path) -> Parts:
    """The arrays of an .npz file, of the .npy files of a folder, or of an .npy file and those beside it.

    Raises:
      DataError: unreadable, or arrays whose names say nothing.
    """
    if path.suffix == ".npz":
        try:
            names = check_npz(path)
            keys = {key: (lambda key=key: np.load(path, allow_pickle=False)[key]) for key in names}
        except BROKEN as error:
            raise DataError(
                f"{path} cannot be read as .npz ({why(error)}); write it with numpy.savez(path, x_train=..., y_train=...)."
            ) from error
    else:
        folder = path if path.is_dir() else path.parent
        keys = {file.stem: (lambda file=file: np.load(file, mmap_mode="r", allow_pickle=False))
                for file in sorted(folder.glob("*.npy"))}  # fmt: skip
    return _sorted_out(path, keys)


def check_split(name: str, parts: Parts, split: str, split_seed: int) -> Arrays:
    """One split of the arrays, as far as they are images or vectors with classes.

    Raises:
      DataError: what does not fit, in a sentence.
    """
    if split not in SPLITS:
        raise DataError(f"{name} has no split {split!r}; use {', '.join(SPLITS)}.")
    other = {"test": "validation", "validation": "test"}.get(split, split)
    classes = _num_classes(name, parts)
    own = parts.splits.get(split, parts.splits.get(other))
    held = own is None or (split == "train" and set(parts.splits) == {"train"})
    x, y = parts.splits["train"] if held else own
    where = f"{name} ({'train' if held else split})"
    x = _inputs(where, x)
    labels, soft = _labels(where, y, classes)
    if len(x) != len(labels):
        raise DataError(f"{where} has {len(x):,} inputs and {len(labels):,} labels; give one label an input.")
    if held:
        test = test_part(labels, share=HELD_OUT, split_seed=split_seed)
        if test.all() or not test.any():
            raise DataError(
                f"{name} has no test part, and too few examples to hold some out, {len(test)}; give x_test and y_test."
            )
        rows = ~test if split == "train" else test
        note(
            f"{name} has no test part: {test.sum():,} of {len(test):,} examples, a fifth of each class, are held out for it"
        )
        x, labels, soft = x[rows], labels[rows], None if soft is None else soft[rows]
    names = parts.class_names or tuple(map(str, range(classes)))
    return Arrays(x, labels, soft, names)


def _sorted_out(path: Path, keys: dict[str, Any]) -> Parts:
    """Arrays by their names: `x_train`, `train_images`, `labels_test`, `x` and `y`."""
    found: dict[tuple[str, str], str] = {}
    names: tuple[str, ...] = ()
    roles = {word: role for role, words in (("x", INPUTS), ("y", TARGETS)) for word in words}
    of_split = {word: split for split, words in SPLITS.items() for word in words}
    try:
        for key, read in keys.items():
            if key.lower() in NAMES:
                names = _names(read())
                continue
            words = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", key).lower().replace("-", "_").replace(".", "_").split("_")
            role = {roles[word] for word in words if word in roles}
            split = {of_split[word] for word in words if word in of_split} or {"train"}
            if len(role) != 1 or len(split) != 1 or len(words) > 2:
                continue
            place = (split.pop(), role.pop())
            if place in found:
                raise DataError(
                    f"{path} has both {found[place]!r} and {key!r}, either of which could be what is read; keep one."
                )
            found[place] = key
        pairs = {split for split, _ in found}
        if "train" not in pairs or any((split, role) not in found for split in pairs for role in "xy"):
            raise DataError(f"{path} has {', '.join(keys) or 'no arrays'}, and needs x_train and y_train (and x_test, y_test), "
                            "or x and y; images, labels and the like will do.")  # fmt: skip
        return Parts({s: tuple(keys[found[s, role]]() for role in "xy") for s in sorted(pairs)}, names)
    except BROKEN as error:  # objects, a cut-off file
        raise DataError(f"{path} holds arrays that cannot be read ({why(error)}); save plain numbers.") from error


def _inputs(where: str, x: Any) -> np.ndarray:
    x = np.asanyarray(x)
    if x.ndim == 2 and len(x) and x.dtype.kind in "iub":
        raise DataError(
            f"The inputs of {where} are {x.dtype} {list(x.shape)}; give vectors [N, D] as floats, x.astype(numpy.float32), or "
            "images as [N, H, W]."
        )
    kind = x.dtype.kind
    if x.dtype != np.uint8 and kind != "f":
        wide = kind in "iu" and x.size and x.min() >= 0 and x.max() <= 255
        if not wide:
            mend = "uint8 from 0 to 255, or floats" if kind in "iub" else "uint8 or floats"
            raise DataError(f"The inputs of {where} are {x.dtype}; give {mend}.")
        x = x.astype(np.uint8)
    if x.ndim == 3:
        x = x[..., None]
    if x.ndim in (2, 4) and not len(x):
        raise DataError(f"{where} has no examples; give it some, or leave that part out.")
    if x.ndim not in (2, 4) or 0 in x.shape:
        raise DataError(
            f"The inputs of {where} have the shape {list(x.shape)}; give images [N, H, W] or [N, H, W, C], or vectors [N, D]. "
            "Other arrays are for kdjax.distill(student, teacher, data, ...) from Python."
        )
    if x.ndim == 4 and x.shape[1] in (1, 3, 4) and x.shape[3] not in (1, 3, 4):
        raise DataError(
            f"The inputs of {where} have the shape {list(x.shape)}, channels first; give numpy.moveaxis(x, 1, -1)."
        )
    if kind == "f":
        with np.errstate(over="ignore"):  # what is beyond float32 is named as inf
            x = x.astype(np.float32, copy=False)
        bad = ~np.isfinite(x.reshape(len(x), -1)).all(axis=1)
        if bad.any():
            raise DataError(f"{bad.sum():,} of {len(x):,} inputs of {where} have nan or inf, the first of them number "
                            f"{int(bad.argmax())}; mend them or leave them out.")  # fmt: skip
    return x


def _labels(where: str, y: Any, classes: int) -> tuple[np.ndarray, np.ndarray | None]:
    """`[N]` int32 classes, and soft labels `[N, C]` or None."""
    y = _plain_labels(where, y)
    if y.ndim == 1:
        wrong = np.flatnonzero((y < 0) | (y >= classes))
        if len(wrong):
            raise DataError(
                f"The labels of {where} go from {y.min()} to {y.max()}; number the {classes} classes from 0 on. (The first that "
                f"is none is {y[wrong[0]]}, number {wrong[0]}; {len(wrong):,} of {len(y):,} are.)"
            )
        return y.astype(np.int32), None
    y = y.astype(np.float32)
    if not np.isfinite(y).all() or (y < 0).any() or (np.abs(y.sum(axis=1) - 1) > 1e-3).any():
        raise DataError(f"The soft labels {list(y.shape)} of {where} must be 0 or more, and each row add up to 1.")
    hard = (y.max(axis=1) == 1).all()
    return y.argmax(axis=1).astype(np.int32), None if hard else y


def _plain_labels(where: str, y: Any) -> np.ndarray:
    y = np.asanyarray(y)
    if y.ndim == 2 and y.shape[1] == 1:
        y = y[:, 0]
    if y.ndim not in (1, 2):
        raise DataError(
            f"The labels of {where} have the shape {list(y.shape)}; give classes [N], or soft labels [N, C]."
        )
    whole = y.ndim == 2 or y.dtype.kind != "f" or (np.isfinite(y).all() and (y == np.floor(y)).all())
    if y.dtype.kind not in "iufb" or not whole:
        text = ", numpy.unique(y, return_inverse=True)[1], and the names as class_names" * (y.dtype.kind in "US")
        raise DataError(f"The labels of {where} are {y.dtype}; give whole numbers from 0 on{text}.")
    return y


def _names(given: Any) -> tuple[str, ...]:
    """Names of the classes; those in bytes are UTF-8."""
    return tuple(x.decode("utf-8", errors="replace") if isinstance(x, bytes) else str(x) for x in given)


def _check_largest(name: str, split: str, y: np.ndarray, trained: int, *, named: bool) -> None:
    """Refuses a label that makes classes of which there is no example: as many as it says must be there."""
    row, most = int(y.argmax()), int(y.max())
    if named:
        return
    if split != "train" and 0 < trained <= most:
        raise DataError(
            f"Label {most} of {name} ({split}), number {row}, is none of the training part, whose labels go to {trained - 1}; "
            "mend it, or give class_names."
        )
    if split == "train" and most >= max(len(y), 1000):
        raise DataError(f"Label {most:,} of {name} ({split}), number {row}, would be one of more classes than examples; mend "
                        "it, or give class_names.")  # fmt: skip


def _num_classes(name: str, parts: Parts) -> int:
    """As many as there are names, columns of soft labels, or numbers up to the largest label of any split."""
    found = set()
    largest = 0
    for split, (_, y) in sorted(parts.splits.items(), key=lambda item: item[0] != "train"):
        y = _plain_labels(f"{name} ({split})", y)
        if y.ndim == 2:
            found.add(y.shape[1])
        elif y.size:
            _check_largest(name, split, y, largest, named=bool(parts.class_names))
            largest = max(largest, int(y.max()) + 1)
    if parts.class_names:
        found.add(len(parts.class_names))
    count = max(found, default=largest)
    if len(found) > 1 or count < largest:
        raise DataError(f"{name} has {' and '.join(map(str, sorted(found | {largest})))} classes by its names and labels; they "
                        "must agree.")  # fmt: skip
    if count == 1:
        note(f"{name} has one class only")
    return max(count, 1)

"""A set of texts with classes as one split in a fixed order: files of one's own, sets of TFDS, the docstrings of Python."""

import dataclasses
import hashlib
import itertools
import os
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from kdjax.data import python_docs
from kdjax.data.columns import Columns
from kdjax.data.errors import DataError, note
from kdjax.data.folders import HELD_OUT, SPLITS, open_folder
from kdjax.data.splits import test_part
from kdjax.data.text_files import FILES, read_table, read_text
from kdjax.data.text_records import read_records
from kdjax.places import local


@dataclasses.dataclass(frozen=True, eq=False)
class Texts:
    """One split of `N` texts, or pairs of texts.

    Attributes:
      name, split: for messages.
      first: the texts.
      second: the second of each pair, or None.
      labels: `[N]` int32 classes.
      class_names: one a class.
    """

    name: str
    split: str
    first: tuple[str, ...]
    second: tuple[str, ...] | None
    labels: np.ndarray
    class_names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.first)

    def take(self, rows: np.ndarray) -> "Texts":
        pick = lambda texts: None if texts is None else tuple(texts[row] for row in rows)
        return dataclasses.replace(self, first=pick(self.first), second=pick(self.second), labels=self.labels[rows])

    def fingerprint(self) -> str:
        """SHA-256 of texts and classes."""
        digest = hashlib.sha256(np.ascontiguousarray(self.labels, "<i4"))
        for text in (*self.class_names, *self.first, *(self.second or ())):
            digest.update(text.encode("utf-8", errors="surrogatepass") + b"\0")
        return digest.hexdigest()


def load_texts(
    name: str,
    *,
    split: str,
    data_dir: str | os.PathLike | None = None,
    columns: Columns = Columns(),
    split_seed: int = 0,
) -> Texts:
    """Reads one split.

    Args:
      name: "python_docs"; a set of TFDS such as "glue/sst2", "imdb_reviews" or "ag_news_subset"; a file .csv, .tsv or .jsonl; or
        a folder with train.csv (and test.csv, validation.csv), or with a folder a class of text files.
      split: "train", "test" or "validation".
      data_dir: TFDS folder; by default `TFDS_DATA_DIR`, or `~/tensorflow_datasets`.
      columns: of a file or a set of TFDS.
      split_seed: of the choice of a test part, where the set has none.

    Raises:
      DataError: no such set or split, or what does not fit in it.
    """
    if split not in SPLITS:
        raise DataError(f"{name} has no split {split!r}; use {', '.join(SPLITS)}.")
    if name == python_docs.NAME:
        first, labels = python_docs.read("train" if split == "train" else "test")
        return Texts(name, split, first, None, labels, python_docs.CLASSES)
    path = local(name, DataError, "A data set")
    if path.suffix in FILES or (path.is_dir() and "train" in _files(name, path)):
        return _of_files(name, _files(name, path), split, columns, split_seed)
    if path.is_dir():
        tables = sorted(file.name for file in path.iterdir() if file.suffix in FILES)
        if tables and not any(file.is_dir() for file in path.iterdir()):
            raise DataError(f"{name} has no train{', train'.join(FILES)}; it has {', '.join(tables[:5])}.")
        return _of_folder(name, path, split, split_seed)
    if name.startswith(("/", "./", "../", "~")):
        raise DataError(
            f"There is no file or folder {path}; give texts as .csv, .tsv, .jsonl, or a folder of text files a class."
        )
    return Texts(name, split, *read_records(name, split, data_dir, columns))


def of_texts(name: str, path: Path) -> bool:
    """Whether a file or folder is of texts: a table, a folder of tables, or folders of nothing but text files."""
    if not path.is_dir():
        return path.suffix in FILES
    if "train" in _files(name, path):
        return True
    files = (file for file in path.rglob("*") if file.is_file() and not file.name.startswith("."))
    first = next(files, None)  # of pictures, one is enough to know
    return first is not None and all(file.suffix.lower() == ".txt" for file in itertools.chain([first], files))


def _files(name: str, path: Path) -> dict[str, Path]:
    """The file of each split that there is one for."""
    if not path.is_dir():
        return {"train": path}
    found: dict[str, Path] = {}
    for split, words in SPLITS.items():
        there = [path / f"{word}{suffix}" for word in words for suffix in FILES if (path / f"{word}{suffix}").exists()]
        if len(there) > 1:
            raise DataError(f"{name} has both {there[0].name} and {there[1].name}; keep one.")
        if there:
            found[split] = there[0]
    return found


def _of_files(name: str, files: Mapping[str, Path], split: str, columns: Columns, split_seed: int) -> Texts:
    other = {"test": "validation", "validation": "test"}.get(split, split)
    held = split != "train" and split not in files and other not in files
    tables = {part: read_table(path, columns) for part, path in files.items()}
    names = _classes(name, tables["train"][2])
    numbers = {label: i for i, label in enumerate(names)}
    for part, table in tables.items():  # each looked at, whichever is asked for
        lost = next((row for row, label in enumerate(table[2], 1) if label not in numbers), None)
        if lost is not None:
            label = table[2][lost - 1]
            why = "; GLUE's test texts have no labels, and -1 in their place: leave that file out" * (label == "-1")
            raise DataError(
                f"{files[part]} has the label {label!r} at text {lost}, which no text to train on has "
                f"({', '.join(names[:10])}){why}."
            )
    own = tables["train"] if held or split == "train" else tables.get(split, tables.get(other))
    first, second, labels = own
    texts = Texts(name, split, first, second, np.array([numbers[label] for label in labels], np.int32), names)
    if not held and set(files) != {"train"}:
        return texts
    test = test_part(texts.labels, share=HELD_OUT, split_seed=split_seed)
    if test.all() or not test.any():
        raise DataError(f"{name} has no test part, and too few texts to hold some out, {len(test)}; give a test file.")
    note(f"{name} has no test part: {test.sum():,} of {len(test):,} texts, a fifth of each class, are held out for it")
    return texts.take(np.flatnonzero(~test if split == "train" else test))


def _classes(name: str, labels: Iterable[str]) -> tuple[str, ...]:
    """Names of the classes: numbers from 0 on as such, anything else in the order of the alphabet."""
    found = set(labels)
    if all(label.isdecimal() and len(label) < 7 and label == str(int(label)) for label in found):
        last = max(map(int, found))
        if last >= 10 * len(found):
            raise DataError(
                f"The labels of {name} go to {last}, and there are {len(found)}; number the classes from 0 on."
            )
        return tuple(str(i) for i in range(last + 1))
    return tuple(sorted(found))


def _of_folder(name: str, path: Path, split: str, split_seed: int) -> Texts:
    try:
        folder = open_folder(name, path, split, split_seed)
    except DataError as error:
        raise DataError(str(error).replace("pictures", "texts")) from error
    if folder.note:
        note(folder.note.replace("pictures", "texts"))
    first = tuple(read_text(Path(folder.path(row))) for row in range(len(folder)))
    return Texts(name, split, first, None, folder.labels, folder.class_names)

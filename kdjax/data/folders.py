"""Folders of pictures, a folder a class: which files there are, of which class, and in which split."""

import contextlib
import dataclasses
import hashlib
import os
import stat
import unicodedata
from pathlib import Path

import numpy as np

from kdjax.data.errors import DataError
from kdjax.data.splits import test_part
from kdjax.terminal import visible

SPLITS = {
    "train": ("train", "training"),
    "test": ("test", "testing"),
    "validation": ("val", "valid", "validation", "dev", "eval"),
}
RUBBISH = ("thumbs.db", "desktop.ini", "__macosx")  # beside hidden files; what systems leave behind
CONTENTS = 1000  # files whose content a fingerprint covers
HELD_OUT = 0.2  # of each class, where a set has no test part


@dataclasses.dataclass(frozen=True, eq=False)
class Folder:
    """The files of one split, in the order of their names.

    Attributes:
      root: what the paths are relative to.
      paths: of the files, with / between folders.
      labels: `[N]` int32 classes.
      class_names: names of the class folders, sorted.
      note: what a user should know of how it was read; empty if nothing.
    """

    root: Path
    paths: tuple[str, ...]
    labels: np.ndarray
    class_names: tuple[str, ...]
    note: str = ""

    def __len__(self) -> int:
        return len(self.paths)

    def path(self, index: int) -> str:
        return os.path.join(self.root, self.paths[index])

    def take(self, rows: np.ndarray) -> "Folder":
        """The files at some positions, in this order."""
        paths = tuple(self.paths[row] for row in rows)
        return dataclasses.replace(self, paths=paths, labels=self.labels[rows])

    def fingerprint(self) -> str:
        """SHA-256 of names, sizes and classes, and of the content of a thousand files; more would have to be read whole."""
        digest = hashlib.sha256("\0".join(self.class_names).encode(errors="surrogateescape"))
        for index, path in enumerate(self.paths):
            digest.update(f"{path}\0{_state(self.path(index))[0]}\0".encode(errors="surrogateescape"))
        for index in np.unique(np.linspace(0, len(self) - 1, min(len(self), CONTENTS)).astype(int)):
            with contextlib.suppress(OSError):
                digest.update(hashlib.sha256(Path(self.path(index)).read_bytes()).digest())
        digest.update(np.ascontiguousarray(self.labels, dtype="<i4"))
        return digest.hexdigest()

    def stamp(self) -> str:
        """SHA-256 of names, sizes and times of the files: changes whenever one is written."""
        states = (f"{path}\0{_state(self.path(index))}\0" for index, path in enumerate(self.paths))
        return hashlib.sha256("".join(states).encode(errors="surrogateescape")).hexdigest()


def split_folders(root: Path) -> dict[str, Path]:
    """Folders of the splits by name: "train", and as far as there are any "test" and "validation". Empty where `root` has
    class folders alone.

    Raises:
      DataError: folders called like splits, none of which has class folders to train on.
    """
    there = {path.name.lower(): path for path in _folders(root)}
    for words in SPLITS.values():
        several = [path for path in _folders(root) if path.name.lower() in words and _folders(path)]
        if len(several) > 1:
            raise DataError(f"{root} has both {several[0].name} and {several[1].name}; keep one.")
    found = {
        split: there[name]
        for split, names in SPLITS.items()
        for name in names
        if name in there and _folders(there[name])
    }
    if "train" in found:
        return found
    if there and set(there) <= {name for names in SPLITS.values() for name in names}:
        raise DataError(f"{root} has {' and '.join(sorted(there))}, and no class folders to train on; pictures are read from "
                        f"{root}/train/CLASS.")  # fmt: skip
    return {}


def open_folder(name: str, root: Path, split: str, split_seed: int = 0) -> Folder:
    """The files of a split.

    Args:
      name: of the set, for messages.
      root: holds train/CLASS and test/CLASS or val/CLASS, or CLASS folders alone, of which a part is then held out.
      split: "train", "test", or "validation".
      split_seed: which part.

    Raises:
      DataError: no such split, no classes, an empty one, or other classes than those of the training part.
    """
    if split not in SPLITS:
        raise DataError(f"{name} is a folder of pictures and has no split {split!r}; use {', '.join(SPLITS)}.")
    folders = split_folders(root)
    if not folders:
        return _held_out(name, root, split, split_seed)
    if set(folders) == {"train"}:
        return _held_out(name, folders["train"], split, split_seed)
    other = {"test": "validation", "validation": "test"}.get(split, split)
    where = folders[split if split in folders else other]
    found = scan(where)
    if split == "train":
        return found
    classes = tuple(_class_name(path) for path in _folders(folders["train"]))
    missing, extra = sorted(set(classes) - set(found.class_names)), sorted(set(found.class_names) - set(classes))
    if missing or extra:
        what = f"lacks the class {missing[0]!r}" if missing else f"has the class {extra[0]!r}"
        raise DataError(
            f"{where} {what}, {'which' if missing else 'unlike'} {folders['train']}{' has' if missing else ''}; both must have "
            f"the same class folders."
        )
    return found


def scan(root: Path) -> Folder:
    """All files of class folders, those in folders within them too. Hidden files are left out; links are followed.

    Raises:
      DataError: fewer than two classes, an empty one, a class twice, or one whose name is no text.
    """
    folders = _folders(root)
    names = tuple(_class_name(path) for path in folders)
    garbled = next((name for name in names if any("\ud800" <= letter <= "\udfff" for letter in name)), None)
    if garbled is not None:  # it could be written nowhere
        raise DataError(f"{root} has a class folder whose name is not in this system's encoding, {visible(garbled)}; rename "
                        "it, or set PYTHONUTF8=1 where file names are UTF-8.")  # fmt: skip
    if len(names) < 2:
        inside = f"only {names[0]!r}" if names else "no folders"
        raise DataError(
            f"{root} has {inside}; pictures are read from a folder a class, such as {root}/cat and {root}/dog."
        )
    if len(set(names)) < len(names):
        raise DataError(f"{root} has the class {_twice(names)!r} twice, in two spellings of Unicode; rename one.")
    paths, labels = [], []
    for label, folder in enumerate(folders):
        files = _files(str(folder), "", [os.path.realpath(root)])
        if not files:
            raise DataError(f"{folder} holds no pictures; put some there, or delete the folder.")
        paths += [f"{folder.name}/{file}" for file in sorted(files)]
        labels += [label] * len(files)
    beside = [entry.name for entry in os.scandir(root) if not _is_folder(entry) and _counts(entry.name)]
    pictures = [name for name in beside if name.lower().endswith((".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp"))]
    note = f"{len(pictures)} pictures lie beside the class folders of {root} and are not read" if pictures else ""
    return Folder(root, tuple(paths), np.array(labels, np.int32), names, note)


def _held_out(name: str, root: Path, split: str, split_seed: int) -> Folder:
    """A part of a folder that has no other split: for "test" and "validation" one fifth of each class."""
    everything = scan(root)
    test = test_part(everything.labels, share=HELD_OUT, split_seed=split_seed)
    if not test.any():
        raise DataError(
            f"{name} has no test part, and no class has two pictures of which one could be held out; add pictures, or a folder "
            "test beside train."
        )
    part = everything.take(np.flatnonzero(~test if split == "train" else test))
    held = (
        f"{name} has no test part: {test.sum():,} of {len(test):,} pictures, a fifth of each class, are held out for it"
    )
    return dataclasses.replace(part, note="; ".join(filter(None, (held, everything.note))))


def _files(folder: str, inside: str, above: list[str]) -> list[str]:
    """Paths of all files in a folder, relative to it."""
    real = os.path.realpath(folder)
    if real in above:  # a link that leads back
        return []
    found = []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if not _counts(entry.name):
                    continue
                if _is_folder(entry):
                    found += _files(entry.path, f"{inside}{entry.name}/", [*above, real])
                else:
                    found.append(inside + entry.name)
    except OSError as error:
        raise DataError(f"{folder} cannot be read ({error.strerror}); give a folder that can.") from error
    return found


def _is_folder(entry: os.DirEntry) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _folders(root: Path) -> list[Path]:
    """Folders in a folder, by name."""
    try:
        with os.scandir(root) as entries:
            names = [entry.name for entry in entries if _counts(entry.name) and _is_folder(entry)]
    except OSError as error:
        raise DataError(f"{root} cannot be read ({error.strerror}); give a folder that can.") from error
    # By the name as it reads, whichever of its spellings in Unicode a system has written.
    return [Path(root, name) for name in sorted(names, key=lambda name: (unicodedata.normalize("NFC", name), name))]


def _counts(name: str) -> bool:
    return not name.startswith(".") and name.lower() not in RUBBISH


def _class_name(path: Path) -> str:
    return unicodedata.normalize("NFC", path.name)


def _twice(names: tuple[str, ...]) -> str:
    return next(name for name in names if names.count(name) > 1)


def _state(path: str) -> tuple[int, int]:
    """Size and time of a file, -1 of what is none."""
    try:
        found = os.stat(path)
    except OSError:
        return -1, -1
    return (found.st_size, found.st_mtime_ns) if stat.S_ISREG(found.st_mode) else (-1, -1)

"""Examples that are kept as encoded pictures, in a folder or by TFDS: decoded and cropped as they are read, by many threads."""

import concurrent.futures
import contextlib
import dataclasses
import functools
import hashlib
import os
from collections.abc import Callable, Iterable
from typing import Any, Protocol

import numpy as np

from kdjax.data.errors import DataError, note
from kdjax.data.folders import Folder
from kdjax.data.pictures import Reading, Unreadable, draws_of, picture_size
from kdjax.places import cache_folder

HEADERS = 20_000  # of a larger set, so many files are looked at before training


class Files(Protocol):
    """Encoded pictures by position."""

    def __len__(self) -> int: ...

    def get(self, indices: list[int]) -> list[str | bytes]:
        """Paths of the files at these positions, or their content."""
        ...

    def said(self, index: int) -> str:
        """What a message calls one of them."""
        ...

    def fingerprint(self) -> str: ...


@dataclasses.dataclass(frozen=True, eq=False)
class FolderFiles:
    """The files of a folder."""

    folder: Folder

    def __len__(self):
        return len(self.folder)

    def get(self, indices):
        return [self.folder.path(index) for index in indices]

    def said(self, index):
        return printable(self.folder.path(index))

    def fingerprint(self):
        return self.folder.fingerprint()


@dataclasses.dataclass(frozen=True, eq=False)
class Encoded:
    """Reads pictures at once wherever they lie.

    Attributes:
      files: where they are.
      reading: how they become arrays.
      mend: what to do about one that cannot be read, the end of a message.
    """

    files: Files
    reading: Reading
    mend: str

    def __len__(self):
        return len(self.files)

    def read(self, indices: Iterable[int], view: tuple[int, int] | None = None) -> np.ndarray | list[np.ndarray]:
        """Pictures uint8 `[H, W, C]` at these positions; of a view `(data seed, pass)`, their training crops. Those of one size
        are one array `[B, H, W, C]`, into which every thread writes its own.

        Raises:
          DataError: one cannot be read; it is named.
        """
        indices = [int(index) for index in indices]
        files, size = self.files.get(indices), self.reading.size
        images: Any = [None] * len(files)
        if size:
            images = np.empty((len(files), size, size, self.reading.channels), np.uint8)

        def some(rows):
            for row in rows:
                try:
                    images[row] = self.reading.decode(files[row], draws_of(view, indices[row]))
                except Unreadable as error:
                    raise DataError(f"{self.files.said(indices[row])} {error}; {self.mend}.") from error

        # Several to a task, since handing one over costs as much as opening a picture does.
        each = max(1, len(files) // (4 * readers()._max_workers))
        list(readers().map(some, (range(len(files))[start : start + each] for start in range(0, len(files), each))))
        return images

    def all(self, shape: tuple[int, int, int]) -> np.ndarray:
        """Every picture, or its crop of evaluation, `[N, *shape]`.

        Raises:
          DataError: one cannot be read, or has another shape.
        """
        images = np.empty((len(self), *shape), np.uint8)
        for start in range(0, len(self), 256):
            rows = range(start, min(start + 256, len(self)))
            for row, image in zip(rows, self.read(rows), strict=True):
                if image.shape != shape:
                    raise DataError(differing(self.files.said(0), {self.files.said(row): image.shape[:2]}))
                images[row] = image
        return images

    def fingerprint(self) -> bytes:
        return f"{self.files.fingerprint()} {sorted(self.reading.facts().items())}".encode()


def faults(files: Files, examine: Callable[[str | bytes, int], Any], rows: Iterable[int]) -> dict[int, str]:
    """What is wrong with the pictures at some positions, by position; `examine(file, position)` raises it."""

    def one(index):
        (file,) = files.get([index])
        try:
            examine(file, index)
        except Unreadable as error:
            return index, str(error)
        return index, ""

    rows, wrong = list(rows), {}
    for start in range(0, len(rows), 10_000):
        wrong |= {index: what for index, what in readers().map(one, rows[start : start + 10_000]) if what}
    return wrong


def looked_at(size: int) -> np.ndarray:
    """Positions of the files whose headers are read before training: all, or evenly spaced ones of a large set."""
    return np.unique(np.linspace(0, size - 1, min(size, HEADERS)).round().astype(int)) if size else np.zeros(0, int)


def check_headers(name: str, files: Files, *, one_size: bool) -> tuple[int, int] | None:
    """Refuses a set with files that are no pictures, or with `one_size` pictures of several sizes.

    Returns:
      `(height, width)` of the first one.

    Raises:
      DataError: naming them.
    """
    rows = [int(row) for row in looked_at(len(files))]
    sizes: dict[int, tuple[int, int]] = {}

    def examine(file, row):
        sizes[row] = picture_size(file)

    wrong = faults(files, examine, rows)
    if wrong:
        raise DataError(unreadable_files(name, files, wrong))
    first = sizes[rows[0]]
    if one_size:
        for row in rows:
            if sizes[row] != first:
                raise DataError(differing(name, {files.said(r): sizes[r] for r in (rows[0], row)}))
    return first


def differing(name: str, sizes: dict[str, tuple[int, int]]) -> str:
    """A sentence about pictures of several sizes."""
    shown = ", ".join(f"{said} has {height} x {width}" for said, (height, width) in sizes.items())
    return (
        f"The pictures of {name} differ in size ({shown} pixels); set data.image_size, such as 64, to crop them all to squares "
        "of so many pixels."
    )


def unreadable_files(name: str, files: Files, wrong: dict[int, str]) -> str:
    """A sentence about files that cannot be read; three are named."""
    shown = "; ".join(f"{files.said(row)} {what}" for row, what in list(wrong.items())[:3])
    return (
        f"{len(wrong):,} of {len(files):,} pictures of {name} cannot be read: {shown}{'; ...' if len(wrong) > 3 else ''}. Mend "
        f"or delete them (`kdjax data check {name}` names all), or set data.skip_unreadable."
    )


def left_out(name: str, files: Files, state: str, reading: Reading) -> np.ndarray:
    """Positions of the pictures that can be decoded; how many others there are is said. Reads all of them, once: what was found
    is kept in the user's cache under `state`, which changes whenever a file does."""
    rows, wrong = _readable(files, state, reading)
    if wrong:
        note(unreadable_files(name, files, wrong).partition(". Mend")[0] + "; they are left out")
    return rows


def _readable(files: Files, state: str, reading: Reading) -> tuple[np.ndarray, dict[int, str]]:
    """Those positions, and what is wrong with the other pictures."""
    whole = dataclasses.replace(reading, size=0)
    home = cache_folder("unreadable")
    key = hashlib.sha256(f"{state} {whole}".encode(errors="surrogateescape")).hexdigest()[:24]
    kept = home / f"{key}.txt"
    if kept.exists():
        lines = [line.partition(" ") for line in kept.read_text(encoding="utf-8").splitlines()]
        wrong = {int(row): what for row, _, what in lines}
    else:
        wrong = faults(files, lambda file, row: whole.decode(file), range(len(files)))
        with contextlib.suppress(OSError):  # kept for the next time, where that can be
            home.mkdir(parents=True, exist_ok=True)
            temporary = kept.with_suffix(f".{os.getpid()}")
            temporary.write_text("".join(f"{row} {what}\n" for row, what in wrong.items()), encoding="utf-8")
            temporary.replace(kept)
    return np.array([row for row in range(len(files)) if row not in wrong], np.int64), wrong


@functools.cache
def readers() -> concurrent.futures.ThreadPoolExecutor:
    """The threads that decode, as many as the process may use cores: Pillow holds no lock while it does."""
    return concurrent.futures.ThreadPoolExecutor(_threads or cores(), thread_name_prefix="pictures")


_threads = 0  # 0 for one a core


def use_threads(count: int) -> None:
    """So many threads decode in this process, which has not begun to."""
    global _threads
    _threads = count


def cores() -> int:
    """How many the process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def printable(path: str) -> str:
    """A path as it can be printed, also where its name is no Unicode."""
    return path.encode("utf-8", "backslashreplace").decode()

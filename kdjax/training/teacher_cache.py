"""The teacher cache: what a frozen teacher says of the views of a training set, so that it runs once for each.

Exact, since a view that is kept has a number: CIFAR's crops and flips are 162 an image, of which some 240 epochs show 125.
Outputs are kept in memory and in a folder, and later runs with the same teacher, data and augmentation read them.
"""

import contextlib
import dataclasses
import hashlib
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from kdjax.json_files import own_name, read_json, sync_folder, write_json
from kdjax.places import disk_fault
from kdjax.types import Batch, ModelOutput

DESCRIPTION = "description.json"
FORM = 2  # of the files; those of form 1 had no checksum
SEAL = b"sha256"  # what the last record of a file begins with


class CacheError(Exception):
    """What is wrong with a cache of a teacher's outputs, and the mend, in one sentence."""


@dataclasses.dataclass(frozen=True)
class Storage:
    """In which form logits are kept: "float32", "float16", or "top16": the log-probabilities of so many classes, in float16.

    What the others of "topK" have together follows from those: it is spread as the student's own, see
    `kdjax.losses.topk_teacher`.
    """

    name: str

    def __post_init__(self):
        if self.name not in ("float32", "float16") and not (
            self.name[:3] == "top" and self.name[3:].isdigit() and self.k
        ):
            raise ValueError(
                f"A teacher's outputs are kept as float32, float16 or topK such as top16, not {self.name!r}."
            )

    @property
    def k(self) -> int | None:
        return int(self.name[3:]) if self.name.startswith("top") else None

    def row(self, shape: tuple[int, ...]) -> np.dtype:
        """Of one example's outputs, logits of this shape: `(C,)`, or `(L, C)` where a row has elements."""
        if self.k is None:
            return np.dtype([("logits", self.name, shape)])
        top = (*shape[:-1], min(self.k, shape[-1]))
        return np.dtype([("ids", np.int32, top), ("logprobs", np.float16, top)])

    def pack(self, logits: np.ndarray) -> np.ndarray:
        """`[B, ..., C]` float32 logits as rows."""
        rows = np.empty(len(logits), self.row(logits.shape[1:]))
        if self.k is None:
            rows["logits"] = logits
            return rows
        top = logits.max(-1, keepdims=True)
        logprobs = logits - top - np.log(np.sum(np.exp(logits - top), -1, keepdims=True))
        ids = np.argsort(-logprobs, axis=-1, kind="stable")[..., : rows["ids"].shape[-1]]
        rows["ids"], rows["logprobs"] = ids, np.take_along_axis(logprobs, ids, -1)
        return rows

    def unpack(self, rows: np.ndarray) -> ModelOutput:
        """Rows as a teacher's output."""
        if self.k is None:
            return ModelOutput(logits=rows["logits"])
        return ModelOutput(taps={"topk_ids": rows["ids"], "topk_logprobs": rows["logprobs"]})


class TeacherCache:
    """Outputs by (example, number of its view).

    Args:
      folder: where they are kept; made if missing.
      description: what they depend on, JSON-like: the teacher's hash, the data, the views. Another one in the folder is
        refused.
      examples: N.
      views: V, how many an example has.
      shape: of an example's logits, `(C,)` or `(L, C)`.
      storage: in which form.
      writes: whether this process writes files; of several that keep the same outputs one does.

    Raises:
      CacheError: the folder holds outputs of something else, or cannot be read.
    """

    def __init__(
        self,
        folder: Path,
        description: dict[str, Any],
        *,
        examples: int,
        views: int,
        shape: tuple[int, ...],
        storage: Storage,
        writes: bool = True,
    ):
        self.folder, self.storage, self.views, self.writes = Path(folder), storage, views, writes
        self._rows = np.empty(0, storage.row(shape))
        self._place = np.full(examples * views, -1, np.int32)
        self._count = 0
        self._error = {"rows": 0, "largest": 0.0, "mass": 0.0}
        description = {"form": FORM, "storage": storage.name, "classes": shape[-1], **description}
        if len(shape) > 1:
            description["elements"] = list(shape[:-1])
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._check(json.loads(json.dumps(description)))
        except OSError as error:
            raise self._unwritable(error) from error
        self.parts = 0
        for path in sorted(self.folder.glob("*.array_record")):
            self._add(*self._read(path))
            self.parts += 1

    def __len__(self) -> int:
        return self._count

    def ids(self, index: np.ndarray, numbers: np.ndarray) -> np.ndarray:
        """`[B]` int64 of each (example, view)."""
        return index.astype(np.int64) * self.views + numbers

    def missing(self, ids: np.ndarray) -> np.ndarray:
        """Those that are not here, each once, in order."""
        return np.unique(ids[self._place[ids] < 0])

    def get(self, ids: np.ndarray) -> ModelOutput:
        """The outputs `[B, ...]`; all must be here."""
        return self.storage.unpack(self._rows[self._place[ids]])

    def add(self, blocks: Iterator[tuple[np.ndarray, np.ndarray]]) -> None:
        """Keeps `(ids [B], logits [B, ..., C] float32)`, in memory and as one more file, which is there whole or not at all.

        Any number of processes may add to one folder at the same moment.

        Raises:
          CacheError: it cannot be written.
        """
        with self._file() as write:
            for ids, logits in blocks:
                logits = np.asarray(logits, np.float32)
                rows = self.storage.pack(logits)
                self._measure(rows, logits)
                write(np.int64(len(ids)).tobytes() + ids.astype(np.int64).tobytes() + rows.tobytes())
                self._add(ids, rows)
        self.parts += 1

    @contextlib.contextmanager
    def _file(self):
        """Writes records to one more file, whose last one is a checksum of the others."""
        from array_record.python.array_record_module import ArrayRecordWriter

        if not self.writes:
            yield lambda record: None
            return
        temporary, digest, failed = own_name(self.folder / "outputs"), hashlib.sha256(), []

        def write(record: bytes) -> None:
            digest.update(record)
            attempt(lambda: writer.write(record))

        def attempt(action: Callable[[], Any]) -> Any:
            try:
                return action()
            except Exception as error:  # the writer's own are of many kinds
                failed.append(error)
                raise

        try:
            writer = attempt(lambda: ArrayRecordWriter(str(temporary), "group_size:1"))
            yield write
            attempt(lambda: (writer.write(SEAL + digest.digest()), writer.close(), self._publish(temporary)))
        except Exception as error:
            if any(error is one for one in failed):
                raise self._unwritable(error) from error
            raise
        finally:
            temporary.unlink(missing_ok=True)

    def _publish(self, temporary: Path) -> None:
        """Gives a file that is written the next number that nobody has taken."""
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        number = self.parts
        while True:
            try:
                os.link(temporary, self.folder / f"{number:05d}.array_record")
                break
            except FileExistsError:
                number += 1
            except OSError:  # a file system without links: its own name stays
                temporary.replace(temporary.with_suffix(".array_record"))
                break
        sync_folder(self.folder)

    def _unwritable(self, error: BaseException) -> CacheError:
        why = disk_fault(error) or f"{type(error).__name__}: {error}"
        return CacheError(
            f"A teacher's outputs cannot be kept in {self.folder}: {why.rstrip('.')}. Or name another folder with --cache-dir."
        )

    def error(self) -> dict[str, float]:
        """What keeping changed of the outputs that were added: the largest change of a logit, or the mean probability of the
        classes that are kept."""
        if not self._error["rows"]:
            return {}
        if self.storage.k is None:
            return {"largest_change": self._error["largest"]}
        return {"mass": self._error["mass"] / self._error["rows"]}

    def _measure(self, rows: np.ndarray, logits: np.ndarray) -> None:
        self._error["rows"] += len(rows)
        if self.storage.k is None:
            there = logits != -np.inf  # a class that is out stays out
            change = np.abs(rows["logits"].astype(np.float32)[there] - logits[there]).max(initial=0.0)
            self._error["largest"] = max(self._error["largest"], float(change))
        else:
            mass = np.exp(rows["logprobs"].astype(np.float32)).sum(-1)
            self._error["mass"] += float(mass.reshape(len(rows), -1).mean(-1).sum())

    def _add(self, ids: np.ndarray, rows: np.ndarray) -> None:
        needed = self._count + len(ids)
        if needed > len(self._rows):
            grown = np.empty(max(needed, 2 * len(self._rows)), self._rows.dtype)
            grown[: self._count] = self._rows[: self._count]
            self._rows = grown
        self._rows[self._count : needed] = rows
        self._place[ids] = np.arange(self._count, needed, dtype=np.int32)
        self._count = needed

    def _read(self, path: Path) -> tuple[np.ndarray, np.ndarray]:
        """Ids and rows of a file, whose checksum is verified."""
        from array_record.python.array_record_module import ArrayRecordReader

        try:
            reader = ArrayRecordReader(str(path))
            *records, seal = reader.read_all()
            reader.close()
            digest = hashlib.sha256()
            ids, rows = [np.empty(0, np.int64)], [np.empty(0, self._rows.dtype)]
            for record in records:
                digest.update(record)
                count = int(np.frombuffer(record, np.int64, 1)[0])
                ids.append(np.frombuffer(record, np.int64, count, 8))
                rows.append(np.frombuffer(record, self._rows.dtype, count, 8 + 8 * count))
            if seal != SEAL + digest.digest():
                raise ValueError("its checksum does not match what is in it")
            found = np.concatenate(ids)
            if len(found) and not 0 <= found.min() <= found.max() < len(self._place):
                raise ValueError(f"it is of view {found.max()}, and there are {len(self._place)}")
        except Exception as error:  # of many kinds for a damaged file
            why = str(error) if type(error) is ValueError else type(error).__name__
            raise CacheError(
                f"{path} is damaged ({why.splitlines()[0]}); delete it: what it held is computed again."
            ) from error
        return found, np.concatenate(rows)

    def _check(self, description: dict[str, Any]) -> None:
        path = self.folder / DESCRIPTION
        if not path.exists():
            write_json(path, description)
            return
        there = read_json(path, CacheError, f"delete {self.folder}: what it held is computed again")
        for name in {**description, **there}:
            if there.get(name) != description.get(name):
                raise CacheError(
                    f"The outputs in {self.folder} are of another {name} ({there.get(name)!r}, this run has "
                    f"{description.get(name)!r}); delete that folder, or name another."
                )


def with_teacher(
    batches: Callable[[int], Iterator[Batch]],
    cache: TeacherCache,
    *,
    steps_per_pass: int,
    rows: np.ndarray,
    numbers: Callable[[int], np.ndarray],
    answer: Callable[[np.ndarray, np.ndarray], np.ndarray],
    at_once: int,
) -> Callable[[int], Iterator[Batch]]:
    """Batches with what the teacher says of them. At the beginning of a pass the teacher runs on the views of it that are
    not in the cache yet, in full batches; within it not at all.

    Args:
      batches: `start step -> batches`.
      cache: of outputs.
      steps_per_pass: after so many steps views are drawn anew.
      rows: the examples that are visited.
      numbers: `pass -> [N]` the views that the examples show in it.
      answer: `(examples [at_once], their views [at_once]) -> [at_once, C]` logits.
      at_once: examples in a batch of the teacher's.
    """

    def prepare(number: int) -> np.ndarray:
        shown = numbers(number)
        missing = cache.missing(cache.ids(rows, shown[rows]))
        if len(missing):

            def blocks():
                for begin in range(0, len(missing), at_once):
                    ids = missing[begin : begin + at_once]
                    filled = np.resize(ids, at_once)  # a full batch, so that one program serves
                    yield ids, answer(filled // cache.views, filled % cache.views)[: len(ids)]

            cache.add(blocks())
        return shown

    def iterate(start: int) -> Iterator[Batch]:
        current, shown = None, None
        for step, batch in enumerate(batches(start), start):
            if step // steps_per_pass != current:
                current = step // steps_per_pass
                shown = prepare(current)
            index = batch.known_index("A teacher's outputs are kept")
            said = cache.get(cache.ids(index, shown[index]))
            yield dataclasses.replace(batch, teacher=said)

    return iterate

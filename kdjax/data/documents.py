"""What a language model learns from, as one split in a fixed order: documents, or prompts with responses.

Files of one's own, or what Python says of its own language, which every Python brings along.
"""

import dataclasses
import functools
import gzip
import hashlib
import re
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from kdjax.data.errors import DataError, note
from kdjax.data.folders import SPLITS
from kdjax.data.splits import test_part
from kdjax.data.text_files import json_lines, read_text
from kdjax.places import local

TOPICS, JARGON = "python_topics", "jargon"
JARGON_FILE = Path("/usr/share/doc/jargon-text/jargon.txt.gz")  # of Debian's package jargon-text
FILES = (".txt", ".jsonl")
HELD_OUT = 0.1  # of a set that has no test part
PARAGRAPHS = 20  # of a .txt, in a document
# What a line of a .jsonl has, the first of these that it does; instructions as Alpaca and databricks-dolly-15k have them.
COLUMNS = (("prompt", "response"), ("instruction", "output"), ("instruction", "response"), ("text",))
ABOUT = ("input", "context")


@dataclasses.dataclass(frozen=True, eq=False)
class Documents:
    """One split of `N` documents, or of prompts with responses.

    Attributes:
      name, split: for messages.
      first: the documents, or the prompts.
      responses: to the prompts; None of documents.
    """

    name: str
    split: str
    first: tuple[str, ...]
    responses: tuple[str, ...] | None = None

    def __len__(self) -> int:
        return len(self.first)

    def take(self, rows: np.ndarray) -> "Documents":
        pick = lambda texts: None if texts is None else tuple(texts[row] for row in rows)
        return dataclasses.replace(self, first=pick(self.first), responses=pick(self.responses))

    def fingerprint(self) -> str:
        """SHA-256 of the texts."""
        digest = hashlib.sha256(b"documents" if self.responses is None else b"pairs")
        for text in (*self.first, *(self.responses or ())):
            digest.update(text.encode("utf-8", errors="surrogatepass") + b"\0")
        return digest.hexdigest()


def load_documents(name: str, *, split: str, split_seed: int = 0) -> Documents:
    """Reads one split.

    Args:
      name: "python_topics"; "jargon", the Jargon File where it is installed; a file .txt, whose documents are 20 paragraphs each,
        or .jsonl with an object a line, {"text": ...}, {"prompt": ..., "response": ...}, or {"instruction": ..., "response": ...}
        (or "output"), which is asked as Alpaca does, with "input" or "context" where that is given; or a folder with train.txt
        or train.jsonl (and test, validation), or with any .txt.
      split: "train", "test" or "validation".
      split_seed: of the choice of a test part, a tenth of the documents, where the set has none.

    Raises:
      DataError: no such set or split, or what does not fit in it.
    """
    if split not in SPLITS:
        raise DataError(f"{name} has no split {split!r}; use {', '.join(SPLITS)}.")
    if name == TOPICS:
        return Documents(name, split, tuple(
            text for topic, text in topics() if (zlib.crc32(topic.encode()) % 8 == 0) == (split != "train")
        ))  # fmt: skip
    if name == JARGON:
        blocks = _blocks(_jargon())
        return Documents(
            name, split, tuple(text for i, text in enumerate(blocks) if (i % 10 == 9) == (split != "train"))
        )
    path = local(name, DataError, "A data set")
    if path.is_dir():
        files = _files(name, path)
    elif path.suffix in FILES and path.exists():
        files = {"train": [path]}
    else:
        raise DataError(
            f"There is no file or folder {path} of documents; give a .txt or .jsonl, a folder of them, or {TOPICS}."
        )
    other = {"test": "validation", "validation": "test"}.get(split, split)
    own = split if split in files else other if other in files else "train"
    found = _read(name, split, files[own])
    if set(files) != {"train"}:
        return found
    test = test_part(np.zeros(len(found), np.int32), share=HELD_OUT, split_seed=split_seed)
    if test.all() or not test.any():
        raise DataError(
            f"{name} has no test part, and too few documents to hold some out, {len(test)}; give a test file."
        )
    note(f"{name} has no test part: {test.sum():,} of {len(test):,} documents are held out for it")
    return found.take(np.flatnonzero(~test if split == "train" else test))


@functools.cache
def topics() -> tuple[tuple[str, str], ...]:
    """What Python's `help` says of the language, by topic: half a megabyte of English and some code. Another version of Python
    says a few things otherwise."""
    try:
        from pydoc_data.topics import topics as found
    except ImportError as error:
        raise DataError(f"This Python lacks pydoc_data.topics; use another data set than {TOPICS}.") from error
    return tuple(sorted((topic, text.strip()) for topic, text in found.items() if text.strip()))


def _files(name: str, path: Path) -> dict[str, list[Path]]:
    """The files of each split; of a folder that does not name any, all .txt below it are of one."""
    found: dict[str, list[Path]] = {}
    for split, words in SPLITS.items():
        there = [path / f"{word}{suffix}" for word in words for suffix in FILES if (path / f"{word}{suffix}").exists()]
        if len(there) > 1:
            raise DataError(f"{name} has both {there[0].name} and {there[1].name}; keep one.")
        if there:
            found[split] = there
    if found and "train" not in found:
        raise DataError(
            f"{name} has {next(iter(found.values()))[0].name} and nothing to train on; add train.txt or train.jsonl."
        )
    found = found or {"train": sorted(path.rglob("*.txt"))}
    if not found["train"]:
        raise DataError(f"{name} has no train.jsonl, train.txt or other .txt in it; name another folder.")
    return found


def _read(name: str, split: str, files: Sequence[Path]) -> Documents:
    if files[0].suffix == ".jsonl":
        return _of_lines(name, split, files[0])
    documents: list[str] = []
    for file in files:
        documents += _blocks(read_text(file))
    if not documents:
        raise DataError(f"{name} ({split}) has no text in it; give it some.")
    return Documents(name, split, tuple(documents))


def _blocks(text: str) -> list[str]:
    """A text in documents of so many paragraphs each."""
    paragraphs = [part for part in re.split(r"\n\s*\n", text) if part.strip()]
    return ["\n\n".join(paragraphs[i : i + PARAGRAPHS]) for i in range(0, len(paragraphs), PARAGRAPHS)]


def _jargon() -> str:
    """The Jargon File, 1.6 MB of English in the public domain; a tenth of its documents, spread evenly, is tested on."""
    try:
        return gzip.decompress(JARGON_FILE.read_bytes()).decode("utf-8", errors="replace")
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{JARGON_FILE} cannot be read ({error}); install Debian's package jargon-text.") from error


def _of_lines(name: str, split: str, path: Path) -> Documents:
    rows = json_lines(path)
    if not rows:
        raise DataError(f"{path} has no rows; give it some, or leave that file out.")
    there = set(rows[0][1])
    keys = next((keys for keys in COLUMNS if set(keys) <= there), None)
    if keys is None:
        raise DataError(f"{path} has {', '.join(sorted(there))} in its first line; write text, or prompt and response, or "
                        "instruction and response.")  # fmt: skip
    columns = []
    for key in keys:
        lost = next((number for number, row in rows if not isinstance(row.get(key), str) or not row[key].strip()), None)
        if lost is not None:
            raise DataError(f"{path} has no text for {key!r} in line {lost}; fill it in, or leave the line out.")
        columns.append([row[key] for _, row in rows])
    if keys[0] == "instruction":
        columns[0] = [_asked(path, number, row) for number, row in rows]
    return Documents(name, split, *map(tuple, columns))


def _asked(path: Path, number: int, row: dict) -> str:
    """An instruction, and what it is about where that is said, as Alpaca's prompts have them."""
    about = next((row[key] for key in ABOUT if row.get(key)), "")
    if not isinstance(about, str):
        raise DataError(
            f"{path} has no text for what its instruction is about in line {number}; write a text, or leave it out."
        )
    beside = ", paired with an input that provides further context" if about.strip() else ""
    said = f"### Instruction:\n{row['instruction']}\n\n" + f"### Input:\n{about}\n\n" * bool(about.strip())
    return (
        f"Below is an instruction that describes a task{beside}. Write a response that appropriately completes the request.\n\n"
        f"{said}### Response:\n"
    )

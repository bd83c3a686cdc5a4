"""Text as numbers: tokenizers that need nothing, and those of a `tokenizer.json`, which need the package tokenizers."""

import dataclasses
import functools
import hashlib
import json
import re
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from kdjax.data.errors import DataError
from kdjax.places import local

PADDING, START, END, MASK = range(4)  # tokens of bytes and words; what is said comes behind them
SPECIAL = 4
WORDS = 8192  # numbers of the tokenizer "words", where none is said
WORD = re.compile(r"\w+|[^\w\s]")


class Encoded(NamedTuple):
    """Texts as arrays `[N, L]`.

    Attributes:
      ids: tokens, uint16, or int32 where there are more than 65,536 kinds.
      mask: uint8, 1 of a token and 0 of the padding behind them.
      types: uint8, 1 in the second text of a pair.
      cut: `[N]` bool, which texts lost their end.
    """

    ids: np.ndarray
    mask: np.ndarray
    types: np.ndarray
    cut: np.ndarray


class Tokenizer(Protocol):
    """What makes tokens of texts.

    Attributes:
      name: for messages.
      size: how many kinds of tokens there are.
      padding: the one that fills rows up.
    """

    name: str
    size: int
    padding: int

    def pieces(
        self, first: Sequence[str], second: Sequence[str] | None, length: int
    ) -> list[tuple[list[int], list[int]]]:
        """Tokens, and for each whether it is of the second text, of every text or pair; at most `length` and one more where
        something was cut."""
        ...

    def fingerprint(self) -> str:
        """A hash of all that the numbers depend on."""
        ...


def encode(tokenizer: Tokenizer, first: Sequence[str], second: Sequence[str] | None, length: int) -> Encoded:
    """Texts, or pairs of texts, as rows of `length` tokens: cut where they are longer, and filled up where they are shorter."""
    rows = len(first)
    ids = np.full((rows, length), tokenizer.padding, np.uint16 if tokenizer.size <= 2**16 else np.int32)
    mask, types, cut = np.zeros((rows, length), np.uint8), np.zeros((rows, length), np.uint8), np.zeros(rows, bool)
    for row, (tokens, kinds) in enumerate(tokenizer.pieces(first, second, length)):
        count = min(len(tokens), length)
        ids[row, :count], mask[row, :count], types[row, :count] = tokens[:count], 1, kinds[:count]
        cut[row] = len(tokens) > length
    return Encoded(ids, mask, types, cut)


@dataclasses.dataclass(frozen=True)
class Simple:
    """Base of those that need nothing: a start, the text, an end, and in a pair the second text and an end."""

    name: str
    size: int
    padding: int = PADDING

    def numbers(self, text: str) -> list[int]:
        raise TypeError(f"{type(self).__name__} does not say its numbers; define numbers(text).")

    def pieces(self, first, second, length):
        if length < (3 if second is None else 5):
            raise DataError(f"Rows of {length} tokens have no room for a text; make data.length at least 5.")
        found = []
        for row, text in enumerate(first):
            ours, theirs = self.numbers(text), None if second is None else self.numbers(second[row])
            room = length - (2 if theirs is None else 3)
            whole = len(ours) + len(theirs or ()) <= room
            if theirs is not None:  # the longer one is cut first
                kept = max(room // 2, room - len(theirs))
                ours = ours[: kept if len(ours) > kept else len(ours)]
                theirs = theirs[: room - len(ours)]
            tokens = [START, *ours[:room], END]
            kinds = [0] * len(tokens)
            if theirs is not None:
                tokens, kinds = [*tokens, *theirs, END], kinds + [1] * (len(theirs) + 1)
            found.append((tokens if whole else tokens + [END] * (length + 1 - len(tokens)), kinds))
        return found

    def fingerprint(self) -> str:
        return f"{self.name} 1"


@dataclasses.dataclass(frozen=True)
class Bytes(Simple):
    """UTF-8, a token a byte."""

    name: str = "bytes"
    size: int = 256 + SPECIAL

    def numbers(self, text):
        return [byte + SPECIAL for byte in text.encode("utf-8", errors="replace")]


@dataclasses.dataclass(frozen=True)
class Words(Simple):
    """Words and marks in small letters, by a checksum: nothing is learned or kept, and now and then two share a number."""

    name: str = f"words:{WORDS}"
    size: int = WORDS

    def numbers(self, text):
        room = self.size - SPECIAL
        return [
            zlib.crc32(word.encode("utf-8", errors="replace")) % room + SPECIAL for word in WORD.findall(text.lower())
        ]


class FromFiles:
    """That of a `tokenizer.json`, or of the vocabulary of WordPiece or of byte-level BPE."""

    def __init__(self, path: Path):
        """Reads it.

        Raises:
          DataError: the package tokenizers is missing, or the files are missing or damaged.
        """
        try:
            import tokenizers
        except ImportError as error:
            raise DataError(f"{path} is read by the package tokenizers; run pip install 'kdjax[text]'.") from error
        folder = path if path.is_dir() else path.parent
        there = lambda name: (folder / name).exists()
        settings = settings_in(folder / "tokenizer_config.json")
        try:
            if not path.is_dir() or there("tokenizer.json"):
                self.files = [path / "tokenizer.json" if path.is_dir() else path]
                self._made = tokenizers.Tokenizer.from_file(str(self.files[0]))
            elif there("vocab.txt"):
                self.files, lower = [folder / "vocab.txt"], bool(settings.get("do_lower_case", True))
                self._made = tokenizers.BertWordPieceTokenizer(str(self.files[0]), lowercase=lower)._tokenizer
            elif there("vocab.json") and there("merges.txt"):
                self.files = [folder / "vocab.json", folder / "merges.txt"]
                self._made = tokenizers.ByteLevelBPETokenizer(*map(str, self.files))._tokenizer
            else:
                raise DataError(
                    f"{path} has no tokenizer.json, vocab.txt, or vocab.json with merges.txt; name another folder."
                )
        except DataError:
            raise
        except Exception as error:  # the package raises plain Exceptions
            raise DataError(
                f"{path} holds no tokenizer that can be read ({str(error).splitlines()[0][:120]})."
            ) from error
        named = settings.get("pad_token")
        named = named.get("content") if isinstance(named, dict) else named
        found = (self._made.token_to_id(token) for token in (named, "[PAD]", "<pad>") if token)
        self.padding = next((number for number in found if number is not None), 0)
        self.name, self.size = str(path), self._made.get_vocab_size(with_added_tokens=True)

    def pieces(self, first, second, length):
        self._made.no_padding()
        self._made.enable_truncation(length)
        pairs = list(first) if second is None else list(zip(first, second, strict=True))
        return [(e.ids + [self.padding] * bool(e.overflowing) * (length + 1 - len(e.ids)), e.type_ids)
                for e in self._made.encode_batch(pairs)]  # fmt: skip

    def fingerprint(self) -> str:
        return hashlib.sha256(b"".join(file.read_bytes() for file in self.files)).hexdigest()


def tokenizer_of(name: str) -> Tokenizer:
    """A tokenizer by name.

    Args:
      name: "bytes"; "words" or "words:SIZE"; or the path of a `tokenizer.json` or of a folder with one, or with a `vocab.txt`.

    Raises:
      DataError: there is none.
    """
    if name == "bytes":
        return Bytes()
    kind, _, size = name.partition(":")
    if kind == "words" and (not size or size.isdecimal()):
        count = int(size or WORDS)
        if not 2 * SPECIAL <= count <= 2**24:
            raise DataError(f"The tokenizer {name} has {count} numbers; use {2 * SPECIAL} to {2**24}.")
        return Words(f"words:{count}", count)
    path = local(name, DataError, "A tokenizer")
    if not path.exists():
        raise DataError(
            f"There is no tokenizer {name!r}; use bytes, words, or the path of a tokenizer.json or of its folder."
        )
    return FromFiles(path)


def tokenizer_files(name: str) -> Path | None:
    """The file or folder of a tokenizer by name; None for one that has none."""
    made = tokenizer_of(name)
    return Path(made.name) if isinstance(made, FromFiles) else None


@functools.lru_cache(maxsize=4)  # a program asks several times
def check_numbers(name: str, folder: str) -> None:
    """Refuses a tokenizer that has other numbers for its tokens than the one that lies beside a network's weights, as far as
    there is one.

    Args:
      name: of the tokenizer, as in `tokenizer_of`.
      folder: of the network.

    Raises:
      ValueError: a token has another number there, or none.
    """
    if not any((Path(folder) / file).exists() for file in ("tokenizer.json", "vocab.txt", "vocab.json")):
        return
    made, theirs = tokenizer_of(name), FromFiles(Path(folder))
    if not isinstance(made, FromFiles):
        raise ValueError(
            f"The network in {folder} knows the tokens of the tokenizer beside it, and is to read those of {made.name}; make "
            "data.tokenizer that folder, or of a teacher alone network.tokenizer."
        )
    there = theirs._made.get_vocab(with_added_tokens=True)
    ours = made._made.get_vocab(with_added_tokens=True)
    other = min((token for token, number in ours.items() if there.get(token) != number), key=ours.get, default=None)
    if other is not None:
        raise ValueError(
            f"Number {ours[other]} of the tokenizer {made.name} is {other!r}, which the tokenizer beside the network in "
            f"{folder} has as {there.get(other, 'nothing')}; use the tokens of one for both, or name that folder as the "
            "teacher's network.tokenizer."
        )


def settings_in(path: Path) -> dict[str, Any]:
    """What a JSON file beside a tokenizer says; nothing where it cannot be read."""
    try:
        read = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return read if isinstance(read, dict) else {}

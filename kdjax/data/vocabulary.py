"""Tokenizers as language models need them: a text to numbers with nothing around it, and back."""

import functools
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from kdjax.data.errors import DataError
from kdjax.data.tokenizers import END, SPECIAL, START, Bytes, FromFiles, settings_in, tokenizer_of

STARTS, ENDS = ("<s>", "<|startoftext|>", "<|begin_of_text|>"), ("</s>", "<|endoftext|>", "<|end_of_text|>", "<eos>")


class Vocabulary(Protocol):
    """The tokens of a tokenizer.

    Attributes:
      name, size, padding: as of `kdjax.data.tokenizers.Tokenizer`; padding may be a token that also occurs, masks tell.
      start: the token before a text, or None.
      end: the token behind it.
    """

    name: str
    size: int
    padding: int
    start: int | None
    end: int

    def numbers(self, texts: Sequence[str]) -> list[list[int]]:
        """The tokens of every text."""
        ...

    def numbers_and_ends(self, texts: Sequence[str]) -> list[tuple[list[int], np.ndarray]]:
        """The tokens of every text, and how many of its bytes have been read behind each, which never falls."""
        ...

    def text(self, numbers: Sequence[int]) -> str:
        """The text of tokens, without those that stand for no text."""
        ...

    def byte_counts(self) -> np.ndarray:
        """`[size]` float32, how many bytes of text each token stands for."""
        ...

    def fingerprint(self) -> str:
        """A hash of all that the numbers depend on."""
        ...


class ByteVocabulary:
    """UTF-8, a token a byte."""

    def __init__(self):
        self._bytes = Bytes()
        self.name, self.size, self.padding = self._bytes.name, self._bytes.size, self._bytes.padding
        self.start, self.end = START, END

    def numbers(self, texts):
        return [self._bytes.numbers(text) for text in texts]

    def numbers_and_ends(self, texts):
        return [(numbers, np.arange(1, len(numbers) + 1)) for numbers in self.numbers(texts)]

    def text(self, numbers):
        return bytes(n - SPECIAL for n in map(int, numbers) if n >= SPECIAL).decode("utf-8", errors="replace")

    def byte_counts(self):
        return (np.arange(self.size) >= SPECIAL).astype(np.float32)

    def fingerprint(self):
        return self._bytes.fingerprint()


class FileVocabulary:
    """That of a `tokenizer.json`, whose text can be had back from its tokens."""

    def __init__(self, tokenizer: FromFiles):
        """Finds what stands before and behind a text: as `tokenizer_config.json` beside it says, or by its usual name.

        Raises:
          DataError: nothing ends a text.
        """
        self._files, self._made = tokenizer, tokenizer._made
        self.name, self.size, self.padding = tokenizer.name, tokenizer.size, tokenizer.padding
        said = settings_in(tokenizer.files[0].parent / "tokenizer_config.json")
        self.start = self._number(said.get("bos_token"), STARTS)
        end = self._number(said.get("eos_token"), ENDS)
        if end is None:
            raise DataError(f"{tokenizer.name} has no token that ends a text; name it as eos_token in a tokenizer_config.json "
                            "beside it.")  # fmt: skip
        self.end = end
        kind = settings_in(tokenizer.files[0]).get("decoder") or {}
        parts = [kind, *kind.get("decoders", ())]
        self._of_bytes = (
            any(part.get("type") == "ByteLevel" for part in parts) or tokenizer.files[0].name == "vocab.json"
        )

    def _number(self, said: Any, usual: Sequence[str]) -> int | None:
        named = said.get("content") if isinstance(said, dict) else said
        found = (self._made.token_to_id(token) for token in ((named,) if named else usual))
        return next((number for number in found if number is not None), None)

    def numbers(self, texts):
        return [made.ids for made in self._encoded(texts)]

    def numbers_and_ends(self, texts):
        found = []
        for text, made in zip(texts, self._encoded(texts), strict=True):
            letters = np.array([len(letter.encode("utf-8", errors="replace")) for letter in text], int)
            before = np.concatenate([[0], np.cumsum(letters)])
            ends = np.cumsum(self.byte_counts()[made.ids].astype(int))
            if not self._of_bytes or (len(ends) and ends[-1] != before[-1]):  # as the tokenizer itself says, by letters
                starts, ends = np.array(made.offsets, int).reshape(-1, 2).T
                # A mark that a tokenizer puts in, such as the space before a text, is said to be of the letter behind it.
                ends = before[
                    np.minimum(ends, np.append(np.where(starts[1:] < ends[:-1], starts[1:], ends[:-1]), ends[-1:]))
                ]
            found.append((made.ids, np.maximum.accumulate(ends)))
        return found

    def _encoded(self, texts):
        self._made.no_padding()
        self._made.no_truncation()
        return self._made.encode_batch(list(texts), add_special_tokens=False)

    def text(self, numbers):
        return self._made.decode([int(n) for n in numbers], skip_special_tokens=True)

    def byte_counts(self):
        return self._byte_counts

    @functools.cached_property
    def _byte_counts(self) -> np.ndarray:
        special = {number for number, token in self._made.get_added_tokens_decoder().items() if token.special}
        counts = np.zeros(self.size, np.float32)
        for number in set(range(self.size)) - special:
            token = self._made.id_to_token(number) or ""
            if self._of_bytes:  # a letter stands for a byte
                counts[number] = len(token)
            elif len(token) == 6 and token.startswith("<0x"):
                counts[number] = 1
            else:
                counts[number] = len(token.replace("▁", " ").removeprefix("##").encode())
        return counts

    def fingerprint(self):
        return self._files.fingerprint()


def vocabulary_of(name: str) -> Vocabulary:
    """A vocabulary by the name of its tokenizer: "bytes", or the path of a `tokenizer.json` or of a folder with one.

    Raises:
      DataError: there is none, or text cannot be had back from its tokens.
    """
    made = tokenizer_of(name)
    if isinstance(made, Bytes):
        return ByteVocabulary()
    if isinstance(made, FromFiles):
        return FileVocabulary(made)
    raise DataError(
        f"Texts cannot be had back from the tokens of {made.name}; use bytes, or the path of a tokenizer.json."
    )

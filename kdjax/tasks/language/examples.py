"""Rows of tokens, which is what a network is shown, and which of them it learns."""

import dataclasses
import functools
import hashlib
from typing import Any

import jax
import numpy as np

from kdjax.data.alignment import aligned
from kdjax.data.documents import Documents
from kdjax.data.errors import DataError, note
from kdjax.data.packing import Packed, packed, paired, positions
from kdjax.data.vocabulary import Vocabulary, vocabulary_of
from kdjax.tasks.dataset import BESIDE


@dataclasses.dataclass(frozen=True, eq=False)
class Rows:
    """One split of `N` rows of `L` tokens.

    Attributes:
      documents: as they were read.
      inputs: `input_ids`, `segment_ids` (0 is padding) and `position_ids`, which begin anew with every text, `[N, L]` each; and
        under `BESIDE` those of a teacher with a tokenizer of its own, `[N, M]`, with the `columns` of `Aligned`.
      labels: `[N, L]`, the token behind each.
      learned: `[N, L]` bool, whether it counts.
      begins: `[N]` int32, the column in which what a network would write itself begins: behind the prompt.
      vocabulary: fingerprint of what made them.
    """

    documents: Documents
    inputs: dict[str, Any]
    labels: np.ndarray
    learned: np.ndarray
    begins: np.ndarray
    vocabulary: str

    @property
    def name(self) -> str:
        return self.documents.name

    @property
    def split(self) -> str:
        return self.documents.split

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, indices, *, inputs: bool = True) -> dict[str, Any]:
        chosen = np.asarray(indices)
        shown = jax.tree.map(lambda array: array[chosen], self.inputs) if inputs else None
        labels = self.labels[chosen].astype(np.int32)
        written = {"written": np.zeros(len(labels), bool), "drawn": np.zeros(labels.shape, np.float32)}
        targets = {"labels": labels, "begins": self.begins[chosen], **written}
        if BESIDE in self.inputs:
            targets["aligned"] = self.inputs[BESIDE]["columns"][chosen] >= 0
        return {"inputs": shown, "targets": targets, "elements": self.learned[chosen]}

    def fingerprint(self) -> str:
        digest = hashlib.sha256(f"{self.vocabulary} {self.labels.shape[1]} {self.documents.fingerprint()}".encode())
        digest.update(np.packbits(self.learned).tobytes() + self.begins.tobytes())
        return digest.hexdigest()


@functools.lru_cache(maxsize=4)
def vocabulary_called(name: str) -> Vocabulary:
    """`vocabulary_of`, which a program asks for several times."""
    return vocabulary_of(name)


def rows_of(
    documents: Documents, vocabulary: Vocabulary, length: int, *, prompt: int, whole: bool, beside: Vocabulary | None = None,
    beside_length: int = 0,
) -> Rows:  # fmt: skip
    """A split as rows; says how many texts lost something.

    Args:
      documents: the split.
      vocabulary: makes tokens of it.
      length: tokens of a row.
      prompt: tokens that a prompt may have; of documents, how many of a row are one.
      whole: whether prompts are learned as well as responses.
      beside: of a teacher that has its own, whose rows have `beside_length` tokens; 0 for as many as the longest needs.

    Raises:
      DataError: no documents.
    """
    if not len(documents):
        raise DataError(f"{documents.name} ({documents.split}) has no documents; give it some.")
    if documents.responses is None:
        made = packed(documents.first, vocabulary, length)
    else:
        made = paired(documents.first, documents.responses, vocabulary, length, prompt=prompt, whole=whole)
    if made.cut:
        note(
            f"{made.cut:,} of {len(documents):,} pairs of {documents.name} ({documents.split}) have a prompt of more than "
            f"{prompt} tokens or are longer than {length}: prompts lose their beginning, responses their end"
        )
    begins = np.minimum(prompt, np.sum(made.segments[:, :-1] > 0, axis=1)) if made.begins is None else made.begins
    labels, fingerprint, inputs = made.tokens[:, 1:], vocabulary.fingerprint(), shown_of(made)
    if beside is not None:
        theirs = aligned(documents, made, beside_length, vocabulary, beside)
        fingerprint += f" {beside.fingerprint()}"
        inputs[BESIDE] = {
            "input_ids": theirs.tokens, "segment_ids": theirs.segments, "position_ids": positions(theirs.segments),
            "columns": theirs.columns,
        }  # fmt: skip
    return Rows(documents, inputs, labels, made.learned, begins.astype(np.int32), fingerprint)


def shown_of(made: Packed) -> dict[str, Any]:
    """What a network sees of rows, by the names that it takes it under."""
    segments = made.segments[:, :-1]
    return {"input_ids": made.tokens[:, :-1], "segment_ids": segments, "position_ids": positions(segments)}

"""The same texts by two tokenizers: a teacher's rows of tokens beside a student's, and where both have read equally far."""

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from kdjax.data.documents import Documents
from kdjax.data.packing import Packed, narrow
from kdjax.data.vocabulary import Vocabulary


class Aligned(NamedTuple):
    """Rows of another tokenizer beside those of `Packed`.

    Attributes:
      tokens: `[N, M]`, of the same pieces of text; a token that reaches over the beginning of one is whole.
      segments: `[N, M]` int32, as of `Packed`.
      columns: `[N, L]` int32, in which column of theirs exactly as much of the text has been read as behind each token that the
        student is shown; -1 where there is none.
    """

    tokens: np.ndarray
    segments: np.ndarray
    columns: np.ndarray


def aligned(documents: Documents, made: Packed, length: int, vocabulary: Vocabulary, theirs: Vocabulary) -> Aligned:
    """The rows of a split in the tokens of another vocabulary.

    Args:
      documents: the split.
      made: its rows, in the tokens of `vocabulary`.
      length: `M`, of which what goes beyond it is cut; 0 for as many as the longest row needs, a multiple of 8.
      vocabulary: that of the rows.
      theirs: the other one.
    """
    ours, other = _read(documents, vocabulary), _read(documents, theirs)
    rows: list[list[int]] = []
    segments: list[list[int]] = []
    columns = np.full((len(made.tokens), made.tokens.shape[1] - 1), -1, np.int32)
    for row, (texts, places, numbered) in enumerate(zip(made.texts, made.places, made.segments, strict=True)):
        rows.append([])
        segments.append([])
        edges = np.flatnonzero(np.diff(texts[:-1], prepend=-2, append=-2))
        for first, last in itertools.pairwise(edges):
            if texts[first] < 0:
                continue
            read, (tokens, theirs_read) = ours[texts[first]][1], other[texts[first]]
            at = places[first:last]
            begun = at[read[at] > 0]
            before = read[begun[0] - 1] if len(begun) and begun[0] else 0
            taken = (theirs_read > before) & (theirs_read <= read[at[-1]])
            if at[0] == 0 or documents.responses is not None:  # of a pair, a row begins as a text does
                taken |= theirs_read == 0
            there = np.flatnonzero(taken)
            # Of tokens that read nothing further the last.
            found = np.searchsorted(theirs_read, read[at], side="right") - 1
            column = len(rows[-1]) + np.searchsorted(there, found)
            same = (found >= 0) & (theirs_read[found] == read[at]) & taken[found]
            same &= np.append(read, -1)[at + 1] != read[at]
            columns[row, first:last] = np.where(same, column, -1)
            rows[-1] += [tokens[i] for i in there]
            segments[-1] += [int(numbered[first])] * len(there)
    length = length or -(-max(map(len, rows), default=1) // 8) * 8
    filled = np.full((len(rows), length), theirs.padding, np.int32)
    kinds = np.zeros((len(rows), length), np.int32)
    for i, (row, segment) in enumerate(zip(rows, segments, strict=True)):
        filled[i, : len(row)], kinds[i, : len(row)] = row[:length], segment[:length]
    return Aligned(narrow(filled, theirs), kinds, np.where(columns < length, columns, -1))


def _read(documents: Documents, vocabulary: Vocabulary) -> list[tuple[list[int], np.ndarray]]:
    """Of every text its tokens, start and end around them, and how many bytes have been read behind each."""
    parts: list[Sequence[str]] = [documents.first]
    if documents.responses is not None:
        parts.append(documents.responses)
    found = []
    for texts, *pieces in zip(
        zip(*parts, strict=True), *(vocabulary.numbers_and_ends(part) for part in parts), strict=True
    ):
        tokens = [] if vocabulary.start is None else [vocabulary.start]
        ends, total = [np.zeros(len(tokens), int)], 0
        for text, (numbers, read) in zip(texts, pieces, strict=True):
            tokens += numbers
            ends.append(read + total)
            total += len(text.encode("utf-8", errors="replace"))
        found.append(([*tokens, vocabulary.end], np.concatenate([*ends, [total + 1]])))
    return found

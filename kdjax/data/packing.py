"""Tokens as rows of a fixed length: documents one after the other, or a prompt and its response each."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from kdjax.data.vocabulary import Vocabulary


class Packed(NamedTuple):
    """Rows of `L + 1` tokens, of which a network is shown the first `L` and learns the last `L`.

    Attributes:
      tokens: `[N, L + 1]` uint16, or int32 where there are more than 65,536 kinds.
      segments: `[N, L + 1]` int32, from 1 on, which of the texts of a row a token is of; 0 is padding.
      learned: `[N, L]` bool, whether the token behind each is learned: it is of the same text, and no part of a prompt.
      begins: `[N]`, of pairs: the column of the first token of the response.
      cut: how many prompts or responses lost something.
    """

    tokens: np.ndarray
    segments: np.ndarray
    learned: np.ndarray
    begins: np.ndarray | None = None
    cut: int = 0


def packed(texts: Sequence[str], vocabulary: Vocabulary, length: int) -> Packed:
    """Documents one after the other, without room between them. One that goes over the end of a row goes on in the next with the
    last token again, so that every token but the first of a document is learned once.

    Args:
      texts: the documents.
      vocabulary: whose start and end stand around each.
      length: `L`, 2 or more.
    """
    rows: list[list[int]] = [[]]
    segments: list[list[int]] = [[]]
    for numbers in vocabulary.numbers(texts):
        tokens = [*([] if vocabulary.start is None else [vocabulary.start]), *numbers, vocabulary.end]
        at = 0
        while at < len(tokens) - 1:
            if len(rows[-1]) > length - 1:  # a token alone would learn nothing
                rows.append([])
                segments.append([])
            piece = tokens[at : at + length + 1 - len(rows[-1])]
            segments[-1] += [segments[-1][-1] + 1 if segments[-1] else 1] * len(piece)
            rows[-1] += piece
            at += len(piece) - 1
    made = _filled([row for row in rows if row], [row for row in segments if row], vocabulary, length)
    return Packed(*made, (made[1][:, 1:] == made[1][:, :-1]) & (made[1][:, 1:] > 0))


def paired(
    prompts: Sequence[str], responses: Sequence[str], vocabulary: Vocabulary, length: int, *, prompt: int, whole: bool
) -> Packed:
    """A prompt and its response in a row each, padding behind them. Where they are too long prompts lose their beginning and
    responses their end.

    Args:
      prompts, responses: the texts.
      vocabulary: whose start stands before the prompt, and whose end behind the response.
      length: `L`.
      prompt: tokens that a prompt may have, its start included; below `length`.
      whole: whether the tokens of prompts are learned too.
    """
    rows, first, cut = [], [], 0
    start = [] if vocabulary.start is None else [vocabulary.start]
    for before, behind in zip(vocabulary.numbers(prompts), vocabulary.numbers(responses), strict=True):
        kept = before[max(0, len(before) + len(start) - prompt) :]
        row = [*start, *kept, *behind, vocabulary.end]
        cut += len(kept) < len(before) or len(row) > length + 1
        first.append(len(start) + len(kept))
        rows.append(row[: length + 1])
    tokens, segments = _filled(rows, [[1] * len(row) for row in rows], vocabulary, length)
    learned = segments[:, 1:] > 0
    if not whole:
        learned &= np.arange(1, length + 1)[None] >= np.array(first)[:, None]
    return Packed(tokens, segments, learned, np.array(first), cut)


def positions(segments: np.ndarray) -> np.ndarray:
    """`[N, L]` int32, how many tokens of its own text are before each."""
    places = np.broadcast_to(np.arange(segments.shape[1], dtype=np.int32), segments.shape)
    begins = np.ones(segments.shape, bool)
    begins[:, 1:] = segments[:, 1:] != segments[:, :-1]
    return places - np.maximum.accumulate(np.where(begins, places, 0), axis=1)


def _filled(rows: list[list[int]], segments: list[list[int]], vocabulary: Vocabulary, length: int):
    shape = len(rows), length + 1
    tokens = np.full(shape, vocabulary.padding, np.uint16 if vocabulary.size <= 2**16 else np.int32)
    numbers = np.zeros(shape, np.int32)
    for i, (row, segment) in enumerate(zip(rows, segments, strict=True)):
        tokens[i, : len(row)], numbers[i, : len(row)] = row, segment
    return tokens, numbers

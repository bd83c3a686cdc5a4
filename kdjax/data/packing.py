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
      texts: `[N, L + 1]` int32, which document or pair each token is of; -1 of padding.
      places: `[N, L + 1]` int32, which of its tokens it is, start and end among them and what was cut off as well.
    """

    tokens: np.ndarray
    segments: np.ndarray
    learned: np.ndarray
    begins: np.ndarray | None = None
    cut: int = 0
    texts: np.ndarray | None = None
    places: np.ndarray | None = None


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
    sources: list[list[int]] = [[]]
    places: list[list[int]] = [[]]
    for text, numbers in enumerate(vocabulary.numbers(texts)):
        tokens = [*([] if vocabulary.start is None else [vocabulary.start]), *numbers, vocabulary.end]
        at = 0
        while at < len(tokens) - 1:
            if len(rows[-1]) > length - 1:  # a token alone would learn nothing
                for filled in (rows, segments, sources, places):
                    filled.append([])
            piece = tokens[at : at + length + 1 - len(rows[-1])]
            segments[-1] += [segments[-1][-1] + 1 if segments[-1] else 1] * len(piece)
            rows[-1] += piece
            sources[-1] += [text] * len(piece)
            places[-1] += range(at, at + len(piece))
            at += len(piece) - 1
    whole = [[row for row in filled if row] for filled in (rows, segments, sources, places)]
    tokens, numbered = _filled(whole[0], vocabulary.padding, length), _filled(whole[1], 0, length)
    learned = (numbered[:, 1:] == numbered[:, :-1]) & (numbered[:, 1:] > 0)
    behind = {"texts": _filled(whole[2], -1, length), "places": _filled(whole[3], -1, length)}
    return Packed(narrow(tokens, vocabulary), numbered, learned, **behind)


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
    rows, places, first, cut = [], [], [], 0
    start = [] if vocabulary.start is None else [vocabulary.start]
    for before, behind in zip(vocabulary.numbers(prompts), vocabulary.numbers(responses), strict=True):
        kept = before[max(0, len(before) + len(start) - prompt) :]
        row = [*start, *kept, *behind, vocabulary.end]
        cut += len(kept) < len(before) or len(row) > length + 1
        first.append(len(start) + len(kept))
        rows.append(row[: length + 1])
        cut_off = len(before) - len(kept)
        places.append([*range(len(start)), *range(len(start) + cut_off, cut_off + len(row))][: length + 1])
    tokens = narrow(_filled(rows, vocabulary.padding, length), vocabulary)
    segments = _filled([[1] * len(row) for row in rows], 0, length)
    learned = segments[:, 1:] > 0
    if not whole:
        learned &= np.arange(1, length + 1)[None] >= np.array(first)[:, None]
    texts = np.where(segments > 0, np.arange(len(rows), dtype=np.int32)[:, None], -1)
    return Packed(tokens, segments, learned, np.array(first), cut, texts, _filled(places, -1, length))


def positions(segments: np.ndarray) -> np.ndarray:
    """`[N, L]` int32, how many tokens of its own text are before each."""
    places = np.broadcast_to(np.arange(segments.shape[1], dtype=np.int32), segments.shape)
    begins = np.ones(segments.shape, bool)
    begins[:, 1:] = segments[:, 1:] != segments[:, :-1]
    return places - np.maximum.accumulate(np.where(begins, places, 0), axis=1)


def _filled(rows: list[list[int]], padding: int, length: int) -> np.ndarray:
    """`[N, length + 1]` int32 of rows, filled up."""
    filled = np.full((len(rows), length + 1), padding, np.int32)
    for i, row in enumerate(rows):
        filled[i, : len(row)] = row
    return filled


def narrow(tokens: np.ndarray, vocabulary: Vocabulary) -> np.ndarray:
    """Tokens in the type that they are kept in."""
    return tokens.astype(np.uint16) if vocabulary.size <= 2**16 else tokens

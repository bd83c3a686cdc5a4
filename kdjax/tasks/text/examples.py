"""Texts as arrays of tokens, which is what a network is shown."""

import dataclasses
import functools
import hashlib
from typing import Any

import jax
import numpy as np

from kdjax.data.errors import DataError, note
from kdjax.data.texts import Texts
from kdjax.data.tokenizers import Encoded, Tokenizer, encode, tokenizer_of
from kdjax.tasks.dataset import BESIDE
from kdjax.types import Tree


@dataclasses.dataclass(frozen=True, eq=False)
class TextExamples:
    """One split.

    Attributes:
      texts: as they were read.
      inputs: `input_ids`, `attention_mask` and `token_type_ids`, `[N, L]` each.
      tokenizer: fingerprint of what made them.
      widths: lengths that training batches are cut to, rising, L the last; empty where all have L tokens.
      beside: the inputs of a teacher that has a tokenizer of its own, `[N, M]` each; empty where there is none.
    """

    texts: Texts
    inputs: dict[str, np.ndarray]
    tokenizer: str
    widths: tuple[int, ...] = ()
    beside: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)

    @property
    def arrays(self) -> dict[str, Any]:
        """All that networks are shown."""
        return self.inputs | ({BESIDE: self.beside} if self.beside else {})

    @property
    def name(self) -> str:
        return self.texts.name

    @property
    def split(self) -> str:
        return self.texts.split

    def __len__(self) -> int:
        return len(self.texts)

    @functools.cached_property
    def groups(self) -> np.ndarray | None:
        """`[N]`, which of the widths each text needs."""
        if not self.widths:
            return None
        there = self.inputs["attention_mask"] != 0
        needs = np.where(there.any(axis=1), there.shape[1] - there[:, ::-1].argmax(axis=1), 0)
        return np.searchsorted(self.widths, needs)

    def read(self, indices, *, inputs: bool = True, together: np.ndarray | None = None) -> dict[str, Any]:
        chosen = np.asarray(indices)
        width = None if together is None else self.widths[self.groups[together].max()]
        shown: dict[str, Any] | None = None
        if inputs:
            shown = jax.tree.map(lambda array: array[chosen], self.arrays)
            shown |= {name: shown[name][:, :width] for name in self.inputs}
        return {"inputs": shown, "targets": self.texts.labels[chosen]}

    def fingerprint(self) -> str:
        digest = hashlib.sha256(
            f"{self.tokenizer} {self.inputs['input_ids'].shape[1]} {self.texts.fingerprint()}".encode()
        )
        return digest.hexdigest()


@functools.lru_cache(maxsize=4)
def tokenizer_called(name: str) -> Tokenizer:
    """`tokenizer_of`, which a program asks for several times."""
    return tokenizer_of(name)


def encoded(texts: Texts, tokenizer: Tokenizer, length: int, buckets: tuple[int, ...] = ()) -> TextExamples:
    """A split as tokens; says how many texts lost their end. Batches are cut to the least of some buckets that does.

    Raises:
      DataError: no texts.
    """
    if not len(texts):
        raise DataError(f"{texts.name} ({texts.split}) has no texts; give it some.")
    made = encode(tokenizer, texts.first, texts.second, length)
    if made.cut.any():
        share = f"{made.cut.sum():,} of {len(texts):,} texts of {texts.name} ({texts.split})"
        note(f"{share} are longer than {length} tokens, and lose their end")
    widths = (*sorted(set(buckets)), length) if buckets else ()
    return TextExamples(texts, as_inputs(made), tokenizer.fingerprint(), widths)


def read_beside(tokenizer: Tokenizer, length: int, *splits: TextExamples) -> list[TextExamples]:
    """Splits with the tokens of a teacher's tokenizer beside, as many as the longest row of all has, `length` at most."""
    made: dict[int, TextExamples] = {}
    for split in splits:
        if id(split) not in made:
            read = encoded(split.texts, tokenizer, length)
            made[id(split)] = dataclasses.replace(
                split, tokenizer=f"{split.tokenizer} {read.tokenizer}", beside=read.inputs
            )
    if not any(any(one.texts.first) for one in made.values()):
        return [made[id(split)] for split in splits]  # texts that stand in for others
    needed = max(int(np.sum(one.beside["attention_mask"] != 0, axis=1).max()) for one in made.values())
    needed = min(length, -(-needed // 8) * 8)
    return [
        dataclasses.replace(one, beside={name: array[:, :needed] for name, array in one.beside.items()})
        for one in (made[id(split)] for split in splits)
    ]


def as_inputs(made: Encoded) -> dict[str, np.ndarray]:
    """By the names that networks take them under."""
    return {"input_ids": made.ids, "attention_mask": made.mask, "token_type_ids": made.types}


def one(text: str, tokenizer: Tokenizer, length: int) -> Tree:
    """The inputs of one text, without an axis of the batch; a line with one tab is a pair of texts."""
    first, tab, second = text.rstrip("\n").partition("\t")
    pair = bool(tab) and not {"\t", "\n"} & set(second) and "\n" not in first
    made = encode(tokenizer, [first if pair else text], [second] if pair else None, length)
    return {name: array[0] for name, array in as_inputs(made).items()}

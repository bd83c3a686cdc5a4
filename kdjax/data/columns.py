"""Which columns of a table, or features of a set of TFDS, are texts and classes."""

import dataclasses

from kdjax.data.errors import DataError

TEXTS = ("text", "sentence", "review", "description", "content", "question")
PAIRS = (
    ("sentence1", "sentence2"), ("question1", "question2"), ("premise", "hypothesis"), ("question", "sentence"),
    ("text1", "text2"), ("text", "pair"),
)  # fmt: skip
LABELS = ("label", "class", "target", "category")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Columns:
    """Names of columns; empty for the usual ones, such as text, or sentence1 and sentence2, and label."""

    text: str = ""
    """the text, or the first of a pair"""
    pair: str = ""
    """the second text of a pair; empty with text: there are no pairs"""
    label: str = ""
    """its class"""


def chosen_columns(where: str, there: tuple[str, ...], columns: Columns) -> tuple[str, str, str]:
    """Names of the columns of text, second text (or empty) and class among those that are there.

    Raises:
      DataError: one that is asked for is not there, or none is called as usual.
    """
    for said in (columns.text, columns.pair, columns.label):
        if said and said not in there:
            raise DataError(f"{where} has no column {said!r}; it has {', '.join(there)}.")
    if columns.pair and not columns.text:
        raise DataError(f"data.keys.pair={columns.pair!r} names the second text of a pair; name the first by text.")
    usual = [(text, pair) for text, pair in PAIRS if text in there and pair in there]
    usual += [(text, "") for text in TEXTS if text in there]
    labels = [label for label in LABELS if label in there]
    for said, found, option in ((columns.text, usual, "text"), (columns.label, labels, "label")):
        if not said and not found:
            raise DataError(f"{where} has the columns {', '.join(there)}, none of which is called {option}; name one by "
                            f"data.keys.{option}.")  # fmt: skip
    text, pair = (columns.text, columns.pair) if columns.text else usual[0]
    return text, pair, columns.label or labels[0]

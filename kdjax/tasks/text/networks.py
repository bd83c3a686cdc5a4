"""Networks that classify texts."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from kdjax.data.errors import note
from kdjax.models.transformers import SIZES, Architecture, Head, Pretrained, transformer
from kdjax.models.transformers.sizes import resized
from kdjax.tasks import pretrained
from kdjax.tasks.pretrained import TransformerModel, begun_with, check_length, with_dropout
from kdjax.types import Network


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextNetwork(TransformerModel):
    """A transformer with a head of classes: by name and fresh, or from a folder of Hugging Face."""

    name: str = ""
    """shape by name, such as bert_base, distilbert, minilm_l6, gpt2; empty for that of weights, or without these bert_tiny"""
    length: int = 0
    """tokens that a fresh network has positions for; 0 for its own"""


def problems_of(model: TextNetwork) -> list[str]:
    """What is wrong with the fields, a sentence each."""
    return pretrained.problems_of(model, "text network", SIZES, ("width", "depth", "length"))


def make_text_network(
    model: TextNetwork,
    *,
    vocabulary: int,
    padding: int,
    length: int,
    classes: int,
    names: Sequence[str] = (),
    remat: bool,
) -> Network:
    """The network.

    Args:
      model: which.
      vocabulary, padding: of the tokenizer.
      length: tokens of a row.
      classes: of the data, and their `names`.
      remat: whether each block is computed again for the gradient.

    Raises:
      ValueError: there is no such network, it is not in its folder, or it is not made for such tokens or classes.
    """
    a, head, params, name = classifier_of(model, vocabulary=vocabulary, padding=padding, classes=classes, names=names)
    check_length(a, length, name)
    return transformer(a, head, weights=params, keep=model.keep, remat=remat, name=name)


def classifier_of(
    model: TextNetwork, *, vocabulary: int, padding: int, classes: int, names: Sequence[str] = ()
) -> tuple[Architecture, Head, dict[str, Any] | None, str]:
    """What a network is, its head, the parameters that it begins with (None for fresh ones), and its name.

    Raises:
      ValueError: as `make_text_network`, but for the length of rows.
    """
    if wrong := problems_of(model):
        raise ValueError(wrong[0])
    head = Head(kind="classes", classes=classes)
    if model.weights:
        found, name = begun_with(model, None if model.trained else head, "a classifier", vocabulary)
        if model.trained:
            check_classes(model.weights, found, classes, names)
        a, params = found.architecture, found.params
    else:
        named, params = SIZES[model.name or "bert_tiny"], None
        a = fresh(named, vocabulary, padding, width=model.width, depth=model.depth, length=model.length)
        name = model.name or "bert_tiny"
        name = f"{name} {a.depth}x{a.width}" if model.resized() else name
    return with_dropout(a, model), head, params, name


def check_classes(weights: str, found: Pretrained, classes: int, names: Sequence[str]) -> None:
    """Refuses to take the network of a folder as it is where it knows other classes, or the same by other numbers.

    Raises:
      ValueError: it does, or it is no classifier.
    """
    if found.head.kind != "classes":
        raise ValueError(
            f"{weights} has no classifier, so it cannot be taken as it is; leave network.trained out, and it is trained."
        )
    if found.head.classes != classes:
        raise ValueError(
            f"{weights} knows {found.head.classes} classes, and the data have {classes}; use those of the same classes."
        )
    ours, theirs = ([name.casefold() for name in some] for some in (names, found.class_names))
    if ours != theirs and sorted(ours) == sorted(theirs):
        number = next(i for i, name in enumerate(ours) if theirs[i] != name)
        raise ValueError(
            f"{weights} knows the classes in another order: number {number} is {found.class_names[number]!r} to it and "
            f"{names[number]!r} in the data; give the classes the same order."
        )
    if ours and theirs and ours != theirs:
        note(f"{weights} calls its classes {', '.join(found.class_names[:5])}, taken for {', '.join(names[:5])}")


def fresh(
    a: Architecture, vocabulary: int, padding: int, *, width: int = 0, depth: int = 0, length: int = 0
) -> Architecture:
    """A shape by name, for the tokens of a tokenizer."""
    a = dataclasses.replace(resized(a, width=width, depth=depth), vocabulary=vocabulary, padding=padding)
    if a.first_position:  # RoBERTa's, which keeps its positions behind that of the padding
        a = dataclasses.replace(a, first_position=padding + 1, length=a.length - a.first_position + padding + 1)
    return dataclasses.replace(a, length=length + a.first_position) if length else a

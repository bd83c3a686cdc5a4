"""Networks that classify texts."""

import dataclasses
import functools
import os
from collections.abc import Sequence
from typing import Any

from kdjax.data.errors import note
from kdjax.models.transformers import SIZES, Architecture, Head, Pretrained, read_folder, transformer
from kdjax.models.transformers.block import KEPT
from kdjax.models.transformers.sizes import resized
from kdjax.tasks.task import Model
from kdjax.types import Network


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextNetwork(Model):
    """A transformer with a head of classes: by name and fresh, or from a folder of Hugging Face."""

    name: str = ""
    """shape by name, such as bert_base, distilbert, minilm_l6, gpt2; empty for that of weights, or without these bert_tiny"""
    weights: str = ""
    """folder that it begins from, with config.json, and model.safetensors or its pieces; it must be of that shape"""
    trained: bool = False
    """whether the network of that folder is taken as it is, as a teacher, instead of being trained"""
    layers: tuple[int, ...] = ()
    """numbers of the blocks of the folder to take, for a shallower network: 0 2 4 6 8 10 as DistilBERT begins; empty for all"""
    width: int = 0
    """of every token, of a fresh network; 0 for its own"""
    depth: int = 0
    """blocks of a fresh network; 0 for its own"""
    length: int = 0
    """tokens that a fresh network has positions for; 0 for its own"""
    dropout: float = -1.0
    """of embeddings, attention and classifier; -1 for the network's own"""
    keep: tuple[str, ...] = ()
    """what of the attention objectives compare: queries, keys, values, scores"""

    def __post_init__(self):
        if self.weights:
            object.__setattr__(self, "weights", os.path.abspath(os.path.expanduser(self.weights)))  # read from anywhere


def problems_of(model: TextNetwork) -> list[str]:
    """What is wrong with the fields, a sentence each."""
    wrong = []
    if model.name and model.name not in SIZES:
        wrong.append(f"There is no text network {model.name!r}; there are {', '.join(SIZES)}.")
    sized = [name for name in ("width", "depth", "length") if model.weights and getattr(model, name)]
    if sized:
        wrong.append(
            f"network.weights names a folder, whose shape it is, and network.{sized[0]} another; leave one out."
        )
    if model.layers and not model.weights:
        wrong.append(
            "network.layers chooses blocks of a folder, and network.weights names none; give it, or depth instead."
        )
    if model.trained and (not model.weights or model.layers):
        said = "some of its blocks alone" if model.weights else "no folder"
        wrong.append(f"network.trained takes the network of a folder as it is, and there is {said}; leave trained out, or "
                     "name a whole folder by network.weights.")  # fmt: skip
    if model.dropout != -1 and not 0 <= model.dropout < 1:
        wrong.append(f"network.dropout={model.dropout}; use 0 to 1, or -1 for the network's own.")
    unknown = [name for name in model.keep if name not in KEPT]
    if unknown:
        wrong.append(f"network.keep names {unknown[0]!r}; use {', '.join(KEPT)}.")
    return wrong


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
    room = a.length - a.first_position
    if a.rope is None and length > room:
        raise ValueError(
            f"Rows have {length} tokens, and {name} has positions for {room}; make data.length {room} or less."
        )
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
        found = _begun(model.weights, model.layers, None if model.trained else head)
        if model.trained:
            check_classes(model.weights, found, classes, names)
        a, params, name = found.architecture, found.params, model.name or os.path.basename(model.weights)
        if model.name and (wanted := shape(SIZES[model.name])) != (there := shape(a)):
            raise ValueError(
                f"{model.name} is {wanted}, and {model.weights} holds {there}; name that, or another folder."
            )
        if vocabulary > a.vocabulary:
            raise ValueError(f"The tokenizer has {vocabulary:,} kinds of tokens, and {model.weights} knows {a.vocabulary:,}; "
                             "name its own tokenizer by data.tokenizer.")  # fmt: skip
    else:
        named, params = SIZES[model.name or "bert_tiny"], None
        a = fresh(named, vocabulary, padding, width=model.width, depth=model.depth, length=model.length)
        name = (
            f"{model.name or 'bert_tiny'} {a.depth}x{a.width}"
            if model.width or model.depth
            else model.name or "bert_tiny"
        )
    if model.dropout != -1:
        a = dataclasses.replace(
            a, dropout=model.dropout, attention_dropout=model.dropout, classifier_dropout=model.dropout
        )
    return a, head, params, name


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


def shape(a: Architecture) -> str:
    """What tells shapes apart, in words."""
    return f"{a.family} of {a.depth} blocks, {a.width} wide with {a.heads} heads"


def fresh(
    a: Architecture, vocabulary: int, padding: int, *, width: int = 0, depth: int = 0, length: int = 0
) -> Architecture:
    """A shape by name, for the tokens of a tokenizer."""
    a = dataclasses.replace(resized(a, width=width, depth=depth), vocabulary=vocabulary, padding=padding)
    if a.first_position:  # RoBERTa's, which keeps its positions behind that of the padding
        a = dataclasses.replace(a, first_position=padding + 1, length=a.length - a.first_position + padding + 1)
    return dataclasses.replace(a, length=length + a.first_position) if length else a


@functools.lru_cache(maxsize=4)  # a program asks for a network several times
def _begun(weights: str, layers: tuple[int, ...], head: Head | None) -> Pretrained:
    found = read_folder(weights, head, layers=layers)
    if found.fresh:
        note(f"{weights} has no {', '.join(sorted({path.split('/')[0] for path in found.fresh}))}, which begins fresh")
    if found.unused:
        more = f" and {len(found.unused) - 3} more" if len(found.unused) > 3 else ""
        note(f"{weights} has {', '.join(found.unused[:3])}{more}, which a classifier has no use for")
    return found

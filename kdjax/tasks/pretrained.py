"""What networks of texts have in common: a transformer by name and fresh, or from a folder of Hugging Face."""

import dataclasses
import functools
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from kdjax.data.errors import DataError, note
from kdjax.data.tokenizers import check_numbers, tokenizer_of
from kdjax.models.transformers import SIZES, Architecture, Head, Pretrained, read_folder
from kdjax.models.transformers.block import KEPT
from kdjax.tasks.dataset import BESIDE
from kdjax.tasks.task import Model
from kdjax.types import ModelOutput, Network


@dataclasses.dataclass(frozen=True, kw_only=True)
class TransformerModel(Model):
    """A transformer: by name and fresh, or from a folder of Hugging Face."""

    name: str = ""
    """shape by name; empty for that of weights"""
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
    dropout: float = -1.0
    """of embeddings, attention and branches; -1 for the network's own"""
    keep: tuple[str, ...] = ()
    """what of the attention objectives compare: queries, keys, values, scores"""
    tokenizer: str = ""
    """its own, of a teacher that knows other tokens than the student; empty for data.tokenizer"""

    def __post_init__(self):
        for field in ("weights", "tokenizer"):  # a saved run is read from anywhere
            path = os.path.expanduser(getattr(self, field))
            if path and (field == "weights" or os.path.exists(path)):
                object.__setattr__(self, field, os.path.abspath(path))

    def resized(self) -> bool:
        """Whether a fresh one is not of the shape of its name."""
        return bool(self.width or self.depth)


def problems_of(model: TransformerModel, kind: str, names: Collection[str], sizes: Sequence[str]) -> list[str]:
    """What is wrong with the fields, a sentence each.

    Args:
      model: whose fields.
      kind: what its task calls such a network.
      names: of the shapes there are.
      sizes: fields that say the shape of a fresh network.
    """
    wrong = []
    if model.name and model.name not in names:
        wrong.append(f"There is no {kind} {model.name!r}; there are {', '.join(names)}.")
    sized = [name for name in sizes if model.weights and getattr(model, name)]
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
    wrong += [f"network.keep names {name!r}; use {', '.join(KEPT)}." for name in model.keep if name not in KEPT][:1]
    return wrong


def begun_with(model: TransformerModel, head: Head | None, purpose: str, vocabulary: int) -> tuple[Pretrained, str]:
    """What the folder of a model holds, and what the network is called.

    Args:
      model: names the folder.
      head: that it is to have; None for its own.
      purpose: what it is to be, for what is said of entries that are not used: "a decoder".
      vocabulary: of the tokenizer.

    Raises:
      ValueError: it is not there, not of the shape that is named, or made for fewer tokens.
    """
    found = _read(model.weights, model.layers, head, purpose)
    if model.name and (wanted := shape(SIZES[model.name])) != (there := shape(found.architecture)):
        raise ValueError(f"{model.name} is {wanted}, and {model.weights} holds {there}; name that, or another folder.")
    if vocabulary > found.architecture.vocabulary:
        raise ValueError(f"The tokenizer has {vocabulary:,} kinds of tokens, and {model.weights} knows "
                         f"{found.architecture.vocabulary:,}; name its own tokenizer by data.tokenizer.")  # fmt: skip
    return found, model.name or os.path.basename(model.weights)


def with_dropout(a: Architecture, model: TransformerModel) -> Architecture:
    """The architecture with the model's dropout, where it names one."""
    if model.dropout == -1:
        return a
    return dataclasses.replace(
        a, **dict.fromkeys(("dropout", "attention_dropout", "classifier_dropout"), model.dropout)
    )


def check_length(a: Architecture, length: int, name: str, data_length: int = 0) -> None:
    """Raises ValueError if rows have more tokens than the network has positions for; with `data_length` they are a teacher's own,
    beside rows of so many of the student's."""
    room = a.length - a.first_position
    if a.rope is None and length > room:
        whose, most = (" of the teacher", data_length * room // length) if data_length else ("", room)
        raise ValueError(
            f"Rows have {length} tokens{whose}, and {name} has positions for {room}; make data.length {most} or less."
        )


def shape(a: Architecture) -> str:
    """What tells shapes apart, in words."""
    return f"{a.family} of {a.depth} blocks, {a.width} wide with {a.heads} heads"


@functools.lru_cache(maxsize=4)  # a program asks for a network several times
def _read(weights: str, layers: tuple[int, ...], head: Head | None, purpose: str) -> Pretrained:
    found = read_folder(weights, head, layers=layers)
    if found.fresh:
        note(f"{weights} has no {', '.join(sorted({path.split('/')[0] for path in found.fresh}))}, which begins fresh")
    if found.unused:
        more = f" and {len(found.unused) - 3} more" if len(found.unused) > 3 else ""
        note(f"{weights} has {', '.join(found.unused[:3])}{more}, which {purpose} has no use for")
    return found


# --- teachers with a tokenizer of their own ---


def same_tokens(one: str, other: str) -> bool:
    """Whether two tokenizers by name are one: the same name, or files of the same contents.

    Raises:
      DataError: one of them is not there.
    """
    return one == other or tokenizer_of(one).fingerprint() == tokenizer_of(other).fingerprint()


def tokenizers(tokenizer: str, network: Model, teachers: Sequence[Model]) -> tuple[str, str]:
    """The tokenizer of a phase's network, and that of its teachers; empty where it is the same.

    Args:
      tokenizer: of the data, which networks have that name none.
      network: that is trained or evaluated.
      teachers: those that teach it.

    Raises:
      ValueError: the teachers have several between them.
      DataError: one is not there.
    """
    own, *theirs = (getattr(model, "tokenizer", "") or tokenizer for model in (network, *teachers))
    apart = [name for name in theirs if not same_tokens(name, own)]
    if apart and (len(apart) < len(theirs) or not all(same_tokens(name, apart[0]) for name in apart)):
        raise ValueError(
            f"Teachers with the tokenizers {', '.join(sorted(set(theirs)))} are to teach together; use those of one."
        )
    return own, apart[0] if apart else ""


def own_tokenizer(folder: str | os.PathLike, tokenizer: str) -> str:
    """The tokenizer of a network's folder where the data's is another; empty where it is the same, or there is none."""
    try:
        check_numbers(tokenizer, str(folder))
    except ValueError:
        return str(folder)
    return ""


def with_tokenizer(model: Any, theirs: str, tokenizer: str) -> Any:
    """A network that was trained on data of one tokenizer, for data of another. Where that one is not here any more, the data's
    is taken for it."""
    theirs = getattr(model, "tokenizer", "") or theirs
    if not hasattr(model, "tokenizer"):
        return model
    try:
        same = same_tokens(theirs, tokenizer)
    except DataError:
        note(f"the tokenizer {theirs}, by which the teacher was trained, is not here; {tokenizer} is taken for it")
        same = True
    return dataclasses.replace(model, tokenizer="" if same else theirs)


def written_out(model: Any, tokenizer: str) -> Any:
    """A network that says which tokenizer it has, where it would be the data's."""
    named = hasattr(model, "tokenizer") and not model.tokenizer
    return dataclasses.replace(model, tokenizer=tokenizer) if named else model


def is_beside(model: Model, tokenizer: str) -> bool:
    """Whether a network reads other tokens than those of a tokenizer."""
    return bool(model.tokenizer) and not same_tokens(model.tokenizer, tokenizer)


def shown(inputs: Any, *, beside: bool) -> Any:
    """The inputs that a network is shown: the teacher's, or all but these."""
    if beside:
        return inputs[BESIDE]
    return {name: x for name, x in inputs.items() if name != BESIDE} if isinstance(inputs, Mapping) else inputs


def reading(
    network: Network, *, beside: bool, answer: Callable[[ModelOutput, Any], ModelOutput] = lambda output, inputs: output
) -> Network:
    """A network that takes its own of inputs which are tokens of two tokenizers.

    Args:
      network: takes tokens of one.
      beside: whether it is the teacher.
      answer: what it is taken to say, of its output and of its inputs.
    """

    def apply(params, state, inputs, **options):
        own = shown(inputs, beside=beside)
        output, state = network.apply(params, state, own, **options)
        return answer(output, own), state

    paths = network.paths
    return network._replace(
        apply=apply, paths=None if paths is None else lambda inputs: paths(shown(inputs, beside=beside))
    )

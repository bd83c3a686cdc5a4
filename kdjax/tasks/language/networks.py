"""Decoders: by a published shape, of one's own shape, or from a folder of Hugging Face."""

import dataclasses
import functools
import os
from typing import Any

from kdjax.data.errors import note
from kdjax.models.transformers import SIZES, Architecture, Head, Pretrained, Rope, read_folder, transformer
from kdjax.models.transformers.block import KEPT
from kdjax.models.transformers.sizes import resized
from kdjax.tasks.task import Model
from kdjax.types import Network

DECODERS = tuple(name for name, shape in SIZES.items() if shape.causal)
HEAD = Head(kind="tokens")


@dataclasses.dataclass(frozen=True, kw_only=True)
class LanguageNetwork(Model):
    """A decoder: a small one like Llama of any shape, one by name, or that of a folder of Hugging Face."""

    name: str = ""
    """published shape, such as gpt2, smollm_135m or qwen3_0.6b; empty for that of weights, or without these for one like Llama of
    the fields below"""
    weights: str = ""
    """folder that it begins from, with config.json, and model.safetensors or its pieces; it must be of that shape"""
    trained: bool = False
    """whether the network of that folder is taken as it is, as a teacher, instead of being trained"""
    layers: tuple[int, ...] = ()
    """numbers of the blocks of the folder to take, for a shallower network; empty for all"""
    width: int = 0
    """of every token, of a fresh network; 0 for its own, or 64"""
    depth: int = 0
    """blocks of a fresh network; 0 for its own, or 2"""
    heads: int = 0
    """of one like Llama; 0 for one every 32 of the width"""
    kv_heads: int = 0
    """heads of keys and values, of one like Llama; 0 for as many as of queries"""
    hidden: int = 0
    """of the perceptron, of one like Llama; 0 for 8/3 of the width, a multiple of 8"""
    tied: bool = True
    """whether one like Llama scores tokens by their embeddings"""
    dropout: float = -1.0
    """of embeddings, attention and branches; -1 for the network's own"""
    keep: tuple[str, ...] = ()
    """what of the attention objectives compare: queries, keys, values, scores"""

    def __post_init__(self):
        if self.weights:
            object.__setattr__(self, "weights", os.path.abspath(os.path.expanduser(self.weights)))  # read from anywhere


def problems_of(model: LanguageNetwork) -> list[str]:
    """What is wrong with the fields, a sentence each."""
    wrong = []
    if model.name and model.name not in DECODERS:
        wrong.append(f"There is no decoder {model.name!r}; there are {', '.join(DECODERS)}.")
    sized = [name for name in ("width", "depth", "heads", "kv_heads", "hidden") if getattr(model, name)]
    if model.weights and sized:
        wrong.append(
            f"network.weights names a folder, whose shape it is, and network.{sized[0]} another; leave one out."
        )
    own = [name for name in sized if name in ("heads", "kv_heads", "hidden")]
    if model.name and own:
        wrong.append(f"network.{own[0]} is of a network without a name, and {model.name} has its own; leave one out.")
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


def make_decoder(model: LanguageNetwork, *, vocabulary: int, length: int, remat: bool) -> Network:
    """The network.

    Args:
      model: which.
      vocabulary: how many kinds of tokens there are.
      length: tokens of a row.
      remat: whether each block is computed again for the gradient.

    Raises:
      ValueError: there is no such network, it is not in its folder, or it is not made for such tokens.
    """
    a, params, name = decoder_of(model, vocabulary)
    if a.rope is None and length > a.length:
        raise ValueError(
            f"Rows have {length} tokens, and {name} has positions for {a.length}; make data.length {a.length} or less."
        )
    return transformer(a, HEAD, weights=params, keep=model.keep, remat=remat, name=name)


def decoder_of(model: LanguageNetwork, vocabulary: int) -> tuple[Architecture, dict[str, Any] | None, str]:
    """What a network is, the parameters that it begins with (None for fresh ones), and its name.

    Raises:
      ValueError: as `make_decoder`, but for the length of rows.
    """
    if wrong := problems_of(model):
        raise ValueError(wrong[0])
    params = None
    if model.weights:
        found = _begun(model.weights, model.layers)
        a, params, name = found.architecture, found.params, model.name or os.path.basename(model.weights)
        if model.name and (wanted := shape(SIZES[model.name])) != (there := shape(a)):
            raise ValueError(
                f"{model.name} is {wanted}, and {model.weights} holds {there}; name that, or another folder."
            )
        if model.trained and found.fresh:
            raise ValueError(
                f"{model.weights} has no {found.fresh[0].partition('/')[0]}, so it cannot be taken as it is; leave "
                "network.trained out, and it is trained."
            )
        if vocabulary > a.vocabulary:
            raise ValueError(f"The tokenizer has {vocabulary:,} kinds of tokens, and {model.weights} knows {a.vocabulary:,}; "
                             "name its own tokenizer by data.tokenizer.")  # fmt: skip
    else:
        a = resized(SIZES[model.name], width=model.width, depth=model.depth) if model.name else like_llama(model)
        a = dataclasses.replace(a, vocabulary=vocabulary, padding=-1)
        name = f"{model.name or 'llama'} {a.depth}x{a.width}" if sized(model) else model.name
    if model.dropout != -1:
        a = dataclasses.replace(a, dropout=model.dropout, attention_dropout=model.dropout)
    return a, params, name


def sized(model: LanguageNetwork) -> bool:
    """Whether its shape is not that of its name."""
    return not model.name or bool(model.width or model.depth)


def like_llama(model: LanguageNetwork) -> Architecture:
    """A fresh one of the model's fields, for a vocabulary that is to be put in.

    Raises:
      ValueError: its heads do not divide its width.
    """
    width = model.width or 64
    heads = model.heads or max(1, width // 32)
    if width % heads or (width // heads) % 2:
        raise ValueError(
            f"network.width={width} does not divide into {heads} heads of an even width; use another number of heads."
        )
    return Architecture(
        family="llama", vocabulary=1, width=width, depth=model.depth or 2, heads=heads, kv_heads=model.kv_heads or heads,
        head_width=width // heads, hidden=model.hidden or -(-8 * width // 24) * 8, length=2**20, causal=True, norm="rms",
        norm_first=True, epsilon=1e-5, rope=Rope(), activation="silu", gated=True, qkv_bias=False, out_bias=False,
        mlp_bias=False, tied=model.tied,
    )  # fmt: skip


def shape(a: Architecture) -> str:
    """What tells shapes apart, in words."""
    return f"{a.family} of {a.depth} blocks, {a.width} wide with {a.heads} heads"


@functools.lru_cache(maxsize=2)  # a program asks for a network several times
def _begun(weights: str, layers: tuple[int, ...]) -> Pretrained:
    found = read_folder(weights, HEAD, layers=layers)
    if not found.architecture.causal:
        raise ValueError(f"{weights} holds an encoder, {shape(found.architecture)}; name the folder of a decoder.")
    if found.fresh:
        note(f"{weights} has no {', '.join(sorted({path.split('/')[0] for path in found.fresh}))}, which begins fresh")
    if found.unused:
        more = f" and {len(found.unused) - 3} more" if len(found.unused) > 3 else ""
        note(f"{weights} has {', '.join(found.unused[:3])}{more}, which a decoder has no use for")
    return found

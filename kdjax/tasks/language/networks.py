"""Decoders: by a published shape, of one's own shape, or from a folder of Hugging Face."""

import dataclasses
from typing import Any

import jax.numpy as jnp

from kdjax.models.transformers import SIZES, Architecture, Head, Rope, transformer
from kdjax.models.transformers.sizes import resized
from kdjax.tasks import pretrained
from kdjax.tasks.pretrained import TransformerModel, begun_with, check_length, shape, with_dropout
from kdjax.types import ModelOutput, Network

DECODERS = tuple(name for name, shape in SIZES.items() if shape.causal)
HEAD = Head(kind="tokens")


@dataclasses.dataclass(frozen=True, kw_only=True)
class LanguageNetwork(TransformerModel):
    """A decoder: a small one like Llama of any shape, one by name, or that of a folder of Hugging Face."""

    name: str = ""
    """published shape, such as gpt2, smollm_135m or qwen3_0.6b; empty for that of weights, or without these for one like Llama of
    the fields below"""
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


def problems_of(model: LanguageNetwork) -> list[str]:
    """What is wrong with the fields, a sentence each."""
    of_llama = ("heads", "kv_heads", "hidden")
    wrong = pretrained.problems_of(model, "decoder", DECODERS, ("width", "depth", *of_llama))
    own = [name for name in of_llama if getattr(model, name)]
    if model.name and own:
        wrong.append(f"network.{own[0]} is of a network without a name, and {model.name} has its own; leave one out.")
    return wrong


def make_decoder(model: LanguageNetwork, *, vocabulary: int, length: int, remat: bool, data_length: int = 0) -> Network:
    """The network.

    Args:
      model: which.
      vocabulary: how many kinds of tokens there are.
      length: tokens of a row.
      remat: whether each block is computed again for the gradient.
      data_length: see `check_length`.

    Raises:
      ValueError: there is no such network, it is not in its folder, or it is not made for such tokens.
    """
    a, params, name = decoder_of(model, vocabulary)
    check_length(a, length, name, data_length)
    return transformer(a, HEAD, weights=params, keep=model.keep, remat=remat, name=name)


def in_step(output: ModelOutput, inputs: Any) -> ModelOutput:
    """What a teacher of other tokens says, as of the student's: its logits where it has read as much of the text, `[B, L, V']`.

    Where there is no such place they are those of another, and the target "aligned" says so, by which nothing takes the numbers
    of its tokens for the student's. What else it gives is of its own tokens and left out.
    """
    columns = jnp.maximum(inputs["columns"], 0)[..., None]
    return ModelOutput(logits=jnp.take_along_axis(output.logits, columns, axis=1), losses=output.losses)


def decoder_of(model: LanguageNetwork, vocabulary: int) -> tuple[Architecture, dict[str, Any] | None, str]:
    """What a network is, the parameters that it begins with (None for fresh ones), and its name.

    Raises:
      ValueError: as `make_decoder`, but for the length of rows.
    """
    if wrong := problems_of(model):
        raise ValueError(wrong[0])
    params = None
    if model.weights:
        found, name = begun_with(model, HEAD, "a decoder", vocabulary)
        a, params = found.architecture, found.params
        if not a.causal:
            raise ValueError(f"{model.weights} holds an encoder, {shape(a)}; name the folder of a decoder.")
        if model.trained and found.fresh:
            raise ValueError(
                f"{model.weights} has no {found.fresh[0].partition('/')[0]}, so it cannot be taken as it is; leave "
                "network.trained out, and it is trained."
            )
    else:
        a = resized(SIZES[model.name], width=model.width, depth=model.depth) if model.name else like_llama(model)
        a = dataclasses.replace(a, vocabulary=vocabulary, padding=-1)
        name = model.name or "llama"
        name = name if model.name and not model.resized() else f"{name} {a.depth}x{a.width}"
    return with_dropout(a, model), params, name


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

"""What the parameters of a transformer are called in files of Hugging Face, and how they lie there.

A linear layer's weight is `[out, in]` there and `[in, out]` here, but for GPT-2, which has it as here, and queries, keys and
values in one. Parameters of the blocks are one by one there and stacked here.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np

from kdjax.models.transformers.architecture import Architecture, Head

LINEAR, PLAIN, SAME = "linear", "plain", "same"  # turned over; a vector or a table; a linear layer that lies as here
PREFIX = {"bert": "bert.", "roberta": "roberta.", "distilbert": "distilbert.", "gpt2": "transformer."}
# Buffers and copies, which say nothing of their own.
IGNORED = re.compile(
    r"(^|\.)(position_ids|token_type_ids|attn\.bias|attn\.masked_bias|rotary_emb\.inv_freq)$"
    r"|^cls\.predictions\.decoder\.(weight|bias)$|^lm_head\.decoder\.(weight|bias)$|^vocab_projector\.weight$"
)


class Key(NamedTuple):
    """A parameter, or with `layer` its part of a block.

    Attributes:
      name: there.
      path: here.
      layer: block, or None.
      turned: whether the axes are the other way round there.
      part: which third of the last axis of what is called `name`, or None for the whole.
    """

    name: str
    path: tuple[str, ...]
    layer: int | None
    turned: bool
    part: int | None = None

    @property
    def of_head(self) -> bool:
        """Whether it is no part of the body."""
        return self.path[0] not in ("embeddings", "blocks", "norm")


# Of a block: path here, name there, kind. A norm's scale is a weight there.
_BERT = (
    *((f"attention/{ours}", f"attention.self.{ours}", LINEAR) for ours in ("query", "key", "value")),
    ("attention/out", "attention.output.dense", LINEAR), ("attention_norm", "attention.output.LayerNorm", PLAIN),
    ("mlp/up", "intermediate.dense", LINEAR), ("mlp/down", "output.dense", LINEAR), ("mlp_norm", "output.LayerNorm", PLAIN),
)  # fmt: skip
_DISTILBERT = (
    ("attention/query", "attention.q_lin", LINEAR), ("attention/key", "attention.k_lin", LINEAR),
    ("attention/value", "attention.v_lin", LINEAR), ("attention/out", "attention.out_lin", LINEAR),
    ("attention_norm", "sa_layer_norm", PLAIN), ("mlp/up", "ffn.lin1", LINEAR), ("mlp/down", "ffn.lin2", LINEAR),
    ("mlp_norm", "output_layer_norm", PLAIN),
)  # fmt: skip
_GPT2 = (
    ("attention_norm", "ln_1", PLAIN), *((f"attention/{ours}", "attn.c_attn", SAME) for ours in ("query", "key", "value")),
    ("attention/out", "attn.c_proj", SAME), ("mlp_norm", "ln_2", PLAIN), ("mlp/up", "mlp.c_fc", SAME),
    ("mlp/down", "mlp.c_proj", SAME),
)  # fmt: skip
_LLAMA = (
    ("attention_norm", "input_layernorm", PLAIN), ("attention/query", "self_attn.q_proj", LINEAR),
    ("attention/key", "self_attn.k_proj", LINEAR), ("attention/value", "self_attn.v_proj", LINEAR),
    ("attention/out", "self_attn.o_proj", LINEAR), ("attention/query_norm", "self_attn.q_norm", PLAIN),
    ("attention/key_norm", "self_attn.k_norm", PLAIN), ("mlp_norm", "post_attention_layernorm", PLAIN),
    ("mlp/gate", "mlp.gate_proj", LINEAR), ("mlp/up", "mlp.up_proj", LINEAR), ("mlp/down", "mlp.down_proj", LINEAR),
)  # fmt: skip
_ENCODER = (
    ("embeddings/tokens", "embeddings.word_embeddings.weight", ""), ("embeddings/norm", "embeddings.LayerNorm", PLAIN),
    ("embeddings/positions", "embeddings.position_embeddings.weight", ""),
)  # fmt: skip
_TYPES = ("embeddings/types", "embeddings.token_type_embeddings.weight", "")
BODY = {
    "bert": (*_ENCODER, _TYPES),
    "roberta": (*_ENCODER, _TYPES),
    "distilbert": _ENCODER,
    "gpt2": (
        ("embeddings/tokens", "wte.weight", ""),
        ("embeddings/positions", "wpe.weight", ""),
        ("norm", "ln_f", PLAIN),
    ),
    "llama": (("embeddings/tokens", "model.embed_tokens.weight", ""), ("norm", "model.norm", PLAIN)),
}
BLOCKS = {
    "bert": ("encoder.layer.{}.", _BERT), "roberta": ("encoder.layer.{}.", _BERT),
    "distilbert": ("transformer.layer.{}.", _DISTILBERT), "gpt2": ("h.{}.", _GPT2), "llama": ("model.layers.{}.", _LLAMA),
}  # fmt: skip
HEADS = {
    "bert": (
        ("pooler", "bert.pooler.dense", LINEAR), ("classifier", "classifier", LINEAR),
        ("transform", "cls.predictions.transform.dense", LINEAR),
        ("transform_norm", "cls.predictions.transform.LayerNorm", PLAIN), ("token_bias", "cls.predictions.bias", ""),
        ("unembedding", "cls.predictions.decoder.weight", ""),
    ),
    "roberta": (
        ("pooler", "classifier.dense", LINEAR), ("classifier", "classifier.out_proj", LINEAR),
        ("transform", "lm_head.dense", LINEAR), ("transform_norm", "lm_head.layer_norm", PLAIN),
        ("token_bias", "lm_head.bias", ""), ("unembedding", "lm_head.decoder.weight", ""),
    ),
    "distilbert": (
        ("pooler", "pre_classifier", LINEAR), ("classifier", "classifier", LINEAR), ("transform", "vocab_transform", LINEAR),
        ("transform_norm", "vocab_layer_norm", PLAIN), ("token_bias", "vocab_projector.bias", ""),
        ("unembedding", "vocab_projector.weight", ""),
    ),
    "gpt2": (("classifier", "score", LINEAR), ("unembedding", "lm_head.weight", "")),
    "llama": (("classifier", "score", LINEAR), ("unembedding", "lm_head.weight", "")),
}  # fmt: skip
LEAVES = {"kernel": "weight", "scale": "weight", "bias": "bias"}


def keys(a: Architecture, head: Head, shapes: Mapping[str, Any]) -> tuple[Key, ...]:
    """What every parameter of a transformer is called, in files as transformers writes them.

    Args:
      a, head: what it is.
      shapes: its parameters by path, as `kdjax.models.weights.beginning.flat` gives them without "params".
    """
    family = a.family if a.family in BODY else "llama"
    prefix = PREFIX.get(family, "")
    bare = head.kind in ("none", "sentence")
    names: dict[str, tuple[str, str]] = {
        ours: (prefix * (not bare) + theirs, kind) for ours, theirs, kind in BODY[family]
    }
    names |= {ours: (theirs.removeprefix(prefix) if bare else theirs, kind) for ours, theirs, kind in HEADS[family]}
    if bare and family == "llama":
        names = {ours: (theirs.removeprefix("model."), kind) for ours, (theirs, kind) in names.items()}
    place, table = BLOCKS[family]
    place = place.removeprefix("model.") if bare else prefix + place
    inside = {ours: (theirs, kind) for ours, theirs, kind in table}
    found: list[Key] = []
    for path in shapes:
        owner, _, leaf = path.rpartition("/")
        blocks = path.startswith("blocks/")
        where = inside if blocks else names
        known = owner.removeprefix("blocks/") if owner.removeprefix("blocks/") in where else path
        theirs, kind = where[known]
        name = f"{theirs}.{LEAVES[leaf]}" if kind else theirs
        fused = ("query", "key", "value").index(owner.rpartition("/")[2]) if theirs == "attn.c_attn" else None
        key = Key(name, tuple(path.split("/")), None, kind == LINEAR and leaf == "kernel", fused)
        layers = range(a.depth) if blocks else [None]
        found += [key if i is None else key._replace(name=place.format(i) + name, layer=i) for i in layers]
    return tuple(found)


def renamed(names: Iterable[str], wanted: Iterable[str]) -> dict[str, str]:
    """`{as wanted: as there}` for entries of a file: with or without the prefix of its body, and old names of norms."""
    wanted = set(wanted)
    found: dict[str, str] = {}
    prefixes = (*PREFIX.values(), "model.")
    for name in names:
        modern = name.removesuffix("gamma") + "weight" if name.endswith("LayerNorm.gamma") else name
        modern = modern.removesuffix("beta") + "bias" if modern.endswith("LayerNorm.beta") else modern
        spellings = [modern, *(p + modern for p in prefixes), *(modern.removeprefix(p) for p in prefixes)]
        found[next((s for s in spellings if s in wanted), name)] = name
    return found


def taken(
    entries: tuple[Key, ...], shapes: Mapping[str, Any], found: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """The parameters by path, of those whose entries are all there.

    Raises:
      ValueError: an entry is of another shape, or no finite floats; the sentence names it, and lacks the file.
    """
    made: dict[str, np.ndarray] = {}
    there = {entry.path for entry in entries} - {entry.path for entry in entries if entry.name not in found}
    for entry in entries:
        if entry.path not in there:
            continue
        path = "/".join(entry.path)
        whole, array = shapes[path], found[entry.name]
        shape = tuple(whole.shape) if entry.layer is None else tuple(whole.shape[1:])
        lies = shape[::-1] if entry.turned else shape if entry.part is None else (*shape[:-1], 3 * shape[-1])
        if array.shape != lies:
            raise ValueError(f"its entry {entry.name!r} is {list(array.shape)}, expected {list(lies)}")
        if array.dtype.kind not in "fV" or not np.isfinite(np.asarray(array, np.float32)).all():
            raise ValueError(f"its entry {entry.name!r} has nan or inf, or is no array of floats; take another file")
        if entry.part is not None:
            array = np.split(array, 3, axis=-1)[entry.part]
        array = array.T if entry.turned else array
        if entry.layer is None:
            made[path] = np.array(array, np.float32)  # a copy: the file may be written anew
        else:
            made.setdefault(path, np.empty(tuple(whole.shape), np.float32))[entry.layer] = array
    return made


def laid_out(entries: tuple[Key, ...], params: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The inverse of `taken`."""
    made: dict[str, np.ndarray] = {}
    for entry in entries:
        array = np.asarray(params["/".join(entry.path)])
        array = array if entry.layer is None else array[entry.layer]
        array = array.T if entry.turned else array
        # The thirds come in the order of query, key and value only if they are asked for so.
        made[entry.name] = array if entry.part is None else _third(made.get(entry.name), array, entry.part)
    return made


def _third(whole: np.ndarray | None, array: np.ndarray, part: int) -> np.ndarray:
    size = array.shape[-1]
    whole = np.empty((*array.shape[:-1], 3 * size), array.dtype) if whole is None else whole
    whole[..., part * size : (part + 1) * size] = array
    return whole

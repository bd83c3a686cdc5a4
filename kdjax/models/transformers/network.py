"""A transformer as a `Network`, fresh or with the weights of a folder."""

from collections.abc import Mapping
from typing import Any

from flax import nnx

from kdjax.models.nnx import from_nnx
from kdjax.models.transformers.architecture import Architecture, Head
from kdjax.models.transformers.transformer import Transformer
from kdjax.models.weights.beginning import begun, flat
from kdjax.types import Network


def transformer(
    architecture: Architecture,
    head: Head = Head(),
    *,
    weights: Mapping[str, Any] | None = None,
    keep: tuple[str, ...] = (),
    remat: bool = False,
    name: str = "",
) -> Network:
    """The network; see `Transformer` for what it takes and gives.

    Args:
      architecture, head: what it is.
      weights: nested dicts of the parameters that it begins with, those of `read_folder`; others are drawn.
      keep: what of the attention is handed out as taps: "queries", "keys", "values", "scores".
      remat: whether each block is computed again for the gradient.
      name: for reports.
    """

    def make(rngs: nnx.Rngs) -> Transformer:
        module = Transformer(architecture, head, keep=keep, rngs=rngs)
        module.recompute = remat
        return module

    a = architecture
    of_tokens = ("token_logits", *(("token_weights", "begin", "advance") if a.causal else ()))
    parts = {"classes": ("classify",), "tokens": of_tokens}.get(head.kind, ())
    network = from_nnx(make, parts=parts, name=name or f"{a.family} {a.depth}x{a.width}")
    return network if weights is None else begun(network, flat({"params": weights}))

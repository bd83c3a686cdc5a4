"""Tokens as the maps that methods of features take."""

import dataclasses
import math

import jax.numpy as jnp

from kdjax.types import Array, ModelOutput, Network


def token_maps(network: Network, *, skip: int = 0, grid: tuple[int, int] | None = None) -> Network:
    """The network, with features and preactivations `[B, skip + H * W, K]` made maps `[B, H, W, K]`.

    Args:
      network: of tokens: a vision transformer, or one of text.
      skip: tokens in front that are no place of the map, such as the class token.
      grid: `(H, W)`; if not given the map is square. Text of length L is `(L, 1)`.

    Raises:
      ValueError: when it runs: the tokens do not fill the grid.
    """

    def as_map(x: Array) -> Array:
        if x.ndim != 3:
            return x
        count = x.shape[1] - skip
        side = math.isqrt(max(count, 0))
        height, width = grid or (side, side)
        if height * width != count:
            raise ValueError(
                f"{network.name} gives {x.shape[1]} tokens, {count} after skip={skip}, which do not fill a map of {height} x "
                f"{width}; pass skip= for the class token, or grid=(h, w)."
            )
        return jnp.reshape(x[:, skip:], (x.shape[0], height, width, x.shape[2]))

    def apply(params, state, inputs, **options):
        output, state = network.apply(params, state, inputs, **options)
        if isinstance(output, ModelOutput):
            maps = {name: tuple(map(as_map, getattr(output, name))) for name in ("features", "preactivations")}
            output = dataclasses.replace(output, **maps)
        return output, state

    return network._replace(apply=apply)

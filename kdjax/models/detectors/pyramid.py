"""The feature pyramid: maps of one width at every level, the coarse ones added to the finer.

Lin et al., Feature Pyramid Networks for Object Detection, CVPR 2017, arXiv 1612.03144, with the levels above as released.
"""

from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from kdjax.models.zoo.layers import convolution
from kdjax.types import Array


class FeaturePyramid(nnx.Module):
    """1x1 convolutions of the backbone's maps, added from the coarsest to the finest, a 3x3 convolution each; further levels are
    3x3 convolutions at stride 2. All have a bias and no normalisation, and start Xavier uniform."""

    def __init__(
        self, in_channels: tuple[int, ...], channels: int, *, levels: int,
        extra: Literal["output", "output_relu", "input"] = "output", rngs: nnx.Rngs,
    ):  # fmt: skip
        """Makes the pyramid.

        Args:
          in_channels: of the backbone's maps, the finest first.
          channels: of every level.
          levels: how many, at least as many as maps.
          extra: what the first further level is made of: the pyramid's last map ("output", as GFL and ATSS), the same with a
            ReLU before every level but the first of them ("output_relu", as FCOS), or the backbone's last map ("input", as
            RetinaNet).
          rngs: its "params" stream draws the weights.
        """
        if levels < len(in_channels):
            raise ValueError(
                f"levels is {levels}, and the backbone gives {len(in_channels)} maps; use at least as many."
            )
        self.extra = extra
        self.laterals = nnx.List([convolution(k, channels, size=1, bias=True, rngs=rngs) for k in in_channels])
        further = [
            in_channels[-1] if extra == "input" and i == 0 else channels for i in range(levels - len(in_channels))
        ]
        self.outputs = nnx.List(
            [convolution(channels, channels, size=3, bias=True, rngs=rngs) for _ in in_channels]
            + [convolution(k, channels, size=3, stride=2, bias=True, rngs=rngs) for k in further]
        )
        draw = nnx.initializers.xavier_uniform()
        for layer in (*self.laterals, *self.outputs):
            layer.kernel.set_value(draw(rngs.params(), layer.kernel.shape, jnp.float32))

    def __call__(self, maps: tuple[Array, ...]) -> tuple[Array, ...]:
        """Maps `[B, h, w, k]` of the backbone, the finest first, to those of the levels, `[B, h, w, channels]`."""
        merged = [lateral(x) for lateral, x in zip(self.laterals, maps, strict=True)]
        for i in range(len(merged) - 1, 0, -1):
            merged[i - 1] = merged[i - 1] + enlarged(merged[i], merged[i - 1].shape[1:3])
        levels = [layer(x) for layer, x in zip(self.outputs, merged, strict=False)]
        x = maps[-1] if self.extra == "input" else levels[-1]
        for i, layer in enumerate(self.outputs[len(merged) :]):
            x = layer(jax.nn.relu(x) if self.extra == "output_relu" and i > 0 else x)
            levels.append(x)
        return tuple(levels)


def enlarged(x: Array, size: tuple[int, int]) -> Array:
    """`[B, h, w, K]` to a map of `size`: the nearest pixel by `floor(i * h / H)`, which is no repetition where sizes are odd."""
    for axis, wanted in zip((1, 2), size, strict=True):
        there = x.shape[axis]
        if wanted == 2 * there:
            x = jnp.repeat(x, 2, axis=axis)
        elif wanted != there:
            x = jnp.take(x, np.arange(wanted) * there // wanted, axis=axis)
    return x

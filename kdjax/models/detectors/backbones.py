"""Backbones of detectors: an image to maps at strides 8, 16 and 32, or as many as there are."""

import itertools

from flax import nnx

from kdjax.models.detectors.fixed import fix_statistics, fix_weights
from kdjax.models.rematerialization import Recomputable
from kdjax.models.zoo.convolutions import ConvNorm
from kdjax.models.zoo.layers import draw, fan_out_deviation, through
from kdjax.models.zoo.resnet import Basic, make_stages, max_pool
from kdjax.types import Array

# depth -> (blocks of each stage, whether these are bottlenecks)
DEPTHS = {
    18: ((2, 2, 2, 2), False), 34: ((3, 4, 6, 3), False), 50: ((3, 4, 6, 3), True), 101: ((3, 4, 23, 3), True),
}  # fmt: skip


class ResNetBackbone(nnx.Module):
    """A ResNet for ImageNet without its classifier, as detectors take it: He et al., CVPR 2016, arXiv 1512.03385.

    Every BatchNorm runs on stored statistics, those of the classifier that it begins from; the stem and the first
    `frozen_stages` stages are not trained at all.

    Attributes:
      channels: of the maps that it gives.
    """

    def __init__(self, depth: int, *, width: int = 64, in_channels: int = 3, frozen_stages: int = 1, rngs: nnx.Rngs):
        """Makes the network.

        Args:
          depth: 18, 34, 50 or 101.
          width: channels of the stem; each stage has twice as many as the one before.
          in_channels: channels of the image.
          frozen_stages: how many stages are not trained, behind a stem that is not either; -1 trains all, the stem too.
          rngs: its "params" stream draws the weights.
        """
        if depth not in DEPTHS:
            raise ValueError(f"depth is {depth}; it must be one of {', '.join(map(str, DEPTHS))}.")
        blocks, bottleneck = DEPTHS[depth]
        self.stem = ConvNorm(in_channels, width, size=7, stride=2, rngs=rngs)
        self.stages, channels = make_stages(blocks, bottleneck=bottleneck, width=width, rngs=rngs)
        self.channels = channels[1:]
        draw(self, fan_out_deviation, rngs=rngs)
        fix_statistics(self)
        for part in (self.stem, *self.stages[:frozen_stages]) if frozen_stages >= 0 else ():
            fix_weights(part)

    def __call__(self, x: Array) -> tuple[Array, ...]:
        """`[B, H, W, in_channels]` to the activations of the last three stages, at strides 8, 16 and 32."""
        x = max_pool(nnx.relu(self.stem(x)))
        maps = []
        for stage in self.stages:
            x, _ = through(stage, x)
            maps.append(x)
        return tuple(maps[1:])


class SmallBackbone(nnx.Module):
    """A 3x3 stem at stride 2 and a basic block at each of the strides 4, 8 and 16: for images of some hundred pixels.

    BatchNorm takes the statistics of the batch: there is no classifier that it begins from.
    """

    def __init__(self, *, width: int = 16, in_channels: int = 1, rngs: nnx.Rngs):
        """Makes the network: `width` channels in the stem, then 2, 4 and 8 times as many."""
        self.stem = ConvNorm(in_channels, width, size=3, stride=2, rngs=rngs)
        widths = [width * 2**i for i in range(4)]
        blocks: list[Recomputable] = [Basic(a, b, stride=2, rngs=rngs) for a, b in itertools.pairwise(widths)]
        self.blocks = nnx.List(blocks)
        self.channels = tuple(widths[2:])
        draw(self, fan_out_deviation, rngs=rngs)

    def __call__(self, x: Array) -> tuple[Array, ...]:
        """`[B, H, W, in_channels]` to the activations at strides 8 and 16."""
        x = nnx.relu(self.stem(x))
        maps = []
        for block in self.blocks:
            x = nnx.relu(block(x))
            maps.append(x)
        return tuple(maps[1:])

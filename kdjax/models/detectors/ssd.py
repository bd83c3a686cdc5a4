"""SSD: Liu et al., SSD: Single Shot MultiBox Detector, ECCV 2016, arXiv 1512.02325, as in mmdetection."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from kdjax.models.detectors.backbones import SmallBackbone
from kdjax.models.detectors.output import DetectorOutput, Shapes
from kdjax.models.detectors.vgg import xavier
from kdjax.models.zoo.layers import convolution
from kdjax.types import Array


class Priors(NamedTuple):
    """Anchors of SSD.

    Attributes:
      strides: pixels between the locations of each map.
      sizes: sides of the anchors of each map in pixels, and beyond the last.
      ratios: of each map, beside 1: each, and its inverse.
      image: side of the images that they are for, in pixels; 0 for any.
      clipped: whether no side of an anchor is longer than the image's.
    """

    strides: tuple[int, ...]
    sizes: tuple[float, ...]
    ratios: tuple[tuple[float, ...], ...]
    image: int = 0
    clipped: bool = False

    @property
    def shapes(self) -> Shapes:
        """At every location a square of the map's size, one of the geometric mean with the next, then each ratio of height to
        width, the inverse first, of the area of the former."""
        shapes = []
        for small, large, ratios in zip(self.sizes, self.sizes[1:], self.ratios, strict=False):
            mean = math.sqrt(small * large)
            both = [r for ratio in ratios for r in (1 / ratio, ratio)]
            kinds = ((small, small), (mean, mean), *((small / math.sqrt(r), small * math.sqrt(r)) for r in both))
            most = self.image if self.clipped else math.inf
            shapes.append(tuple((min(width, most), min(height, most)) for width, height in kinds))
        return tuple(shapes)


_RATIOS = ((2.0,), (2.0, 3.0), (2.0, 3.0), (2.0, 3.0), (2.0,), (2.0,))
_STRIDES = (8, 16, 32, 64, 100, 300)
COCO = Priors(_STRIDES, (21.0, 45.0, 99.0, 153.0, 207.0, 261.0, 315.0), _RATIOS, 300)
TORCHVISION = COCO._replace(clipped=True)
VOC = Priors(_STRIDES, (30.0, 60.0, 111.0, 162.0, 213.0, 264.0, 315.0), _RATIOS, 300)
SMALL = Priors((8, 16, 32), (16.0, 32.0, 56.0, 80.0), ((2.0,),) * 3)  # for images of 96 pixels


class SmallMaps(nnx.Module):
    """The small backbone and a further map at stride 32."""

    def __init__(self, *, width: int = 16, in_channels: int = 1, rngs: nnx.Rngs):
        self.backbone = SmallBackbone(width=width, in_channels=in_channels, rngs=rngs)
        last = self.backbone.channels[-1]
        self.further = convolution(last, last, size=3, stride=2, bias=True, rngs=rngs)
        self.channels = (*self.backbone.channels, last)
        xavier_of = nnx.initializers.xavier_uniform()
        self.further.kernel.set_value(xavier_of(rngs.params(), self.further.kernel.shape, jnp.float32))

    def __call__(self, x: Array) -> tuple[Array, ...]:
        """`[B, H, W, in_channels]` to the maps at strides 8, 16 and 32."""
        maps = self.backbone(x)
        return *maps, jax.nn.relu(self.further(maps[-1]))


class SSD(nnx.Module):
    """Two 3x3 convolutions behind every map of a backbone: classes and deltas of every anchor.

    With a softmax the last class is background; with sigmoids there is none.
    """

    def __init__(
        self, backbone: nnx.Module, *, num_classes: int, priors: Priors = COCO, background: bool = True, rngs: nnx.Rngs
    ):
        """Makes the detector.

        Args:
          backbone: gives a map for each of the priors'.
          num_classes: without the background.
          priors: the anchors.
          background: a softmax over one class more; else a sigmoid a class.
          rngs: its "params" stream draws the weights, Xavier uniform; biases are 0.
        """
        self.backbone, self.background, self.image = backbone, background, priors.image
        self.strides, self.shapes = priors.strides, priors.shapes
        pairs = list(zip(backbone.channels, self.shapes, strict=True))
        layer = lambda channels, out: convolution(channels, out, size=3, bias=True, rngs=rngs)
        self.head = SSDHead(
            [layer(k, len(s) * (num_classes + background)) for k, s in pairs], [layer(k, 4 * len(s)) for k, s in pairs]
        )
        xavier(self.head, rngs=rngs)

    def __call__(self, x: Array) -> DetectorOutput:
        """What it says of normalised images `[B, H, W, in_channels]`.

        Raises:
          ValueError: the images are not of the side that its anchors are for.
        """
        if self.image and x.shape[1:3] != (self.image,) * 2:
            raise ValueError(
                f"SSD{self.image} sees pictures of {self.image} x {self.image}, and these are {x.shape[1]} x {x.shape[2]}; set "
                f"data.image_size {self.image} {self.image}."
            )
        maps = self.backbone(x)
        logits, deltas = [], []
        for features, shapes, classes, boxes in zip(maps, self.shapes, self.head.classes, self.head.boxes, strict=True):
            said = classes(features)
            logits.append(_rows(said, said.shape[-1] // len(shapes)))
            deltas.append(_rows(boxes(features), 4))
        return DetectorOutput(
            logits=jnp.concatenate(logits, axis=1), regression=jnp.concatenate(deltas, axis=1), features=maps,
            strides=self.strides, head="ssd", anchor_shapes=self.shapes, offset=0.5, deviations=(0.1, 0.1, 0.2, 0.2),
            background=self.background,
        )  # fmt: skip


class SSDHead(nnx.Module):
    """The convolutions behind the maps."""

    def __init__(self, classes: list[nnx.Conv], boxes: list[nnx.Conv]):
        self.classes, self.boxes = nnx.List(classes), nnx.List(boxes)


def _rows(x: Array, size: int) -> Array:
    """`[B, h, w, n]` as `[B, A, size]`, in float32 at least."""
    return jnp.reshape(x, (x.shape[0], -1, size)).astype(jnp.promote_types(x.dtype, jnp.float32))

"""Networks that detect objects."""

import dataclasses
import os

from flax import nnx

from kdjax.models import from_nnx
from kdjax.models.detectors.backbones import ResNetBackbone, SmallBackbone
from kdjax.models.detectors.beginning import weights_of
from kdjax.models.detectors.gfl import GFL
from kdjax.models.weights.beginning import begun
from kdjax.tasks.task import Model
from kdjax.types import Network

DEPTHS = {f"gfl_r{depth}": depth for depth in (18, 34, 50, 101)}
SMALL = "gfl_small"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Detector(Model):
    """A detector with a head of generalized focal loss."""

    name: str = SMALL
    """gfl_small, for images of some hundred pixels; or gfl_r18, gfl_r34, gfl_r50, gfl_r101 on a ResNet of ImageNet"""
    width: int = 0
    """channels of the stem; 0 for the network's own (16 and 64)"""
    channels: int = 0
    """channels of pyramid and head; 0 for the network's own (32 and 256)"""
    bins: int = 0
    """bins of the distance of every edge, in strides; 0 for the network's own (9 and 17)"""
    frozen_stages: int = 1
    """stages of a ResNet that are not trained, nor is the stem; -1 trains all, as a network without trained weights needs"""
    weights: str = ""
    """file that it begins from: torchvision's weights of its ResNet, or mmdetection's of the whole detector; empty for none"""

    def __post_init__(self):
        if self.weights:
            object.__setattr__(self, "weights", os.path.abspath(self.weights))  # a saved run is read from anywhere


def make_detector(model: Detector, num_classes: int, in_channels: int) -> Network:
    """The network.

    Raises:
      ValueError: there is no such network, or the file it begins from is of another.
    """
    if model.name == SMALL:
        strides, kind = (8, 16, 32), {"depth": 2, "groups": 8, "anchor_scale": 4.0, "deviation": None}
        width, channels, bins = model.width or 16, model.channels or 32, model.bins or 9
        backbone = lambda rngs: SmallBackbone(width=width, in_channels=in_channels, rngs=rngs)
    elif model.name in DEPTHS:
        strides, kind = (8, 16, 32, 64, 128), {}
        width, channels, bins = model.width or 64, model.channels or 256, model.bins or 17
        kind |= {"groups": min(32, channels)}
        backbone = lambda rngs: ResNetBackbone(
            DEPTHS[model.name], width=width, in_channels=in_channels, frozen_stages=model.frozen_stages, rngs=rngs
        )
    else:
        raise ValueError(f"There is no detector {model.name!r}; there are {', '.join([SMALL, *DEPTHS])}.")

    def make(rngs):
        return GFL(
            backbone(rngs),
            num_classes=num_classes,
            strides=strides,
            pyramid_channels=channels,
            bins=bins,
            rngs=rngs,
            **kind,
        )

    name = f"{model.name} (width {width})" if model.width else model.name
    network = from_nnx(make, output=lambda said: said, name=name)
    if not model.weights:
        return network
    return begun(network, weights_of(model.weights, nnx.eval_shape(lambda: make(nnx.Rngs(0)))))

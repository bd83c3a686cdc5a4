"""Networks that detect objects."""

import dataclasses
import os
from collections.abc import Callable

from flax import nnx

from kdjax.models import from_nnx, zoo
from kdjax.models.detectors import ssd
from kdjax.models.detectors.atss import ATSS
from kdjax.models.detectors.backbones import ResNetBackbone, SmallBackbone
from kdjax.models.detectors.beginning import weights_of
from kdjax.models.detectors.dense import DenseDetector
from kdjax.models.detectors.fcos import FCOS
from kdjax.models.detectors.gfl import GFL
from kdjax.models.detectors.retinanet import RetinaNet
from kdjax.models.detectors.torchvision import TorchvisionFCOS, TorchvisionRetinaNet
from kdjax.models.detectors.vgg import VGGBackbone
from kdjax.models.weights.beginning import begun
from kdjax.models.zoo.cifar import CIFAR
from kdjax.tasks.detection.judging import of_crops
from kdjax.tasks.task import Model
from kdjax.types import Network

HEADS: dict[str, tuple[type[DenseDetector], bool]] = {  # whether its edges are distributions
    "gfl": (GFL, True), "retinanet": (RetinaNet, False), "atss": (ATSS, False), "fcos": (FCOS, False),
    "retinanet_torchvision": (TorchvisionRetinaNet, False), "fcos_torchvision": (TorchvisionFCOS, False),
    "retinanet_edges": (RetinaNet, True), "atss_edges": (ATSS, True), "fcos_edges": (FCOS, True),
}  # fmt: skip
SSDS = {  # anchors, and whether the classes are a softmax with background
    "ssd300": (ssd.COCO, True), "ssd300_voc": (ssd.VOC, True), "ssd300_sigmoid": (ssd.COCO, False),
    "ssd300_torchvision": (ssd.TORCHVISION, True),
    "ssd_small": (ssd.SMALL, True), "ssd_small_sigmoid": (ssd.SMALL, False),
}  # fmt: skip
DEPTHS = {f"_r{depth}": depth for depth in (18, 34, 50, 101)}
SMALL = "_small"
CROPS = "crops_"
DENSE = {head + end: head for head in HEADS for end in (SMALL, *DEPTHS) if not (end == SMALL and "torchvision" in head)}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Detector(Model):
    """A dense detector: a head on a pyramid on a backbone."""

    name: str = "gfl_small"
    """head and backbone: gfl, retinanet, atss or fcos; retinanet_edges, atss_edges or fcos_edges, whose edges are distributions
    as localization distillation needs them; with _small, for images of some hundred pixels, or _r18, _r34, _r50, _r101 for a
    ResNet of ImageNet. Or retinanet_torchvision_r50, fcos_torchvision_r50, ssd300_torchvision, as torchvision has them. Or ssd300
    (with COCO's anchors), ssd300_voc, ssd300_sigmoid, whose classes are sigmoids without background, and ssd_small,
    ssd_small_sigmoid. Or crops_NAME, with a network of the zoo that classifies crops of the objects, such as crops_resnet8, to
    teach a detector with data.show_boxes"""
    width: int = 0
    """channels of the stem; 0 for the network's own (16 and 64)"""
    channels: int = 0
    """channels of pyramid and head; 0 for the network's own (32 and 256)"""
    bins: int = 0
    """bins of the distance of every edge, in strides, where edges are distributions; 0 for the network's own (9 and 17)"""
    crop: int = 0
    """side of the crops in pixels that a classifier of crops sees; 0 for its own (32 of the networks for CIFAR, 112 of others)"""
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
    if model.name.startswith(CROPS):
        return _classifier(model, num_classes, in_channels)
    make = maker(model, num_classes, in_channels)
    name = f"{model.name} (width {model.width})" if model.width else model.name
    network = from_nnx(make, output=lambda said: said, name=name)
    if not model.weights:
        return network
    return begun(network, weights_of(model.weights, nnx.eval_shape(lambda: make(nnx.Rngs(0)))))


def maker(model: Detector, num_classes: int, in_channels: int) -> Callable[[nnx.Rngs], nnx.Module]:
    """What makes the module of a detector.

    Raises:
      ValueError: there is no such detector.
    """
    return (_ssd if model.name in SSDS else _dense)(model, num_classes, in_channels)


def _classifier(model: Detector, num_classes: int, in_channels: int) -> Network:
    name = model.name.removeprefix(CROPS)
    size = model.crop or (32 if name in CIFAR else 112)
    options = {"width": model.width or None, "image_size": (size, size)}
    make = lambda rngs: zoo.build(name, num_classes=num_classes, in_channels=in_channels, rngs=rngs, **options)
    if model.weights or model.bins or model.channels:
        raise ValueError(f"network.weights, bins and channels are not for {model.name}; leave them out.")
    nnx.eval_shape(lambda: make(nnx.Rngs(0)))  # which says what there is
    return of_crops(from_nnx(make, name=model.name), size)


def _ssd(model: Detector, num_classes: int, in_channels: int) -> Callable[[nnx.Rngs], nnx.Module]:
    priors, background = SSDS[model.name]
    if model.bins or model.channels:
        raise ValueError(f"network.bins and network.channels are not for {model.name}; leave them 0.")
    small = priors is ssd.SMALL
    backbone, width = (ssd.SmallMaps, 16) if small else (VGGBackbone, 64)

    def make(rngs):
        maps = backbone(width=model.width or width, in_channels=in_channels, rngs=rngs)
        return ssd.SSD(maps, num_classes=num_classes, priors=priors, background=background, rngs=rngs)

    return make


def _dense(model: Detector, num_classes: int, in_channels: int) -> Callable[[nnx.Rngs], nnx.Module]:
    if model.name not in DENSE:
        raise ValueError(f"There is no detector {model.name!r}; there are {', '.join([*DENSE, *SSDS])}.")
    head = DENSE[model.name]
    kind, distributed = HEADS[head]
    if model.bins and not (distributed and model.bins > 1):
        mend = "are distributions; give 2 or more" if distributed else "are no distributions; leave it 0"
        raise ValueError(f"network.bins is {model.bins}, and the edges of {model.name} {mend}.")
    if model.name.endswith(SMALL):
        strides, options = (8, 16, 32), {"depth": 2, "groups": 8, "anchor_scale": 4.0, "deviation": None}
        width, channels, bins = model.width or 16, model.channels or 32, model.bins or 9
        backbone = lambda rngs: SmallBackbone(width=width, in_channels=in_channels, rngs=rngs)
    else:
        strides, options = (8, 16, 32, 64, 128), {}
        width, channels, bins = model.width or 64, model.channels or 256, model.bins or 17
        options |= {"groups": min(32, channels), "anchor_scale": 8.0}
        depth = DEPTHS[model.name.removeprefix(head)]
        backbone = lambda rngs: ResNetBackbone(
            depth, width=width, in_channels=in_channels, frozen_stages=model.frozen_stages, rngs=rngs
        )
    if issubclass(kind, RetinaNet):
        options["anchor_scale"] /= 2  # of its smallest size

    def make(rngs):
        return kind(
            backbone(rngs), num_classes=num_classes, strides=strides, pyramid_channels=channels, bins=bins if distributed else 1,
            rngs=rngs, **options,
        )  # fmt: skip

    return make

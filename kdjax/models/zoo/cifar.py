"""The networks of the CIFAR benchmarks by the names that are used there, in lower case.

`width` is the number of channels of the first stage (of the stem of `mobilenetv2`); the others keep their ratio to it, but
for the stem and the last convolution of `shufflenetv2`.
"""

import functools
from collections.abc import Callable

from flax import nnx

from kdjax.models.zoo.mobilenet_cifar import CifarMobileNetV2
from kdjax.models.zoo.resnet_cifar import CifarResNet
from kdjax.models.zoo.resnet_four_stages import FourStageResNet
from kdjax.models.zoo.shufflenet_cifar import ShuffleNetV1, ShuffleNetV2
from kdjax.models.zoo.vgg import VGG
from kdjax.models.zoo.wide_resnet import WideResNet


def _resnet(num_classes: int, in_channels: int, rngs: nnx.Rngs, *, depth: int, width: int = 16) -> nnx.Module:
    channels = (width, width, 2 * width, 4 * width)
    return CifarResNet(depth, num_classes=num_classes, channels=channels, in_channels=in_channels, rngs=rngs)


def _resnet_x4(num_classes: int, in_channels: int, rngs: nnx.Rngs, *, depth: int, width: int = 64) -> nnx.Module:
    channels = (max(width // 2, 1), width, 2 * width, 4 * width)
    return CifarResNet(depth, num_classes=num_classes, channels=channels, in_channels=in_channels, rngs=rngs)


def _wide(
    num_classes: int, in_channels: int, rngs: nnx.Rngs, *, depth: int, factor: int, width: int | None = None
) -> nnx.Module:
    width = 16 * factor if width is None else width
    channels = (max(width // factor, 1), width, 2 * width, 4 * width)
    return WideResNet(depth, num_classes=num_classes, channels=channels, in_channels=in_channels, rngs=rngs)


def _of(network: Callable[..., nnx.Module], *depth: int) -> Callable[..., nnx.Module]:
    """One whose width is an argument of its own."""

    def make(num_classes: int, in_channels: int, rngs: nnx.Rngs, **options: int) -> nnx.Module:
        return network(*depth, num_classes=num_classes, in_channels=in_channels, rngs=rngs, **options)

    return make


CIFAR: dict[str, Callable[..., nnx.Module]] = {
    **{f"resnet{depth}": functools.partial(_resnet, depth=depth) for depth in (8, 14, 20, 32, 44, 56, 110)},
    **{f"resnet{depth}x4": functools.partial(_resnet_x4, depth=depth) for depth in (8, 32)},
    **{f"wrn_{depth}_{factor}": functools.partial(_wide, depth=depth, factor=factor)
       for depth in (16, 40) for factor in (1, 2)},
    **{f"vgg{depth}": _of(VGG, depth) for depth in (8, 11, 13, 16, 19)},
    "mobilenetv2": _of(CifarMobileNetV2),
    "shufflenetv1": _of(ShuffleNetV1),
    "shufflenetv2": _of(ShuffleNetV2),
    **{f"resnet{depth}_cifar": _of(FourStageResNet, depth) for depth in (18, 50)},
}  # fmt: skip

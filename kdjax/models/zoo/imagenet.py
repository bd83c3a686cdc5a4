"""The networks for ImageNet by the names of torchvision and timm.

`width` is the number of channels of the stem; of the first stage for ConvNeXt, Swin and RegNetY, of every token for ViT and DeiT.
The others keep their ratio to it.
"""

import functools
from collections.abc import Callable

from flax import nnx

from kdjax.models.zoo.convnext import ConvNeXt
from kdjax.models.zoo.inverted import InvertedNet, MobileNetV1
from kdjax.models.zoo.mobilenets import (
    efficientnet,
    mobilenet_v1,
    mobilenet_v2,
    mobilenet_v3_large,
    mobilenet_v3_small,
)
from kdjax.models.zoo.regnet import RegNetY
from kdjax.models.zoo.resnet import ResNet
from kdjax.models.zoo.swin import Swin
from kdjax.models.zoo.vit import ViT


def _resnet(num_classes, in_channels, rngs, *, blocks, bottleneck=True, width=64):
    return ResNet(
        blocks, bottleneck=bottleneck, num_classes=num_classes, width=width, in_channels=in_channels, rngs=rngs
    )


def _inverted(num_classes, in_channels, rngs, *, design, stem=32, width=None, kind=InvertedNet):
    scale = 1.0 if width is None else width / stem
    return kind(design(scale), num_classes=num_classes, in_channels=in_channels, rngs=rngs)


def _vit(num_classes, in_channels, rngs, *, heads, image_size=(224, 224), width=None, distilled=False):
    return ViT(
        image_size, num_classes=num_classes, width=width or 64 * heads, heads=heads, distilled=distilled,
        in_channels=in_channels, rngs=rngs,
    )  # fmt: skip


def _convnext(num_classes, in_channels, rngs, *, blocks, width=96):
    return ConvNeXt(blocks, num_classes=num_classes, width=width, in_channels=in_channels, rngs=rngs)


def _swin(num_classes, in_channels, rngs, *, blocks, image_size=(224, 224), width=96):
    return Swin(image_size, blocks, num_classes=num_classes, width=width, in_channels=in_channels, rngs=rngs)


def _regnet(num_classes, in_channels, rngs, *, width=224):
    ratio = width / 224
    group = max(round(112 * ratio), 1)
    widths = tuple(max(round(k * ratio / group), 1) * group for k in (224, 448, 1232, 3024))
    return RegNetY(
        (2, 4, 11, 1), widths, group=group, num_classes=num_classes, stem=max(round(32 * ratio), 1),
        in_channels=in_channels, rngs=rngs,
    )  # fmt: skip


# name -> (num_classes, in_channels, rngs, **options) -> module
IMAGENET: dict[str, Callable[..., nnx.Module]] = {
    "resnet18": functools.partial(_resnet, blocks=(2, 2, 2, 2), bottleneck=False),
    "resnet34": functools.partial(_resnet, blocks=(3, 4, 6, 3), bottleneck=False),
    "resnet50": functools.partial(_resnet, blocks=(3, 4, 6, 3)),
    "resnet101": functools.partial(_resnet, blocks=(3, 4, 23, 3)),
    "resnet152": functools.partial(_resnet, blocks=(3, 8, 36, 3)),
    "mobilenetv1_100": functools.partial(_inverted, design=mobilenet_v1, kind=MobileNetV1),
    "mobilenet_v2": functools.partial(_inverted, design=mobilenet_v2),
    "mobilenet_v3_small": functools.partial(_inverted, design=mobilenet_v3_small, stem=16),
    "mobilenet_v3_large": functools.partial(_inverted, design=mobilenet_v3_large, stem=16),
    "efficientnet_b0": functools.partial(_inverted, design=efficientnet),
    "efficientnet_lite0": functools.partial(_inverted, design=functools.partial(efficientnet, lite=True)),
    "tf_efficientnet_b0": functools.partial(_inverted, design=functools.partial(efficientnet, tensorflow=True)),
    "tf_efficientnet_lite0": functools.partial(
        _inverted, design=functools.partial(efficientnet, lite=True, tensorflow=True)
    ),
    "vit_tiny_patch16_224": functools.partial(_vit, heads=3),
    "vit_small_patch16_224": functools.partial(_vit, heads=6),
    "vit_base_patch16_224": functools.partial(_vit, heads=12),
    "deit_tiny_distilled_patch16_224": functools.partial(_vit, heads=3, distilled=True),
    "deit_small_distilled_patch16_224": functools.partial(_vit, heads=6, distilled=True),
    "deit_base_distilled_patch16_224": functools.partial(_vit, heads=12, distilled=True),
    "convnext_tiny": functools.partial(_convnext, blocks=(3, 3, 9, 3)),
    "swin_tiny_patch4_window7_224": functools.partial(_swin, blocks=(2, 2, 6, 2)),
    "regnety_160": _regnet,
}

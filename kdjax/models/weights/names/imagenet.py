"""Which names the networks for ImageNet have in published checkpoints: a table for each who publishes some."""

import kdjax.models.weights.names.ported as ported
import kdjax.models.weights.names.timm as timm
import kdjax.models.weights.names.torchvision as torchvision
from kdjax.models.zoo.mobilenets import (
    efficientnet,
    mobilenet_v1,
    mobilenet_v2,
    mobilenet_v3_large,
    mobilenet_v3_small,
)

V1, V2, EFFICIENT = (1, 2, 2, 6, 2), (1, 2, 3, 4, 3, 3, 1), (1, 2, 2, 3, 3, 4, 1)  # blocks a stage, as timm counts them
B0, LITE = efficientnet(), efficientnet(lite=True)

NAMES = {
    **{f"resnet{depth}": (torchvision.RESNET,) for depth in (18, 34, 50, 101, 152)},
    "mobilenetv1_100": (timm.inverted(mobilenet_v1(), V1),),
    "mobilenet_v2": (torchvision.mobilenet_v2(mobilenet_v2()), timm.inverted(mobilenet_v2(), V2)),
    "mobilenet_v3_small": (torchvision.mobilenet_v3(mobilenet_v3_small()),),
    "mobilenet_v3_large": (torchvision.mobilenet_v3(mobilenet_v3_large()),),
    "efficientnet_b0": (timm.inverted(B0, EFFICIENT), torchvision.efficientnet(B0, EFFICIENT)),
    "efficientnet_lite0": (timm.inverted(LITE, EFFICIENT),),
    "tf_efficientnet_b0": (timm.inverted(B0, EFFICIENT), ported.EFFICIENTNET),
    "tf_efficientnet_lite0": (timm.inverted(LITE, EFFICIENT), ported.EFFICIENTNET),
    **{f"vit_{size}_patch16_224": (timm.VIT,) for size in ("tiny", "small", "base")},
    **{f"deit_{size}_distilled_patch16_224": (timm.VIT,) for size in ("tiny", "small", "base")},
    "convnext_tiny": (timm.CONVNEXT,),
    "swin_tiny_patch4_window7_224": (timm.SWIN,),
    "regnety_160": (timm.REGNET, torchvision.REGNET),
}

# Those whose weights saw pixels of mean and deviation 0.5, by timm's configurations of its own first checkpoint of each; the
# others saw ImageNet's. Of tf_efficientnet_b0 and efficientnet_b0 further ones (ap_in1k, ra4_e3600_r224_in1k) are of 0.5 too.
CENTRED = frozenset(
    {"mobilenetv1_100", "tf_efficientnet_lite0", *(f"vit_{size}_patch16_224" for size in ("tiny", "small", "base"))}
)

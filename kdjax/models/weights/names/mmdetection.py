"""The names in checkpoints of mmdetection, 2.x and 3.x alike but for SSD's."""

from kdjax.models.weights.names.torchvision import RESNET

LEVELS = range(8)  # more than any pyramid has


def dense(classes: str, edges: str, centreness: str = "") -> tuple[tuple[str, str], ...]:
    """The table of a dense detector whose last layers have these names."""
    return (
        ("backbone", "backbone"),
        *(names for names in RESNET if names[0] != "classifier"),
        *((f"pyramid/laterals/{i}", f"neck.lateral_convs.{i}.conv") for i in LEVELS),
        *((f"pyramid/outputs/{i}", f"neck.fpn_convs.{i}.conv") for i in LEVELS),
        ("head/class_tower", "bbox_head.cls_convs"),
        ("head/edge_tower", "bbox_head.reg_convs"),
        ("conv", "conv"),
        ("norm", "gn"),
        ("head/classes", f"bbox_head.{classes}"),
        ("head/edges", f"bbox_head.{edges}"),
        *((("head/centreness", f"bbox_head.{centreness}"),) if centreness else ()),
        *((f"head/scales/{i}/scale", f"bbox_head.scales.{i}.scale") for i in LEVELS),
    )


GFL = dense("gfl_cls", "gfl_reg")
# By kind of head; the second of RetinaNet's is that of the edge distributions of localization distillation.
DENSE = {
    "gfl": (GFL,),
    "retinanet": (dense("retina_cls", "retina_reg"), dense("atss_cls", "atss_reg")),
    "atss": (dense("atss_cls", "atss_reg", "atss_centerness"),),
    "fcos": (dense("conv_cls", "conv_reg", "conv_centerness"),),
}

_VGG = (0, 2), (5, 7), (10, 12, 14), (17, 19, 21), (24, 26, 28)  # places of VGG-16's convolutions, by stage
_VGG_LAYERS = (
    *(
        (f"backbone/stages/{i}/{j}", f"backbone.features.{place}")
        for i, places in enumerate(_VGG)
        for j, place in enumerate(places)
    ),
    ("backbone/dilated", "backbone.features.31"),
    ("backbone/linear", "backbone.features.33"),
)
SSD_2 = (
    *_VGG_LAYERS,
    *((f"backbone/further/{i}", f"backbone.extra.{i}") for i in range(8)),
    ("backbone/normalised/scale", "backbone.l2_norm.weight"),
    ("head/classes", "bbox_head.cls_convs"),
    ("head/boxes", "bbox_head.reg_convs"),
)
SSD_3 = (
    *_VGG_LAYERS,
    *((f"backbone/further/{i}", f"neck.extra_layers.{i // 2}.{i % 2}.conv") for i in range(8)),
    ("backbone/normalised/scale", "neck.l2_norm.weight"),
    *((f"head/classes/{i}", f"bbox_head.cls_convs.{i}.0") for i in range(6)),
    *((f"head/boxes/{i}", f"bbox_head.reg_convs.{i}.0") for i in range(6)),
)
SSD = (SSD_2, SSD_3)

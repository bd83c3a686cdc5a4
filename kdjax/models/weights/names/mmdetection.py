"""The names in checkpoints of mmdetection, 2.x and 3.x alike."""

from kdjax.models.weights.names.torchvision import RESNET

LEVELS = range(8)  # more than any pyramid has

GFL = (
    ("backbone", "backbone"),
    *(names for names in RESNET if names[0] != "classifier"),
    *((f"pyramid/laterals/{i}", f"neck.lateral_convs.{i}.conv") for i in LEVELS),
    *((f"pyramid/outputs/{i}", f"neck.fpn_convs.{i}.conv") for i in LEVELS),
    ("head/class_tower", "bbox_head.cls_convs"),
    ("head/edge_tower", "bbox_head.reg_convs"),
    ("conv", "conv"),
    ("norm", "gn"),
    ("head/classes", "bbox_head.gfl_cls"),
    ("head/edges", "bbox_head.gfl_reg"),
    *((f"head/scales/{i}/scale", f"bbox_head.scales.{i}.scale") for i in LEVELS),
)

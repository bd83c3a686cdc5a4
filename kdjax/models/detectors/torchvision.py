"""RetinaNet and FCOS as torchvision has them, which differ from mmdetection's in their pyramid, their anchors and their towers.

Both are trained and evaluated like the others. Outputs are torchvision's for pictures whose sides are multiples of 128; of others
its anchors of the coarsest levels are closer than their stride, and these are not. Its RetinaNet trained on COCO runs BatchNorm
with epsilon 0, where this has 1e-5.
"""

from typing import ClassVar

import numpy as np

from kdjax.models.detectors.fcos import FCOS
from kdjax.models.detectors.retinanet import RetinaNet


class TorchvisionRetinaNet(RetinaNet):
    """`retinanet_resnet50_fpn`: further levels from the pyramid, with a ReLU before the last; anchors of whole pixels."""

    extra: ClassVar = "output_relu"

    def anchor_shapes(self):
        """Of sizes that are cut to whole pixels first; half of every side is rounded, to even where it is in the middle."""
        shapes = []
        for stride in self.strides:
            side = self.anchor_scale * stride
            sizes = [int(side * 2**octave) for octave in (0, 1 / 3, 2 / 3)]
            of = lambda size, ratio: (2 * np.round(size / ratio**0.5 / 2), 2 * np.round(size * ratio**0.5 / 2))
            shapes.append(tuple(tuple(map(float, of(size, ratio))) for ratio in (0.5, 1.0, 2.0) for size in sizes))
        return tuple(shapes)


class TorchvisionFCOS(FCOS):
    """`fcos_resnet50_fpn`: locations on the strides, biases before GroupNorm, no factor of the levels. torchvision takes the root
    of a detection's score, the product of class and centreness: the order is the same, thresholds are not."""

    offset: ClassVar = 0.0
    biased: ClassVar = True
    scaled: ClassVar = False

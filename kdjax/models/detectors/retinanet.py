"""RetinaNet: Lin, Goyal, Girshick, He, Dollár, ICCV 2017, arXiv 1708.02002, as in mmdetection."""

from typing import ClassVar

from kdjax.models.detectors.dense import DenseDetector
from kdjax.models.detectors.output import octave_shapes


class RetinaNet(DenseDetector):
    """Nine anchors a location; boxes are deltas of them, or with more than one bin distributions of the distances of the edges
    from the location. Its `anchor_scale` is the side of the smallest of an anchor's three sizes, 4 strides as published."""

    kind: ClassVar = "retinanet"
    extra: ClassVar = "input"
    scaled: ClassVar = False
    normed: ClassVar = False
    deviations: ClassVar = (1.0, 1.0, 1.0, 1.0)

    def anchor_shapes(self):
        return octave_shapes(self.strides, self.anchor_scale)

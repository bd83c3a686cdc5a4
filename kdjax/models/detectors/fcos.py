"""FCOS: Tian, Shen, Chen, He, ICCV 2019, arXiv 1904.01355, with centreness beside the boxes and distances in strides."""

from typing import ClassVar

import jax

from kdjax.models.detectors.dense import DenseDetector


class FCOS(DenseDetector):
    """No anchors: centreness beside the classes; boxes are distances, or with more than one bin distributions of the edges.

    Locations are half a stride inside. Distances have a ReLU, as in torchvision and in mmdetection where they are in strides; the
    first code's exponential is not offered. With distributions there is neither, as released with localization distillation.
    """

    kind: ClassVar = "fcos"
    extra: ClassVar = "output_relu"
    centred: ClassVar = True
    offset: ClassVar = 0.5

    def said(self, fields):
        if self.bins > 1:
            return fields
        return fields | {"regression": jax.nn.relu(fields["regression"])}

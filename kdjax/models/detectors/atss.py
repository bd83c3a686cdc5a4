"""The detector of Adaptive Training Sample Selection: Zhang et al., CVPR 2020, arXiv 1912.02424, as in mmdetection."""

from typing import ClassVar

from kdjax.models.detectors.dense import DenseDetector


class ATSS(DenseDetector):
    """Centreness beside the classes; boxes are deltas of a square anchor, or with more than one bin distributions of edges."""

    kind: ClassVar = "atss"
    centred: ClassVar = True
    deviations: ClassVar = (0.1, 0.1, 0.2, 0.2)

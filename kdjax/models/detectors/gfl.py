"""The detector of Generalized Focal Loss: Li et al., NeurIPS 2020, arXiv 2006.04388, as released in mmdetection."""

from kdjax.models.detectors.dense import DenseDetector


class GFL(DenseDetector):
    """One score for class and quality, and a distribution of every edge."""

"""Detectors: what they say, and the networks: backbone, feature pyramid, head."""

from kdjax.models.detectors.output import DetectorOutput, level_points, level_sizes

__all__ = ["DetectorOutput", "level_points", "level_sizes"]

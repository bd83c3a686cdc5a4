"""Object detection: pictures with boxes, dense detectors, and how good their detections are."""

from kdjax.tasks.detection.data import Detection
from kdjax.tasks.detection.networks import Detector
from kdjax.tasks.registry import register

__all__ = ["Detection", "Detector"]

register(Detection, Detector)

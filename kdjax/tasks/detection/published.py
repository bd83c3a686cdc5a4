"""Published detectors, as mmdetection has them, read for use."""

from collections.abc import Sequence
from pathlib import Path

from flax import nnx

from kdjax.models.detectors.beginning import sizes_in, weights_of
from kdjax.tasks.detection.networks import DENSE, SMALL, SSDS, Detector, maker
from kdjax.tasks.task import Published

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CANVAS = (800, 1344)
SSD_SIDE, SSD_STD = 300, 1 / 255  # whose backbone sees pixels of 0 to 255, less their mean


def is_published(network: str) -> bool:
    """Whether checkpoints of a network of this name are known."""
    return network.startswith("ssd300") if network in SSDS else network in DENSE and not network.endswith(SMALL)


def read_published(
    path: Path, network: str, *, width: int, image_size: int, mean: Sequence[float], std: Sequence[float]
) -> tuple[Published, Detector, tuple[int, int]]:
    """What a file holds, the network, and the canvas that it is for: 800 x 1344 if not said, 300 x 300 of SSD300.

    Raises:
      ValueError: the file is damaged or of another network; the message names the entries.
    """
    model = Detector(name=network, width=width)
    shapes = lambda *sizes: nnx.eval_shape(lambda: maker(model, *sizes)(nnx.Rngs(0)))
    num_classes, channels = sizes_in(path, shapes(1, 3))
    trees = weights_of(path, shapes(num_classes, channels))
    ssd = network in SSDS
    canvas = (image_size,) * 2 if image_size else (SSD_SIDE,) * 2 if ssd else CANVAS
    height, width = canvas
    inputs = {"image": f"uint8[{height}, {width}, {channels}]", "size": "int32[2]"}
    mean, std = mean or MEAN, std or ((SSD_STD,) * channels if ssd else STD)
    return Published(trees, num_classes, channels, inputs, ("labels", "boxes"), tuple(mean), tuple(std)), model, canvas

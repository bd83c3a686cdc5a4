"""Which part of a picture is shown: crops of images of any size, by torchvision's and timm's conventions, on the host.

A random crop is a function of (data seed, pass, example index) and of nothing else, as the views on the device are.
"""

import dataclasses
import math
from typing import Literal

import numpy as np

Box = tuple[float, float, float, float]  # left, top, right, bottom, in pixels of the picture as it is

# Streams of Philox under one data seed, far from those of the pipeline (passes) and of the splits (2**63 and on).
_CROPS = 2**62
_TRIES = 10


@dataclasses.dataclass(frozen=True)
class Crop:
    """How pictures of any size become squares."""

    train: Literal["inception", "resize", "center"] = "inception"
    """training crop: a random part of random shape (inception); a random square after the shorter side is resized (resize);
    or the one of evaluation, the same every time (center)"""
    scale: tuple[float, float] = (0.08, 1.0)
    """share of the picture's area in an inception crop, least and most; 0 to 1"""
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    """width by height of an inception crop, least and most; above 0"""
    share: float = 0.875
    """evaluation: the shorter side is resized to image_size / share pixels, the middle of it is shown; above 0, to 1"""
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"
    """how pictures are resized; with antialiasing in either case"""

    def __post_init__(self):
        for name, top in (("scale", 1.0), ("ratio", math.inf)):
            values = getattr(self, name)
            if len(values) != 2 or not 0 < values[0] <= values[1] <= top or math.isinf(values[1]):
                bound = "from above 0 to 1" if top == 1 else "above 0"
                raise ValueError(f"Crop.{name} is {values}; use two numbers {bound}, the smaller one first.")
        if not 0 < self.share <= 1:
            raise ValueError(f"Crop.share is {self.share}; use more than 0 and at most 1.")

    @property
    def varies(self) -> bool:
        """Whether an example's training crop differs from pass to pass."""
        return self.train != "center"

    def box(self, width: int, height: int, size: int, draws: np.ndarray | None = None) -> Box:
        """The part of a picture `[height, width]` that is resized to a square of `size` pixels.

        Args:
          width, height: of the picture, upright.
          size: pixels a side of what is shown.
          draws: `[40]` numbers in [0, 1) for a training crop, see `crop_draws`; None for the crop of evaluation.
        """
        if draws is None or self.train == "center":
            return self._square(width, height, size, None)
        if self.train == "resize":
            return self._square(width, height, size, draws)
        return self._inception(width, height, draws)

    def _square(self, width: int, height: int, size: int, draws: np.ndarray | None) -> Box:
        """A square of the picture whose shorter side is resized: `Resize(int(size / share))`, then `CenterCrop(size)` or
        `RandomCrop(size)`, without computing what is cut off."""
        shorter = max(size, int(size / self.share))
        across = shorter if width <= height else int(shorter * width / height)
        down = shorter if height <= width else int(shorter * height / width)
        if draws is None:
            left, top = (round((side - size) / 2.0) for side in (across, down))
        else:
            left, top = (int(draw * (side - size + 1)) for draw, side in zip(draws[:2], (across, down), strict=True))
        x, y = width / across, height / down
        return left * x, top * y, (left + size) * x, (top + size) * y

    def _inception(self, width: int, height: int, draws: np.ndarray) -> Box:
        """`RandomResizedCrop`: ten tries at an area and a shape that fit; else the middle, as near to the shape as can be."""
        area, (low, high) = width * height, self.scale
        logs = [math.log(value) for value in self.ratio]
        for first, second, third, fourth in draws.reshape(_TRIES, 4):
            part = area * (low + first * (high - low))
            ratio = math.exp(logs[0] + second * (logs[1] - logs[0]))
            across, down = round(math.sqrt(part * ratio)), round(math.sqrt(part / ratio))
            if 0 < across <= width and 0 < down <= height:
                left, top = int(third * (width - across + 1)), int(fourth * (height - down + 1))
                return left, top, left + across, top + down
        ratio = min(max(width / height, self.ratio[0]), self.ratio[1])
        across, down = min(width, round(height * ratio)), min(height, round(width / ratio))
        left, top = (width - across) // 2, (height - down) // 2
        return left, top, left + max(1, across), top + max(1, down)


def crop_draws(data_seed: int, epoch: int, index: int) -> np.ndarray:
    """`[40]` float64 numbers in [0, 1): the chances of one example in one pass, alike on every machine."""
    key, counter = np.array([data_seed, _CROPS + epoch], np.uint64), np.array([0, index, 0, 0], np.uint64)
    words = np.random.Philox(key=key, counter=counter).random_raw(4 * _TRIES)
    return (words >> np.uint64(11)) * 2.0**-53

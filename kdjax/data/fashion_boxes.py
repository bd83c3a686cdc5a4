"""Detection on a laptop: Fashion-MNIST items on cluttered canvases, drawn anew from a seed and with exact boxes.

    train = draw_many("train", 4000)
    train.images, train.boxes, train.labels, train.mask

Nothing is read but the subset that the package carries. Every picture is a function of (seed, split, number) alone.
"""

import functools
from typing import NamedTuple

import numpy as np

from kdjax.data.fashion_mnist import embedded

SIZE = 96
MOST = 5
CLASS_NAMES = ("tops", "trousers", "dress", "shoes", "bag")
MERGED = np.array([0, 1, 0, 2, 0, 3, 0, 3, 4, 3])  # classes of Fashion-MNIST, which are not told apart at 16 pixels
SPLITS = {"train": 0, "test": 1}
LEFT, TOP, RIGHT, BOTTOM = range(4)

INSIDE = 0.08  # a pixel of an item that is brighter belongs to it
KEPT = 0.5  # share of an object's pixels that later ones must leave
TRIES = 4  # places an object is tried at


class Pictures(NamedTuple):
    """N pictures.

    Attributes:
      images: `[N, 96, 96, 1]` uint8.
      boxes: `[N, 5, 4]` float32 edges (left, top, right, bottom) in pixels, between pixels: the last column of an object is
        `right - 1`. All of what is within the picture, also where a later object, a bar or fading hides it. Padding is 0.
      labels: `[N, 5]` int32 index of `CLASS_NAMES`, -1 for padding.
      mask: `[N, 5]` bool, which of these are objects.
      ambiguous: `[N, 5]` int32 edge (0 left, 1 top, 2 right, 3 bottom) towards which the object fades, -1 for none.
    """

    images: np.ndarray
    boxes: np.ndarray
    labels: np.ndarray
    mask: np.ndarray
    ambiguous: np.ndarray


class Drawn(NamedTuple):
    """One picture.

    Attributes:
      image: `[96, 96, 1]` uint8.
      masks: `[M, 96, 96]` bool, the pixels of each object, hidden ones too; in the order of drawing.
      labels: `[M]`.
      ambiguous: `[M]`, see `Pictures`.
    """

    image: np.ndarray
    masks: np.ndarray
    labels: np.ndarray
    ambiguous: np.ndarray


def draw_many(split: str, count: int, *, seed: int = 0, start: int = 0) -> Pictures:
    """Pictures `start` to `start + count - 1`.

    Args:
      split: "train" or "test", which share no item.
      count: N.
      seed: of another set of pictures.
      start: number of the first.

    Raises:
      ValueError: a split that there is not, or a negative number.
    """
    if count < 0:
        raise ValueError(f"count is {count}; ask for 0 or more pictures.")
    pictures = Pictures(
        np.zeros((count, SIZE, SIZE, 1), np.uint8),
        np.zeros((count, MOST, 4), np.float32),
        np.full((count, MOST), -1, np.int32),
        np.zeros((count, MOST), bool),
        np.full((count, MOST), -1, np.int32),
    )
    for n in range(count):
        drawn = draw(split, start + n, seed=seed)
        objects = len(drawn.labels)
        pictures.images[n] = drawn.image
        pictures.boxes[n, :objects] = [extent(mask) for mask in drawn.masks]
        pictures.labels[n, :objects] = drawn.labels
        pictures.mask[n, :objects] = True
        pictures.ambiguous[n, :objects] = drawn.ambiguous
    return pictures


def draw(split: str, number: int, *, seed: int = 0) -> Drawn:
    """One picture, which is the same whatever else is drawn.

    A background of 6 x 6 grey values, smoothed; 3 to 8 scraps of items that are no objects; 1 to 5 objects, of any class
    alike, 16 to 60 pixels long (uniform in the logarithm), up to a fifth of them outside, later ones on top, of which one that
    fits nowhere without hiding half of another is left out; 0 to 2 bars over all; noise. 35 of 100 objects fade towards one
    edge, so that where it is can be guessed but not seen.

    Raises:
      ValueError: a split that there is not, or a negative number.
    """
    if split not in SPLITS:
        raise ValueError(f"There is no split {split!r} of these pictures; there are {' and '.join(SPLITS)}.")
    if number < 0 or seed < 0:
        raise ValueError(f"The number of the picture is {number}, the seed {seed}; both count from 0.")
    rng = np.random.default_rng([seed, SPLITS[split], number])
    items, by_class = _items(split)
    canvas = _resized(rng.uniform(0, 0.45, (6, 6)), SIZE, SIZE)
    for _ in range(rng.integers(3, 9)):
        _scrap(canvas, items[rng.integers(len(items))], rng)

    masks, labels, ambiguous, layers = [], [], [], _Layers()
    for _ in range(rng.integers(1, MOST + 1)):
        label = int(rng.integers(len(CLASS_NAMES)))
        item = items[by_class[label][rng.integers(len(by_class[label]))]]
        faded = int(rng.integers(4)) if rng.random() < 0.35 else -1
        if (mask := _object(canvas, layers, item, faded, rng)) is not None:
            masks.append(mask)
            labels.append(label)
            ambiguous.append(faded)
    for _ in range(rng.integers(0, 3)):
        place, shade = rng.integers(0, SIZE - 1), rng.uniform(0, 1)
        bar = np.s_[place : place + 2] if rng.random() < 0.5 else np.s_[:, place : place + 2]
        canvas[bar] = shade
    canvas += 0.04 * rng.standard_normal(canvas.shape, np.float32)
    image = np.rint(np.clip(canvas, 0, 1) * 255).astype(np.uint8)
    masks = np.reshape(masks, (-1, SIZE, SIZE)).astype(bool)
    return Drawn(image[..., None], masks, np.array(labels, np.int32), np.array(ambiguous, np.int32))


def extent(mask: np.ndarray) -> tuple[int, int, int, int]:
    """The box around a mask `[H, W]` that is somewhere True, its edges between pixels."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return columns[0], rows[0], columns[-1] + 1, rows[-1] + 1


class _Layers:
    """Which object is seen where, and how much of each: `top` is -1 or its number."""

    def __init__(self):
        self.top = np.full((SIZE, SIZE), -1, np.int8)
        self.whole, self.seen = np.zeros((2, 0), int)

    def add(self, there, inside: np.ndarray) -> bool:
        """Puts pixels on top of all others, unless there are none or they would hide too much of another object."""
        under = self.top[there][inside]
        seen = self.seen - np.bincount(under + 1, minlength=len(self.seen) + 1)[1:]
        if not len(under) or np.any(seen < KEPT * self.whole):
            return False
        self.top[there][inside] = len(seen)
        self.whole, self.seen = np.append(self.whole, len(under)), np.append(seen, len(under))
        return True


def _object(canvas, layers, item, faded, rng) -> np.ndarray | None:
    """Draws an item and gives its pixels, or draws nothing where it would hide too much of another."""
    height, width = item.shape
    longest = np.exp(rng.uniform(np.log(16), np.log(60)))
    stretch = np.exp(rng.uniform(-0.2, 0.2))
    height, width = height * stretch, width / stretch
    scale = longest / max(height, width)
    height, width = max(3, round(height * scale)), max(3, round(width * scale))
    shown = _resized(item, height, width)
    inside = _resized((item > INSIDE).astype(np.float64), height, width) > 0.5
    values = rng.uniform(0, 0.2) + rng.uniform(0.6, 1) * shown
    opacity = inside if faded < 0 else inside * _fading(extent(inside), faded, height, width)
    for _ in range(TRIES):
        y, x = (int(np.floor(rng.uniform(-0.2 * side, SIZE - 0.8 * side))) for side in (height, width))
        there = np.s_[max(y, 0) : y + height, max(x, 0) : x + width]
        own = np.s_[max(-y, 0) : SIZE - y, max(-x, 0) : SIZE - x]
        if layers.add(there, inside[own]):
            mask = np.zeros((SIZE, SIZE), bool)
            mask[there] = inside[own]
            canvas[there] += opacity[own] * (values[own] - canvas[there])
            return mask
    return None


def _scrap(canvas, item, rng) -> None:
    """The upper half of an item, small."""
    side = int(rng.integers(4, 12))
    half = _resized(item[: (len(item) + 1) // 2], side, side)
    y, x = rng.integers(0, SIZE - side, 2)
    there = np.s_[y : y + side, x : x + side]
    canvas[there] = np.where(half > INSIDE, rng.uniform(0.4, 1) * half, canvas[there])


def _fading(box, edge: int, height: int, width: int) -> np.ndarray:
    """`[height, width]`: from 0.12 at one edge of a box to 1 over 35 % of its extent."""
    horizontal, far = edge in (LEFT, RIGHT), edge in (RIGHT, BOTTOM)
    low, high = (box[0], box[2]) if horizontal else (box[1], box[3])
    middle = np.arange(width if horizontal else height) + 0.5
    depth = (high - middle if far else middle - low) / (0.35 * (high - low))
    opacity = np.clip(0.12 + 0.88 * depth, 0.12, 1)
    return opacity[None] if horizontal else opacity[:, None]


def _resized(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Bilinear, without sums whose order a machine may choose."""
    rows, down = _between(image.shape[0], height)
    image = image[rows] + down[:, None] * (image[rows + 1] - image[rows])
    columns, right = _between(image.shape[1], width)
    return image[:, columns] + right * (image[:, columns + 1] - image[:, columns])


@functools.lru_cache(maxsize=4096)
def _between(old: int, new: int) -> tuple[np.ndarray, np.ndarray]:
    """For every new pixel the old one before it, and how far it is towards the next."""
    at = np.clip((np.arange(new) + 0.5) * (old / new) - 0.5, 0, old - 1)
    before = np.minimum(at.astype(int), max(old - 2, 0))
    return before, at - before


@functools.cache
def _items(split: str) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """All items of a split, cut tightly, from 0 to 1, and which of them are of each class. Tiny ones are left out."""
    images, labels, _ = embedded(split)
    inside = images > INSIDE * 255
    rows, columns = inside.any(axis=2), inside.any(axis=1)
    items, of = [], []
    for image, row, column, label in zip(images, rows, columns, MERGED[labels], strict=True):
        row, column = np.flatnonzero(row), np.flatnonzero(column)
        if len(row) > 3 and len(column) > 3:
            items.append(image[row[0] : row[-1] + 1, column[0] : column[-1] + 1] / 255)
            of.append(label)
    return items, [np.flatnonzero(np.array(of) == label) for label in range(len(CLASS_NAMES))]

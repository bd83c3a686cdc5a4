"""Augmentation policies: AutoAugment, RandAugment, TrivialAugment; colour jitter; random erasing and Cutout.

A policy is a table of what may be done to an image (an operation of `operations.py` with its strength), made on the host, and
draws of rows of it on the device: whole numbers throughout (but for the hue of `Jitter`), so that an example's view is the same
bit for bit in any batch and on any number of devices.
"""

import dataclasses
import math
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import kdjax.tasks.classification.operations as operations
from kdjax.tasks.classification.operations import IDENTITY, LIGHT, ONE
from kdjax.types import Array

SIGNED = ("ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate", "Brightness", "Color", "Contrast", "Sharpness")
# Of RandAugment and TrivialAugment; AutoAugment has Invert too, and no Identity.
USUAL = ("Identity", *SIGNED, "Posterize", "Solarize", "AutoContrast", "Equalize")
TRANSLATION = 150 / 331  # of the image's side, at most, in AutoAugment and RandAugment

# Sub-policies: (operation, probability in tenths, magnitude 0..9) twice. AutoAugment, arXiv 1805.09501, tables 7 and 9.
CIFAR10 = """
Invert 1 0, Contrast 2 6; Rotate 7 2, TranslateX 3 9; Sharpness 8 1, Sharpness 9 3; ShearY 5 8, TranslateY 7 9;
AutoContrast 5 0, Equalize 9 0; ShearY 2 7, Posterize 3 7; Color 4 3, Brightness 6 7; Sharpness 3 9, Brightness 7 9;
Equalize 6 0, Equalize 5 0; Contrast 6 7, Sharpness 6 5; Color 7 7, TranslateX 5 8; Equalize 3 0, AutoContrast 4 0;
TranslateY 4 3, Sharpness 2 6; Brightness 9 6, Color 2 8; Solarize 5 2, Invert 0 0; Equalize 2 0, AutoContrast 6 0;
Equalize 2 0, Equalize 6 0; Color 9 9, Equalize 6 0; AutoContrast 8 0, Solarize 2 8; Brightness 1 3, Color 7 0;
Solarize 4 5, AutoContrast 9 0; TranslateY 9 9, TranslateY 7 9; AutoContrast 9 0, Solarize 8 3; Equalize 8 0, Invert 1 0;
TranslateY 7 9, AutoContrast 9 0"""
IMAGENET = """
Posterize 4 8, Rotate 6 9; Solarize 6 5, AutoContrast 6 0; Equalize 8 0, Equalize 6 0; Posterize 6 7, Posterize 6 6;
Equalize 4 0, Solarize 2 4; Equalize 4 0, Rotate 8 8; Solarize 6 3, Equalize 6 0; Posterize 8 5, Equalize 10 0;
Rotate 2 3, Solarize 6 8; Equalize 6 0, Posterize 4 6; Rotate 8 8, Color 4 0; Rotate 4 9, Equalize 6 0;
Equalize 0 0, Equalize 8 0; Invert 6 0, Equalize 10 0; Color 6 4, Contrast 10 8; Rotate 8 8, Color 10 2;
Color 8 8, Solarize 8 7; Sharpness 4 7, Invert 6 0; ShearX 6 5, Equalize 10 0; Color 4 0, Equalize 6 0;
Equalize 4 0, Solarize 2 4; Solarize 6 5, AutoContrast 6 0; Invert 6 0, Equalize 10 0; Color 6 4, Contrast 10 8;
Equalize 8 0, Equalize 6 0"""


class Table(NamedTuple):
    """What may be done, a row each: `kind` `[R]` place in `LIGHT`, `matrix` `[R, 6]`, `amount` `[R]`; int32."""

    kind: np.ndarray
    matrix: np.ndarray
    amount: np.ndarray


@dataclasses.dataclass(frozen=True)
class Policy:
    """Operations with names and magnitudes of the papers, on uint8 images; what comes in from outside is black.

    AutoAugment (Cubuk et al., CVPR 2019, arXiv 1805.09501): one of 25 pairs of operations, each done with its probability.
    RandAugment (Cubuk et al., NeurIPS 2020, arXiv 1909.13719): `operations` of 14, of equal magnitude. TrivialAugment (Müller
    and Hutter, ICCV 2021, arXiv 2103.10158, "wide"): one of 14, of random magnitude. Ranges are those of torchvision, where
    the papers leave them open: brightness, colour, contrast and sharpness by a factor on either side of 1.
    """

    name: Literal["none", "autoaugment_cifar10", "autoaugment_imagenet", "randaugment", "trivialaugment"] = "none"
    """which policy; after crop and flip"""
    operations: int = 2
    """of randaugment: how many, one after the other; 1 or more"""
    magnitude: int = 9
    """of randaugment: their strength, 0 to 30"""

    def __post_init__(self):
        if self.operations < 1:
            raise ValueError(f"Policy.operations is {self.operations}; use 1 or more.")
        if not 0 <= self.magnitude <= 30:
            raise ValueError(f"Policy.magnitude is {self.magnitude}; use 0 to 30.")

    @property
    def slots(self) -> int:
        """Operations one after the other."""
        return {"none": 0, "randaugment": self.operations, "trivialaugment": 1}.get(self.name, 2)

    def table(self, height: int, width: int) -> Table:
        """All that may be done to an image of this size; row 0 changes nothing."""
        rows = {row(*each, height, width): None for each in (("Identity", 0, 1), *self._choices())}
        kinds, matrices, amounts = zip(*rows, strict=True)
        return Table(np.int32(kinds), np.int32(matrices), np.int32(amounts))

    def draws(self, key: Array, height: int, width: int) -> Array:
        """Rows of the table, `[slots]` int32, for one example."""
        words = jax.random.bits(key, (1 + 2 * self.slots,), jnp.uint32)
        place = {values: i for i, values in enumerate(zip(*map(_tuples, self.table(height, width)), strict=True))}
        found = np.int32([place[row(*each, height, width)] for each in self._choices()])
        if not self.name.startswith("autoaugment"):
            return jnp.asarray(found)[(words[1 : 1 + self.slots] % np.uint32(len(found))).astype(jnp.int32)]
        found = np.reshape(found, (-1, 2, 2))  # sub-policy, operation, sign
        tenths = np.int32([[p for _, p, _ in pair] for pair in sub_policies(self.name)])
        which, signs = words[0] % np.uint32(len(found)), (words[1:3] & 1).astype(jnp.int32)
        done = words[3:5] % np.uint32(10) < jnp.asarray(tenths)[which].astype(jnp.uint32)
        return jnp.where(done, jnp.asarray(found)[which, jnp.arange(2), signs], 0)

    def show(self, image: Array, draws: Array) -> Array:
        """One image `[H, W, C]` int32 in 0..255, operated on by the rows of the table, one after the other."""
        kind, matrix, amount = map(jnp.asarray, self.table(*image.shape[:2]))
        for i in range(self.slots):
            image = operations.operated(image, kind[draws[i]], matrix[draws[i]], amount[draws[i]])
        return image

    def _choices(self) -> list[tuple[str, float, int]]:
        """Operation, magnitude as a share of the largest, sign: what a draw chooses from, evenly."""
        if self.name == "none":
            return []
        if self.name == "randaugment":
            return [(name, self.magnitude / 30, sign) for name in USUAL for sign in (1, -1)]
        if self.name == "trivialaugment":
            return [(f"wide {name}", m / 30, sign) for name in USUAL for m in range(31) for sign in (1, -1)]
        return [(name, m / 9, sign) for pair in sub_policies(self.name) for name, _, m in pair for sign in (1, -1)]


def sub_policies(name: str) -> list[list[tuple[str, int, int]]]:
    """The pairs of AutoAugment: operation, probability in tenths, magnitude."""
    pairs = (CIFAR10 if name.endswith("cifar10") else IMAGENET).replace("\n", " ").split(";")
    split = [[one.split() for one in pair.split(",")] for pair in pairs]
    return [[(name, int(p), int(m)) for name, p, m in pair] for pair in split]


def row(name: str, share: float, sign: int, height: int, width: int) -> tuple[int, tuple[int, ...], int]:
    """A row of the table: an operation of the policies at a share of its largest magnitude."""
    wide, name = name.startswith("wide "), name.removeprefix("wide ")
    signed = sign * share
    matrix = IDENTITY
    if name.startswith("Shear"):
        slant = signed * (0.99 if wide else 0.3)
        matrix = operations.sheared(slant, 0) if name == "ShearX" else operations.sheared(0, slant)
    elif name.startswith("Translate"):
        side = width if name == "TranslateX" else height
        pixels = int(signed * (32 if wide else TRANSLATION * side))
        matrix = operations.translated(pixels, 0) if name == "TranslateX" else operations.translated(0, pixels)
    elif name == "Rotate":
        matrix = operations.rotated(signed * (135 if wide else 30), height, width)
    amount = {
        **dict.fromkeys(
            ("Brightness", "Color", "Contrast", "Sharpness"), round(ONE * (1 + signed * (0.99 if wide else 0.9)))
        ),
        "Posterize": 8 - round(share * (6 if wide else 4)),
        "Solarize": math.ceil(255 * (1 - share)),
    }.get(name, 0)
    return list(LIGHT).index(name if name in LIGHT else "Identity"), matrix, amount


def _tuples(values: np.ndarray) -> list:
    return [tuple(each) if isinstance(each, list) else each for each in values.tolist()]


@dataclasses.dataclass(frozen=True)
class Jitter:
    """Brightness, contrast, saturation and hue, each by a random amount and in random order; 0 switches one off."""

    brightness: float = 0.0
    """pixels multiplied by 1 +- this at most; 0 to 1"""
    contrast: float = 0.0
    """distances from the mean grey times 1 +- this at most; 0 to 1"""
    saturation: float = 0.0
    """distances from a pixel's grey times 1 +- this at most; 0 to 1"""
    hue: float = 0.0
    """hues turned by this share of a circle at most; 0 to 0.5"""

    def __post_init__(self):
        for field in dataclasses.fields(self):
            value, most = getattr(self, field.name), 0.5 if field.name == "hue" else 1
            if not 0 <= value <= most:
                raise ValueError(f"Jitter.{field.name} is {value}; use 0 to {most}.")

    @property
    def off(self) -> bool:
        return self == Jitter()

    def show(self, image: Array, key: Array) -> Array:
        """One image `[H, W, C]` int32 in 0..255, changed."""
        words = jax.random.bits(key, (8,), jnp.uint32)
        order = jnp.argsort(words[:4])
        place = (words[4:] >> 18).astype(jnp.int32) - 2**13  # -2**13 .. 2**13 - 1
        factor = lambda i, size: ONE + (place[i] * round(size * ONE) >> 13)
        turn = place[3].astype(jnp.float32) * np.float32(self.hue / 2**13)
        changes = [
            lambda x: operations.brightness(x, factor(0, self.brightness)) if self.brightness else x,
            lambda x: operations.contrast(x, factor(1, self.contrast)) if self.contrast else x,
            lambda x: operations.colour(x, factor(2, self.saturation)) if self.saturation else x,
            lambda x: operations.hue(x, turn) if self.hue else x,
        ]
        for i in range(4):
            image = jax.lax.switch(order[i], changes, image)
        return image


@dataclasses.dataclass(frozen=True)
class Erase:
    """A rectangle of an image set to the mean: random erasing (Zhong et al., AAAI 2020, arXiv 1708.04896), or Cutout
    (DeVries and Taylor, 2017, arXiv 1708.04552), a square about a random pixel that may stick out."""

    probability: float = 0.0
    """of a rectangle inside the image; 0 to 1"""
    area: tuple[float, float] = (0.02, 0.33)
    """its share of the image, least and most; to 1"""
    ratio: tuple[float, float] = (0.3, 3.3)
    """its height by its width, least and most; above 0"""
    cutout: int = 0
    """pixels a side of Cutout's square; 0 for none"""

    def __post_init__(self):
        if not 0 <= self.probability <= 1:
            raise ValueError(f"Erase.probability is {self.probability}; use 0 to 1.")
        for name, most in (("area", 1.0), ("ratio", math.inf)):
            low, high = getattr(self, name)
            if not 0 < low <= high <= most or math.isinf(high):
                raise ValueError(f"Erase.{name} is {(low, high)}; use two numbers above 0, the smaller one first"
                                 f"{', at most 1' if name == 'area' else ''}.")  # fmt: skip
        if self.cutout < 0:
            raise ValueError(f"Erase.cutout is {self.cutout}; use 0 or more pixels.")

    @property
    def off(self) -> bool:
        return not (self.probability or self.cutout)

    def mask(self, height: int, width: int, key: Array) -> Array:
        """`[H, W]` bool: what is erased of one image."""
        words = jax.random.bits(key, (6,), jnp.uint32)
        pick = lambda i, count: (words[i] % count).astype(jnp.int32)
        erased = jnp.zeros((height, width), bool)
        if self.probability:
            sizes = jnp.asarray(self.sizes(height, width))
            tall, wide = sizes[pick(0, np.uint32(len(sizes)))]
            top, left = pick(1, (height - tall + 1).astype(jnp.uint32)), pick(2, (width - wide + 1).astype(jnp.uint32))
            done = words[3] < np.uint32(min(round(self.probability * 2**32), 2**32 - 1))
            erased |= done & _rectangle(height, width, top, left, tall, wide)
        if self.cutout:
            top, left = (pick(i, np.uint32(side)) - self.cutout // 2 for i, side in ((4, height), (5, width)))
            erased |= _rectangle(height, width, top, left, self.cutout, self.cutout)
        return erased

    def sizes(self, height: int, width: int) -> np.ndarray:
        """4,096 sizes of rectangles, `[4096, 2]`, from which one is drawn: areas evenly, ratios evenly in their logarithm, and
        only what is smaller than the image in both directions (a single pixel where nothing is)."""
        rng = np.random.default_rng(0)
        area = height * width * rng.uniform(*self.area, 1 << 16)
        ratio = np.exp(rng.uniform(*np.log(self.ratio), 1 << 16))
        sizes = np.stack([np.sqrt(area * ratio), np.sqrt(area / ratio)], axis=1).round().astype(np.int32)
        fits = np.all((sizes >= 1) & (sizes < (height, width)), axis=1)
        return np.resize(sizes[fits] if fits.any() else np.ones((1, 2), np.int32), (4096, 2))


def _rectangle(height: int, width: int, top: Array, left: Array, tall: Array, wide: Array) -> Array:
    rows, columns = jnp.arange(height, dtype=jnp.int32)[:, None], jnp.arange(width, dtype=jnp.int32)[None, :]
    return (rows >= top) & (rows < top + tall) & (columns >= left) & (columns < left + wide)

"""Operations on one image that augmentation policies are made of, on the device, in whole numbers.

An image is `[H, W, C]` int32 in 0..255. Everything but `hue` is computed in integers, factors as multiples of 2**-16, so that the
result is the same bit for bit in any batch, on any device. What each gives is what Pillow gives, or differs from it by one
level where Pillow's floats round otherwise; that is tested.
"""

import math
from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
from jax import lax

from kdjax.types import Array

ONE = 1 << 16  # the factor 1
IDENTITY = (ONE, 0, 0, 0, ONE, 0)


def moved(image: Array, matrix: Array) -> Array:
    """Each pixel taken from where `matrix` says, the nearest one; black outside.

    Args:
      image: `[H, W, C]`.
      matrix: `[6]` int32, `(a, b, c, d, e, f)` in units of 2**-16: column `a x + b y + c` and row `d x + e y + f`, rounded
        down, of the place that `(x, y)` shows. See `affine`.
    """
    height, width, _ = image.shape
    x, y = jnp.arange(width, dtype=jnp.int32)[None, :], jnp.arange(height, dtype=jnp.int32)[:, None]
    a, b, c, d, e, f = matrix
    column, row = (a * x + b * y + c) >> 16, (d * x + e * y + f) >> 16
    inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
    taken = image.at[jnp.clip(row, 0, height - 1), jnp.clip(column, 0, width - 1)].get(mode="promise_in_bounds")
    return jnp.where(inside[..., None], taken, 0)


def affine(a: float, b: float, c: float, d: float, e: float, f: float) -> tuple[int, ...]:
    """The matrix of `moved` for a map between places in pixels, whose centres are at halves."""
    whole = (a, b, c + (a + b) / 2, d, e, f + (d + e) / 2)
    return tuple(math.floor(value * ONE + 0.5) for value in whole)


def sheared(columns: float, rows: float) -> tuple[int, ...]:
    """Columns slanted by so many pixels a row, about the upper left corner; rows likewise."""
    return affine(1, columns, 0, rows, 1, 0)


def translated(columns: int, rows: int) -> tuple[int, ...]:
    """Moved by whole pixels, to the right and down."""
    return affine(1, 0, -columns, 0, 1, -rows)


def rotated(degrees: float, height: int, width: int) -> tuple[int, ...]:
    """Turned about the centre, anticlockwise."""
    angle, x, y = -math.radians(degrees), width / 2, height / 2
    cos, sin = math.cos(angle), math.sin(angle)
    return affine(cos, sin, x - cos * x - sin * y, -sin, cos, y + sin * x - cos * y)


def blended(first: Array, second: Array, factor: Array) -> Array:
    """`first + factor (second - first)`, rounded down, within 0..255; the factor is in units of 2**-16, `-8 ONE` to `8 ONE`.

    Half of what the rounding of the factor can amount to is added, so that what should be a whole number is one.
    """
    return jnp.clip((first * (ONE - factor) + second * factor + 128) >> 16, 0, 255)


def grey(image: Array) -> Array:
    """Luma of ITU-R 601, `[H, W, 1]`; an image of another number of channels than 3 gives its first."""
    if image.shape[-1] != 3:
        return image[..., :1]
    return (image @ np.array([[19595], [38470], [7471]], np.int32) + ONE // 2) >> 16


def brightness(image: Array, factor: Array) -> Array:
    """Multiplied by the factor."""
    return blended(jnp.zeros_like(image), image, factor)


def colour(image: Array, factor: Array) -> Array:
    """Distances from grey multiplied by the factor."""
    return blended(grey(image), image, factor)


def contrast(image: Array, factor: Array) -> Array:
    """Distances from the mean of its luma multiplied by the factor."""
    luma = grey(image)
    mean = (2 * jnp.sum(luma) + luma.size) // (2 * luma.size)
    return blended(mean, image, factor)


def sharpness(image: Array, factor: Array) -> Array:
    """Distances from a smoothed image multiplied by the factor; the outermost pixels stay."""
    if min(image.shape[:2]) < 3:
        return image
    total = sum(lax.slice_in_dim(image, i, image.shape[0] - 2 + i, axis=0) for i in range(3))
    total = sum(lax.slice_in_dim(total, i, image.shape[1] - 2 + i, axis=1) for i in range(3))
    middle = image[1:-1, 1:-1]
    smooth = (2 * (total + 4 * middle) + 13) // 26  # weights of 1, 5 in the centre
    return image.at[1:-1, 1:-1].set(blended(smooth, middle, factor))


def posterize(image: Array, bits: Array) -> Array:
    """The highest bits of each value."""
    return image & (-1 << (8 - bits))


def solarize(image: Array, threshold: Array) -> Array:
    """Values from the threshold on inverted."""
    return jnp.where(image < threshold, image, 255 - image)


def invert(image: Array, _: Array) -> Array:
    """255 minus each value."""
    return 255 - image


def autocontrast(image: Array, _: Array) -> Array:
    """The values of each channel stretched over 0..255; one of a single value stays."""
    low, high = (extreme(image, axis=(0, 1), keepdims=True) for extreme in (jnp.min, jnp.max))
    return jnp.where(high > low, (image - low) * 255 // jnp.maximum(high - low, 1), image)


def equalize(image: Array, _: Array) -> Array:
    """The values of each channel spread so that each is about as frequent; one of few values may stay."""
    values = jnp.arange(256, dtype=jnp.int32)
    counts = jnp.sum(image[..., None] == values.reshape(1, 1, 1, -1), axis=(0, 1), dtype=jnp.int32)  # [C, 256]
    highest = jnp.max(image, axis=(0, 1))
    step = (image.shape[0] * image.shape[1] - jnp.take_along_axis(counts, highest[:, None], axis=1)) // 255
    below = jnp.cumsum(counts, axis=1) - counts
    table = jnp.where(step > 0, jnp.clip((step // 2 + below) // jnp.maximum(step, 1), 0, 255), values[None])
    channels = jnp.arange(image.shape[-1], dtype=jnp.int32)
    return table.at[channels[None, None], image].get(mode="promise_in_bounds")


def unchanged(image: Array, _: Array) -> Array:
    """The image as it is; what moves it is its matrix."""
    return image


LIGHT: dict[str, Callable[[Array, Array], Array]] = {
    "Identity": unchanged, "Brightness": brightness, "Color": colour, "Contrast": contrast, "Sharpness": sharpness,
    "Posterize": posterize, "Solarize": solarize, "Invert": invert, "AutoContrast": autocontrast, "Equalize": equalize,
}  # fmt: skip


def operated(image: Array, kind: Array, matrix: Array, amount: Array) -> Array:
    """`moved`, then the operation of that place in `LIGHT`."""
    return lax.switch(kind, list(LIGHT.values()), moved(image, matrix), amount)


def hue(image: Array, turn: Array) -> Array:
    """Hues turned by a share of the colour circle, in float32 and rounded; an image that is not of 3 channels stays."""
    if image.shape[-1] != 3:
        return image
    value, low = jnp.max(image, axis=-1), jnp.min(image, axis=-1)
    chroma = value - low
    red, green, blue = (image[..., i] for i in range(3))
    safe = jnp.maximum(chroma, 1).astype(jnp.float32)
    sixth = jnp.where(
        value == red,
        (green - blue) / safe,
        jnp.where(value == green, 2 + (blue - red) / safe, 4 + (red - green) / safe),
    )
    place = sixth + 6 * turn

    def channel(offset):
        k = jnp.mod(offset + place, 6)
        return value - chroma * jnp.clip(jnp.minimum(k, 4 - k), 0, 1)

    rounded = jnp.round(jnp.stack([channel(n) for n in (5, 3, 1)], axis=-1)).astype(jnp.int32)
    return jnp.where((chroma > 0)[..., None], rounded, image)

"""Images changed so that their class stays: what a network may ignore, and domains it was not trained on.

Each takes images `[N, H, W, C]` uint8 and returns as many of that kind; what comes into an image from outside is black. Images
of another type are a TypeError: floats from 0 to 1 would be all but black. Grey images have no hue, so that light (brightness,
contrast) stands for colour.
"""

import jax
import jax.numpy as jnp

from kdjax.types import Array


def shifted(images: Array, rows: int, columns: int) -> Array:
    """Moved down and to the right by whole pixels; negative numbers move up and left.

    Raises:
      ValueError: nothing of the image would be left.
    """
    _check(images)
    height, width = images.shape[1:3]
    if abs(rows) >= height or abs(columns) >= width:
        raise ValueError(
            f"A shift of ({rows}, {columns}) leaves nothing of {height}x{width} pixels; use a smaller one."
        )
    y, x = jnp.arange(height) - rows, jnp.arange(width) - columns
    inside = ((y >= 0) & (y < height))[:, None] & ((x >= 0) & (x < width))[None]
    moved = images[:, jnp.clip(y, 0, height - 1)][:, :, jnp.clip(x, 0, width - 1)]
    return jnp.where(inside[None, :, :, None], moved, jnp.uint8(0))


def zoomed(images: Array, size: int) -> Array:
    """The middle `size` by `size` pixels, at the size of the whole, bilinear.

    Raises:
      ValueError: no such part of the images.
    """
    _check(images)
    height, width = images.shape[1:3]
    if not 0 < size <= min(height, width):
        raise ValueError(f"There are no {size}x{size} pixels within {height}x{width}.")
    top, left = (height - size) // 2, (width - size) // 2
    part = images[:, top : top + size, left : left + size].astype(jnp.float32)
    return _levels(jax.image.resize(part, images.shape, "bilinear"))


def brightened(images: Array, factor: float) -> Array:
    """Every value times the factor."""
    _check(images)
    return _levels(images.astype(jnp.float32) * factor)


def contrasted(images: Array, factor: float) -> Array:
    """Distances from each image's mean times the factor."""
    _check(images)
    values = images.astype(jnp.float32)
    mean = jnp.mean(values, axis=(1, 2, 3), keepdims=True)
    return _levels(mean + factor * (values - mean))


def inverted(images: Array) -> Array:
    """255 less each value."""
    _check(images)
    return 255 - images


def rotated(images: Array, quarters: int = 1) -> Array:
    """Turned anticlockwise by quarters of a circle; square images keep their shape."""
    _check(images)
    return jnp.rot90(images, quarters, axes=(1, 2))


def textured(images: Array, key: Array, grain: int = 4) -> Array:
    """The distance of each value from that of a random smooth texture, another for every image, as MNIST-M is made of MNIST and
    photographs (Ganin et al., JMLR 2016).

    Args:
      images: `[N, H, W, C]`.
      key: draws the textures.
      grain: how many pixels lie between two values that are drawn; those between are interpolated.
    """
    _check(images)
    count, height, width, channels = images.shape
    coarse = jax.random.uniform(key, (count, -(-height // grain), -(-width // grain), channels), maxval=255.0)
    return _levels(jnp.abs(images.astype(jnp.float32) - jax.image.resize(coarse, images.shape, "bilinear")))


def edges(images: Array) -> Array:
    """The larger of the differences to the pixel on the right and to the one below."""
    _check(images)
    values = images.astype(jnp.float32)
    right = jnp.abs(jnp.diff(values, axis=2, append=values[:, :, -1:]))
    below = jnp.abs(jnp.diff(values, axis=1, append=values[:, -1:]))
    return _levels(jnp.maximum(right, below))


def silhouette(images: Array, threshold: int = 25) -> Array:
    """White where a value is above the threshold, else black."""
    _check(images)
    return jnp.where(images > threshold, jnp.uint8(255), jnp.uint8(0))


def _check(images: Array) -> None:
    if images.dtype != jnp.uint8:
        raise TypeError(f"images are {images.dtype}; give uint8 levels, such as 255 times floats of 0 to 1, rounded.")


def _levels(values: Array) -> Array:
    return jnp.clip(jnp.round(values), 0, 255).astype(jnp.uint8)

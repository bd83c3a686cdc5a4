"""Heavy augmentation for objectives that compare a plain view of each example with a distorted one.

As in `kdjax.tasks.classification.views`: a function of (key, epoch, example index), written for one example and
mapped over the batch. But another batch size compiles to other
roundings; nothing jumps at a threshold, so they stay in the last digits.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from kdjax.tasks.classification.policies import Policy
from kdjax.types import Array

WHITE = 255.0


@dataclasses.dataclass(frozen=True)
class Strong:
    """Random geometry, light and erasure, in this order, each by a random amount every time; 0 switches any of them off.

    What comes into an image from outside is black, as it is beside a crop.

    The MLLD and UDA-KD papers use AutoAugment instead, pairs of operations that were searched for on CIFAR-10:
    `policy.name=autoaugment_cifar10`. What is here by default asks less of the device.
    """

    rotation: float = 15.0
    """degrees about the centre at most, either way; 0..180"""
    shear: float = 0.15
    """slant, at most, of columns sideways and of rows up or down, as a fraction of their length; 0 to below 1"""
    scale: float = 0.1
    """enlarged or shrunk by this much at most; 0 to below 1"""
    contrast: float = 0.3
    """distance from the image's mean multiplied by 1 +- this at most; 0..1"""
    brightness: float = 0.3
    """pixels multiplied by 1 +- this at most; 0..1"""
    solarize: float = 0.1
    """probability of inverting the pixels of the brighter half of the range; 0..1"""
    cutout: float = 0.3
    """side of a black square about a random pixel, as a fraction of the image's shorter side; 0..1. It may stick out"""
    policy: Policy = Policy()
    """operations in place of all that is above but cutout"""

    def __post_init__(self):
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.name == "policy":
                continue
            if field.name == "rotation":
                allowed, bounds = 0 <= value <= 180, "0 to 180 degrees"
            elif field.name in ("shear", "scale"):
                allowed, bounds = 0 <= value < 1, "0 or more and less than 1"
            else:
                allowed, bounds = 0 <= value <= 1, "0 to 1"
            if not allowed:
                raise ValueError(f"Strong.{field.name} is {value}; use {bounds}.")

    def draws(self, index: Array, epoch, key: Array) -> Array:
        """The chances of each example in an epoch: `[B, 9]` float32 in `[0, 1)`, the same ones whatever is switched off.

        Args:
          index: `[B]` int32 positions of the examples in their data set.
          epoch: int32 scalar, whole passes done; may be traced.
          key: PRNG key. threefry only: other generators depend on the batch under `vmap`.

        Raises:
          TypeError: a key of another generator.
        """
        key = jax.random.fold_in(threefry(key), epoch)
        return jax.vmap(lambda i: jax.random.uniform(jax.random.fold_in(key, i), (9,)))(positions(index))

    def show(self, images: Array, draws: Array) -> Array:
        """Images `[B, H, W, C]` float32 in 0..255, as the given ones of uint8 or float, distorted by `draws`."""
        return jax.vmap(self._show)(images.astype(jnp.float32), draws)

    def train(self, images: Array, index: Array, epoch, key: Array) -> Array:
        """Images for training; the arguments are those of `draws` and `show`."""
        draws = self.draws(index, epoch, key)
        if not self.policy.slots:
            return self.show(images, draws)
        operated = by_policy(images, index, epoch, jax.random.fold_in(threefry(key), 0x706F6C), self.policy)
        return Strong(0, 0, 0, 0, 0, 0, self.cutout).show(operated, draws)

    def _show(self, image: Array, draws: Array) -> Array:
        """One example `[H, W, C]`."""
        angle, slant, lean, zoom, gap, light, chance, row, column = draws
        if self.rotation or self.shear or self.scale:
            angle = np.radians(self.rotation) * (2 * angle - 1)
            slant, lean = self.shear * (2 * slant - 1), self.shear * (2 * lean - 1)
            image = _resample(image, angle, slant, lean, 1 + self.scale * (2 * zoom - 1))
        if self.contrast:
            mean = jnp.mean(image)
            image = mean + (image - mean) * (1 + self.contrast * (2 * gap - 1))
        if self.brightness:
            image = image * (1 + self.brightness * (2 * light - 1))
        if self.contrast or self.brightness:
            image = jnp.clip(image, 0, WHITE)
        if self.solarize:
            image = jnp.where(chance < self.solarize, jnp.minimum(image, WHITE - image), image)
        if self.cutout:
            image = jnp.where(_square(image.shape[:2], self.cutout, row, column)[..., None], 0.0, image)
        return image


def _resample(image: Array, angle: Array, slant: Array, lean: Array, zoom: Array) -> Array:
    """Rotated, sheared and enlarged about the centre: bilinear between the four nearest pixels, black outside."""
    height, width, _ = image.shape
    rows = (jnp.arange(height) - (height - 1) / 2)[:, None] / zoom
    columns = (jnp.arange(width) - (width - 1) / 2)[None, :] / zoom
    rows, columns = rows + lean * columns, columns + slant * rows
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    rows, columns = cos * rows + sin * columns, cos * columns - sin * rows
    # from one pixel outside the image, which is black, to one on the other side
    rows = jnp.clip(rows + (height + 1) / 2, 0, height + 1)
    columns = jnp.clip(columns + (width + 1) / 2, 0, width + 1)
    top, left = jnp.floor(rows), jnp.floor(columns)
    down, right = (rows - top)[..., None], (columns - left)[..., None]
    top, left = top.astype(jnp.int32), left.astype(jnp.int32)
    padded = jnp.pad(image, ((1, 2), (1, 2), (0, 0)))

    def tap(row, column):
        return padded.at[row, column].get(mode="promise_in_bounds")

    upper = _between(tap(top, left), tap(top, left + 1), right)
    lower = _between(tap(top + 1, left), tap(top + 1, left + 1), right)
    return _between(upper, lower, down)


def _between(first: Array, second: Array, share: Array) -> Array:
    return first + (second - first) * share


def _square(shape: tuple[int, int], fraction: float, row: Array, column: Array) -> Array:
    """`[H, W]` bool: the pixels of the square about a pixel, which is given by two numbers in `[0, 1)`."""
    side = max(1, round(fraction * min(shape)))

    def within(length, where):
        first = jnp.floor(where * length).astype(jnp.int32) - side // 2
        places = jnp.arange(length, dtype=jnp.int32)
        return (places >= first) & (places < first + side)

    return within(shape[0], row)[:, None] & within(shape[1], column)[None, :]


def by_policy(images: Array, index: Array, epoch, key: Array, policy: Policy) -> Array:
    """Images `[B, H, W, C]` int32 in 0..255, of uint8 ones: each operated on by what its example draws in this epoch."""
    key = jax.random.fold_in(threefry(key), epoch)

    def one(image, i):
        return policy.show(image.astype(jnp.int32), policy.draws(jax.random.fold_in(key, i), *image.shape[:2]))

    return jax.vmap(one)(images, positions(index))


def positions(index: Array | None) -> Array:
    """The index; a batch that has none is refused."""
    if index is None:
        raise ValueError(
            "Views are drawn by the example's position in its data set, and this batch does not say it; pass "
            "Batch.of(..., index=positions)."
        )
    return index


def threefry(key: Array) -> Array:
    """The key as a typed threefry key; other generators are refused."""
    if not jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        return jax.random.wrap_key_data(key, impl="threefry2x32")
    if str(jax.random.key_impl(key)) != "threefry2x32":
        raise TypeError(f'Views need a threefry key, this is {jax.random.key_impl(key)}; use impl="threefry2x32".')
    return key

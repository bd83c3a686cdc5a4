"""SSD's augmentation on the device: other colours, and a window of the picture, wider than it or cut out of it.

Functions of the seed, the pass and the picture alone, in fixed shapes. Facts are those of the released pipelines
(`PhotoMetricDistortion`, `Expand`, `MinIoURandomCrop`); other than there, windows end between pixels, are cut from the picture
on its canvas, whose sides their shape is measured by, and are shown with antialiasing.
"""

import jax
import jax.numpy as jnp
import numpy as np

from kdjax.losses import pairwise_box_iou
from kdjax.types import Array

BRIGHTNESS, SPREAD, HUE = 32.0, (0.5, 1.5), 18.0  # of 255, of contrast and of saturation, in degrees
WIDEST = 4.0  # how many times as wide and high as the picture a window is
OVERLAPS = (
    -np.inf,
    0.1,
    0.3,
    0.5,
    0.7,
    0.9,
)  # a cut window has at least this IoU with every object; one of them is drawn
LEAST, TRIES, KINDS = 0.3, 50, 16  # share of a side; windows that are tried for an overlap, and overlaps that are drawn


def recoloured(image: Array, keys: Array) -> Array:
    """Pictures `[B, H, W, C]` float of 0 to 255 with other brightness, contrast, saturation, hue and order of channels, each
    every other time; the first two alone of grey ones. They are not cut to 255."""
    return jax.vmap(_recoloured)(image, keys)


def windows(boxes: Array, size: Array, keys: Array) -> Array:
    """`[B, 4]` corners of what is shown of each picture, in its pixels.

    Every other time four times as wide and high as the picture at most, which lies anywhere in it. Of that then a part, by a
    drawn demand: all of it, or one whose sides are at least 0.3 of the whole, not more than twice as long one as the other,
    with an object's centre inside, and with every object an overlap of at least the demand; the first of 50 that is so, or
    another demand is drawn. (After 16 demands that nothing met, all of it.)

    Args:
      boxes: `[B, G, 4]` of objects; those without area are padding.
      size: `[B, 2]` height and width of the pictures.
      keys: `[B]`.
    """
    return jax.vmap(_window)(boxes, size.astype(boxes.dtype), keys)


def seen(boxes: Array, window: Array, size: Array) -> tuple[Array, Array]:
    """Boxes `[B, G, 4]` as they are in pictures of `size` `[B, 2]` that show a window `[B, 4]`, and `[B, G]` whether they are.

    Objects whose centre is outside are not, and are 0.
    """
    low, high = window[:, None, :2], window[:, None, 2:]
    centre = (boxes[..., :2] + boxes[..., 2:]) / 2
    there = _with_area(boxes) & jnp.all((centre > low) & (centre < high), axis=-1)
    side = size[:, None, ::-1].astype(boxes.dtype)
    move = lambda corner: jnp.clip((corner - low) * side / (high - low), 0, side)
    moved = jnp.concatenate([move(boxes[..., :2]), move(boxes[..., 2:])], axis=-1)
    return jnp.where(there[..., None], moved, 0), there


def looked_through(image: Array, window: Array, size: Array, fill: Array) -> Array:
    """Pictures `[B, H, W, C]` of `size` `[B, 2]` at the left and top of a canvas, become as large what a window `[B, 4]` shows.

    Bilinear, with antialiasing where it shrinks; `fill` `[C]` is what is beyond the picture. The rest of the canvas is black.
    """
    exact = {"precision": jax.lax.Precision.HIGHEST}
    down, across = (
        _shares(image.shape[axis + 1], size[:, axis], window[:, 1 - axis], window[:, 3 - axis]) for axis in (0, 1)
    )
    inside = [jnp.arange(n)[None] < size[:, i, None] for i, n in enumerate(image.shape[1:3])]
    on_it = (inside[0][:, :, None] & inside[1][:, None])[..., None]
    made = jnp.einsum("boh,bhwc->bowc", down, jnp.where(on_it, image - fill[None, None, None], 0), **exact)
    made = jnp.einsum("bow,bhwc->bhoc", across, made, **exact) + fill[None, None, None]
    return jnp.where(on_it, made, 0)


def _recoloured(image: Array, key: Array) -> Array:
    chance, brightness, contrast, saturation, hue, order = jax.random.split(key, 6)
    coin = jax.random.bernoulli(chance, shape=(6,))  # the last: whether contrast comes after the hue
    by = jnp.where(coin[1], jax.random.uniform(contrast, (), image.dtype, *SPREAD), 1)
    image = image + jnp.where(coin[0], jax.random.uniform(brightness, (), image.dtype, -BRIGHTNESS, BRIGHTNESS), 0)
    if image.shape[-1] != 3:
        return image * by
    image = image * jnp.where(coin[5], 1, by)
    more = jnp.where(coin[2], jax.random.uniform(saturation, (), image.dtype, *SPREAD), 1)
    turn = jnp.where(coin[3], jax.random.uniform(hue, (), image.dtype, -HUE, HUE), 0)
    image = jnp.where(coin[2] | coin[3], tinted(image, more, turn), image) * jnp.where(coin[5], by, 1)
    return jnp.where(coin[4], image[..., jax.random.permutation(order, 3)], image)


def tinted(image: Array, saturation: Array, hue: Array) -> Array:
    """RGB `[..., 3]` with the saturation of HSV times a number, and a hue that is turned by so many degrees."""
    red, green, blue = (image[..., i] for i in range(3))
    value = jnp.max(image, axis=-1)
    chroma = value - jnp.min(image, axis=-1)
    over = jnp.where(chroma > 0, chroma, 1)
    sixth = jnp.where(value == green, 2 + (blue - red) / over, 4 + (red - green) / over)
    sixth = jnp.where(value == red, (green - blue) / over, sixth) + hue / 60
    strength = chroma * saturation * jnp.sign(value)  # of HSV's saturation, which is by the absolute value
    place = (sixth[..., None] + jnp.array([5.0, 3.0, 1.0], image.dtype)[(None,) * sixth.ndim]) % 6
    return value[..., None] - strength[..., None] * jnp.clip(jnp.minimum(place, 4 - place), 0, 1)


def _window(boxes: Array, size: Array, key: Array) -> Array:
    """One picture's."""
    wide, times, lies, kinds, shares, places = jax.random.split(key, 6)
    uniform = lambda key, shape, low=0.0, high=1.0: jax.random.uniform(key, shape, boxes.dtype, low, high)
    times = jnp.where(jax.random.bernoulli(wide), uniform(times, (), 1.0, WIDEST), 1)
    side = size[::-1]
    low = -uniform(lies, (2,)) * side * (times - 1)
    side = side * times

    demand = jax.random.randint(kinds, (KINDS, 1), 0, 1 + len(OVERLAPS))  # 0: all of it
    least = jnp.array([-np.inf, *OVERLAPS], boxes.dtype)[demand]
    sides = side[None, None] * uniform(shares, (KINDS, TRIES, 2), LEAST)
    first = low[None, None] + uniform(places, (KINDS, TRIES, 2)) * (side[None, None] - sides)
    parts = jnp.concatenate([first, first + sides], axis=-1)
    there = _with_area(boxes)
    overlap = jnp.where(there[None, None], pairwise_box_iou(parts, boxes[None]), jnp.inf)
    centre = ((boxes[:, :2] + boxes[:, 2:]) / 2)[None, None]
    held = (
        jnp.all((centre > first[..., None, :]) & (centre < (first + sides)[..., None, :]), axis=-1) & there[None, None]
    )
    shape = sides[..., 1] / sides[..., 0]
    fits = (shape >= 0.5) & (shape <= 2) & (jnp.min(overlap, axis=-1) >= least) & (jnp.any(held, -1) | ~jnp.any(there))
    fits = jnp.reshape(fits | (demand == 0), -1)
    whole = jnp.concatenate([low, low + side])
    chosen = jnp.argmax(fits)
    part = jnp.where(demand[chosen // TRIES] == 0, whole, jnp.reshape(parts, (-1, 4))[chosen])
    return jnp.where(jnp.any(fits), part, whole)


def _shares(count: int, size: Array, low: Array, high: Array) -> Array:
    """`[B, count, count]`: of every shown pixel along an axis, the share of each of the picture's; what is left is beyond it."""
    low, high, size = low[:, None], high[:, None], size[:, None]
    ratio = (high - low) / size
    reach = jnp.maximum(ratio, 1)
    place = low + (jnp.arange(count, dtype=low.dtype) + 0.5)[None] * ratio
    place = jnp.clip(
        place, jnp.minimum(low + 0.5, high), jnp.maximum(high - 0.5, low)
    )  # a cut ends with its last pixel
    weight = lambda at: jnp.maximum(1 - jnp.abs(at - place[..., None]) / reach[..., None], 0)
    near = jnp.floor(place)[..., None] + jnp.arange(-WIDEST - 1, WIDEST + 2, dtype=low.dtype)[None, None] + 0.5
    all_of_it = jnp.sum(weight(near), axis=-1, keepdims=True)
    return weight((jnp.arange(count, dtype=low.dtype) + 0.5)[None, None]) / all_of_it


def _with_area(boxes: Array) -> Array:
    return jnp.all(boxes[..., 2:] > boxes[..., :2], axis=-1)

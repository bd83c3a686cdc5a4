"""How pictures with boxes are shown in training: smaller, mirrored. Functions of the seed, the pass and the picture alone."""

import jax
import jax.numpy as jnp

from kdjax.types import Array


def mirrored(index: Array, epoch: Array | int, key: Array) -> Array:
    """`[B]` bool, which pictures are shown mirrored in a pass."""
    return jax.vmap(lambda key: jax.random.bits(key, (), jnp.uint32))(_keys(index, epoch, key)) % 2 == 1


def drawn_scales(index: Array, epoch: Array | int, key: Array, scales: tuple[float, float]) -> Array:
    """`[B]` float32 between two `scales`, uniform: of each picture in a pass."""
    draw = lambda key: jax.random.uniform(key, (), jnp.float32, *scales)
    return jax.vmap(draw)(view_keys(index, epoch, key, 1))


def view_keys(index: Array, epoch: Array | int, key: Array, purpose: int) -> Array:
    """`[B]` keys of pictures in a pass, others for each purpose: 1 sizes, 2 colours, 3 windows."""
    return jax.vmap(lambda key: jax.random.fold_in(key, purpose))(_keys(index, epoch, key))


def scaled_size(size: Array, scale: Array) -> Array:
    """`[B, 2]` int32 (height, width) of pictures of these sizes times a scale each, to the nearest pixel."""
    return jnp.maximum(jnp.floor(size * scale[:, None] + 0.5).astype(jnp.int32), 1)


def resized(image: Array, size: Array, new: Array) -> Array:
    """Pictures at the left and top of a canvas made smaller, bilinear with antialiasing as Pillow's, the rest black.

    Two multiplications by matrices, as accelerators like them.

    Args:
      image: `[B, H, W, C]`.
      size: `[B, 2]` int32 (height, width) of each picture on it.
      new: `[B, 2]` int32, what they become, at most as large as the canvas.

    Returns:
      `[B, H, W, C]` float32.
    """
    down, across = (_weights(image.shape[axis + 1], size[:, axis], new[:, axis]) for axis in (0, 1))
    exact = {"precision": jax.lax.Precision.HIGHEST}
    made = jnp.einsum("boh,bhwc->bowc", down, image.astype(jnp.float32), **exact)
    return jnp.einsum("bow,bhwc->bhoc", across, made, **exact)


def moved(boxes: Array, size: Array, new: Array) -> Array:
    """Boxes `[B, G, 4]` of pictures of `size` in those that these became."""
    down, across = jnp.split(new.astype(boxes.dtype) / size.astype(boxes.dtype), 2, axis=1)
    return boxes * jnp.concatenate([across, down, across, down], axis=1)[:, None]


def flipped(image: Array, width: Array, chosen: Array) -> Array:
    """Pictures `[B, H, W, C]`, some of them mirrored within their own `width` `[B]`: what they lack to the canvas's stays where
    it is."""
    column = jnp.arange(image.shape[2])[None]
    other = jnp.where(column < width[:, None], width[:, None] - 1 - column, column)
    source = jnp.where(chosen[:, None], other, column)
    return jnp.take_along_axis(image, source[:, None, :, None], axis=2)


def flipped_boxes(boxes: Array, width: Array, chosen: Array) -> Array:
    """Boxes `[B, G, 4]` with them; `width` is `[B]` or `[1]`."""
    left, top, right, bottom = (boxes[..., i] for i in range(4))
    other = jnp.stack([width[:, None] - right, top, width[:, None] - left, bottom], axis=-1)
    return jnp.where(chosen[:, None, None], other, boxes)


def _weights(count: int, size: Array, new: Array) -> Array:
    """`[B, count, count]`: of every new pixel along an axis, the share of every old one; nothing beyond either picture."""
    ratio = (new / size).astype(jnp.float32)[:, None, None]
    place = jnp.arange(count, dtype=jnp.float32) + 0.5
    far = jnp.abs(place[None, None, :] - place[None, :, None] / ratio) / jnp.maximum(1, 1 / ratio)
    inside = (place[None, None, :] < size[:, None, None]) & (place[None, :, None] < new[:, None, None])
    shares = jnp.where(inside, jnp.maximum(1 - far, 0), 0)
    whole = jnp.sum(shares, axis=2, keepdims=True)
    return shares / jnp.where(whole > 0, whole, 1)


def _keys(index: Array, epoch: Array | int, key: Array) -> Array:
    key = jax.random.fold_in(key, epoch)
    return jax.vmap(lambda i: jax.random.fold_in(key, i))(index)

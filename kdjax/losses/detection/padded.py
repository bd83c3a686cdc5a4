"""What functions of one image ask of its anchors and of its padded objects."""

import jax
import jax.numpy as jnp
from jax import lax

from kdjax.losses.detection import boxes

Array = jax.Array


def image(anchors, gts) -> tuple[Array, Array]:
    """Both as constants of one precision."""
    anchors, gts = boxes.corners(anchors, "anchors"), boxes.corners(gts, "gts")
    if anchors.ndim != 2 or gts.ndim != 2:
        raise ValueError(
            f"anchors has shape {anchors.shape}, gts {gts.shape}; they must be [A, 4] and [G, 4] of one image. Use "
            "jax.vmap over a batch."
        )
    dtype = jnp.promote_types(anchors.dtype, gts.dtype)
    return lax.stop_gradient(anchors.astype(dtype)), lax.stop_gradient(gts.astype(dtype))


def objects(gts: Array, gt_mask) -> tuple[Array, Array]:
    """The objects with what is padding zeroed, at least one of them."""
    gt_mask = bools(gt_mask, len(gts), "gt_mask", "gts")
    if not len(gts):
        return jnp.zeros((1, 4), gts.dtype), jnp.zeros(1, bool)
    return jnp.where(gt_mask[:, None], gts, 0), gt_mask


def all_or(mask, like: Array, name: str = "anchor_mask", of: str = "anchors") -> Array:
    """A mask of the rows of `like`, which None leaves whole."""
    return jnp.ones(len(like), bool) if mask is None else bools(mask, len(like), name, of)


def bools(mask, count: int, name: str, of: str) -> Array:
    mask = jnp.asarray(mask).astype(bool)
    if mask.shape != (count,):
        raise ValueError(f"{name} has shape {mask.shape}, {of} {count} boxes: give one bool a box.")
    return mask

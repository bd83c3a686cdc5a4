"""Mixup and CutMix: each input mixed with its neighbour's in the batch, alike for every network, and its label with it."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from kdjax.types import Array, Axis, Batch, Mixed


def mixup(inputs: Array, index: Array, epoch, key: Array, *, strength: float, axis: Axis = None) -> Array:
    """`share * x_i + (1 - share) * x_(i-1)` with a share of Beta(strength, strength) for each example.

    The partner is the row before in the global batch, so the same batch gives the same inputs on any number of devices;
    but an input is no longer a function of its example alone, and cannot be cached.

    Args:
      inputs: `[B, ...]` floats.
      index: `[B]` positions in the data set, which key the shares.
      epoch: whole passes done.
      key: of the data seed.
      strength: the parameter of the Beta distribution; 1 makes the share uniform.
      axis: mapped axis over which the batch is spread.
    """
    return blend(inputs, shares(index, epoch, key, strength, inputs.dtype), axis)


def blend(inputs: Array, own: Array, axis: Axis = None, there: Array | None = None) -> Array:
    """`own * x_i + (1 - own) * x_(i-1)`; `own` is `[B]`, or `[B, H, W]` with a share for every pixel. Where `there` is False for
    x_(i-1), which only fills a batch up, x_i stays as it is."""
    lead = lambda x: jnp.reshape(x, x.shape + (1,) * (inputs.ndim - x.ndim))
    own, before = lead(own), rows_before(inputs, axis)
    if there is not None:
        there = lead(rows_before(there, axis))
        own, before = jnp.where(there, own, 1), jnp.where(there, before, inputs)
    return own * inputs + (1 - own) * before


def shares(index: Array, epoch, key: Array, strength: float, dtype: Any = jnp.float32) -> Array:
    """How much of each example is its own under mixup: `[B]`."""
    key = jax.random.fold_in(jax.random.fold_in(key, 0x6D6978), epoch)  # apart from the draws of the views

    def share(i):
        return jax.random.beta(jax.random.fold_in(key, i), strength, strength, dtype=dtype)

    return jax.vmap(share)(index)


def cuts(index: Array, epoch, key: Array, strength: float, height: int, width: int) -> Array:
    """Which pixels of each example are its own under CutMix: `[B, H, W]` of 0 and 1.

    The neighbour's are those in a rectangle of the image's shape about a random pixel, whose area is a share of Beta(strength,
    strength) of the image, and less where it sticks out (Yun et al., "CutMix", ICCV 2019, arXiv 1905.04899).
    """
    key = jax.random.fold_in(jax.random.fold_in(key, 0x637574), epoch)
    rows, columns = jnp.arange(height)[:, None], jnp.arange(width)[None, :]

    def own(i):
        area, place = jax.random.split(jax.random.fold_in(key, i))
        side = jnp.sqrt(1 - jax.random.beta(area, strength, strength))
        y, x = jax.random.uniform(place, (2,))

        def within(places, length, middle):
            middle, half = jnp.floor(middle * length), jnp.floor(side * length) // 2
            return (places >= middle - half) & (places < middle + half)

        return 1.0 - (within(rows, height, y) & within(columns, width, x))

    return jax.vmap(own)(index)


def mix_batch(
    views: dict[str, Any], batch: Batch, epoch, key: Array, *, mixup: float, cutmix: float, axis: Axis = None
) -> tuple[dict[str, Any], Batch]:
    """The views of a batch, mixed alike, and the batch with the targets of what they now show.

    With both, every example is cut or mixed by a coin of its own. The target of a mixed input is `Mixed`: a share of its own
    label, the rest its neighbour's; it may be used where both may. An input whose neighbour only fills the batch up
    (`Batch.where`) is not mixed. Mixup makes uint8 images float32, as far as they are that still.

    Raises:
      ValueError: CutMix of inputs that are no images `[B, H, W, C]`, or mixup of other integers, such as tokens.
    """
    index = batch.known_index("Mixing inputs draws its shares")
    own = shares(index, epoch, key, mixup) if mixup else None
    if cutmix:
        shape = next(iter(views.values())).shape
        if len(shape) != 4:
            raise ValueError(f"CutMix cuts images [B, H, W, C], and the inputs are {list(shape)}; set cutmix to 0.")
        cut = cuts(index, epoch, key, cutmix, *shape[1:3])
        if own is not None:
            coins = jax.random.fold_in(jax.random.fold_in(key, 0x636F696E), epoch)
            heads = jax.vmap(lambda i: jax.random.bernoulli(jax.random.fold_in(coins, i)))(index)
            cut = jnp.where(heads[:, None, None], cut, own[:, None, None])
        own = cut
    numbers = {name: as_numbers(x) if mixup else x for name, x in views.items()}
    mixed = {name: blend(x, own.astype(x.dtype), axis, batch.where) for name, x in numbers.items()}
    there = rows_before(batch.where, axis)
    share = jnp.where(there, jnp.mean(own, axis=tuple(range(1, own.ndim))), 1)

    def second(target):
        return jnp.where(jnp.reshape(there, there.shape + (1,) * (target.ndim - 1)), rows_before(target, axis), target)

    def pair(target):
        return Mixed(target, second(target), share)

    targets, labelled = batch.targets, batch.labelled & second(batch.labelled)
    targets = {name: pair(x) for name, x in targets.items()} if isinstance(targets, dict) else targets
    if targets is not None and not isinstance(targets, dict):
        targets = pair(targets)
    return mixed, dataclasses.replace(batch, targets=targets, labelled=labelled)


def as_numbers(x: Array) -> Array:
    """Inputs of which a share may be taken: of integers uint8 alone, as images are stored."""
    if jnp.issubdtype(x.dtype, jnp.floating):
        return x
    if x.dtype != jnp.uint8:
        raise ValueError(
            f"Mixup adds shares of inputs up, and these are {x.dtype}, which numbers things; set mixup to 0."
        )
    return x.astype(jnp.float32)


def rows_before(rows: Array, axis: Axis) -> Array:
    """Every row's predecessor in the global batch; the first one's is the last."""
    if axis is None:
        return jnp.roll(rows, 1, axis=0)
    count = lax.axis_size(axis)
    last = lax.ppermute(rows[-1:], axis, [(i, (i + 1) % count) for i in range(count)])
    return jnp.concatenate([last, rows[:-1]])

"""A teacher from elsewhere, trained on images normalised or sized otherwise, or on other classes, as a network for this data."""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from kdjax.data.class_names import named_twice
from kdjax.types import Array, ModelOutput, Network


def renormalised(
    network: Network, ours: tuple[Sequence[float], Sequence[float]], theirs: tuple[Sequence[float], Sequence[float]]
) -> Network:
    """The network behind a change of normalisation, so that it sees its own of the images that the others see.

    Args:
      network: takes images `[B, H, W, C]`, or vectors `[B, D]`.
      ours: mean and standard deviation by which these are normalised, each of one value a channel, or empty for 0 and 1.
      theirs: those that the network was trained with.

    Raises:
      ValueError: numbers of channels that differ.
    """
    if ours == theirs:
        return network
    counts = {len(values) for pair in (ours, theirs) for values in pair} - {0, 1}
    if len(counts) > 1:
        raise ValueError(
            f"{network.name} was trained with a normalisation of other channels: {theirs}, and the data has {ours}."
        )
    (mean, std), (own_mean, own_std) = (
        (np.asarray(m or (0.0,), np.float64), np.asarray(s or (1.0,), np.float64)) for m, s in (ours, theirs)
    )
    change = std / own_std, (mean - own_mean) / own_std

    def apply(params, state, inputs, **options):
        first = (1,) * (inputs.ndim - 1)
        scale, shift = (x.astype(np.float32).reshape(*first, -1) for x in change)
        return network.apply(params, state, (inputs * scale + shift).astype(inputs.dtype), **options)

    return network._replace(apply=apply)


def resized(network: Network, size: int) -> Network:
    """The network behind a change of resolution: images `[B, H, W, C]` of any size are shown to it at `size` pixels a side.

    Bilinear, with antialiasing where they get smaller.
    """

    def at_size(inputs):
        shape = inputs.shape[0], size, size, inputs.shape[3]
        return inputs if inputs.shape == shape else jax.image.resize(inputs, shape, "bilinear").astype(inputs.dtype)

    def apply(params, state, inputs, **options):
        return network.apply(params, state, at_size(inputs), **options)

    def paths(inputs):
        return network.paths(jax.eval_shape(at_size, inputs))

    return network._replace(apply=apply, paths=paths if network.paths else None)


def reclassified(network: Network, theirs: Sequence[str], ours: Sequence[str]) -> Network:
    """The network with its classes in the data's order, by name: those that only it knows are left out, those that it does not
    know are at -inf.

    Args:
      network: gives logits of its own classes, `[..., len(theirs)]`.
      theirs: their names.
      ours: names of the data's classes.

    Raises:
      ValueError: no class is common to both, or two have one name.
    """
    if tuple(theirs) == tuple(ours):
        return network
    for whose, names in ((f"{network.name} has", theirs), ("The data have", ours)):
        twice = named_twice(names)
        if twice is not None:
            raise ValueError(
                f"{whose} two classes called {twice!r}, and classes are matched by name; give each one of its own."
            )
    place = {name: i for i, name in enumerate(theirs)}
    known = np.array([name in place for name in ours], bool)
    index = np.array([place.get(name, 0) for name in ours], np.int32)
    if not known.any():
        raise ValueError(
            f"{network.name} knows none of the data's classes ({_some(ours)}); its own are {_some(theirs)}. Name them as the "
            "data does, in its order: network.classes."
        )

    def arranged(logits: Array) -> Array:
        return jnp.where(jnp.broadcast_to(known, (*logits.shape[:-1], len(known))), logits[..., index], -jnp.inf)

    def apply(params, state, inputs, **options):
        said, state = network.apply(params, state, inputs, **options)
        return dataclasses.replace(said, logits=arranged(said.logits)), state

    parts = dict(network.parts)
    if "classify" in parts:
        classify = parts["classify"]
        parts["classify"] = lambda params, state, *features: _of(classify(params, state, *features), arranged)
    return network._replace(apply=apply, parts=parts)


def _of(said, arranged):
    return dataclasses.replace(said, logits=arranged(said.logits)) if isinstance(said, ModelOutput) else arranged(said)


def _some(names: Sequence[str]) -> str:
    return ", ".join(list(names)[:4]) + (", ..." if len(names) > 4 else "")

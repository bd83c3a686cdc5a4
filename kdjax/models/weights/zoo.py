"""Published PyTorch weights for networks of the zoo, by name."""

import functools
from collections.abc import Mapping
from typing import Any

import numpy as np
from flax import nnx

from kdjax.models import zoo
from kdjax.models.weights.names import NAMES, OTHERS
from kdjax.models.weights.torch import Entry, Names, Tree, arrays, entries, filled, laid_out


def zoo_from_torch(
    name: str,
    state_dict: Mapping[str, Any],
    *,
    width: int | None = None,
    image_size: tuple[int, int] | None = None,
    ema: bool = False,
) -> tuple[Tree, Tree]:
    """The weights of a state dict for a network of the zoo; classes and input channels are read off its entries.

    Where several publish weights of a network under names of their own, those are taken that the entries have.

    Args:
      name: a key of `kdjax.models.zoo.NETWORKS` whose published names are known.
      state_dict: as for `kdjax.models.weights.torch.from_torch`.
      width, image_size: as for `kdjax.models.zoo.build`, where the weights are of another width than the published one, or for
        images of another size.
      ema: take the running average of the weights that the checkpoint holds beside them.

    Returns:
      `(params, state)` as `from_nnx(lambda rngs: zoo.build(name, ...)).init` gives them, of numpy arrays.

    Raises:
      ValueError: no names are known for the network, or the entries are not its own; the message names them.
    """
    found = arrays(state_dict, ema=ema)
    size = None if image_size is None else tuple(image_size)
    tables = range(1 + len(OTHERS.get(name, ())))
    table = max(tables, key=lambda i: sum(entry.name in found for entry in _entries(name, 10, 3, width, size, i)))
    published = _entries(name, 10, 3, width, size, table)
    kernels = [entry for entry in published if entry.path[-1] == "kernel"]
    first = next(entry for entry in kernels if len(entry.axes) == 4)
    last = next(entry for entry in reversed(kernels) if len(entry.axes) == 2)
    num_classes, in_channels = (
        # What is missing or misshapen is named below.
        entry.shape[axis] if np.ndim(found.get(entry.name)) != len(entry.axes) else found[entry.name].shape[axis] or 1
        for entry, axis in ((last, 0), (first, 1))
    )
    return filled(_entries(name, num_classes, in_channels, width, size, table), found)


def zoo_to_torch(name: str, params: Tree, state: Tree) -> dict[str, np.ndarray]:
    """The inverse of `zoo_from_torch`, by the first table of names; see `kdjax.models.weights.torch.to_torch`."""
    return laid_out(_entries(name, 10, 3, None, None, 0), params, state)


@functools.lru_cache(maxsize=32)
def _entries(
    name: str, num_classes: int, in_channels: int, width: int | None, image_size: tuple[int, int] | None, table: int
) -> tuple[Entry, ...]:
    options = {"num_classes": num_classes, "in_channels": in_channels, "width": width, "image_size": image_size}
    module = nnx.eval_shape(lambda: zoo.build(name, rngs=nnx.Rngs(0), **options))
    if name not in NAMES:
        raise ValueError(f"no published names are known for {name}; use from_torch with a table of one's own.")
    tables: tuple[Names, ...] = (NAMES[name], *OTHERS.get(name, ()))
    return entries(module, tables[table])

"""Published PyTorch weights as the nested dicts that kdjax networks are applied to, and back.

Where an entry of a state dict belongs follows from our module and a table of names: the types of the layers say how the axes are
ordered and what the entries of a layer are called, the table how the layers are. Convolution kernels are
`[out, in / groups, height, width]` there and `[height, width, in / groups, out]` here, linear weights `[out, in]` there and
`[in, out]` here.

A table (`Names`) is a sequence of pairs, a part of a path of ours and what it is called there:
`(("stem_conv", "conv1"), ("stages/0", "layer1"), ("norm1", "bn1"))` makes `stages/0/3/norm1/scale` the entry
`layer1.3.bn1.weight`. The longest part that fits at a place is taken, a number that no part fits stays, and the order of the
table is that of the entries. A part may end at a parameter (`qkv/kernel`), whose entry it then names in full. A parameter that is
no layer's needs that, and is laid out as it is here unless a third element says otherwise: for each of its axes there, which of
ours it is, or None for one of length 1.
"""

import functools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
from flax import nnx

from kdjax.models.weights.names.mdistiller import RESNET
from kdjax.models.weights.wrapping import unwrapped
from kdjax.models.zoo.normalization import BatchNorm
from kdjax.models.zoo.resnet_cifar import CifarResNet

Tree = dict[str, Any]
Names = Sequence[tuple[Any, ...]]

LOW = tuple(np.dtype(kind) for kind in (ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2))
COUNTER = "num_batches_tracked"  # of each BatchNorm there, which kdjax has no use for
# What the parameters of a layer are called there, in the order of its entries.
_LEAVES = {"kernel": "weight", "scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}


class Entry(NamedTuple):
    """An entry of a state dict: its name and shape there, its tree ("params" or "state") and path here.

    `axes` are, for each axis there, ours, or None for an axis of length 1. `counter` is the name of the step counter that
    follows the entry there, or empty.
    """

    name: str
    shape: tuple[int, ...]
    tree: str
    path: tuple[str, ...]
    axes: tuple[int | None, ...]
    counter: str

    def ours(self, array: np.ndarray) -> np.ndarray:
        squeezed = np.squeeze(array, tuple(i for i, axis in enumerate(self.axes) if axis is None))
        return np.transpose(squeezed, np.argsort([axis for axis in self.axes if axis is not None]))

    def theirs(self, array: np.ndarray) -> np.ndarray:
        permuted = np.transpose(array, [axis for axis in self.axes if axis is not None])
        return np.expand_dims(permuted, tuple(i for i, axis in enumerate(self.axes) if axis is None))


def entries(module: nnx.Module, names: Names) -> tuple[Entry, ...]:
    """Every entry of the state dict of a network, in PyTorch's order.

    Args:
      module: ours; of shapes alone will do, as `nnx.eval_shape` gives it.
      names: the table, see the head of this file.

    Raises:
      ValueError: the table says nothing of a part of the network, or the same of two.
    """
    owners, found = dict(nnx.iter_modules(module)), []
    for path, variable in nnx.to_flat_state(nnx.state(module, nnx.Not(nnx.RngState))):
        shape = tuple(variable.get_value().shape)
        ranks, name, axes = _translated(owners.get(path[:-1]), tuple(map(str, path)), len(shape), names)
        tree = "params" if isinstance(variable, nnx.Param) else "state"
        counter = name.removesuffix("running_var") + COUNTER if name.endswith(".running_var") else ""
        sizes = tuple(1 if axis is None else shape[axis] for axis in axes)
        found.append((ranks, Entry(name, sizes, tree, tuple(map(str, path)), axes, counter)))
    ordered = tuple(entry for _, entry in sorted(found))
    twice = [later.path for i, later in enumerate(ordered) if later.name in {entry.name for entry in ordered[:i]}]
    if twice:
        raise ValueError(f"the names give {'/'.join(twice[0])} the entry of another parameter; name it apart.")
    return ordered


def _translated(owner: Any, path: tuple[str, ...], rank: int, names: Names) -> tuple[tuple, str, tuple]:
    """Place in the order, name there, and axes of a parameter of `owner` with so many axes."""
    own, ranks, parts, start = _layout(owner, path[-1], rank), [], [], 0
    while start < len(path):
        fitting = [(len(part), -i) for i, (ours, *_) in enumerate(names)
                   if (part := tuple(ours.split("/"))) == path[start : start + len(part)]]  # fmt: skip
        if fitting:
            length, place = max(fitting)
            theirs, *stated = names[-place][1:]
            ranks.append(-place)
            parts.append(theirs)
            start += length
            if start == len(path):
                return tuple(ranks), ".".join(filter(None, parts)), tuple(*stated) or own or tuple(range(rank))
        elif path[start].isdecimal():
            ranks.append(int(path[start]))
            parts.append(path[start])
            start += 1
        elif start == len(path) - 1 and own is not None:
            leaf = _LEAVES[path[-1]]
            return (*ranks, list(_LEAVES.values()).index(leaf)), ".".join(filter(None, [*parts, leaf])), own
        else:
            raise ValueError(f"the names say nothing of {path[start]} in {'/'.join(path)}; add it to them.")
    raise ValueError(f"the names end before the parameter in {'/'.join(path)}; add it to them.")


def _layout(owner: Any, leaf: str, rank: int) -> tuple[int, ...] | None:
    """The axes of a layer's parameter; None of what is no layer that is known here."""
    match owner:
        case nnx.Conv() if leaf == "kernel":
            return rank - 1, rank - 2, *range(rank - 2)
        case nnx.Linear() if leaf == "kernel":
            return 1, 0
        case nnx.Conv() | nnx.Linear() | nnx.LayerNorm() | nnx.GroupNorm() | BatchNorm() if leaf in _LEAVES:
            return tuple(range(rank))
    return None


def from_torch(
    module: nnx.Module, state_dict: Mapping[str, Any], names: Names, *, ema: bool = False
) -> tuple[Tree, Tree]:
    """The weights of a state dict for a network of ours.

    Args:
      module: the network; of shapes alone will do, as `nnx.eval_shape` gives it.
      state_dict: name to array (or CPU tensor), as `model.state_dict()` gives it, or what it is wrapped in, see `unwrapped`.
        The counters `num_batches_tracked` may be absent; they are not used.
      names: the table, see the head of this file.
      ema: take the running average of the weights that the checkpoint holds beside them.

    Returns:
      `(params, state)`: nested dicts of numpy arrays with string keys, such as
      `params["stages"]["0"]["1"]["conv1"]["kernel"]`, each of the dtype it had; `init_state(start=...)` trains them in the
      network's own.

    Raises:
      ValueError: entries are missing, unknown, of another shape, no floats, or not finite; the message names them.
    """
    return filled(entries(module, names), arrays(state_dict, ema=ema))


def to_torch(module: nnx.Module, params: Tree, state: Tree, names: Names) -> dict[str, np.ndarray]:
    """The inverse of `from_torch`, in the order of PyTorch's own state dict.

    Also orders and lays out anything else of that structure, such as gradients, as PyTorch does. Each
    `num_batches_tracked` is 0. Of `module` the structure matters, not the sizes.
    """
    return laid_out(entries(module, names), params, state)


def arrays(state_dict: Mapping[str, Any], *, ema: bool = False) -> dict[str, np.ndarray]:
    """What `unwrapped` gives, as arrays of numbers."""
    return {name: _plain(name, value) for name, value in unwrapped(state_dict, ema=ema).items()}


def _plain(name: str, value: Any) -> np.ndarray:
    try:
        array = np.asarray(value)
    except (ValueError, TypeError, RuntimeError, OverflowError) as error:
        raise ValueError(f"entry {name!r} is no array ({str(error).splitlines()[0][:100]})") from error
    if array.dtype.kind not in "biufc" and array.dtype not in LOW:
        raise ValueError(f"entry {name!r} is {array.dtype}, expected floats")
    return array


def filled(wanted: tuple[Entry, ...], found: Mapping[str, np.ndarray]) -> tuple[Tree, Tree]:
    _check_fit(wanted, {name: value.shape for name, value in found.items()})
    trees: dict[str, Tree] = {"params": {}, "state": {}}
    for entry in wanted:
        _check_values(entry, found[entry.name])
        node = trees[entry.tree]
        for key in entry.path[:-1]:
            node = node.setdefault(key, {})
        node[entry.path[-1]] = entry.ours(found[entry.name])
    return trees["params"], trees["state"]


def laid_out(wanted: tuple[Entry, ...], params: Tree, state: Tree) -> dict[str, np.ndarray]:
    """The state dict of these trees: see `to_torch`."""
    trees, state_dict = {"params": params, "state": state}, {}
    for entry in wanted:
        node: Any = trees[entry.tree]
        for key in entry.path:
            node = node[key]
        state_dict[entry.name] = entry.theirs(np.asarray(node))
        if entry.counter:
            state_dict[entry.counter] = np.zeros((), np.int64)
    return state_dict


def _check_fit(wanted: tuple[Entry, ...], shapes: Mapping[str, tuple[int, ...]]) -> None:
    """That these are the entries, with these shapes: one sentence names those that are not."""
    known = {name for entry in wanted for name in (entry.name, entry.counter)}
    missing = [repr(entry.name) for entry in wanted if entry.name not in shapes]
    unknown = [repr(name) for name in shapes if name not in known]
    misfits = [f"{entry.name!r} has shape {shapes[entry.name]}, expected {entry.shape}" for entry in wanted
               if shapes.get(entry.name, entry.shape) != entry.shape]  # fmt: skip
    wrong = []
    if missing:
        wrong.append(f"the state dict has no entry {missing[0]}{_others(missing, 'nor')}")
        if len(missing) == len(wanted):
            wrong.append(_there(shapes))
    if unknown:
        wrong.append(
            f"the state dict has an entry {unknown[0]}, which the network does not have{_others(unknown, 'nor')}"
        )
    if misfits:
        wrong.append(f"entry {misfits[0]}{_others(misfits, 'and')}")
    if wrong:
        raise ValueError("; ".join(wrong))


def _others(these: Sequence[str], conjunction: str) -> str:
    """The next few of them and how many there are; nothing of one alone."""
    return f" ({conjunction} {', '.join(these[1:4])}; {len(these)} in all)" if len(these) > 1 else ""


def _there(shapes: Mapping[str, Any]) -> str:
    return f"it has {', '.join(list(shapes)[:4]) or 'nothing'}{', ...' if len(shapes) > 4 else ''}"


def _check_values(entry: Entry, array: np.ndarray) -> None:
    if array.dtype.kind != "f" and array.dtype not in LOW:
        raise ValueError(f"entry {entry.name!r} is {array.dtype}, expected floats")
    if not np.isfinite(array.astype(np.float32)).all():
        raise ValueError(f"entry {entry.name!r} has nan or inf; take a checkpoint from before")
    if entry.path[-1] == "var" and (array < 0).any():
        raise ValueError(f"entry {entry.name!r} has a variance below 0; take another checkpoint")


def cifar_resnet_from_torch(state_dict: Mapping[str, Any]) -> tuple[Tree, Tree]:
    """`from_torch` for any `CifarResNet` of mdistiller or RepDistiller: depth, widths, input channels and classes are read off
    the entries."""
    found = arrays(state_dict)
    return filled(_cifar_resnet(_sizes_of_entries({name: value.shape for name, value in found.items()})), found)


def cifar_resnet_to_torch(params: Tree, state: Tree) -> dict[str, np.ndarray]:
    """The inverse of `cifar_resnet_from_torch`; see `to_torch`."""
    stages = params["stages"]
    firsts = [params["stem_conv"]["kernel"], *(stages[stage]["0"]["conv1"]["kernel"] for stage in ("0", "1", "2"))]
    sizes = _Sizes(
        blocks=len(stages["0"]),
        channels=tuple(kernel.shape[3] for kernel in firsts),
        in_channels=firsts[0].shape[2],
        num_classes=params["classifier"]["bias"].shape[0],
    )
    return laid_out(_cifar_resnet(sizes), params, state)


class _Sizes(NamedTuple):
    """What distinguishes one CIFAR ResNet from another: blocks a stage, width of stem and stages, inputs, outputs."""

    blocks: int
    channels: tuple[int, int, int, int]
    in_channels: int
    num_classes: int


@functools.lru_cache(maxsize=32)
def _cifar_resnet(sizes: _Sizes) -> tuple[Entry, ...]:
    def make() -> CifarResNet:
        return CifarResNet(
            6 * sizes.blocks + 2,
            num_classes=sizes.num_classes,
            channels=sizes.channels,
            in_channels=sizes.in_channels,
            rngs=nnx.Rngs(0),
        )

    return entries(nnx.eval_shape(make), RESNET)


def _sizes_of_entries(shapes: Mapping[str, tuple[int, ...]]) -> _Sizes:
    kernels = ["conv1.weight", "layer1.0.conv1.weight", "layer2.0.conv1.weight", "layer3.0.conv1.weight"]
    for name, rank in [*((name, 4) for name in kernels), ("fc.weight", 2)]:
        if name not in shapes:
            raise ValueError(f"the state dict has no entry {name!r}; {_there(shapes)}")
        if len(shapes[name]) != rank or 0 in shapes[name]:
            raise ValueError(f"entry {name!r} has shape {shapes[name]}, expected {rank} axes, none of length 0")
    parts = [name.split(".") for name in shapes if name.startswith(("layer1.", "layer2.", "layer3."))]
    sizes = _Sizes(
        blocks=1 + max(int(part[1]) for part in parts if part[1].isdecimal() and len(part[1]) < 6),
        channels=tuple(shapes[name][0] for name in kernels),
        in_channels=shapes["conv1.weight"][1],
        num_classes=shapes["fc.weight"][0],
    )
    if sizes.blocks > len(shapes):
        raise ValueError(f"the state dict has a block {sizes.blocks - 1}, and only {len(shapes)} entries")
    return sizes

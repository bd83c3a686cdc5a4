"""Published PyTorch weights as the nested dicts that kdjax networks are applied to, and back.

One table lists, for every entry of a PyTorch state dict, where it belongs and how its axes are ordered; both directions
read it. Convolution kernels are `[out, in, height, width]` there and `[height, width, in, out]` here, linear weights
`[out, in]` there and `[in, out]` here.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

Tree = dict[str, Any]

# Kind of layer: how its PyTorch axes are permuted into ours.
_AXES = {"convolution": (2, 3, 1, 0), "linear": (1, 0), "vector": (0,)}


WRAPPERS = ("state_dict", "model", "model_state_dict", "net", "network")
PREFIXES = ("module.", "_orig_mod.", "model.")


class _Entry(NamedTuple):
    """An entry of a state dict: its name and shape in PyTorch, its tree and path here, its kind of layer."""

    name: str
    shape: tuple[int, ...]
    tree: str  # "params", "state", or "none" for the step counter that kdjax has no use for
    path: tuple[str, ...]
    kind: str


class _Layout(NamedTuple):
    """What distinguishes one CIFAR ResNet from another: blocks a stage, width of stem and stages, inputs, outputs."""

    blocks: int
    channels: tuple[int, ...]
    in_channels: int
    num_classes: int


def cifar_resnet_from_torch(state_dict: Mapping[str, Any]) -> tuple[Tree, Tree]:
    """The weights of a CIFAR ResNet of mdistiller or RepDistiller for `CifarResNet`.

    Depth, widths, input channels and classes are read off the entries.

    Args:
      state_dict: name to array (or CPU tensor), as `model.state_dict()` gives it. The counters `num_batches_tracked`
        may be absent; they are not used. What wraps it is taken off: a checkpoint whose entry "model", "state_dict" or the like
        it is, and the prefix "module." of `DataParallel`.

    Returns:
      `(params, state)`: nested dicts of numpy arrays with string keys, such as
      `params["stages"]["0"]["1"]["conv1"]["kernel"]`, each of the dtype it had.

    Raises:
      ValueError: an entry is missing, unknown, of another shape, no floats, or not finite; the message names it.
    """
    state_dict = {name: _plain(name, value) for name, value in unwrapped(state_dict).items()}
    shapes = {name: value.shape for name, value in state_dict.items()}
    entries = _table(_layout_of_state_dict(shapes))
    unknown = sorted(set(shapes) - {entry.name for entry in entries})
    if unknown:
        raise ValueError(f"the state dict has an entry {unknown[0]!r}, which this CIFAR ResNet does not have")
    trees: dict[str, Tree] = {"params": {}, "state": {}}
    for entry in entries:
        if entry.tree == "none":
            continue
        _require(shapes, entry.name)
        if shapes[entry.name] != entry.shape:
            raise ValueError(f"entry {entry.name!r} has shape {shapes[entry.name]}, expected {entry.shape}")
        _check_values(entry, state_dict[entry.name])
        node = trees[entry.tree]
        for key in entry.path[:-1]:
            node = node.setdefault(key, {})
        node[entry.path[-1]] = np.transpose(np.asarray(state_dict[entry.name]), _AXES[entry.kind])
    return trees["params"], trees["state"]


def _plain(name: str, value: Any) -> np.ndarray:
    """An entry as an array of numbers."""
    try:
        array = np.asarray(value)
    except (ValueError, TypeError, RuntimeError, OverflowError) as error:
        raise ValueError(f"entry {name!r} is no array ({str(error).splitlines()[0][:100]})") from error
    if array.dtype.kind not in "biufc" and array.dtype not in LOW:
        raise ValueError(f"entry {name!r} is {array.dtype}, expected floats")
    return array


LOW = tuple(np.dtype(kind) for kind in (ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2))


def _check_values(entry: _Entry, array: np.ndarray) -> None:
    if array.dtype.kind != "f" and array.dtype not in LOW:
        raise ValueError(f"entry {entry.name!r} is {array.dtype}, expected floats")
    if not np.isfinite(array.astype(np.float32)).all():
        raise ValueError(f"entry {entry.name!r} has nan or inf; take a checkpoint from before")
    if entry.path[-1] == "var" and (array < 0).any():
        raise ValueError(f"entry {entry.name!r} has a variance below 0; take another checkpoint")


def unwrapped(checkpoint: Mapping[str, Any]) -> Mapping[str, Any]:
    """The state dict of a checkpoint: that of its entry "model", "state_dict" or the like, without the prefixes that
    `DataParallel` and `torch.compile` put before every name."""
    if not isinstance(checkpoint, Mapping):
        raise ValueError(f"the state dict is a {type(checkpoint).__name__}, expected names with arrays")
    for _ in WRAPPERS:  # one in the other
        wrapper = next((w for w in WRAPPERS if isinstance(checkpoint.get(w), Mapping)), None)
        checkpoint = checkpoint if wrapper is None else checkpoint[wrapper]
    unnamed = [name for name in checkpoint if not isinstance(name, str)]
    if unnamed:
        raise ValueError(f"the state dict has an entry {unnamed[0]!r}, whose name is no text")
    for prefix in PREFIXES * 2:  # one in the other, in either order
        if checkpoint and all(name.startswith(prefix) for name in checkpoint):
            checkpoint = {name.removeprefix(prefix): value for name, value in checkpoint.items()}
    return checkpoint


def cifar_resnet_to_torch(params: Tree, state: Tree) -> dict[str, np.ndarray]:
    """The inverse of `cifar_resnet_from_torch`, in the order of PyTorch's own state dict.

    Also orders and lays out anything else of that structure, such as gradients, as PyTorch does. Each
    `num_batches_tracked` is 0.
    """
    stages = params["stages"]
    firsts = [params["stem_conv"]["kernel"], *(stages[stage]["0"]["conv1"]["kernel"] for stage in ("0", "1", "2"))]
    layout = _Layout(
        blocks=len(stages["0"]),
        channels=tuple(kernel.shape[3] for kernel in firsts),
        in_channels=firsts[0].shape[2],
        num_classes=params["classifier"]["bias"].shape[0],
    )
    trees = {"params": params, "state": state}
    state_dict = {}
    for entry in _table(layout):
        if entry.tree == "none":
            state_dict[entry.name] = np.zeros((), np.int64)
            continue
        node: Any = trees[entry.tree]
        for key in entry.path:
            node = node[key]
        state_dict[entry.name] = np.transpose(np.asarray(node), np.argsort(_AXES[entry.kind]))
    return state_dict


def _layout_of_state_dict(shapes: Mapping[str, tuple[int, ...]]) -> _Layout:
    kernels = ["conv1.weight", "layer1.0.conv1.weight", "layer2.0.conv1.weight", "layer3.0.conv1.weight"]
    for name, rank in [*((name, 4) for name in kernels), ("fc.weight", 2)]:
        _require(shapes, name)
        if len(shapes[name]) != rank:
            raise ValueError(f"entry {name!r} has shape {shapes[name]}, expected {rank} axes")
    parts = [name.split(".") for name in shapes if name.startswith(("layer1.", "layer2.", "layer3."))]
    layout = _Layout(
        blocks=1 + max(int(part[1]) for part in parts if part[1].isdecimal() and len(part[1]) < 6),
        channels=tuple(shapes[name][0] for name in kernels),
        in_channels=shapes["conv1.weight"][1],
        num_classes=shapes["fc.weight"][0],
    )
    if layout.blocks > len(shapes):
        raise ValueError(f"the state dict has a block {layout.blocks - 1}, and only {len(shapes)} entries")
    return layout


def _require(shapes: Mapping[str, tuple[int, ...]], name: str) -> None:
    if name not in shapes:
        there = ", ".join(list(map(str, shapes))[:4]) or "nothing"
        raise ValueError(f"the state dict has no entry {name!r}; it has {there}{', ...' if len(shapes) > 4 else ''}")


def _table(layout: _Layout) -> list[_Entry]:
    """Every entry of the state dict, in PyTorch's order."""
    stem = layout.channels[0]
    entries = [
        _convolution("conv1", ("stem_conv",), layout.in_channels, stem, 3),
        *_batch_norm("bn1", ("stem_norm",), stem),
    ]
    for stage, (before, width) in enumerate(zip(layout.channels[:-1], layout.channels[1:], strict=True)):
        for block in range(layout.blocks):
            name, path = f"layer{stage + 1}.{block}", ("stages", str(stage), str(block))
            inputs = before if block == 0 else width
            entries += [
                _convolution(f"{name}.conv1", (*path, "conv1"), inputs, width, 3),
                *_batch_norm(f"{name}.bn1", (*path, "norm1"), width),
                _convolution(f"{name}.conv2", (*path, "conv2"), width, width, 3),
                *_batch_norm(f"{name}.bn2", (*path, "norm2"), width),
            ]
            if block == 0 and (stage > 0 or before != width):
                entries += [
                    _convolution(f"{name}.downsample.0", (*path, "shortcut_conv"), inputs, width, 1),
                    *_batch_norm(f"{name}.downsample.1", (*path, "shortcut_norm"), width),
                ]
    classes = layout.num_classes
    return [
        *entries,
        _Entry("fc.weight", (classes, layout.channels[-1]), "params", ("classifier", "kernel"), "linear"),
        _Entry("fc.bias", (classes,), "params", ("classifier", "bias"), "vector"),
    ]


def _convolution(name: str, path: tuple[str, ...], inputs: int, outputs: int, size: int) -> _Entry:
    return _Entry(f"{name}.weight", (outputs, inputs, size, size), "params", (*path, "kernel"), "convolution")


def _batch_norm(name: str, path: tuple[str, ...], channels: int) -> list[_Entry]:
    return [
        _Entry(f"{name}.weight", (channels,), "params", (*path, "scale"), "vector"),
        _Entry(f"{name}.bias", (channels,), "params", (*path, "bias"), "vector"),
        _Entry(f"{name}.running_mean", (channels,), "state", (*path, "mean"), "vector"),
        _Entry(f"{name}.running_var", (channels,), "state", (*path, "var"), "vector"),
        _Entry(f"{name}.num_batches_tracked", (), "none", (), "vector"),
    ]

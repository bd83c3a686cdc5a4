"""Weights that a detector begins from: a whole one of mmdetection or torchvision, or torchvision's ResNet, its backbone."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
from flax import nnx

from kdjax.models.detectors.backbones import ResNetBackbone
from kdjax.models.detectors.dense import DenseDetector
from kdjax.models.detectors.ssd import SSD as SSDDetector
from kdjax.models.detectors.ssd import TORCHVISION
from kdjax.models.detectors.torchvision import TorchvisionFCOS, TorchvisionRetinaNet
from kdjax.models.detectors.vgg import VGGBackbone
from kdjax.models.weights.beginning import flat
from kdjax.models.weights.files import read_weights
from kdjax.models.weights.names import torchvision
from kdjax.models.weights.names.mmdetection import DENSE, SSD
from kdjax.models.weights.names.torchvision import RESNET
from kdjax.models.weights.torch import Names, arrays, entries, from_torch

BACKBONE = tuple(names for names in RESNET if names[0] != "classifier")
CONSTANTS = ("bbox_head.integral.project",)  # numbers that follow from the head


def weights_of(path: str | Path, module: nnx.Module) -> dict[str, np.ndarray]:
    """The weights of a file by path, such as `params/backbone/stages/1/0/layers/0/conv/kernel`.

    Args:
      path: see `kdjax.models.weights.files.read_weights`.
      module: the detector; of shapes alone will do.

    Raises:
      ValueError: the file is damaged or of another network; the message names the entries.
    """
    held = {name: value for name, value in arrays(read_weights(path)).items() if name not in CONSTANTS}
    whole = any(name.startswith(("backbone.", "bbox_head.", "head.")) for name in held)
    try:
        if whole:
            held = adapted(held, module)
            trees = from_torch(module, held, names_in(held, module))
        elif not isinstance(getattr(module, "backbone", None), ResNetBackbone):
            raise ValueError("it is no whole detector, and the backbone is no ResNet")
        else:
            own = {name: value for name, value in held.items() if not name.startswith("fc.")}
            trees = tuple({"backbone": tree} for tree in from_torch(module.backbone, own, BACKBONE))
    except ValueError as error:
        kind = (
            f"detector of {'torchvision' if _of_torchvision(module) else 'mmdetection'}"
            if whole
            else "ResNet of torchvision"
        )
        raise ValueError(f"{path} is not the {kind} that this begins from: {str(error).rstrip('.')}.") from error
    return flat({"params": trees[0], "state": trees[1]})


def sizes_in(path: str | Path, module: nnx.Module) -> tuple[int, int]:
    """Classes, and channels of the pictures, of the detector in a file of mmdetection or torchvision.

    Args:
      path: see `kdjax.models.weights.files.read_weights`.
      module: a detector of its kind, of one class.

    Raises:
      ValueError: the file is damaged, or lacks what says it.
    """
    held = arrays(read_weights(path))
    named = {"/".join(entry.path): entry for entry in entries(module, names_in(held, module))}
    first = next(name for name in named if name.startswith("backbone/") and name.endswith("/kernel"))
    last = next(name for name in named if name.startswith("head/classes/") and name.endswith("/kernel"))
    for name in (named[first].name, named[last].name):
        if name not in held or np.ndim(held[name]) != 4:
            raise ValueError(f"{path} has no entry {name!r} of four axes, and is of another network.")
    background = int(getattr(module, "background", False))
    anchors = named[last].shape[0] // (1 + background)
    return len(held[named[last].name]) // anchors - background, held[named[first].name].shape[1]


def names_in(held: Iterable[str], module: nnx.Module) -> Names:
    """The table of a detector's names that fits the entries of a file best.

    Raises:
      ValueError: no published names are known of this detector.
    """
    if isinstance(module, TorchvisionRetinaNet | TorchvisionFCOS):
        tables = torchvision.FCOS if isinstance(module, TorchvisionFCOS) else torchvision.RETINANET
    elif _of_torchvision(module):
        tables = (torchvision.SSD,)
    elif isinstance(module, DenseDetector) and isinstance(module.backbone, ResNetBackbone):
        tables = DENSE[module.kind]
    elif isinstance(module, SSDDetector) and isinstance(module.backbone, VGGBackbone):
        tables = SSD
    else:
        raise ValueError("no published names are known of this detector")
    there = set(held)
    return max(tables, key=lambda table: len(there & {entry.name for entry in entries(module, table)}))


def adapted(held: dict[str, np.ndarray], module: nnx.Module) -> dict[str, np.ndarray]:
    """The entries of a file of torchvision as this detector has them: background, SSD's first class there, is the last. All
    others are as they are."""
    if not (isinstance(module, SSDDetector) and _of_torchvision(module)):
        return held
    moved = dict(held)
    for i, kinds in enumerate(module.shapes):
        for leaf in ("weight", "bias"):
            name = f"head.classification_head.module_list.{i}.{leaf}"
            if name in held and len(held[name]) % len(kinds) == 0:
                array = np.asarray(held[name])
                split = array.reshape(len(kinds), -1, *array.shape[1:])
                moved[name] = np.roll(split, -1, axis=1).reshape(array.shape)
    return moved


def _of_torchvision(module: nnx.Module) -> bool:
    """Whether a detector's names are torchvision's."""
    dense = isinstance(module, TorchvisionRetinaNet | TorchvisionFCOS)
    return dense or (isinstance(module, SSDDetector) and module.shapes == TORCHVISION.shapes)

"""Weights that a detector begins from: a whole one of mmdetection, or the ResNet of torchvision that is its backbone."""

from pathlib import Path

import numpy as np
from flax import nnx

from kdjax.models.weights.beginning import flat
from kdjax.models.weights.files import read_weights
from kdjax.models.weights.names.mmdetection import GFL
from kdjax.models.weights.names.torchvision import RESNET
from kdjax.models.weights.torch import arrays, from_torch

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
    whole = any(name.startswith(("backbone.", "bbox_head.")) for name in held)
    try:
        if whole:
            trees = from_torch(module, held, GFL)
        else:
            own = {name: value for name, value in held.items() if not name.startswith("fc.")}
            trees = tuple({"backbone": tree} for tree in from_torch(module.backbone, own, BACKBONE))
    except ValueError as error:
        kind = "detector of mmdetection" if whole else "ResNet of torchvision"
        raise ValueError(f"{path} is not the {kind} that this begins from: {str(error).rstrip('.')}.") from error
    return flat({"params": trees[0], "state": trees[1]})

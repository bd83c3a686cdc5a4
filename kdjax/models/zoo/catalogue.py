"""The networks of kdjax by name."""

import difflib
import inspect
from collections.abc import Callable
from typing import Any

from flax import nnx

from kdjax.models.rematerialization import Recomputable
from kdjax.models.zoo.cifar import CIFAR
from kdjax.models.zoo.imagenet import IMAGENET
from kdjax.models.zoo.normalization import BatchNorm
from kdjax.models.zoo.small_cnn import SmallCNN


def _small_cnn(num_classes: int, in_channels: int, rngs: nnx.Rngs, **options: int) -> nnx.Module:
    return SmallCNN(num_classes, in_channels=in_channels, rngs=rngs, **options)


# name -> (num_classes, in_channels, rngs, **options) -> module. `width` is the number of channels of the first stage.
NETWORKS: dict[str, Callable[..., nnx.Module]] = {
    **CIFAR,
    "small_cnn": _small_cnn,
    **IMAGENET,
}
# The least width of networks that have no width of 4.
LEAST_WIDTHS = {"shufflenetv1": 120}


def build(
    name: str,
    *,
    num_classes: int,
    in_channels: int,
    rngs: nnx.Rngs,
    width: int | None = None,
    image_size: tuple[int, int] | None = None,
    batchnorm_groups: int = 1,
    remat: bool = False,
) -> nnx.Module:
    """Makes the network called `name`.

    Args:
      name: a key of `NETWORKS`.
      num_classes: `C` of its logits `[B, C]`.
      in_channels: channels of its input `[B, H, W, in_channels]`.
      rngs: its "params" stream draws the weights.
      width: channels of the first stage; the others keep their ratio to it. None is the published width (16 for
        `resnet*` and `small_cnn`, 64 for `resnet*x4`). See `zoo/cifar.py` and `zoo/imagenet.py` for networks of which it says
        something else.
      image_size: height and width of the images, for networks that are made for one size; None for the one in their name.
      batchnorm_groups: runs of the batch's rows that BatchNorm normalises each by itself; 1 for the whole batch.
      remat: compute the activations inside every block a second time in the backward pass instead of keeping them: less
        memory for one more forward pass, but for CPUs; the values are the same. See `Recomputable`.

    Raises:
      ValueError: there is no such network, or none of this width.
    """
    if name not in NETWORKS:
        near = difflib.get_close_matches(name, NETWORKS, n=1, cutoff=0.0)
        raise ValueError(f"unknown network {name!r}; did you mean {near[0]!r}? Known: {', '.join(NETWORKS)}")
    options: dict[str, Any] = {} if width is None else {"width": width}
    if image_size is not None and "image_size" in inspect.signature(NETWORKS[name]).parameters:
        options["image_size"] = image_size
    module = NETWORKS[name](num_classes, in_channels, rngs, **options)
    for _, part in nnx.iter_modules(module):
        if isinstance(part, BatchNorm):
            part.groups = batchnorm_groups
        elif isinstance(part, Recomputable):
            part.recompute = remat
    return module

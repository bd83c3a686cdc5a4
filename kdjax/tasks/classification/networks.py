"""Networks that classify images: those of the zoo."""

import dataclasses

from kdjax.models import from_nnx, zoo
from kdjax.tasks.task import Model
from kdjax.types import Network


@dataclasses.dataclass(frozen=True, kw_only=True)
class Classifier(Model):
    """A network of the zoo."""

    name: str = "small_cnn"
    """which network"""
    width: int = 0
    """channels of the first stage, where the network has that option; 0 for its own"""
    batchnorm_groups: int = 1
    """runs of the batch's rows that BatchNorm normalises each by itself, whatever the hardware; 1 for the whole batch"""


def make_classifier(model: Classifier, num_classes: int, channels: int, *, remat: bool = False) -> Network:
    """The network for images of so many channels; `remat` as in `kdjax.models.zoo.build`."""
    options = {"num_classes": num_classes, "in_channels": channels, "width": model.width or None,
               "batchnorm_groups": model.batchnorm_groups, "remat": remat}  # fmt: skip
    name = f"{model.name} (width {model.width})" if model.width else model.name
    return from_nnx(lambda rngs: zoo.build(model.name, rngs=rngs, **options), parts=("classify", "norms"), name=name)

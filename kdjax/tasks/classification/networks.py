"""Networks that classify images: those of the zoo, and the user's own."""

import dataclasses
import functools
from typing import Any

import jax

from kdjax.models import from_nnx, zoo
from kdjax.models.referenced import from_reference
from kdjax.references import absolute, is_reference
from kdjax.tasks.classification.foreign import resized
from kdjax.tasks.task import Model
from kdjax.types import Network, Tree

TAPPED = ("features", "embedding", "preactivations")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Classifier(Model):
    """A network of the zoo, or of one's own."""

    name: str = "small_cnn"
    """which network of the zoo; or one's own, as my_models.py:TinyNet or package.module:Class"""
    width: int = 0
    """channels of the first stage, where the network has that option; 0 for its own"""
    options: tuple[str, ...] = ()
    """arguments of one's own network, as depth=3"""
    features: tuple[str, ...] = ()
    """paths of the modules of one's own network that feature methods compare, as layers/0"""
    embedding: str = ""
    """path of the module of one's own network whose output methods of embeddings compare"""
    preactivations: tuple[str, ...] = ()
    """paths of modules whose output is taken before the activation, for methods that compare that"""
    mean: tuple[float, ...] = ()
    """normalisation that the network was trained with, where it is not that of data.views; empty with std: that one"""
    std: tuple[float, ...] = ()
    """likewise"""
    resolution: int = 0
    """pixels a side that the network is shown images at, where that is not their size in the data; 0: as they are"""
    classes: tuple[str, ...] = ()
    """names of the classes that the network knows, in its order, where they are not those of the data; empty: those"""
    batchnorm_groups: int = 1
    """runs of the batch's rows that BatchNorm normalises each by itself, whatever the hardware; 1 for the whole batch"""

    def __post_init__(self):
        object.__setattr__(self, "name", absolute(self.name))  # a saved run is read from anywhere
        if self.resolution < 0:
            raise ValueError(f"Classifier.resolution is {self.resolution}; use pixels, or 0 for images as they are.")

    def known_classes(self, names):
        return self.classes or names


def make_classifier(model: Classifier, inputs: Tree, num_classes: int, *, remat: bool = False) -> Network:
    """The network for inputs of these shapes; `remat` as in `kdjax.models.zoo.build`.

    Raises:
      ValueError: there is no such network, or it does not take these options.
    """
    if len(inputs.shape) == 2 and (model.resolution or not is_reference(model.name)):
        what = "network.resolution is" if model.resolution else f"{model.name} of the zoo is"
        raise ValueError(
            f"{what} for images, and the inputs are vectors [{inputs.shape[1]}]; name a network of your own, as my.py:Net."
        )
    if model.resolution:
        shown = jax.ShapeDtypeStruct(
            (inputs.shape[0], model.resolution, model.resolution, inputs.shape[-1]), inputs.dtype
        )
        return resized(
            make_classifier(dataclasses.replace(model, resolution=0), shown, num_classes, remat=remat), model.resolution
        )
    channels = inputs.shape[-1]
    if is_reference(model.name):
        if remat:
            raise ValueError(f"remat is for networks of the zoo; apply nnx.remat or nn.remat inside {model.name}.")
        size = "image_size" if len(inputs.shape) == 4 else "input_size"
        facts = {"num_classes": num_classes, "in_channels": channels, size: inputs.shape[1]}
        facts |= {"width": model.width} if model.width else {}
        taps = {field: getattr(model, field) for field in TAPPED if getattr(model, field)}
        return from_reference(model.name, inputs, facts=facts, options=model.options, **taps)
    for field in ("options", *TAPPED):
        if getattr(model, field):
            raise ValueError(f"{model.name} is of the zoo and says its features itself; leave its {field} empty.")
    options = {"num_classes": num_classes, "in_channels": channels, "width": model.width or None,
               "image_size": inputs.shape[1:3], "batchnorm_groups": model.batchnorm_groups, "remat": remat}  # fmt: skip
    return _of_the_zoo(model.name, f"{model.name} (width {model.width})" if model.width else model.name, **options)


@functools.lru_cache(maxsize=64)  # methods and seeds that differ in nothing else need not trace its constructor anew
def _of_the_zoo(name: str, title: str, **options: Any) -> Network:
    return from_nnx(lambda rngs: zoo.build(name, rngs=rngs, **options), parts=("classify", "norms"), name=title)

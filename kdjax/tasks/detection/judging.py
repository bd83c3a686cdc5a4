"""Networks that see the boxes of the objects as well: classifiers of crops, and detectors beside them."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from kdjax.losses import crop_and_resize
from kdjax.tasks.detection.decoding import Detected
from kdjax.types import Array, ModelOutput, Network


class Shown:
    """Examples of a split whose boxes are an input too."""

    def __init__(self, split: Any):
        self.split = split

    def __len__(self) -> int:
        return len(self.split)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.split, name)

    @property
    def inputs(self) -> dict[str, np.ndarray]:
        """Of all examples, where the split has them at hand."""
        return self.split.inputs | {"boxes": self.split.boxes}

    def read(self, indices: np.ndarray, *, inputs: bool = True, **more: Any) -> dict[str, Any]:
        rows = self.split.read(indices, inputs=inputs, **more)
        if not inputs:
            return rows
        return rows | {"inputs": rows["inputs"] | {"boxes": rows["targets"]["boxes"]}}


def passing_on(network: Network) -> Network:
    """A detector that sees `{"image", ...}` and passes the picture on, as "image" among the taps of what it says."""

    def apply(params, state, view, **options):
        output, state = network.apply(params, state, view["image"], **options)
        return dataclasses.replace(output, taps=output.taps | {"image": view["image"]}), state

    return network._replace(apply=apply)


def of_crops(network: Network, size: int) -> Network:
    """A classifier of pictures as one of objects: of "image" `[B, H, W, C]` and "boxes" `[B, G, 4]` it says logits `[B, G, K]`.

    Padded boxes are crops of one pixel. The part "stem" is what it makes of crops `[N, size, size, C]` in its first stage.
    """

    def apply(params, state, view, **options):
        if "boxes" not in view:
            raise ValueError(
                f"{network.name} judges objects whose boxes are given, and there are none; use a detector."
            )
        image, boxes = view["image"], view["boxes"].astype(view["image"].dtype)
        crops = jax.vmap(lambda image, boxes: crop_and_resize(image, boxes, size))(image, boxes)
        output, state = network.apply(params, state, jnp.reshape(crops, (-1, *crops.shape[2:])), **options)
        return ModelOutput(logits=jnp.reshape(output.logits, (*boxes.shape[:2], -1))), state

    def stem(params, state, crops: Array) -> Array:
        return network.apply(params, state, crops, train=False)[0].features[0]

    return network._replace(apply=apply, parts={"stem": stem})


def judged(output: ModelOutput, boxes: Array) -> Detected:
    """The boxes that a classifier was given as detections: each of its likeliest class, as sure as that is likely."""
    there = jnp.all(boxes[..., 2:] > boxes[..., :2], axis=-1)
    scores = jnp.max(jax.nn.softmax(output.logits), axis=-1)
    labels = jnp.argmax(output.logits, axis=-1).astype(jnp.int32)
    order = jnp.argsort(jnp.where(there, -scores, jnp.inf), axis=1)
    sort = lambda x: jnp.take_along_axis(x, order, axis=1)
    there, scores, labels = sort(there), sort(scores), sort(labels)
    boxes = jnp.take_along_axis(boxes, order[..., None], axis=1)
    return Detected(jnp.where(there[..., None], boxes, 0), jnp.where(there, scores, 0), jnp.where(there, labels, -1))

"""Two small convolutional networks with BatchNorm, and batches for them."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from kdjax.models import from_nnx, output_shapes
from kdjax.models.zoo.normalization import BatchNorm
from kdjax.types import Batch, ModelOutput

CLASSES, SIZE = 5, 6


class ToyNet(nnx.Module):
    def __init__(self, width, rngs):
        self.conv1 = nnx.Conv(2, width, (3, 3), rngs=rngs)
        self.norm1 = BatchNorm(width, rngs=rngs)
        self.conv2 = nnx.Conv(width, 2 * width, (3, 3), strides=2, rngs=rngs)
        self.norm2 = BatchNorm(2 * width, rngs=rngs)
        self.classifier = nnx.Linear(2 * width, CLASSES, rngs=rngs)

    def __call__(self, x):
        first = jax.nn.relu(self.norm1(self.conv1(x)))
        second = jax.nn.relu(self.norm2(self.conv2(first)))
        embedding = second.mean((1, 2))
        return ModelOutput(logits=self.classify(embedding), features=(first, second), embedding=embedding)

    def classify(self, embedding):
        return self.classifier(embedding)


def toy(width):
    return from_nnx(lambda rngs: ToyNet(width, rngs), name=f"toy{width}", parts=("classify",))


def toy_batch(size=16, seed=0, partial=True, dtype=np.float32):
    """A batch with an uneven mask: some devices hold rows that do not exist, some hold no labelled row."""
    rng = np.random.default_rng(seed)
    where, labelled = np.ones(size, bool), np.ones(size, bool)
    if partial:
        where[-3:] = False
        labelled[:5] = False
    return Batch(
        inputs=rng.standard_normal((size, SIZE, SIZE, 2)).astype(dtype),
        targets=rng.integers(0, CLASSES, size).astype(np.int32),
        index=np.arange(size, dtype=np.int32),
        where=where,
        labelled=labelled,
    )


def shapes(network, dtype=jnp.float32, rows=4):
    return output_shapes(network, jax.ShapeDtypeStruct((rows, SIZE, SIZE, 2), dtype))

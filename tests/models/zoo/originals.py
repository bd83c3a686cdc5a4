"""The numbers of the PyTorch originals, and a forward and backward pass of ours to set beside them."""

import functools
import json
import pathlib
from typing import Any, NamedTuple
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from kdjax.models import zoo
from kdjax.models.functional import functionalise
from kdjax.models.rematerialization import Recomputable
from kdjax.models.weights.zoo import zoo_from_torch, zoo_to_torch
from kdjax.types import ModelOutput

GOLDEN = pathlib.Path(__file__).parents[2] / "golden"
MANIFEST = json.loads((GOLDEN / "manifest_models.json").read_text())["methods"]
SHAPES = MANIFEST["model_shapes"]["cases"]
# Names of ours that are not the original's in lower case.
OURS = {"mobile_half": "mobilenetv2", "ShuffleV1": "shufflenetv1", "ShuffleV2": "shufflenetv2"}
OURS |= {f"ResNet{depth}": f"resnet{depth}_cifar" for depth in (18, 34, 50)}
STATISTICS = ("running_mean", "running_var")
BUFFERS = (*STATISTICS, "num_batches_tracked")


def ours(symbol):
    """Our name of a network of the original, `vgg8` of `vgg8_bn`."""
    return OURS.get(symbol, symbol.removesuffix("_bn"))


@functools.cache
def arrays(file):
    with np.load(GOLDEN / file) as z:
        return {name: z[name] for name in z.files}


def published(symbol):
    """What is listed of a network of the original, with names and shapes of its weights where they are."""
    cases = [case for case in SHAPES.values() if case["symbol"] == symbol]
    return next((case for case in cases if "state_dict" in case), cases[0])


def image_shape(case):
    """`(channels, H, W)`: the stem keeps the size, that of MobileNetV2 halves it; three channels where no weights are listed."""
    kernel = case.get("state_dict", [["", [None, 3]]])[0][1]
    stride = 2 if case["symbol"] == "mobile_half" else 1
    return kernel[1], *(stride * size for size in case["feats"][0][2:])


def recipe(listed, seed):
    """Documented weights by `(name, shape)` as PyTorch lists them: entry `j` comes from seed `seed + j`, scaled by what it is."""
    state_dict = {}
    for j, (entry, shape) in enumerate(listed):
        z = np.random.RandomState(seed + j).standard_normal(int(np.prod(shape))).reshape(shape)
        if entry.endswith("num_batches_tracked"):
            value = np.zeros(shape, np.int64)
        elif entry.endswith("running_mean"):
            value = 0.1 * z
        elif entry.endswith("running_var"):
            value = 1 + 0.5 * np.abs(z)
        elif len(shape) == 4:
            value = z * np.sqrt(2 / np.prod(shape[1:]))
        elif len(shape) == 2:
            value = z / np.sqrt(shape[1])
        else:
            value = 1 + 0.1 * z if entry.endswith(".weight") else 0.1 * z
        state_dict[entry] = value if value.dtype == np.int64 else value.astype(np.float32)
    return state_dict


def recipe_state_dict(symbol, seed, num_classes):
    """The weights of `model_recipe`, for so many classes: of the classifier, which is last."""
    listed = published(symbol)["state_dict"]
    last = [(entry, [num_classes, *shape[1:]]) for entry, shape in listed[-2:]]
    return recipe([*listed[:-2], *last], seed)


class Pass(NamedTuple):
    """What a forward and a backward pass gave; gradients and statistics by the original's names."""

    output: ModelOutput
    loss: Any
    input_gradient: Any
    gradients: dict[str, np.ndarray]
    statistics: dict[str, np.ndarray]


def run(name, state_dict, x, labels, *, train, dtype) -> Pass:
    """One pass of cross-entropy; `x` is NCHW."""
    params, state = jax.tree.map(lambda v: v.astype(dtype), zoo_from_torch(name, state_dict))
    classes = list(state_dict.values())[-1].shape[0]
    network = functionalise(lambda rngs: zoo.build(name, num_classes=classes, in_channels=x.shape[1], rngs=rngs))

    @functools.partial(jax.value_and_grad, argnums=(0, 1), has_aux=True)
    def loss(params, x):
        output, new_state = network.call(params, state, lambda module: module(x), train=train)
        log_probabilities = jax.nn.log_softmax(output.logits)
        picked = jnp.take_along_axis(log_probabilities, labels[:, None], axis=1)
        return -jnp.mean(picked), (output, new_state)

    with mock.patch.object(Recomputable, "__call__", _one_program_a_kind):
        (value, (output, new_state)), gradients = loss(*jax.tree.map(jnp.asarray, (params, _nhwc(x).astype(dtype))))
    output, value, (dparams, dx), new_state = jax.device_get((output, value, gradients, new_state))
    entries = zoo_to_torch(name, dparams, new_state)
    return Pass(
        output=output,
        loss=value,
        input_gradient=dx,
        gradients={entry: v for entry, v in entries.items() if not entry.endswith(BUFFERS)},
        statistics={entry: v for entry, v in entries.items() if entry.endswith(STATISTICS)},
    )


def _one_program_a_kind(block, x):
    """A block in a program that all blocks of its kind share: a deep network compiles as fast as a shallow one."""
    graph, state = nnx.split(block)
    y, state = _of_this_kind(graph, state, x)
    nnx.update(block, state)
    return y


@functools.partial(jax.jit, static_argnums=0)
def _of_this_kind(graph, state, x):
    block = nnx.merge(graph, state)
    return block.forward(x), nnx.state(block)


def _nhwc(x):
    return x.transpose(0, 2, 3, 1)


def nchw(feature):
    return feature.transpose(0, 3, 1, 2)


def norms(entries):
    return np.array([np.linalg.norm(value) for value in entries.values()])

"""The pair in Keras on its JAX backend, trained by `keras.distillation.Distiller`."""

import os

os.environ["KERAS_BACKEND"] = "jax"  # before keras is imported, which reads it once

import keras
import numpy as np
from keras import layers

from benchmarking.comparison import MOMENTUM, RATE, SHARE, TEMPERATURE, Peer
from benchmarking.pair import Pair


def resnet(params, state, size: int) -> keras.Model:
    """A CIFAR ResNet with weights of kdjax; sizes are read off them."""

    def convolved(x, kernel, stride=1):
        kernel = np.asarray(kernel)
        if kernel.shape[0] == 3:
            x = layers.ZeroPadding2D(1)(x)
        layer = layers.Conv2D(kernel.shape[3], kernel.shape[0], stride, use_bias=False)
        x = layer(x)
        layer.set_weights([kernel])
        return x

    def normalised(x, values, statistics):
        layer = layers.BatchNormalization(momentum=0.9, epsilon=1e-5)
        x = layer(x)
        layer.set_weights(
            [np.asarray(a) for a in (values["scale"], values["bias"], statistics["mean"], statistics["var"])]
        )
        return x

    def block(x, values, statistics, stride):
        y = layers.ReLU()(
            normalised(convolved(x, values["conv1"]["kernel"], stride), values["norm1"], statistics["norm1"])
        )
        y = normalised(convolved(y, values["conv2"]["kernel"]), values["norm2"], statistics["norm2"])
        if "shortcut_conv" in values:
            x = convolved(x, values["shortcut_conv"]["kernel"], stride)
            x = normalised(x, values["shortcut_norm"], statistics["shortcut_norm"])
        return layers.ReLU()(layers.Add()([y, x]))

    inputs = keras.Input((size, size, 3))
    x = layers.ReLU()(
        normalised(convolved(inputs, params["stem_conv"]["kernel"]), params["stem_norm"], state["stem_norm"])
    )
    for stage, blocks in sorted(params["stages"].items()):
        for number in sorted(blocks, key=int):
            stride = 2 if stage != "0" and number == "0" else 1
            x = block(x, blocks[number], state["stages"][stage][number], stride)
    kernel, bias = np.asarray(params["classifier"]["kernel"]), np.asarray(params["classifier"]["bias"])
    head = layers.Dense(kernel.shape[1], dtype="float32")
    outputs = head(layers.GlobalAveragePooling2D()(x))
    head.set_weights([kernel, bias])
    return keras.Model(inputs, outputs)


def keras_peer(pair: Pair) -> Peer:
    """Keras' own distiller, trained by `fit`."""
    if keras.backend.backend() != "jax":
        raise RuntimeError(f"Keras was loaded with the backend {keras.backend.backend()}; run this in a fresh process.")
    from keras.distillation import Distiller, LogitsDistillation

    keras.mixed_precision.set_global_policy("mixed_bfloat16" if pair.setting.precision == "bfloat16" else "float32")
    begin = pair.state()
    weights = begin.params["student"], begin.state["student"]
    size, batch_size = pair.setting.size, pair.setting.batch_size

    # As an object: of the name, its default, Keras 3.15 takes the divergence of logits that are no probabilities.
    divergence = keras.losses.KLDivergence()

    def fresh():
        distiller = Distiller(
            teacher=resnet(pair.variables.params, pair.variables.state, size),
            student=resnet(*weights, size),
            distillation_losses=LogitsDistillation(TEMPERATURE, divergence),
            student_loss_weight=1 - SHARE,
        )
        labels = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        distiller.compile(keras.optimizers.SGD(RATE, momentum=MOMENTUM), loss=labels)
        return distiller

    def losses(images, labels, count):
        distiller, found = fresh(), []
        for _ in range(count):
            distiller.reset_metrics()
            found.append(float(distiller.train_on_batch(images, labels, return_dict=True)["total_loss"]))
        return found

    kept = fresh()
    joined = {}

    def train(batches):
        if id(batches) not in joined:  # one array, as users have it
            joined[id(batches)] = [np.concatenate(arrays) for arrays in zip(*batches, strict=True)]
        images, labels = joined[id(batches)]
        return kept.fit(images, labels, batch_size=batch_size, epochs=1, shuffle=False, verbose=0)

    networks = kept.teacher, kept.student
    trained = [
        sum(int(np.prod(w.shape)) for layer in n.layers for w in layer.weights if not _is_statistic(w))
        for n in networks
    ]
    return Peer("Keras Distiller", tuple(trained), tuple(map(_operations, networks)), losses, train, lambda _: None,
                f"Keras {keras.version()} on JAX")  # fmt: skip


def _is_statistic(weight) -> bool:
    return weight.path.endswith(("moving_mean", "moving_variance"))


def _operations(network: keras.Model) -> int:
    """Multiplications in convolutions and dense layers of one image."""
    total = 0
    for layer in network.layers:
        if isinstance(layer, layers.Conv2D | layers.Dense):
            kernel = layer.kernel.shape
            total += int(np.prod(layer.output.shape[1:])) * int(np.prod(kernel[:-1]))
    return total

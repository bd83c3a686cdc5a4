"""Classifiers of texts and of pictures that learn from labels, smoothed labels or a teacher: all by one program."""

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from kdjax import losses
from kdjax.data import make_splits
from kdjax.experiment.config import load_config
from kdjax.studies.sources_training import images_of, make_network
from kdjax.types import Array, ModelOutput, Network

SMALL, LARGE = "small", "large"
TEXTS, PICTURES = "texts", "pictures"
ROWS = 64  # of a batch
DECAY, CLIP = 0.01, 1.0
RATES = {TEXTS: 5e-3, PICTURES: 1e-2}
VOCABULARY, LENGTH, HELD = 4096, 48, 600  # kinds of words, words of a text, and texts to validate on
WIDTHS = {SMALL: 8, LARGE: 32}  # of a bag of words; its hidden layer is twice as wide
PAIRS = 4096  # kinds of pairs of neighbouring words, by a checksum, that the large bag knows too
DROPOUT = 0.1
CHANNELS = {SMALL: 4, LARGE: 12}  # of small_cnn's first stage, of one convolution


class Task(NamedTuple):
    """Inputs, a pytree of `[N, ...]`, and classes `[N]`."""

    inputs: Any
    labels: Any


class Domain(NamedTuple):
    """Training, validation and test examples, the small and the large network, and a few words on both."""

    train: Task
    validation: Task
    test: Task
    networks: Mapping[str, Network]
    words: str


class Arm(NamedTuple):
    """What a student learns from: `(1 - alpha) CE(labels smoothed by smoothing) + alpha T² KL(teacher ‖ student)`."""

    smoothing: float = 0.0
    alpha: float = 0.0
    temperature: float = 1.0


ERM = Arm()


def loss(arm: Arm, student_logits: Array, teacher_logits: Array, labels: Array) -> Array:
    """The loss of an arm, `[B]`, whose settings may be traced: one program for all arms. Smoothing spreads over all classes."""
    hard = losses.label_smoothing_xent(student_logits, labels, smoothing=arm.smoothing)
    soft = losses.kd(student_logits, teacher_logits, temperature=arm.temperature)
    return (1 - arm.alpha) * hard + arm.alpha * soft


class Trainer:
    """Trains networks of one kind on one set of examples, the same number of steps whatever they learn from."""

    def __init__(self, network: Network, train: Task, steps: int, rate: float):
        self.network, self.train, self.steps = network, train, steps
        schedule = optax.warmup_cosine_decay_schedule(0.0, rate, max(steps // 10, 1), steps)
        matrices = lambda tree: jax.tree.map(lambda x: x.ndim > 1, tree)
        adam = optax.adamw(schedule, weight_decay=DECAY, mask=matrices)
        self.optimizer = optax.chain(optax.clip_by_global_norm(CLIP), adam)
        self._init, self._run = jax.jit(network.init), jax.jit(self._step, donate_argnums=(0, 1, 2))
        self._say = jax.jit(lambda params, state, x: network.apply(params, state, x, train=False)[0].logits)
        shape = jax.eval_shape(self._say, *jax.eval_shape(network.init, jax.random.key(0)), train.inputs)
        self.untaught = jnp.zeros(shape.shape, shape.dtype)

    def trained(self, seed: int, arm: Arm = ERM, teacher_logits: Any = None) -> Any:
        """Weights and statistics after training. A seed fixes the first weights and which examples are seen when.

        Args:
          seed: of weights, order and dropout.
          arm: what is learned from.
          teacher_logits: `[N, C]`, of the training examples.

        Raises:
          ValueError: the arm needs a teacher's logits, and there are none.
        """
        if arm.alpha and teacher_logits is None:
            raise ValueError(
                f"alpha={arm.alpha:g} needs teacher_logits of the training examples; give them, or alpha=0."
            )
        params, state = self._init(jax.random.key(seed))
        taught = self.untaught if teacher_logits is None else jnp.asarray(teacher_logits)
        arm = Arm(*map(float, arm))
        slots = self.optimizer.init(params)
        for key in jax.random.split(jax.random.key(seed + 2000), self.steps):
            params, state, slots = self._run(params, state, slots, self.train, taught, arm, key)
        return params, state

    def logits(self, trained: Any, inputs: Any, batch: int = 500) -> np.ndarray:
        """`[N, C]` of examples, batch by batch."""
        count = len(jax.tree.leaves(inputs)[0])
        parts = [
            self._say(*trained, jax.tree.map(lambda x, i=i: x[i : i + batch], inputs)) for i in range(0, count, batch)
        ]
        return np.concatenate(parts)

    def _step(self, params, state, slots, train, teacher_logits, arm, key):
        drawn, dropped = jax.random.split(key)
        rows = jax.random.randint(drawn, (ROWS,), 0, len(train.labels))
        batch, taught = jax.tree.map(lambda x: x[rows], train), teacher_logits[rows]

        def of(params):
            output, after = self.network.apply(params, state, batch.inputs, train=True, rngs=dropped)
            return jnp.mean(loss(arm, output.logits, taught, batch.labels)), after

        gradient, state = jax.grad(of, has_aux=True)(params)
        change, slots = self.optimizer.update(gradient, slots, params)
        return optax.apply_updates(params, change), state, slots


# --- texts and pictures ---


def bag(width: int, *, vocabulary: int, classes: int, pairs: int = 0) -> Network:
    """A bag of words: the mean embedding of the words, and of pairs of neighbours, through one hidden layer.

    Args:
      width: of an embedding; the hidden layer is twice as wide.
      vocabulary: kinds of tokens.
      classes: `C`.
      pairs: kinds of pairs, told apart by a checksum; 0 for none.
    """

    def init(key):
        words, neighbours, hidden, out = jax.random.split(key, 4)
        normal = lambda key, rows, columns, deviation: deviation * jax.random.normal(key, (rows, columns))
        params = {
            "words": normal(words, vocabulary, width, 0.1),
            "hidden": {"kernel": normal(hidden, width, 2 * width, (2 / width) ** 0.5), "bias": jnp.zeros(2 * width)},
            "classifier": {"kernel": normal(out, 2 * width, classes, (0.5 / width) ** 0.5), "bias": jnp.zeros(classes)},
        }  # fmt: skip
        if pairs:
            params["pairs"] = normal(neighbours, pairs, width, 0.1)
        return params, {}

    def apply(params, state, inputs, *, train, rngs=None, axis=None):
        del axis
        ids, there = inputs["input_ids"], inputs["attention_mask"].astype(jnp.float32)
        embedding = mean(params["words"][ids], there)
        if pairs:
            both = (ids[:, :-1].astype(jnp.uint32) * jnp.uint32(40_503) + ids[:, 1:].astype(jnp.uint32)) % pairs
            embedding = embedding + mean(params["pairs"][both], there[:, :-1] * there[:, 1:])
        hidden = jax.nn.relu(linear(params["hidden"], embedding))
        if train:
            kept = jax.random.bernoulli(rngs, 1 - DROPOUT, hidden.shape)
            hidden = jnp.where(kept, hidden / (1 - DROPOUT), 0)
        return ModelOutput(linear(params["classifier"], hidden), embedding=embedding), state

    return Network(init, apply, name=f"bag of words{' and pairs' * bool(pairs)}, {width} wide")


def mean(x: Array, there: Array) -> Array:
    """`[B, L, D]` to `[B, D]`, over those that are `there`, `[B, L]`; 0 where none is."""
    return jnp.sum(x * there[..., None], axis=1) / jnp.maximum(jnp.sum(there, axis=1), 1)[:, None]


def linear(params: Mapping[str, Array], x: Array) -> Array:
    return x @ params["kernel"] + params["bias"][None]


def texts(few: int | None = None, *, transformers: bool = False) -> Domain:
    """Docstrings of Python's standard library and their kind of module; bags of words, or transformers. `few` leaves so many of
    each split."""
    made = load_config("text/docstrings")("kd")
    task = dataclasses.replace(made.data, tokenizer=f"words:{VOCABULARY}", length=LENGTH, validation=HELD, labelled=0)
    data = task.load()
    splits = make_splits(data.info.labels, validation=HELD, split_seed=task.split_seed)
    spaced = lambda rows: rows[np.linspace(0, len(rows) - 1, few or len(rows)).round().astype(int)]
    of = lambda examples, rows: Task(*map(_on_device, examples.read(spaced(rows)).values()))
    classes = data.info.num_classes
    if transformers:
        shapes = {SMALL: made.student.network, LARGE: dataclasses.replace(made.phase("teacher").network, dropout=0.0)}
        networks = {
            size: task.network(dataclasses.replace(shape, length=LENGTH), data) for size, shape in shapes.items()
        }
    else:
        size = int(max(data.train.inputs["input_ids"].max(), data.held.inputs["input_ids"].max())) + 1
        networks = {
            SMALL: bag(WIDTHS[SMALL], vocabulary=size, classes=classes),
            LARGE: bag(WIDTHS[LARGE], vocabulary=size, classes=classes, pairs=PAIRS),
        }  # fmt: skip
    words = f"docstrings of Python's standard library, {classes} kinds of module, {LENGTH} words at most"
    return Domain(of(data.train, splits.train), of(data.train, splits.validation), of(data.held, data.held_index), networks,
                  words)  # fmt: skip


def pictures(few: int | None = None) -> Domain:
    """Embedded images of Fashion-MNIST, and small_cnn. `few` leaves so many of each split."""
    splits = (Task(task.inputs, task.labels) for task in images_of(10, few))
    networks = {size: make_network(width, 10, 1) for size, width in CHANNELS.items()}
    return Domain(*splits, networks, "embedded images of Fashion-MNIST, 10 classes, none cropped or flipped")


def _on_device(tree: Any) -> Any:
    return jax.tree.map(jnp.asarray, tree)

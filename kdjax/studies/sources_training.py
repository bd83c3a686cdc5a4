"""Students that learn from one source of their teacher's knowledge, trained step by step on what it said once of every image."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from kdjax import losses
from kdjax.data import make_splits
from kdjax.data.fashion_mnist import embedded
from kdjax.models import from_nnx
from kdjax.models.zoo.small_cnn import SmallCNN
from kdjax.types import Array, ModelOutput, Network

LABELS = "labels"
ROWS = 64
RATE, DECAY, CLIP = 0.3, 5e-4, 5.0
MEAN, DEVIATION = 0.286, 0.353  # of the pixels
CLASSES = {2: (0, 6), 5: (0, 2, 3, 4, 6), 10: tuple(range(10))}  # the fewer, the more alike: shirts, then all tops
LAYERS = ("stage 1", "stage 2", "embedding", "logits")


class Task(NamedTuple):
    """Inputs `[N, H, W, 1]`, labels `[N]`, and the teacher's embeddings `[N, D]` and logits `[N, C]` of them."""

    inputs: Any
    labels: Any
    embeddings: Any
    logits: Any


class Student(NamedTuple):
    """What a student says of a batch: logits `[B, C]`, and its embedding as wide as the teacher's, `[B, D]`."""

    logits: Any
    embedding: Any


Source = Callable[[Student, Task, Array], Array]  # (student, batch, key) -> [B]


def sources(head: Callable[[Array], Array]) -> dict[str, Source]:
    """Losses by what they take of the teacher, an example each.

    Logits or features, with the squared gap weighed by 1, by the diagonal of the Fisher information (exact; of a drawn class;
    the squared gradient at the label), or by all of it, of which KL is what small gaps make.

    Args:
      head: the teacher's classifier, `[B, D]` to `[B, C]`.
    """
    same = lambda logits: logits
    by = losses.weighted_repr
    return {
        "KL T=1": lambda s, t, key: losses.kd(s.logits, t.logits, temperature=1.0),
        "KL T=4": lambda s, t, key: losses.kd(s.logits, t.logits, temperature=4.0),
        "logits L2": lambda s, t, key: by(s.logits, t.logits),
        "logits diag F": lambda s, t, key: by(s.logits, t.logits, losses.fisher_diag(same, t.logits)),
        "logits full F": lambda s, t, key: losses.second_order_kd(s.logits, t.logits),
        "features L2": lambda s, t, key: by(s.embedding, t.embeddings),
        "features diag F": lambda s, t, key: by(s.embedding, t.embeddings, losses.fisher_diag(head, t.embeddings)),
        "features drawn F": lambda s, t, key: by(
            s.embedding, t.embeddings, losses.fisher_diag(head, t.embeddings, mode="sampled", key=key)
        ),
        "features label gradient": lambda s, t, key: by(
            s.embedding, t.embeddings, squared_gradient(head, t.embeddings, t.labels)
        ),
        "features full F": lambda s, t, key: losses.second_order_kd(head(s.embedding), t.logits),
    }


def squared_gradient(head: Callable[[Array], Array], z: Array, labels: Array) -> Array:
    """`(∂ log p(label | z) / ∂z)²`, `[B, D]`: the Fisher information's diagonal with the label for the expectation."""
    gradient = jax.grad(lambda z: -jnp.sum(losses.cross_entropy(head(z), labels=labels)))(z)
    return jnp.square(gradient)


def make_network(width: int, classes: int, convs: int) -> Network:
    """small_cnn of images; `convs` convolutions a stage."""
    make = lambda rngs: SmallCNN(classes, width=width, convs_per_stage=convs, rngs=rngs)
    return from_nnx(make, parts=("classify",), name=f"small_cnn (width {width})")


def images_of(classes: int, few: int | None = None) -> tuple[Task, Task, Task]:
    """Training, validation and test images of the first, the second or all of `CLASSES`, of which nobody said anything yet.

    Those of training are in an order of chance, the same for ever, so that the first hundred are among the first thousand;
    `few` leaves so many of each.
    """
    kept = np.asarray(CLASSES[classes])
    images, labels, _ = embedded("train")
    splits = make_splits(labels, validation=2000)
    order = splits.train[np.random.default_rng(0).permutation(len(splits.train))]
    parts = [(images[order], labels[order]), (images[splits.validation], labels[splits.validation])]
    found = []
    for pixels, labels in (*parts, embedded("test")[:2]):
        rows = np.flatnonzero(np.isin(labels, kept))[:few]
        inputs = (pixels[rows, ..., None].astype(np.float32) / 255 - MEAN) / DEVIATION
        found.append(
            Task(jnp.asarray(inputs), jnp.asarray(np.searchsorted(kept, labels[rows]).astype(np.int32)), None, None)
        )
    return tuple(found)


class Trainer:
    """Trains networks of one kind by any source; all sources are compiled as one program, of which a run takes a branch."""

    def __init__(self, network: Network, steps: int, taught: Mapping[str, Source] | None = None, width: int = 0):
        """Takes sources by name, and the teacher's `width` of embeddings, onto which others are projected by a linear layer
        that is trained with the student. Labels are a source too."""
        self.network, self.steps, self.width = network, steps, width
        self.names = [LABELS, *(taught or {})]
        self.branches = [lambda s, t, key: losses.cross_entropy(s.logits, labels=t.labels), *(taught or {}).values()]
        rate = optax.warmup_cosine_decay_schedule(0.0, RATE, max(steps // 10, 1), steps)
        decay = optax.add_decayed_weights(DECAY, mask=lambda tree: jax.tree.map(lambda x: x.ndim > 1, tree))
        sgd = optax.sgd(rate, momentum=0.9, nesterov=True)
        self.optimizer = optax.chain(optax.clip_by_global_norm(CLIP), decay, sgd)
        self._init, self._run = jax.jit(network.init), jax.jit(self._step, donate_argnums=(0, 1, 2))
        self._say = jax.jit(lambda params, state, x: layers(network.apply(params["network"], state, x, train=False)[0]))
        self._sizes, self._weights = jax.jit(self._gradients), {}

    def init(self, key: Array) -> tuple[Any, Any]:
        """Fresh weights and statistics: the network's, as its `init` gives them, and the projector's."""
        params, state = self._init(key)
        own = params["classifier"]["kernel"].shape[0]
        projector = {}
        if self.width and own != self.width:
            kernel = jax.random.normal(jax.random.fold_in(key, 1), (own, self.width)) / np.sqrt(own)
            projector = {"kernel": kernel, "bias": jnp.zeros(self.width)}
        return {"network": params, "projector": projector}, state

    def trained(
        self, train: Task, seed: int, source: str = LABELS, weight: float = 0.0, count: int = 0, begin: Any = None
    ) -> Any:
        """Weights and statistics after training on the first `count` images, or all: labels, and `weight` times the source.

        They begin as `begin`, or by the seed. Step by step, since XLA's loops on a CPU have slow convolutions.
        """
        params, state = self.init(jax.random.key(seed)) if begin is None else jax.tree.map(jnp.copy, begin)
        slots, branch, count = self.optimizer.init(params), self.names.index(source), count or len(train.labels)
        for key in jax.random.split(jax.random.key(seed + 2000), self.steps):
            params, state, slots = self._run(params, state, slots, train, branch, weight, count, key)
        return params, state

    def said(self, trained: Any, inputs: Array, batch: int = 200) -> tuple[np.ndarray, ...]:
        """What a network says of images at `LAYERS`, `[N, D]` each; maps are averaged over places."""
        parts = [self._say(*trained, inputs[i : i + batch]) for i in range(0, len(inputs), batch)]
        return tuple(np.concatenate(several) for several in zip(*parts, strict=True))

    def teach(self, trained: Any, task: Task) -> Task:
        """The images with what this network says of them."""
        *_, embeddings, logits = self.said(trained, task.inputs)
        return task._replace(embeddings=jnp.asarray(embeddings), logits=jnp.asarray(logits))

    def weight(self, train: Task, source: str, fresh: int = 8) -> float:
        """At which the loss's gradient by the embedding is as large as the cross-entropy's, for so many fresh networks; taken
        once, of the first images it is asked for."""
        if source not in self._weights:
            hard, soft = np.median([self.sizes(train, source, seed) for seed in range(fresh)], axis=0)
            self._weights[source] = float(hard / soft) if soft > 0 else 0.0
        return self._weights[source]

    def sizes(self, train: Task, source: str, seed: int) -> np.ndarray:
        """Sizes of the gradients of cross-entropy and of the source by the embedding of a fresh network, `[2]`."""
        return np.asarray(self._sizes(*self.init(jax.random.key(seed)), train, self.names.index(source), seed))

    def _answer(self, params: Any, output: ModelOutput) -> Student:
        projector, embedding = params["projector"], output.embedding
        if projector:
            embedding = embedding @ projector["kernel"] + projector["bias"][None]
        return Student(output.logits, embedding)

    def _soft(self, branch, student, batch, key):
        return jnp.mean(jax.lax.switch(branch, self.branches, student, batch, key))

    def _step(self, params, state, slots, train, branch, weight, count, key):
        rows, drawn = jax.random.split(key)
        rows = jax.random.randint(rows, (ROWS,), 0, count)
        batch = jax.tree.map(lambda x: x[rows], train)

        def of(params):
            output, after = self.network.apply(params["network"], state, batch.inputs, train=True)
            hard = jnp.mean(losses.cross_entropy(output.logits, labels=batch.labels))
            return hard + weight * self._soft(branch, self._answer(params, output), batch, drawn), after

        gradient, state = jax.grad(of, has_aux=True)(params)
        change, slots = self.optimizer.update(gradient, slots, params)
        return optax.apply_updates(params, change), state, slots

    def _gradients(self, params, state, train, branch, seed):
        rows = jax.random.randint(jax.random.key(seed + 1000), (ROWS,), 0, len(train.labels))
        batch = jax.tree.map(lambda x: x[rows], train)
        output = self.network.apply(params["network"], state, batch.inputs, train=True)[0]
        again = lambda e: ModelOutput(logits=self.network.parts["classify"](params["network"], state, e), embedding=e)
        hard = lambda e: jnp.mean(losses.cross_entropy(again(e).logits, labels=batch.labels))
        soft = lambda e: self._soft(branch, self._answer(params, again(e)), batch, jax.random.key(seed))
        return jnp.stack([jnp.linalg.norm(jax.grad(loss)(output.embedding)) for loss in (hard, soft)])


def layers(output: ModelOutput) -> tuple[Array, ...]:
    """`[B, D]` of each of `LAYERS`."""
    maps = [jnp.mean(x, axis=(1, 2)) for x in output.features[:2]]
    return (*maps, output.embedding, output.logits)

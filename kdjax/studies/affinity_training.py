"""Students that learn by affinities, trained step by step on what their teacher said once of every image."""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from kdjax import losses
from kdjax.data import make_splits
from kdjax.data.fashion_mnist import embedded
from kdjax.experiment.config import load_config
from kdjax.experiment.networks import make_network
from kdjax.experiment.program import Builder
from kdjax.experiment.run import run
from kdjax.experiment.trained import Trained, load_trained
from kdjax.types import Network

CHOICES = ("affinity", "normalization", "loss")
LABELS, KD = "labels", "kd"
ROWS, LABELLED = 64, 16  # of a batch; the first of them have labels
RATE, DECAY, CLIP = 0.05, 5e-3, 5.0


class Task(NamedTuple):
    """Inputs `[N, H, W, 1]`, classes `[N]`, and the teacher's embeddings and logits of them."""

    inputs: Any
    labels: Any
    embeddings: Any
    logits: Any


def data(size, folder, announce, *, overwrite, progress, data_dir) -> tuple[Network, tuple[Task, Task, Task], float]:
    """`(student's network, (training, validation and test task), the teacher's top-1 on test images)`; -1 is an unknown class."""
    base = load_config("fashion_mnist/few_labels")("kd")
    base = base.tiny() if size == "tiny" else base
    place = folder / "teacher"
    announce("teacher")
    alone = dataclasses.replace(base, phases=base.phases[:1])
    run(alone, place, resume=place.exists() and not overwrite, overwrite=overwrite, progress=progress)
    teacher = load_trained(place)
    images, classes, _ = embedded("train")
    splits = make_splits(
        classes, validation=base.data.validation, labelled=base.data.labelled, split_seed=base.data.split_seed
    )
    known = np.where(splits.labelled, classes.astype(np.int32), -1)
    train = task(teacher, images[splits.train], known[splits.train])
    held = task(teacher, images[splits.validation], classes[splits.validation].astype(np.int32))
    images, classes, _ = embedded("test")
    test = task(teacher, images, classes.astype(np.int32))
    network = make_network(base.data, base.student.network, Builder(data_dir).dataset(base.data))
    return network, (train, held, test), float(jnp.mean(jnp.argmax(test.logits, axis=-1) == test.labels))


def task(teacher: Trained, images: np.ndarray, labels: np.ndarray) -> Task:
    """Stored images `[N, H, W]` as the networks see them, with what the teacher says."""

    @jax.jit
    def say(variables, x):
        seen = teacher.view(x)
        output = teacher.network.apply(variables.params, variables.state, seen, train=False)[0]
        return seen, output.embedding, output.logits

    parts = [say(teacher.variables, images[i : i + 500, ..., None]) for i in range(0, len(images), 500)]
    inputs, embeddings, logits = (jnp.concatenate(several) for several in zip(*parts, strict=True))
    return Task(inputs, jnp.asarray(labels), embeddings, logits)


class Trainer:
    """Trains students of one network by any choice; all choices are compiled as one program, of which a run takes a branch."""

    def __init__(self, network: Network, train: Task, choices: list[tuple[str, ...]], steps: int):
        self.network, self.train, self.choices, self.steps = network, train, choices, steps
        self.with_labels = jnp.asarray(np.flatnonzero(np.asarray(train.labels) >= 0))
        affinities = [
            functools.partial(losses.affinity_kd, **dict(zip(CHOICES, choice, strict=True))) for choice in choices
        ]
        mean = lambda loss: lambda s, t, z, y: jnp.mean(loss(s, t))
        self.branches = [
            *(mean(loss) for loss in affinities), lambda s, t, z, y: jnp.mean(losses.kd(z, y, temperature=4.0)),
            lambda s, t, z, y: jnp.zeros(()),
        ]  # fmt: skip
        rate = optax.warmup_cosine_decay_schedule(0.0, RATE, max(steps // 10, 1), steps)
        decay = optax.add_decayed_weights(DECAY, mask=lambda tree: jax.tree.map(lambda x: x.ndim > 1, tree))
        self.optimizer = optax.chain(
            optax.clip_by_global_norm(CLIP), decay, optax.sgd(rate, momentum=0.9, nesterov=True)
        )
        self._init, self._run = jax.jit(network.init), jax.jit(self._step, donate_argnums=(0, 1, 2))
        self._accuracy = jax.jit(self._correct)
        self._sizes = jax.jit(self._gradients)

    def branch(self, choice: Any) -> int:
        """Of a combination, KD, or None for labels alone."""
        return (
            len(self.choices)
            if choice == KD
            else len(self.choices) + 1
            if choice is None
            else self.choices.index(choice)
        )

    def student(self, choice: Any, weight: float, seed: int) -> Any:
        """Weights and statistics after training: step by step, since XLA's loops on a CPU have slow convolutions."""
        params, state = self._init(jax.random.key(seed))
        slots, branch, hard = self.optimizer.init(params), self.branch(choice), 0.1 if choice == KD else 1.0
        for key in jax.random.split(jax.random.key(seed + 2000), self.steps):
            params, state, slots = self._run(params, state, slots, branch, weight, hard, key)
        return params, state

    def top1(self, student: Any, task: Task) -> float:
        size = min(1000, len(task.labels))
        parts = [slice(i, i + size) for i in range(0, len(task.labels) - size + 1, size)]
        return float(np.mean([self._accuracy(student, task.inputs[part], task.labels[part]) for part in parts]))

    def weight(self, choice: tuple[str, ...], batches: int = 8) -> float:
        """At which the loss's gradient by the embedding is as large as the cross-entropy's, for fresh networks of 8 seeds."""
        sizes = np.asarray([self._sizes(self.branch(choice), seed) for seed in range(batches)])
        hard, soft = np.median(sizes, axis=0)
        return float(hard / soft) if soft > 0 else 0.0

    def _batch(self, key):
        with_labels, others = jax.random.split(key)
        rows = self.with_labels[jax.random.randint(with_labels, (LABELLED,), 0, len(self.with_labels))]
        rest = jax.random.randint(others, (ROWS - LABELLED,), 0, len(self.train.labels))
        rows = jnp.concatenate([rows, rest])
        return jax.tree.map(lambda x: x[rows], self.train)

    def _loss(self, branch, embedding, logits, batch, weight, hard):
        task = jnp.mean(losses.cross_entropy(logits[:LABELLED], labels=batch.labels[:LABELLED]))
        soft = jax.lax.switch(branch, self.branches, embedding, batch.embeddings, logits, batch.logits)
        return hard * task + weight * soft

    def _gradients(self, branch, seed):
        """Sizes of the gradients of cross-entropy and of the branch's loss by the embedding."""
        params, state = self.network.init(jax.random.key(seed))
        batch = self._batch(jax.random.key(seed + 1000))
        output = self.network.apply(params, state, batch.inputs, train=True)[0]
        logits = lambda embedding: self.network.parts["classify"](params, state, embedding)
        of = lambda weight, hard: jnp.linalg.norm(
            jax.grad(lambda e: self._loss(branch, e, logits(e), batch, weight, hard))(output.embedding)
        )
        return jnp.stack([of(0.0, 1.0), of(1.0, 0.0)])

    def _step(self, params, state, slots, branch, weight, hard, key):
        batch = self._batch(key)

        def of(params):
            output, after = self.network.apply(params, state, batch.inputs, train=True)
            return self._loss(branch, output.embedding, output.logits, batch, weight, hard), after

        gradient, state = jax.grad(of, has_aux=True)(params)
        change, slots = self.optimizer.update(gradient, slots, params)
        return optax.apply_updates(params, change), state, slots

    def _correct(self, student, inputs, labels):
        output = self.network.apply(*student, inputs, train=False)[0]
        return jnp.mean(jnp.argmax(output.logits, axis=-1) == labels)

"""Sources of knowledge against forgetting: a network that knew some classes learns others, its former self the teacher."""

from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from kdjax.studies.sources_pairs import Plan, Setting, top1
from kdjax.studies.sources_training import LABELS, Source, Task, Trainer, sources

OLD = 5  # the classes learned first; the others come later, without images of these
FACTORS = (1.0, 10.0, 100.0)  # of the weight: the gaps begin at 0 and stay small


def incremental(
    usual: Setting, plan: Plan, chosen: Mapping[str, str], announce: Callable[[str], None]
) -> dict[str, Any]:
    """`accuracies` of test images by kind and seed, with what they rest on.

    Args:
      usual: all ten classes, and students of the kind that is trained here.
      plan: of the study.
      chosen: a source by kind.
      announce: what a person sees.
    """
    announce(f"incremental: classes 0 to {OLD - 1}")
    labels, network = np.asarray(usual.train.labels), usual.trainer.network
    order = np.argsort(labels >= OLD, kind="stable")  # old ones first, and one program for both
    params, state = usual.trainer.trained(rows_of(usual.train, order), 1000, count=int(np.sum(labels < OLD)))
    before = {"network": params["network"], "projector": {}}, state  # it is as wide as its teacher
    train = rows_of(usual.train, order[-int(np.sum(labels >= OLD)) :])
    *_, embeddings, logits = usual.trainer.said(before, train.inputs)
    train = train._replace(embeddings=jnp.asarray(embeddings), logits=jnp.asarray(logits[:, :OLD]))
    known = sources(lambda z: network.parts["classify"](before[0]["network"], state, z)[:, :OLD])
    trainer = Trainer(network, plan.steps, {kind: of_old(known[name]) for kind, name in chosen.items()})

    def tops(kind: str, factor: float, seed: int, images: Task) -> dict[str, float]:
        weight = 0.0 if kind == LABELS else factor * trainer.weight(train, kind)
        student = trainer.trained(train, seed, kind, weight, begin=before)
        return accuracies(trainer.said(student, images.inputs)[-1], np.asarray(images.labels))

    announce("incremental: weights")
    tuned = {kind: {f: tops(kind, f, 500, usual.validation)["mean"] for f in FACTORS} for kind in chosen}
    factors = {kind: max(by, key=by.__getitem__) for kind, by in tuned.items()}
    found: dict[str, dict[str, list[float]]] = {}
    for kind in (LABELS, *chosen):
        announce(f"incremental: {kind}")
        for seed in range(plan.seeds):
            for name, value in tops(kind, factors.get(kind, 0.0), seed, usual.test).items():
                found.setdefault(kind, {}).setdefault(name, []).append(value)
    earlier = accuracies(usual.trainer.said(before, usual.test.inputs)[-1], np.asarray(usual.test.labels))
    return {"before": earlier, "tuned": tuned, "factors": factors, "found": found, "sources": dict(chosen)}


def of_old(source: Source) -> Source:
    """The source of what the teacher says of its own classes."""
    return lambda student, batch, key: source(student._replace(logits=student.logits[:, :OLD]), batch, key)


def rows_of(task: Task, rows: np.ndarray) -> Task:
    """Some of the images."""
    return Task(*(part[rows] for part in task))


def accuracies(logits: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Top-1 of images of old and of new classes, among all classes and among those of their part, and the mean of the latter."""
    found = {}
    for name, rows, own in (("old", labels < OLD, slice(0, OLD)), ("new", labels >= OLD, slice(OLD, None))):
        found[name] = top1(logits[rows], labels[rows])
        found[f"{name} among {name}"] = top1(logits[rows, own], labels[rows] - own.start)
    return found | {"mean": (found["old among old"] + found["new among new"]) / 2}

"""Runs of a study whose students differ in more than their objective: in teacher, first weights, order or data.

Each is a run of its own in a folder of its name, `FOLDER/NAME`, whose network is its "student". One that is to be taught takes
its teachers from the folders of others.
"""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from kdjax.experiment.config import load_config
from kdjax.experiment.folder import read_network
from kdjax.experiment.program import Builder
from kdjax.experiment.run import run
from kdjax.experiment.spec import Experiment
from kdjax.experiment.trained import Trained, load_trained
from kdjax.objectives import CrossEntropy, Objective
from kdjax.schedules import Duration
from kdjax.studies.finding import Size
from kdjax.training import Variables
from kdjax.training.checkpoints import save_network


def alone(size: Size, *, width: int, steps: int) -> Experiment:
    """A network that learns from the labels of all 12,000 embedded images, with the settings of fashion_mnist/two_teachers."""
    base = load_config("fashion_mnist/two_teachers")("kd")
    student = dataclasses.replace(
        base.student, network=dataclasses.replace(base.student.network, width=width), teacher="",
        objective=CrossEntropy(), duration=Duration(steps, "steps"),
    )  # fmt: skip
    found = dataclasses.replace(
        base, phases=(student,), data=dataclasses.replace(base.data, validation=0),
        evaluate_every=Duration(100, "percent"), checkpoint_every=Duration(100, "percent"),
    )  # fmt: skip
    return found.tiny() if size == "tiny" else found


def taught(student: Experiment, objective: Objective, teachers: Sequence[str], teacher: Experiment) -> Experiment:
    """The student with an objective and the teachers of these names, runs of `teacher` in folders beside its own."""
    phases = tuple(
        dataclasses.replace(teacher.student, name=f"teacher{i}", weights=f"../{name}/student")
        for i, name in enumerate(teachers)
    )
    last = dataclasses.replace(student.student, objective=objective, teacher="+".join(phase.name for phase in phases))
    return dataclasses.replace(student, phases=(*phases, last))


def of_seed(experiment: Experiment, name: str, seed: int, data_seed: int) -> Experiment:
    """The run of a name, of initial weights by one seed and order and views of the images by another."""
    return dataclasses.replace(experiment, name=name, seed=seed, data_seed=data_seed)


def first_weights(network: Trained, seed: int) -> Variables:
    """What a network of this kind begins with in a run of this seed."""
    return Variables(*jax.jit(network.network.init)(jax.random.fold_in(jax.random.key(seed), 0)))


def beginning(experiment: Experiment, weights: Variables, folder: Path, like: Path) -> Experiment:
    """The experiment with its student beginning with given weights, which are kept in a folder beside its own; `like` is the
    run folder of a network of the same kind."""
    facts = read_network(like / experiment.student.name)
    save_network(folder, weights, {name: facts[name] for name in ("network", "num_classes", "class_names", "data")})
    *others, student = experiment.phases
    begin = dataclasses.replace(
        student, name="begin", weights=f"../{folder.name}", objective=CrossEntropy(), teacher=""
    )
    return dataclasses.replace(experiment, phases=(*others, begin, dataclasses.replace(student, start="begin")))


def train_each(
    experiments: dict[str, Experiment], folder: Path, builder: Builder, *, overwrite: bool,
    announce: Callable[[str], None], progress: Any = None, **unused: Any,
) -> dict[str, Trained]:  # fmt: skip
    """Runs experiments one after the other, each in the folder of its name, and gives their networks. Those that are there are
    kept; a name in a later call may be a teacher's of an earlier one."""
    del unused
    found = {}
    for i, (name, experiment) in enumerate(experiments.items(), 1):
        announce(f"{name} ({i} of {len(experiments)})")
        run(experiment, folder / name, resume=not overwrite, overwrite=overwrite, builder=builder, progress=progress)
        found[name] = load_trained(folder / name)
    return found


def logits_of(networks: dict[str, Trained], images: np.ndarray, batch: int = 500) -> dict[str, np.ndarray]:
    """Logits `[N, C]` by name of networks of one kind, of stored images `[N, H, W, C]`; see `asked`."""
    return asked(networks, images, lambda output: output.logits, batch)


def asked(
    networks: dict[str, Trained], images: np.ndarray, of: Callable[[Any], Any], batch: int = 500
) -> dict[str, Any]:
    """A part of what networks of one kind say of stored images, by name: NumPy arrays `[N, ...]`. Compiled once for all.

    Args:
      networks: alike but for their weights.
      images: `[N, H, W, C]`, of which N is a multiple of `batch` or below.
      of: which part, of an output.

    Raises:
      ValueError: another number of images.
    """
    one, batch = next(iter(networks.values())), min(batch, len(images))
    if len(images) % batch:
        raise ValueError(f"There are {len(images)} images, no multiple of batch={batch}; give another batch.")
    run = jax.jit(
        lambda variables, x: of(one.network.apply(variables.params, variables.state, one.view(x), train=False)[0])
    )
    found = {}
    for name, network in networks.items():
        parts = [run(network.variables, images[start : start + batch]) for start in range(0, len(images), batch)]
        found[name] = jax.tree.map(lambda *ys: np.concatenate([np.asarray(y) for y in ys]), *parts)
    return found

"""Experiments of seconds on the digits, prepared once."""

import dataclasses

import jax
import pytest

from kdjax.experiment import Experiment, Phase
from kdjax.experiment.program import Builder
from kdjax.experiment.run import run
from kdjax.objectives import KD, CrossEntropy, Objective
from kdjax.schedules import steps
from kdjax.tasks.classification import Classification, Classifier, Views
from kdjax.training.optimizers import SGD


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory):
    return str(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="session")
def builder(data_dir):
    """Compiled steps are shared by all tests of a process. One device, as on most machines."""
    return Builder(data_dir, devices=jax.devices()[:1])


@pytest.fixture(scope="session")
def finished(tmp_path_factory, builder):
    """The folder of a run of `small()`, to look at."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    run(small(), folder, builder=builder)
    return folder


def net(width: int) -> Classifier:
    """Two convolutions, as tracing and compiling are what these tests wait for."""
    return Classifier(name="kdjax.models.zoo.small_cnn:SmallCNN", width=width, options=("depth=2", "convs_per_stage=1"))


def small(
    objective: Objective = 0.5 * CrossEntropy() + 0.5 * KD(temperature=2.0), *, length: int = 9, student=None, data=None,
    **fields,
) -> Experiment:  # fmt: skip
    """A teacher of 4 steps and a student of `length`, on 8x8 digits, with crops."""
    sgd = SGD(learning_rate=0.05, weight_decay=5e-4)
    options = {
        "name": "small",
        "data": dataclasses.replace(
            Classification(name="digits", batch_size=32, eval_batch_size=128, views=Views(crop_padding=1)), **(data or {})
        ),
        "phases": (
            Phase(name="teacher", network=net(4), duration=steps(4), optimizer=sgd, labels="all"),
            Phase(
                name="student", network=net(2), duration=steps(length), optimizer=sgd, objective=objective,
                teacher="teacher", **(student or {}),
            ),
        ),
        "evaluate_every": steps(3), "checkpoint_every": steps(3), "log_every": 2,
    } | fields  # fmt: skip
    return Experiment(**options)

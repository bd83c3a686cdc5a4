"""The study of affinities: its verdict on grids whose answer is known, and its training."""

import itertools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdjax.analysis.factors import main_effects, variance_shares
from kdjax.analysis.statistics import paired_gain, spread
from kdjax.cli import main
from kdjax.losses import affinity_grid
from kdjax.studies.affinity import CHOICES, NAMED, OPTIONS, correct, verdict
from kdjax.studies.affinity_training import KD, LABELLED, ROWS, Task, Trainer
from kdjax.types import ModelOutput, Network

RNG = np.random.default_rng(0)


def test_every_combination_is_one_of_the_losses():
    known = [tuple(choice.values()) for choice in affinity_grid()]
    for several in OPTIONS.values():
        assert set(itertools.product(*several)) <= set(known)
    assert set(NAMED.values()) <= set(known)


def test_the_verdict_names_what_was_put_in():
    grid = itertools.product(("dot", "cosine"), ("none", "mean", "row_l2"), ("mse", "l1", "cosine"))
    cells = {c: 0.8 + 0.05 * (c[1] == "mean") + 0.005 * RNG.normal() for c in grid}
    effects = dict(zip(CHOICES, main_effects(cells), strict=True))
    correct(effects)
    alone, rest = variance_shares(cells)
    shares = dict(zip((*CHOICES, "rest"), (*alone, rest), strict=True))
    values = lambda mean: spread(mean + 0.001 * RNG.normal(size=5))
    confirmed = {"labels": values(0.7), KD: values(0.85), "best": values(0.85)} | {n: values(0.8) for n in NAMED}
    gains = {n: paired_gain(c["values"], confirmed["labels"]["values"]) for n, c in confirmed.items() if n != "labels"}
    correct({"gains": gains})
    text = verdict(effects, shares, gains, confirmed, ("dot", "mean", "mse"), 2)
    assert "the normalization alone explains 9" in text
    assert "mean (+" in text and "none (-" in text and "cosine" not in text.split("Options")[1].split("The best")[0]
    assert "is not distinguishable from kd" in text and "differs from sp (+" in text
    assert text.endswith("Above labels by Holm's correction: kd, best, sp, rkd_distance, pkt, cc.")


@pytest.fixture(scope="module")
def trainer():
    """Of a linear network on eight pixels, whose teacher's embedding is the pixels turned."""

    def init(key):
        a, b = jax.random.split(key)
        return {"embed": 0.3 * jax.random.normal(a, (8, 4)), "head": 0.3 * jax.random.normal(b, (4, 3))}, {}

    def apply(params, state, x, *, train):
        embedding = x.reshape(len(x), -1) @ params["embed"]
        return ModelOutput(logits=embedding @ params["head"], embedding=embedding), state

    network = Network(init, apply, {"classify": lambda params, state, e: e @ params["head"]})
    x = jnp.asarray(RNG.normal(size=(300, 2, 4, 1)), jnp.float32)
    truth = jnp.asarray(RNG.normal(size=(8, 3)), jnp.float32)
    flat = x.reshape(300, 8)
    labels = jnp.argmax(flat @ truth, axis=-1).astype(jnp.int32)
    train = Task(x, jnp.where(jnp.arange(300) < 60, labels, -1), flat @ truth, 3 * flat @ truth)
    test = Task(x, labels, train.embeddings, train.logits)
    return Trainer(network, train, [("dot", "none", "mse"), ("cosine", "row_sum", "kl")], 60), test


def test_a_weight_makes_both_gradients_as_large(trainer):
    made, _ = trainer
    for choice in made.choices:
        weight = made.weight(choice)
        sizes = np.median([made._sizes(made.branch(choice), seed) for seed in range(8)], axis=0)
        np.testing.assert_allclose(sizes[0], weight * sizes[1], rtol=1e-4)
    hard, none = made._sizes(made.branch(None), 0)
    assert hard > 0 and none == 0, "labels alone have no other loss"


def test_a_batch_begins_with_labels_and_students_learn_from_either(trainer):
    made, test = trainer
    batch = made._batch(jax.random.key(0))
    assert len(batch.labels) == ROWS and (batch.labels[:LABELLED] >= 0).all() and (batch.labels[LABELLED:] < 0).any()
    fresh = made.top1(made._init(jax.random.key(0)), test)
    alone = made.student(None, 1.0, 0)
    taught = made.student(KD, 1.0, 0)
    assert made.top1(alone, test) > fresh + 0.2 and made.top1(taught, test) > fresh + 0.2
    again = made.student(None, 1.0, 0)
    for a, b in zip(jax.tree.leaves(alone), jax.tree.leaves(again), strict=True):
        np.testing.assert_array_equal(a, b)
    assert not np.allclose(alone[0]["embed"], made.student(("dot", "none", "mse"), 1.0, 0)[0]["embed"])


@pytest.mark.slow  # a teacher, and a program of all combinations, are compiled
def test_affinity_from_the_command_line(tmp_path):
    assert main(["study", "affinity", "--tiny", "--run", str(tmp_path / "study")]) == 0
    said = json.loads((tmp_path / "study/numbers.json").read_text())["numbers"]
    assert len(said["grid"]) == 8 and set(said["confirmed"]) == {"labels", "kd", "best", *NAMED}
    np.testing.assert_allclose(sum(said["shares"].values()), 1, rtol=1e-6)

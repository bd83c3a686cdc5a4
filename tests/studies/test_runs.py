"""Runs of a study: who teaches whom, what they begin with, and what they are asked."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdjax.analysis.statistics import paired_gain
from kdjax.experiment.program import Builder
from kdjax.experiment.trained import Trained
from kdjax.objectives import KD
from kdjax.studies.runs import alone, asked, first_weights, logits_of, of_seed, taught
from kdjax.studies.words import difference, falls, mean_of, points, rises
from kdjax.training import Variables
from kdjax.types import ModelOutput, Network


def linear(weights):
    apply = lambda params, state, x, train: (ModelOutput(logits=x.reshape(len(x), -1) @ params), state)
    shown = lambda images: images / 255.0
    return Trained(
        Network(None, apply, {}, "linear"), Variables(weights, {}), shown, jax.ShapeDtypeStruct((1, 2, 2, 1), jnp.uint8)
    )


def test_networks_are_asked_each_with_its_own_weights():
    images = np.arange(24, dtype=np.uint8).reshape(6, 2, 2, 1)
    found = logits_of({"one": linear(jnp.eye(4)), "two": linear(2 * jnp.eye(4))}, images, batch=3)
    np.testing.assert_allclose(found["one"], images.reshape(6, 4) / 255, rtol=1e-6)
    np.testing.assert_allclose(found["two"], 2 * found["one"], rtol=1e-6)
    with pytest.raises(ValueError, match="no multiple of batch=4"):
        asked({"one": linear(jnp.eye(4))}, images, lambda output: output.logits, batch=4)


def test_students_name_their_teachers_beside_them():
    wide, narrow = alone("default", width=12, steps=10), alone("default", width=8, steps=20)
    found = of_seed(taught(narrow, KD(temperature=1.0), ["a", "b"], wide), "s", 3, 100)
    assert [p.weights for p in found.phases] == ["../a/student", "../b/student", ""] and not found.problems()
    assert found.student.teachers == ("teacher0", "teacher1") and (found.seed, found.data_seed) == (3, 100)
    assert [p.network.width for p in found.phases] == [12, 12, 8] and found.student.duration.amount == 20
    assert not taught(alone("tiny", width=8, steps=10), KD(temperature=1.0), ["a"], wide).problems()


def test_first_weights_are_those_of_the_seed_whatever_the_order_of_images():
    experiment = alone("tiny", width=8, steps=6)
    compiled = Builder().program(experiment, experiment.student).compiled
    found = [compiled.fresh_state(*seeds).params["student"] for seeds in ((5, 0), (5, 9), (6, 0))]
    trained = Trained.__new__(Trained)
    trained.network = compiled.networks.student
    same = lambda a, b: all(jax.tree.leaves(jax.tree.map(lambda x, y: bool(jnp.all(x == y)), a, b)))
    assert same(found[0], found[1]) and not same(found[0], found[2])
    np.testing.assert_allclose(
        first_weights(trained, 5).params["classifier"]["kernel"], found[0]["classifier"]["kernel"], rtol=1e-5
    )


def test_differences_are_in_words():
    gain = {"mean": 0.0123, "half_width": 0.004}
    assert (points(gain), difference(gain)) == ("+1.2 ± 0.4 points", "+0.0123 ± 0.0040")
    assert mean_of([0.5, 0.7], 100, 1) == "60.0 ± 14.1" and mean_of([0.5], 1, 1) == "0.5"
    assert rises(gain) and not falls(gain) and not rises(gain | {"half_width": 0.02})
    assert falls({"mean": -1.0, "half_width": 0.5})


def test_a_single_seed_neither_rises_nor_falls():
    gain = paired_gain([0.9], [0.8])
    assert not rises(gain) and not falls(gain) and points(gain) == "+10.0 points"

"""The study of properties on networks whose properties are known."""

import json

import jax.numpy as jnp
import numpy as np
import pytest

from kdjax.cli import main
from kdjax.studies.properties import PROPERTIES, contrasts, verdict
from kdjax.studies.property_measures import INDEPENDENT, MEAN, STD, attack, changes

RNG = np.random.default_rng(0)


def linear(variables, x):
    """Logits of the mean over the pixels, for what `asking` gives of a network."""
    return (jnp.mean(x, axis=(1, 2)) @ variables,)


def test_an_attack_moves_every_pixel_as_far_as_it_may_towards_another_class():
    kernel = jnp.array([[1.0, -1.0]])
    clean = (jnp.asarray(RNG.uniform(0.4, 0.6, (6, 4, 4, 1)), jnp.float32) - MEAN) / STD
    attacked = attack(linear, clean, jnp.zeros(6, jnp.int32))
    x, rate = attacked(kernel, 0.3)
    np.testing.assert_allclose(x, clean - 0.3 / STD, atol=1e-4)
    assert rate == 1 and attacked(kernel, 0.01)[1] == 0
    np.testing.assert_allclose(attacked(kernel, 1.0)[0], 0 * clean - MEAN / STD, atol=1e-4)  # no pixel is below black


def test_every_change_is_one_of_its_images():
    images = RNG.integers(0, 256, (3, 28, 28, 1)).astype(np.uint8)
    found = changes(images)
    assert {kind: len(several) for kind, several in found.items()} == {"shift": 12, "light": 8, "crop": 3, "domain": 5}
    for several in found.values():
        for name, changed in several.items():
            assert changed.shape == images.shape and changed.dtype == np.uint8, name
            assert (np.asarray(changed) != images).any(), name


def test_what_moves_is_said_to_and_what_does_not_is_not():
    seeds = 5
    noise = lambda mean: list(mean + 0.001 * RNG.normal(size=seeds))
    values = {}
    for name, (has, lacks) in PROPERTIES.items():
        values[name] = {INDEPENDENT: noise(0.5), f"{has}, kd": noise(0.5), f"{lacks}, kd": noise(0.5)}
    values["ignores light"]["invariant, kd"] = noise(0.7)  # above both controls
    values["what fools it"] |= {"plain, kd": noise(0.7), "other, kd": noise(0.7)}  # of any teacher
    values["ignores crops"] |= {"invariant, kd": noise(0.3), "plain, kd": noise(0.3)}
    found = contrasts(values, ("kd",))
    text = verdict(found)
    both, rest = text.split("is above both controls in ")[1].split("; is above independent students alone in ")
    alone, rest = rest.split("; is below independent students in ")
    below, neither = rest.split("; is not distinguishable from independent students in ")
    assert (
        both.startswith("ignores light (+")
        and alone.startswith("what fools it (+2")
        and below.startswith("ignores crops")
    )
    for name in ("where it looks", "answers off-domain", "ignores shifts", "a second domain"):
        assert name in neither
    assert all(row["gain"]["p_holm"] >= row["gain"]["p"] for row in found)


@pytest.mark.slow  # four teachers and ten students are compiled, a minute
def test_properties_from_the_command_line(tmp_path):
    assert main(["study", "properties", "--tiny", "--run", str(tmp_path / "study")]) == 0
    said = json.loads((tmp_path / "study/numbers.json").read_text())["numbers"]
    assert set(said["values"]) == set(PROPERTIES)
    for by in said["values"].values():
        assert all(0 <= v <= 1 for values in by.values() for v in values)
    assert len(said["contrasts"]) == len(PROPERTIES)

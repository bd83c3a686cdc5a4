"""Does the student match: data, weights on the way, verdicts, where the answer is known; the command in its tiny form."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdjax import analysis
from kdjax.cli import main
from kdjax.studies import pools
from kdjax.studies.fidelity import BASE, OTHER, between, verdict
from kdjax.studies.fidelity import tried as changed
from kdjax.training import Variables

RNG = np.random.default_rng(0)


def test_the_barrier_is_the_height_over_the_line():
    assert analysis.barrier(jnp.array([0.0, 0.5, 1.0])) == 0
    np.testing.assert_allclose(analysis.barrier(jnp.array([0.0, 2.0, 1.0])), 1.5)
    assert analysis.barrier(jnp.array([1.0, 0.2, 0.0])) == 0, "a valley is no barrier"
    with pytest.raises(ValueError, match="both ends"):
        analysis.barrier(jnp.zeros(2))


def test_linear_regression_has_no_barrier_and_two_layers_have():
    """Of a convex loss there is none between any weights; of a network and itself with its units exchanged there is."""
    x = jnp.asarray(RNG.normal(size=(50, 3)))
    loss = lambda w: jnp.mean(jnp.square(x @ w - jnp.sin(x[:, :1])))
    a, b = (jnp.asarray(RNG.normal(size=(3, 1))) for _ in range(2))
    on = lambda f, a, b: jnp.stack([f(analysis.interpolated(b, a, s)) for s in jnp.linspace(0, 1, 9)])
    assert analysis.barrier(on(loss, a, b)) < 1e-6
    first = {"u": jnp.asarray(RNG.normal(size=(3, 8))), "w": jnp.asarray(RNG.normal(size=(8, 1)))}
    second = {"u": first["u"][:, ::-1], "w": first["w"][::-1]}
    deep = lambda p: jnp.tanh(x @ p["u"]) @ p["w"]
    assert analysis.barrier(on(lambda p: jnp.mean(jnp.square(deep(p) - deep(first))), first, second)) > 0.1


def test_noise_is_no_evidence_of_a_match():
    """A spread that reaches 1 % from a mean far above it settles nothing, where it once said that they match."""
    ends = {"barrier": [1.0, 1.0, 1.0]}
    noisy = of(0.9, 0.9) | {"train": [0.99, 0.8, 0.943]}
    text = said(noisy, of(0.85, 0.9), of(0.99, 0.995, 0.81), {BASE: ends, "start 1": ends})
    assert text.startswith("Students may or may not match their teacher: ")


def test_first_weights_lie_between():
    one, two = (Variables({"w": jnp.full(2, v)}, {"mean": jnp.full(2, v)}) for v in (1.0, 0.0))
    found = between(one, two, 0.25)
    assert (found.params["w"] == 0.25).all() and (found.state["mean"] == 0.25).all()


def test_synthetic_images_are_of_their_class():
    """A class of one direction is drawn along it: nothing else varies."""
    labels = np.repeat([0, 1], 60)
    direction = np.zeros((4, 4))
    direction[0] = 1
    images = np.where(labels == 0, 60, 160)[:, None, None] + 20 * RNG.normal(size=(120, 1, 1)) * direction
    found = pools.synthetic(np.clip(images, 0, 255).astype(np.uint8), labels, np.random.default_rng(0), rank=1).astype(
        float
    )
    assert found[labels == 0].mean() < 90 < 130 < found[labels == 1].mean()
    assert found[:, 1:].std(axis=0).max() > 0 and np.abs(found[labels == 0][:, 1:] - 60).max() <= 1
    assert 10 < found[labels == 0][:, 0].std() < 30


def test_foreign_images_are_turned_and_every_other_one_negative():
    images = RNG.integers(0, 256, (20, 5, 5)).astype(np.uint8)
    found = pools.foreign(images, np.random.default_rng(0))
    for i, image in enumerate(images):
        shown = 255 - found[i] if i % 2 == 0 else found[i]
        assert any((shown == np.rot90(image, turn)).all() for turn in (1, 2, 3)), i


def of(test, train, top1=0.8, kl=0.1):
    # No two with the same difference in every seed.
    around = lambda value: [value - 0.002 * (1 + value), value, value + 0.002 * (1 + value)]
    return {"test": around(test), "train": around(train), "top1": around(top1), "kl": around(kl)}


def said(kd, other, start, ways, p=0.01):
    found = {BASE: kd, OTHER: other, "start 1": start, "labels": other}
    gains = {n: {m: analysis.statistics.paired_gain(found[n][m], kd[m]) for m in kd} for n in changed(found)}
    assert set(gains) == {"start 1"}
    return verdict(found, gains, {n: p for n in gains}, ways)


def test_the_verdict_is_the_numbers():
    high, low = {"barrier": [1.0, 1.0, 1.0]}, {"barrier": [0.01, 0.0, 0.0]}
    text = said(of(0.9, 0.92, kl=0.05), of(0.85, 0.9), of(0.99, 0.995, 0.81), {BASE: high, "start 1": low})
    assert "Students do not match" in text and "below a tenth of it from start 1 on (0.00 ± 0.01 nats)" in text
    assert "agree with it more (+5.0 ± 0.0 points) than students by labels" in text and "in KL they are nearer" in text
    assert "raised by start 1 (+9.0 ± 0.0 points), lowered by nothing." in text and "accuracy rises" in text
    near = of(0.999, 0.999) | {"train": [0.999, 0.9985, 0.9993]}
    text = said(near, of(0.999, 0.9), of(0.99, 0.995), {BASE: high, "start 1": high}, p=0.2)
    assert (
        "Students match their teacher to 1 %" in text
        and "with no start below a tenth" in text
        and "not distinguishable" in text
    )
    assert (
        "raised by nothing, lowered by nothing; by its own interval alone, not after the correction, by start 1."
        in text
    )


@pytest.mark.slow  # nine kinds of students are compiled, minutes
def test_from_the_command_line(tmp_path):
    assert main(["study", "fidelity", "--tiny", "--run", str(tmp_path / "study")]) == 0
    found = json.loads((tmp_path / "study/numbers.json").read_text())
    values = found["numbers"]["values"]
    assert {
        "labels",
        BASE,
        "mixup",
        "synthetic",
        "out of domain",
        "T = 1",
        "start 0.5",
        "ensemble",
        "next teacher's",
    } <= set(values)
    assert all(0 <= share <= 1 for by in values.values() for share in by["test"])
    assert jax.tree.leaves(found["numbers"]["barriers"])

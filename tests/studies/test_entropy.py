"""The study of entropy: its losses, networks, training and verdict where the answer is known; the study in its tiny form."""

import html
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdjax.studies.entropy import CONTROL, DIRECTIONS, PLANS, best, compared, measured, study, teachers_of, verdict, way
from kdjax.studies.entropy_page import factor, setting
from kdjax.studies.entropy_training import DROPOUT, ERM, LARGE, SMALL, TEXTS, Arm, Task, Trainer, bag, loss
from kdjax.studies.finding import write_page
from kdjax.types import ModelOutput, Network

RNG = np.random.default_rng(0)
ARMS = (ERM, Arm(smoothing=0.3), Arm(alpha=0.4, temperature=3.0), Arm(alpha=1.0), Arm(0.2, 0.5, 2.0))


# --- losses ---


@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float64, 1e-10), (np.float32, 2e-6)])
def test_an_arm_is_what_its_name_says(dtype, tolerance):
    """Values and gradients, by closed forms; settings are traced, so that one program does for all."""
    z, t, y = RNG.normal(size=(5, 4)), 2 * RNG.normal(size=(5, 4)), np.arange(5) % 4
    soft = lambda x: np.exp(x) / np.exp(x).sum(axis=1, keepdims=True)
    with jax.enable_x64(dtype == np.float64):
        given = [jnp.asarray(x, dtype) for x in (z, t)]
        of = jax.jit(lambda z, t, arm: jax.value_and_grad(lambda z: jnp.sum(loss(arm, z, t, jnp.asarray(y))))(z))
        for arm in ARMS:
            s, a, T = arm
            target = (1 - s) * np.eye(4)[y] + s / 4
            p, q = soft(z / T), soft(t / T)
            value = -(1 - a) * (target * np.log(soft(z))).sum(1) + a * T**2 * (q * np.log(q / p)).sum(1)
            slope = (1 - a) * (soft(z) - target) + a * T * (p - q)
            found = of(*given, Arm(*(jnp.asarray(x, dtype) for x in arm)))
            assert found[0].dtype == dtype
            np.testing.assert_allclose(found[0], value.sum(), rtol=10 * tolerance)
            np.testing.assert_allclose(found[1], slope, atol=tolerance)


# --- networks ---


@pytest.mark.parametrize("pairs", [0, 64])
def test_a_bag_is_the_mean_of_its_words(pairs):
    network = bag(3, vocabulary=20, classes=4, pairs=pairs)
    params, state = network.init(jax.random.key(0))
    ids = RNG.integers(2, 20, size=(3, 6))
    there = np.arange(6)[None] < np.array([6, 4, 1])[:, None]

    def say(ids):
        inputs = {"input_ids": jnp.asarray(ids), "attention_mask": jnp.asarray(there)}
        return np.asarray(network.apply(params, state, inputs, train=False)[0].logits)

    p = jax.tree.map(np.asarray, params)
    for row in range(3):
        known = ids[row][there[row]]
        embedding = p["words"][known].mean(axis=0)
        if pairs and len(known) > 1:
            embedding = embedding + p["pairs"][(known[:-1] * 40_503 + known[1:]) % pairs].mean(axis=0)
        hidden = np.maximum(embedding @ p["hidden"]["kernel"] + p["hidden"]["bias"], 0)
        wanted = hidden @ p["classifier"]["kernel"] + p["classifier"]["bias"]
        np.testing.assert_allclose(say(ids)[row], wanted, atol=1e-6)
    np.testing.assert_allclose(say(np.where(there, ids, 0)), say(ids), atol=1e-6)  # padding says nothing
    turned = np.array(ids)
    turned[0] = ids[0, ::-1]
    assert np.allclose(say(turned)[0], say(ids)[0], atol=1e-6) == (not pairs), "only pairs know of order"


def test_dropout_is_drawn_in_training_alone():
    network = bag(40, vocabulary=20, classes=2)
    params, state = network.init(jax.random.key(0))
    params["classifier"] = {"kernel": jnp.ones((80, 2)), "bias": jnp.zeros(2)}
    inputs = {"input_ids": jnp.ones((200, 2), jnp.int32), "attention_mask": jnp.ones((200, 2), jnp.int32)}
    say = lambda **how: np.asarray(network.apply(params, state, inputs, **how)[0].logits)[:, 0]
    still, drawn = say(train=False), say(train=True, rngs=jax.random.key(1))
    assert drawn.std() > 0.1 * DROPOUT * still.mean() and np.ptp(still) < 1e-4
    np.testing.assert_allclose(drawn.mean(), still.mean(), rtol=0.05)


# --- training ---


@pytest.fixture(scope="module")
def trainer():
    """Of a linear network on six numbers, whose labels are drawn from a linear teacher's probabilities."""

    def apply(params, state, x, *, train, rngs=None):
        return ModelOutput(x @ params["kernel"]), state

    init = lambda key: ({"kernel": 0.1 * jax.random.normal(key, (6, 3))}, {})
    x = RNG.normal(size=(400, 6)).astype(np.float32)
    logits = (1.5 * x @ RNG.normal(size=(6, 3))).astype(np.float32)
    labels = (logits + RNG.gumbel(size=logits.shape)).argmax(axis=1).astype(np.int32)
    return Trainer(Network(init, apply), Task(jnp.asarray(x), jnp.asarray(labels)), 150, 0.05), logits


def test_students_learn_by_their_arm(trainer):
    made, logits = trainer
    say = lambda *given: made.logits(made.trained(0, *given), made.train.inputs, batch=150)
    entropy = lambda z: measured(z, made.train.labels)["entropy"]
    alone = say()
    assert measured(alone, made.train.labels)["top1"] > 0.6 and alone.shape == (400, 3)
    np.testing.assert_array_equal(say(ERM, logits), alone)  # a teacher that is given no weight says nothing
    assert entropy(say(Arm(smoothing=0.5))) > entropy(alone) + 0.1
    near = say(Arm(alpha=1.0, temperature=2.0), logits)
    gap = lambda z: np.abs((z - z.mean(1, keepdims=True)) - (logits - logits.mean(1, keepdims=True))).mean()
    assert gap(near) < 0.5 * gap(alone)
    assert entropy(say(Arm(alpha=0.9), 0.1 * logits)) > entropy(say(Arm(alpha=0.9), logits)) + 0.1, (
        "it follows the teacher"
    )
    with pytest.raises(ValueError, match=r"alpha=0\.5 needs teacher_logits"):
        made.trained(0, Arm(alpha=0.5))


def test_measures_of_known_probabilities():
    found = measured(np.log(np.array([[0.5, 0.5, 1e-30], [0.9, 0.05, 0.05]])), np.array([0, 1]))
    np.testing.assert_allclose(found["top1"], 0.5)
    np.testing.assert_allclose(found["nll"], -(np.log(0.5) + np.log(0.05)) / 2, rtol=1e-5)
    np.testing.assert_allclose(found["entropy"], (np.log(2) - 0.9 * np.log(0.9) - 0.1 * np.log(0.05)) / 2, rtol=1e-5)


# --- what it says ---


def test_no_student_has_its_own_weights_for_a_teacher():
    said = {f"{size}, labels": [(size, seed) for seed in range(4)] for size in (SMALL, LARGE)}
    assert (
        teachers_of("standard", said) == said["large, labels"] and teachers_of("reverse", said) == said["small, labels"]
    )
    of_self = teachers_of("self", said)
    assert sorted(of_self) == said["small, labels"]
    assert not any(a == b for a, b in zip(of_self, said["small, labels"], strict=True))


def test_the_best_setting_is_the_most_accurate():
    tries = [{"arm": ERM, "top1": 0.9, "nll": 0.1}, {"arm": ARMS[1], "top1": 0.7, "nll": 0.9},
             {"arm": ARMS[2], "top1": 0.8, "nll": 0.6}, {"arm": ARMS[3], "top1": 0.8, "nll": 0.5}]  # fmt: skip
    assert best(tries) == ARMS[3] and setting(ERM) == "labels"
    assert setting(ARMS[1]) == "α = 0.3" and setting(ARMS[2]) == "α = 0.4, T = 3"


def results(entropies, seed=0):
    """Of six seeds: entropies near those given, and accuracy that is alike."""
    rng = np.random.default_rng(seed)
    near = lambda value: (value * np.exp(0.01 * rng.normal(size=6))).tolist()
    return {name: {"entropy": near(value), "top1": (0.8 + 0.001 * rng.normal(size=6)).tolist()}
            for name, value in entropies.items()}  # fmt: skip


PUBLISHED = {
    "small, labels": 0.5, "large, labels": 0.3, "small, smoothing": 1.5, "large, smoothing": 1.2, "standard KD": 0.4,
    "self KD": 0.45, "reverse KD": 0.5, CONTROL: 0.8,
}  # fmt: skip


def test_the_verdict_says_what_was_put_in():
    said = {"texts": compared(results(PUBLISHED))}
    ratios = said["texts"]["entropy"]
    np.testing.assert_allclose(np.exp(ratios["small, smoothing"]["mean"]), 3, rtol=0.02)
    np.testing.assert_allclose(np.exp(ratios["reverse KD / smoothing"]["mean"]), 0.5 / 1.2, rtol=0.02)
    np.testing.assert_allclose(np.exp(ratios["teacher, standard"]["mean"]), 0.6, rtol=0.02)
    np.testing.assert_allclose(np.exp(ratios[CONTROL]["mean"]), 2, rtol=0.02)
    assert "teacher, self" not in ratios and len(ratios) == 11 and len(said["texts"]["top1"]) == 6
    assert all(gain["p_holm"] >= gain["p"] for gain in ratios.values())
    arms = dict.fromkeys(("small, smoothing", "large, smoothing"), Arm(smoothing=0.9)) | {
        f"{direction} KD": Arm(alpha=0.5) for direction in ("standard", "self", "reverse")
    }
    text = verdict(said, {"texts": arms})
    assert ") by α 0.9, " in text and text.count("by α 0.5") == 3
    assert text.startswith("By entropy KD is not label smoothing here: smoothing raises entropy in 2 of 2 cases")
    assert "KD lowers it in 2 of 3 (standard on texts, self on texts) and raises it in 1 (reverse on texts)" in text
    assert "below smoothing's in 3" in text and "A student's entropy follows its teacher's when" in text
    assert "towards the teacher's in 2 of 2 cases and away from it in 0" in text
    alike = PUBLISHED | {"standard KD": 1.5, "self KD": 1.5, "reverse KD": 1.2, CONTROL: 1.5}
    chosen = {"texts": arms, "pictures": arms}
    other = verdict({"texts": compared(results(alike, 1)), "pictures": compared(results(alike, 2))}, chosen)
    assert other.startswith("By entropy KD is not told from label smoothing here: smoothing raises entropy in 4 of 4")
    assert "does not rise with its teacher's beyond chance" in other and "raises it in 6 (" in other
    assert "towards the teacher's in 2 of 4 cases and away from it in 2" in other
    mixed = {"texts": compared(results(PUBLISHED)), "pictures": compared(results(alike, 2))}
    assert verdict(mixed, chosen).startswith("By entropy KD and label smoothing differ in part here")
    for sentences in (text, other):
        assert sentences.count(". ") + 1 <= 3


def test_ratios_are_written_with_their_intervals():
    gain = {"mean": np.log(2), "half_width": np.log(1.5)}
    assert factor(gain) == "2.00 (1.33 to 3.00)" and factor(gain | {"half_width": None}) == "2.00"
    assert way(gain | {"p_holm": 0.2}) == 0 and way(gain | {"p_holm": 0.01}) == 1
    assert way({"mean": -1, "half_width": 0.5, "p_holm": 0.01}) == -1


def test_every_size_compares_the_same_things():
    for plans in PLANS.values():
        assert TEXTS in plans and all(p.tuning <= p.seeds and p.seeds > 1 for p in plans.values())


@pytest.mark.slow  # four networks are compiled, half a minute
def test_a_tiny_study_compares_every_arm_and_writes_its_page(tmp_path):
    found = study("tiny", tmp_path, announce=lambda line: None, overwrite=False, data_dir=None, progress=None)
    page = write_page(tmp_path, "entropy", found, size="tiny", seconds=0.0).read_text()
    assert html.escape(found.verdict) in page and page.count("data:image/png") == 3
    said = json.loads((tmp_path / "numbers.json").read_text())["numbers"]
    for name, plan in PLANS["tiny"].items():
        arms = {f"{d} KD" for d in DIRECTIONS} | {f"{size}, smoothing" for size in (SMALL, LARGE)}
        assert set(said["chosen"][name]) == set(said["tuned"][name]) == arms
        assert set(said["found"][name]) == arms | {"small, labels", "large, labels", CONTROL}
        assert all(len(by["entropy"]) == 2 for by in said["found"][name].values())
        grid = len(plan.alphas) * len(plan.temperatures)
        assert {len(said["tuned"][name][f"{d} KD"]) for d in DIRECTIONS} == {1 + grid}
        assert said["examples"][name] == [128, 128, 128]

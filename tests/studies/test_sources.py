"""The study of sources: its losses, training and verdict where the answer is known; the command in its tiny form."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdjax import losses
from kdjax.cli import main
from kdjax.studies.sources import KINDS, PLANS, USUAL, compared, verdict
from kdjax.studies.sources_incremental import OLD, accuracies, of_old
from kdjax.studies.sources_pairs import second_order
from kdjax.studies.sources_training import (
    CLASSES,
    LABELS,
    LAYERS,
    ROWS,
    Student,
    Task,
    Trainer,
    images_of,
    sources,
    squared_gradient,
)
from kdjax.types import ModelOutput, Network

RNG = np.random.default_rng(0)
KERNEL = RNG.normal(size=(4, 3))


def head(z):
    return z @ jnp.asarray(KERNEL, z.dtype)


# --- losses ---


def test_a_source_is_what_its_name_says():
    """By closed forms of a linear head, in float64."""
    with jax.enable_x64(True):
        z, logits, known = RNG.normal(size=(6, 4)), RNG.normal(size=(6, 3)), RNG.normal(size=(6, 4))
        labels, taught = np.arange(6) % 3, known @ KERNEL
        p = np.exp(taught) / np.exp(taught).sum(axis=1, keepdims=True)
        score = KERNEL.T[None] - (p @ KERNEL.T)[:, None]  # by row, class and feature
        batch = Task(None, *(jnp.asarray(x) for x in (labels, known, taught)))
        found = {
            name: source(Student(jnp.asarray(logits), jnp.asarray(z)), batch, jax.random.key(0))
            for name, source in sources(head).items()
        }
        gap, apart, wide = logits - taught, z - known, (z - known) @ KERNEL
        half_variance = lambda d: 0.5 * ((p * d**2).sum(1) - (p * d).sum(1) ** 2)
        wanted = {
            "KL T=1": losses.kd(logits, taught, temperature=1.0),
            "KL T=4": losses.kd(logits, taught, temperature=4.0),
            "logits L2": (gap**2).sum(1), "logits diag F": (p * (1 - p) * gap**2).sum(1),
            "logits full F": half_variance(gap), "features L2": (apart**2).sum(1),
            "features diag F": ((p[..., None] * score**2).sum(1) * apart**2).sum(1),
            "features label gradient": (score[np.arange(6), labels] ** 2 * apart**2).sum(1),
            "features full F": half_variance(wide),
        }  # fmt: skip
        assert set(found) - set(wanted) == {"features drawn F"} and set(found) == {n for k in KINDS.values() for n in k}
        for name, value in wanted.items():
            np.testing.assert_allclose(found[name], value, rtol=1e-9, err_msg=name)
        whole = np.einsum("bc,bcj,bck->bjk", p, score, score)
        np.testing.assert_allclose(found["features full F"], 0.5 * np.einsum("bj,bjk,bk->b", apart, whole, apart))
        one_of = (score**2 * apart[:, None] ** 2).sum(2)  # a drawn class gives one of these
        assert (np.abs(one_of - found["features drawn F"][:, None]).min(axis=1) < 1e-9).all()


def test_equal_networks_have_nothing_to_learn_and_no_gradient_blows_up():
    z = jnp.asarray(RNG.normal(size=(6, 4)), jnp.float32)
    batch = Task(None, jnp.arange(6) % 3, z, head(z))

    @jax.jit
    def of(logits, embedding):
        student = lambda a, b: Student(a, b)
        each = sources(head).values()
        return [
            jax.value_and_grad(lambda a, b, s=s: jnp.sum(s(student(a, b), batch, jax.random.key(1))), (0, 1))(
                logits, embedding
            )
            for s in each
        ]

    for leaf in jax.tree.leaves(of(head(z), z)):
        np.testing.assert_allclose(leaf, 0, atol=1e-5)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(of(head(100 * z), 100 * z)))


def test_the_mean_of_squared_gradients_is_the_diagonal():
    z = jnp.asarray(RNG.normal(size=(5, 4)), jnp.float32)
    p = jax.nn.softmax(head(z))
    mean = sum(p[:, c, None] * squared_gradient(head, z, jnp.full(5, c)) for c in range(3))
    np.testing.assert_allclose(mean, losses.fisher_diag(head, z), rtol=1e-4)


def test_the_second_order_is_kl_for_small_gaps():
    """The error falls as the gap does; of two even classes it is that of log cosh."""
    found = second_order(3 * RNG.normal(size=(500, 10)))
    assert found[0.1]["p95"] < 0.05 < found[3.0]["p95"]
    np.testing.assert_allclose(found[0.01]["median"] / found[0.1]["median"], 0.1, rtol=0.05)
    even, half = second_order(np.zeros((4, 2))), 1.0 / 2**0.5
    np.testing.assert_allclose(even[1.0]["median"], half**2 / 2 / np.log(np.cosh(half)) - 1, rtol=1e-9)


# --- images and training ---


def test_images_of_fewer_classes_are_numbered_anew():
    for classes, count in ((2, 2000), (10, 10_000)):
        train, validation, test = images_of(classes)
        assert (len(train.labels), len(validation.labels), len(test.labels)) == (count, count // 5, 2 * count // 5)
        assert np.unique(train.labels).tolist() == list(range(classes))
    again = images_of(10, few=50)
    np.testing.assert_array_equal(again[0].inputs, train.inputs[:50])
    assert len(np.unique(again[0].labels)) > 5, "in an order of chance"
    assert [len(kept) for kept in CLASSES.values()] == list(CLASSES)


@pytest.fixture(scope="module")
def trainer():
    """Of a linear network on eight pixels, whose teacher's embedding is wider."""

    def init(key):
        a, b = jax.random.split(key)
        classifier = {"kernel": 0.3 * jax.random.normal(b, (5, 3))}
        return {"embed": 0.3 * jax.random.normal(a, (8, 5)), "classifier": classifier}, {}

    classify = lambda params, state, e: e @ params["classifier"]["kernel"]

    def apply(params, state, x, *, train):
        embedding = x.reshape(len(x), -1) @ params["embed"]
        return ModelOutput(classify(params, state, embedding), (x, 2 * x, 3 * x), embedding=embedding), state

    x = RNG.normal(size=(300, 2, 4, 1)).astype(np.float32)
    known = x.reshape(300, 8) @ RNG.normal(size=(8, 4)).astype(np.float32)
    logits = known @ KERNEL.astype(np.float32)
    task = Task(*(jnp.asarray(part) for part in (x, logits.argmax(axis=1).astype(np.int32), known, logits)))
    names = ("KL T=1", "features L2", "features drawn F")
    taught = {name: sources(head)[name] for name in names}
    return Trainer(Network(init, apply, {"classify": classify}), 60, taught, width=4), task


def test_a_weight_makes_both_gradients_as_large(trainer):
    made, task = trainer
    for name in made.names[1:]:
        sizes = np.median([made.sizes(task, name, seed) for seed in range(8)], axis=0)
        np.testing.assert_allclose(sizes[0], made.weight(task, name) * sizes[1], rtol=1e-4)
    hard, again = made.sizes(task, LABELS, 0)
    assert hard == again, "labels are a source too"


def test_students_learn_from_their_source_and_the_first_images(trainer):
    made, task = trainer
    right = lambda student: np.mean(made.said(student, task.inputs)[-1].argmax(axis=1) == task.labels)
    fresh, alone = made.init(jax.random.key(0)), made.trained(task, 0)
    assert right(alone) > right(fresh) + 0.2
    matched = lambda s: float(np.mean(np.square(made._answer(s[0], made.network.apply(
        s[0]["network"], s[1], task.inputs, train=False)[0]).embedding - task.embeddings)))  # fmt: skip
    near = made.trained(task, 0, "features L2", made.weight(task, "features L2"))
    assert matched(near) < 0.5 * matched(alone)
    other = task._replace(inputs=task.inputs.at[100:].add(1.0), logits=task.logits.at[100:].add(jnp.arange(3.0)[None]))
    few = [made.trained(t, 0, "KL T=1", 1.0, count=100) for t in (task, other)]
    for a, b in zip(*map(jax.tree.leaves, few), strict=True):
        np.testing.assert_array_equal(a, b)
    assert not np.allclose(few[0][0]["network"]["embed"], alone[0]["network"]["embed"])
    begun = made.trained(task, 0, begin=alone)
    assert right(begun) >= right(alone) - 0.02 and np.isfinite(alone[0]["network"]["embed"]).all(), "it was copied"


def test_a_network_says_its_layers(trainer):
    made, task = trainer
    student = made.init(jax.random.key(0))
    said = made.said(student, task.inputs, batch=128)
    assert len(said) == len(LAYERS) and all(len(layer) == 300 for layer in said)
    np.testing.assert_allclose(said[1], 2 * task.inputs.mean(axis=(1, 2)), rtol=1e-5)
    np.testing.assert_allclose(made.teach(student, task).logits, said[-1], atol=1e-5)
    assert ROWS < 300 and student[0]["projector"]["kernel"].shape == (5, 4)


# --- class after class ---


def test_old_and_new_classes_are_told_apart():
    labels = np.arange(10)
    logits = np.eye(10)
    logits[3] = np.roll(logits[3], 4)  # an old one is taken for a new one, and among the old for the first
    logits[8] = np.roll(logits[8], 1)
    np.testing.assert_allclose(list(accuracies(logits, labels).values()), [0.8] * 5)
    logits[3, 3] = 0.5
    found = accuracies(logits, labels)
    assert found["old among old"] == 1.0 and found["old"] == 0.8
    np.testing.assert_allclose(found["mean"], 0.9)


def test_a_former_self_is_asked_of_its_own_classes():
    z, t = (jnp.asarray(RNG.normal(size=(4, 10)), jnp.float32) for _ in range(2))
    batch = Task(None, jnp.arange(4), None, t[:, :OLD])
    found = of_old(sources(lambda e: e)["KL T=1"])(Student(z, None), batch, jax.random.key(0))
    np.testing.assert_allclose(found, losses.kd(z[:, :OLD], t[:, :OLD], temperature=1.0))


# --- what it says ---


def results(gain, cka, rng):
    """Of five seeds: top-1 that is higher by `gain[name]`, CKA of embeddings by name."""
    noise = lambda: 0.0005 * rng.normal(size=5)
    return {
        name: {"top1": (0.8 + gain[name] + noise()).tolist(),
               "cka": [np.full((4, 4), cka[name] + x).tolist() for x in noise()]}
        for name in gain
    }  # fmt: skip


def test_the_verdict_says_what_was_put_in():
    rng = np.random.default_rng(1)
    names = [LABELS, *(n for kind in KINDS.values() for n in kind)]
    gain = dict.fromkeys(names, 0.0) | {
        "KL T=4": 0.03,
        "features L2": 0.01,
        "features full F": 0.01,
        "logits L2": -0.02,
    }
    found = results(gain, dict.fromkeys(names, 0.5), rng)
    for by in found.values():  # the higher, the more alike
        by["cka"] = (np.array(by["cka"]) / 1e4 + 10 * np.mean(by["top1"]) - 7.5).tolist()
    chosen = {"logits": "KL T=4", "features": "features L2", "gradients": "features full F"}
    kinds = (LABELS, *KINDS)
    cell = lambda by: {
        "teacher": 0.9,
        "students": results(dict(zip(kinds, by, strict=True)), dict.fromkeys(kinds, 0.5), rng),
    }
    axes = {"images": {500: cell((0, 0.09, 0.01, 0.01)), 10_000: cell((0, 0.03, 0.01, 0.01))},
            "width": {4: cell((0, 0.03, 0.0, 0.01)), 16: cell((0, 0.03, 0.02, 0.01))}}  # fmt: skip
    tops = lambda mean: {"old": [0.0] * 5, "mean": (mean + 0.0005 * rng.normal(size=5)).tolist()}
    later = {LABELS: tops(0.45), "logits": tops(0.6), "features": tops(0.45), "gradients": tops(0.3)}
    said = compared(found, chosen, axes, later)
    factors = {"logits": 1.0, "features": 10.0, "gradients": 100.0}
    text = verdict(found, said, chosen, {0.1: {"p95": 0.02}, 1.0: {"p95": 0.3}}, {"found": later, "factors": factors})
    assert "(the weight of logits and gradients is at the edge of those tried)" in text
    assert "of old images are still known: labels 0.0 %, logits 0.0 %" in text
    assert "After Holm's correction KL T=4, features L2, features full F of 10 sources are above labels" in text
    assert "logits L2 below" in text and "logits are above features (+2" in text
    assert "features and gradients are not distinguishable" in text
    assert "of 6 differences between the ends of an axis, logits gain less with more images (+9" in text
    assert "features gain more with more width of the student" in text and "gradients gain" not in text
    assert "KL T=4 makes embeddings most like the teacher's" in text and "likeness and top-1 go together" in text
    assert "labels alone: logits +1" in text and "not distinguishable; gradients -1" in text
    assert text.endswith("up to a gap of 0.1.")
    none = compared(
        results(dict.fromkeys(names, 0.0), dict.fromkeys(names, 0.5), rng), chosen, {"width": axes["width"]}, later
    )
    assert not any(gain["p_holm"] < 0.001 for gain in none["over_labels"].values())


def test_every_size_has_the_usual_pair_and_known_classes():
    for plan in PLANS.values():
        assert set(plan.axes) <= set(USUAL) and all(USUAL[axis] in levels for axis, levels in plan.axes.items())
        assert set(plan.axes["classes"]) <= set(CLASSES)


@pytest.mark.slow  # two teachers and three kinds of students are compiled, half a minute
def test_sources_from_the_command_line(tmp_path):
    assert main(["study", "sources", "--tiny", "--run", str(tmp_path / "study")]) == 0
    said = json.loads((tmp_path / "study/numbers.json").read_text())["numbers"]
    assert set(said["found"]) == {LABELS, *said["tuned"]} and set(said["chosen"]) == set(KINDS)
    assert all(len(by["top1"]) == 2 and np.shape(by["cka"]) == (2, 4, 4) for by in said["found"].values())
    assert {axis: len(levels) for axis, levels in said["axes"].items()} == {"classes": 2, "images": 2}
    assert len(said["changes"]) == 6 and len(said["between"]) == 3
    assert set(said["incremental"]["found"]) == {LABELS, *KINDS}

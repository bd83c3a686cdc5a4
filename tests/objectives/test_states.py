"""Objectives of hidden states and attention, on transformers."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdjax import losses
from kdjax.models import output_shapes
from kdjax.models.transformers import SIZES, Head, transformer
from kdjax.models.transformers.sizes import resized
from kdjax.objectives import (
    KD,
    METHODS,
    AttentionRelations,
    AttentionScores,
    CrossEntropy,
    HiddenCosine,
    HiddenStates,
    Patience,
    Sum,
    bind,
)  # fmt: skip
from kdjax.objectives.tokens import states
from kdjax.reduction import group_losses
from kdjax.types import Batch, Clock, Context, DataInfo

WIDE, DEEP = 16, 4
KEEP = ("queries", "keys", "values", "scores")
OBJECTIVES = {
    "cosine": HiddenCosine(), "states": HiddenStates(), "patience": Patience(), "last": Patience(chosen="last"),
    "scores": AttentionScores(), "relations": AttentionRelations(heads=4),
    "v1": AttentionRelations(heads=2, relations=("queries-keys", "values-values"), student_block=0, teacher_block=1),
}  # fmt: skip


def small(depth, width=WIDE, keep=KEEP):
    a = dataclasses.replace(
        resized(SIZES["bert_tiny"], width=width, depth=depth), vocabulary=50, length=8, deviation=0.3
    )
    a = dataclasses.replace(a, heads=2, kv_heads=2, head_width=width // 2)
    return transformer(a, Head(kind="classes", classes=3), keep=keep)


INPUTS = {
    "input_ids": np.random.default_rng(0).integers(1, 50, (3, 7)),
    "attention_mask": (np.arange(7)[None] < np.array([[7], [4], [5]])).astype(np.uint8),
}


@pytest.fixture(scope="module")
def said():
    """What a student of two blocks and a teacher of four say of three texts, and of these with other tokens at padding."""
    networks = small(2), small(DEEP)
    made = [network.init(jax.random.key(i)) for i, network in enumerate(networks)]
    run = jax.jit(lambda x: [network.apply(*v, x, train=False)[0] for network, v in zip(networks, made, strict=True)])
    return networks, run(INPUTS)


def batch_of(**options):
    return Batch.of(INPUTS, labels=np.array([0, 1, 2]), **options)


def value_of(objective, outputs, networks):
    return jax.jit(lambda outputs: loss_of(objective, outputs, batch_of(), networks)(outputs[0]))(outputs)


def loss_of(objective, outputs, batch, networks):
    shapes = [output_shapes(network, INPUTS) for network in networks]
    bound = bind(objective, *shapes, DataInfo(3))
    params, state = bound.init(jax.random.key(5))

    def loss(student):
        ctx = Context(student, outputs[1], batch, Clock().at(0))
        terms, _ = bound.apply(params, state, ctx, train=True)
        return sum(group_losses(terms).values())

    return loss


@pytest.fixture(scope="module")
def values(said):
    """A program of all objectives: `(what student and teacher say, [B] mask of rows) -> {name: (value, gradient)}`."""
    networks, _ = said

    @jax.jit
    def run(outputs, where):
        made = {
            name: loss_of(objective, outputs, batch_of(where=where), networks) for name, objective in OBJECTIVES.items()
        }
        return {name: jax.value_and_grad(loss)(outputs[0]) for name, loss in made.items()}

    return run


def test_they_are_of_tokens_that_are_no_padding(said, values):
    """A gradient comes to tokens alone."""
    padding = INPUTS["attention_mask"] == 0
    for name, (value, gradient) in values(said[1], np.ones(3, bool)).items():
        assert value > 0 and all(np.all(np.isfinite(x)) for x in jax.tree.leaves(gradient)), name
        assert any(np.any(x) for x in (*gradient.features, *gradient.taps.values())), name
        for x in gradient.features:
            assert not np.any(np.asarray(x)[padding]), name
        for key in ("queries", "keys", "values"):
            assert not np.any(np.moveaxis(np.asarray(gradient.taps[key]), 1, 0)[:, padding]), name


def test_rows_that_do_not_count_change_nothing(said, values):
    second = lambda x: jnp.reshape(jnp.arange(3) == 1, (3,) + (1,) * (x.ndim - 1))
    other = [jax.tree.map(lambda x: jnp.where(second(x), x, 9.0), output) for output in said[1]]
    where = np.array([False, True, False])
    ours, theirs = values(said[1], where), values(other, where)
    for name in OBJECTIVES:
        np.testing.assert_allclose(ours[name][0], theirs[name][0], rtol=1e-5, err_msg=name)


def test_they_are_the_losses_of_the_layers_they_say(said):
    networks, outputs = said
    ours, theirs = ([np.asarray(x)[:, :, 0] for x in output.features] for output in outputs)
    there = INPUTS["attention_mask"] != 0
    mean = lambda values: np.sum(np.where(there, values, 0)) / np.sum(there)
    value = lambda objective: value_of(objective, outputs, networks)
    np.testing.assert_allclose(value(HiddenCosine()), mean(losses.hidden_cosine(ours[-1], theirs[-1])), rtol=1e-5)
    first = lambda states, places: np.stack([states[i][:, 0] for i in places], axis=1)
    np.testing.assert_allclose(
        value(Patience()), np.mean(losses.patience(first(ours, [1]), first(theirs, [2]))), rtol=1e-5
    )
    np.testing.assert_allclose(
        value(Patience(chosen="last")), np.mean(losses.patience(first(ours, [1]), first(theirs, [3]))), rtol=1e-5
    )
    scores = [np.asarray(output.taps["scores"]) for output in outputs]
    wanted = sum(
        np.mean(losses.attention_scores(scores[0][:, i], scores[1][:, j], mask=there)) for i, j in ((0, 1), (1, 3))
    )
    np.testing.assert_allclose(value(AttentionScores()), wanted, rtol=1e-5)


def test_what_does_not_fit_is_said(said):
    networks, _ = said
    shapes = [output_shapes(network, INPUTS) for network in networks]
    narrow, bare = output_shapes(small(2, width=8), INPUTS), output_shapes(small(2, keep=("keys",)), INPUTS)
    maps = dataclasses.replace(shapes[0], features=(jax.ShapeDtypeStruct((3, 4, 4, 8), np.float32),))
    for objective, student, message in (
        (HiddenCosine(), narrow, "8 wide, the teacher's 16; use HiddenStates"), (Patience(), narrow, "use HiddenStates"),
        (AttentionScores(), bare, "keeps no scores of its attention; set network.keep"),
        (AttentionRelations(heads=3), shapes[0], "heads=3 do not divide"), (HiddenStates(), maps, "use one of text"),
        (AttentionRelations(heads=2, student_block=2), shapes[0], "the student has 2 blocks"),
        (HiddenStates(pairs=((0, 9),)), shapes[0], "pairs name"),
        (AttentionRelations(heads=2, relations=("queries",)), shapes[0], "relations='queries' is not what is related to"),
        (AttentionRelations(heads=2, relations=("scores-keys",)), shapes[0], "write queries-keys, say"),
        (AttentionRelations(heads=2, relations=()), shapes[0], "relations names nothing"),
    ):  # fmt: skip
        bound = lambda objective=objective, student=student: bind(
            CrossEntropy() + objective, student, shapes[1], DataInfo(3)
        )
        with pytest.raises(ValueError, match=message):
            bound()
    assert bind(HiddenStates(), narrow, shapes[1], DataInfo(3)).modules, "behind a projector"


def test_methods_of_texts_are_made_of_what_is_tested_here(said):
    networks, _ = said
    shapes = [output_shapes(network, INPUTS) for network in networks]
    assert {"distilbert", "tinybert", "bert_pkd", "minilm"} <= set(states.METHODS) <= set(METHODS)
    for entry in states.METHODS.values():
        for objective in filter(None, (entry.objective, entry.before)):
            parts = [
                dataclasses.replace(p, heads=4) if isinstance(p, AttentionRelations) else p for p in objective.parts
            ]
            assert {type(part) for part in parts} <= {CrossEntropy, KD, *map(type, OBJECTIVES.values())}
            bind(Sum(objectives=tuple(parts)), *shapes, DataInfo(3))


def test_what_else_is_kept_of_attention_does_not_matter(said):
    """Scores, which come before values by name, have heads where tokens are."""
    networks, outputs = said
    objective = AttentionRelations(heads=2, relations=("values-values",))

    @jax.jit
    def both(outputs):
        few = [
            dataclasses.replace(outputs[0], taps={name: outputs[0].taps[name] for name in names})
            for names in (("values",), ("scores", "values"))
        ]
        return [loss_of(objective, outputs, batch_of(), networks)(student) for student in few]

    alone, beside = both(outputs)
    np.testing.assert_allclose(beside, alone, rtol=1e-6)

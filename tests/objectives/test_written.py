"""Objectives of what networks wrote: their numbers are the originals', by the row that is or is not written, on any devices."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdjax import losses
from kdjax.objectives import METHODS, DistiLLM2, MiniLLM, bind
from kdjax.reduction import group_losses
from kdjax.types import Batch, Clock, Context, DataInfo, ModelOutput
from tests.golden_cases import PRECISIONS, cases
from tests.losses.computing import computing_in, draw

IGNORED = -100
TARGETS = ("labels", "written", "drawn")


def context(student, teacher, labels, kept, written, drawn=None, *, axis=None):
    drawn = jnp.zeros(labels.shape, student.dtype) if drawn is None else drawn
    targets = {"labels": jnp.where(kept, labels, 0), "written": written, "drawn": drawn}
    batch = Batch.of({}, targets, elements=kept)
    said = ModelOutput(logits=student), ModelOutput(logits=jax.lax.stop_gradient(teacher))
    return Context(*said, batch, Clock().at(0), axis=axis)


def bound(objective, student, teacher):
    shapes = (ModelOutput(logits=jax.ShapeDtypeStruct(x.shape, x.dtype)) for x in (student, teacher))
    return bind(objective, *shapes, DataInfo(student.shape[-1], targets=TARGETS))


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("case", [c for c in cases("minillm") if "gamma" not in c.hyper], ids=repr)
def test_minillm_golden(case, precision):
    """The single step, of rows that the student wrote; the mix of labels and teacher, of those that it did not."""
    with computing_in(precision) as real:
        student, teacher = (real(case.inputs[name]) for name in ("student", "teacher"))
        share, label = case.hyper.get("kd_ratio"), case.inputs.get("label")
        plain = share is not None
        kept = jnp.asarray(label != IGNORED if plain else case.inputs["mask"] != 0)
        label = jnp.asarray(label) if plain else jnp.zeros(kept.shape, jnp.int32)
        method = bound(MiniLLM(kd_ratio=share if plain else 0.5), student, teacher)

        @functools.partial(jax.value_and_grad, has_aux=True)
        def loss(student):
            ctx = context(student, teacher, label, kept, jnp.full(len(label), not plain))
            terms, _ = method.apply({}, {}, ctx, train=True)
            mean = {name.partition("/")[2]: term.sum / jnp.maximum(term.count, 1) for name, term in terms.items()}
            if not plain:
                return mean["step"], mean
            entropy = losses.forward_kl(student, teacher, cross_entropy_form=True) - losses.forward_kl(student, teacher)
            entropy = jax.lax.stop_gradient(jnp.sum(jnp.where(kept, entropy, 0)) / jnp.sum(kept))
            return sum(group_losses(terms).values()) + share * entropy, mean

        (value, mean), gradient = jax.jit(loss)(student)
        case.check(value, "out", "loss", precision)
        case.check(gradient, "grad", "student", precision)
        for name in ("labels", "data") if not plain else ("policy", "step"):
            assert mean[name] == 0, name


ROWS, LENGTH, WORDS = 4, 5, 7
KEPT = np.array([[0, 1, 1, 1, 1], [0, 1, 1, 0, 0], [1, 1, 1, 1, 0], [0, 0, 1, 1, 1]], bool)
WRITTEN = np.array([True, False, True, False])


def drawn_by_hand():
    rng = np.random.default_rng(3)
    return rng.integers(0, WORDS, (ROWS, LENGTH)), np.log(rng.uniform(0.1, 0.9, (ROWS, LENGTH)))


def policy_by_hand(student, teacher, labels, drawn, gamma, clip, scale):
    """Mean over the tokens written, in NumPy; and what each token's log-probability gets as its gradient."""
    log_p, log_q = (x - np.log(np.sum(np.exp(x), -1, keepdims=True)) for x in (student, teacher))
    ours, theirs = (np.take_along_axis(x, labels[..., None], -1)[..., 0] for x in (log_p, log_q))
    own = KEPT & WRITTEN[:, None]
    reward = np.where(own, (theirs - ours) / scale, 0)
    worth = np.zeros_like(reward)
    for b, t in zip(*np.nonzero(own), strict=True):
        worth[b, t] = sum(gamma ** (j - t) * reward[b, j] for j in range(t, LENGTH)) / np.sum(own[b, t:])
    worth = (worth - worth[own].mean()) / np.sqrt(worth[own].var(ddof=1) + 1e-8)
    ratio = np.exp(ours - drawn)
    free, held = -worth * ratio, -worth * np.clip(ratio, 1 - clip, 1 + clip)
    count = own.sum()
    slope = np.where(own & (free >= held), free, 0) / count
    gradient = slope[..., None] * ((np.arange(WORDS) == labels[..., None]) - np.exp(log_p))
    return np.where(own, np.maximum(free, held), 0).sum() / count, gradient


def test_the_policy_is_that_of_the_formula():
    hyper = {"gamma": 0.9, "clip": 0.3, "reward_scale": 0.7}
    student, teacher = (np.asarray(draw(seed, ROWS, LENGTH, WORDS), np.float64) for seed in (0, 1))
    labels, drawn = drawn_by_hand()
    holed = np.where(KEPT[..., None], student, np.nan)  # what does not count may be anything
    with computing_in("f64") as real:
        method = bound(MiniLLM(**hyper), real(student), real(teacher))

        @functools.partial(jax.value_and_grad, has_aux=True)
        def loss(student):
            ctx = context(student, real(teacher), jnp.asarray(labels), jnp.asarray(KEPT), jnp.asarray(WRITTEN), drawn)
            terms = method.apply({}, {}, ctx, train=True)[0]
            return terms["minillm/policy"].sum / terms["minillm/policy"].count, terms

        (value, terms), gradient = jax.jit(loss)(real(holed))
    wanted, by_hand = policy_by_hand(student, teacher, labels, drawn, *hyper.values())
    np.testing.assert_allclose(value, wanted, rtol=1e-9)
    np.testing.assert_allclose(gradient, by_hand, rtol=1e-9, atol=1e-12)
    own, given = KEPT & WRITTEN[:, None], KEPT & ~WRITTEN[:, None]
    counts = {name.partition("/")[2]: float(term.count) for name, term in terms.items()}
    assert counts == {"policy": own.sum(), "step": own.sum(), "labels": given.sum(), "data": given.sum()}


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("case", [c for c in cases("distillm2") if c.hyper["loss_type"] == "distillm_v2"], ids=repr)
def test_distillm2_golden(case, precision):
    """The second half of the rows is the student's; what a gap usually is, the code gives, and here it has been seen often."""
    with computing_in(precision) as real:
        hyper = case.hyper
        student, teacher = (real(case.inputs[name]) for name in ("student", "teacher"))
        labels, clock = jnp.asarray(case.inputs["labels"])[:, 1:], Clock(total_steps=hyper["max_steps"])
        gaps = [hyper["logp_logq"], hyper["logq_logp"]]
        adaptive = None not in gaps
        published = METHODS["distillm2"].objective.parts[0]
        beta = 1 + 0.5 * min(1, 2 * hyper["step"] / hyper["max_steps"])
        assert published.beta(clock.at(hyper["step"])) == pytest.approx(beta, rel=1e-6)
        objective = dataclasses.replace(published, alpha=hyper["base_alpha"], beta=beta, adaptive=adaptive)
        method = bound(objective, student[:, :-1], teacher[:, :-1])
        state = {"distillm2": {"total": real(1e12 * np.array(gaps)), "count": real([1e12, 1e12])}} if adaptive else {}

        @functools.partial(jax.value_and_grad, has_aux=True)
        def loss(student):
            written = jnp.arange(len(labels)) >= len(labels) // 2
            ctx = context(student[:, :-1], teacher[:, :-1], labels, labels != IGNORED, written)
            terms, after = method.apply({"distillm2": {}} if adaptive else {}, state, ctx, train=True)
            return sum(group_losses(terms).values()), after

        (value, _), gradient = jax.jit(loss)(student)
        case.check(value, "out", "loss", precision)
        case.check(gradient, "grad", "student", precision)


@pytest.mark.parametrize("objective", [MiniLLM(), DistiLLM2()], ids=lambda objective: type(objective).__name__)
def test_devices_see_the_whole_batch(objective):
    """Advantages are white over all rows, gaps are a mean over them: two devices of two rows are one of four."""
    student, teacher = draw(0, ROWS, LENGTH, WORDS), draw(1, ROWS, LENGTH, WORDS)
    labels, drawn = drawn_by_hand()
    with computing_in("f64") as real:
        method = bound(objective, real(student), real(teacher))
        params, state = method.init(jax.random.key(0))
        rows = jax.tree.map(jnp.asarray, (real(student), real(teacher), labels, KEPT, WRITTEN, drawn))

        def loss(student, rest, axis):
            terms, after = method.apply(params, state, context(student, *rest, axis=axis), train=True)
            return sum(group_losses(terms, axis).values()), after

        part = lambda student, rest, axis=None: jax.value_and_grad(loss, has_aux=True)(student, rest, axis)
        halves = jax.tree.map(lambda x: jnp.reshape(x, (2, 2, *x.shape[1:])), rows)
        (one, after), whole = jax.jit(part)(rows[0], rows[1:])
        spread = jax.vmap(functools.partial(part, axis="devices"), axis_name="devices")
        (shares, states), pieces = jax.jit(spread)(halves[0], halves[1:])
        np.testing.assert_allclose(np.sum(shares), one, rtol=1e-10)
        np.testing.assert_allclose(np.reshape(pieces, whole.shape), whole, rtol=1e-9, atol=1e-12)
        for ours, theirs in zip(jax.tree.leaves(states), jax.tree.leaves(after), strict=True):
            np.testing.assert_allclose(ours[0], theirs, rtol=1e-12)
        if isinstance(objective, DistiLLM2):
            gaps = losses.distillm2_gap(*rows[:3], WRITTEN, KEPT)
            wanted = [np.sum(gaps[~WRITTEN]), np.sum(gaps[WRITTEN])]
            np.testing.assert_allclose(after["distillm2"]["total"], wanted, rtol=1e-12)
            assert after["distillm2"]["count"].tolist() == [2, 2]


def test_they_are_of_tokens_that_somebody_wrote():
    flat = ModelOutput(logits=jnp.zeros((3, WORDS)))
    with pytest.raises(ValueError, match="learns from targets called 'written', and the data has labels"):
        bind(MiniLLM(), flat, flat, DataInfo(WORDS))
    batch = Batch.of({}, {"labels": jnp.zeros(3, int), "written": jnp.zeros(3), "drawn": jnp.zeros(3)})
    for objective in (MiniLLM(), DistiLLM2(adaptive=False)):
        method = bind(objective, flat, flat, DataInfo(WORDS, targets=TARGETS))
        with pytest.raises(ValueError, match="use a decoder"):
            method.apply({}, {}, Context(flat, flat, batch, Clock().at(0)), train=True)
    assert {METHODS[name].on_policy for name in ("gkd", "minillm", "distillm2")} == {0.5}

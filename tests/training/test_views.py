"""Several views of each example in one step: who sees which, and how often; statistics; mixup; devices."""

import dataclasses
import functools
from typing import ClassVar

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdjax import losses
from kdjax.objectives import DML, KD, CrossEntropy, Objective, bind, method
from kdjax.reduction import per_example
from kdjax.training import Variables, init_state, make_runner, make_step
from kdjax.training.mixup import mixup
from kdjax.training.optimizers import SGD, build
from kdjax.types import Batch, Clock, Context, DataInfo, ModelOutput, MultiView, Network
from tests.training.toy import CLASSES, shapes, toy, toy_batch

FORMS = {"jit 1": ("jit", 1), "jit 8": ("jit", 8), "pmap": ("pmap", 8)}
EXACT = {"rtol": 1e-9, "atol": 1e-12}
STUDENT, TEACHER = toy(3), toy(4)
UDA = method("uda_kd").objective


def to64(tree):
    return jax.tree.map(lambda x: x.astype(jnp.float64) if x.dtype == jnp.float32 else x, tree)


def two_views(inputs, index, epoch, key):
    """The images, and the same moved by a pixel and darker by their position in the data."""
    shade = 0.1 * index.astype(inputs.dtype).reshape(-1, 1, 1, 1)
    return MultiView({"main": inputs, "strong": jnp.roll(inputs - shade, 1, axis=2)})


# --- who is asked, and how often ---


@dataclasses.dataclass(frozen=True, kw_only=True)
class Compared(Objective):
    """The student's two answers should be alike, and so should the teacher's and the peer's."""

    views: ClassVar = ("main", "strong")
    reads: ClassVar = ("student.logits", "teacher.logits", "peer.logits")
    order: ClassVar = "sequential"

    def terms(self, module, ctx):
        there = ctx.views["strong"]
        gaps = [getattr(ctx, role).logits - getattr(there, role).logits for role in ("student", "teacher", "peer")]
        return {name: per_example(gap.sum(-1)) for name, gap in zip(("student", "teacher", "peer"), gaps, strict=True)}


def recorded(objective, *, views, peer=False, **options):
    """Who looked at what in one step of linear networks with one weight of 2: `(who, training, mean input, key)`."""
    seen = []

    def network(who, factor):
        def apply(params, state, inputs, *, train, rngs=None, axis=None):
            bits = None if rngs is None else tuple(jax.random.key_data(rngs).tolist())
            seen.append((who, train, np.asarray(inputs), bits))
            return ModelOutput(logits=factor * params["w"] * inputs), state

        return Network(lambda key: ({"w": jnp.full((1, 1), 2.0)}, {}), apply)

    student, teacher = network("student", 1.0), network("teacher", 3.0)
    output = ModelOutput(logits=jnp.ones((4, 3)))
    bound = bind(objective, output, output, DataInfo(3))
    optimizer = build(SGD(learning_rate=1.0, momentum=0.0), Clock(), bound)
    state = init_state(student, bound, optimizer, seed=5)
    step = make_step(student, teacher, bound, optimizer, views=views, **options)
    batch = Batch.of(jnp.arange(12.0).reshape(4, 3), jnp.zeros(4, jnp.int32), index=jnp.arange(3, 7))
    variables = Variables({"w": jnp.full((1, 1), 2.0)}, {})
    _, metrics = step(state, variables, batch, variables if peer else None)
    return seen, metrics


def shifted(inputs, index, epoch, key):
    return MultiView({"unread": inputs + jnp.nan, "strong": inputs + 10.0, "main": inputs})


def test_each_network_sees_each_view_once():
    """In the order main, strong; none sees a view that the objective does not ask for."""
    seen, metrics = recorded(Compared() + CrossEntropy(), views=shifted, peer=True)
    assert [(who, train, float(x[0, 0])) for who, train, x, _ in seen] == [
        ("teacher", False, 0.0), ("teacher", False, 10.0), ("student", True, 0.0), ("student", True, 10.0),
        ("student", True, 0.0), ("student", True, 10.0),
    ]  # fmt: skip
    # Two of the student's are the peer's, which is another student: with keys of their own.
    assert len({key for who, _, _, key in seen if who == "student"}) == 4
    # The strong view is 10 more: by 2 a class for student and peer, by 6 for the teacher, over 3 classes and 4 rows.
    sums = {name: float(metrics[f"compared/{name}"][0]) for name in ("student", "teacher", "peer")}
    assert sums == {"student": -240.0, "teacher": -720.0, "peer": -240.0}


def test_objectives_of_one_view_run_on_that_view_alone():
    seen, _ = recorded(CrossEntropy() + KD(), views=shifted)
    assert [(who, float(x[0, 0])) for who, _, x, _ in seen] == [("teacher", 0.0), ("student", 0.0)]


def test_views_need_not_be_named_where_there_is_one():
    seen, _ = recorded(KD(), views=lambda inputs, *_: inputs + 1.0)
    assert [(who, float(x[0, 0])) for who, _, x, _ in seen] == [("teacher", 1.0), ("student", 1.0)]


def test_a_missing_view_is_refused():
    message = "compares the views main, strong, and views= gives main only; let it return a MultiView with 'strong'"
    for views in (lambda inputs, *_: inputs, lambda inputs, *_: MultiView({"main": inputs})):
        with pytest.raises(ValueError, match=message):
            recorded(CrossEntropy() + KD(view="strong"), views=views)


def test_bound_views_begin_with_the_main_one():
    output = ModelOutput(logits=jnp.ones((4, 3)))
    views = lambda objective: bind(objective, output, output, DataInfo(3)).views
    assert views(KD()) == ("main",)
    assert views(KD(view="strong")) == ("main", "strong") == views(UDA)
    assert views(CrossEntropy() + DML()) == ("main",)


# --- mixup ---


def test_all_networks_see_the_same_mixed_inputs():
    """Of each view, and the views of an example mixed by the same share."""
    seen, _ = recorded(Compared(), views=shifted, peer=True, mix=0.8)
    inputs, index = jnp.arange(12.0).reshape(4, 3), jnp.arange(3, 7)
    expected = mixup(inputs, index, 0, jax.random.key(5), strength=0.8)
    assert np.abs(expected - inputs).max() > 0.3
    assert [who for who, *_ in seen] == ["teacher"] * 2 + ["student"] * 4
    for number, (_, _, x, _) in enumerate(seen):
        np.testing.assert_allclose(x, expected + (10.0 if number % 2 else 0.0), rtol=1e-6)


# --- values, gradients and statistics ---


@functools.cache
def one_step(objective, form="jit 1", mix=0.0):
    """`(gradient, state after, metrics)` of one step on `batch()`, and the parameters and state before."""
    kind, devices = FORMS[form]
    runner = make_runner(kind, jax.devices()[:devices])
    bound = bind(objective, shapes(STUDENT), shapes(TEACHER), DataInfo(CLASSES))
    optimizer = build(SGD(learning_rate=1.0, momentum=0.0), Clock(), bound)
    with jax.enable_x64(True):
        state = to64(init_state(STUDENT, bound, optimizer, seed=1))
        variables = to64(Variables(*TEACHER.init(jax.random.key(7))))
        before = jax.tree.map(np.array, (state.params["student"], state.state["student"], variables))
        step = make_step(STUDENT, TEACHER, bound, optimizer, views=two_views, mix=mix, axis=runner.axis)
        after, metrics = runner.compile(step)(runner.place(state), runner.place(variables), runner.place_batch(batch()))
        gradient = jax.tree.map(lambda a, b: a - np.asarray(b), before[0], after.params["student"])
        return (gradient, jax.device_get(after.state["student"]), jax.device_get(metrics)), before


def batch():
    return toy_batch(dtype=np.float64)


def said(params, state, variables):
    """`(student's, teacher's)` logits by view, and the student's statistics after each; the student in training."""
    shown = two_views(batch().inputs, batch().index, 0, None).views
    teacher = {
        name: TEACHER.apply(variables.params, variables.state, x, train=False)[0].logits for name, x in shown.items()
    }
    student, seen = {}, []
    for name in ("main", "strong"):
        output, state = STUDENT.apply(params, state, shown[name], train=True)
        student[name] = output.logits
        seen.append(state)
    return student, teacher, seen


def formula(params, state, variables):
    """The mean of both views' cross-entropy over labelled rows and divergence over all, by hand."""
    student, teacher, _ = said(params, state, variables)
    counted, labelled = batch().where, batch().where & batch().labelled
    total = 0.0
    for name in ("main", "strong"):
        log_p = jax.nn.log_softmax(student[name])
        total += 0.25 * -jnp.sum(log_p[np.arange(16), batch().labels] * labelled) / labelled.sum()
        log_s, log_t = (jax.nn.log_softmax(logits / 5.0) for logits in (student[name], teacher[name]))
        total += 0.25 * 25.0 * jnp.sum(jnp.sum(jnp.exp(log_t) * (log_t - log_s), -1) * counted) / counted.sum()
    return total


def test_the_gradient_is_that_of_the_formula():
    (gradient, _, metrics), before = one_step(UDA)
    with jax.enable_x64(True):
        value, expected = jax.jit(jax.value_and_grad(formula))(*before)
        chex.assert_trees_all_close(gradient, expected, **EXACT)
        np.testing.assert_allclose(metrics["loss"][0], value, **EXACT)


def test_statistics_go_through_the_views_in_turn():
    (_, after, _), before = one_step(UDA)
    with jax.enable_x64(True):
        _, _, (main, both) = jax.jit(said)(*before)
        chex.assert_trees_all_close(after, both, **EXACT)
    gap = jax.tree.map(lambda a, b: np.abs(a - b).max(), main, both)
    assert min(jax.tree.leaves(gap)) > 1e-4, "the strong view would not matter"


def test_the_loss_of_uda_kd_is_the_published_one():
    """Where every row that counts has a label."""
    batch = dataclasses.replace(toy_batch(dtype=np.float64), labelled=np.ones(16, bool))
    with jax.enable_x64(True):
        bound = bind(UDA, shapes(STUDENT), shapes(TEACHER), DataInfo(CLASSES))
        optimizer = build(SGD(), Clock(), bound)
        state = to64(init_state(STUDENT, bound, optimizer, seed=1))
        variables = to64(Variables(*TEACHER.init(jax.random.key(7))))
        _, metrics = jax.jit(make_step(STUDENT, TEACHER, bound, optimizer, views=two_views))(state, variables, batch)
        student, teacher, _ = jax.jit(said)(state.params["student"], state.state["student"], variables)
        values = losses.uda_kd(
            student["main"], teacher["main"], student["strong"], teacher["strong"], batch.labels, alpha=0.5,
            temperature=5.0,
        )  # fmt: skip
        np.testing.assert_allclose(metrics["loss"][0], np.mean(values[batch.where]), **EXACT)


@pytest.mark.parametrize("view", ["main", "strong"])
def test_terms_of_one_view_do_not_see_the_other(view):
    """Which is nan here."""
    rng = np.random.default_rng(0)

    def context(name):
        both = (jnp.asarray(rng.standard_normal((4, 3))) + (0.0 if name == view else jnp.nan) for _ in range(2))
        student, teacher = (ModelOutput(logits=logits) for logits in both)
        return Context(student, teacher, Batch.of(jnp.zeros((4, 1)), [0, 1, 2, 0]), Clock().at(0))

    ctx = dataclasses.replace(context("main"), views={"strong": context("strong")})
    other = {"main": "strong", "strong": "main"}[view]
    for part in (CrossEntropy, KD):
        assert np.isfinite(part(view=view).terms(None, ctx).sum) and np.isnan(part(view=other).terms(None, ctx).sum)


@pytest.mark.parametrize("form", ["jit 8", "pmap"])
def test_devices_make_no_difference(form):
    """Nor do they for mixed views, whose partners may lie on another device."""
    found, _ = one_step(UDA, form, mix=1.0)
    wanted, _ = one_step(UDA, "jit 1", mix=1.0)
    chex.assert_trees_all_close(found, wanted, **EXACT)
    assert np.abs(wanted[0]["conv1"]["kernel"]).max() > 1e-3

"""Steps in one dispatch, images on the devices, batches ahead of time: the same as one step after the other."""

import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdjax.objectives import KD, CrossEntropy, bind
from kdjax.training import Variables, init_state, make_runner, make_step
from kdjax.training.feed import ahead, dispatches, from_resident, grouped, laid_flat, scanned
from kdjax.training.optimizers import SGD, build
from kdjax.types import Clock, DataInfo
from tests.training.toy import CLASSES, shapes, toy, toy_batch

STEPS, SIZE = 4, 40
FORMS = {"jit 1": 1, "jit 8": 8, "pmap": 8}
IMAGES = np.random.default_rng(1).standard_normal((SIZE, *toy_batch().inputs.shape[1:]))


def to64(tree):
    return jax.tree.map(lambda x: x.astype(jnp.float64) if x.dtype == jnp.float32 else x, tree)


def batch(number, inputs=True):
    rows = toy_batch(seed=number)
    index = np.random.default_rng(number).permutation(SIZE)[: len(rows.labels)].astype(np.int32)
    return dataclasses.replace(rows, index=index, inputs=IMAGES[index] if inputs else None)


@functools.cache
def after(form, feed="one by one", together=1):
    """The state after four steps, and the metrics of each."""
    with jax.enable_x64(True):
        student, teacher = toy(3), toy(4)
        bound = bind(CrossEntropy() + KD(temperature=3.0), shapes(student), shapes(teacher), DataInfo(CLASSES))
        clock = Clock(total_steps=STEPS, steps_per_epoch=2, batch_size=16)
        optimizer = build(SGD(learning_rate=1e-2), clock, bound)
        runner = make_runner("pmap" if form == "pmap" else "jit", jax.devices()[: FORMS[form]])
        step = make_step(student, teacher, bound, optimizer, clock=clock, axis=runner.axis)
        state = runner.place(to64(init_state(student, bound, optimizer, seed=0)))
        frozen = runner.place(to64(Variables(*teacher.init(jax.random.key(7)))))
        if feed == "resident":
            step = from_resident(step, IMAGES)
            frozen = frozen, jax.device_put(laid_flat(IMAGES), runner.replicated)
        run = runner.compile(scanned(step) if together > 1 else step, stacked=together > 1)
        batches = (batch(number, feed != "resident") for number in range(STEPS))
        seen = []
        for size, rows in grouped(batches, [together] * (STEPS // together)):
            state, metrics = run(state, frozen, runner.place_batch(rows, stacked=size > 1))
            metrics = jax.device_get(metrics)
            seen += [jax.tree.map(lambda x, i=i: x[i], metrics) for i in range(size)] if size > 1 else [metrics]
        return jax.device_get((state.step, state.params, state.state, seen))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("feed", "together"), [("one by one", 4), ("one by one", 2), ("resident", 1), ("resident", 4)])
def test_however_batches_come_the_steps_are_the_same(form, feed, together):
    chex.assert_trees_all_close(after(form, feed, together), after("jit 1"), rtol=1e-9, atol=1e-12)


def test_dispatches_end_at_boundaries():
    assert list(dispatches(0, 10, 4, (5,))) == [4, 1, 4, 1]
    assert list(dispatches(0, 10, 4, (100,))) == [4, 4, 1, 1]
    assert list(dispatches(0, 12, 3, (6, 4))) == [3, 1, 1, 1, 1, 1, 3, 1]
    assert list(dispatches(0, 3, 1, (1,))) == [1, 1, 1]
    assert list(dispatches(4, 4, 2, (3,))) == []


@pytest.mark.parametrize("total", [7, 30, 41])
def test_a_run_that_goes_on_is_dispatched_as_the_whole_one(total):
    """From wherever a dispatch ended."""
    whole = list(dispatches(0, total, 4, (9, 6)))
    assert sum(whole) == total
    for done in range(len(whole)):
        assert list(dispatches(sum(whole[:done]), total, 4, (9, 6))) == whole[done:]


def test_batches_are_stacked_in_order():
    sizes = list(grouped((batch(n) for n in range(9)), [1, 3, 1]))
    assert [size for size, _ in sizes] == [1, 3, 1]
    np.testing.assert_array_equal(sizes[0][1].index, batch(0).index)
    np.testing.assert_array_equal(sizes[1][1].inputs, np.stack([batch(n).inputs for n in (1, 2, 3)]))
    np.testing.assert_array_equal(sizes[2][1].labels, batch(4).labels)


def test_batches_are_placed_before_they_are_asked_for():
    placed = []
    items = ahead(iter(range(5)), lambda x: placed.append(x) or 10 * x, depth=2)
    assert next(items) == 0 and placed == [0, 1, 2]
    assert next(items) == 10 and placed == [0, 1, 2, 3]
    assert list(items) == [20, 30, 40] and placed == [0, 1, 2, 3, 4]
    assert list(ahead(iter(()), lambda x: x)) == []

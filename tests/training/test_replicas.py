"""Students in one program: each as alone, with one pass of the teacher for all."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdjax.objectives import KD, SP, CrossEntropy, FitNet, bind
from kdjax.training import Variables, init_state, make_runner, make_step
from kdjax.training.optimizers import SGD, build
from kdjax.training.replicas import join, replicated, take
from kdjax.types import Clock, DataInfo
from tests.training.toy import CLASSES, shapes, toy, toy_batch

STEPS, SEEDS = 5, (0, 1, 2)
FORMS = {"jit 1": 1, "jit 8": 8, "pmap": 8}
STUDENT, TEACHER = toy(3), toy(4)
CLOCK = Clock(total_steps=STEPS, steps_per_epoch=2, batch_size=16)


def noisy(inputs, index, epoch, key):
    """Views keyed by example, so that another data key would be seen."""
    draw = lambda i: 0.3 * jax.random.normal(jax.random.fold_in(jax.random.fold_in(key, epoch), i), inputs.shape[1:])
    return inputs + jax.vmap(draw)(index).astype(inputs.dtype)


@functools.cache
def parts(axis=None, temperature=3.0):
    objective = CrossEntropy() + KD(temperature=temperature) + FitNet(stage=0) + 5.0 * SP()
    bound = bind(objective, shapes(STUDENT), shapes(TEACHER), DataInfo(CLASSES))
    optimizer = build(SGD(learning_rate=1e-2), CLOCK, bound)
    return bound, optimizer, make_step(STUDENT, TEACHER, bound, optimizer, clock=CLOCK, views=noisy, axis=axis)


def start(seed, data_seed=7):
    bound, optimizer, _ = parts()
    return init_state(STUDENT, bound, optimizer, seed=seed, data_seed=data_seed)


@functools.cache
def teacher():
    return Variables(*TEACHER.init(jax.random.key(7)))


def train(step, runner, state):
    compiled, state, frozen = runner.compile(step), runner.place(state), runner.place(teacher())
    for number in range(STEPS):
        state, metrics = compiled(state, frozen, runner.place_batch(toy_batch(seed=number)))
    return jax.device_get((state.params, state.state, state.opt_state, metrics))


@functools.cache
def alone(seed):
    return train(parts()[2], make_runner("jit", jax.devices()[:1]), start(seed))


@functools.cache
def together(form, devices):
    runner = make_runner("pmap" if devices == "pmap" else "jit", jax.devices()[: FORMS[devices]])
    states = join([start(seed, data_seed=7 + seed) for seed in SEEDS])  # the first one's data seed is that of all
    return train(replicated(parts(runner.axis)[2], len(SEEDS), form), runner, states)


@pytest.mark.parametrize(
    ("form", "devices"),
    [
        ("vmapped", "jit 1"),
        ("unrolled", "pmap"),
        *(pytest.param("unrolled", one, marks=pytest.mark.slow) for one in ("jit 1", "jit 8")),
    ],
)
def test_each_trains_as_if_it_were_alone(form, devices):
    for i, seed in enumerate(SEEDS):
        found, wanted = take(together(form, devices)[:3], i), alone(seed)[:3]
        assert np.abs(wanted[0]["student"]["conv1"]["kernel"]).max() > 0.1
        chex.assert_trees_all_close(found, wanted, rtol=1e-4, atol=1e-5)
    if devices == "jit 1":
        chex.assert_trees_all_close(take(together(form, devices)[3], 1), alone(1)[3], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("form", ["unrolled", "vmapped"])
def test_the_teacher_runs_once(form):
    """By the operations of the program: its FLOPs grow by a student's step for each further replica.

    Of the vmapped one before it is compiled; of the unrolled one it is the compiler that leaves the teacher out.
    """
    _, _, step = parts()

    def flops(count):
        states = jax.eval_shape(lambda: join([start(seed) for seed in range(count)]))
        program = jax.jit(replicated(step, count, form)).lower(states, teacher(), toy_batch())
        return (program if form == "vmapped" else program.compile()).cost_analysis()["flops"]

    taught = jax.jit(lambda v, x: TEACHER.apply(v.params, v.state, x, train=False)[0])
    forward = taught.lower(teacher(), jnp.asarray(toy_batch().inputs)).cost_analysis()["flops"]
    one, two, three = flops(1), flops(2), flops(3)
    assert three - two == pytest.approx(two - one, rel=0.1)
    assert two - one < one - 0.7 * forward


def test_objectives_may_differ_in_their_values():
    runner = make_runner("jit", jax.devices()[:1])
    each = [parts(temperature=temperature)[2] for temperature in (3.0, 0.25)]
    found = train(replicated(each, 2), runner, join([start(0), start(0)]))
    chex.assert_trees_all_close(take(found, 0), alone(0), rtol=1e-4, atol=1e-5)
    chex.assert_trees_all_close(take(found, 1), train(each[1], runner, start(0)), rtol=1e-4, atol=1e-5)
    assert found[3]["kd"][0][1] != pytest.approx(found[3]["kd"][0][0], rel=1e-2)
    with pytest.raises(ValueError, match="2 steps for 3 replicas"):
        replicated(each, 3)
    with pytest.raises(ValueError, match='use form="unrolled"'):
        replicated(each, 2, "vmapped")


def test_joined_and_taken():
    trees = [{"a": np.full(2, i), "b": np.full((), -i)} for i in range(3)]
    chex.assert_trees_all_equal(take(join(trees), 1), trees[1])
    with pytest.raises(ValueError, match='form is \'folded\'; use "unrolled" or "vmapped"'):
        replicated(parts()[2], 2, "folded")

"""A batch run in pieces: the same loss and gradients as at once, with less memory."""

import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdjax.models import in_microbatches, output_shapes
from kdjax.objectives import DIST, KD, SP, CrossEntropy, bind
from kdjax.training import Variables, init_state, make_runner, make_step
from kdjax.training.optimizers import SGD, build
from kdjax.types import Clock, DataInfo, ModelOutput, Network
from tests.training.toy import CLASSES, shapes, toy, toy_batch

OBJECTIVE = CrossEntropy() + KD(temperature=3.0) + 2.0 * DIST() + 20.0 * SP()
FORMS = {"jit 1": 1, "jit 8": 8, "pmap": 8}
ROWS, WIDTH, DEPTH = 32, 6, 12


def said(params, x):
    hidden = x
    for kernel in params["hidden"]:
        hidden = jnp.tanh(hidden @ kernel)
    return ModelOutput(logits=hidden @ params["last"], features=(hidden[:, None, None],), embedding=hidden)


def deep():
    """Without anything that the examples of a batch share."""

    def init(key):
        draw = lambda i, *shape: jax.random.normal(jax.random.fold_in(key, i), shape)
        return {"hidden": [draw(i, WIDTH, WIDTH) for i in range(DEPTH)], "last": draw(DEPTH, WIDTH, CLASSES)}, {}

    return Network(init, lambda params, state, x, **_: (said(params, x), state))


def batch():
    rows = toy_batch(ROWS, dtype=np.float64)
    inputs = np.random.default_rng(3).standard_normal((ROWS, WIDTH))
    return dataclasses.replace(rows, inputs=inputs)


def to64(tree):
    return jax.tree.map(lambda x: x.astype(jnp.float64) if x.dtype == jnp.float32 else x, tree)


@functools.cache
def one_step(pieces, form):
    """Parameters after a step of SGD with learning rate 1, and means of its metrics."""
    with jax.enable_x64(True):
        network = deep()
        output = said(network.init(jax.random.key(0))[0], jnp.ones((ROWS, WIDTH)))
        bound = bind(OBJECTIVE, output, output, DataInfo(CLASSES))
        optimizer = build(SGD(learning_rate=1.0, momentum=0.0), Clock(), bound)
        runner = make_runner("pmap" if form == "pmap" else "jit", jax.devices()[: FORMS[form]])
        step = make_step(*[in_microbatches(network, pieces)] * 2, bound, optimizer, axis=runner.axis)
        state = runner.place(to64(init_state(network, bound, optimizer, seed=0)))
        teacher = runner.place(to64(Variables(*network.init(jax.random.key(7)))))
        after, metrics = runner.compile(step)(state, teacher, runner.place_batch(batch()))
        means = {name: total / count for name, (total, count) in metrics.items()}
        return jax.device_get((after.params, means))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("pieces", [2, 4])
def test_a_step_is_that_of_the_whole_batch(pieces, form):
    """Losses that compare examples among them, and an uneven mask."""
    chex.assert_trees_all_close(one_step(pieces, form), one_step(1, "jit 1"), rtol=1e-9, atol=1e-12)


def test_rows_come_back_in_their_order_and_statistics_go_on_from_piece_to_piece():
    network, x = toy(3), jnp.asarray(toy_batch().inputs)
    params, state = network.init(jax.random.key(0))
    output, after = in_microbatches(network, 2).apply(params, state, x, train=True)
    first, between = network.apply(params, state, x[::2], train=True)
    second, expected = network.apply(params, between, x[1::2], train=True)
    chex.assert_trees_all_close(jax.tree.map(lambda y: y[::2], output), first, rtol=1e-5, atol=1e-6)
    chex.assert_trees_all_close(jax.tree.map(lambda y: y[1::2], output), second, rtol=1e-5, atol=1e-6)
    chex.assert_trees_all_close(after, expected, rtol=1e-5, atol=1e-6)


def test_it_needs_less_memory():
    """The activations of one piece of eight, and the outputs of all."""
    network = deep()
    params, _ = network.init(jax.random.key(0))

    def temporaries(pieces):
        run = in_microbatches(network, pieces).apply
        loss = lambda params, x: jnp.sum(run(params, {}, x, train=True)[0].logits ** 2)
        compiled = jax.jit(jax.grad(loss)).lower(params, jnp.ones((4096, WIDTH))).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    assert temporaries(8) < temporaries(1) / 2


def test_one_piece_is_the_network_itself_and_bad_counts_are_refused():
    network = toy(3)
    assert in_microbatches(network, 1) is network
    with pytest.raises(ValueError, match="microbatches=0; it must be at least 1"):
        in_microbatches(network, 0)
    with pytest.raises(ValueError, match="4 examples on a device does not divide into 3 microbatches"):
        output_shapes(in_microbatches(network, 3), jax.ShapeDtypeStruct((4, 6, 6, 2), jnp.float32))
    assert shapes(in_microbatches(network, 2)) == shapes(network)
    assert in_microbatches(network, 2).parts is network.parts

"""Mixed precision: short types inside the network, long ones for all that is kept and compared."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdjax.models import in_precision
from kdjax.objectives import KD, SP, CrossEntropy, bind
from kdjax.training import Variables, init_state, make_runner, make_step
from kdjax.training.optimizers import SGD, build
from kdjax.types import Clock, DataInfo
from tests.training.toy import CLASSES, shapes, toy, toy_batch


def test_the_network_computes_in_the_shorter_type_and_keeps_its_state():
    network, inputs = toy(3), jnp.asarray(toy_batch().inputs)
    params, state = network.init(jax.random.key(0))
    short = in_precision(network, "bfloat16")
    said, after = short.apply(params, state, inputs, train=True)
    exact, expected = network.apply(params, state, inputs, train=True)
    assert {leaf.dtype for leaf in jax.tree.leaves(said)} == {jnp.dtype(jnp.bfloat16)}
    assert {leaf.dtype for leaf in jax.tree.leaves(after)} == {jnp.dtype(jnp.float32)}
    np.testing.assert_allclose(said.logits.astype(np.float32), exact.logits, atol=0.05)
    assert np.abs(said.logits.astype(np.float32) - exact.logits).max() > 1e-4
    for found, wanted in zip(jax.tree.leaves(after), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(found, wanted, rtol=0.02, atol=0.02)
    text = str(jax.make_jaxpr(lambda p: short.apply(p, state, inputs, train=True)[0].logits)(params))
    kinds = [line for line in text.splitlines() if "conv_general_dilated[" in line]
    assert len(kinds) == 2 and all(":bf16[" in line for line in kinds)


def test_a_step_keeps_float32_and_comes_near_the_exact_one():
    student, teacher = toy(3), toy(4)
    bound = bind(CrossEntropy() + KD(temperature=3.0) + SP(), shapes(student), shapes(teacher), DataInfo(CLASSES))
    optimizer = build(SGD(learning_rate=0.1, momentum=0.0), Clock(), bound)
    runner = make_runner("jit", jax.devices()[:1])
    frozen, batch = Variables(*teacher.init(jax.random.key(7))), runner.place_batch(toy_batch())
    results = {}
    for precision in ("float32", "bfloat16"):
        state = init_state(student, bound, optimizer, seed=0)
        step = make_step(in_precision(student, precision), teacher, bound, optimizer)
        after, metrics = runner.compile(step, donate=False)(state, frozen, batch)
        moved = jax.tree.map(lambda a, b: np.asarray(a - b), after.params["student"], state.params["student"])
        results[precision] = moved, float(metrics["loss"][0])
        assert {leaf.dtype for leaf in jax.tree.leaves((after.params, after.state))} == {jnp.dtype(jnp.float32)}
        assert metrics["loss"][0].dtype == jnp.float32
    (exact, loss), (short, near) = results["float32"], results["bfloat16"]
    assert near == pytest.approx(loss, rel=0.02) and near != loss
    flat = lambda tree: np.concatenate([leaf.ravel() for leaf in jax.tree.leaves(tree)])
    assert np.linalg.norm(flat(short) - flat(exact)) < 0.1 * np.linalg.norm(flat(exact))


def test_float32_is_the_network_itself_and_others_are_refused():
    network = toy(3)
    assert in_precision(network, "float32") is network
    with pytest.raises(ValueError, match="precision='float16'; use 'float32' or 'bfloat16'"):
        in_precision(network, "float16")

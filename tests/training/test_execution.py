"""One step has the same value and gradients however it is executed.

Float64, plain SGD with learning rate 1 (so that parameters differ by exactly the gradient: Adam would hide a scale error),
an uneven mask, BatchNorm, two projectors, a relational loss, a scheduled weight.
"""

import functools
from unittest import mock

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from kdjax.objectives import KD, SP, CrossEntropy, FitNet, bind
from kdjax.schedules import Duration, Linear
from kdjax.training import Variables, init_state, make_runner, make_step, runners
from kdjax.training.optimizers import SGD, build
from kdjax.types import Clock, DataInfo
from tests.training.toy import CLASSES, shapes, toy, toy_batch

STEPS = 3
FORMS = ("jit 8", "fsdp", "pmap", "shard_map")
OBJECTIVE = (
    CrossEntropy()
    + Linear(start=1.0, end=2.0, length=Duration(4, "steps")) * KD(temperature=3.0)
    + 0.5 * FitNet(stage=0)
    + 0.7 * FitNet(stage=1)
    + 20.0 * SP()
)


def to64(tree):
    return jax.tree.map(lambda x: x.astype(jnp.float64) if x.dtype == jnp.float32 else x, tree)


def execute(form, batches, sgd):
    """States after every step, and metrics, of one way to execute."""
    student, teacher = toy(3), toy(4)
    bound = bind(OBJECTIVE, shapes(student), shapes(teacher), DataInfo(CLASSES))
    clock = Clock(total_steps=8, steps_per_epoch=4, batch_size=16)
    optimizer = build(sgd, clock, bound)
    state = to64(init_state(student, bound, optimizer, seed=1))
    variables = to64(Variables(*teacher.init(jax.random.key(7))))
    kind = form if form in ("pmap", "fsdp") else "jit"
    runner = make_runner(kind, jax.devices()[:1] if form == "jit 1" else None)
    axis = "data" if form == "shard_map" else runner.axis
    step = make_step(student, teacher, bound, optimizer, clock=clock, axis=axis)
    if form == "shard_map":
        none, rows = PartitionSpec(), PartitionSpec("data")
        sharded = functools.partial(step)  # without the mark that it was made for an axis, which shard_map names itself
        step = jax.shard_map(sharded, mesh=runner.mesh, in_specs=(none, none, rows), out_specs=none, check_vma=False)
    compiled = runner.compile(step, donate=False, state=state if form == "fsdp" else None)
    state, variables = runner.place(state), runner.place(variables)
    results = []
    for batch in batches:
        state, metrics = compiled(state, variables, runner.place_batch(batch))
        results.append(jax.device_get((state.params, state.state, metrics)))
    return results


@functools.cache
def run(form):
    with jax.enable_x64(True), mock.patch.object(runners, "SPREAD_SIZE", 8):
        batches = [toy_batch(seed=seed, dtype=np.float64) for seed in range(STEPS)]
        return execute(form, batches, SGD(learning_rate=1e-2, momentum=0.0))


@pytest.mark.parametrize("form", FORMS)
def test_one_step_has_the_same_gradients_state_and_metrics(form):
    wanted, found = run("jit 1")[0], run(form)[0]
    chex.assert_trees_all_close(found, wanted, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("form", FORMS)
def test_three_steps_agree(form):
    chex.assert_trees_all_close(run(form)[-1], run("jit 1")[-1], rtol=1e-7, atol=1e-10)


def test_every_part_moves():
    """The comparison would be empty if some gradient were zero."""
    (first, *_), last = run("jit 1")[0], run("jit 1")[-1][0]
    for name in ("fitnet", "fitnet_2"):
        moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), first["objective"][name], last["objective"][name])
        assert moved["conv"]["kernel"] > 1e-6
    assert np.abs(first["student"]["conv1"]["kernel"] - last["student"]["conv1"]["kernel"]).max() > 1e-6


def test_masked_rows_change_nothing_but_batch_statistics():
    """Labels of masked and unlabelled rows are never read."""
    with jax.enable_x64(True):
        batch = toy_batch(dtype=np.float64)
        labels = np.where(batch.where & batch.labelled, batch.labels, (batch.labels + 1) % CLASSES)
        other = type(batch)(batch.inputs, labels, batch.index, batch.where, batch.labelled)
        sgd = SGD(learning_rate=1e-2, momentum=0.0)
        chex.assert_trees_all_equal(execute("jit 1", [batch], sgd), execute("jit 1", [other], sgd))


def test_parameters_are_spread_under_fsdp():
    """So are their momenta and the teacher's; what is small or does not divide stays whole."""
    runner = make_runner("fsdp")
    variables = Variables({"kernel": np.zeros((3, 3, 64, 128), np.float32), "bias": np.zeros(128, np.float32)}, {})
    placed = runner.place(variables).params
    assert placed["kernel"].addressable_shards[0].data.shape == (3, 3, 64, 16)
    assert placed["bias"].sharding.is_fully_replicated
    odd = runner.place({"kernel": np.zeros((161, 103), np.float32)})
    assert odd["kernel"].sharding.is_fully_replicated

"""Every objective has the same loss and gradients however it is executed: see `tests/objectives/conformance.py`.

Float64, an uneven mask, the state after an earlier step. `test_conformance.py` compares one compiled program with its
operations one by one; here it is compared with eight devices.
"""

import functools
import re

import chex
import jax
import numpy as np
import pytest
from jax import lax
from jax.sharding import use_abstract_mesh

from kdjax.training import make_runner
from tests.objectives.conformance import (
    DEVICES,
    QUICK,
    STEP,
    Result,
    batch,
    cast,
    classifier,
    draw,
    evaluation,
    exact,
    expected,
    initial,
    marked,
    normalises,
    reason,
    run,
    with_a_loss,
)

AXIS = make_runner("pmap").axis


@pytest.fixture(params=marked(), scope="module")
def subject(request):
    return request.param


def arguments(subject):
    """Of the second step: the state is what another batch made of it."""
    params, state = initial(subject)
    state = run(subject, draw(8), batch(9), step=STEP - 1, train=True).state if jax.tree.leaves(state) else state
    return *cast((params, state, classifier(), draw(0)), np.float64), batch(), np.int32(STEP)


@functools.cache
def one(subject):
    """The result of one device."""
    _, state, _, said, rows, _ = arguments(subject)
    return run(subject, said, rows, train=True, state=state)


@functools.cache
def sharded(subject):
    """The result of eight devices under jit, and the text of the compiled program."""
    runner = make_runner("jit")
    alike, rows = runner.replicated, runner.sharded
    with jax.enable_x64(True):
        given = arguments(subject)
        evaluate = evaluation(subject)

        def in_mesh(*given):  # as a runner has it
            with use_abstract_mesh(runner.mesh.abstract_mesh):
                return evaluate(*given)

        function = jax.jit(
            in_mesh,
            in_shardings=(alike, alike, alike, rows, rows, alike),
            out_shardings=Result(alike, rows, alike, rows, alike, alike),
        )
        program = function.lower(*given).compile(QUICK)
        placed = jax.tree.map(jax.device_put, given, program.input_shardings[0])
        return jax.device_get(program(*placed)), program.as_text()


def mapped(subject):
    """The result of eight devices under pmap: what is of one device summed or put together."""
    evaluate = evaluation(subject, axis=AXIS)

    def share(*given):
        result = evaluate(*given)
        return result._replace(value=lax.psum(result.value, AXIS), params=lax.psum(result.params, AXIS), terms=None)

    function = jax.pmap(
        share, AXIS, in_axes=(None, None, None, 0, 0, None), out_axes=Result(None, 0, None, 0, None, None),
    )  # fmt: skip
    with jax.enable_x64(True):
        *own, said, rows, step = arguments(subject)
        said, rows = jax.tree.map(lambda x: x.reshape(DEVICES, -1, *x.shape[1:]), (said, rows))
        given = (*own, said, rows, step)
        result = jax.device_get(function.lower(*given).compile(QUICK)(*given))
    together = lambda tree: jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), tree)
    return result._replace(student=together(result.student), frozen=together(result.frozen))


def forms():
    """All; by pmap, where a loss of single examples takes the way that all of them share, a few of those are enough."""
    enough = ("kd", "dkd", "fitnet", "dhkd", "cross_entropy")
    for subject in with_a_loss():
        switched = "=" in subject
        yield pytest.param(subject, "jit", marks=[pytest.mark.slow] * switched)
        alone = reason("rows stay on their device", subject) is None and not normalises(subject)
        yield pytest.param(subject, "pmap", marks=[pytest.mark.slow] * (switched or (alone and subject not in enough)))


@pytest.mark.parametrize(("subject", "form"), list(forms()), indirect=["subject"])
def test_eight_devices_give_the_loss_and_gradients_of_one(subject, form):
    found = sharded(subject)[0] if form == "jit" else mapped(subject)
    wanted = one(subject)
    with expected("eight devices give the loss and gradients of one", subject):
        for name in ("value", "student", "params", "frozen", "state"):
            chex.assert_trees_all_close(getattr(found, name), getattr(wanted, name), **exact(subject))
    assert max(np.abs(leaf).max() for leaf in jax.tree.leaves((wanted.student, wanted.params))) > 1e-6


def test_rows_stay_on_their_device(subject):
    """Nothing but sums travels between devices, where examples are not compared with each other."""
    program = sharded(subject)[1]
    assert "all-reduce" in program, "the loss is summed over devices"
    with expected("rows stay on their device", subject):
        for collective in ("all-gather", "all-to-all", "collective-permute"):
            assert collective not in program


def test_maps_do_not_travel_whole():
    """Left to itself the partitioner adds up whole batches of maps over the devices, forward and backward."""
    program = sharded("sp")[1]
    summed = re.findall(r"= (.*?) all-reduce(?:-start)?\(", program)
    assert summed and not any(re.search(r"f64\[\d", shapes) for shapes in summed), "only scalars are added up"
    assert "reduce-scatter" in program

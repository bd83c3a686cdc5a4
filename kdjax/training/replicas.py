"""Several students of one kind in one program: they share the batches and one pass of the teacher, and nothing else."""

import dataclasses
from collections.abc import Sequence
from typing import Literal

import jax
import jax.numpy as jnp

from kdjax.training.state import TrainState
from kdjax.training.step import Step
from kdjax.types import Tree

Form = Literal["unrolled", "vmapped"]


def replicated(step: Step, count: int, form: Form = "unrolled") -> Step:
    """A step of `count` joined states: each takes the same step as alone on the same batches.

    The views of the data, and so what the teacher says of them, are those of the first one's data key for all: the program
    has them once, since there is nothing in them that differs.

    Args:
      step: of one state.
      count: of states.
      form: "unrolled", a copy of the student's part of the step for each: right where one fills the device, and on CPU.
        "vmapped", one program over a further axis: for networks so small that the number of operations counts. Convolutions
        become grouped ones, which are often slower.

    Returns:
      `(states, teacher, batch) -> (states, metrics)`, every array of states and metrics with a first axis of `count`.
    """
    if form not in ("unrolled", "vmapped"):
        raise ValueError(f'form is {form!r}; use "unrolled" or "vmapped".')

    def steps(states: TrainState, frozen, batch):
        first = take(states, 0)

        def one(own: TrainState):
            keys = {**own.keys, "data": first.keys["data"]}
            return step(dataclasses.replace(own, step=first.step, keys=keys), frozen, batch)

        if form == "vmapped":
            return jax.vmap(one)(states)
        return join([one(take(states, i)) for i in range(count)])

    steps.axis = step.axis
    return steps


def join(trees: Sequence[Tree]) -> Tree:
    """Trees of one structure as one, with a first axis of them."""
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


def take(tree: Tree, i: int) -> Tree:
    """One of those that `join` made one."""
    return jax.tree.map(lambda x: x[i], tree)

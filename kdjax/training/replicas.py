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


def replicated(step: Step | Sequence[Step], count: int, form: Form = "unrolled") -> Step:
    """A step of `count` joined states: each takes the same step as alone on the same batches.

    The views of the data, and so what the teacher says of them, are those of the first one's data key for all: the program
    has them once, since there is nothing in them that differs.

    Args:
      step: of one state; or one for each, of objectives or optimizers that differ in their values (temperatures, weights,
        learning rates) and have states of one structure.
      count: of states.
      form: "unrolled", a copy of the student's part of the step for each: right where one fills the device, and on CPU.
        "vmapped", one program over a further axis: for networks so small that the number of operations counts. Convolutions
        become grouped ones, which are often slower.

    Returns:
      `(states, teacher, batch) -> (states, metrics)`, every array of states and metrics with a first axis of `count`.
    """
    if form not in ("unrolled", "vmapped"):
        raise ValueError(f'form is {form!r}; use "unrolled" or "vmapped".')
    each = [step] * count if callable(step) else list(step)
    if len(each) != count:
        raise ValueError(f"There are {len(each)} steps for {count} replicas; give one for each, or one for all.")
    if form == "vmapped" and not callable(step):
        raise ValueError('Steps that differ are not one program over an axis; use form="unrolled".')

    def steps(states: TrainState, frozen, batch):
        first = take(states, 0)

        def one(own: TrainState, step: Step):
            keys = {**own.keys, "data": first.keys["data"]}
            return step(dataclasses.replace(own, step=first.step, keys=keys), frozen, batch)

        if form == "vmapped":
            return jax.vmap(lambda own: one(own, each[0]))(states)
        return join([one(take(states, i), own) for i, own in enumerate(each)])

    steps.axis = each[0].axis
    return steps


def join(trees: Sequence[Tree]) -> Tree:
    """Trees of one structure as one, with a first axis of them."""
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


def take(tree: Tree, i: int) -> Tree:
    """One of those that `join` made one."""
    return jax.tree.map(lambda x: x[i], tree)

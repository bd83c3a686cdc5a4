"""How batches reach the step: ahead of time, several in one dispatch, or as rows of images that are on the devices already."""

import collections
import dataclasses
import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import numpy as np
from jax import lax

from kdjax.training.step import Step
from kdjax.types import Batch, Tree

AHEAD = 2  # batches that are placed before the step asks for them


def laid_flat(inputs: Tree) -> Tree:
    """Arrays `[N, ...]` as `[N, D]`, a row an example. A TPU keeps images in an order of axes in which no row can be looked up,
    and would lay all of them out anew in every dispatch."""
    return jax.tree.map(lambda x: x.reshape(len(x), -1), inputs)


def from_resident(step: Step, arrays: Tree) -> Step:
    """A step that looks its inputs up: `(state, (teacher, inputs), batch)`, the batch without inputs.

    `inputs` are those of the whole training split, `arrays` `laid_flat`, and the batch's `index` says which. They are an
    argument, so that they are no constants of the program; of `arrays`, a pytree of `[N, ...]`, only shapes are read.
    """

    shapes = jax.tree.map(lambda x: x.shape[1:], arrays)

    def resident(state, frozen, batch: Batch):
        teacher, inputs = frozen
        index = batch.known_index("Inputs are looked up")
        with jax.named_scope("views"):
            rows = jax.tree.map(lambda x, shape: x[index].reshape(len(index), *shape), inputs, shapes)
        return step(state, teacher, dataclasses.replace(batch, inputs=rows))

    resident.axis = step.axis
    return resident


def scanned(step: Step) -> Step:
    """Several steps as one program, `(state, frozen, batches)`, every array of the batches with a first axis of steps; so
    have the metrics. It saves the dispatch of each, which counts where a step takes a few milliseconds."""

    def steps(state, frozen, batches: Batch):
        return lax.scan(lambda state, batch: step(state, frozen, batch), state, batches)

    steps.axis = step.axis
    return steps


def dispatches(begin: int, total: int, count: int, boundaries: tuple[int, ...]) -> Iterator[int]:
    """How many steps each dispatch takes from step `begin` to `total`: `count`, or one at a time up to a boundary that
    `count` would cross. Boundaries are intervals: what happens every so many steps happens between dispatches."""
    step = begin
    while step < total:
        room = min(total, *((step // every + 1) * every for every in boundaries)) - step
        size = count if count <= room else 1
        yield size
        step += size


def grouped(batches: Iterable[Batch], sizes: Iterable[int]) -> Iterator[tuple[int, Batch]]:
    """`(size, batch)` for every size; batches of more than one step stacked."""
    batches = iter(batches)
    for size in sizes:
        chosen = list(itertools.islice(batches, size))
        yield size, chosen[0] if size == 1 else jax.tree.map(lambda *leaves: np.stack(leaves), *chosen)


def ahead(items: Iterator[Any], place: Callable[[Any], Any], depth: int = AHEAD) -> Iterator[Any]:
    """The items, placed `depth` before they are asked for: transfers run beside computation."""
    waiting = collections.deque(map(place, itertools.islice(items, depth)))
    while waiting:
        item = waiting.popleft()
        waiting.extend(map(place, itertools.islice(items, 1)))
        yield item

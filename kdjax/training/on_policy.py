"""Steps whose examples the student writes itself, so that it learns from its own mistakes.

Agarwal et al., On-Policy Distillation of Language Models: Learning from Self-Generated Mistakes, ICLR 2024, arXiv 2306.13649.
A share that adapts, and examples that are kept: Ko et al., DistiLLM: Towards Streamlined Distillation for Large Language
Models, ICML 2024, arXiv 2402.03898.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from kdjax.models.transformers.sampling import Beside
from kdjax.objectives import Bound
from kdjax.reduction import gather_rows, group_losses
from kdjax.schedules import Adaptive, Schedule, value_at
from kdjax.training.inputs import run_teacher
from kdjax.training.state import TrainState, Variables
from kdjax.training.step import Step
from kdjax.types import Array, Axis, Batch, Clock, Context, Network, Tree

# (network, params, state, batch, key, beside) -> the batch with what the network wrote
Writes = Callable[[Network, Tree, Tree, Batch, Array, Beside | None], Batch]
# (train state, teacher) -> the loss on examples that are held out
Judge = Callable[[TrainState, Variables | None], Array]

WRITING = "writing"  # what a step whose share adapts carries, in `TrainState.state`


def on_policy(
    step: Step, student: Network, writes: Writes, share: float | Schedule | Adaptive, clock: Clock, *,
    teacher: Network | None = None, teacher_writes: float = 0.0, judge: Judge | None = None,
) -> Step:  # fmt: skip
    """A step that is given what the student writes now, in evaluation mode, in place of a batch of the data: each step either the
    one or the other by chance, as in the published code. One program does both; nothing is sent back through the writing.

    Args:
      step: of batches of the data.
      student: the network that it trains.
      writes: `kdjax.tasks.Task.written`.
      share: of the steps, 0 to 1, or a schedule of it; or `Adaptive`, for a state that has `writing_state`: as training goes on
        fewer of the steps of that share have the student write, and more are given what it wrote before.
      clock: of the phase.
      teacher: as the step runs it, where it has a share in what is written.
      teacher_writes: that share of the mixture of both that tokens are drawn from, 0 to 1.
      judge: what an adaptive share goes by.

    Returns:
      The step, with one more metric, "on_policy": whether the student wrote; of an adaptive share also "on_policy_share".
    """

    def written(state: TrainState, frozen, batch: Batch, draws: Array) -> Batch:
        given = lax.stop_gradient((state.params["student"], state.state["student"]))
        beside = None
        if teacher is not None and teacher_writes:
            beside = Beside(teacher, *lax.stop_gradient((frozen.params, frozen.state)), teacher_writes)
        return writes(student, *given, batch, draws, beside)

    def key_of(state: TrainState) -> Array:
        return jax.random.fold_in(jax.random.fold_in(state.keys["train"], state.step), 3)

    def learning(state, frozen, batch: Batch, *rest):
        chance, draws = jax.random.split(key_of(state))
        own = jax.random.uniform(chance) < jnp.asarray(value_at(share, clock.at(state.step)), jnp.float32)
        batch = lax.cond(own, lambda: written(state, frozen, batch, draws), lambda: batch)
        state, metrics = step(state, frozen, batch, *rest)
        return state, {**metrics, "on_policy": (own.astype(jnp.float32), jnp.ones(()))}

    def adapting(state, frozen, batch: Batch, *rest):
        writing = state.state[WRITING]
        state = dataclasses.replace(state, state={name: x for name, x in state.state.items() if name != WRITING})
        period = max(1, share.every.steps(clock.steps_per_epoch, clock.batch_size, clock.total_steps))
        due = state.step % period == 0
        writing = lax.cond(due, lambda: grown(writing, judge(state, frozen), share), lambda: writing)
        chance, draws, picks = jax.random.split(key_of(state), 3)
        uniform, now = jax.random.uniform(chance), writing["share"]
        fresh = uniform < now * (1 - clock.at(state.step).fraction)
        again = ~fresh & (uniform < now) & (writing["count"] > 0)
        batch = lax.switch(
            jnp.where(fresh, 1, jnp.where(again, 2, 0)),
            [
                lambda: batch,
                lambda: written(state, frozen, batch, draws),
                lambda: replayed(writing, batch, picks, step.axis),
            ],
        )
        writing = lax.cond(fresh, lambda: remembered(writing, batch, step.axis), lambda: writing)
        state, metrics = step(state, frozen, batch, *rest)
        own = (fresh | again).astype(jnp.float32)
        metrics |= {"on_policy": (own, jnp.ones(())), "on_policy_share": (now, jnp.ones(()))}
        return dataclasses.replace(state, state={**state.state, WRITING: writing}), metrics

    made = adapting if isinstance(share, Adaptive) else learning
    made.axis = step.axis
    return made


def writing_state(share: Adaptive, rows: dict[str, Any]) -> Tree:
    """What a step of an adaptive share carries: the share, the loss that it goes by, and what was written, as it is read.

    Args:
      share: of the phase.
      rows: shapes of what `kdjax.tasks.Examples.read` gives.
    """
    kept = {name: rows[name] for name in ("inputs", "targets", "elements")}
    room = jax.tree.map(lambda x: jnp.zeros((share.replay, *x.shape[1:]), x.dtype), kept)
    numbers = {"share": jnp.asarray(share.start, jnp.float32), "reference": jnp.asarray(jnp.inf, jnp.float32)}
    return {**numbers, "count": jnp.zeros((), jnp.int32), "kept": room}


def grown(writing: Tree, loss: Array, share: Adaptive) -> Tree:
    """The share larger, and the loss the one to go by, where that is no better than before; at first it is what it is."""
    worse = loss >= writing["reference"] + share.tolerance
    now = jnp.where(worse, jnp.minimum(writing["share"] + share.grows, 1.0), writing["share"])
    reference = jnp.where(worse | jnp.isinf(writing["reference"]), loss.astype(jnp.float32), writing["reference"])
    return {**writing, "share": now, "reference": reference}


def remembered(writing: Tree, batch: Batch, axis: Axis) -> Tree:
    """With the rows of a batch over all devices in place of the oldest."""
    rows = jax.tree.map(lambda x: gather_rows(x, axis), of_batch(batch))
    count, room = len(rows["elements"]), len(writing["kept"]["elements"])
    places = (writing["count"] + jnp.arange(count, dtype=jnp.int32)) % room
    kept = jax.tree.map(lambda held, new: held.at[places].set(new.astype(held.dtype)), writing["kept"], rows)
    return {**writing, "kept": kept, "count": writing["count"] + count}


def replayed(writing: Tree, batch: Batch, key: Array, axis: Axis) -> Batch:
    """A batch of the same shapes with rows that were written before, any of them; drawn alike however the rows are spread."""
    held, room = len(batch.where), len(writing["kept"]["elements"])
    numbers = jax.random.randint(
        key, (held * (1 if axis is None else lax.axis_size(axis)),), 0, jnp.minimum(writing["count"], room)
    )  # fmt: skip
    if axis is not None:
        numbers = lax.dynamic_slice_in_dim(numbers, lax.axis_index(axis) * held, held)
    rows = jax.tree.map(lambda x: x[numbers], writing["kept"])
    same = jax.tree.map(lambda x, old: x.astype(old.dtype), rows, of_batch(batch))
    return dataclasses.replace(batch, **same, labelled=jnp.zeros_like(batch.labelled))


def of_batch(batch: Batch) -> dict[str, Any]:
    """What is kept of it."""
    return {"inputs": batch.inputs, "targets": batch.targets, "elements": batch.elements}


def judge_by(
    student: Network, teacher: Network | None, objective: Bound, batch: Batch, view: Callable[[Any], Any], clock: Clock,
    *, in_chunks: bool = False,
) -> Judge:  # fmt: skip
    """The objective's loss on a batch that is not trained on, in evaluation mode, alike on every device.

    Args:
      student, teacher, objective: of the step.
      batch: of the held-out examples.
      view: what networks see of its inputs.
      clock: of the phase.
      in_chunks: whether the step takes logits a few tokens at a time, see `kdjax.training.make_step`.
    """

    def loss(state: TrainState, frozen: Variables | None) -> Array:
        seen = view(batch.inputs)
        own = state.params["student"], state.state["student"]
        said, _ = student.apply(*own, seen, train=False)
        taught, ask, _ = run_teacher(teacher, frozen, {"main": seen}, None)
        ctx = Context(
            said, taught.get("main"), batch, clock.at(state.step), train=False, teacher_call=ask,
            student_call=(lambda part, *arrays: student.parts[part](*own, *arrays)) if in_chunks else None,
        )  # fmt: skip
        terms, _ = objective.apply(state.params["objective"], state.state["objective"], ctx, train=False)
        return sum(group_losses(terms).values(), start=jnp.zeros(()))

    return loss

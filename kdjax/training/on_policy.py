"""Steps whose examples the student writes itself, so that it learns from its own mistakes.

Agarwal et al., On-Policy Distillation of Language Models: Learning from Self-Generated Mistakes, ICLR 2024, arXiv 2306.13649.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

from kdjax.models.transformers.sampling import Beside
from kdjax.schedules import Schedule, value_at
from kdjax.training.step import Step
from kdjax.types import Array, Batch, Clock, Network, Tree

# (network, params, state, batch, key, beside) -> the batch with what the network wrote
Writes = Callable[[Network, Tree, Tree, Batch, Array, Beside | None], Batch]


def on_policy(
    step: Step, student: Network, writes: Writes, share: float | Schedule, clock: Clock, *,
    teacher: Network | None = None, teacher_writes: float = 0.0,
) -> Step:  # fmt: skip
    """A step that is given what the student writes now, in evaluation mode, in place of a batch of the data: each step either the
    one or the other by chance, as in the published code. One program does both; nothing is sent back through the writing.

    Args:
      step: of batches of the data.
      student: the network that it trains.
      writes: `kdjax.tasks.Task.written`.
      share: of the steps, 0 to 1, or a schedule of it.
      clock: of the phase.
      teacher: as the step runs it, where it has a share in what is written.
      teacher_writes: that share of the mixture of both that tokens are drawn from, 0 to 1.

    Returns:
      The step, with one more metric, "on_policy": whether the student wrote.
    """

    def learning(state, frozen, batch: Batch, *rest):
        key = jax.random.fold_in(jax.random.fold_in(state.keys["train"], state.step), 3)
        chance, draws = jax.random.split(key)
        own = jax.random.uniform(chance) < jnp.asarray(value_at(share, clock.at(state.step)), jnp.float32)
        given = lax.stop_gradient((state.params["student"], state.state["student"]))
        beside = None
        if teacher is not None and teacher_writes:
            beside = Beside(teacher, *lax.stop_gradient((frozen.params, frozen.state)), teacher_writes)
        batch = lax.cond(own, lambda: writes(student, *given, batch, draws, beside), lambda: batch)
        state, metrics = step(state, frozen, batch, *rest)
        return state, {**metrics, "on_policy": (own.astype(jnp.float32), jnp.ones(()))}

    learning.axis = step.axis
    return learning

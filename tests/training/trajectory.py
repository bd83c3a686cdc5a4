"""Parameters on their way under an optimizer: what tests of optimizers share."""

import dataclasses

import jax
import jax.numpy as jnp
import optax

from kdjax.schedules import Schedule
from kdjax.training.optimizers import build
from kdjax.types import Clock
from tests.tracing import traced_once


@dataclasses.dataclass(frozen=True)
class Listed(Schedule):
    """A value a step, in the precision of the computation."""

    values: tuple[float, ...]

    def __call__(self, progress):
        return jnp.asarray(self.values)[progress.step.astype(jnp.int32)]


def trajectory(optimizer, weights, gradients, *, objective, clock=Clock()):
    """Parameters after every update, for a list of gradients (by group, if the optimizer takes them so)."""
    transformation = build(optimizer, clock, objective)

    @traced_once
    def update(weights, state, gradient):
        updates, state = transformation.update(gradient, state, weights)
        return optax.apply_updates(weights, updates), state

    state, seen = transformation.init(weights), []
    for gradient in gradients:
        weights, state = update(weights, state, gradient)
        seen.append(jax.device_get(weights))
    return seen


def student_only(values):
    return {"student": {"w": values}, "objective": {}}

"""Optimizers as the papers use them, as data; `build` makes the optax transformation."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax

from kdjax.objectives import Bound
from kdjax.schedules import Cosine, Schedule, value_at
from kdjax.types import Clock, Tree


@dataclasses.dataclass(frozen=True, kw_only=True)
class Optimizer:
    """Base of the optimizers: what they share."""

    learning_rate: float | Schedule = Cosine(start=0.1)
    """learning rate, a number or a schedule over the phase"""
    weight_decay: float = 0.0
    """weight decay; see each optimizer for whether it is coupled"""
    decay_vectors: bool = True
    """whether decay also applies to biases and BatchNorm parameters, as in torch"""
    clip: float = 0.0
    """largest global norm of the gradient; 0 for no clipping"""

    def core(self, mask: Tree, learning_rate) -> optax.GradientTransformation:
        raise TypeError(f"{type(self).__name__} does not say its update; define core(mask, learning_rate).")


@dataclasses.dataclass(frozen=True, kw_only=True)
class SGD(Optimizer):
    """SGD with torch's semantics: `buffer = momentum * buffer + (gradient + weight_decay * w)`, `w -= lr * buffer`.

    Decay is coupled, and the learning rate stays outside the buffer, so that a drop acts at once.
    """

    momentum: float = 0.9
    """momentum of the buffer"""
    nesterov: bool = False
    """step along `gradient + momentum * buffer`"""

    def core(self, mask, learning_rate):
        return optax.chain(
            optax.add_decayed_weights(self.weight_decay, mask=mask) if self.weight_decay else optax.identity(),
            optax.trace(self.momentum, self.nesterov) if self.momentum else optax.identity(),
            optax.scale_by_learning_rate(learning_rate),
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class AdamW(Optimizer):
    """Adam with decoupled weight decay, which is multiplied by the learning rate."""

    b1: float = 0.9
    """decay of the mean of gradients"""
    b2: float = 0.999
    """decay of the mean of squared gradients"""
    eps: float = 1e-8
    """added to the root of the second moment"""

    def core(self, mask, learning_rate):
        return optax.adamw(learning_rate, self.b1, self.b2, self.eps, weight_decay=self.weight_decay, mask=mask)


class GroupedTransformation(optax.GradientTransformation):
    """An optax transformation whose `update` takes a dict of gradients by group ("task", "distill") instead of their sum."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class DOT(Optimizer):
    """Distillation-oriented trainer: SGD with a momentum buffer for each group of gradients, the distillation's the longer.

    `task = (momentum - delta) * task + (task gradient + weight_decay * w)`, `distill = (momentum + delta) * distill +
    distillation gradient`, `w -= lr * (task + distill)`. The objective's own modules keep the plain momentum, as in the
    released code, which does so for whatever parameter one loss alone reaches; here all of the student's have two buffers.
    With `delta = 0` it is `SGD`.

    Zhao, Cui, Song, Liang, "DOT: A Distillation-Oriented Trainer", ICCV 2023.
    """

    momentum: float = 0.9
    """mean of the two momenta"""
    delta: float = 0.075
    """half their difference: 0.075 on CIFAR-100"""

    def core(self, mask, learning_rate):
        decay = optax.add_decayed_weights(self.weight_decay, mask=mask) if self.weight_decay else optax.identity()
        step = optax.scale_by_learning_rate(learning_rate)

        def init(params):
            task, distill = (jax.tree.map(jnp.zeros_like, params) for _ in range(2))
            return {"task": task, "distill": distill, "decay": decay.init(params), "step": step.init(params)}

        def update(gradients, state, params):
            none = jax.tree.map(jnp.zeros_like, params)
            task, distill = gradients.get("task", none), gradients.get("distill", none)
            decayed, decay_state = decay.update(none, state["decay"], params)
            plain = {"student": self.momentum - self.delta, "objective": self.momentum}
            longer = {"student": self.momentum + self.delta, "objective": self.momentum}
            add = lambda part, momentum, buffer, *gradients: jax.tree.map(
                lambda b, *g: momentum[part] * b + sum(g), buffer[part], *(g[part] for g in gradients)
            )
            task = {part: add(part, plain, state["task"], task, decayed) for part in params}
            distill = {part: add(part, longer, state["distill"], distill) for part in params}
            moved, step_state = step.update(jax.tree.map(jnp.add, task, distill), state["step"], params)
            return moved, {"task": task, "distill": distill, "decay": decay_state, "step": step_state}

        return GroupedTransformation(init, update)


VECTORS = ("bias", "scale", "biases", "positions", "class_token", "distillation_token")


def matrix(path: tuple, leaf: Any) -> bool:
    """Whether a parameter is no vector: neither is one of several layers that are stacked for a loop, nor a token, a position or
    a table of biases, by its name."""
    return leaf.ndim > 1 and getattr(path[-1], "key", "") not in VECTORS


def schedules_of(new: Any, kept: Any) -> Any:
    """An optimizer's state that was kept back, for a step that is left out, with the new one's counts of its schedules: the
    learning rate follows the number of steps, as every other schedule does."""
    counts = lambda node: isinstance(node, optax.ScaleByScheduleState)
    return jax.tree.map(lambda a, b: a if counts(a) else b, new, kept, is_leaf=counts)


def counted_to(opt_state: Any, step: Any) -> Any:
    """An optimizer's state whose schedules stand at a step."""
    counts = lambda node: isinstance(node, optax.ScaleByScheduleState)
    to_step = lambda node: node._replace(count=node.count * 0 + step) if counts(node) else node
    return jax.tree.map(to_step, opt_state, is_leaf=counts)


def build(optimizer: Optimizer, clock: Clock, objective: Bound) -> optax.GradientTransformation:
    """The optax transformation over `{"student", "objective"}` parameters."""

    def mask(params):
        student = jax.tree_util.tree_map_with_path(lambda p, leaf: optimizer.decay_vectors or matrix(p, leaf),
                                                   params["student"])  # fmt: skip
        own = objective.decay_mask(params["objective"])
        vectors = jax.tree.map(lambda leaf, decays: decays and (optimizer.decay_vectors or leaf.ndim > 1),
                               params["objective"], own)  # fmt: skip
        return {"student": student, "objective": vectors}

    def learning_rate(count):
        return value_at(optimizer.learning_rate, clock.at(count))

    core = optimizer.core(mask, learning_rate)
    if not optimizer.clip:
        return core
    if isinstance(core, GroupedTransformation):
        raise ValueError(f"{type(optimizer).__name__} cannot clip: it takes several gradients; set clip=0.")
    return optax.chain(optax.clip_by_global_norm(optimizer.clip), core)

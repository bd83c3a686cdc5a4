"""Distillation as a control variate (Safaryan et al., NeurIPS 2023): the identity it rests on, and the variance it takes away."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from kdjax.losses import cross_entropy, kd
from kdjax.types import Array

Tree = Any
Apply = Callable[[Tree, Array], Array]  # (parameters, inputs [N, ...]) -> logits [N, C]


class Identity(NamedTuple):
    """Two gradients that are one for linear models: of KD, and of the labels less the teacher's of the labels.

    Attributes:
      distillation: `∇[(1 - λ) CE + λ KL]` at the student, flat.
      corrected: `∇CE(student) - λ ∇CE(teacher)`, flat.
      cosine: of the two.
      gap: the largest difference, relative to the largest entry.
    """

    distillation: Array
    corrected: Array
    cosine: Array
    gap: Array


def gradient_identity(
    apply: Apply, student: Tree, teacher: Tree, inputs: Array, labels: Array, strength: float
) -> Identity:
    """Both sides of `∇[(1 - λ) CE + λ KL(p_t || p_s)](x) = ∇CE(x) - λ ∇CE(θ)`, at T = 1, for two sets of one network's
    parameters: exact for a softmax over a linear layer, and for no deeper one.

    Args:
      apply: the network.
      student, teacher: its parameters `x` and `θ`.
      inputs, labels: the batch.
      strength: `λ`.
    """
    taught = jax.lax.stop_gradient(apply(teacher, inputs))

    def of_both(params):
        logits = apply(params, inputs)
        hard, soft = cross_entropy(logits, labels=labels), kd(logits, taught, temperature=1.0)
        return jnp.mean((1 - strength) * hard + strength * soft)

    task = lambda params: jnp.mean(cross_entropy(apply(params, inputs), labels=labels))
    distillation = ravel_pytree(jax.grad(of_both)(student))[0]
    corrected = ravel_pytree(jax.grad(task)(student))[0] - strength * ravel_pytree(jax.grad(task)(teacher))[0]
    cosine = distillation @ corrected / (jnp.linalg.norm(distillation) * jnp.linalg.norm(corrected))
    gap = jnp.max(jnp.abs(distillation - corrected)) / jnp.max(jnp.abs(corrected))
    return Identity(distillation, corrected, cosine, gap)


class Noise(NamedTuple):
    """The noise of a student's gradient of single examples once the teacher's is subtracted.

    Attributes:
      plain: `E|a|²`, of the student's own.
      corrected: `E|a - λ b|²` at the strength that was asked for.
      best: the strength with the least of it, `E⟨a, b⟩ / E|b|²`.
      explained: the share of the noise that it takes away, `E⟨a, b⟩² / (E|a|² E|b|²)`.
    """

    plain: Array
    corrected: Array
    best: Array
    explained: Array


def gradient_noise(
    apply: Apply, student: Tree, teacher: Tree, inputs: Array, labels: Array, strength: float, *, centred: bool = False
) -> Noise:
    """Over all examples given, which together are the data set.

    Args:
      apply: the network, without statistics of a batch.
      student, teacher: its parameters, `a` and `b` are the gradients of one example's loss at.
      inputs, labels: the data set.
      strength: `λ`.
      centred: of gradients less their mean over the data set: the variance itself, also away from an optimum.
    """

    def per_example(params):
        one = lambda params, x, y: cross_entropy(apply(params, x[None]), labels=y[None])[0]
        rows = jax.vmap(lambda x, y: ravel_pytree(jax.grad(one)(params, x, y))[0])(inputs, labels)
        return rows - jnp.mean(rows, axis=0, keepdims=True) if centred else rows

    a, b = per_example(student), per_example(teacher)
    mean = lambda rows: jnp.mean(jnp.sum(rows, axis=-1))
    plain, product, other = mean(a * a), mean(a * b), mean(b * b)
    corrected = mean(jnp.square(a - strength * b))
    return Noise(plain, corrected, product / other, product**2 / (plain * other))

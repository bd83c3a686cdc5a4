"""What happens to gradients on their way: a second objective that may not undo the first, and a gradient turned round."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from kdjax.losses import checks

__all__ = ["align_gradients", "project_conflict", "scale_gradient"]

Array = jax.Array
Tree = Any


def align_gradients(main: Tree, auxiliary: Tree) -> Tree:
    r"""Adds two gradients, the second without whatever part of it would undo the first.

    $$g_0 + g_1 - \frac{\min(\langle g_1, g_0 \rangle, 0)}{\|g_0\|^2} \, g_0$$

    One-sided: the main gradient is never changed. The dot product is one number over all parameters together, so that a
    head which only one of the two trains (zeros in the other) takes part through the norm alone.

    Args:
      main: pytree of floating-point arrays, such as the gradient of the cross-entropy.
      auxiliary: another of the same structure and shapes, such as the gradient of the distillation loss, weight
        included. Under pmap or shard_map both must be averaged over the devices first: the projection is not linear.

    Returns:
      Such a pytree: `main + project_conflict(auxiliary, main)`, in the wider of the two types. Computed in float32 at
      least. Weight decay comes afterwards.

    Raises:
      TypeError: a leaf is not floating point.
      ValueError: structures or shapes differ.

    Paper: Yang, Zong, Huang, Feng, An, "Dual-Head Knowledge Distillation: Enhancing Logits Utilization with an
    Auxiliary Head", KDD 2025, arXiv 2411.08937, with the one-sided form of the released code. The symmetric form, where
    both give way, is that of Yu et al., "Gradient Surgery for Multi-Task Learning", NeurIPS 2020, arXiv 2001.06782.

    >>> main, auxiliary = {"w": jnp.array([1.0, 0.0])}, {"w": jnp.array([-3.0, 2.0])}
    >>> align_gradients(main, auxiliary)["w"]
    Array([1., 2.], dtype=float32)
    """
    projected = project_conflict(auxiliary, main)
    return jax.tree.map(_sum, main, projected)


def project_conflict(auxiliary: Tree, main: Tree) -> Tree:
    r"""A gradient without its part against another one; unchanged where the two agree.

    $$g_1 - \frac{\min(\langle g_1, g_0 \rangle, 0)}{\|g_0\|^2} \, g_0$$

    Args:
      auxiliary: pytree of floating-point arrays, $g_1$.
      main: another of the same structure and shapes, $g_0$. If it is zero throughout there is nothing to be against.

    Returns:
      A pytree in the types of `auxiliary`, whose dot product with `main` is not below 0. Computed in float32 at least,
      and with `main` brought to size one first, so that no norm underflows or overflows.

    Raises:
      TypeError: a leaf is not floating point.
      ValueError: structures or shapes differ.

    Paper: as `align_gradients`.

    >>> main, auxiliary = jnp.array([2.0, 0.0]), jnp.array([-3.0, 2.0])
    >>> project_conflict(auxiliary, main)
    Array([0., 2.], dtype=float32)
    """
    _alike(auxiliary, main)
    ours = [checks.floating(leaf, "every leaf of auxiliary") for leaf in jax.tree.leaves(auxiliary)]
    theirs = [checks.floating(leaf, "every leaf of main") for leaf in jax.tree.leaves(main)]
    largest = functools.reduce(jnp.maximum, [jnp.max(jnp.abs(leaf), initial=0) for leaf in theirs], jnp.float32(0))
    largest = jnp.where(largest == 0, 1, largest)
    theirs = [leaf / largest for leaf in theirs]
    dot = sum((jnp.sum(a * m) for a, m in zip(ours, theirs, strict=True)), jnp.float32(0))
    squared = sum((jnp.sum(m * m) for m in theirs), jnp.float32(0))
    share = jnp.minimum(dot, 0) / jnp.where(squared == 0, 1, squared)
    kept = [a - share * m for a, m in zip(ours, theirs, strict=True)]
    leaves, structure = jax.tree.flatten(auxiliary)
    return jax.tree.unflatten(
        structure, [k.astype(jnp.result_type(leaf)) for k, leaf in zip(kept, leaves, strict=True)]
    )


def scale_gradient(x: Tree, factor: ArrayLike) -> Tree:
    r"""`x` itself, with its gradient multiplied by `factor`: whatever is computed from it pulls that much more, or back.

    A factor of -1 turns the gradient round, so that one optimizer descends by everything else and ascends by `x`. With
    a learned temperature, `kd(s, t, temperature=scale_gradient(T, factor))` and a factor that falls from 0 to -1 as
    training goes on, that is curriculum temperature distillation.

    Args:
      x: a floating-point array, or a pytree of them.
      factor: a number or a traced scalar, a constant.

    Returns:
      `x`, in its own type. Its derivatives are scaled in reverse and in forward mode.

    Raises:
      TypeError: a leaf is not floating point.
      ValueError: `factor` is not a scalar.

    Papers: Ganin, Lempitsky, "Unsupervised Domain Adaptation by Backpropagation", ICML 2015, arXiv 1409.7495 (the
    reversal); Li et al., "Curriculum Temperature for Knowledge Distillation", AAAI 2023, arXiv 2211.16231, where
    `T = 1 + 20 sigmoid(theta)` and the factor multiplies the gradient of theta.

    >>> jax.grad(lambda x: 3.0 * scale_gradient(x, -0.5))(2.0)
    Array(-1.5, dtype=float32, weak_type=True)
    >>> scale_gradient(jnp.array([1.0, 2.0]), -0.5)
    Array([1., 2.], dtype=float32)
    """
    if jnp.ndim(factor) != 0:
        raise ValueError(f"factor has shape {jnp.shape(factor)}; give one number.")
    for leaf in jax.tree.leaves(x):
        checks.floating(leaf, "x")
    return jax.tree.map(lambda leaf: _scale(leaf, factor), x)


@jax.custom_jvp
def _scale(x, factor):
    return x


@_scale.defjvp
def _scaled_tangent(primals, tangents):
    (x, factor), (tangent, _) = primals, tangents
    return x, (factor * tangent).astype(jnp.result_type(tangent))


def _sum(main, projected):
    total = checks.floating(main, "main") + checks.floating(projected, "auxiliary")
    return total.astype(jnp.result_type(main, projected))


def _alike(auxiliary: Tree, main: Tree) -> None:
    ours, theirs = jax.tree.structure(auxiliary), jax.tree.structure(main)
    if ours != theirs:
        raise ValueError(
            f"the structure of auxiliary is {ours}, that of main {theirs}: take both gradients by the same parameters."
        )
    for (path, a), m in zip(jax.tree.leaves_with_path(auxiliary), jax.tree.leaves(main), strict=True):
        if jnp.shape(a) != jnp.shape(m):
            raise ValueError(
                f"auxiliary{jax.tree_util.keystr(path)} has shape {jnp.shape(a)}, that of main {jnp.shape(m)}: take "
                "both gradients by the same parameters."
            )

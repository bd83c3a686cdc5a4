"""Distillation as a quadratic form: small gaps between two networks, weighed by what the teacher's answer hangs on."""

from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from kdjax.losses import checks, logspace

__all__ = ["fisher_diag", "second_order_kd", "weighted_repr"]

Array = jax.Array


def second_order_kd(student_logits: ArrayLike, teacher_logits: ArrayLike) -> Array:
    r"""Second-order distillation: pulls the gaps between logits towards one common value, by the teacher's weights.

    $$\tfrac{1}{2} \mathrm{Var}_{c \sim p_t}\left( z_s(c) - z_t(c) \right)$$

    What `kd` at temperature 1 becomes for small gaps: $\tfrac{1}{2} \Delta^\top F \Delta$ with the Fisher matrix
    $F = \mathrm{diag}(p_t) - p_t p_t^\top$ of the teacher's softmax. Like `kd` it does not see a shift of all logits;
    unlike it, it grows with the square of large gaps, and classes to which the teacher gives no probability are free.

    Args:
      student_logits: `[..., C]`.
      teacher_logits: `[..., C]`, a constant. A class at -inf weighs nothing.

    Returns:
      `[...]` in nats, as far as the approximation holds. The loss is their mean over the batch. inf where the student
      excludes (-inf) a class that the teacher believes in; the gradient is finite there too.

    Raises:
      TypeError: logits are not floating point.
      ValueError: class counts or leading axes differ.

    Paper: Hsu, Smith, Shen, Kira, Jin, "A Closer Look at Knowledge Distillation with Features, Logits, and Gradients",
    2022, arXiv 2203.10163, for the idea. The formula follows from the definition of the divergence.

    >>> student, teacher = jnp.array([[1.0, -1.0]]), jnp.array([[0.0, 0.0]])
    >>> second_order_kd(student, teacher)
    Array([0.5], dtype=float32)
    """
    student, teacher = checks.logits_pair(student_logits, teacher_logits)
    p = jnp.exp(logspace.log_softmax(teacher))
    weighs = p > 0
    excluded = weighs & (student == -jnp.inf)
    kept = weighs & ~excluded
    gap = jnp.where(kept, student - jnp.where(kept, teacher, 0), 0)
    # From the gap of the teacher's choice on: a common shift of thousands would cost the small gaps their digits.
    choice = logspace.one_hot(jnp.argmax(teacher, axis=-1), student.shape[-1])
    gap = jnp.where(kept, gap - lax.stop_gradient(logspace.pick(gap, choice))[..., None], 0)
    mean = jnp.sum(p * gap, axis=-1, keepdims=True)
    value = 0.5 * jnp.sum(p * jnp.where(kept, gap - mean, 0) ** 2, axis=-1)
    return jnp.where(jnp.any(excluded, axis=-1), jnp.inf, value)


def weighted_repr(student_z: ArrayLike, teacher_z: ArrayLike, weight: ArrayLike | None = None) -> Array:
    r"""Weighted matching of representations: pulls the student's towards the teacher's, where the weight says it matters.

    $$\sum_j W_j \left( z_s(j) - z_t(j) \right)^2$$

    `weight=None` is plain squared distance; the diagonal of the Fisher information (`fisher_diag`) weighs each entry by
    how much the teacher's answer hangs on it.

    Args:
      student_z: `[B, ...]` logits or features.
      teacher_z: `[B, ...]` of the same shape, a constant.
      weight: broadcasts to `[B, ...]`, a constant; None for 1. Where it is 0 nothing is compared, whatever is there.

    Returns:
      `[B]`, summed over all axes but the first. The loss is their mean over the batch.

    Raises:
      TypeError: an argument is not floating point.
      ValueError: the shapes differ, or `weight` does not broadcast.

    Paper: Hsu, Smith, Shen, Kira, Jin, "A Closer Look at Knowledge Distillation with Features, Logits, and Gradients",
    2022, arXiv 2203.10163, for the idea. The weight is used as it is, without any normalisation.

    >>> student, teacher = jnp.array([[3.0, 1.0]]), jnp.array([[1.0, 0.0]])
    >>> weighted_repr(student, teacher), weighted_repr(student, teacher, jnp.array([0.5, 0.0]))
    (Array([5.], dtype=float32), Array([2.], dtype=float32))
    """
    student = checks.floating(student_z, "student_z")
    teacher = lax.stop_gradient(checks.floating(teacher_z, "teacher_z"))
    if student.shape != teacher.shape or not student.ndim:
        raise ValueError(
            f"teacher_z has shape {teacher.shape}, student_z {student.shape}: both must be [B, ...] and alike; project "
            "the student's onto the teacher's width first."
        )
    if weight is None:
        squares = (student - teacher) ** 2
    else:
        weight = lax.stop_gradient(checks.floating(weight, "weight"))
        try:
            weight = jnp.broadcast_to(weight, teacher.shape)
        except ValueError:
            raise ValueError(f"weight has shape {weight.shape}, which does not broadcast to {teacher.shape}.") from None
        squares = weight * jnp.where(weight == 0, 0, student - teacher) ** 2
    return jnp.sum(squares, axis=tuple(range(1, student.ndim)))


def fisher_diag(
    teacher_head_fn: Callable[[Array], Array],
    z_t: ArrayLike,
    *,
    mode: Literal["exact", "sampled"] = "exact",
    key: ArrayLike | None = None,
) -> Array:
    r"""How much a teacher's answer hangs on each entry of its representation: the diagonal of the Fisher information.

    $$F_{jj} = \mathbb{E}_{y \sim p(\cdot | z_t)} \left( \frac{\partial \log p(y | z_t)}{\partial z_t(j)} \right)^2$$

    For logits themselves (`teacher_head_fn` the identity) it is $p (1 - p)$.

    Args:
      teacher_head_fn: the rest of the teacher, `[B, ...]` representations to `[B, C]` logits, each row by itself (batch
        normalisation in evaluation mode).
      z_t: `[B, ...]`, a constant.
      mode: "exact" takes the expectation over all classes, with C backward passes, one after another so that memory
        holds one; "sampled" draws one label an example, which is right on average and costs one pass.
      key: a PRNG key, for "sampled".

    Returns:
      `[B, ...]`, none below 0, a constant to the gradient.

    Raises:
      TypeError: `z_t` or the logits are not floating point.
      ValueError: `mode` is neither, "sampled" has no key, or the head does not give `[B, C]`.

    Paper: Hsu, Smith, Shen, Kira, Jin, "A Closer Look at Knowledge Distillation with Features, Logits, and Gradients",
    2022, arXiv 2203.10163, for the idea.

    >>> logits = jnp.log(jnp.array([[0.75, 0.25]]))
    >>> print(*(f"{f:.4f}" for f in fisher_diag(lambda z: z, logits)[0]))
    0.1875 0.1875
    """
    if mode not in ("exact", "sampled"):
        raise ValueError(f'mode is {mode!r}; use "exact" or "sampled".')
    if mode == "sampled" and key is None:
        raise ValueError('mode="sampled" draws labels: give key=.')
    z = lax.stop_gradient(checks.floating(z_t, "z_t"))
    log_p, pull = jax.vjp(lambda z: logspace.log_softmax(_logits_of(teacher_head_fn, z)), z)
    rows, classes = log_p.shape

    def squared_score(labels):
        (score,) = pull(logspace.one_hot(labels, classes).astype(log_p.dtype))
        return score**2

    if mode == "sampled":
        return lax.stop_gradient(squared_score(jax.random.categorical(key, log_p)))

    def add_class(total, label):
        share = jnp.exp(jnp.sum(jnp.where(logspace.one_hot(label, classes), log_p, 0), axis=-1))
        share = jnp.reshape(share, (rows,) + (1,) * (z.ndim - 1))
        return total + share * squared_score(jnp.full(rows, label)), None

    total, _ = lax.scan(add_class, jnp.zeros_like(z), jnp.arange(classes))
    return lax.stop_gradient(total)


def _logits_of(head: Callable[[Array], Array], z: Array) -> Array:
    logits = checks.class_scores(head(z), "teacher_head_fn(z_t)")
    if logits.ndim != 2 or logits.shape[0] != z.shape[0]:
        raise ValueError(f"teacher_head_fn gives {logits.shape} for {z.shape}; it must give [B, C] for [B, ...].")
    return logits

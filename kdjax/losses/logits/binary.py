"""Losses that look at each class by itself: one yes-or-no question a class, by a sigmoid instead of a softmax."""

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from kdjax.losses import checks

__all__ = ["binary_cross_entropy", "binary_kl", "binary_kl_norm"]

Array = jax.Array


def binary_cross_entropy(student_logits: ArrayLike, targets: ArrayLike) -> Array:
    r"""Multi-label learning: pulls the answer to "is it this class?" towards the target, for each class by itself.

    $$-\sum_c \left[ t(c) \log \sigma(z_s(c)) + (1 - t(c)) \log \sigma(-z_s(c)) \right]$$

    Args:
      student_logits: `[..., C]`.
      targets: `[..., C]`, 0 or 1 (multi-hot, of any type), or shares between; a constant.

    Returns:
      `[...]` in nats, summed over the classes; libraries that take the mean over classes have it smaller by a factor `C`.
      inf where the student is certain (an infinite logit) of the opposite.

    Raises:
      TypeError: logits are not floating point.
      ValueError: the targets are not of the logits' shape, as class indices are not.

    >>> student, targets = jnp.array([[2.0, 0.0]]), jnp.array([[1, 0]])
    >>> print(f"{binary_cross_entropy(student, targets)[0]:.4f}")
    0.8201
    """
    student = checks.class_scores(student_logits, "student_logits")
    targets = lax.stop_gradient(jnp.asarray(targets))
    if targets.shape != student.shape:
        raise ValueError(
            f"targets has shape {targets.shape}, student_logits {student.shape}: give one target a class, such as "
            "jax.nn.one_hot(labels, C)."
        )
    targets = targets.astype(student.dtype)

    def part(weight, logits):
        # What has no weight adds nothing, also where its logarithm is -inf.
        counts = weight > 0
        return jnp.where(counts, weight * jax.nn.log_sigmoid(jnp.where(counts, logits, 0)), 0)

    return -jnp.sum(part(targets, student) + part(1 - targets, -student), axis=-1)


def binary_kl(student_logits: ArrayLike, teacher_logits: ArrayLike, *, temperature: ArrayLike = 2.0) -> Array:
    r"""Binary KL: pulls the student's answer to "is it this class?" towards the teacher's, for each class by itself.

    $$T^2 \sum_c \mathrm{KL}\left( \mathrm{Bern}(\sigma(z_t(c) / T)) \,\|\, \mathrm{Bern}(\sigma(z_s(c) / T)) \right)$$

    The gradient is $T (\sigma(z_s / T) - \sigma(z_t / T))$. Unlike the softmax of `kd` it sees a shift of all logits.

    Args:
      student_logits: `[..., C]`.
      teacher_logits: `[..., C]`, a constant. At -inf the teacher denies the class for certain, and the student is pulled
        to do so too.
      temperature: a number, a traced scalar, or an array that broadcasts to the leading axes. It may be learned.

    Returns:
      `[...]` divergences in nats (times `T^2`), summed over the classes. The published loss is their mean over the
      batch. inf where the student is certain (-inf) of what the teacher doubts; the gradient is finite there too.

    Raises:
      TypeError: logits are not floating point.
      ValueError: class counts or leading axes differ, or `temperature` is not above 0 or does not broadcast.

    Paper: Yang, Zong, Huang, Feng, An, "Dual-Head Knowledge Distillation: Enhancing Logits Utilization with an
    Auxiliary Head", KDD 2025, arXiv 2411.08937. The released code clamps both probabilities to 1e-8 and 1 - 1e-8, which
    takes the gradient away where it matters most and, in float32, lets the logarithm of 0 through; here there is no
    clamp, and nothing to clamp.

    >>> student, teacher = jnp.array([[2.0, 0.0]]), jnp.array([[0.0, 0.0]])
    >>> print(f"{binary_kl(student, teacher, temperature=1.0)[0]:.4f}")
    0.4338
    """
    student, teacher = checks.logits_pair(student_logits, teacher_logits)
    temperature = checks.softening(temperature, student)
    student, teacher = _divide(student, temperature), _divide(teacher, temperature)
    each = _expected_surprise(teacher, student) + _expected_surprise(-teacher, -student)
    return temperature**2 * jnp.sum(each, axis=-1)


def binary_kl_norm(aux_student_logits: ArrayLike, teacher_logits: ArrayLike, *, temperature: ArrayLike = 2.0) -> Array:
    r"""Binary KL of the gaps: pulls every logit of an auxiliary head to the teacher's own, whatever their size.

    $$T^2 \sum_c \mathrm{KL}\left( \mathrm{Bern}(\tfrac{1}{2}) \,\|\, \mathrm{Bern}(\delta(c)) \right),
    \qquad \delta = \sigma\left( (z_s - z_t) / T \right)$$

    It is 0 only where the logits are equal, and the same for a gap and its opposite. Per class it is
    $T^2 \log \cosh(g / 2T)$ of the gap $g$: about $g^2 / 8$ for small ones, where `T` cancels, and $T |g| / 2$ for large
    ones. The gradient is $\tfrac{T}{2} \tanh(g / 2T)$, at most $T / 2$ a logit.

    In dual-head distillation it trains an auxiliary classifier on the student's pooled feature and, through it, the
    backbone; the main classifier sees the labels alone and is the one that is deployed.

    Args:
      aux_student_logits: `[..., C]`.
      teacher_logits: `[..., C]`, a constant. A class at -inf is left out.
      temperature: a number, a traced scalar, or an array that broadcasts to the leading axes. It may be learned.

    Returns:
      `[...]` in nats (times `T^2`), summed over the classes. The published loss is their mean over the batch.

    Raises:
      TypeError: logits are not floating point.
      ValueError: class counts or leading axes differ, or `temperature` is not above 0 or does not broadcast.

    Paper: Yang, Zong, Huang, Feng, An, "Dual-Head Knowledge Distillation: Enhancing Logits Utilization with an
    Auxiliary Head", KDD 2025, arXiv 2411.08937. The released code clamps δ to 1e-8 and 1 - 1e-8: from gaps of about
    18 T on it has no gradient and, in float32, an infinite value. Here there is no clamp.

    >>> student, teacher = jnp.array([[2.0, 0.0]]), jnp.array([[0.0, 0.0]])
    >>> print(f"{binary_kl_norm(student, teacher, temperature=1.0)[0]:.4f}")
    0.4338
    """
    student, teacher = checks.logits_pair(aux_student_logits, teacher_logits)
    temperature = checks.softening(temperature, student)
    kept = teacher != -jnp.inf
    gap = jnp.where(kept, student - jnp.where(kept, teacher, 0), 0)
    return temperature**2 * jnp.sum(_log_cosh(0.5 * gap / temperature[..., None]), axis=-1)


def _divide(logits: Array, temperature: Array) -> Array:
    """`logits / temperature`; infinite logits stay, and send the temperature no nan."""
    temperature = temperature[..., None]
    endless = jnp.isinf(logits)
    return jnp.where(endless, logits / lax.stop_gradient(temperature), jnp.where(endless, 0, logits) / temperature)


def _expected_surprise(teacher: Array, student: Array) -> Array:
    """`p (log p - log q)` with `p`, `q` the sigmoids of the two; 0 where `p` is."""
    p = jax.nn.sigmoid(teacher)
    exists = p > 0
    log_p = jax.nn.log_sigmoid(jnp.where(exists, teacher, 0))
    return jnp.where(exists, p * (log_p - jax.nn.log_sigmoid(jnp.where(exists, student, 0))), 0)


def _log_cosh(x: Array) -> Array:
    """`log cosh x`, exact to rounding for small x, where the plain form cancels, and without overflow for large."""
    size = jnp.abs(x)
    small = size < 1
    near = jnp.log1p(2 * jnp.sinh(0.5 * jnp.where(small, x, 0)) ** 2)
    far = jnp.where(small, 1, size)
    return jnp.where(small, near, far + jnp.log1p(jnp.exp(-2 * far)) - jnp.log(2.0).astype(x.dtype))

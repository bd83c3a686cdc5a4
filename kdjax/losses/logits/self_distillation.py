"""Universal self-knowledge distillation: soft labels out of the student itself, without a teacher."""

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from kdjax.losses import checks, logspace

__all__ = ["uskd"]

Array = jax.Array


def uskd(
    student_logits: ArrayLike,
    weak_logits: ArrayLike,
    labels: ArrayLike,
    *,
    alpha: ArrayLike = 1.0,
    beta: ArrayLike = 0.1,
    mu: ArrayLike = 0.005,
    official: bool = True,
    where: ArrayLike | None = None,
    axis_name: str | None = None,
) -> Array:
    r"""USKD: trains on the label as far as the student already trusts it, and on Zipf's law for the other classes.

    $$-\alpha \, v_i \log p_i(y) \; - \; \beta \sum_{c \ne y} \zeta_i(c) \log q_i(c) \; - \; \mu \sum_c u_i(c) \log w_i(c)$$

    with $p$ the student's probabilities, $q$ the same among the classes other than the label, $w$ those of the weak
    head, and as constants

    - $v_i = 1 + p_i(y)^2 - \mathrm{mean}_j \, p_j(y)^2$: more weight to examples that are learned already;
    - $\zeta_i(c)$, proportional to one over the rank of class c among all classes by
      $w(c) / (1 - w(y) + \varepsilon) + r(c) / (1 - r(y) + \varepsilon)$, $\varepsilon = 10^{-6}$, where the student's
      part $r$ is $\log p$ (`official`) or $p$;
    - $u_i$, the label smoothed by 0.1.

    Args:
      student_logits: `[B, C]`.
      weak_logits: `[B, C]`, a linear head on a feature from the middle of the student. Its gradient is that of the third
        term alone.
      labels: `[B]` integers, or `[B, C]` floating point probabilities (mixup). Of these, the two largest above 0 are
        labels, each with its probability in place of the 1 in v and its own mean; r(y) and w(y) are sums over both.
      alpha: weight of the label's term; a number, a traced scalar or one an example.
      beta: weight of the other classes' term, likewise.
      mu: weight of the weak head's term, likewise.
      official: True ranks by the student's log-probabilities, as the released code does, whose probabilities are
        overwritten before they are used; False by its probabilities, as they are meant.
      where: `[B]`, bool or 0/1. A False row is as if it were not in the batch, whatever it holds, nan included: it is left
        out of the mean, and its own value is 0.
      axis_name: the mapped axis under pmap or shard_map, over which the batch is spread; the mean in v is then over the
        global batch. None where the arrays hold the whole batch, as under jit.

    Returns:
      `[B]` for the rows held here, in nats. The published loss is their mean over the batch, beside the cross-entropy.
      A row without a label (out of range, or of zeros) is nan and left out of the mean in v. inf where the student or
      the weak head excludes (-inf) a class; the gradient is finite there too.

    Raises:
      TypeError: logits are not floating point, labels are neither integers nor floating point.
      ValueError: logits are not two `[B, C]` of one shape, labels do not fit them, or a hyperparameter does not
        broadcast to `[B]`.

    Paper: Yang, Zeng, Li, Zhang, Yuan, Li, "From Knowledge Distillation to Self-Knowledge Distillation: A Unified
    Approach with Normalized Loss and Customized Soft Labels", ICCV 2023, arXiv 2303.13005. In the released code a
    mixup label of a single class has some other class as its second label, with weight 0; here it has none.

    >>> student, weak = jnp.array([[2.0, 1.0, 0.0]]), jnp.array([[0.0, 0.0, 1.0]])
    >>> print(f"{uskd(student, weak, jnp.array([0]))[0]:.4f}")
    0.4865
    """
    student, weak = (
        checks.class_scores(student_logits, "student_logits"),
        checks.class_scores(weak_logits, "weak_logits"),
    )
    checks.same_classes(weak, student, "weak_logits", "student_logits")
    if student.ndim != 2:
        raise ValueError(f"student_logits has shape {student.shape}; reshape logits and labels to one row an example.")
    alpha, beta, mu = (
        checks.per_example(value, student, name) for value, name in ((alpha, "alpha"), (beta, "beta"), (mu, "mu"))
    )
    kept = checks.row_mask(where, student.shape[0])
    label_p, targets = _labels(labels, student)
    student, weak, label_p = (jnp.where(kept[:, None], x, 0) for x in (student, weak, label_p))
    is_label = jnp.any(jnp.stack(targets), axis=0)
    known = jnp.any(is_label, axis=-1)

    log_p, log_w = logspace.log_softmax(student), logspace.log_softmax(weak)
    trust = sum(_trust(log_p, label_p, target, kept, axis_name) for target in targets)
    zipf = _zipf(log_p, log_w, is_label, official)
    smoothed = 0.9 * label_p + 0.1 / student.shape[-1]
    value = (
        alpha * logspace.cross_entropy(trust, log_p)
        + beta * logspace.cross_entropy(zipf, logspace.log_softmax(student, where=~is_label))
        + mu * logspace.cross_entropy(smoothed, log_w)
    )
    return jnp.where(kept, jnp.where(known, value, jnp.nan), 0)


def _labels(labels, student: Array) -> tuple[Array, list[Array]]:
    """The label's probabilities, `[B, C]`, and for each label of a row where it is: boolean `[B, C]`."""
    labels = lax.stop_gradient(jnp.asarray(labels))
    if not jnp.issubdtype(labels.dtype, jnp.floating):
        target = logspace.one_hot(checks.class_indices(labels, student), student.shape[-1])
        return target.astype(student.dtype), [target]
    if labels.shape != student.shape:
        raise ValueError(
            f"labels of probabilities have shape {labels.shape}, student_logits {student.shape}: give one for each class."
        )
    labels = labels.astype(student.dtype)
    first = logspace.one_hot(jnp.argmax(labels, axis=-1), student.shape[-1])
    second = logspace.one_hot(jnp.argmax(jnp.where(first, -jnp.inf, labels), axis=-1), student.shape[-1])
    return labels, [first & (labels > 0), second & ~first & (labels > 0)]


def _trust(log_p: Array, label_p: Array, target: Array, kept: Array, axis_name: str | None) -> Array:
    """The weight v of one label of each row, `[B, C]`, zero beside it: its mass and its centred squared probability."""
    present = kept & jnp.any(target, axis=-1)
    squared = lax.stop_gradient(jnp.where(target & kept[:, None], jnp.exp(2 * log_p), 0))
    total, count = jnp.sum(squared), jnp.sum(present, dtype=squared.dtype)
    if axis_name is not None:
        total, count = lax.psum((total, count), axis_name)
    return jnp.where(target, label_p + squared - total / jnp.maximum(count, 1), 0)


def _zipf(log_p: Array, log_w: Array, is_label: Array, official: bool) -> Array:
    """One over the rank among all classes, normalised over those that are no label; a constant."""
    log_p, w = lax.stop_gradient((log_p, jnp.exp(log_w)))
    # One minus the label's probability is the sum of the others, which does not round to 0.
    score = w / (_sum_where(~is_label, w) + 1e-6)
    if official:
        score = score + log_p / (1 - _sum_where(is_label, log_p) + 1e-6)
    else:
        score = score + jnp.exp(log_p) / (_sum_where(~is_label, jnp.exp(log_p)) + 1e-6)
    rank = 1 + jnp.argsort(jnp.argsort(-score, axis=-1), axis=-1)
    weight = jnp.where(is_label, 0, 1 / rank.astype(score.dtype))
    total = jnp.sum(weight, axis=-1, keepdims=True)
    return weight / jnp.where(total == 0, 1, total)


def _sum_where(where: Array, values: Array) -> Array:
    return jnp.sum(jnp.where(where, values, 0), axis=-1, keepdims=True)

"""Losses of what goes on inside a transformer: hidden states, attention scores, and relations of queries, keys and values.

Student first, teacher second, the teacher under `stop_gradient`; in at least float32. Masks are of tokens, `[B, L]`, 1 or
True where a token is no padding; None keeps all. Where a row has no token its value is 0.
"""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from kdjax.losses import checks

__all__ = ["attention_relations", "attention_scores", "hidden_cosine", "hidden_mse", "patience"]

Array = jax.Array
MASKED = -1e2  # scores at or below it are those of padding, and count as 0


def hidden_cosine(student_hidden: ArrayLike, teacher_hidden: ArrayLike) -> Array:
    """One less the cosine of the angle between hidden states, a value a token: `1 − cos(h_s, h_t)`.

    The third part of DistilBERT's objective (Sanh et al., arXiv 1910.01108), averaged over the tokens that are no padding.
    A state of zeros has the cosine 0.

    Args:
      student_hidden, teacher_hidden: `[..., D]`.

    Returns:
      `[...]`.

    Raises:
      TypeError: states are not floating point.
      ValueError: the shapes differ.

    >>> print(hidden_cosine(jnp.array([[1.0, 0.0], [1.0, 1.0]]), jnp.array([[0.0, 2.0], [3.0, 3.0]])).round(3))
    [1. 0.]
    """
    student, teacher = _alike(student_hidden, teacher_hidden)
    return 1 - jnp.sum(_unit(student) * _unit(teacher), axis=-1)


def hidden_mse(student_hidden: ArrayLike, teacher_hidden: ArrayLike) -> Array:
    """Mean squared difference of hidden states, a value a token: `mean_d (h_s − h_t)²`.

    TinyBERT's loss of embeddings and blocks (Jiao et al., arXiv 1909.10351), behind a linear projection of the student's; the
    released code averages over padding too.

    Args:
      student_hidden, teacher_hidden: `[..., D]`.

    Returns:
      `[...]`.

    Raises:
      TypeError: states are not floating point.
      ValueError: the shapes differ.

    >>> print(hidden_mse(jnp.array([[1.0, 0.0], [1.0, 1.0]]), jnp.array([[0.0, 2.0], [1.0, 1.0]])))
    [2.5 0. ]
    """
    student, teacher = _alike(student_hidden, teacher_hidden)
    return jnp.mean(jnp.square(student - teacher), axis=-1)


def patience(student_states: ArrayLike, teacher_states: ArrayLike, *, normalized: bool = True) -> Array:
    """Mean squared difference of the first token's states in several blocks, a value a row.

    Patient knowledge distillation (Sun et al., EMNLP 2019, arXiv 1908.09355), averaged over blocks and entries as in its code.

    Args:
      student_states, teacher_states: `[B, blocks, D]`.
      normalized: whether each state is brought to length 1 before.

    Returns:
      `[B]`.

    Raises:
      TypeError: states are not floating point.
      ValueError: the shapes differ, or are not `[B, blocks, D]`.

    >>> print(patience(jnp.array([[[3.0, 0.0], [0.0, 1.0]]]), jnp.array([[[1.0, 0.0], [1.0, 0.0]]])))
    [0.5]
    """
    student, teacher = _alike(student_states, teacher_states)
    if student.ndim != 3:
        raise ValueError(f"student_states has the shape {student.shape}; give [B, blocks, D], of the first token.")
    student, teacher = (_unit(student), _unit(teacher)) if normalized else (student, teacher)
    return jnp.mean(jnp.square(student - teacher), axis=(1, 2))


def attention_scores(student_scores: ArrayLike, teacher_scores: ArrayLike, *, mask: ArrayLike | None = None) -> Array:
    """Mean squared difference of attention's scores before the softmax, a value a row: `mean_hql (a_s − a_t)²`.

    TinyBERT's loss of attention (Jiao et al., arXiv 1909.10351). As in its code, scores at or below -100 count as 0, which is how
    an additive mask is told. Its mean is over all places, padding included; with `mask` over those of tokens alone.

    Args:
      student_scores, teacher_scores: `[B, heads, L, L]`, of as many heads each.
      mask: `[B, L]`.

    Returns:
      `[B]`.

    Raises:
      TypeError: scores are not floating point.
      ValueError: the shapes differ, or are not `[B, heads, L, L]`; or the mask has another shape.

    >>> student, teacher = jnp.array([[[[1.0, 5.0], [5.0, 5.0]]]]), jnp.zeros((1, 1, 2, 2))
    >>> print(attention_scores(student, teacher), attention_scores(student, teacher, mask=jnp.array([[1, 0]])))
    [19.] [1.]
    """
    student, teacher = _alike(student_scores, teacher_scores)
    if student.ndim != 4:
        raise ValueError(f"student_scores has the shape {student.shape}; give [B, heads, L, L].")
    student, teacher = (jnp.where(x <= MASKED, 0, x) for x in (student, teacher))
    squares = jnp.mean(jnp.square(student - teacher), axis=1)
    if mask is None:
        return jnp.mean(squares, axis=(1, 2))
    there = _tokens(mask, squares.shape[:2]).astype(squares.dtype)
    places = there[:, :, None] * there[:, None, :]
    return jnp.sum(squares * places, axis=(1, 2)) / jnp.maximum(jnp.sum(places, axis=(1, 2)), 1)


def attention_relations(
    student: tuple[ArrayLike, ArrayLike],
    teacher: tuple[ArrayLike, ArrayLike],
    *,
    heads: int,
    mask: ArrayLike | None = None,
) -> Array:
    """KL of how tokens relate, from the teacher to the student, a value a row: `mean_aq KL(R_t ‖ R_s)`,
    `R = softmax(A Bᵀ / √(D / heads))` over the keys of each of `heads` parts of the vectors.

    MiniLM (Wang et al., arXiv 2002.10957), where A and B are queries and keys, and values with values, of as many heads as the
    attention has; and MiniLMv2 (arXiv 2012.15828): queries with queries, keys with keys and values with values, of a number of
    heads of its own, so that only that must divide both widths.

    Args:
      student, teacher: `(A, B)`, each `[B, L, D]` of all heads side by side.
      heads: parts that the vectors are cut into.
      mask: `[B, L]`.

    Returns:
      `[B]` in nats.

    Raises:
      TypeError: vectors are not floating point.
      ValueError: a width that `heads` does not divide, or the mask has another shape.

    >>> student, teacher = jnp.array([[[1.0, 0.0], [0.0, 1.0]]]), jnp.array([[[2.0, 0.0], [0.0, 0.0]]])
    >>> print(attention_relations((student, student), (teacher, teacher), heads=1).round(3))
    [0.143]
    """
    ours = [checks.floating(x, "student") for x in student]
    theirs = [jax.lax.stop_gradient(checks.floating(x, "teacher")) for x in teacher]
    rows, length = ours[0].shape[:2]
    there = jnp.ones((rows, length), bool) if mask is None else _tokens(mask, (rows, length))
    student_log, teacher_log = (_related(*pair, heads, there) for pair in (ours, theirs))
    divergence = jnp.sum(
        jnp.where(there[:, None, None, :], jnp.exp(teacher_log) * (teacher_log - student_log), 0), axis=-1
    )
    divergence = jnp.sum(jnp.where(there[:, None, :], divergence, 0), axis=(1, 2))
    return divergence / (heads * jnp.maximum(jnp.sum(there, axis=1), 1))


def _related(first: Array, second: Array, heads: int, there: Array) -> Array:
    """Log of `[B, heads, L, L]` shares of the keys that are no padding; finite everywhere."""
    width = first.shape[-1]
    if width % heads or second.shape != first.shape:
        raise ValueError(
            f"{heads} heads do not divide vectors {first.shape} and {second.shape}; use a divisor of both widths."
        )
    cut = lambda x: jnp.reshape(x, (*x.shape[:2], heads, width // heads))
    scores = jnp.einsum("bqhd,bkhd->bhqk", cut(first), cut(second)) / (width // heads) ** 0.5
    return jax.nn.log_softmax(jnp.where(there[:, None, None, :], scores, jnp.finfo(scores.dtype).min / 2))


def _unit(x: Array) -> Array:
    """At length 1; zeros stay."""
    return x / jnp.sqrt(jnp.maximum(jnp.sum(jnp.square(x), axis=-1, keepdims=True), 1e-24))


def _alike(student: ArrayLike, teacher: ArrayLike) -> tuple[Array, Array]:
    """Both promoted, of one shape; no gradient goes into the teacher's."""
    student, teacher = checks.features_pair(student, teacher)
    if student.shape != teacher.shape:
        raise ValueError(
            f"student has the shape {student.shape}, teacher {teacher.shape}: they are compared entry by entry; project the "
            "student's to the teacher's width first."
        )
    return student, teacher


def _tokens(mask: ArrayLike, shape: tuple[int, ...]) -> Array:
    mask = jnp.asarray(mask)
    if mask.shape != tuple(shape):
        raise ValueError(f"mask has the shape {mask.shape}; give one value a token, {list(shape)}.")
    return mask != 0

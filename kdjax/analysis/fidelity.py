"""How much of a teacher's function a student has: every measure is of two networks' logits on the same examples.

Logits are `[N, C]`, student first; a value is a mean over the N examples, computed in at least float32, and nan where one of them
has a nan logit: a diverged network says nothing. Two independently trained networks agree too: compare with such a control.
"""

import jax
import jax.numpy as jnp

from kdjax.losses import checks, forward_kl, jsd
from kdjax.types import Array


def agreement(student_logits: Array, teacher_logits: Array, k: int = 1) -> Array:
    """Share of examples whose most likely class for the teacher is among the student's `k` most likely (Stanton et al., 2021).

    Classes that tie are taken in their order.

    Raises:
      ValueError: shapes differ, or `k` is no number of classes.
    """
    _alike(student_logits, teacher_logits)
    if not 1 <= k <= student_logits.shape[-1]:
        raise ValueError(f"k={k}; there are {student_logits.shape[-1]} classes.")
    _, likely = jax.lax.top_k(student_logits, k)
    same = jnp.any(likely == jnp.argmax(teacher_logits, axis=-1)[:, None], axis=-1)
    return _unless(_diverged(student_logits) | _diverged(teacher_logits), _mean(same))


def predictive_kl(student_logits: Array, teacher_logits: Array) -> Array:
    """KL(teacher || student) in nats, at T = 1."""
    _alike(student_logits, teacher_logits)
    return _mean(forward_kl(student_logits, teacher_logits, temperature=1.0))


def js_divergence(student_logits: Array, teacher_logits: Array) -> Array:
    """Jensen-Shannon divergence in nats, at T = 1; log 2 at most."""
    _alike(student_logits, teacher_logits)
    return _mean(jsd(student_logits, teacher_logits, beta=0.5, temperature=1.0))


def activation_distance(student_logits: Array, teacher_logits: Array) -> Array:
    """Euclidean distance of the probabilities; sqrt 2 at most (Mason-Williams et al., 2025, formula not verified)."""
    _alike(student_logits, teacher_logits)
    p, q = (jax.nn.softmax(checks.floating(logits, "logits")) for logits in (student_logits, teacher_logits))
    return _mean(jnp.linalg.norm(p - q, axis=-1))


def rank_disagreement(student_logits: Array, teacher_logits: Array) -> Array:
    """Share of places in the order of classes by likelihood where the two have different ones; ties in the order of classes
    (Mason-Williams et al., 2025, formula not verified)."""
    _alike(student_logits, teacher_logits)
    order = lambda logits: jnp.argsort(-logits, axis=-1, stable=True)
    apart = order(student_logits) != order(teacher_logits)
    return _unless(_diverged(student_logits) | _diverged(teacher_logits), _mean(apart))


def agreement_by_correctness(student_logits: Array, teacher_logits: Array, labels: Array) -> dict[str, Array]:
    """Where the student follows its teacher (Mason-Williams et al., 2025): transfer is asymmetric where the second rises more
    over a control than the first.

    Args:
      student_logits, teacher_logits: `[N, C]`.
      labels: `[N]` classes. One that is none, such as -1, makes all three nan: leave such rows out first.

    Returns:
      `when_right`: share of the examples the teacher has right where the student says the same; `same_errors`: share of those
      it has wrong where the student makes the same error; `teacher_errors`: how many these are, a share of all. A share of
      no examples is nan, and so is one of examples with a nan logit; all three are where a teacher's is nan.

    Raises:
      TypeError: labels are not integers.
      ValueError: shapes differ, or there is not a label for each row of logits.
    """
    _alike(student_logits, teacher_logits)
    labels = checks.class_indices(labels, teacher_logits, "teacher_logits")
    unknown = _diverged(teacher_logits) | (labels < 0) | (labels >= jnp.shape(teacher_logits)[-1])
    taught, said = jnp.argmax(teacher_logits, axis=-1), jnp.argmax(student_logits, axis=-1)
    right, same = taught == labels, taught == said
    share = lambda of, where: _unless(
        unknown | (where & _diverged(student_logits)), jnp.sum(of & where) / jnp.sum(where)
    )
    return {
        "when_right": share(same, right),
        "same_errors": share(same, ~right),
        "teacher_errors": _unless(unknown, _mean(~right)),
    }


def functional_similarity(
    student_logits: Array, teacher_logits: Array, labels: Array | None = None
) -> dict[str, Array]:
    """All measures of this module by name."""
    found = {
        "agreement": agreement(student_logits, teacher_logits),
        "predictive_kl": predictive_kl(student_logits, teacher_logits),
        "js_divergence": js_divergence(student_logits, teacher_logits),
        "activation_distance": activation_distance(student_logits, teacher_logits),
        "rank_disagreement": rank_disagreement(student_logits, teacher_logits),
    }
    return found if labels is None else found | agreement_by_correctness(student_logits, teacher_logits, labels)


def _alike(student_logits: Array, teacher_logits: Array) -> None:
    if jnp.ndim(student_logits) != 2 or jnp.shape(student_logits) != jnp.shape(teacher_logits):
        raise ValueError(
            f"logits are {jnp.shape(student_logits)} and {jnp.shape(teacher_logits)}; give [N, C] of the same examples."
        )


def _diverged(logits: Array) -> Array:
    return jnp.any(jnp.isnan(logits), axis=-1)


def _unless(rows: Array, value: Array) -> Array:
    return jnp.where(jnp.any(rows), jnp.nan, value)


def _mean(values: Array) -> Array:
    return jnp.mean(values, dtype=jnp.float32 if values.dtype == bool else values.dtype)

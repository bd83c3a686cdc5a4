"""What is measured of a classifier of texts, beyond what is of any classifier: F1, Matthews' correlation, and entropy."""

import jax
import jax.numpy as jnp
import numpy as np

from kdjax.training.metrics import class_means, class_sums, evaluated, same_classes
from kdjax.types import Array, Batch


def text_sums(student, teacher, batch: Batch) -> dict[str, dict[str, Array]]:
    """`class_sums`, and of each role the confusion `[C, C]`, rows by class and columns by answer, and the summed entropy."""
    sums = class_sums(student, teacher, batch)
    for role, output in (("student", student), ("teacher", teacher)):
        if role in sums and output is not None and (role == "student" or same_classes(student, teacher, batch)):
            sums[role] |= _of(output.logits.astype(jnp.float32), batch)
    return sums


def _of(logits: Array, batch: Batch) -> dict[str, Array]:
    where = evaluated(batch, logits.shape[:1]).astype(jnp.float32)
    classes = logits.shape[-1]
    truth = jax.nn.one_hot(batch.labels, classes) * where[:, None]
    confusion = truth.T @ jax.nn.one_hot(jnp.argmax(logits, axis=-1), classes)
    log_p = jax.nn.log_softmax(logits)
    entropy = -jnp.sum(jnp.exp(log_p) * log_p, axis=-1)
    return {"confusion": confusion, "entropy": jnp.sum(jnp.where(where > 0, entropy, 0))}


def text_means(sums: dict[str, np.ndarray]) -> dict[str, float]:
    """`class_means`, and f1, mcc and entropy (nats)."""
    means = class_means({name: value for name, value in sums.items() if name not in ("confusion", "entropy")})
    if "confusion" not in sums:
        return means
    confusion = np.asarray(sums["confusion"], np.float64)
    return means | {
        "f1": f1(confusion),
        "mcc": matthews(confusion),
        "entropy": float(sums["entropy"]) / float(sums["count"]),
    }


def f1(confusion: np.ndarray) -> float:
    """F1 of class 1 where there are two, as GLUE has it; else the mean over the classes. 0 of a class that is neither there nor
    said."""
    hits = np.diag(confusion)
    each = 2 * hits / np.maximum(confusion.sum(0) + confusion.sum(1), 1)
    return float(each[1] if len(each) == 2 else each.mean())


def matthews(confusion: np.ndarray) -> float:
    """Correlation of class and answer: Matthews' for two classes, Gorodkin's (2004) for more; 0 where either never varies."""
    total, hits = confusion.sum(), np.trace(confusion)
    there, said = confusion.sum(1), confusion.sum(0)
    spread = (total**2 - said @ said) * (total**2 - there @ there)
    return float((hits * total - there @ said) / np.sqrt(spread)) if spread > 0 else 0.0

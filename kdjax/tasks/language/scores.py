"""What is measured of a language model, over the tokens that are learned."""

import math
import re
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np

from kdjax import losses
from kdjax.training.metrics import class_means, class_sums, evaluated, same_classes
from kdjax.types import Array, Batch


def language_sums(student, teacher, batch: Batch, byte_counts: np.ndarray) -> dict[str, dict[str, Array]]:
    """`class_sums` over tokens; and of each role the entropy and the bytes of the tokens, of the student the reverse KL.

    Args:
      student, teacher: outputs with logits `[B, L, V]`; the second may be None.
      batch: of tokens.
      byte_counts: `[V]` bytes that each token stands for.
    """
    sums = class_sums(student, teacher, batch)
    compared = teacher is not None and same_classes(student, teacher, batch)
    where = evaluated(batch, batch.labels.shape)
    total = lambda values: jnp.sum(jnp.where(where, values, 0), dtype=jnp.float32)
    written = total(jnp.asarray(byte_counts)[batch.labels])
    for role, output in (("student", student), ("teacher", teacher)):
        if role in sums:
            sums[role] |= {"entropy": total(losses.predictive_entropy(output.logits)), "bytes": written}
    if compared:
        sums["student"]["reverse_kl"] = total(losses.reverse_kl(student.logits, teacher.logits))
    return sums


def language_means(sums: dict[str, np.ndarray]) -> dict[str, float]:
    """`class_means` a token; entropy and reverse_kl (nats), perplexity, and bits_per_byte where tokens stand for any."""
    own = ("entropy", "reverse_kl", "bytes")
    means = class_means({name: value for name, value in sums.items() if name not in own})
    means |= {name: float(sums[name]) / float(sums["count"]) for name in own[:2] if name in sums}
    means["perplexity"] = math.exp(min(means["nll"], 700.0))
    if float(sums["bytes"]) > 0:
        means["bits_per_byte"] = float(sums["nll"]) / float(sums["bytes"]) / math.log(2)
    return means


def rouge_l(said: str, reference: str) -> float:
    """Share of words in common, in order: F of the longest common subsequence of lower-cased words, 0 to 1.

    Lin, ROUGE: A Package for Automatic Evaluation of Summaries, 2004; words are runs of letters and digits, without stemming.
    """
    first, second = (re.findall(r"[^\W_]+", text.lower()) for text in (said, reference))
    if not first or not second:
        return 0.0
    row = [0] * (len(second) + 1)
    for word in first:
        before, row = row, [0]
        for j, other in enumerate(second):
            row.append(before[j] + 1 if word == other else max(before[j + 1], row[j]))
    return 2 * row[-1] / (len(first) + len(second))


def distinct(texts: Sequence[Sequence[int]], size: int) -> float:
    """Share of the runs of `size` tokens in texts that are no repetition of another, 0 to 1: low where a network repeats itself.

    Li et al., A Diversity-Promoting Objective Function for Neural Conversation Models, NAACL 2016, arXiv 1510.03055.
    """
    runs = [tuple(text[i : i + size]) for text in texts for i in range(len(text) - size + 1)]
    return len(set(runs)) / len(runs) if runs else 0.0

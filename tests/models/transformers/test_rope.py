"""Frequencies of rotary positions against the original implementation's, and their configurations in both dialects."""

import numpy as np
import pytest

from kdjax.models.transformers import Rope
from kdjax.models.transformers.rope import KINDS, rope_config, rope_of
from tests.golden_cases import cases

CASES = cases("hf_rope")
NOT_HERE = {"head_dim", "seq_len", "max_position_embeddings"}


@pytest.mark.parametrize("case", [case for case in CASES if case.hyper["rope_type"] in KINDS], ids=lambda case: case.id)
@pytest.mark.parametrize("dialect", ["rope_scaling", "rope_parameters"])
def test_frequencies(case, dialect):
    said = {name: value for name, value in case.hyper.items() if name not in NOT_HERE}
    theta = {} if dialect == "rope_parameters" else {"rope_theta": said.pop("rope_theta")}
    rope = rope_of({dialect: said, "max_position_embeddings": case.hyper["max_position_embeddings"], **theta})
    expected = case.outputs["f64"]
    np.testing.assert_allclose(
        rope.frequencies(case.hyper["head_dim"]), expected["inv_freq"], rtol=case.advice["f64_rtol"]
    )
    assert rope.magnitude == pytest.approx(float(expected["attention_factor"]), rel=1e-12)


@pytest.mark.parametrize(
    "case", [case for case in CASES if case.hyper["rope_type"] not in KINDS], ids=lambda case: case.id
)
def test_kinds_that_are_not_supported_are_refused(case):
    with pytest.raises(ValueError, match=f"of the kind '{case.hyper['rope_type']}', which is not supported"):
        rope_of({"rope_parameters": case.hyper})


@pytest.mark.parametrize(
    "rope",
    [
        Rope(), Rope(theta=1e6), Rope(kind="linear", factor=4.0), Rope(kind="llama3", factor=8.0, original=128, high=3.0),
        Rope(kind="yarn", factor=4.0, original=64, fast=20.0, attention_factor=0.9, truncate=False),
    ],
    ids=lambda rope: rope.kind,
)  # fmt: skip
def test_written_it_is_read_the_same(rope):
    config = {**rope_config(rope), "max_position_embeddings": 4096}
    assert rope_of(config) == rope
    old = {name: value for name, value in config.items() if name != "rope_parameters"}
    assert rope_of(old) == rope, "by transformers 4 too"

"""What holds of transformers whatever they were trained for."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdjax.models.transformers import SIZES, Head, read_folder, transformer
from kdjax.models.transformers.folders import parameter_shapes
from kdjax.models.transformers.sizes import resized
from kdjax.models.weights.beginning import flat
from tests.golden_cases import FOLDER

CLASSES = Head(kind="classes", classes=3)


@functools.cache
def run(name, head=CLASSES, **changes):
    found = read_folder(FOLDER / "hf" / name, head)
    net = transformer(dataclasses.replace(found.architecture, **changes), head, weights=found.params)
    params, state = jax.jit(net.init)(jax.random.key(0))

    @functools.partial(jax.jit, static_argnames="train")
    def call(inputs, rngs=None, *, train=False):
        return net.apply(params, state, inputs, train=train, rngs=rngs)[0]

    return call


def inputs(rows=3, length=9):
    rng = np.random.default_rng(0)
    mask = np.arange(length)[None] < np.array([[length], [5], [7]])[:rows]
    return {"input_ids": rng.integers(1, 60, (rows, length)), "attention_mask": mask.astype(np.uint8)}


@pytest.mark.parametrize("name", ["bert_cls", "gpt2"])
def test_what_stands_at_padding_changes_nothing(name):
    given = inputs()
    other = given | {"input_ids": np.where(given["attention_mask"], given["input_ids"], 7)}
    ours, theirs = run(name)(given), run(name)(other)
    np.testing.assert_array_equal(ours.logits, theirs.logits)
    for one, two in zip(ours.features, theirs.features, strict=True):
        np.testing.assert_array_equal(one, two)
        assert not np.any(np.asarray(one)[~given["attention_mask"].astype(bool)])
    assert ours.features[-1].shape == (3, 9, 1, ours.embedding.shape[-1]) and ours.logits.shape == (3, 3)


def test_a_decoder_classifies_by_its_last_token_and_sees_no_later_one():
    given = inputs()
    whole = run("gpt2")(given)
    row = {"input_ids": given["input_ids"][1:2, :5]}
    alone = run("gpt2")(row)
    np.testing.assert_allclose(whole.logits[1:2], alone.logits, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(whole.features[-1][1:2, :5], alone.features[-1], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["bert_cls", "gpt2"])
def test_dropout_drops_in_training_alone(name):
    given, call = inputs(), run(name)
    one, two = (call(given, jax.random.key(seed), train=True) for seed in (0, 1))
    for first, second in zip(one.features[1:], two.features[1:], strict=True):
        assert np.abs(first - second).max() > 1e-3, "every block"
    np.testing.assert_array_equal(one.logits, call(given, jax.random.key(0), train=True).logits)
    assert np.abs(one.logits - call(given).logits).max() > 1e-3


def test_more_tokens_than_positions_are_refused():
    with pytest.raises(ValueError, match="have 17 tokens, and the network has positions for 16"):
        run("bert_cls")({"input_ids": np.ones((1, 17), int)})


def test_what_is_kept_of_the_attention():
    found = read_folder(FOLDER / "hf" / "llama")
    net = transformer(found.architecture, found.head, keep=("queries", "keys", "scores"))
    shapes = jax.eval_shape(lambda x: net.apply(*net.init(jax.random.key(0)), x, train=False)[0].taps, inputs())
    assert {name: x.shape for name, x in shapes.items()} == {
        "queries": (3, 2, 9, 4, 8), "keys": (3, 2, 9, 2, 8), "scores": (3, 2, 4, 9, 9),
    }  # fmt: skip
    with pytest.raises(ValueError, match="does not keep 'weights'; it may keep queries"):
        transformer(found.architecture, found.head, keep=("weights",)).init(jax.random.key(0))


# Of the published files, which count a tied embedding once.
PUBLISHED = {
    "bert_base": 109_482_240, "distilbert": 66_362_880, "minilm_l6": 22_713_216, "gpt2": 124_439_808,
    "gpt2_xl": 1_557_611_200, "tinyllama": 1_100_048_384, "smollm_135m": 134_515_008, "llama3_1b": 1_235_814_400,
    "qwen2_0.5b": 494_032_768, "qwen3_0.6b": 596_049_920,
}  # fmt: skip


@pytest.mark.parametrize("name", PUBLISHED)
def test_sizes_are_the_published_ones(name):
    head = Head(kind="tokens" if SIZES[name].causal else "none")
    assert sum(int(np.prod(x.shape)) for x in parameter_shapes(SIZES[name], head).values()) == PUBLISHED[name]


def test_a_shape_in_another_width_and_depth():
    small = resized(SIZES["bert_base"], width=128, depth=3)
    assert (small.width, small.depth, small.heads, small.head_width, small.hidden) == (128, 3, 2, 64, 512)
    odd = resized(SIZES["qwen3_0.6b"], width=96)
    assert odd.heads % odd.kv_heads == 0 and odd.head_width % 2 == 0
    shapes = parameter_shapes(odd, CLASSES)
    assert shapes["blocks/attention/query/kernel"].shape == (28, 96, odd.heads * odd.head_width)


def test_fresh_weights_have_the_deviation_that_is_said():
    a = dataclasses.replace(SIZES["bert_tiny"], vocabulary=500, deviation=0.05)
    params = flat(jax.jit(transformer(a, CLASSES).init)(jax.random.key(1))[0])
    for path in ("blocks/mlp/up/kernel", "embeddings/tokens", "pooler/kernel"):
        assert np.std(params[path]) == pytest.approx(0.05, rel=0.05)
    first, second = params["blocks/mlp/up/kernel"]
    assert abs(np.corrcoef(np.ravel(first), np.ravel(second))[0, 1]) < 0.05, "blocks begin differently"
    assert not np.any(params["blocks/mlp/up/bias"]) and np.all(params["blocks/mlp_norm/scale"] == 1)
    assert jnp.all(params["classifier/bias"] == 0)

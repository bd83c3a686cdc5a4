"""Texts that decoders write: what may be drawn, and what is, equal to the original's; kept keys and values change nothing."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdjax.models.transformers import GREEDY, Architecture, Head, Rope, Sampling, read_folder, transformer, write
from kdjax.models.transformers.sampling import Beside, mixture
from tests.golden_cases import FOLDER, PRECISIONS, cases
from tests.losses.computing import DTYPES, computing_in

SAMPLING = ("temperature", "top_k", "top_p", "min_p")
# Grouped heads and rotary positions, learned positions, and heads that are wider than their share: a program each.
FAMILIES = (
    "hf_llama",
    pytest.param("hf_gpt2", marks=pytest.mark.slow),
    pytest.param("hf_qwen3", marks=pytest.mark.slow),
)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("case", cases("sampling"), ids=lambda case: case.id)
def test_what_may_be_drawn_is_what_the_original_leaves(case, precision):
    sampling = Sampling(**{name: case.hyper[name] for name in SAMPLING if name in case.hyper})
    with computing_in(precision) as array:
        case.check(jax.jit(sampling.scores)(array(case.inputs["logits"])), "out", "scores", precision)


def test_where_there_is_no_chance_the_first_of_the_most_likely_is_left():
    scores = GREEDY.scores(jnp.array([[1.0, 3.0, 3.0], [-jnp.inf, -5.0, -jnp.inf]]))
    assert scores.tolist() == [[-np.inf, 0, -np.inf], [-np.inf, 0, -np.inf]]
    for wrong, said in (({"temperature": -1.0}, "0 or more"), ({"top_p": 1.5}, "0 to 1")):
        with pytest.raises(ValueError, match=said):
            Sampling(**wrong)


@functools.cache
def decoder(method):
    found = read_folder(FOLDER / "hf" / method.removeprefix("hf_"))
    return transformer(found.architecture, found.head, weights=found.params)


def drawn_as(case):
    """The reference's draws: by a uniform number from the cumulative probability, or by Gumbel noise."""
    noise = lambda name, step, like: jnp.asarray(case.inputs[name], like.dtype)[step]
    if "gumbel" in case.inputs:
        return lambda log_probs, step: jnp.argmax(log_probs + noise("gumbel", step, log_probs), axis=-1)
    if "uniforms" in case.inputs:
        above = lambda p, step: jnp.cumsum(jnp.exp(p), axis=-1) > noise("uniforms", step, p)[:, None]
        return lambda log_probs, step: jnp.argmax(above(log_probs, step), axis=-1)
    return None


@pytest.mark.parametrize("precision", [pytest.param("f64"), pytest.param("f32", marks=pytest.mark.slow)])
@pytest.mark.parametrize("method", FAMILIES)
def test_decoders_write_what_the_original_wrote(method, precision):
    network = decoder(method)
    for case in cases(method, tag="generate"):
        hyper = case.hyper
        greedy = not {"gumbel", "uniforms"} & set(case.inputs)
        sampling = GREEDY if greedy else Sampling(**{name: hyper[name] for name in SAMPLING if name in hyper})
        end, count = hyper.get("eos_token_id"), case.outputs[precision]["tokens"].shape[1]
        with computing_in(precision):
            params, state = jax.tree.map(lambda x: jnp.asarray(x, DTYPES[precision]), network.init(jax.random.key(0)))
            written = jax.jit(functools.partial(
                write, network, count=count, sampling=sampling, draw=drawn_as(case),
                ends=() if end is None else (end,), padding=hyper.get("pad_token_id", 0),
            ))(params, state, case.inputs["prompt_ids"], case.inputs["prompt_mask"])  # fmt: skip
            case.check(np.asarray(written.tokens, case.outputs[precision]["tokens"].dtype), "out", "tokens", precision)
            if not greedy:
                case.check(written.log_probs, "out", "logprob_model", precision)
                case.check(written.drawn_log_probs, "out", "logprob_filtered", precision)
            if end is not None:
                ends = np.asarray(written.tokens) == end
                before = np.cumsum(ends, axis=1) - ends
                np.testing.assert_array_equal(written.there, before == 0)


TINY = Architecture(
    family="llama", vocabulary=13, width=16, depth=2, heads=4, kv_heads=2, head_width=4, hidden=24, length=32, causal=True,
    norm="rms", norm_first=True, rope=Rope(), activation="silu", gated=True, qkv_bias=False, out_bias=False, mlp_bias=False,
    deviation=0.5,
)  # fmt: skip


@pytest.fixture(scope="module")
def written():
    """A small decoder, prompts filled up on the left, and what it wrote; and how to have it write again."""
    network = transformer(TINY, Head(kind="tokens"))
    params, state = network.init(jax.random.key(1))
    run = jax.jit(lambda ids, mask, key, numbers: write(
        network, params, state, ids, mask, count=6, sampling=Sampling(temperature=1.2, top_k=8), key=key, numbers=numbers,
        ends=(3,),
    ))  # fmt: skip
    ids = jax.random.randint(jax.random.key(2), (8, 5), 0, 13)
    mask = (jnp.arange(5)[None] >= (jnp.arange(8) % 4)[:, None]).astype(jnp.int32)
    return network, params, state, ids, mask, run, run(ids, mask, jax.random.key(0), jnp.arange(8))


def test_it_is_what_the_whole_text_says(written):
    """The log-probabilities of what was written are those of one pass over prompts and texts together."""
    network, params, state, ids, mask, _, said = written
    whole = jnp.concatenate([ids, said.tokens], axis=1)
    seen = jnp.concatenate([mask != 0, said.there], axis=1)
    output, _ = jax.jit(lambda x: network.apply(params, state, x, train=False))(
        {"input_ids": whole, "attention_mask": seen}
    )
    log_probs = jax.nn.log_softmax(output.logits[:, 4:-1])
    own = jnp.take_along_axis(log_probs, said.tokens[:, :, None], axis=2)[:, :, 0]
    np.testing.assert_allclose(said.log_probs, np.where(said.there, own, 0), rtol=1e-5, atol=1e-5)
    assert np.sum(np.asarray(said.tokens) == 3) > 0 and not np.all(said.there)
    assert np.all(np.asarray(said.drawn_log_probs)[said.there] > np.asarray(said.log_probs)[said.there] - 1.0)


def test_other_prompts_take_the_same_program_and_rows_their_own_draws(written):
    *_, ids, mask, run, said = written
    order = jnp.array([5, 0, 7, 2, 1, 6, 3, 4])
    again = run(ids[order], mask[order], jax.random.key(0), order)
    np.testing.assert_array_equal(again.tokens, said.tokens[order])
    other = run(ids, mask, jax.random.key(1), jnp.arange(8))
    assert np.mean(np.asarray(other.tokens) != np.asarray(said.tokens)) > 0.2
    assert run._cache_size() == 1


def test_two_networks_draw_from_their_mixture(written):
    """What is drawn is as likely as both together say of the whole text; with all of the share, or none, one of them writes."""
    network, params, state, ids, mask, *_ = written
    other = jax.tree.map(lambda x: x[..., ::-1], params)

    @jax.jit
    def run(ids, mask):
        beside = Beside(network, other, state, 0.3)
        said = write(network, params, state, ids, mask, count=3, key=jax.random.key(4), ends=(3,), beside=beside)
        text, seen = jnp.concatenate([ids, said.tokens], axis=1), jnp.concatenate([mask != 0, said.there], axis=1)
        shares = jax.lax.map(
            lambda p: network.apply(p, state, {"input_ids": text, "attention_mask": seen}, train=False)[0].logits[
                :, 4:-1
            ],
            jax.tree.map(lambda *both: jnp.stack(both), params, other),
        )
        return said, jax.nn.softmax(shares)

    said, (first, second) = jax.device_get(run(ids, mask))
    mixed = np.take_along_axis(0.7 * first + 0.3 * second, said.tokens[:, :, None], axis=2)[..., 0]
    np.testing.assert_allclose(said.drawn_log_probs, np.where(said.there, np.log(mixed), 0), rtol=1e-4, atol=1e-5)
    assert np.any(np.abs(said.drawn_log_probs - said.log_probs) > 0.1)
    assert mixture("own", "other", 1.0) == "other" and mixture("own", "other", 0.0) == "own"


def test_what_cannot_write_is_refused():
    encoder = transformer(Architecture(vocabulary=9, width=8, depth=1, heads=2, kv_heads=2, head_width=4, hidden=8, length=8),
                          Head(kind="tokens"))  # fmt: skip
    given = jnp.zeros((1, 2), jnp.int32), jnp.ones((1, 2), jnp.int32)
    with pytest.raises(ValueError, match="does not write texts; use a decoder"):
        write(encoder, {}, {}, *given, count=2, sampling=GREEDY)
    learned = transformer(Architecture(
        family="gpt2", vocabulary=9, width=8, depth=1, heads=2, kv_heads=2, head_width=4, hidden=8, length=8, causal=True,
        norm_first=True,
    ), Head(kind="tokens"))  # fmt: skip
    with pytest.raises(ValueError, match="no key says which"):
        write(learned, {}, {}, *given, count=2)
    variables = jax.eval_shape(learned.init, jax.random.key(0))
    with pytest.raises(ValueError, match="9 tokens long, and the network has positions for 8"):
        jax.eval_shape(lambda v: write(learned, *v, *given, count=7, sampling=GREEDY), variables)

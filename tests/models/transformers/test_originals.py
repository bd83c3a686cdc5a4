"""Networks of Hugging Face, read from their folders: outputs and gradients equal to the original implementation's."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdjax import losses
from kdjax.models.precision import in_precision, products
from kdjax.models.transformers import Head, read_folder, transformer
from kdjax.models.transformers.folders import parameter_shapes
from kdjax.models.transformers.keys import keys, laid_out, renamed
from kdjax.models.transformers.transformer import visible
from kdjax.models.weights.beginning import flat
from tests.golden_cases import FOLDER, PRECISIONS, cases
from tests.losses.computing import DTYPES, computing_in

ENCODERS = ("hf_bert", "hf_bert_cls", "hf_bert_mlm", "hf_distilbert_cls", "hf_distilbert_mlm")
DECODERS = ("hf_gpt2", "hf_llama", "hf_llama_tied_bf16", "hf_qwen2", "hf_qwen3")
LAYOUTS = ("no_pad", "right_pad", "left_pad")


@functools.cache
def folder_of(method):
    return FOLDER / "hf" / method.removeprefix("hf_")


@functools.cache
def pretrained(method):
    return read_folder(folder_of(method))


def network(method, **options):
    found = pretrained(method)
    return transformer(found.architecture, found.head, weights=found.params, **options)


def mean_over(values, where):
    return jnp.sum(jnp.where(where, values, 0)) / jnp.sum(where)


def loss_of(kind, output, mask, labels):
    """The loss that the reference took: of classes, of guessed words, of next tokens; of a bare body an arbitrary probe."""
    if kind == "classes":
        return jnp.mean(losses.cross_entropy(output.logits, labels=labels))
    if kind == "tokens":
        return mean_over(losses.cross_entropy(output.logits, labels=jnp.maximum(labels, 0)), labels != -100)
    tokens = output.features[-1][:, :, 0]
    mean = jnp.sum(tokens, axis=1) / jnp.sum(mask, axis=1)[:, None]  # tokens are 0 at padding
    return jnp.sum(jnp.square(mean)) + jnp.sum(output.embedding)


def given(case):
    """The reference's inputs, and the labels that its outputs are compared with."""
    inputs = {name: array for name, array in case.inputs.items() if name != "labels"}
    if "segment_ids" in inputs:
        starts = np.roll(inputs["segment_ids"], -1, 1) != inputs["segment_ids"]
        labels = np.where(starts | (inputs["segment_ids"] == 0), -100, np.roll(inputs["input_ids"], -1, 1))
        labels[:, -1] = -100
        return inputs, labels
    labels = case.inputs.get("labels")
    if case.method in DECODERS:  # theirs are shifted by the network
        labels = np.concatenate([labels[:, 1:], np.full_like(labels[:, :1], -100)], axis=1)
    return inputs, labels


# A program takes seconds to compile: of most families in float64, and one in float32; the others are long tests.
QUICK = {"f64": ("hf_bert_cls", "hf_bert_mlm", "hf_distilbert_mlm", "hf_gpt2", "hf_llama"), "f32": ("hf_qwen3",)}
MODELS = [
    pytest.param(method, precision, marks=() if method in QUICK[precision] else pytest.mark.slow)
    for method in ENCODERS + DECODERS
    for precision in PRECISIONS
]


@pytest.mark.parametrize("method, precision", MODELS)
def test_outputs_and_gradients(method, precision):
    """In three layouts of padding by one program; attention of the last block too."""
    encoder, found = method in ENCODERS, pretrained(method)
    kind = found.head.kind
    with computing_in(precision):
        net, state = network(method, keep=("scores",) if encoder else ()), {}
        params = jax.tree.map(lambda x: jnp.asarray(x, DTYPES[precision]), found.params)

        @jax.jit
        def run(params, inputs, labels):
            output, _ = net.apply(params, state, inputs, train=False)
            mask = inputs.get("attention_mask", jnp.ones_like(inputs["input_ids"])) != 0
            return loss_of(kind, output, mask, labels), output

        both = jax.jit(jax.value_and_grad(run, has_aux=True))
        layouts = [case for case in cases(method) if case.id in LAYOUTS]
        assert len(layouts) == len(LAYOUTS)
        for case in layouts:
            inputs, labels = given(case)
            (loss, output), gradient = both(params, inputs, labels)
            mask = inputs["attention_mask"] != 0
            case.check(loss, "out", "loss", precision)
            for i, feature in enumerate(output.features):
                case.check(feature[:, :, 0], "out", f"hidden_{i}", precision)
            if kind == "tokens":
                case.check(np.where(mask[:, :, None], output.logits, 0), "out", "logits", precision)
            elif kind == "classes":
                case.check(output.logits, "out", "logits", precision)
            else:
                case.check(output.embedding, "out", "pooled", precision)
            if encoder:
                seen = visible(jnp.asarray(mask), None, causal=False)
                shares = jax.nn.softmax(jnp.where(seen, output.taps["scores"][:, -1], -1e30))
                shares = np.where(mask[:, :, None, None], np.swapaxes(shares, 1, 2), 0)
                case.check(shares, "out", "attn_last", precision)
            check_gradients(case, found, gradient, precision)


@pytest.mark.parametrize(
    "method", [pytest.param(m, marks=() if m == "hf_qwen3" else pytest.mark.slow) for m in DECODERS]
)
def test_several_texts_in_a_row(method):
    """Each is what it is by itself: of its own tokens and positions."""
    (case,) = [case for case in cases(method) if case.id == "packed"]
    found, (inputs, labels) = pretrained(method), given(case)
    with computing_in("f64"):
        net = network(method)

        def run(params):
            output, _ = net.apply(params, {}, inputs, train=False)
            return loss_of("tokens", output, None, labels), output.logits

        params = jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), found.params)
        (loss, logits), gradient = jax.jit(jax.value_and_grad(run, has_aux=True))(params)
        case.check(loss, "out", "loss", "f64")
        case.check(np.where(inputs["segment_ids"][..., None], logits, 0), "out", "logits", "f64")
        check_gradients(case, found, gradient, "f64")


def check_gradients(case, found, gradient, precision):
    shapes = parameter_shapes(found.architecture, found.head)
    laid = laid_out(keys(found.architecture, found.head, shapes), flat(jax.device_get(gradient)))
    names = renamed(case.gparams["f64"], laid)
    assert len(names) == len(case.gparams["f64"]) > 0
    for ours, theirs in names.items():
        case.check(laid[ours], "gparam", theirs, precision)


def test_a_sentence_encoder_averages_the_tokens_that_are_no_padding():
    found = read_folder(folder_of("hf_bert"), Head(kind="sentence"))
    assert set(found.unused) == {"pooler.dense.weight", "pooler.dense.bias"} and not found.fresh
    net = transformer(found.architecture, found.head, weights=found.params)
    run = jax.jit(lambda inputs: net.apply(found.params, {}, inputs, train=False)[0].embedding)
    for case in (case for case in cases("hf_bert") if case.id in LAYOUTS):
        case.check(run(dict(case.inputs)), "out", "mean_pool", "f32")


def test_bfloat16_is_as_near_as_the_reference_comes():
    (case,) = [case for case in cases("hf_llama_tied_bf16") if case.id == "bf16"]
    net = in_precision(network("hf_llama_tied_bf16"), "bfloat16")
    params = pretrained("hf_llama_tied_bf16").params
    output = jax.jit(lambda params, inputs: net.apply(params, {}, inputs, train=False)[0])(params, dict(case.inputs))
    assert output.logits.dtype == jnp.bfloat16
    error = np.abs(np.asarray(output.logits, np.float32) - case.outputs["f32"]["logits_f32compute"])
    assert error.mean() < case.advice["bf16_mean_abs"]


@pytest.mark.slow
def test_recomputed_it_is_the_same():
    (case,) = [case for case in cases("hf_qwen3") if case.id == "left_pad"]
    gradients = []
    for remat in (False, True):
        net = network("hf_qwen3", remat=remat)
        params, state = net.init(jax.random.key(0))
        run = lambda p, net=net, state=state: jnp.sum(
            net.apply(p, state, dict(case.inputs), train=False)[0].logits ** 2
        )
        gradients.append(flat(jax.jit(jax.grad(run))(params)))
    for path, plain in gradients[0].items():
        np.testing.assert_allclose(gradients[1][path], plain, rtol=1e-4, atol=1e-4 * np.abs(plain).max())


@pytest.mark.parametrize("remat", [False, True])
def test_blocks_are_recomputed_where_that_is_asked_for(remat):
    net = network("hf_bert_cls", remat=remat)
    params, state = jax.eval_shape(net.init, jax.random.key(0))
    run = lambda p: jnp.sum(net.apply(p, state, {"input_ids": np.ones((1, 4), int)}, train=False)[0].logits)
    assert ("remat" in str(jax.make_jaxpr(jax.grad(run))(params))) == remat


def test_a_deeper_network_is_no_larger_a_program():
    found, counts = pretrained("hf_llama"), []
    for depth in (2, 9):
        net = transformer(dataclasses.replace(found.architecture, depth=depth), found.head)
        variables = jax.eval_shape(net.init, jax.random.key(0))
        run = lambda v, ids, net=net: net.apply(*v, {"input_ids": ids}, train=False)[0].logits
        traced = jax.make_jaxpr(run)(variables, jax.ShapeDtypeStruct((1, 4), jnp.int32)).jaxpr
        counts.append(sum(1 for _ in products(traced)))
    assert counts[0] == counts[1] > 7

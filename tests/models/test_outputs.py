"""What models return: nothing is taken for something else in silence; second heads and own losses have a way."""

import dataclasses

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from kdjax.models import as_output, from_apply, from_nnx, in_microbatches, output_shapes, token_maps, two_heads
from kdjax.objectives import KD, AuxiliaryLoss, CrossEntropy, FitNet, OnHead, bind, check
from kdjax.training import Variables, init_state, make_runner, make_step
from kdjax.types import Batch, DataInfo, ModelOutput

LOGITS, KEY = jnp.ones((2, 3)), jax.random.key(0)


@dataclasses.dataclass
class Returned:
    """As the outputs of Hugging Face: fields, of which some are None."""

    logits: jax.Array
    hidden_states: tuple | None = None


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        (([LOGITS], LOGITS), r"logits must be an array, got a list; did it return \(features, logits\)\? Then pass output="),
        (((LOGITS,), [LOGITS]), "logits must be an array, got a tuple; pass output="),
        ((LOGITS, LOGITS), r"has the shape \[2, 3\], which no feature map has; pass output=two_heads if it is a second head"),
        ((LOGITS, (jnp.ones((2, 4)),)), r"has the shape \[2, 4\].*embedding=raw\[1\]\) if it is an embedding"),
        ((LOGITS, jnp.ones(())), r'is a number; .*losses=\{"own": raw\[1\]\}\) if it is a loss'),
        ((LOGITS, {"k": LOGITS}), r"holds a dict; pass output=lambda raw: raw\[0\]"),
        ((LOGITS, None), r"holds a NoneType; pass output=lambda raw: raw\[0\]"),
        ((LOGITS, jnp.ones((4, 2, 5, 5))), r"\[4, 2, 5, 5\] beside logits \[2, 3\], a feature map, states or a cache"),
        ((jnp.ones((2, 5, 3)), jnp.ones((2, 5, 8))), "a feature map, states or a cache"),
        ({"logits": LOGITS, "cache": 1}, r"returned a dict; it has logits, cache: .*ModelOutput\(logits=raw\['logits'\]\)"),
        (Returned(LOGITS), r"returned a Returned; it has logits: .*ModelOutput\(logits=raw.logits\)"),
    ],
)  # fmt: skip
def test_what_is_not_meant_for_certain_is_refused(raw, said):
    with pytest.raises(TypeError, match=said):
        as_output(raw)


def test_an_output_function_may_give_logits_alone():
    network = from_apply(lambda p, x: (x, {"cache": x}), {}, output=lambda raw: raw[0])
    assert network.apply({}, {}, LOGITS, train=True)[0].logits is LOGITS


class Routed(nnx.Module):
    """Logits, a loss of its own by each of the three ways, a second head."""

    def __init__(self, rngs):
        self.linear, self.second = nnx.Linear(4, 3, rngs=rngs), nnx.Linear(4, 3, rngs=rngs)

    def __call__(self, x):
        y = self.linear(x)
        self.noted = nnx.Intermediate((jnp.mean(y**2),))
        return y, self.second(x)


def routed(raw):
    output = two_heads(raw)
    return dataclasses.replace(output, losses={"each": raw[0][:, 0] ** 2, "mean": jnp.mean(raw[1] ** 2)})


@pytest.mark.parametrize("form", [("jit", 1, 1), ("jit", 8, 2), ("pmap", 8, 2)])
def test_own_losses_and_heads_on_any_number_of_devices(form):
    """Against the same in NumPy, gradient included; rows that only fill up count in none that is one an example."""
    kind, devices, pieces = form
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((16, 4)).astype(np.float32), rng.integers(0, 3, 16)
    where = np.arange(16) < 13
    network = from_nnx(Routed(nnx.Rngs(0)), output=routed, losses=("noted",))
    params, _ = network.init(None)
    student = in_microbatches(network, 1 if kind == "pmap" else pieces)
    objective = (
        AuxiliaryLoss(name="each", weight=2.0) + AuxiliaryLoss(name="mean") + 3 * AuxiliaryLoss(name="noted")
        + OnHead(inner=CrossEntropy(), head="class") + OnHead(inner=KD(temperature=1.0))
    )  # fmt: skip
    teacher = from_apply(lambda p, x: x @ p, jnp.asarray(rng.standard_normal((4, 3)), jnp.float32))
    bound = bind(objective, output_shapes(student, x), output_shapes(teacher, x), DataInfo(3))
    runner = make_runner(kind, devices=jax.devices()[:devices])
    step = runner.compile(make_step(student, teacher, bound, optax.sgd(1.0), axis=runner.axis))
    state = runner.place(init_state(student, bound, optax.sgd(1.0), seed=0))
    batch = runner.place_batch(Batch.of(x, y, where=where))
    state, metrics = step(state, runner.place(Variables(*teacher.init(None))), batch)

    def loss(params):
        first, second = (x @ params[n]["kernel"] + params[n]["bias"][None] for n in ("linear", "second"))
        mean = lambda v: jnp.sum(jnp.where(where, v, 0)) / 13
        log, taught = jax.nn.log_softmax(second), jax.nn.softmax(x @ teacher.init(None)[0])
        own = 2 * mean(first[:, 0] ** 2) + jnp.mean(second**2) + 3 * jnp.mean(first**2)
        labels = mean(-jnp.take_along_axis(jax.nn.log_softmax(first), y[:, None], 1)[:, 0])
        return own + labels + mean(jnp.sum(taught * (jnp.log(taught) - log), 1))

    value, gradient = jax.value_and_grad(loss)(params)
    np.testing.assert_allclose(metrics["loss"][0], value, rtol=1e-5)
    after = jax.tree.map(lambda p, g: p - g, params, gradient)
    chex.assert_trees_all_close(jax.device_get(state.params["student"]), after, rtol=1e-4, atol=1e-5)
    assert set(metrics) >= {"auxiliary_loss", "auxiliary_loss_2", "on_head", "on_head_2"}


def test_own_losses_and_heads_that_are_not_there_are_refused():
    plain = ModelOutput(logits=LOGITS)
    said = check(AuxiliaryLoss(), plain, None)
    assert "reads student.losses" in said[0] and 'losses=("NAME", ...)' in said[0]
    assert "output=two_heads" in check(OnHead(inner=KD()), plain, plain)[0]
    given = ModelOutput(logits=LOGITS, losses={"a": LOGITS}, taps={"b": LOGITS})
    with pytest.raises(ValueError, match="name='z', and the student's own losses are: a"):
        bind(AuxiliaryLoss(name="z"), given, None, DataInfo(3))
    with pytest.raises(ValueError, match=r"own loss 'a' has the shape \[2, 3\]"):
        bind(AuxiliaryLoss(), given, None, DataInfo(3))
    with pytest.raises(ValueError, match="head='distillation', and the student's taps are: b"):
        bind(OnHead(inner=KD()), given, plain, DataInfo(3))


def test_a_refusal_says_how_to_name_what_a_method_reads():
    said = check(FitNet(), ModelOutput(logits=LOGITS, taps={"a": LOGITS, "b": LOGITS}), None)[0]
    assert said.endswith("; it has the taps a, b, which are read by name alone.")
    assert 'features=("PATH", ...)' in said and "kdjax.models.module_paths(network, inputs)" in said


def test_tokens_become_maps():
    network = from_apply(lambda p, x: ModelOutput(logits=x[:, 0], features=(x, x)), {})
    x = jnp.arange(2 * 10 * 3.0).reshape(2, 10, 3)
    output, _ = token_maps(network, skip=1).apply({}, {}, x, train=False)
    assert [f.shape for f in output.features] == [(2, 3, 3, 3)] * 2
    np.testing.assert_array_equal(output.features[0][1, 2, 1], x[1, 1 + 2 * 3 + 1])
    assert token_maps(network, grid=(10, 1)).apply({}, {}, x, train=False)[0].features[0].shape == (2, 10, 1, 3)
    with pytest.raises(ValueError, match="gives 10 tokens, 10 after skip=0, which do not fill a map of 3 x 3"):
        token_maps(network).apply({}, {}, x, train=False)
    for stage in (0, 1):
        with pytest.raises(ValueError, match=r"must be a map \[H, W, K\]; of tokens kdjax.models.token_maps"):
            bind(FitNet(stage=stage), output_shapes(network, x), output_shapes(network, x), DataInfo(3))


def test_what_gives_no_array_is_no_feature():
    class Pair(nn.Module):
        @nn.compact
        def __call__(self, x):
            return x, x

    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dense(3)(Pair(name="pair")(x)[0])

    from kdjax.models import from_linen

    with pytest.raises(ValueError, match="embedding='pair': the module gives a tuple there, not an array"):
        output_shapes(from_linen(Net(), LOGITS, embedding="pair"), LOGITS)

"""How a model is told whether it trains, under whatever name; and that one which does not listen is found out."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from kdjax.models import from_linen, from_nnx, output_shapes
from kdjax.models.modes import WHILE_TRAINING

X = 5 + np.random.default_rng(0).standard_normal((8, 4)).astype(np.float32)
KEY = jax.random.key(0)


def linen_net(name, default=None, field=False):
    """A module that is told by an argument, or a field, of this name."""

    def body(module, x, value):
        average = value != WHILE_TRAINING.get(name, True)  # whether it is the value of evaluation
        x = nn.BatchNorm(use_running_average=average, momentum=0.5)(nn.Dense(4)(x))
        return nn.Dense(3)(nn.Dropout(0.5, deterministic=average)(x))

    space = {"nn": nn, "body": body, "default": default}
    shape = f"self, x, *, {name}" if default is None else f"self, x, {name}=default"
    if field:
        code = f"class Net(nn.Module):\n {name}: bool = default\n @nn.compact\n"
        code += f" def __call__(self, x): return body(self, x, self.{name})"
    else:
        code = f"class Net(nn.Module):\n @nn.compact\n def __call__({shape}): return body(self, x, {name})"
    exec(code, space)
    return space["Net"]()


def nnx_net(name, default=None, field=False):
    """The same in NNX: the argument is handed on to BatchNorm and Dropout."""

    class Base(nnx.Module):
        def __init__(self, rngs):
            self.dense, self.out = nnx.Linear(4, 4, rngs=rngs), nnx.Linear(4, 3, rngs=rngs)
            self.norm, self.drop = nnx.BatchNorm(4, momentum=0.5, rngs=rngs), nnx.Dropout(0.5, rngs=rngs)
            if field:
                setattr(self, name, default)

        def run(self, x, value):
            average = value != WHILE_TRAINING.get(name, True)
            x = self.norm(self.dense(x), use_running_average=average)
            return self.out(self.drop(x, deterministic=average))

    space = {"Base": Base, "default": default}
    shape = "self, x" if field else f"self, x, *, {name}" if default is None else f"self, x, {name}=default"
    value = f"self.{name}" if field else name
    exec(f"class Net(Base):\n def __call__({shape}): return self.run(x, {value})", space)
    return space["Net"]


FORMS = {
    "required": {},
    "by default": {"default": False},
    "field": {"default": False, "field": True},
}


SOME = ("train", "deterministic", "use_running_average", "is_test")  # also methods of nnx.Module, or Flax's own names


@pytest.mark.parametrize(
    ("name", "form"),
    [(name, "required") for name in WHILE_TRAINING]
    + [(name, form) for name in SOME for form in ("by default", "field")],
)
def test_every_usual_name_reaches_the_model(name, form):
    """In training the statistics move and values are dropped; in evaluation neither."""
    networks = [from_linen(linen_net(name, **FORMS[form]), X), from_nnx(nnx_net(name, **FORMS[form]))]
    for network in networks:
        jaxprs = {}
        for train in (True, False):
            jaxprs[train] = str(
                jax.make_jaxpr(lambda k, n=network, t=train: n.apply(*n.init(k), X, train=t, rngs=k))(KEY)
            )
        # What only training does: draw bits for dropout after all the initial weights were drawn.
        assert jaxprs[True].count("random_bits") == jaxprs[False].count("random_bits") + 1


@pytest.mark.parametrize("make", [linen_net, nnx_net])
def test_the_statistics_move_in_training_alone(make):
    network = from_linen(make("is_train", False), X) if make is linen_net else from_nnx(make("is_train", False))
    params, state = network.init(KEY)
    _, after = network.apply(params, state, X, train=True, rngs=KEY)
    means = [np.asarray(x) for path, x in jax.tree_util.tree_leaves_with_path(after) if "mean" in str(path)]
    assert len(means) == 1 and np.all(np.abs(means[0]) > 1e-3)
    assert network.apply(params, state, X, train=False)[1] is state


def refusal(network):
    output_shapes(network, X)
    with pytest.raises(ValueError) as error:
        jax.eval_shape(lambda k: network.apply(*network.init(k), X, train=True, rngs=k), KEY)
    return str(error.value)


def test_an_unusual_name_is_found_out_and_then_given():
    for make in (lambda **o: from_linen(linen_net("is_fitting", False), X, **o),
                 lambda **o: from_nnx(nnx_net("is_fitting", False), **o)):  # fmt: skip
        assert refusal(make()) == (
            "Net has batch statistics that training leaves as they are: none of its arguments (x, is_fitting) has a name known "
            "to mean the mode; pass mode={'is_fitting': True}, the argument's name and its value in training, or mode={} if this "
            "is meant."
        )
        told, as_built = make(mode={"is_fitting": True}), make(mode={})
        params, state = told.init(KEY)
        moved = told.apply(params, state, X, train=True, rngs=KEY)[1]
        assert any(np.any(a != b) for a, b in zip(jax.tree.leaves(moved), jax.tree.leaves(state), strict=True))
        still = as_built.apply(params, state, X, train=True, rngs=KEY)[1]
        assert all(np.all(a == b) for a, b in zip(jax.tree.leaves(still), jax.tree.leaves(state), strict=True))


def test_a_name_that_is_not_there_is_refused():
    with pytest.raises(
        ValueError, match="mode= names 'fitting', and Net has no such field and its __call__ takes x, train"
    ):
        output_shapes(from_linen(linen_net("train"), X, mode={"fitting": True}), X)
    with pytest.raises(
        ValueError, match="mode= names 'fitting', and Net has no such field and its __call__ takes x, train"
    ):
        output_shapes(from_nnx(nnx_net("train"), mode={"fitting": True}), X)


def test_dropout_alone_is_found_out():
    class Deaf(nn.Module):
        train: bool = False

        @nn.compact
        def __call__(self, x):
            return nn.Dense(3)(nn.Dropout(0.5, deterministic=True)(x))

    class DeafNnx(nnx.Module):
        def __init__(self, rngs):
            self.drop, self.out = nnx.Dropout(0.5, rngs=rngs), nnx.Linear(4, 3, rngs=rngs)

        def __call__(self, x, noisy=False):
            return self.out(self.drop(x, deterministic=not noisy))

    assert refusal(from_linen(Deaf(), X)) == (
        "Deaf has dropout that drops nothing in training: it was called with train=True, which does not reach all of it; give it "
        "an argument train, and hand it on to BatchNorm (use_running_average=not train) and Dropout, or mode={} if this is meant."
    )
    assert "dropout that drops nothing in training: none of its arguments (x, noisy)" in refusal(from_nnx(DeafNnx))
    jax.eval_shape(
        lambda k: (n := from_nnx(DeafNnx, mode={"noisy": True})).apply(*n.init(k), X, train=True, rngs=k), KEY
    )


def test_layers_in_a_loop_that_do_not_listen_are_found_out():
    class Layer(nn.Module):
        @nn.compact
        def __call__(self, x, _):
            return nn.BatchNorm(use_running_average=True)(nn.Dense(4)(x)), None

    class Looped(nn.Module):
        @nn.compact
        def __call__(self, x):
            axes = {"params": 0, "batch_stats": 0}
            return nn.scan(Layer, variable_axes=axes, split_rngs={"params": True}, length=2)()(x, None)[0]

    assert "Looped has batch statistics that training leaves as they are" in refusal(from_linen(Looped(), X))


@pytest.mark.parametrize("make", [lambda **o: from_linen(nn.BatchNorm(**o), X, mode={}),
                                  lambda **o: from_nnx(lambda rngs: nnx.BatchNorm(4, rngs=rngs, **o), mode={})])  # fmt: skip
def test_what_is_said_to_stay_and_moves_is_refused(make):
    assert (
        "mode={} says that BatchNorm is the same in training and evaluation, and its batch statistics move"
        in refusal(make())
    )
    frozen = make(use_running_average=True)
    params, state = frozen.init(KEY)
    (trained, after), (evaluated, _) = (frozen.apply(params, state, X, train=train) for train in (True, False))
    np.testing.assert_array_equal(trained.logits, evaluated.logits)
    np.testing.assert_array_equal(*(jax.tree.leaves(tree)[0] for tree in (after, state)))


@pytest.mark.parametrize("mode", ["is_fitting", {"is_fitting": 1}, True, ["train"]])
def test_a_mode_that_is_none_is_refused(mode):
    for make in (lambda: from_linen(linen_net("train"), X, mode=mode), lambda: from_nnx(nnx_net("train"), mode=mode)):
        with pytest.raises(ValueError, match="give the argument's name and its value in training, such as mode="):
            make()


class ByPosition(nnx.Module):
    def __init__(self, rngs):
        self.drop = nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, x, train, /):
        return self.drop(x, deterministic=not train)


class ByPositionLinen(nn.Module):
    @nn.compact
    def __call__(self, x, train, /):
        return nn.Dropout(0.5, deterministic=not train)(x)


class HandsOn(nnx.Module):
    def __init__(self, rngs):
        self.inner = nnx_net("train")(rngs)

    def __call__(self, x, **kwargs):
        return self.inner(x, **kwargs)


def test_a_mode_by_position_and_one_that_is_handed_on():
    for network in (from_nnx(ByPosition), from_linen(ByPositionLinen(), X)):
        loud, quiet = (network.apply(*network.init(KEY), X, train=train, rngs=KEY)[0].logits for train in (True, False))
        assert np.any(loud == 0) and np.all(quiet == X)
    silent = from_nnx(lambda rngs: (n := HandsOn(rngs), setattr(n, "inner", nnx_net("train", False)(rngs)))[0])
    assert "pass mode={'train': True} (or another name) if it hands what it is given on" in refusal(silent)
    told = from_nnx(HandsOn, mode={"train": True})
    jax.eval_shape(lambda k: told.apply(*told.init(k), X, train=True, rngs=k), KEY)


def test_linen_layers_that_are_told_nothing_are_told():
    """As in a Sequential, which hands no arguments on."""
    network = from_linen(nn.Sequential([nn.Dense(4), nn.BatchNorm(), nn.Dropout(0.5), nn.Dense(3)]), X)
    params, state = network.init(KEY)
    output, after = network.apply(params, state, X, train=True, rngs=KEY)
    assert np.any(after["batch_stats"]["layers_1"]["mean"] != 0)
    assert np.any(output.logits != network.apply(params, state, X, train=False)[0].logits)


class FixedAxis(nn.Module):
    """As Flax's ImageNet ResNet: the axis is written into the model."""

    @nn.compact
    def __call__(self, x, train=True):
        return nn.Dense(3)(nn.BatchNorm(use_running_average=not train, axis_name="batch")(x))


def test_a_fixed_axis_is_set_to_that_of_the_step():
    network = from_linen(FixedAxis(), X)
    params, state = network.init(KEY)
    whole = network.apply(params, state, X, train=True)
    parts = jax.pmap(lambda x: network.apply(params, state, x, train=True, axis="devices"), "devices")(X[:, None])
    np.testing.assert_allclose(parts[0].logits[:, 0], whole[0].logits, rtol=1e-5, atol=1e-6)
    for ours, theirs in zip(jax.tree.leaves(parts[1]), jax.tree.leaves(whole[1]), strict=True):
        np.testing.assert_allclose(ours[0], theirs, rtol=1e-5, atol=1e-6)


class OwnNorm(nn.Module):
    @nn.compact
    def __call__(self, x, train=True):
        mean = self.variable("batch_stats", "mean", jnp.zeros, x.shape[-1])
        if train:
            mean.value = jnp.mean(x, 0)
        return nn.Dense(3)(x - mean.value[None])


def test_normalisation_of_ones_own_without_an_axis_is_refused_under_one():
    network = from_linen(OwnNorm(), X)
    params, state = network.init(KEY)

    def run(train):
        return jax.pmap(lambda x: network.apply(params, state, x, train=train, axis="data")[0].logits, "data")(
            X[:, None]
        )

    with pytest.raises(
        ValueError, match=r"OwnNorm has batch statistics of modules that are not nn.BatchNorm.*axis_name: str"
    ):
        run(train=True)
    assert run(train=False).shape == (8, 1, 3), "a frozen teacher takes no statistics"

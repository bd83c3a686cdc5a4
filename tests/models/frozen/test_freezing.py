"""Frozen teachers: the same outputs with fewer operations, parameters and bits, and what that costs."""

import collections
import dataclasses
import functools

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import lax

from kdjax.models import Freezer, ensemble, freeze, from_apply, from_linen, from_nnx, join_members, output_shapes, zoo
from kdjax.models.zoo.normalization import BatchNorm
from kdjax.objectives import KD, SRRL, CrossEntropy, bind
from kdjax.training import Variables, init_state, make_runner, make_step
from kdjax.training.optimizers import SGD, build
from kdjax.types import Clock, DataInfo, ModelOutput, Network
from tests.tracing import traced_once
from tests.training.toy import CLASSES, shapes, toy, toy_batch

RNG = np.random.default_rng(0)
IMAGES = RNG.standard_normal((4, 8, 8, 3)).astype(np.float32)
BF16 = jnp.bfloat16


def trained(network, seed=1):
    """Variables as of a trained network: no scale is 1, no bias and no mean 0."""
    rng = np.random.default_rng(seed)

    def draw(path, x):
        name = str(path[-1])
        if "var" in name or "scale" in name:
            return jnp.asarray(rng.uniform(0.5, 2.0, x.shape), x.dtype)
        near = "mean" in name or "bias" in name
        return jnp.asarray(jax.device_get(x) + rng.normal(0.0, 0.3, x.shape).astype(x.dtype)) if near else x

    return jax.tree_util.tree_map_with_path(draw, jax.jit(network.init)(jax.random.key(seed)))


# --- networks, by what of them folds ---


def of_zoo(name, width):
    kind = lambda rngs: zoo.build(name, num_classes=5, in_channels=3, width=width, rngs=rngs)
    return from_nnx(kind, parts=("classify", "norms"), name=name)


class Linen(nn.Module):
    """A normalised convolution with a bias, dropout, a normalised dense layer, GELU."""

    @nn.compact
    def __call__(self, x, train):
        norm = functools.partial(nn.BatchNorm, use_running_average=not train)
        x = nn.relu(norm()(nn.Conv(4, (3, 3))(x)))
        x = nn.Dropout(0.5, deterministic=not train)(x.mean((1, 2)))
        return nn.Dense(5)(nn.gelu(norm()(nn.Dense(6)(x))))


def plain(function, name="plain", params=None, **shapes):
    """A network of a function, which may promote ranks as JAX does where it is not forbidden."""
    draw = np.random.default_rng(2)
    least = lambda key: 0.2 if key in ("mean", "var", "scale") else -1.0
    arrays = {key: jnp.asarray(draw.uniform(least(key), 1.0, shape), jnp.float32) for key, shape in shapes.items()}

    def said(params, x):
        with jax.numpy_rank_promotion("allow"):
            return function(params, x)

    return from_apply(said, arrays if params is None else params, name=name)


def convolve(x, kernel, **options):
    options = {"window_strides": (1, 1), "padding": "SAME", "dimension_numbers": ("NHWC", "HWIO", "NHWC"), **options}
    return lax.conv_general_dilated(x, kernel, **options)


def every_way(p, x):
    """Grouped, strided, dilated and transposed convolutions, each with another spelling of a normalisation behind it."""

    @jax.jit
    def normalised(y, mean, var):
        return (y - mean) / jnp.sqrt(var + 1e-3)

    x = convolve(x, p["a"], window_strides=(2, 1))
    x = jnp.tanh(normalised(x, p["mean"][None, None, None], p["var"][None, None, None]))
    x = jax.checkpoint(lambda x: p["scale"].reshape(1, 1, 1, 6) * convolve(x, p["b"], feature_group_count=3))(x)
    x = jnp.tanh(x)
    x = jnp.broadcast_to(p["mean"], (*x.shape[:3], 6)) + 0.5 * convolve(x, p["c"], rhs_dilation=(2, 1))
    x = lax.transpose(jnp.tanh(x * jnp.broadcast_to(p["var"], x.shape)), (0, 3, 1, 2))
    x = lax.conv_general_dilated(x, p["d"], (1, 1), [(1, 1), (1, 1)], lhs_dilation=(2, 2)) * p["scale"][:, None, None]
    x = jnp.tanh(x - p["mean"][:, None, None])
    first = jnp.einsum("ki,bihw->bkhw", p["e"], x)  # with the kernel on the left
    return jnp.einsum("bkhw,ck->bc", jnp.tanh(first * p["scale"][:5, None, None]), p["f"])


def unfolded(p, x):
    """Scales that are none of a layer's output channels, and one whose layer the network gives too."""
    x = jnp.tanh(convolve(x, p["a"]) * p["where"])
    x = jnp.tanh(lax.transpose(convolve(x, p["b"]) * p["scale"], (0, 3, 1, 2)) * p["scale"])
    first = 0.5 * (x.sum((2, 3)) @ p["c"])  # folded, but by no parameter
    second = jnp.tanh(p["scale"][:5] / first)
    return ModelOutput(logits=second * p["scale"][:5], taps={"first": first * p["scale"][:5] + first})


class NormFirst(nnx.Module):
    """A BatchNorm with no layer before it, and one whose layer is read by another too."""

    def __init__(self, rngs):
        self.norms = nnx.List([BatchNorm(3, rngs=rngs), BatchNorm(4, rngs=rngs)])
        self.conv = nnx.Conv(3, 4, (3, 3), rngs=rngs)
        self.classifier = nnx.Linear(4, 5, rngs=rngs)

    def __call__(self, x):
        y = self.conv(nnx.relu(self.norms[0](x)))
        z = nnx.relu(self.norms[1](y)) + y
        return ModelOutput(logits=self.classifier(z.mean((1, 2))), taps={"raw": y})


SMALL = of_zoo("small_cnn", 3)
# name -> (network, normalisations that fold, convolutions and products)
KINDS = {
    "resnet8": (of_zoo("resnet8", 3), 9, 10),
    "small_cnn": (SMALL, 6, 7),
    "linen": (from_linen(Linen(), IMAGES), 2, 3),
    "every way": (
        plain(every_way, "every way", a=(3, 3, 3, 6), b=(3, 1, 2, 6), c=(3, 2, 6, 6), d=(6, 6, 3, 3), e=(5, 6), f=(5, 5),
              mean=(6,), var=(6,), scale=(6,)),
        5, 6,
    ),
    "unfolded": (
        plain(unfolded, "unfolded", a=(3, 3, 3, 4), b=(3, 3, 4, 8), c=(8, 5), where=(8, 8, 1), scale=(8,)), 1, 3,
    ),
    "norm first": (from_nnx(NormFirst), 0, 2),
    "mlp": (
        plain(lambda p, x: jnp.maximum(x.reshape(len(x), -1) @ p["a"] + p["b"], 0) @ p["c"], "mlp",
              a=(192, 6), b=(6,), c=(6, 5)),
        0, 2,
    ),
    "ensemble": (ensemble([SMALL] * 2), 6, 7),
    "mixed ensemble": (ensemble([SMALL, of_zoo("small_cnn", 2)]), 12, 14),
}  # fmt: skip


@functools.cache
def variables(kind):
    return trained(KINDS[kind][0])


@functools.cache
def frozen(kind, precision="float32", **options):
    return freeze(KINDS[kind][0], *variables(kind), IMAGES, precision=precision, **options)


def run(network, params, state, x):
    return jax.jit(lambda params, state, x: network.apply(params, state, x, train=False)[0])(params, state, x)


def operations(jaxpr):
    """How often each primitive occurs, inside other programs too."""
    count = collections.Counter(equation.primitive.name for equation in jaxpr.eqns)
    for equation in jaxpr.eqns:
        for value in equation.params.values():
            inner = getattr(value, "jaxpr", value)
            count += operations(inner) if hasattr(inner, "eqns") else collections.Counter()
    return count


def program(network, params, state, x=IMAGES):
    said = lambda params, state, x: network.apply(params, state, x, train=False)[0]
    return operations(jax.make_jaxpr(said)(params, state, x).jaxpr)


def count(tree):
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


# --- float32 ---


@pytest.mark.parametrize("kind", KINDS)
def test_all_outputs_are_those_of_the_network(kind):
    """For another number of rows than the sample's too."""
    network, folds, _ = KINDS[kind]
    made = frozen(kind)
    assert made.report.folded == folds
    for x in (IMAGES, 2.0 * IMAGES[:3] + 0.5):
        expected = run(network, *variables(kind), x)
        chex.assert_trees_all_close(run(made.network, made.params, made.state, x), expected, rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_the_operations_are_gone(kind):
    """Every convolution and dense layer is there once; of a folded normalisation one addition remains."""
    (network, folds, products), made = KINDS[kind], frozen(kind)
    before, after = program(network, *variables(kind)), program(made.network, made.params, made.state)
    assert after["conv_general_dilated"] + after["dot_general"] == products
    assert before["conv_general_dilated"] + before["dot_general"] == products
    assert after["rsqrt"] == after["sqrt"] == 0
    arithmetic = lambda operations: operations["sub"] + operations["mul"] + operations["div"]
    if kind == "every way":
        assert arithmetic(after) == 0 and after["add"] == 3 and arithmetic(before) == 8
    elif kind in ("unfolded", "norm first"):  # a number and a scale; (scale / root) of each
        assert arithmetic(before) - arithmetic(after) == 2
    else:  # (x - mean) * (scale / root) + bias
        assert arithmetic(before) - arithmetic(after) == 3 * folds
        assert before["add"] - after["add"] == folds + (
            2 if kind == "linen" else 0
        )  # epsilon, and the layers' own biases
    if kind in ("resnet8", "small_cnn"):
        assert after["sub"] == after["mul"] == 0


def test_the_compiled_program_is_smaller():
    network, folds, _ = KINDS["resnet8"]
    made = frozen("resnet8")

    def compiled(network, params, state):
        said = lambda params, state, x: network.apply(params, state, x, train=False)[0].logits
        return jax.jit(said).lower(params, state, IMAGES).compile()

    before, after = compiled(network, *variables("resnet8")), compiled(made.network, made.params, made.state)
    assert before.as_text().count(" rsqrt(") == folds and after.as_text().count(" rsqrt(") == 0
    assert after.as_text().count(" multiply(") < before.as_text().count(" multiply(")
    assert after.cost_analysis()["flops"] < before.cost_analysis()["flops"]


def test_what_is_kept():
    """A kernel and a bias for each normalised convolution, by the names of the parameters."""
    made = frozen("small_cnn", parts=())
    params, state = variables("small_cnn")
    channels = count(state) // 2
    assert count(made.params) == count(params) - channels and made.state == {}
    assert made.report.bytes_before == 4 * (count(params) + count(state))
    assert made.report.bytes_after == 4 * count(made.params) and made.report.bytes_of_parts == 0
    names = {f"stages/{i}/{j}/conv/{what}" for i in range(3) for j in range(2) for what in ("kernel", "bias")}
    assert set(made.params["frozen"]) == names | {"classifier/kernel", "classifier/bias"}


def test_the_network_may_come_before_its_weights():
    """As where a program is compiled once for several teachers."""
    freezer = Freezer(SMALL, jax.ShapeDtypeStruct((2, 8, 8, 3), jnp.float32), parts=("norms",))
    made = frozen("small_cnn", parts=("norms",))
    variables_of = freezer.convert(*variables("small_cnn"))
    chex.assert_trees_all_close(variables_of, (made.params, made.state), rtol=1e-6)
    chex.assert_trees_all_close(
        run(freezer.network, *variables_of, IMAGES),
        run(made.network, made.params, made.state, IMAGES),
        rtol=1e-6,
        atol=1e-6,
    )
    assert output_shapes(freezer.network, IMAGES) == output_shapes(SMALL, IMAGES)
    report = freezer.compare(*variables("small_cnn"), IMAGES)
    assert dataclasses.replace(report, largest_change=0, mean_change=0) == dataclasses.replace(
        made.report, largest_change=0, mean_change=0
    )
    key = jax.random.key(3)
    chex.assert_trees_all_close(freezer.network.init(key), freezer.convert(*SMALL.init(key)), rtol=1e-6)
    with pytest.raises(ValueError, match="These are not variables of small_cnn: their names, shapes or types differ"):
        freezer.convert(*variables("resnet8"))


def test_without_folding_only_constants_are_computed():
    _, folds, _ = KINDS["small_cnn"]
    made = frozen("small_cnn", fold=False)
    assert made.report.folded == 0 and made.report.largest_change < 1e-6
    after = program(made.network, made.params, made.state)
    assert after["rsqrt"] == 0 and after["mul"] == after["sub"] == folds


def test_what_is_broadcast_to_the_batch_is_kept_once():
    """As the class token of a vision transformer is."""

    def said(p, x):
        token = jnp.tile(p["token"] * 2.0, (len(x), 1, 1))
        marks = jnp.concatenate([jnp.broadcast_to(p["mark"], (len(x), 1, 4))] * 2, axis=1)
        x = jnp.concatenate([token, marks, x @ p["a"] + jnp.broadcast_to(p["place"], (len(x), 3, 4))], axis=1)
        return jnp.tanh(x).mean(1) @ p["b"]

    network = plain(said, "tokens", token=(1, 1, 4), mark=(4,), a=(2, 4), place=(1, 3, 4), b=(4, 5))
    params, state = network.init(None)
    x = jnp.asarray(RNG.standard_normal((6, 3, 2)), jnp.float32)
    made = freeze(network, params, state, x[:2])
    assert count(made.params) == count(params)
    expected = run(network, params, state, x)
    chex.assert_trees_all_close(run(made.network, made.params, {}, x), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "function",
    [
        lambda p, x: (x + p["place"][: x.shape[1]]) @ p["a"],
        lambda p, x: x.mean(1) * (p["place"][0] / x.shape[1]) @ p["a"],  # another value of the same shape
        lambda p, x: x.mean(1) @ (p["a"] / jnp.asarray([float(x.shape[1])] * 5)),
        lambda p, x: (x.mean(1) @ p["a"]) * (p["a"][0] if x.shape[1] > 4 else p["a"][1]),
        lambda p, x: x.mean(1) @ lax.fori_loop(0, 2, lambda i, a: a / x.shape[1], p["a"]),
        lambda p, x: x.mean(1) @ p["a"] + p["a"][: x.shape[1] // 2].sum(0),
    ],
)
def test_values_that_depend_on_the_shape_of_the_inputs(function):
    """They are right for the sample's, and refused for another."""
    network = plain(function, place=(8, 3), a=(3, 5))
    params, _ = network.init(None)
    made = freeze(network, params, {}, jnp.ones((2, 6, 3)))
    chex.assert_shape(output_shapes(made.network, jnp.ones((7, 6, 3))).logits, (7, ..., 5))
    with pytest.raises(
        ValueError, match=r"makes another value .* of its parameter '(place|a)' .* freeze it with a sample of"
    ):
        output_shapes(made.network, jnp.ones((2, 4, 3)))


def test_other_parameters_are_refused():
    made = frozen("mlp")
    run_on = lambda params: made.network.apply(params, {}, IMAGES, train=False)
    for params, found in (
        (variables("mlp")[0], "nothing"),
        ({"frozen": {**made.params["frozen"], "a": jnp.ones((3, 2))}}, r"float32\[3, 2\]"),
    ):
        with pytest.raises(
            ValueError, match=rf"needs float32\[192, 6\] as 'a', .* hold {found}; pass those that freeze"
        ):
            run_on(params)


def test_weights_that_a_function_holds_itself():
    kernel, rows = (
        jnp.asarray(RNG.standard_normal((3, 5)), jnp.float32),
        jnp.asarray(RNG.standard_normal((4, 3)), jnp.float32),
    )
    network = plain(lambda p, x: (x @ kernel) * p["scale"], params={"scale": jnp.arange(1.0, 6.0)})
    made = freeze(network, *network.init(None), rows)
    assert made.report.folded == 1
    np.testing.assert_allclose(made.params["frozen"]["constant"], np.asarray(kernel) * np.arange(1.0, 6.0), rtol=1e-6)


def test_shared_kernels_are_kept_once():
    network = plain(lambda p, x: jnp.tanh(jnp.tanh(x @ p["a"]) @ p["a"]) @ p["b"], "shared", a=(3, 3), b=(3, 5))
    made = freeze(network, *network.init(None), jnp.ones((2, 3)))
    assert {name: x.shape for name, x in made.params["frozen"].items()} == {"a": (3, 3), "b": (3, 5)}


MASKS = RNG.integers(0, 2, (2, 100)).astype(np.float32)
ROWS = RNG.integers(0, 7, (2, 100))


def masked(how, masks=MASKS):
    """A network that uses one parameter twice, with another large constant each time."""
    return lambda p, x: (x * how(p["w"], masks[0])) @ p["a"] + (x * how(p["w"], masks[1])) @ p["b"]


@pytest.mark.parametrize(
    "function",
    [
        masked(lambda w, mask: w * mask),
        masked(lambda w, mask: jax.jit(lambda w: w * mask)(w)),
        masked(lambda w, mask: lax.cond(w[0] > 0, lambda w: w * mask, lambda w: w - mask, w)),
        # A program in the loop holds its constant itself.
        masked(
            lambda w, mask: lax.fori_loop(0, 2, lambda i, w: jax.jit(lambda w: w * mask)(w), w),
            tuple(map(jnp.asarray, MASKS)),
        ),
        lambda p, x: x @ p["table"][ROWS[0]] + jnp.sin(x) @ p["table"][ROWS[1]],
        # The same operations, of other operands.
        masked(lambda w, sign: lax.fori_loop(0, 3, lambda i, c: c - c * c if sign > 0 else c * c - c, w), (1, -1)),
    ],
    ids=["masks", "in jit", "in branches", "in a loop", "rows", "order"],
)
def test_one_parameter_with_several_large_constants(function):
    network = plain(function, w=(100,), a=(100, 5), b=(100, 5), table=(7, 5))
    params, _ = network.init(None)
    x = jnp.asarray(RNG.standard_normal((4, 100)), jnp.float32)
    made = freeze(network, params, {}, x)
    assert made.report.largest_change < 1e-4
    assert {"w 2", "table 2"} & made.params["frozen"].keys()


def test_equal_large_constants_are_told_by_their_values():
    """Of two arrays with the same values the result is kept once."""
    network = plain(
        masked(lambda w, mask: jnp.sin(w * mask), (MASKS[0], MASKS[0].copy())), w=(100,), a=(100, 5), b=(100, 5)
    )
    made = freeze(network, *network.init(None), jnp.ones((2, 100)))
    assert set(made.params["frozen"]) == {"a", "b", "w"}


def test_what_is_made_of_parameters_in_any_way_is_kept():
    """By functions with derivatives of their own, in loops, by chance, of constants in the function."""
    key, ones = jax.random.key(5), jnp.ones((3, 5))

    def said(p, x):
        normed = lax.fori_loop(0, 3, lambda i, a: a / jnp.linalg.norm(a), p["a"])
        own = lax.scan(lambda carry, row: (carry, jax.nn.softplus(row)), 0.0, p["a"])[1]
        return (
            x @ normed + x @ (own + ones) + x @ (p["a"] * jax.random.normal(key, (3, 5))) + jax.random.normal(key, (5,))
        )

    network = plain(said, a=(3, 5))
    params, state = network.init(None)
    made = freeze(network, params, state, jnp.ones((2, 3)))
    after = program(made.network, made.params, made.state, jnp.ones((4, 3)))
    assert after["dot_general"] == 3 and after["scan"] == after["while"] == after["custom_jvp_call"] == 0
    rows = jnp.asarray(RNG.standard_normal((4, 3)), jnp.float32)
    expected = run(network, params, state, rows)
    chex.assert_trees_all_close(run(made.network, made.params, made.state, rows), expected, rtol=1e-5, atol=1e-6)


def test_a_network_in_bfloat16_is_left_as_it_is():
    def said(p, x):
        low = jnp.asarray(x, BF16) @ p["a"].astype(BF16)
        return jnp.tanh((low.astype(jnp.float32) - p["b"]) * p["b"]).astype(BF16) @ p["c"].astype(BF16)

    network = plain(said, "low", a=(3, 4), b=(4,), c=(4, 5))
    rows = jnp.asarray(RNG.standard_normal((6, 3)), jnp.float32)
    for precision in ("float32", "bfloat16", "int8"):
        made = freeze(network, *network.init(None), rows, precision=precision)
        assert made.report.folded == 0 and made.report.largest_change == 0
        assert {name: x.dtype for name, x in made.params["frozen"].items()} == {"a": BF16, "b": jnp.float32, "c": BF16}


# --- bfloat16 and int8 ---


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "int8"])
@pytest.mark.parametrize("kind", ["linen", "small_cnn"])
def test_the_report_says_what_changed(kind, precision):
    made = frozen(kind, precision)
    expected = np.float64(run(KINDS[kind][0], *variables(kind), IMAGES).logits)
    logits = np.float64(run(made.network, made.params, made.state, IMAGES).logits)
    change, report = np.abs(logits - expected), made.report
    close = 1e-6 if precision == "float32" else 1e-5
    np.testing.assert_allclose([report.largest_change, report.mean_change], [change.max(), change.mean()], 1e-3, close)
    assert report.agreement == np.mean(logits.argmax(1) == expected.argmax(1)) and report.examples == 4
    low, high = {"float32": (0, 1e-5), "bfloat16": (1e-5, 0.03), "int8": (1e-5, 0.05)}[precision]
    assert low <= report.largest_change / np.abs(expected).max() < high
    assert report.bytes_after == sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(made.params["frozen"]))


def test_predictions_that_changed_are_counted():
    """The second kernel value is larger than the first by less than bfloat16 can tell."""
    network = plain(lambda p, x: x @ p["a"], params={"a": jnp.float32([[1, 1 + 2**-10]])})
    rows = jnp.float32([[1], [2], [-1], [0], [3]])
    report = freeze(network, *network.init(None), rows, precision="bfloat16").report
    assert report.agreement == pytest.approx(2 / 5) and report.examples == 5
    assert report.largest_change == 3 * 2**-10 and "on 5 examples 40.0 % of the predictions are the same" in str(report)


@pytest.mark.parametrize("precision", ["bfloat16", "int8"])
@pytest.mark.parametrize("kind", KINDS)
def test_fewer_bits_are_near(kind, precision):
    """And all that the network gives has its own type."""
    made = frozen(kind, precision)
    expected = run(KINDS[kind][0], *variables(kind), IMAGES)
    output = run(made.network, made.params, made.state, IMAGES)
    assert made.report.folded == KINDS[kind][1]
    for ours, theirs in zip(jax.tree.leaves(output), jax.tree.leaves(expected), strict=True):
        assert ours.dtype == theirs.dtype == jnp.float32
        assert 0 < np.abs(ours - theirs).max() < 0.05 * np.abs(theirs).max()


def test_types_of_constants():
    types = lambda precision: jax.tree.map(lambda x: x.dtype, frozen("linen", precision).params["frozen"])
    kept = {name: types("bfloat16")[f"{name}/kernel"] for name in ("Conv_0", "Dense_0", "Dense_1")}
    assert set(kept.values()) == {jnp.dtype(BF16)}
    assert types("int8")["Dense_0/kernel"] == {"values": jnp.int8, "scale": jnp.float32}
    assert frozen("every way", "int8").params["frozen"]["b"].dtype == jnp.float32, "a grouped convolution"
    assert types("int8")["Dense_0/bias"] == types("bfloat16")["Dense_0/bias"] == jnp.float32


def rounded(x):
    return np.asarray(jnp.asarray(x, BF16), np.float64)


def test_bfloat16_by_hand():
    """Kernels, inputs of products, and what several read are rounded; sums and elementwise functions are not."""

    def said(p, x):
        hidden = jnp.tanh(3.0 * (x @ p["a"]) + p["b"])
        return ModelOutput(logits=(hidden + hidden**2) @ p["c"] + p["d"], embedding=hidden)

    network = plain(said, "by hand", a=(3, 4), b=(4,), c=(4, 5), d=(5,))
    params, state = network.init(None)
    rows = RNG.standard_normal((6, 3)).astype(np.float32)
    made = freeze(network, params, state, rows, precision="bfloat16")
    p = jax.tree.map(np.float64, params)
    hidden = np.tanh(rounded(rows) @ rounded(3.0 * params["a"]) + p["b"])
    logits = rounded(rounded(hidden) + rounded(hidden) ** 2) @ rounded(p["c"]) + p["d"]
    output = run(made.network, made.params, made.state, rows)
    np.testing.assert_allclose(output.logits, logits, rtol=1e-6)
    np.testing.assert_allclose(output.embedding, hidden, rtol=1e-6)


def test_values_that_no_product_gave_keep_their_digits():
    """Positions above 256 are no numbers of bfloat16."""

    def said(p, x):
        places = jnp.arange(x.shape[1], dtype=jnp.float32)[:, None]
        angles = jnp.cos(places * p["speed"] + places)
        return ((x @ p["a"]) * angles) @ p["b"]

    network = plain(said, "places", speed=(4,), a=(2, 4), b=(4, 5))
    x = jnp.asarray(RNG.standard_normal((2, 600, 2)), jnp.float32)
    made = freeze(network, *network.init(None), x, precision="bfloat16")
    assert made.report.largest_change < 0.05


def test_products_of_two_activations_are_in_bfloat16_too():
    def said(p, x):
        q, k = x @ p["q"], x @ p["k"]
        return jnp.einsum("bqk,bkd->bqd", jax.nn.softmax(q @ k.swapaxes(1, 2)), x).mean(1) @ p["out"]

    network = plain(said, "attention", q=(4, 3), k=(4, 3), out=(4, 5))
    x = jnp.asarray(RNG.standard_normal((2, 3, 4)), jnp.float32)
    made = freeze(network, *network.init(None), x, precision="bfloat16")
    text = str(jax.make_jaxpr(lambda x: made.network.apply(made.params, made.state, x, train=False)[0])(x))
    assert text.count("dot_general") == 5 and text.count("preferred_element_type=float32") == 5
    assert 1e-5 < made.report.largest_change < 0.05


def test_tables_are_kept_in_bfloat16():
    network = plain(lambda p, x: p["table"][x].mean(1) @ p["a"], "words", table=(9, 4), a=(4, 5))
    made = freeze(network, *network.init(None), jnp.asarray([[1, 2], [8, 0]]), precision="bfloat16")
    assert made.params["frozen"]["table"].dtype == BF16
    table, kernel = rounded(network.init(None)[0]["table"]), rounded(network.init(None)[0]["a"])
    expected = rounded(table[[[3, 4, 4, 5]]].mean(1)) @ kernel
    output = run(made.network, made.params, {}, jnp.asarray([[3, 4, 4, 5]]))
    np.testing.assert_allclose(output.logits, expected, rtol=1e-6)


def in_int8(x, axes):
    largest = np.abs(x).max(axes, keepdims=True)
    scale = np.where(largest > 0, largest, 1) / 127
    return np.round(x / scale), scale


def test_int8_by_hand():
    """A row of zeros, a channel of zeros, and rows that differ by orders of magnitude."""
    rows = np.float64([[0, 0, 0], [1, -2, 0.5], [1e-6, 3e-6, 0], [1e4, 5e3, -3]])
    kernel, scale, bias = RNG.standard_normal((3, 5)), np.float64([1, 2, 0, 4, -5]), RNG.standard_normal(5)
    params = {"kernel": kernel, "scale": scale, "bias": bias}
    network = plain(lambda p, x: (x @ p["kernel"]) * p["scale"] + p["bias"], params=jax.tree.map(jnp.float32, params))
    made = freeze(network, *network.init(None), jnp.float32(rows), precision="int8")
    (x, by_row), (w, by_channel) = in_int8(rows, 1), in_int8(kernel * scale, 0)
    np.testing.assert_array_equal(made.params["frozen"]["kernel"]["values"], w)
    logits = run(made.network, made.params, {}, jnp.float32(rows)).logits
    np.testing.assert_allclose(logits, (x @ w) * by_row * by_channel + bias, rtol=1e-5)


def test_an_int8_convolution_by_hand():
    """Each example has its own scale, so that no other moves it."""
    network = plain(lambda p, x: convolve(x, p["a"], window_strides=(2, 2)).sum((1, 2)), "conv", a=(3, 3, 3, 5))
    params, state = network.init(None)
    made = freeze(network, params, state, IMAGES, precision="int8")
    images = IMAGES * np.float32([1, 10, 0.1, 3])[:, None, None, None]
    (x, by_example), (w, by_channel) = in_int8(images, (1, 2, 3)), in_int8(np.asarray(params["a"]), (0, 1, 2))
    sums = convolve(jnp.float32(x), jnp.float32(w), window_strides=(2, 2))  # whole numbers below 2^24: exact
    logits = run(made.network, made.params, state, images).logits
    np.testing.assert_allclose(logits, (sums * by_example * by_channel).sum((1, 2)), rtol=1e-5, atol=1e-4)
    one = run(made.network, made.params, state, images[1:2]).logits
    np.testing.assert_allclose(one[0], logits[1], rtol=1e-6)
    text = str(jax.make_jaxpr(lambda x: made.network.apply(made.params, state, x, train=False)[0])(IMAGES))
    assert "i32[4,4,4,5] = conv_general_dilated" in text


# --- derivatives, and where it is used ---


@pytest.mark.parametrize("kind", ["every way", "small_cnn"])
@pytest.mark.parametrize("precision", ["float32", "bfloat16", "int8"])
def test_the_derivative_in_the_inputs(kind, precision):
    network, made = KINDS[kind][0], frozen(kind, precision)
    weights = np.float32(RNG.standard_normal((4, 5)))

    def derivative(network, params, state):
        loss = lambda x: jnp.vdot(weights, network.apply(params, state, x, train=False)[0].logits)
        return jax.jit(jax.grad(loss))(jnp.asarray(IMAGES))

    expected = derivative(network, *variables(kind))
    largest = np.abs(expected).max()
    assert largest > 1e-3
    error = np.abs(derivative(made.network, made.params, made.state) - expected).max() / largest
    assert error < {"float32": 1e-5, "bfloat16": 0.1, "int8": 0.2}[precision]


def test_derivatives_of_their_own_are_kept():
    """ReLU's is 0 at 0, where that of the maximum that it computes is 1/2."""

    @jax.custom_vjp
    def tripled(x):
        return x

    tripled.defvjp(lambda x: (x, None), lambda _, g: (3.0 * g,))
    network = plain(lambda p, x: tripled(jax.nn.relu(x @ p["a"])) @ p["b"], "own", a=(3, 4), b=(4, 5))
    params, state = network.init(None)
    for precision in ("float32", "bfloat16", "int8"):
        made = freeze(network, params, state, jnp.ones((2, 3)), precision=precision)
        gradient = jax.grad(lambda x: made.network.apply(made.params, state, x, train=False)[0].logits.sum())  # noqa: B023
        np.testing.assert_array_equal(gradient(jnp.zeros((2, 3))), 0)
        expected = 3.0 * np.asarray(params["a"]) @ np.where(params["a"].sum(0) > 0, params["b"].sum(1), 0)
        np.testing.assert_allclose(gradient(jnp.ones((1, 3)))[0], expected, rtol=0.02)


def test_int8_passes_derivatives_straight_through():
    network = plain(lambda p, x: x @ p["a"], "linear", a=(3, 5))
    made = freeze(network, *network.init(None), jnp.ones((2, 3)), precision="int8")
    kept = made.params["frozen"]["a"]
    slopes = jax.jacobian(lambda x: made.network.apply(made.params, {}, x, train=False)[0].logits)(
        jnp.float32([0.3, 2, -1])
    )
    np.testing.assert_allclose(slopes, (kept["values"] * kept["scale"]).T, rtol=1e-6)


def test_members_may_be_frozen_before_they_are_joined():
    """One program for all, though each has constants of its own."""
    members = [trained(SMALL, seed) for seed in (1, 2)]
    each = [freeze(SMALL, *member, IMAGES, parts=()) for member in members]
    both = ensemble([each[0].network] * 2)
    joined = join_members([made.params for made in each]), join_members([made.state for made in each])
    original = ensemble([SMALL] * 2)
    expected = run(original, *(join_members([member[i] for member in members]) for i in (0, 1)), IMAGES)
    chex.assert_trees_all_close(run(both, *joined, IMAGES), expected, rtol=1e-5, atol=1e-5)
    assert program(both, *joined)["conv_general_dilated"] == 6 and program(both, *joined)["rsqrt"] == 0


@functools.cache
def one_step(form, devices, precision):
    """The gradient and the metrics of one step with the teacher, frozen if there is a precision."""
    student, teacher = toy(2), toy(4)
    batch, given = toy_batch(), trained(teacher)
    if precision:
        made = freeze(teacher, *given, batch.inputs, precision=precision)
        teacher, given = made.network, (made.params, made.state)
    runner = make_runner(form, jax.devices()[:devices])
    objective = bind(CrossEntropy() + KD(temperature=2.0) + SRRL(), shapes(student), shapes(teacher), DataInfo(CLASSES))
    optimizer = build(SGD(learning_rate=1.0, momentum=0.0), Clock(), objective)
    state = init_state(student, objective, optimizer, seed=0)
    before = jax.tree.map(np.array, state.params)
    step = runner.compile(make_step(student, teacher, objective, optimizer, axis=runner.axis))
    after, metrics = step(runner.place(state), runner.place(Variables(*given)), runner.place_batch(batch))
    return jax.tree.map(lambda a, b: a - np.asarray(b), before, after.params), jax.device_get(metrics)


@pytest.mark.parametrize(("form", "devices"), [("jit", 1), ("jit", 8), ("pmap", 8)])
def test_a_step_with_a_frozen_teacher(form, devices):
    """Its outputs, and the classifier that the objective calls."""
    chex.assert_trees_all_close(one_step(form, devices, "float32"), one_step("jit", 1, None), rtol=1e-4, atol=1e-5)


def test_devices_make_no_difference_to_int8():
    chex.assert_trees_all_close(one_step("pmap", 8, "int8"), one_step("jit", 1, "int8"), rtol=1e-4, atol=1e-5)


def test_it_is_traced_once():
    made = frozen("small_cnn")
    said = traced_once(lambda params, x: made.network.apply(params, made.state, x, train=False)[0].logits)
    said(made.params, IMAGES)
    said(made.params, 2 * IMAGES)


# --- parts, refusals, the report ---


def test_parts_run_on_the_original_parameters():
    network, made = SMALL, frozen("small_cnn", "bfloat16")
    params, state = variables("small_cnn")
    rows = jnp.ones((2, 12))
    for name, arrays in (("classify", (rows,)), ("norms", ())):
        expected = network.parts[name](params, state, *arrays)
        chex.assert_trees_all_equal(made.network.parts[name](made.params, made.state, *arrays), expected)
    assert made.report.bytes_of_parts == made.report.bytes_before
    chosen = frozen("small_cnn", parts=("norms",))
    assert list(chosen.network.parts) == ["norms"] and frozen("small_cnn", parts=()).network.parts == {}
    with pytest.raises(ValueError, match="parts has 'head', and the parts of small_cnn are: classify, norms"):
        freeze(network, params, state, IMAGES, parts=("head",))


def test_it_does_not_train():
    made = frozen("small_cnn")
    with pytest.raises(ValueError, match=r"small_cnn is frozen: .* cannot be run in training mode"):
        made.network.apply(made.params, made.state, IMAGES, train=True)


def test_what_changes_too_much_is_refused():
    with pytest.raises(
        ValueError, match=r"Freezing small_cnn changes its output.* more than tolerance=0: pass fold=False"
    ):
        freeze(SMALL, *variables("small_cnn"), IMAGES, tolerance=0.0)
    with pytest.raises(ValueError, match="precision='fp8'; it must be one of float32, bfloat16, int8"):
        freeze(SMALL, *variables("small_cnn"), IMAGES, precision="fp8")


def test_logits_must_be_there_and_finite():
    silent = Network(lambda key: ({}, {}), lambda p, s, x, **_: (ModelOutput(embedding=x), s), name="silent")
    with pytest.raises(ValueError, match="silent gives no logits, by which a frozen network is compared"):
        freeze(silent, {}, {}, IMAGES)
    network = from_apply(lambda p, x: jnp.where(x > 0, x @ p["a"], -jnp.inf), {"a": jnp.eye(2)}, name="masked")
    rows = jnp.float32([[1, -1], [2, 3]])
    assert freeze(network, *network.init(None), rows, precision="int8").report.largest_change < 0.01
    network = from_apply(lambda p, x: 1 / (x @ p["a"] - 1 - 2**-9), {"a": (1 + 2**-9) * jnp.eye(2)}, name="pole")
    with pytest.raises(ValueError, match="pole in bfloat16 gives logits that are not finite; use another precision"):
        freeze(network, *network.init(None), rows, precision="bfloat16")


def test_the_report_is_one_line():
    line = str(frozen("small_cnn", "bfloat16").report)
    assert "\n" not in line
    assert line.startswith("small_cnn in bfloat16: 6 normalisations folded, ")
    assert " kB (and the original " in line and " for classify, norms); on 4 examples " in line
    assert "for" not in str(frozen("small_cnn", parts=()).report)

"""BatchNorm: PyTorch's semantics, precision, and one answer on any number of devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from kdjax.models.functional import functionalise
from kdjax.models.zoo.normalization import BatchNorm

DEVICES = 8
EPSILON = 1e-5


def reference(x, scale, bias):
    """The definition in NumPy: output, batch mean and unbiased batch variance."""
    axes = tuple(range(x.ndim - 1))
    mean, var = x.mean(axes), x.var(axes)
    return (x - mean) / np.sqrt(var + EPSILON) * scale + bias, mean, x.var(axes, ddof=1)


def random_case(shape, dtype=np.float64, seed=0):
    rng = np.random.default_rng(seed)
    channels = shape[-1]
    return (
        (3 * rng.standard_normal(shape) + np.arange(channels)).astype(dtype),
        {"scale": rng.standard_normal(channels).astype(dtype), "bias": rng.standard_normal(channels).astype(dtype)},
        {"mean": rng.standard_normal(channels).astype(dtype), "var": (1 + rng.random(channels)).astype(dtype)},
    )


@pytest.mark.parametrize("shape", [(5, 3), (4, 6, 5, 3)])
def test_training_matches_the_definition(shape):
    x, params, state = random_case(shape)
    expected, mean, var = reference(x, **params)
    with jax.enable_x64(True):
        network = functionalise(lambda rngs: BatchNorm(3, rngs=rngs, momentum=0.3))
        y, after = network.call(*jax.tree.map(jnp.asarray, (params, state)), lambda m: m(jnp.asarray(x)), train=True)
    np.testing.assert_allclose(y, expected, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(after["mean"], 0.7 * state["mean"] + 0.3 * mean, rtol=1e-12)
    np.testing.assert_allclose(after["var"], 0.7 * state["var"] + 0.3 * var, rtol=1e-12)


def test_evaluation_uses_and_keeps_the_running_statistics():
    x, params, state = random_case((4, 5, 5, 3), np.float32)
    network = functionalise(lambda rngs: BatchNorm(3, rngs=rngs))
    y, after = network.call(params, state, lambda m: m(jnp.asarray(x)), train=False)
    expected = (x - state["mean"]) / np.sqrt(state["var"] + EPSILON) * params["scale"] + params["bias"]
    np.testing.assert_allclose(y, expected, rtol=2e-5, atol=2e-6)
    assert after is state


def test_train_and_eval_of_a_module_switch_it():
    module = nnx.Sequential(nnx.Linear(2, 3, rngs=nnx.Rngs(0)), BatchNorm(3))
    x = jax.random.normal(jax.random.key(0), (6, 2))
    module.eval()
    before = module.layers[1].mean[...]
    module(x)
    np.testing.assert_array_equal(module.layers[1].mean[...], before)
    module.train()
    module(x)
    assert not np.array_equal(module.layers[1].mean[...], before)


def test_variance_keeps_its_digits_when_the_mean_is_large():
    """E[x^2] - E[x]^2 in float32 would be off by whole units here: the squares are 1e8, their spacing is 8."""
    x = (1e4 + np.random.default_rng(0).standard_normal((64, 8, 8, 2))).astype(np.float32)
    module = BatchNorm(2, momentum=1.0)
    y = module(jnp.asarray(x))
    exact, mean, var = reference(x.astype(np.float64), 1.0, 0.0)
    np.testing.assert_allclose(module.mean[...], mean, rtol=1e-6)
    np.testing.assert_allclose(module.var[...], var, rtol=1e-4)
    np.testing.assert_allclose(y, exact, atol=2e-3)  # x itself has a spacing of 1e-3


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_half_precision_inputs_are_evaluated_in_float32(dtype):
    x, params, state = random_case((16, 4, 4, 3), np.float32)
    x = jnp.asarray(x + 50, dtype)
    network = functionalise(lambda rngs: BatchNorm(3, rngs=rngs))
    y, after = network.call(params, state, lambda m: m(x), train=False)
    exact, _ = network.call(params, state, lambda m: m(x.astype(jnp.float32)), train=False)
    assert y.dtype == dtype and after is state
    np.testing.assert_array_equal(y, exact.astype(dtype))


@pytest.mark.parametrize("shift", [0.0, 50.0, -1000.0], ids="mean {}".format)
@pytest.mark.parametrize("near", [True, False], ids=["trained", "fresh"])
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_half_precision_inputs_lose_nothing(dtype, near, shift):
    """Outputs, statistics and gradients against the definition in float64, of the rounded inputs; the running mean is near the
    batch's as in training, or 0 as at its beginning."""
    x, params, state = random_case((16, 4, 4, 3), np.float32)
    x = jnp.asarray(x + shift, dtype)
    state["mean"] = np.asarray(x, np.float32).mean((0, 1, 2)) + 0.5 if near else np.zeros(3, np.float32)
    weights = jnp.asarray(np.random.default_rng(1).standard_normal(x.shape), dtype).astype(jnp.float32)

    def share(params, x):
        network = functionalise(lambda rngs: BatchNorm(3, rngs=rngs))
        y, after = network.call(params, state, lambda m: m(x), train=True)
        return jnp.sum(weights * y), (y, after)

    step = jax.value_and_grad(share, argnums=(0, 1), has_aux=True)
    (_, (y, after)), (by_params, by_x) = jax.jit(step)(params, x)
    assert y.dtype == dtype and after["var"].dtype == by_params["bias"].dtype == jnp.float32
    with jax.enable_x64(True):
        wide = jax.tree.map(lambda v: jnp.asarray(v, jnp.float64), (params, x))
        (_, (exact, after_exact)), (by_params_exact, by_x_exact) = step(*wide)
    step_of = float(jnp.finfo(dtype).eps)
    np.testing.assert_allclose(np.asarray(y, np.float64), exact, rtol=step_of, atol=1e-4)
    np.testing.assert_allclose(after["mean"], after_exact["mean"], rtol=1e-6)
    far = np.max(
        (np.asarray(x, np.float64).mean((0, 1, 2)) - state["mean"]) ** 2 / np.asarray(x, np.float64).var((0, 1, 2))
    )
    lost = 1e-7 * far if dtype == jnp.bfloat16 else 0.0  # by one pass: less than rounding to the type did
    np.testing.assert_allclose(after["var"], after_exact["var"], rtol=1e-6 + lost)
    for name in ("scale", "bias"):
        np.testing.assert_allclose(by_params[name], by_params_exact[name], rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(np.asarray(by_x, np.float64), by_x_exact, rtol=step_of, atol=2e-4)


def test_half_precision_channels_of_one_value_have_no_variance():
    x = jnp.full((64, 4, 4, 2), 300.0, jnp.bfloat16)
    module = BatchNorm(2, momentum=1.0)
    module(x)
    assert np.all(module.var[...] >= 0) and np.all(np.asarray(module.var[...]) < 0.02)
    np.testing.assert_allclose(module.mean[...], 300.0, rtol=1e-6)


@pytest.mark.parametrize("shape", [(1, 3), (1, 1, 1, 3)])
def test_one_value_a_channel(shape):
    x, params, state = random_case(shape, np.float32)
    network = functionalise(lambda rngs: BatchNorm(3, rngs=rngs))

    def total(params, x):
        y, after = network.call(params, state, lambda m: m(x), train=True)
        return jnp.sum(y), (y, after)

    (_, (y, after)), gradients = jax.value_and_grad(total, argnums=(0, 1), has_aux=True)(params, jnp.asarray(x))
    np.testing.assert_allclose(y.reshape(3), params["bias"], atol=1e-6)
    np.testing.assert_allclose(after["var"], 0.9 * state["var"], rtol=1e-6)
    assert all(np.all(np.isfinite(g)) for g in jax.tree.leaves(gradients))


def test_without_affine_there_are_no_parameters():
    module = BatchNorm(3, affine=False)
    assert not jax.tree.leaves(nnx.state(module, nnx.Param))
    x, _, _ = random_case((8, 3), np.float32)
    np.testing.assert_allclose(module(jnp.asarray(x)), reference(x, 1.0, 0.0)[0], rtol=1e-4, atol=1e-5)


def test_no_gradient_flows_into_the_running_statistics():
    x, params, state = random_case((8, 3), np.float32)
    network = functionalise(lambda rngs: BatchNorm(3, rngs=rngs))

    def total(x):
        _, after = network.call(params, state, lambda m: m(x), train=True)
        return jnp.sum(after["mean"]) + jnp.sum(after["var"])

    np.testing.assert_array_equal(jax.grad(total)(jnp.asarray(x)), 0)


def test_numpy_statistics_of_the_caller_are_not_written_to():
    x, params, state = random_case((8, 3), np.float32)
    before = {name: value.copy() for name, value in state.items()}
    network = functionalise(lambda rngs: BatchNorm(3, rngs=rngs))
    network.call(params, state, lambda m: m(jnp.asarray(x)), train=True)
    for name, value in before.items():
        np.testing.assert_array_equal(state[name], value)


def test_wrong_number_of_channels_is_refused():
    with pytest.raises(ValueError, match="4 channels, this BatchNorm is for 3"):
        BatchNorm(3)(jnp.zeros((2, 4)))


@pytest.mark.parametrize("how", ["pmap", "shard_map", "jit"])
def test_same_statistics_and_gradients_on_eight_devices(how):
    """Values, running statistics and gradients of a loss that is uneven over examples, in float64.

    Each device differentiates its own share of the loss and the gradients of parameters are summed once.
    """
    x, params, state = random_case((2 * DEVICES, 3, 3, 4))
    weights = np.random.default_rng(1).standard_normal(x.shape)
    with jax.enable_x64(True):
        network = functionalise(lambda rngs: BatchNorm(4, rngs=rngs))
        params, state = jax.tree.map(jnp.asarray, (params, state))

        def step(params, x, weights, axis=None):
            def share(params, x):
                y, after = network.call(params, state, lambda m: m(x), train=True, axis=axis)
                return jnp.sum(weights * jnp.tanh(y)), (y, after)

            (_, (y, after)), (dparams, dx) = jax.value_and_grad(share, argnums=(0, 1), has_aux=True)(params, x)
            if axis is not None:
                dparams = jax.lax.psum(dparams, axis)
            return (y, dx), (dparams, after)

        expected = jax.jit(step)(params, x, weights)
        mesh = jax.make_mesh((DEVICES,), ("data",), axis_types=(AxisType.Auto,))
        rows, everywhere = PartitionSpec("data"), PartitionSpec()
        if how == "pmap":
            split = [v.reshape(DEVICES, -1, *v.shape[1:]) for v in (x, weights)]
            mapped = jax.pmap(lambda p, x, w: step(p, x, w, "data"), axis_name="data", in_axes=(None, 0, 0))
            by_row, replicated = mapped(params, *split)
            got = jax.tree.map(lambda v: v.reshape(x.shape), by_row), jax.tree.map(lambda v: v[-1], replicated)
        elif how == "shard_map":
            mapped = jax.shard_map(
                lambda p, x, w: step(p, x, w, "data"),
                mesh=mesh,
                in_specs=(everywhere, rows, rows),
                out_specs=((rows, rows), (everywhere, everywhere)),
                check_vma=False,
            )
            got = jax.jit(mapped)(params, x, weights)
        else:
            got = jax.jit(step)(params, *jax.device_put((x, weights), NamedSharding(mesh, rows)))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-11, atol=1e-13), got, expected)


# --- groups ---


def grouped(groups):
    def make(rngs):
        module = BatchNorm(3, rngs=rngs, momentum=0.3)
        module.groups = groups
        return module

    return functionalise(make)


@pytest.mark.parametrize("groups", [2, 4, 8])
def test_each_group_is_normalised_by_itself(groups):
    x, params, state = random_case((16, 4, 5, 3))
    parts = [reference(rows, **params) for rows in np.split(x, groups)]
    with jax.enable_x64(True):
        y, after = grouped(groups).call(
            *jax.tree.map(jnp.asarray, (params, state)), lambda m: m(jnp.asarray(x)), train=True
        )
    np.testing.assert_allclose(y, np.concatenate([part[0] for part in parts]), rtol=1e-10, atol=1e-12)
    for i, name in ((1, "mean"), (2, "var")):
        mean = np.mean([part[i] for part in parts], axis=0)
        np.testing.assert_allclose(after[name], 0.7 * state[name] + 0.3 * mean, rtol=1e-12)


@pytest.mark.parametrize("form", ["jit", "pmap"])
def test_groups_do_not_depend_on_the_devices(form):
    x, params, state = random_case((16, 4, 5, 3))
    with jax.enable_x64(True):
        own = jax.tree.map(jnp.asarray, (params, state))

        def run(params, state, x, axis=None):
            y, after = grouped(8).call(params, state, lambda m: m(x), train=True, axis=axis)
            return y, after

        expected, wanted = run(*own, jnp.asarray(x))
        if form == "pmap":
            function = jax.pmap(
                lambda p, s, x: run(p, s, x, "data"), "data", in_axes=(None, None, 0), out_axes=(0, None)
            )
            y, after = function(*own, x.reshape(DEVICES, 2, *x.shape[1:]))
            y = y.reshape(x.shape)
        else:
            mesh = jax.make_mesh((DEVICES,), ("data",), axis_types=(AxisType.Auto,))
            rows = NamedSharding(mesh, PartitionSpec("data"))
            function = jax.jit(run, in_shardings=(None, None, rows))
            y, after = function(*own, x)
            text = function.lower(*own, x).compile().as_text()
            assert "all-gather" not in text and text.count("all-reduce(") <= 2, "only the running averages are shared"
    np.testing.assert_allclose(y, expected, rtol=1e-10, atol=1e-12)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12), after, wanted)


def test_groups_that_do_not_fit_are_refused():
    x, params, state = random_case((16, 4, 5, 3), np.float32)
    with pytest.raises(ValueError, match="3 groups of BatchNorm do not divide 16 rows over 1 devices"):
        grouped(3).call(params, state, lambda m: m(jnp.asarray(x)), train=True)
    with pytest.raises(ValueError, match="4 groups of BatchNorm do not divide 16 rows over 8 devices"):
        jax.pmap(lambda x: grouped(4).call(params, state, lambda m: m(x), train=True, axis="data")[0], "data")(
            x.reshape(8, 2, 4, 5, 3)
        )

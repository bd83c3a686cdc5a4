"""Means over masked rows, and over rows spread over devices: values, and above all gradients.

Networks play no part here. The batch of 16 rows lies two to a device, and its mask is uneven: one device has no row.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, PartitionSpec

from kdjax.reduction import gather_rows, group_losses, per_example, sum_over_devices, term_metrics, whole_batch
from kdjax.types import Term

DEVICES = 8


def loss_and_gradient(values, where, **options):
    """The mean over kept rows, and its gradient with respect to every row's value."""
    return jax.value_and_grad(lambda v: sum(group_losses({"a": per_example(v, where, **options)}).values()))(values)


def test_without_a_mask_it_is_the_mean():
    value, gradient = loss_and_gradient(jnp.array([1.0, 2.0, 6.0]), None)
    assert value == 3.0
    np.testing.assert_allclose(gradient, np.full(3, 1 / 3), rtol=1e-6)


def test_masked_rows_count_for_nothing():
    term = per_example(jnp.array([1.0, 2.0, 6.0, 5.0]), jnp.array([True, False, True, True]))
    assert (term.sum, term.count, term.weight, term.group) == (12.0, 3.0, 1.0, "")
    value, gradient = loss_and_gradient(jnp.array([1.0, 2.0, 6.0, 5.0]), np.array([True, False, True, True]))
    assert value == 4.0
    np.testing.assert_allclose(gradient, np.array([1, 0, 1, 1]) / 3, rtol=1e-6)


@pytest.mark.parametrize("junk", [np.nan, np.inf, -np.inf])
def test_what_a_masked_row_holds_is_never_seen(junk):
    value, gradient = loss_and_gradient(jnp.array([1.0, junk, 7.0]), jnp.array([True, False, True]))
    assert value == 4.0
    np.testing.assert_array_equal(gradient, [0.5, 0.0, 0.5])


def test_a_row_mask_covers_all_tokens_of_the_row():
    values = jnp.array([[1.0, 2.0, 3.0], [np.nan, np.nan, np.nan], [6.0, 6.0, 6.0]])
    value, gradient = loss_and_gradient(values, jnp.array([True, False, True]))
    assert value == 4.0  # the mean over six tokens
    np.testing.assert_allclose(gradient, np.array([[1], [0], [1]]) * np.full((3, 3), 1 / 6), rtol=1e-6)


def test_a_token_mask_weighs_every_token_alike():
    values = jnp.array([[1.0, 2.0, np.nan], [9.0, np.nan, np.nan]])
    where = jnp.array([[True, True, False], [True, False, False]])
    value, gradient = loss_and_gradient(values, where)
    assert value == 4.0  # (1 + 2 + 9) / 3, not the mean of two rows' means
    np.testing.assert_allclose(gradient, np.asarray(where) / 3, rtol=1e-6)


def test_a_token_mask_covers_further_dimensions():
    values = jnp.arange(12.0).reshape(2, 3, 2)
    where = jnp.array([[True, False, False], [False, False, True]])
    value, gradient = loss_and_gradient(values, where)
    assert value == np.mean([0, 1, 10, 11])
    np.testing.assert_array_equal(gradient, np.asarray(where)[..., None] * np.full((2, 3, 2), 0.25))


def test_a_mask_of_another_shape_is_refused():
    with pytest.raises(ValueError, match="broadcast"):
        per_example(jnp.zeros(4), jnp.ones(3, bool))
    with pytest.raises(ValueError, match="broadcast"):
        per_example(jnp.zeros(4), jnp.ones((4, 2), bool))


@pytest.mark.parametrize("row", [3.0, np.nan])
def test_an_empty_mask_gives_zero_and_no_gradient(row):
    value, gradient = loss_and_gradient(jnp.full(4, row), jnp.zeros(4, bool))
    assert value == 0.0
    np.testing.assert_array_equal(gradient, 0.0)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize("masked", [False, True])
def test_half_types_are_added_and_counted_in_float32(dtype, masked):
    """bfloat16 has 8 digits: it cannot tell 1001 from 1000, and float16 ends at 65,504."""
    size = 70_001
    term = per_example(jnp.ones(size, dtype), jnp.arange(size) > 0 if masked else None)
    assert term.sum.dtype == term.count.dtype == jnp.float32
    assert term.sum == term.count == size - masked


def test_groups_are_kept_apart_and_weights_applied():
    where = jnp.array([True, True, False])
    terms = {
        "a": per_example(jnp.array([1.0, 3.0, 9.0]), where, group="task"),
        "b": dataclasses.replace(per_example(jnp.array([2.0, 2.0, 2.0])), weight=jnp.asarray(10.0)),
        "c": dataclasses.replace(whole_batch(jnp.asarray(0.5)), weight=4.0),
    }
    losses = group_losses(terms)
    assert losses == {"task": 2.0, "": 22.0}
    metrics = term_metrics(terms)
    assert metrics["loss"] == (24.0, 1.0)
    assert metrics["a"] == (4.0, 2.0)
    assert metrics["b"] == (6.0, 3.0)
    assert metrics["c"] == (0.5, 1.0)


def test_the_group_is_structure_not_data():
    """So that a jitted function may return terms, and `jax.tree.map` leaves the group alone."""
    term = jax.jit(lambda x: per_example(x, group="task"))(jnp.ones(3))
    assert isinstance(term, Term) and term.group == "task"
    assert len(jax.tree.leaves(term)) == 3


def test_without_an_axis_nothing_is_gathered_or_summed():
    x = jnp.arange(3.0)
    assert gather_rows(x, None) is x
    assert sum_over_devices({"a": x}, None)["a"] is x


def random_problem():
    rng = np.random.default_rng(0)
    where = np.ones((2 * DEVICES, 3), bool)
    where[5:] = rng.random((2 * DEVICES - 5, 3)) < 0.5
    where[2:4] = False  # all that the second device holds
    return {"w": rng.standard_normal(4), "v": rng.standard_normal((4, 3))}, rng.standard_normal((16, 4)), where


def make_terms(params, x, where, axis):
    """A token loss and a row loss with a mask each, and a scalar of the whole batch."""
    tokens = jnp.square(x @ params["v"])
    rows = jnp.tanh(x @ params["w"])
    everyone = gather_rows(rows, axis)
    relation = jnp.mean(jnp.square(everyone[:, None] - everyone[None, :] - 1.0))
    return {
        "tokens": dataclasses.replace(per_example(tokens, where), weight=0.3),
        "rows": per_example(rows, where[:, 0], group="task"),
        "relation": dataclasses.replace(whole_batch(relation), weight=2.0),
    }


def shared_out(params, x, where, axis=None):
    """Every device differentiates its own share; gradients are summed once."""

    def loss(params):
        terms = make_terms(params, x, where, axis)
        return sum(group_losses(terms, axis).values()), terms

    gradients, terms = jax.grad(loss, has_aux=True)(params)
    return sum_over_devices(gradients, axis), term_metrics(terms, axis)["loss"][0]


def differentiated_sum(params, x, where, axis=None):
    """The wrong form: the loss is summed over devices first, then differentiated, then gradients are summed."""

    def loss(params):
        terms = make_terms(params, x, where, axis)
        return sum_over_devices(sum(group_losses(terms, axis).values()), axis)

    value, gradients = jax.value_and_grad(loss)(params)
    return sum_over_devices(gradients, axis), value


def local_means(params, x, where, axis=None):
    """The other wrong form: each device takes the mean of its own rows, and the means are averaged."""

    def loss(params):
        terms = make_terms(params, x, where, axis)
        return sum(group_losses(terms).values())

    value, gradients = jax.value_and_grad(loss)(params)
    return jax.lax.pmean(gradients, axis), jax.lax.pmean(value, axis)


def spread(step, how, problem):
    """A step on eight devices: `(gradients, loss)`, checked to be alike on all of them under pmap."""
    params, x, where = problem
    if how == "pmap":
        rows = [v.reshape(DEVICES, 2, *v.shape[1:]) for v in (x, where)]
        everywhere = jax.pmap(lambda p, x, w: step(p, x, w, "data"), "data", in_axes=(None, 0, 0))(params, *rows)
        for leaf in jax.tree.leaves(everywhere):
            np.testing.assert_array_equal(leaf, np.broadcast_to(leaf[0], leaf.shape))
        return jax.tree.map(lambda leaf: leaf[0], everywhere)
    mesh = jax.make_mesh((DEVICES,), ("data",), axis_types=(AxisType.Auto,))
    none, by_row = PartitionSpec(), PartitionSpec("data")
    mapped = jax.shard_map(
        lambda p, x, w: step(p, x, w, "data"),
        mesh=mesh, in_specs=(none, by_row, by_row), out_specs=none, check_vma=False,
    )  # fmt: skip
    return jax.jit(mapped)(params, x, where)


def assert_same(found, expected):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-14), found, expected)


def reference():
    """Gradients and loss on one device with every mean written out, without `kdjax.reduction`."""
    params, x, where = random_problem()

    def loss(params):
        rows = jnp.tanh(x @ params["w"])
        tokens = jnp.sum(jnp.square(x @ params["v"]) * where) / where.sum()
        relation = jnp.mean(jnp.square(rows[:, None] - rows[None, :] - 1.0))
        return 0.3 * tokens + jnp.sum(rows * where[:, 0]) / where[:, 0].sum() + 2.0 * relation

    value, gradients = jax.value_and_grad(loss)(params)
    return gradients, value


def test_one_device_gives_the_formula():
    with jax.enable_x64(True):
        assert_same(shared_out(*random_problem()), reference())


@pytest.mark.parametrize("how", ["pmap", "shard_map"])
def test_eight_devices_give_the_gradient_of_one(how):
    """Per-example terms with an uneven mask, and `whole_batch`, whose share is an eighth on each device."""
    with jax.enable_x64(True):
        assert_same(spread(shared_out, how, random_problem()), reference())


@pytest.mark.parametrize("how", ["pmap", "shard_map"])
def test_the_comparison_catches_a_differentiated_sum(how):
    """Its value is right; its gradient is eight times too large."""
    with jax.enable_x64(True):
        gradients, value = spread(differentiated_sum, how, random_problem())
        expected, expected_value = reference()
        assert_same(value, expected_value)
        assert_same(gradients, jax.tree.map(lambda g: DEVICES * g, expected))
        with pytest.raises(AssertionError):
            assert_same(gradients, expected)


def test_the_comparison_catches_means_of_local_means():
    with jax.enable_x64(True):
        gradients, value = spread(local_means, "shard_map", random_problem())
        expected, expected_value = reference()
        for wrong, right in ((gradients, expected), (value, expected_value)):
            with pytest.raises(AssertionError):
                assert_same(wrong, right)


def test_an_empty_mask_on_all_devices_gives_zero_and_no_gradient():
    def step(params, x, where, axis):
        def loss(params):
            return group_losses({"a": per_example(jnp.square(x @ params["v"]), where)}, axis)[""]

        value, gradients = jax.value_and_grad(loss)(params)
        return sum_over_devices((gradients, value), axis)

    params, x, where = jax.tree.map(np.float32, random_problem())
    gradients, value = spread(step, "pmap", (params, x, np.zeros(where.shape, bool)))
    assert value == 0.0
    np.testing.assert_array_equal(gradients["v"], 0.0)


def test_gathered_rows_are_in_global_order():
    x = np.arange(16.0, dtype=np.float32).reshape(DEVICES, 2)
    gathered = jax.pmap(lambda x: gather_rows(x, "data"), "data")(x)
    np.testing.assert_array_equal(gathered, np.tile(np.arange(16.0), (DEVICES, 1)))

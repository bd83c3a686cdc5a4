"""Mixup: shares keyed by the example, partners by the global batch, and the same inputs on one device and on eight."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from kdjax.training.mixup import mixup

INPUTS = np.random.default_rng(0).normal(size=(32, 3, 2)).astype(np.float32)
INDEX = np.arange(500, 532, dtype=np.int32)
KEY = jax.random.key(7)


@functools.partial(jax.jit, static_argnames="strength")
def mixed(inputs, index, epoch, key, strength=0.5):
    return mixup(inputs, index, epoch, key, strength=strength)


def shares_of(index, epoch=0, key=KEY, strength=1.0):
    """Read off inputs of which every other one is 1 and the rest 0."""
    ones = (np.arange(len(index)) % 2).astype(np.float32)
    x = np.asarray(mixed(ones, index, epoch, key, strength=strength))
    return np.where(ones == 1, x, 1 - x)


def mesh():
    assert jax.device_count() == 8, "run under tests/conftest.py, which asks for eight virtual devices"
    return jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))


def test_the_partner_is_the_row_before():
    shares = shares_of(INDEX, strength=0.5)[:, None, None]
    want = shares * INPUTS + (1 - shares) * np.roll(INPUTS, 1, axis=0)
    np.testing.assert_allclose(mixed(INPUTS, INDEX, 0, KEY), want, atol=1e-5)


@pytest.mark.parametrize("strength, variance", [(1.0, 1 / 12), (0.2, 1 / 5.6)])
def test_shares_have_the_beta_distribution(strength, variance):
    shares = shares_of(np.arange(4000), strength=strength)
    assert shares.min() >= 0 and shares.max() <= 1
    assert abs(shares.mean() - 0.5) < 0.03 and abs(shares.var() - variance) < 0.01
    if strength == 1:
        np.testing.assert_allclose(np.histogram(shares, 10, (0, 1))[0] / 400, 1, atol=0.2)


def test_shares_depend_on_key_epoch_and_index_alone():
    first = shares_of(INDEX)
    np.testing.assert_allclose(shares_of(INDEX[8:16]), first[8:16], atol=1e-6)
    np.testing.assert_allclose(shares_of(INDEX[::-1].copy())[::-1], first, atol=1e-6)
    assert (np.abs(shares_of(INDEX, epoch=1) - first) > 1e-4).mean() > 0.9
    assert (np.abs(shares_of(INDEX, key=jax.random.key(8)) - first) > 1e-4).mean() > 0.9


def test_every_view_of_a_batch_is_mixed_alike():
    again = mixed(INPUTS + 1, INDEX, 0, KEY)
    np.testing.assert_allclose(again, mixed(INPUTS, INDEX, 0, KEY) + 1, atol=1e-5)


def test_a_mapped_axis_gives_the_global_batch():
    want = mixed(INPUTS, INDEX, 2, KEY)

    def local(inputs, index):
        return mixup(inputs, index, 2, KEY, strength=0.5, axis="data")

    pieces = jax.pmap(local, axis_name="data")(INPUTS.reshape(8, 4, 3, 2), INDEX.reshape(8, 4))
    np.testing.assert_allclose(np.asarray(pieces).reshape(INPUTS.shape), want, atol=1e-6)
    spec = PartitionSpec("data")
    mapped = jax.jit(jax.shard_map(local, mesh=mesh(), in_specs=(spec, spec), out_specs=spec))
    np.testing.assert_allclose(mapped(INPUTS, INDEX), want, atol=1e-6)


def test_a_sharded_batch_gives_the_same():
    rows = NamedSharding(mesh(), PartitionSpec("data"))
    got = mixed(jax.device_put(INPUTS, rows), jax.device_put(INDEX, rows), jnp.int32(2), KEY)
    np.testing.assert_allclose(got, mixed(INPUTS, INDEX, 2, KEY), atol=1e-6)

"""Mixup: shares keyed by the example, partners by the global batch, and the same inputs on one device and on eight."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from kdjax.models import from_apply
from kdjax.objectives import DKD, KD, CrossEntropy, LabelSmoothing, TfKDRegularizer, bind
from kdjax.training import make_step
from kdjax.training.mixup import cuts, mix_batch, mixup
from kdjax.types import Batch, Clock, Context, DataInfo, ModelOutput

INPUTS = np.random.default_rng(0).normal(size=(32, 3, 2)).astype(np.float32)
INDEX = np.arange(500, 532, dtype=np.int32)
KEY = jax.random.key(7)


@jax.jit
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


# --- labels, and CutMix ---

LABELS = np.arange(32, dtype=np.int32) % 5
PIXELS = np.random.default_rng(1).random((32, 6, 8, 1)).astype(np.float32)


@functools.partial(jax.jit, static_argnames=("mix", "cut"))
def batch_of(pixels, labels, labelled, mix=0.0, cut=0.0):
    batch = Batch.of(pixels, labels, index=INDEX, labelled=labelled)
    return mix_batch({"main": pixels}, batch, 2, KEY, mixup=mix, cutmix=cut)


def onehot(labels, share):
    """`share * onehot(y_i) + (1 - share) * onehot(y_(i-1))`."""
    own = np.eye(5)[labels]
    return share[:, None] * own + (1 - share[:, None]) * np.roll(own, 1, axis=0)


@pytest.mark.parametrize("smoothing", [None, True, False])
@pytest.mark.parametrize("soft", [False, True])
def test_labels_are_mixed_with_their_inputs(smoothing, soft):
    """The loss is that of the mixed distribution, by hand; a pair with an unlabelled input has no label."""
    labelled = np.arange(32) != 7
    given = np.eye(5, dtype=np.float32)[LABELS] if soft else LABELS
    views, batch = batch_of(PIXELS, given, labelled, mix=0.5)
    share = shares_of(INDEX, epoch=2, strength=0.5)
    pairs = share[:, None, None, None]
    np.testing.assert_allclose(views["main"], pairs * PIXELS + (1 - pairs) * np.roll(PIXELS, 1, axis=0), atol=1e-6)
    logits = np.random.default_rng(2).normal(size=(32, 5)).astype(np.float32)
    q = onehot(LABELS, share)
    objective = CrossEntropy() if smoothing is None else LabelSmoothing(smoothing=0.2, over_all_classes=smoothing)
    if smoothing is not None:
        q = 0.8 * q + (0.2 / 5 if smoothing else 0.2 * (1 - q) / 4)
    ctx = Context(ModelOutput(logits=jnp.asarray(logits)), None, batch, Clock().at(0))
    term = objective.terms(None, ctx)
    values = -(q * np.asarray(jax.nn.log_softmax(logits))).sum(-1)
    counted = labelled & np.roll(labelled, 1)
    assert counted.sum() == 30 == term.count
    np.testing.assert_allclose(term.sum, values[counted].sum(), rtol=1e-5)


def test_cutmix_shows_a_rectangle_of_the_neighbour_and_its_share_of_the_label():
    views, batch = batch_of(PIXELS, LABELS, np.ones(32, bool), cut=1.0)
    shown, before = np.asarray(views["main"]), np.roll(PIXELS, 1, axis=0)
    theirs = (shown == before)[..., 0]
    assert ((shown == PIXELS)[..., 0] | theirs).all()
    np.testing.assert_allclose(batch.targets.share, 1 - theirs.mean((1, 2)), atol=1e-6)
    np.testing.assert_array_equal(batch.targets.second, np.roll(LABELS, 1))
    for own in theirs:
        rows, columns = own.any(1), own.any(0)
        assert (own == rows[:, None] & columns[None]).all() and np.abs(np.diff(rows.astype(int))).sum() <= 2
    assert len(np.unique(np.asarray(batch.targets.share))) > 5


def test_the_areas_of_cutmix_are_those_of_the_paper():
    """Against rectangles drawn by NumPy as the released code draws them."""
    own = np.asarray(jax.jit(lambda i: cuts(i, 0, KEY, 1.0, 32, 32))(np.arange(3000, dtype=np.int32)))
    rng = np.random.default_rng(0)
    half = np.floor(np.sqrt(1 - rng.beta(1.0, 1.0, 20_000)) * 32)[:, None] // 2
    middle = rng.integers(0, 32, (20_000, 2))
    sides = np.clip(middle + half, 0, 32) - np.clip(middle - half, 0, 32)
    want, got = sides.prod(1) / 32**2, 1 - own.mean((1, 2))
    quantiles = np.linspace(0.05, 0.95, 10)
    np.testing.assert_allclose(np.quantile(got, quantiles), np.quantile(want, quantiles), atol=0.03)
    np.testing.assert_allclose(own.mean(0)[::8, ::8], own.mean(0)[31::-8, 31::-8], atol=0.06)


def test_both_ways_at_once():
    views, batch = batch_of(PIXELS, LABELS, np.ones(32, bool), mix=1.0, cut=1.0)
    shown, before = np.asarray(views["main"]), np.roll(PIXELS, 1, axis=0)
    cut = ((shown == PIXELS) | (shown == before)).all((1, 2, 3))
    assert 6 < cut.sum() < 26
    share = np.asarray(batch.targets.share)[:, None, None, None]
    np.testing.assert_allclose(shown[~cut], (share * PIXELS + (1 - share) * before)[~cut], atol=1e-5)
    assert (np.abs(shown - share * PIXELS - (1 - share) * before) > 1e-3).any((1, 2, 3))[cut].sum() > 3


@pytest.mark.parametrize("objective, refused", [(DKD(), "dkd"), (TfKDRegularizer(), "tf_kd_regularizer"), (KD(), "")])
def test_a_step_refuses_labels_that_are_not_mixed(objective, refused):
    output = ModelOutput(logits=jnp.zeros((4, 3)))
    bound = bind(CrossEntropy() + objective, output, output, DataInfo(3))
    make = functools.partial(make_step, None, from_apply(lambda p, x: x, {}), bound, None)
    for options in ({"mix": 0.5}, {"cut": 0.5}):
        if refused:
            with pytest.raises(ValueError, match=f"'{refused}' reads labels, which are not mixed"):
                make(**options)
        else:
            make(**options)


def test_a_row_that_fills_the_batch_up_is_nobodys_partner():
    """Neither its input, nan as it may be, nor its label; the row behind it stays as it is."""
    where = np.arange(32) % 5 != 1
    inputs = np.where(where[:, None, None], INPUTS, np.nan)
    labels = np.where(where, np.arange(32), -1).astype(np.int32)
    batch = Batch.of(inputs, labels, index=INDEX, where=where)
    shown, targets = mix_batch({"main": jnp.asarray(inputs)}, batch, 0, KEY, mixup=1.0, cutmix=0.0)
    behind, real = np.roll(~where, 1), where
    assert np.isfinite(shown["main"][real]).all()
    np.testing.assert_array_equal(shown["main"][behind & real], INPUTS[behind & real])
    assert (np.abs(shown["main"] - INPUTS).max(axis=(1, 2))[real & ~behind] > 0).all()
    mixed = targets.targets
    np.testing.assert_array_equal(mixed.share[behind], 1)
    np.testing.assert_array_equal(mixed.second[real], np.where(behind, labels, np.roll(labels, 1))[real])
    assert targets.labelled[real].all()


def test_stored_images_are_mixed_as_numbers():
    images = np.array([10, 50, 100, 200], np.uint8)[:, None, None, None] * np.ones((1, 2, 2, 1), np.uint8)
    batch = Batch.of(images, np.arange(4, dtype=np.int32), index=np.arange(4, dtype=np.int32))
    mix = functools.partial(mix_batch, batch=batch, epoch=0, key=KEY, mixup=1.0, cutmix=0.0)
    shown, targets = mix({"main": jnp.asarray(images)})
    share = np.asarray(targets.targets.share)[:, None, None, None]
    np.testing.assert_allclose(shown["main"], share * images + (1 - share) * np.roll(images, 1, axis=0), rtol=1e-5)
    with pytest.raises(ValueError, match="these are int32, which numbers things; set mixup to 0"):
        mix({"main": jnp.asarray(images, jnp.int32)})
    cut, _ = mix({"main": jnp.asarray(images)}, mixup=0.0, cutmix=1.0)
    assert cut["main"].dtype == jnp.uint8

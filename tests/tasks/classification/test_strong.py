"""The strong view: a function of (key, epoch, index) like the main one, apart from it, and each part as numpy has it."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from kdjax.experiment.serialization import from_data, to_data
from kdjax.tasks.classification import Strong, Views

OFF = Strong(**{field.name: 0.0 for field in dataclasses.fields(Strong) if field.name != "policy"})
VIEWS = Views(crop_padding=4, flip=True, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4))
IMAGES = np.random.Philox(0).random_raw(64 * 12 * 10 * 3).astype(np.uint8).reshape(64, 12, 10, 3)
INDEX = np.arange(1000, 1064, dtype=np.int32)
KEY = jax.random.key(11)
ROUNDING = 3e-5  # of a normalised view, in another batch size
ANGLE, SLANT, LEAN, ZOOM, GAP, LIGHT, CHANCE, ROW, COLUMN = range(9)


@jax.jit
def both(images, index, epoch, key):
    return VIEWS.train_views(images, index, epoch, key, names=("main", "strong")).views


def random_draws(rows):
    return np.random.default_rng(0).uniform(size=(rows, 9)).astype(np.float32)


def middle_draws(rows):
    return np.full((rows, 9), 0.5, np.float32)


def shown(strong, images, draws):
    return np.asarray(jax.jit(strong.show)(images, draws))


def test_draws_are_even_and_never_change():
    draws = np.asarray(jax.jit(Strong().draws)(jnp.arange(4000), 0, KEY))
    assert draws.shape == (4000, 9) and draws.min() >= 0 and draws.max() < 1
    np.testing.assert_allclose(draws.mean(0), 0.5, atol=0.03)
    np.testing.assert_allclose(np.corrcoef(draws.T), np.eye(9), atol=0.08)
    first = Strong().draws(jnp.arange(1), 2, jax.random.key(0))[0]
    np.testing.assert_allclose(first[:3], [0.068851, 0.1947665, 0.2498995], rtol=1e-6)


def test_key_epoch_and_index_change_the_view():
    view = np.asarray(both(IMAGES, INDEX, 3, KEY)["strong"])
    np.testing.assert_array_equal(view, both(IMAGES, INDEX, jnp.int32(3), jax.random.key_data(KEY))["strong"])
    for other in ((INDEX, 4, KEY), (INDEX, 3, jax.random.key(12)), (INDEX + 64, 3, KEY)):
        assert (view != np.asarray(both(IMAGES, *other)["strong"])).any((1, 2, 3)).all()


def test_permuting_the_batch_permutes_the_views():
    order = np.argsort(np.random.Philox(1).random_raw(64))
    whole = np.asarray(both(IMAGES, INDEX, 3, KEY)["strong"])
    np.testing.assert_array_equal(whole[order], both(IMAGES[order], INDEX[order], 3, KEY)["strong"])
    np.testing.assert_allclose(whole[20:28], both(IMAGES[20:28], INDEX[20:28], 3, KEY)["strong"], rtol=0, atol=ROUNDING)


def test_eight_devices_give_the_same_without_collectives():
    assert jax.device_count() == 8, "run under tests/conftest.py, which asks for eight virtual devices"
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    rows = NamedSharding(mesh, PartitionSpec("data"))
    arguments = (jax.device_put(IMAGES, rows), jax.device_put(INDEX, rows), jnp.int32(3), KEY)
    compiled = jax.jit(both, out_shardings=rows).lower(*arguments).compile()
    text = compiled.as_text()
    for collective in ("all-gather", "all-reduce", "all-to-all", "collective-permute", "reduce-scatter"):
        assert collective not in text
    want = both(IMAGES, INDEX, 3, KEY)
    for name, view in compiled(*arguments).items():
        np.testing.assert_allclose(view, want[name], rtol=0, atol=ROUNDING if name == "strong" else 0)


def test_the_strong_view_has_a_crop_of_its_own():
    views = dataclasses.replace(VIEWS, strong=OFF)
    view = np.asarray(
        jax.jit(lambda *a: views.train_views(*a, names=("strong",)))(IMAGES, INDEX, 3, KEY).views["strong"]
    )
    every = jax.jit(jax.vmap(views.show, in_axes=(None, 0)))(IMAGES, np.mgrid[:162, :64][0].astype(np.int32))
    matches = (np.asarray(every) == view).all((2, 3, 4))  # [162, 64]: which of its crops is it?
    assert matches.any(0).all()
    assert (matches.argmax(0) != views.numbers(INDEX, 3, KEY)).mean() > 0.9


def test_only_what_is_asked_for_is_computed():
    def program(*names):
        return str(jax.make_jaxpr(lambda *a: VIEWS.train_views(*a, names=names))(IMAGES, INDEX, 3, KEY))

    assert program("main") == str(jax.make_jaxpr(lambda *a: {"main": VIEWS.train(*a)})(IMAGES, INDEX, 3, KEY))
    assert len(program("strong")) < len(program("main", "strong"))


def test_all_off_is_the_identity():
    np.testing.assert_array_equal(shown(OFF, IMAGES, random_draws(64)), IMAGES)
    views = Views(strong=OFF)
    np.testing.assert_array_equal(
        views.train_views(IMAGES, INDEX, 3, KEY, names=("strong",)).views["strong"], views.evaluate(IMAGES)
    )


GEOMETRY = dataclasses.replace(OFF, rotation=60.0, shear=0.5, scale=0.5)


def test_geometry_by_nothing_is_the_identity():
    np.testing.assert_array_equal(shown(GEOMETRY, IMAGES, middle_draws(64)), IMAGES)


def test_geometry_equals_scipy():
    draws = random_draws(64)
    got = shown(GEOMETRY, IMAGES, draws)
    centre = (np.array(IMAGES.shape[1:3]) - 1) / 2
    for image, view, draw in zip(IMAGES, got, 2 * draws.astype(np.float64) - 1, strict=True):
        turn = np.radians(60) * draw[ANGLE]
        turn = np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]])
        matrix = turn @ np.array([[1, 0.5 * draw[LEAN]], [0.5 * draw[SLANT], 1]]) / (1 + 0.5 * draw[ZOOM])
        for channel in range(3):
            want = scipy.ndimage.affine_transform(
                image[..., channel].astype(np.float64), matrix, centre - matrix @ centre, order=1, mode="grid-constant"
            )
            np.testing.assert_allclose(view[..., channel], want, atol=1e-2)


def test_light_equals_numpy():
    draws = random_draws(64)
    got = shown(dataclasses.replace(OFF, contrast=0.8, brightness=0.4), IMAGES, draws)
    gap, light = 1 + 0.8 * (2 * draws[:, GAP] - 1), 1 + 0.4 * (2 * draws[:, LIGHT] - 1)
    gap, light = gap[:, None, None, None], light[:, None, None, None]
    mean = IMAGES.mean((1, 2, 3), keepdims=True)
    want = (mean + (IMAGES - mean) * gap) * light
    assert want.min() < 0 and want.max() > 255
    np.testing.assert_allclose(got, np.clip(want, 0, 255), rtol=1e-4, atol=1e-3)


def test_solarize_inverts_the_bright_half_of_some_images():
    draws = random_draws(64)
    got = shown(dataclasses.replace(OFF, solarize=0.4), IMAGES, draws)
    chosen = draws[:, CHANCE] < 0.4
    assert 10 < chosen.sum() < 40
    np.testing.assert_array_equal(got[~chosen], IMAGES[~chosen])
    np.testing.assert_array_equal(got[chosen], np.where(IMAGES < 128, IMAGES, 255 - IMAGES)[chosen])


def test_cutout_is_one_square_about_its_centre():
    draws = middle_draws(4)
    draws[0, [ROW, COLUMN]] = 0, 0
    draws[1, [ROW, COLUMN]] = 0.999, 0.999
    draws[2, ROW] = 0
    got = shown(dataclasses.replace(OFF, cutout=0.3), np.full((4, 20, 24, 3), 200, np.uint8), draws)
    black = got == 0
    assert ((got == 200) | black).all() and (black.all(-1) == black.any(-1)).all()
    assert black[..., 0].sum((1, 2)).tolist() == [3 * 3, 4 * 4, 3 * 6, 6 * 6]
    assert black[3, 7:13, 9:15].all()


@pytest.mark.parametrize("shape", [(64, 8, 8, 1), (2, 224, 224, 3)])
def test_values_stay_in_range_for_all_sizes(shape):
    images = np.random.Philox(3).random_raw(np.prod(shape)).astype(np.uint8).reshape(shape)
    got = shown(Strong(), images, random_draws(len(images)))
    assert got.shape == shape and got.dtype == np.float32
    assert got.min() >= 0 and got.max() <= 255
    assert (got != images).any((1, 2, 3)).all()


def test_threefry_and_uint8_only():
    with pytest.raises(TypeError, match="threefry key"):
        Strong().draws(INDEX, 0, jax.random.key(0, impl="rbg"))
    with pytest.raises(TypeError, match="uint8; these are float32"):
        VIEWS.train_views(IMAGES.astype(np.float32), INDEX, 0, KEY, names=("strong",))


def test_hyperparameters_are_data():
    views = Views(flip=True, strong=Strong(rotation=30.0, cutout=0.0), mixup=0.5)
    again = from_data(json.loads(json.dumps(to_data(views))))
    assert again == views and hash(again) == hash(views)
    assert from_data({"kind": "Views"}).strong == Strong()


@pytest.mark.parametrize(
    "options, message",
    [
        ({"rotation": -1.0}, "Strong.rotation is -1.0; use 0 to 180 degrees"),
        ({"rotation": 181.0}, "Strong.rotation is 181.0"),
        ({"shear": 1.0}, "Strong.shear is 1.0; use 0 or more and less than 1"),
        ({"scale": -0.1}, "Strong.scale is -0.1"),
        ({"brightness": 1.1}, "Strong.brightness is 1.1; use 0 to 1"),
        ({"contrast": float("nan")}, "Strong.contrast is nan"),
        ({"solarize": 2.0}, "Strong.solarize is 2.0"),
        ({"cutout": -0.3}, "Strong.cutout is -0.3"),
    ],
)
def test_errors(options, message):
    with pytest.raises(ValueError, match=message):
        Strong(**options)

"""Views: a function of (key, epoch, index) and of nothing else, equal to numpy, and free of collectives."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from kdjax.experiment.serialization import from_data, to_data
from kdjax.tasks.classification import Views

MEAN, STD = (0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)
VIEWS = Views(crop_padding=4, flip=True, mean=MEAN, std=STD)
IMAGES = np.random.Philox(0).random_raw(64 * 12 * 10 * 3).astype(np.uint8).reshape(64, 12, 10, 3)
INDEX = np.arange(1000, 1064, dtype=np.int32)
KEY = jax.random.key(11)

train = jax.jit(VIEWS.train)


def numpy_view(image, number, padding, flip):
    """The view by hand: `(row * side + column) * 2 + flipped`."""
    flipped = bool(number % 2) if flip else False
    row, column = divmod(number // 2 if flip else number, 2 * padding + 1)
    if flipped:
        image = np.flip(image, axis=1)
    padded = np.zeros((image.shape[0] + 2 * padding, image.shape[1] + 2 * padding, image.shape[2]), np.uint8)
    padded[padding : padding + image.shape[0], padding : padding + image.shape[1]] = image
    return padded[row : row + image.shape[0], column : column + image.shape[1]]


def numpy_normalised(images):
    return (images / 255 - np.array(MEAN)) / np.array(STD)


def test_normalisation_equals_numpy():
    np.testing.assert_allclose(VIEWS.evaluate(IMAGES), numpy_normalised(IMAGES), rtol=1e-6, atol=1e-6)
    plain = jax.jit(Views().evaluate)(IMAGES)
    assert plain.dtype == jnp.float32
    np.testing.assert_allclose(plain, IMAGES / 255, rtol=1e-6)


@pytest.mark.parametrize("padding, flip", [(4, True), (4, False), (0, True), (2, True), (0, False)])
def test_every_view_equals_numpy(padding, flip):
    views = Views(crop_padding=padding, flip=flip)
    numbers = np.arange(views.num_views(), dtype=np.int32)
    images = np.broadcast_to(IMAGES[:1], (len(numbers), *IMAGES.shape[1:]))
    shown = np.asarray(jax.jit(views.show)(images, numbers)) * 255
    want = np.stack([numpy_view(IMAGES[0], number, padding, flip) for number in numbers])
    np.testing.assert_array_equal(np.rint(shown).astype(np.uint8), want)
    assert len({view.tobytes() for view in want}) == views.num_views() == (2 * padding + 1) ** 2 * (1 + flip)


def test_train_shows_the_numbered_views():
    numbers = np.asarray(VIEWS.numbers(INDEX, 3, KEY))
    want = numpy_normalised(np.stack([numpy_view(*pair, 4, True) for pair in zip(IMAGES, numbers, strict=True)]))
    np.testing.assert_allclose(train(IMAGES, INDEX, 3, KEY), want, rtol=1e-5, atol=1e-5)


def test_numbers_are_evenly_spread_and_never_change():
    numbers = np.asarray(jax.jit(VIEWS.numbers)(jnp.arange(81_000), 0, KEY))
    counts = np.bincount(numbers, minlength=162)
    assert numbers.min() == 0 and numbers.max() == 161
    chi_square = ((counts - 500) ** 2 / 500).sum()
    assert 100 < chi_square < 230  # 161 degrees of freedom
    assert VIEWS.numbers(jnp.arange(6), 2, jax.random.key(0)).tolist() == [13, 77, 159, 134, 87, 33]


def test_epochs_and_keys_change_views_and_rows_do_not():
    first = np.asarray(VIEWS.numbers(INDEX, 0, KEY))
    assert (first != np.asarray(VIEWS.numbers(INDEX, 1, KEY))).mean() > 0.9
    assert (first != np.asarray(VIEWS.numbers(INDEX, 0, jax.random.key(12)))).mean() > 0.9
    np.testing.assert_array_equal(first, VIEWS.numbers(INDEX, jnp.int32(0), KEY))


def test_permuting_the_batch_permutes_the_views():
    order = np.argsort(np.random.Philox(1).random_raw(64))
    whole = np.asarray(train(IMAGES, INDEX, 3, KEY))
    np.testing.assert_array_equal(whole[order], train(IMAGES[order], INDEX[order], 3, KEY))
    np.testing.assert_array_equal(whole[20:28], train(IMAGES[20:28], INDEX[20:28], 3, KEY))


def test_eight_devices_give_the_same_bytes_without_collectives():
    assert jax.device_count() == 8, "run under tests/conftest.py, which asks for eight virtual devices"
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    rows = NamedSharding(mesh, PartitionSpec("data"))
    arguments = (jax.device_put(IMAGES, rows), jax.device_put(INDEX, rows), jnp.int32(3), KEY)
    compiled = jax.jit(VIEWS.train, out_shardings=rows).lower(*arguments).compile()
    text = compiled.as_text()
    for collective in ("all-gather", "all-reduce", "all-to-all", "collective-permute", "reduce-scatter"):
        assert collective not in text
    np.testing.assert_array_equal(compiled(*arguments), train(IMAGES, INDEX, 3, KEY))
    mapped = jax.pmap(VIEWS.train, in_axes=(0, 0, None, None))
    pieces = mapped(IMAGES.reshape(8, 8, 12, 10, 3), INDEX.reshape(8, 8), 3, KEY)
    np.testing.assert_array_equal(np.asarray(pieces).reshape(IMAGES.shape), train(IMAGES, INDEX, 3, KEY))


def test_the_main_view_is_what_train_shows():
    shown = VIEWS.train_views(IMAGES, INDEX, 3, KEY, names=("main",)).views
    assert list(shown) == ["main"]
    np.testing.assert_array_equal(shown["main"], VIEWS.train(IMAGES, INDEX, 3, KEY))


def test_an_unknown_view_is_refused():
    with pytest.raises(ValueError, match="no view 'weak'; there are main, strong"):
        VIEWS.train_views(IMAGES, INDEX, 3, KEY, names=("main", "weak"))


def test_an_epoch_is_traced():
    traces = []

    @jax.jit
    def step(images, index, epoch, key):
        traces.append(epoch)
        return VIEWS.train(images, index, epoch, key)

    for epoch in range(3):
        step(IMAGES, INDEX, jnp.int32(epoch), KEY)
    assert len(traces) == 1


def test_threefry_only():
    raw = jax.random.key_data(KEY)
    np.testing.assert_array_equal(VIEWS.numbers(INDEX, 0, raw), VIEWS.numbers(INDEX, 0, KEY))
    with pytest.raises(TypeError, match="threefry key"):
        VIEWS.numbers(INDEX, 0, jax.random.key(0, impl="rbg"))


def test_hyperparameters_are_data():
    again = from_data(json.loads(json.dumps(to_data(VIEWS))))
    assert again == VIEWS and hash(again) == hash(VIEWS)
    assert Views().num_views() == 1 and Views(flip=True).num_views() == 2 and VIEWS.num_views() == 162


@pytest.mark.parametrize(
    "options, message",
    [
        ({"crop_padding": -1}, "crop_padding is -1"),
        ({"std": (0.2, 0.0, 0.1)}, "above 0"),
        ({"std": (float("inf"),)}, "above 0 and finite"),
        ({"mean": (float("nan"),)}, "must be finite"),
        ({"mean": (0.5,), "std": (0.2, 0.2)}, "mean has 1 values, std 2"),
        ({"mixup": -0.5}, "mixup is -0.5; use a finite number"),
        ({"mixup": float("inf")}, "mixup is inf"),
    ],
)
def test_errors(options, message):
    with pytest.raises(ValueError, match=message):
        Views(**options)


def test_errors_of_images():
    with pytest.raises(ValueError, match=r"images have 3 channels, Views.mean has 1"):
        Views(mean=(0.5,)).evaluate(IMAGES)
    with pytest.raises(TypeError, match="uint8; these are float32"):
        VIEWS.train(IMAGES.astype(np.float32), INDEX, 0, KEY)
    with pytest.raises(TypeError, match=r"uint8; these are uint8 \[12, 10, 3\]"):
        VIEWS.evaluate(IMAGES[0])

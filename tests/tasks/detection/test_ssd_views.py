"""SSD's views: boxes follow their windows, windows are as demanded, colours are as a plain computation has them."""

import colorsys

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from kdjax.losses import pairwise_box_iou
from kdjax.tasks.detection import Detection, ssd_views
from kdjax.tasks.detection.ssd_views import looked_through, recoloured, seen, tinted, windows

SIDE = 48


def keys(count, seed=0):
    return jax.random.split(jax.random.key(seed), count)


def test_what_a_window_shows_and_where_its_boxes_are():
    """A cut as Pillow resamples it, a wider window with the fill around; a rectangle is where its box is said to be."""
    rng = np.random.default_rng(0)
    size = np.array([[48, 48], [48, 40], [40, 48], [48, 48]], np.int32)
    window = np.array([[10, 6, 40, 30], [3, 2, 37, 44], [-40, -20, 80, 60], [-30, -60, 110, 60]], np.float32)
    image = rng.uniform(0, 255, (4, SIDE, SIDE, 3)).astype(np.float32)
    image[2:] = 0
    boxes = np.array([[[20, 10, 30, 26], [40, 30, 48, 48], [0, 0, 0, 0]]] * 4, np.float32)
    image[2:, 10:26, 20:30] = 255
    show = jax.jit(lambda *x: (looked_through(*x[:3], jnp.array([90.0, 60, 30])), *seen(x[3], x[1], x[2])))
    shown, moved, there = jax.device_get(show(image, window, size, boxes))
    np.testing.assert_array_equal(
        there, [[True, False, False], [True, False, False], [True, True, False], [True, True, False]]
    )
    for i, (height, width) in enumerate(size):
        assert not shown[i, height:].any() and not shown[i, :, width:].any()
        x = width / (window[i, 2] - window[i, 0]), height / (window[i, 3] - window[i, 1])
        np.testing.assert_allclose(moved[i, 0], (boxes[i, 0] - np.tile(window[i, :2], 2)) * np.tile(x, 2), rtol=1e-5)
        part = shown[i, :height, :width]
        if i < 2:  # Pillow looks beyond what is cut
            channels = [Image.fromarray(image[i, :height, :width, c]) for c in range(3)]
            wanted = [c.resize((width, height), Image.Resampling.BILINEAR, box=tuple(window[i])) for c in channels]
            np.testing.assert_allclose(part[2:-2, 2:-2], np.stack(wanted, -1)[2:-2, 2:-2], atol=0.01)
        else:
            np.testing.assert_allclose(part[0, 0], [90, 60, 30], atol=1e-3)
            bright = part[..., 2] > 127
            rows, columns = (np.flatnonzero(bright.any(axis)) for axis in (1, 0))
            np.testing.assert_allclose([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1], moved[i, 0], atol=1)
    assert not moved[:2, 1:].any()


def test_windows_are_as_demanded(monkeypatch):
    count = 400
    size = np.tile(np.array([[40, 48]], np.int32), (count, 1))
    boxes = np.tile(np.array([[[4, 4, 44, 38], [10, 2, 46, 36], [0, 0, 0, 0]]], np.float32), (count, 1, 1))
    find = lambda: np.asarray(jax.jit(lambda: windows(jnp.asarray(boxes), jnp.asarray(size), keys(count)))())
    plain = find()
    for least in (0.5, 0.95):
        monkeypatch.setattr(ssd_views, "OVERLAPS", (least,))
        monkeypatch.setattr(ssd_views, "WIDEST", 1.0)
        found = find()
        whole = (found == np.array([0, 0, 48, 40])[None]).all(1)
        overlap = np.asarray(pairwise_box_iou(jnp.asarray(found[:, None]), jnp.asarray(boxes[:, :2])))[:, 0].min(1)
        assert (overlap[~whole] >= least).all() and (whole.all() if least > 0.9 else 0.3 < whole.mean() < 0.7)
        assert (found[:, :2] >= -1e-4).all() and (found[:, 2:] <= np.array([[48, 40]]) + 1e-4).all()
    side = plain[:, 2:] - plain[:, :2]
    wider = (plain[:, :2] < -1e-3).any(1) | (plain[:, 2:] > np.array([[48, 40]]) + 1e-3).any(1)
    times = side / np.array([[48, 40]])
    assert 0.3 < wider.mean() < 0.7 and 2.5 < times.max() < 4 and 0.3 <= times.min() < 0.5
    kept = np.asarray(seen(jnp.asarray(boxes), jnp.asarray(plain), jnp.asarray(size))[1])
    assert kept.any(1).all() and not kept[:, :2].all() and not kept[:, 2].any()
    cut = np.abs(times[:, 0] - times[:, 1]) > 1e-3
    shape = (side[:, 1] / side[:, 0])[cut]
    assert (shape >= 0.5).all() and (shape <= 2).all() and shape.min() < 0.6


def test_colours_are_those_of_hsv():
    rng = np.random.default_rng(0)
    image = rng.uniform(0, 1, (40, 3)).astype(np.float32)
    image[:3] = [[0.5, 0.5, 0.5], [0, 0, 0], [1, 1, 0.2]]
    for saturation, degrees in ((1.0, 0.0), (0.6, 17.0), (1.0, -18.0)):
        hsv = [colorsys.rgb_to_hsv(*map(float, x)) for x in image]
        wanted = [colorsys.hsv_to_rgb((h + degrees / 360) % 1, saturation * s, v) for h, s, v in hsv]
        np.testing.assert_allclose(tinted(jnp.asarray(image), saturation, degrees), wanted, atol=2e-6)


def test_each_change_of_colours_is_made_every_other_time():
    count = 400
    change = jax.jit(recoloured)
    flat = np.asarray(change(jnp.full((count, 1, 1, 1), 128.0), keys(count))).ravel()
    assert 0.15 < (flat == 128).mean() < 0.35 and flat.min() > 0.5 * 96 and flat.max() < 1.5 * 160
    assert flat.min() < 70 and flat.max() > 190
    image = jnp.broadcast_to(jnp.array([40.0, 90.0, 200.0]), (count, 1, 1, 3))
    made = np.asarray(change(image, keys(count)))[:, 0, 0]
    orders = [tuple(np.argsort(x)) for x in made]
    assert len(set(orders)) == 6 and 0.45 < np.mean([o == (0, 1, 2) for o in orders]) < 0.7  # 1/2, and 1/6 of the rest
    assert 0.01 < (made == np.array([[40, 90, 200]])).all(1).mean() < 0.08  # 1/16 · 7/12


def test_pictures_and_their_boxes_change_alike_on_any_number_of_devices():
    task = Detection(ssd_views=True, examples=16, eval_examples=1, mean=(0.3,), std=(0.5,), batch_size=16)
    dataset, key, index = task.load(), jax.random.key(3), jnp.arange(16)
    rows = dataset.train.read(np.arange(16))
    assert "boxes" not in dataset.held.read(np.arange(1))["inputs"]

    both = Detection(ssd_views=True, show_boxes=True, mean=(0.3,), std=(0.5,))

    @jax.jit
    def show(inputs, targets, index):
        plain, beside = (t.train_views(inputs, index, 2, key, names=("main",)) for t in (task, both))
        return plain, task.train_targets(targets, index, 2, key), beside["boxes"]

    shown, moved, beside = show(rows["inputs"], rows["targets"], index)
    np.testing.assert_allclose(beside, moved["boxes"], atol=1e-4)
    labels = rows["targets"]["labels"]
    sides = np.asarray(moved["boxes"][..., 2:] - moved["boxes"][..., :2])
    gone = np.asarray(moved["labels"] < 0) & (labels >= 0)
    assert 0 < gone.sum() < (labels >= 0).sum() and not sides[gone].any()
    np.testing.assert_array_equal(moved["labels"], np.where(gone, -1, labels))
    assert (
        shown.shape == (16, 96, 96, 1) and float(jnp.min(moved["boxes"])) >= 0 and float(jnp.max(moved["boxes"])) <= 96
    )
    wide = [i for i in range(16) if np.mean(np.abs(np.asarray(shown[i])) < 1e-5) > 0.2]  # the fill is 0 when normalised
    assert 3 < len(wide) < 14
    mesh = jax.sharding.Mesh(np.array(jax.devices()), "x")
    spread = jax.device_put((rows["inputs"], rows["targets"], index), jax.NamedSharding(mesh, jax.P("x")))
    again, boxes_again, _ = show(*spread)
    np.testing.assert_allclose(again, shown, atol=1e-5)
    np.testing.assert_allclose(boxes_again["boxes"], moved["boxes"], atol=1e-4)
    assert Detection(ssd_views=True, scales=(0.5, 1.0)).problems() == [
        "data.ssd_views draws how large pictures are shown, and so does data.scales; set one of them."
    ]

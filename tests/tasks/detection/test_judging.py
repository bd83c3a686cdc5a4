"""Networks that see boxes: classifiers of crops beside detectors; detections of heads with centreness, deltas or a background."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdjax.losses import crop_and_resize
from kdjax.models.detectors import DetectorOutput
from kdjax.tasks.detection import Detection, Detector
from kdjax.tasks.detection.decoding import detect
from kdjax.tasks.detection.edges import comparable, draw_edges, places, spread
from kdjax.tasks.detection.judging import judged, of_crops
from kdjax.types import ModelOutput, Network

BOXES = np.array([[[0, 0, 8, 8], [16, 0, 24, 8], [0, 16, 8, 24]]], np.float32)
SIZES, WHOLE = np.array([[32, 32]]), {"level_sizes": (3,), "max_detections": 4}


def test_centreness_multiplies_scores_that_pass_without_it():
    logits = np.array([[[2.0], [1.0], [-5.0]]], np.float32)
    central = np.array([[-1.0, 3.0, 9.0]], np.float32)
    found = detect(logits, BOXES, None, None, SIZES, centreness=central, score_threshold=0.6, **WHOLE)
    sigmoid = lambda x: 1 / (1 + np.exp(-x))
    np.testing.assert_allclose(
        found.scores[0, :3], [sigmoid(1.0) * sigmoid(3.0), sigmoid(2.0) * sigmoid(-1.0), 0], rtol=1e-6
    )
    np.testing.assert_array_equal(found.boxes[0, :2], BOXES[0, [1, 0]])
    np.testing.assert_array_equal(found.labels[0], [0, 0, -1, -1])


def test_a_background_is_no_detection():
    logits = np.array([[[3.0, 0.0, 0.0], [0.0, 0.0, 9.0], [0.0, 2.0, 0.0]]], np.float32)
    found = detect(logits, BOXES, None, None, SIZES, background=True, score_threshold=0.2, **WHOLE)
    p = np.exp(logits[0]) / np.exp(logits[0]).sum(-1, keepdims=True)
    np.testing.assert_allclose(found.scores[0], [p[0, 0], p[2, 1], 0, 0], rtol=1e-6)
    np.testing.assert_array_equal(found.labels[0], [0, 1, -1, -1])
    with pytest.raises(ValueError, match=r"without points it must be boxes"):
        detect(logits, np.zeros((1, 3, 8), np.float32), None, None, SIZES, **WHOLE)
    with pytest.raises(ValueError, match=r"centreness has shape \(1, 2\)"):
        detect(logits, BOXES, None, None, SIZES, centreness=np.zeros((1, 2), np.float32), **WHOLE)


def test_boxes_are_shown_as_they_are_moved():
    """What networks see are the targets of the same view, and detectors see the picture alone."""
    task = Detection(examples=8, eval_examples=4, show_boxes=True)
    data = task.load()
    rows = data.train.read(np.arange(8))
    key, index = jax.random.key(1), jnp.arange(8)
    view = task.train_views(rows["inputs"], index, 1, key, names=("main",))
    moved = task.train_targets(rows["targets"], index, 1, key)["boxes"]
    np.testing.assert_array_equal(view["boxes"], moved)
    assert (np.asarray(moved) != rows["targets"]["boxes"]).any()
    plain = Detection(examples=8, eval_examples=4)
    same = plain.train_views(plain.load().train.read(np.arange(8))["inputs"], index, 1, key, names=("main",))
    np.testing.assert_array_equal(view["image"], same)
    with pytest.raises(ValueError, match=r"crops_resnet8 judges crops of the objects; set data\.show_boxes"):
        plain.network(Detector(name="crops_resnet8"), plain.load())


def test_a_classifier_of_crops_judges_each_object():
    """A "network" that says the mean of what it sees; the boxes that it was given are its detections."""
    said = lambda params, state, x, **options: (ModelOutput(logits=jnp.mean(x, (1, 2)), features=(x,)), state)
    network = of_crops(Network(None, said, name="mean"), 4)
    image = np.random.default_rng(0).uniform(size=(1, 32, 32, 2)).astype(np.float32)
    output, _ = network.apply({}, {}, {"image": image, "boxes": BOXES}, train=False)
    crops = crop_and_resize(image[0], BOXES[0], 4)
    np.testing.assert_allclose(output.logits[0], crops.mean((1, 2)), rtol=1e-6)
    np.testing.assert_array_equal(network.parts["stem"]({}, {}, crops), crops)
    with pytest.raises(ValueError, match="mean judges objects whose boxes are given, and there are none"):
        network.apply({}, {}, {"image": image}, train=False)
    boxes = BOXES.copy()
    boxes[0, 1] = 0  # padding
    found = judged(ModelOutput(logits=np.array([[[0.0, 1.0], [9.0, 0.0], [3.0, 0.0]]], np.float32)), boxes)
    np.testing.assert_array_equal(found.labels, [[0, 1, -1]])
    np.testing.assert_array_equal(found.boxes[0, :2], boxes[0, [2, 0]])
    assert found.scores[0, 0] > found.scores[0, 1] > found.scores[0, 2] == 0


def test_edges_are_drawn_where_networks_compare(tmp_path):
    """Of two objects the one whose edges are less sure, at the location whose box fits best."""
    rng = np.random.default_rng(0)
    bins = 5

    def output(width, count=16):
        logits = np.full((1, count, 4, bins), -20.0, np.float32)
        logits[..., 1] = 0  # a box of two strides around every location
        logits[0, 10, :, 0] = logits[0, 10, :, 2] = width
        return DetectorOutput(
            np.zeros((1, count, 2), np.float32), logits, (np.zeros((1, 4, count // 4, 1), np.float32),), strides=(8,)
        )

    boxes = np.array([[[0, 0, 16, 16], [8, 8, 24, 24], [0, 0, 0, 0]]], np.float32)  # around (8, 8) and (16, 16)
    targets = {"boxes": boxes, "labels": np.array([[0, 1, -1]])}
    wide, sure = output(0.0), output(-5.0)
    assert places(wide, boxes, targets["labels"]) == [(0, 1, 10)]
    np.testing.assert_allclose(spread(np.zeros(bins)), np.sqrt(2), rtol=1e-6)
    other = output(0.0, 20)
    assert list(comparable({"teacher": wide, "boxes": ModelOutput(), "coarse": other, "student": sure})) == [
        "teacher",
        "student",
    ]
    chosen = {"inputs": {"image": rng.integers(0, 255, (1, 32, 32, 1), np.uint8)}, "targets": targets}
    assert draw_edges(chosen, {"teacher": wide, "student": sure}, tmp_path / "edges.png")
    assert (tmp_path / "edges.png").stat().st_size > 5000
    assert not draw_edges(chosen, {"teacher": wide, "coarse": other}, tmp_path / "none.png")
    assert not (tmp_path / "none.png").exists()

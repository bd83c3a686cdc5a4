"""Drawn pictures with boxes: exact boxes, each picture on its own, the mixture that is promised."""

import functools
import hashlib

import numpy as np
import pytest

from kdjax.data.fashion_boxes import CLASS_NAMES, draw, draw_many

COUNT = 250


@functools.cache
def many():
    return draw_many("train", COUNT, seed=1)


@functools.cache
def drawn():
    return [draw("train", n, seed=1) for n in range(COUNT)]


def test_boxes_are_the_extent_of_what_is_drawn_and_the_rest_is_padding():
    pictures = many()
    assert pictures.images.shape == (COUNT, 96, 96, 1) and pictures.images.dtype == np.uint8
    assert pictures.boxes.dtype == np.float32 and pictures.labels.dtype == pictures.ambiguous.dtype == np.int32
    for n, one in enumerate(drawn()):
        objects = len(one.labels)
        for mask, (left, top, right, bottom) in zip(one.masks, pictures.boxes[n].astype(int), strict=False):
            assert mask[top:bottom, left:right].sum() == mask.sum() > 0
            inside = mask[top:bottom, left:right]
            assert all(edge.any() for edge in (inside[0], inside[-1], inside[:, 0], inside[:, -1]))
        np.testing.assert_array_equal(pictures.mask[n], np.arange(5) < objects)
        np.testing.assert_array_equal(pictures.labels[n], [*one.labels] + [-1] * (5 - objects))
        np.testing.assert_array_equal(pictures.ambiguous[n], [*one.ambiguous] + [-1] * (5 - objects))
        assert not pictures.boxes[n, objects:].any()


def test_a_picture_is_the_same_alone_among_others_and_in_any_order():
    for n in (200, 3, 117):
        np.testing.assert_array_equal(draw("train", n, seed=1).image, many().images[n])
    part = draw_many("train", 2, seed=1, start=40)
    for name, array in part._asdict().items():
        np.testing.assert_array_equal(array, getattr(many(), name)[40:42])
    others = [draw("train", 4, seed=1), draw("train", 3, seed=0), draw("test", 3, seed=1)]
    images = [many().images[3], *(other.image for other in others)]
    assert len({image.tobytes() for image in images}) == 4
    assert draw_many("train", 0).boxes.shape == (0, 5, 4)


def test_the_pictures_are_those_that_were_drawn_elsewhere():
    """Another machine, or version of NumPy, draws the same to the last bit; figures could not be compared otherwise."""
    pictures = draw_many("test", 20)
    assert hashlib.sha256(b"".join(array.tobytes() for array in pictures)).hexdigest()[:16] == "0c57adb37970010c"


def seen(one, k):
    """Pixels of an object that no later one hides."""
    return one.masks[k] & ~one.masks[k + 1 :].any(axis=0)


def test_no_object_is_hidden_by_more_than_half_or_outside_by_more_than_a_fifth():
    shares = [seen(one, k).sum() / one.masks[k].sum() for one in drawn() for k in range(len(one.labels))]
    assert 0.5 <= min(shares) < 0.7 < 1 == max(shares)
    sides = np.concatenate([many().boxes[many().mask][:, 2:] - many().boxes[many().mask][:, :2]])
    assert sides.min() >= 2 and 50 < sides.max() <= 60


def rim(one, k):
    """For each edge, how much brighter the object is on its outermost line than the line beyond, where both are seen."""
    own, image, free = seen(one, k), one.image[..., 0].astype(float), ~one.masks.any(axis=0)
    contrasts = []
    for turns in (0, 1, 2, 3):  # left, top, right, bottom come to lie left
        mask, inside, grey, beyond = (np.rot90(x, turns) for x in (one.masks[k], own, image, free))
        first = mask.any(axis=0).argmax()
        both = inside[:, first] & beyond[:, first - 1] if first else np.zeros(96, bool)
        contrasts.append((grey[:, first] - grey[:, first - 1])[both].mean() if both.any() else np.nan)
    return contrasts


def test_edges_are_seen_where_the_boxes_say_and_fade_where_they_are_ambiguous():
    clear, faded = [[], [], [], []], [[], [], [], []]
    for one in drawn():
        for k, edge in enumerate(one.ambiguous):
            for side, contrast in enumerate(rim(one, k)):
                (faded if side == edge else clear)[side].append(contrast)
    clear, faded = ([np.nanmean(values) for values in sides] for sides in (clear, faded))
    assert min(clear) > 30 and max(faded) < 0.5 * min(clear), (clear, faded)


def test_classes_and_numbers_of_objects_are_even_and_a_third_is_ambiguous():
    labels = many().labels[many().mask]
    shares = np.bincount(labels, minlength=len(CLASS_NAMES)) / len(labels)
    assert len(CLASS_NAMES) == 5 and (abs(shares - 0.2) < 0.05).all()
    numbers = np.bincount(many().mask.sum(axis=1), minlength=6) / COUNT
    assert numbers[0] == 0 and (abs(numbers[1:] - 0.2) < 0.08).all()
    edges = np.bincount(many().ambiguous[many().mask] + 1, minlength=5) / len(labels)
    assert abs(edges[0] - 0.65) < 0.06 and (abs(edges[1:] - 0.35 / 4) < 0.04).all()


def test_refuses_what_there_is_not():
    with pytest.raises(ValueError, match="no split 'val' of these pictures; there are train and test"):
        draw("val", 0)
    with pytest.raises(ValueError, match="number of the picture is -1"):
        draw_many("train", 1, start=-1)
    with pytest.raises(ValueError, match="count is -2"):
        draw_many("train", -2)

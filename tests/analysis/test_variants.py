"""Variants of images whose every pixel is known."""

import jax
import numpy as np
import pytest

from kdjax.analysis import variants

IMAGES = np.random.default_rng(0).integers(0, 256, (3, 6, 6, 1)).astype(np.uint8)


def test_shifts_move_and_are_undone_within():
    moved = np.asarray(variants.shifted(IMAGES, 2, -1))
    np.testing.assert_array_equal(moved[:, 2:, :-1], IMAGES[:, :-2, 1:])
    assert not moved[:, :2].any() and not moved[:, :, -1].any()
    back = np.asarray(variants.shifted(moved, -2, 1))
    np.testing.assert_array_equal(back[:, :-2, 1:], IMAGES[:, :-2, 1:])
    with pytest.raises(ValueError, match="leaves nothing of 6x6"):
        variants.shifted(IMAGES, 0, 6)


def test_nothing_is_changed_by_changes_of_nothing():
    for same in (
        variants.shifted(IMAGES, 0, 0), variants.zoomed(IMAGES, 6), variants.brightened(IMAGES, 1.0),
        variants.contrasted(IMAGES, 1.0), variants.inverted(variants.inverted(IMAGES)), variants.rotated(IMAGES, 4),
    ):  # fmt: skip
        assert same.dtype == np.uint8
        np.testing.assert_array_equal(same, IMAGES)


def test_values_by_hand():
    np.testing.assert_array_equal(variants.brightened(IMAGES, 0.0), 0 * IMAGES)
    np.testing.assert_array_equal(variants.brightened(IMAGES, 2.0), np.minimum(2 * IMAGES.astype(int), 255))
    flat = np.asarray(variants.contrasted(IMAGES, 0.0))
    np.testing.assert_array_equal(flat[1], np.full((6, 6, 1), np.round(IMAGES[1].mean())))
    np.testing.assert_array_equal(variants.rotated(IMAGES)[:, 0], IMAGES[:, :, -1])
    np.testing.assert_array_equal(variants.zoomed(np.full_like(IMAGES, 9), 3), np.full_like(IMAGES, 9))
    np.testing.assert_array_equal(variants.silhouette(IMAGES, 100), np.where(IMAGES > 100, 255, 0))
    step = np.zeros((1, 4, 4, 1), np.uint8)
    step[:, :, 2:] = 80
    np.testing.assert_array_equal(variants.edges(step)[0, :, :, 0], np.tile([0, 80, 0, 0], (4, 1)))
    with pytest.raises(ValueError, match="no 7x7 pixels"):
        variants.zoomed(IMAGES, 7)


CHANGES = {
    "shifted": lambda x: variants.shifted(x, 1, 0), "zoomed": lambda x: variants.zoomed(x, 3),
    "brightened": lambda x: variants.brightened(x, 1.5), "contrasted": lambda x: variants.contrasted(x, 0.5),
    "inverted": variants.inverted, "rotated": variants.rotated, "edges": variants.edges, "silhouette": variants.silhouette,
    "textured": lambda x: variants.textured(x, jax.random.key(0)),
}  # fmt: skip


@pytest.mark.parametrize("name", CHANGES)
def test_other_images_than_stored_ones_are_refused(name):
    """Of floats from 0 to 1 the inverse is at 254 and above, and the silhouette black."""
    assert CHANGES[name](IMAGES).dtype == np.uint8
    for other in (IMAGES / np.float32(255), IMAGES.astype(np.int32)):
        with pytest.raises(TypeError, match=f"images are {other.dtype}; give uint8 levels"):
            CHANGES[name](other)


def test_a_texture_shows_what_was_drawn_on_it():
    """Of a black image the texture itself is left; white ones show its complement, with the same key."""
    key, black = jax.random.key(0), np.zeros((2, 8, 8, 1), np.uint8)
    texture = np.asarray(variants.textured(black, key)).astype(int)
    assert texture.std() > 20 and (texture[0] != texture[1]).any()
    np.testing.assert_allclose(variants.textured(black + 255, key), 255 - texture, atol=1)

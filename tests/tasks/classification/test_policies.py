"""Augmentation policies: each operation as Pillow has it, draws as the papers say, views alike in any batch."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from PIL import Image, ImageEnhance, ImageOps

from kdjax.experiment.serialization import from_data, to_data
from kdjax.tasks.classification import Classification, Erase, Jitter, Policy, Strong, Views
from kdjax.tasks.classification import operations as ops
from kdjax.tasks.classification.policies import LIGHT, row, sub_policies
from kdjax.tasks.classification.views import FloatViews

SIDE = (24, 20)
NAMES = ("autoaugment_cifar10", "autoaugment_imagenet", "randaugment", "trivialaugment")
KEY = jax.random.key(5)


def pictures():
    """Noise, a slope, few values, one value; of three channels and of one."""
    rng, (height, width) = np.random.default_rng(0), SIDE
    slope = np.add.outer(3 * np.arange(height), 2 * np.arange(width))[..., None] + np.array([0, 40, 90])
    some = [rng.integers(0, 256, (*SIDE, 3)), slope, rng.choice([20, 60, 61, 200], (*SIDE, 3)), np.full((*SIDE, 3), 77)]
    return [x.astype(np.uint8) for x in [*some, some[0][..., :1]]]


def pillow(name, image, factor=1.0, sign=1, share=1.0):
    """What Pillow makes of an array: the reference."""
    picture = Image.fromarray(image if image.shape[-1] == 3 else image[..., 0])
    height, width = image.shape[:2]

    def moved(*matrix):
        return picture.transform((width, height), Image.Transform.AFFINE, matrix, Image.Resampling.NEAREST)

    signed = sign * share
    made = {
        "Identity": lambda: picture,
        "ShearX": lambda: moved(1, 0.3 * signed, 0, 0, 1, 0),
        "ShearY": lambda: moved(1, 0, 0, 0.3 * signed, 1, 0),
        "TranslateX": lambda: moved(1, 0, -int(150 / 331 * width * signed), 0, 1, 0),
        "TranslateY": lambda: moved(1, 0, 0, 0, 1, -int(150 / 331 * height * signed)),
        "Rotate": lambda: picture.rotate(30 * signed, Image.Resampling.NEAREST),
        "Brightness": lambda: ImageEnhance.Brightness(picture).enhance(1 + 0.9 * signed),
        "Color": lambda: ImageEnhance.Color(picture).enhance(1 + 0.9 * signed),
        "Contrast": lambda: ImageEnhance.Contrast(picture).enhance(1 + 0.9 * signed),
        "Sharpness": lambda: ImageEnhance.Sharpness(picture).enhance(1 + 0.9 * signed),
        "Posterize": lambda: ImageOps.posterize(picture, 8 - round(4 * share)),
        "Solarize": lambda: ImageOps.solarize(picture, 255 * (1 - share)),
        "Invert": lambda: ImageOps.invert(picture),
        "AutoContrast": lambda: ImageOps.autocontrast(picture),
        "Equalize": lambda: ImageOps.equalize(picture),
    }[name]()
    return np.asarray(made).reshape(image.shape)


@jax.jit
def operated(image, kind, matrix, amount):
    return ops.operated(image, kind, matrix, amount)


ALL = ("ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate", *LIGHT)
EXACT = {
    "ShearX",
    "ShearY",
    "TranslateX",
    "TranslateY",
    "Rotate",
    "Identity",
    "Posterize",
    "Solarize",
    "Invert",
    "Equalize",
}


@pytest.mark.parametrize("name", ALL)
def test_operations_are_pillows(name):
    for image in pictures():
        for share in (0.0, 1 / 9, 0.3, 5 / 9, 1.0):
            for sign in (1, -1):
                kind, matrix, amount = row(name, share, sign, *SIDE)
                found = np.asarray(operated(image.astype(np.int32), kind, np.int32(matrix), np.int32(amount)))
                wanted = pillow(name, image, sign=sign, share=share).astype(int)
                difference = np.abs(found - wanted)
                assert difference.max() <= (0 if name in EXACT else 1), (share, sign)
                assert np.mean(difference > 0) <= 0.05


def test_odd_and_tiny_images():
    for shape in ((1, 1, 3), (2, 7, 1), (33, 31, 3), (5, 4, 2)):
        image = np.random.default_rng(1).integers(0, 256, shape).astype(np.int32)
        for kind in range(len(LIGHT)):
            found = jax.eval_shape(ops.operated, image, kind, np.int32(ops.IDENTITY), np.int32(3))
            assert found.shape == shape and found.dtype == jnp.int32


@pytest.mark.parametrize("name", NAMES)
def test_draws_are_those_of_the_papers(name):
    policy = Policy(name=name)
    table = policy.table(*SIDE)
    draws = np.asarray(jax.jit(jax.vmap(lambda i: policy.draws(jax.random.fold_in(KEY, i), *SIDE)))(jnp.arange(20000)))
    assert draws.shape == (20000, policy.slots) and draws.min() >= 0 and draws.max() < len(table.kind)
    share = np.bincount(draws[:, 0], minlength=len(table.kind)) / len(draws)
    if name.startswith("autoaugment"):
        pairs = sub_policies(name)
        assert len(pairs) == 25 and all(len(pair) == 2 for pair in pairs)
        wanted = {}
        for (operation, tenths, magnitude), _ in pairs:
            for sign in (1, -1):
                key = row(operation, magnitude / 9, sign, *SIDE)
                wanted[key] = wanted.get(key, 0) + tenths / 10 / 25 / 2
        rows = [(int(k), tuple(m.tolist()), int(a)) for k, m, a in zip(*table, strict=True)]
        assert 0.2 < share[0] < 0.6  # nothing is done
        for place, key in enumerate(rows[1:], start=1):
            assert abs(share[place] - wanted.get(key, 0)) < 0.01
    else:
        kinds = np.bincount(table.kind[draws[:, 0]], minlength=len(LIGHT)) / len(draws)
        wanted = [6 / 14 if light == "Identity" else 0 if light == "Invert" else 1 / 14 for light in LIGHT]
        np.testing.assert_allclose(kinds, wanted, atol=0.012)


VIEWS = Views(crop_padding=2, flip=True, mean=(0.5,), std=(0.25,), policy=Policy("randaugment"),
              jitter=Jitter(0.4, 0.4, 0.4, 0.1), erase=Erase(0.5, cutout=3)).spread(3)  # fmt: skip
IMAGES = np.random.default_rng(2).integers(0, 256, (16, *SIDE, 3)).astype(np.uint8)
INDEX = np.arange(50, 66, dtype=np.int32)
show = jax.jit(VIEWS.train)


def test_a_view_is_of_its_example_alone():
    whole = np.asarray(show(IMAGES, INDEX, 3, KEY))
    order = np.random.default_rng(0).permutation(16)
    np.testing.assert_array_equal(show(IMAGES[order], INDEX[order], 3, KEY), whole[order])
    np.testing.assert_allclose(show(IMAGES[4:6], INDEX[4:6], 3, KEY), whole[4:6], atol=1 / 255 / 0.25 * 1.01)
    for other in ((INDEX, 4, KEY), (INDEX, 3, jax.random.key(6)), (INDEX + 64, 3, KEY)):
        assert (whole != np.asarray(show(IMAGES, *other))).any((1, 2, 3)).all()
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    rows = NamedSharding(mesh, PartitionSpec("data"))
    placed = jax.device_put(IMAGES, rows), jax.device_put(INDEX, rows), jnp.int32(3), KEY
    program = jax.jit(VIEWS.train, out_shardings=rows).lower(*placed).compile()
    assert not any(c in program.as_text() for c in ("all-gather", "all-reduce", "all-to-all", "collective-permute"))
    np.testing.assert_allclose(program(*placed), whole, atol=1 / 255 / 0.25 * 1.01)


def test_policies_are_bit_for_bit_the_same_in_any_batch():
    views = Views(policy=Policy("autoaugment_cifar10"), erase=Erase(0.7))
    run = jax.jit(views.train)
    whole = np.asarray(run(IMAGES, INDEX, 0, KEY))
    np.testing.assert_array_equal(run(IMAGES[3:8], INDEX[3:8], 0, KEY), whole[3:8])
    np.testing.assert_allclose(np.round(whole * 255), whole * 255, rtol=1e-6)


def test_the_strong_view_takes_a_policy_instead():
    views = Views(strong=Strong(cutout=0.0, policy=Policy("autoaugment_cifar10")))
    view = jax.jit(lambda *a: views.train_views(*a, names=("main", "strong")).views)(IMAGES, INDEX, 0, KEY)
    same = (np.asarray(view["main"]) == np.asarray(view["strong"])).all((1, 2, 3))
    assert 0 < same.sum() < 16  # some are left alone by both operations
    again = jax.jit(views.strong.train)(IMAGES, INDEX, 0, KEY)
    np.testing.assert_array_equal(np.round(np.asarray(again)), again)


def test_jitter_stays_in_range_and_hue_turns():
    image = jnp.asarray(IMAGES[0].astype(np.int32))
    changed = np.asarray(jax.jit(Jitter(1.0, 1.0, 1.0, 0.5).show)(image, KEY))
    assert changed.min() >= 0 and changed.max() <= 255 and (changed != IMAGES[0]).any()
    np.testing.assert_array_equal(jax.jit(Jitter().show)(image, KEY), IMAGES[0])
    red = jnp.full((3, 3, 3), 0, jnp.int32).at[..., 0].set(200)
    np.testing.assert_array_equal(jax.jit(ops.hue)(red, jnp.float32(-1 / 3))[0, 0], [0, 0, 200])
    np.testing.assert_array_equal(jax.jit(ops.hue)(image, jnp.float32(0))[:4], IMAGES[0][:4])
    np.testing.assert_array_equal(
        jax.jit(ops.hue)(image, jnp.float32(0.5))[:4], jax.jit(ops.hue)(image, jnp.float32(-0.5))[:4]
    )
    grey = jnp.full((4, 4, 3), 90, jnp.int32)
    np.testing.assert_array_equal(jax.jit(Jitter(saturation=1.0, hue=0.5).show)(grey, KEY), grey)


def test_erased_rectangles():
    erase = Erase(probability=0.25, area=(0.1, 0.3), ratio=(0.5, 2.0))
    masks = np.asarray(jax.jit(jax.vmap(lambda i: erase.mask(20, 30, jax.random.fold_in(KEY, i))))(jnp.arange(4000)))
    area = masks.mean((1, 2))
    assert abs((area > 0).mean() - 0.25) < 0.03
    assert area[area > 0].min() > 0.08 and area.max() < 0.33 and abs(area[area > 0].mean() - 0.2) < 0.02
    box = masks[np.argmax(area > 0)]
    rows, columns = np.flatnonzero(box.any(1)), np.flatnonzero(box.any(0))
    assert box[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].all()
    assert masks.mean(0).max() < 3 * masks.mean(0)[5:-5, 5:-5].mean()
    cut = np.asarray(
        jax.jit(jax.vmap(lambda i: Erase(cutout=6).mask(20, 30, jax.random.fold_in(KEY, i))))(jnp.arange(500))
    )
    assert cut.sum((1, 2)).max() == 36 and cut.sum((1, 2)).min() >= 9


def test_what_is_erased_is_the_mean():
    views = Views(mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4), erase=Erase(1.0))
    view = np.asarray(jax.jit(views.train)(IMAGES, INDEX, 0, KEY))
    plain = np.asarray(views.evaluate(IMAGES))
    assert ((view == plain) | (view == 0)).all() and ((view == 0).all(-1).sum((1, 2)) > 5).all()


@pytest.mark.parametrize(("make", "said"), [
    (lambda: Policy(magnitude=31), "Policy.magnitude is 31; use 0 to 30"),
    (lambda: Policy(operations=0), "Policy.operations is 0"),
    (lambda: Jitter(hue=0.6), "Jitter.hue is 0.6; use 0 to 0.5"),
    (lambda: Erase(probability=1.5), "Erase.probability is 1.5"),
    (lambda: Erase(area=(0.0, 0.3)), r"Erase.area is \(0.0, 0.3\)"),
    (lambda: Erase(cutout=-1), "Erase.cutout is -1"),
    (lambda: FloatViews(policy=Policy("randaugment")).train(IMAGES.astype(np.float32), INDEX, 0, KEY), "for images of uint8"),
    (lambda: Classification(views=VIEWS).numbered_views(), "data.views.policy changes every view anew"),
])  # fmt: skip
def test_what_does_not_go_is_refused(make, said):
    with pytest.raises(ValueError, match=said):
        make()


def test_it_is_saved_with_the_configuration():
    data = Classification(views=dataclasses.replace(VIEWS, strong=Strong(policy=Policy("trivialaugment"))))
    assert from_data(json.loads(json.dumps(to_data(data)))) == data

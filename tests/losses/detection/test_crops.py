"""A classifier teaching a detector by crops: against the original implementation, and at the edges of images and boxes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdjax import losses
from tests.golden_cases import cases
from tests.losses import numpy_reference as reference
from tests.losses.computing import compiled, computing_in, draw

losses = compiled(losses)

PRECISIONS = pytest.mark.parametrize("precision", ["f64", "f32"])
MODES = {(False, "kl-ce"): "softmax", (True, "kl-ce"): "l1", (True, "kl-bce"): "binary"}
crop_and_resize = jax.jit(losses.crop_and_resize, static_argnames="size")
teach = jax.jit(jax.value_and_grad(losses.classifier_to_detector_kl), static_argnames=("mode", "epsilon"))


@PRECISIONS
@pytest.mark.parametrize("case", cases("dicod_cls"), ids=repr)
def test_classification_golden(case, precision):
    hyper = case.hyper
    mode = MODES[hyper.get("use_sigmoid", False), hyper["ltype"]]
    with computing_in(precision) as real:
        student, teacher = real(case.inputs["student"]), real(case.inputs["teacher"])
        weights = real(case.inputs.get("weight", np.ones(len(student), np.float32)))
        value, gradient = teach(
            student, teacher, weights, temperature=hyper["T"], mode=mode, avg_factor=hyper.get("avg_factor")
        )
        scale = hyper.get("loss_weight", 1.0)
        case.check(scale * value, "out", "loss", precision)
        case.check(scale * gradient, "grad", "student", precision)


@PRECISIONS
@pytest.mark.parametrize("case", cases("dicod_loc"), ids=repr)
def test_localization_golden(case, precision):
    hyper = case.hyper
    with computing_in(precision) as real:
        image = real(np.transpose(case.inputs["image"][0], (1, 2, 0)))
        height, width, _ = image.shape

        def loss(predicted):
            value = losses.crop_feature_l1(
                predicted,
                real(case.inputs["target"]),
                image,
                None,
                layers=("obj",),
                size=hyper["object_size"],
                pool=hyper["gap_size"] if hyper["gap"] else None,
            )
            return hyper["loss_weight"] * value

        predicted = real(case.inputs["pred"])
        value, gradient = jax.jit(jax.value_and_grad(loss))(predicted)
        case.check(value, "out", "loss", precision)
        case.check(gradient, "grad", "pred", precision)
        low, high = jnp.maximum(predicted[:, :2], 0), jnp.minimum(predicted[:, 2:], real([width, height])[None])
        crops = crop_and_resize(image, jnp.concatenate([low, high], -1), size=hyper["object_size"])
        case.check(np.transpose(crops, (0, 3, 1, 2)), "out", "crops_pred", precision)


# --- classification ---

K, C = 4, 3
STUDENT, TEACHER = draw(90, K, C + 1), draw(91, K, C)
MASK = np.array([True, False, True, True])


def with_background(teacher):
    return np.concatenate([teacher, np.full((len(teacher), 1), -np.inf)], -1)


def sigmoids(logits):
    """Log of sigmoid and of one minus it, in float64."""
    return -np.logaddexp(0, -np.float64(logits)), -np.logaddexp(0, np.float64(logits))


def plain_divergence(student, teacher, temperature, mode):
    """Each box's exact divergence times T^2, in float64 and without epsilon."""
    if mode == "softmax":
        return reference.kd(student, with_background(teacher), temperature)
    (t_yes, t_no), (s_yes, s_no) = sigmoids(teacher / temperature), sigmoids(student / temperature)
    if mode == "binary":
        each = np.exp(t_yes) * (t_yes - s_yes) + np.exp(t_no) * (t_no - s_no)
        return temperature**2 * each.mean(-1)
    p, q = (x - np.logaddexp.reduce(x, -1, keepdims=True) for x in (t_yes, s_yes))
    return temperature**2 * np.sum(np.exp(p) * (p - q), -1)


def arguments(mode, scale=1.0):
    return scale * (STUDENT if mode == "softmax" else STUDENT[:, :C]), scale * TEACHER


EACH_MODE = pytest.mark.parametrize("mode", ["softmax", "binary", "l1"])


@EACH_MODE
@pytest.mark.parametrize("epsilon", [0.0, 1e-10])
def test_classification_is_the_mean_of_exact_divergences(mode, epsilon):
    student, teacher = arguments(mode)
    value, gradient = teach(student, teacher, MASK, temperature=2.0, mode=mode, epsilon=epsilon)
    np.testing.assert_allclose(value, plain_divergence(student, teacher, 2.0, mode)[MASK].mean(), rtol=1e-5)
    np.testing.assert_array_equal(gradient[1], 0)
    assert np.abs(gradient).max() > 1e-2


@EACH_MODE
def test_without_epsilon_logits_of_ten_thousand_are_exact(mode):
    student, teacher = arguments(mode, 3e3)
    value, gradient = teach(student, teacher, MASK, temperature=2.0, mode=mode, epsilon=0.0)
    expected = plain_divergence(student, teacher, 2.0, mode)[MASK].mean()
    assert expected > 100
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    assert np.isfinite(gradient).all() and np.abs(gradient).max() > 0.01
    faded, _ = teach(student, teacher, MASK, temperature=2.0, mode=mode)
    assert faded <= 4 * 2 * -np.log(1e-10)


@EACH_MODE
def test_classification_learns_nothing_from_its_equal(mode):
    student, teacher = arguments(mode)
    equal = with_background(teacher).astype(np.float32) if mode == "softmax" else teacher
    value, gradient = teach(equal, teacher, MASK, mode=mode)
    np.testing.assert_allclose(value, 0, atol=1e-6)
    np.testing.assert_allclose(gradient, 0, atol=1e-6)
    by_teacher = jax.jit(jax.grad(lambda t: losses.classifier_to_detector_kl(student, t, MASK, mode=mode)))(teacher)
    np.testing.assert_array_equal(by_teacher, 0)


@EACH_MODE
def test_boxes_that_do_not_count_may_hold_anything(mode):
    student, teacher = arguments(mode)
    loss = lambda s, t, m: losses.classifier_to_detector_kl(s, t, m, mode=mode)
    learn = jax.jit(jax.value_and_grad(loss))
    expected, gradient = learn(student, teacher, MASK)
    spoilt, other = student.copy(), teacher.copy()
    spoilt[1], other[1] = np.nan, np.inf
    value, by_spoilt = learn(spoilt, other, MASK)
    np.testing.assert_array_equal(value, expected)
    np.testing.assert_array_equal(by_spoilt, gradient)
    value, gradient = learn(spoilt, other, 0 * MASK > 0)
    assert value == 0
    np.testing.assert_array_equal(gradient, 0)
    batch = np.stack([student, student]), np.stack([teacher, teacher]), np.stack([MASK, 0 * MASK > 0])
    np.testing.assert_allclose(jax.jit(loss)(*batch), [expected, 0], rtol=1e-5)
    np.testing.assert_allclose(jax.jit(jax.vmap(loss))(*batch), [expected, 0], rtol=1e-5)


@EACH_MODE
def test_a_class_that_the_student_excludes(mode):
    student, teacher = arguments(mode)
    student = student.copy()
    student[0, 1] = -np.inf
    value, gradient = teach(student, teacher, MASK, mode=mode)
    assert np.isfinite(gradient).all()
    assert value < 100
    exact, gradient = teach(student, teacher, MASK, mode=mode, epsilon=0.0)
    assert exact == np.inf and np.isfinite(gradient).all()


# --- crops ---

IMAGE = draw(92, 7, 9, 2)


def plain_sample(image, x, y):
    """Bilinear, zero outside, pixel centres at whole numbers."""
    image = np.pad(np.float64(image), ((1, 2), (1, 2), (0, 0)))
    x, y = np.clip(x, -1, image.shape[1] - 3) + 1, np.clip(y, -1, image.shape[0] - 3) + 1
    i, j = int(np.floor(y)), int(np.floor(x))
    a, b = y - i, x - j
    top = (1 - b) * image[i, j] + b * image[i, j + 1]
    return (1 - a) * top + a * ((1 - b) * image[i + 1, j] + b * image[i + 1, j + 1])


def plain_crop(image, box, h, w):
    x1, y1, x2, y2 = box
    return np.array(
        [
            [
                plain_sample(image, x1 + (j + 0.5) / w * (x2 - x1) - 0.5, y1 + (i + 0.5) / h * (y2 - y1) - 0.5)
                for j in range(w)
            ]
            for i in range(h)
        ]
    )


BOXES = np.array(
    [
        [1.3, 0.6, 6.2, 5.9],
        [-3.0, -2.5, 4.0, 3.2],
        [5.0, 4.0, 15.0, 12.0],
        [-9.0, 1.0, -4.0, 3.0],
        [2.0, 2.0, 2.5, 2.25],
    ],
    np.float32,
)


def test_crops_are_bilinear_samples_and_zero_outside():
    crops = crop_and_resize(IMAGE, BOXES, size=(3, 4))
    assert crops.shape == (5, 3, 4, 2)
    np.testing.assert_allclose(crops, [plain_crop(IMAGE, np.float64(b), 3, 4) for b in BOXES], rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(crops[3], 0)
    np.testing.assert_allclose(crop_and_resize(IMAGE, BOXES[None], size=(3, 4))[0], crops, rtol=1e-5, atol=1e-6)
    whole = np.array([0.0, 0.0, 9.0, 7.0], np.float32)
    np.testing.assert_allclose(crop_and_resize(IMAGE, whole, size=(7, 9)), IMAGE, rtol=1e-6, atol=2e-5)


def test_gradient_of_a_crop_is_its_finite_difference():
    with computing_in("f64") as real:
        image, boxes, seen = real(IMAGE), real(BOXES), real(draw(93, 5, 4, 4, 2))
        score = jax.jit(lambda b: jnp.sum(seen * losses.crop_and_resize(image, b, 4), axis=(1, 2, 3)))
        gradient = jax.jit(jax.jacobian(score))(boxes)[jnp.arange(5), jnp.arange(5)]
        step = 1e-6
        for edge in range(4):
            shift = step * np.eye(4)[edge][None]
            slope = (score(boxes + shift) - score(boxes - shift)) / (2 * step)
            np.testing.assert_allclose(gradient[:, edge], slope, rtol=1e-6, atol=1e-7)
        np.testing.assert_array_equal(gradient[3], 0)


def test_the_slope_at_a_pixel_centre_is_that_to_its_right():
    """As in the reference: a sample exactly on a pixel."""
    image = jnp.array([0.0, 1.0, 5.0, 2.0]).reshape(1, 4, 1)
    sample = lambda x: losses.crop_and_resize(
        image, jnp.array([0.0, 0.0, 1.0, 1.0]) + jnp.array([1.0, 0, 1, 0]) * x, 1
    )[0, 0, 0]
    value, slope = jax.jit(jax.value_and_grad(sample))(1.0)
    assert value == 1
    assert slope == 4


@jax.jit
def crop_and_gradient(box):
    crop, pull = jax.vjp(lambda b: losses.crop_and_resize(IMAGE, b, 3), box)
    return crop, pull(jnp.ones_like(crop))[0]


@pytest.mark.parametrize(
    "box", [[3.0, 2.0, 3.0, 2.0], [4.0, 5.0, 1.0, 2.0], [2.0, 2.0, 2.0, 6.0], [2.0, 2.0, 5.0, 1.0]]
)
def test_an_empty_box_gives_a_constant_crop_and_no_gradient(box):
    crop, gradient = crop_and_gradient(jnp.array(box))
    np.testing.assert_allclose(
        crop, np.broadcast_to(plain_sample(IMAGE, box[0] - 0.5, box[1] - 0.5), (3, 3, 2)), rtol=1e-5
    )
    np.testing.assert_array_equal(gradient, 0)


# --- features of crops ---

TARGETS = BOXES[[0, 0, 2, 0, 0]] + np.array([[0.4, 0.3, -0.2, 0.1]], np.float32)
FILTER = draw(94, 2, 3)


def stem(crops):
    """A made-up teacher: a nonlinear map of every other pixel."""
    return jnp.tanh(crops[:, ::2, ::2] @ jnp.asarray(FILTER, crops.dtype))


def plain_feature_l1(boxes, layers, pool, size=8):
    low, high = np.maximum(boxes[:, :2], 0), np.minimum(boxes[:, 2:], [9, 7])
    cut, wanted = (
        np.concatenate([low, high], -1),
        np.concatenate([np.maximum(TARGETS[:, :2], 0), np.minimum(TARGETS[:, 2:], [9, 7])], -1),
    )
    total = 0
    for box, target in zip(cut, wanted, strict=True):
        crops = [plain_crop(IMAGE, np.float64(b), size, size) for b in (box, target)]
        for place, name in enumerate(layers):
            maps = [c if name == "obj" else np.tanh(c[::2, ::2] @ np.float64(FILTER)) for c in crops]
            cells = pool * 2**place
            maps = [m.reshape(cells, len(m) // cells, cells, len(m) // cells, -1).mean((1, 3)) for m in maps]
            total += np.mean(np.abs(maps[0] - maps[1]))
    return total / len(boxes)


@pytest.mark.parametrize("layers", [("obj", "stem"), ("stem",), ("obj",)])
def test_feature_l1_is_its_formula(layers):
    boxes = BOXES[[0, 1, 2]]
    predicted = np.concatenate([boxes, boxes[:2]])
    loss = lambda b: losses.crop_feature_l1(b, TARGETS, IMAGE, stem, pool=2, layers=layers, size=8)
    value, gradient = jax.jit(jax.value_and_grad(loss))(predicted)
    np.testing.assert_allclose(value, plain_feature_l1(predicted, layers, 2), rtol=1e-4)
    assert (np.abs(gradient).max(-1) > 1e-4).all()
    # What is cut off gets no gradient: left and top of the second, right and bottom of the third.
    np.testing.assert_array_equal(gradient[1, :2], 0)
    np.testing.assert_array_equal(gradient[2, 2:], 0)


def test_feature_l1_pulls_the_prediction_alone_and_not_once_equal():
    loss = lambda p, t: losses.crop_feature_l1(p, t, IMAGE, stem, pool=2, size=8)
    boxes = BOXES[:1]
    learn = jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))
    before, (ours, theirs) = learn(boxes, TARGETS[:1])
    np.testing.assert_array_equal(theirs, 0)
    assert learn(boxes - 0.2 * ours / np.abs(ours).max(), TARGETS[:1])[0] < before
    # Operation by operation: compiled together, the two sides may round differently.
    with jax.disable_jit():
        value, gradient = jax.value_and_grad(loss)(boxes, boxes)
    assert value == 0
    np.testing.assert_array_equal(gradient, 0)


def test_feature_l1_of_boxes_that_do_not_count_or_are_empty():
    mask = np.array([True, False, True, False])
    predicted = np.concatenate([BOXES[:1], [[np.nan] * 4], BOXES[3:4], [[3.0, 2.0, np.inf, 4.0]]]).astype(np.float32)
    targets = np.concatenate([TARGETS[:1], [[0, 0, np.nan, 1]], TARGETS[:1], TARGETS[:1]]).astype(np.float32)
    learn = jax.value_and_grad(lambda p, t, m: losses.crop_feature_l1(p, t, IMAGE, stem, pool=2, size=8, mask=m))
    loss = jax.jit(learn)
    value, gradient = loss(predicted, targets, mask)
    kept, by_kept = loss(predicted[[0, 2]], targets[[0, 2]], mask[[0, 2]])
    np.testing.assert_allclose(value, kept, rtol=1e-5)
    np.testing.assert_allclose(gradient[::2], by_kept, rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(gradient[1:], 0)  # the third lies outside the image
    assert np.isfinite(value) and np.abs(gradient[0]).max() > 1e-4
    value, gradient = loss(predicted, targets, 0 * mask > 0)
    assert value == 0
    np.testing.assert_array_equal(gradient, 0)
    images = np.stack([IMAGE, 2 * IMAGE])
    each = lambda i: losses.crop_feature_l1(predicted, targets, i, stem, pool=2, size=8, mask=mask, avg_factor=4.0)
    mapped = jax.jit(jax.vmap(each))(images)
    alone = jax.jit(each)
    np.testing.assert_allclose(mapped, [alone(i) for i in images], rtol=1e-5)
    np.testing.assert_allclose(mapped[0], kept / 2, rtol=1e-5)


def test_feature_l1_averages_the_layers_of_the_teacher():
    layers = lambda crops: {"stem": stem(crops), "later": stem(crops)[:, ::2, ::2]}
    loss = lambda names, fn: losses.crop_feature_l1(BOXES[:2], TARGETS[:2], IMAGE, fn, pool=None, layers=names, size=8)
    apart = [loss((name,), layers) for name in ("stem", "later")]
    expected = loss(("obj",), None) + np.mean(apart)
    np.testing.assert_allclose(loss(("obj", "stem", "later"), layers), expected, rtol=1e-5)
    np.testing.assert_array_equal(loss(("stem",), stem), apart[0])


def test_refuses_what_does_not_fit():
    with pytest.raises(ValueError, match="mode is 'kl'"):
        losses.classifier_to_detector_kl(STUDENT, TEACHER, MASK, mode="kl")
    with pytest.raises(ValueError, match="teacher_logits has 3 classes, student_logits 4"):
        losses.classifier_to_detector_kl(STUDENT, TEACHER, MASK, mode="binary")
    with pytest.raises(ValueError, match="epsilon is -1"):
        losses.classifier_to_detector_kl(STUDENT, TEACHER, MASK, epsilon=-1)
    with pytest.raises(ValueError, match=r"mask has shape \(3,\); it must be \(4,\)"):
        losses.classifier_to_detector_kl(STUDENT, TEACHER, MASK[:3])
    with pytest.raises(ValueError, match=r"image has shape \(1, 7, 9, 2\); it must be \[H, W, C\]"):
        losses.crop_and_resize(IMAGE[None], BOXES, 4)
    with pytest.raises(ValueError, match=r"both must be \[K, 4\]"):
        losses.crop_feature_l1(BOXES, TARGETS[:2], IMAGE, stem)
    with pytest.raises(ValueError, match="name at least one, and give teacher_features_fn"):
        losses.crop_feature_l1(BOXES, TARGETS, IMAGE, None)
    with pytest.raises(ValueError, match=r"gives \['stem'\], layers asks for \['layer1'\] as well"):
        losses.crop_feature_l1(BOXES, TARGETS, IMAGE, stem, layers=("obj", "layer1"), size=8)

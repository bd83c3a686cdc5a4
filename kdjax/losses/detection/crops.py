"""An image classifier as the teacher of a detector: it judges crops of the boxes."""

import math
from collections.abc import Callable, Mapping
from typing import Literal

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from kdjax.losses import checks, logspace
from kdjax.losses.detection import boxes as box
from kdjax.losses.detection.dense import location_weights
from kdjax.losses.features.pooling import adaptive_average_pool

__all__ = ["classifier_to_detector_kl", "crop_and_resize", "crop_feature_l1"]

Array = jax.Array


def classifier_to_detector_kl(
    student_logits: ArrayLike,
    teacher_logits: ArrayLike,
    mask: ArrayLike,
    *,
    temperature: ArrayLike = 2.0,
    mode: Literal["softmax", "binary", "l1"] = "softmax",
    epsilon: float = 1e-10,
    avg_factor: ArrayLike | None = None,
) -> Array:
    r"""Pulls the classes of a detector's positive boxes towards those a classifier sees in the crop of their object.

    $$\frac{T^2}{|P|} \sum_{k \in P} \mathrm{KL}(p_t^T \,\|\, p_s^T)$$

    "softmax": softmaxes of the logits over `T`; the teacher gives the student's background class, the last one, no
    probability. "binary": each class's sigmoid by itself, and the mean over the classes of their divergences. "l1": sigmoids
    divided by their sum over the classes.

    Args:
      student_logits: `[..., K, C + 1]`, or `[..., K, C]` of a detector without background; the latter unless "softmax".
      teacher_logits: `[..., K, C]`, a constant: the logits of the crop of the object that each box is assigned to.
      mask: `[..., K]`: bools, or weights (constants). `P` is where it is not 0; elsewhere the logits may hold anything.
      temperature: a number, a traced scalar, or an array that broadcasts to `[..., K]`.
      mode: "softmax", "binary" or "l1".
      epsilon: as released, "softmax" and "l1" add it to all probabilities and "binary" raises them to it, before the
        logarithm and as weights: where the student gives a class less than this, the gradient fades. 0 is the plain divergence.
      avg_factor: what to divide by; None for the size of `P`. On several devices give the global count.

    Returns:
      `[...]`, one number where the arrays have no more axes than above, in nats (times `T^2`); 0 where `P` is empty. The
      published weight is 0.4.

    Raises:
      TypeError: logits are not floating point.
      ValueError: class counts or leading axes do not fit, `mode` is none of the three, `epsilon` is negative, or
        `temperature` is not above 0 or does not broadcast.

    Paper: Guo, Alvarez, Salzmann, "Distilling Image Classifiers in Object Detectors", NeurIPS 2021, arXiv 2106.05209.

    >>> student, teacher = jnp.array([[0.0, 0.0, -99.0]]), jnp.array([[1.0, 0.0]])
    >>> print(f"{classifier_to_detector_kl(student, teacher, jnp.ones(1, bool), temperature=1.0):.4f}")
    0.1109
    """
    if mode not in ("softmax", "binary", "l1"):
        raise ValueError(f'mode is {mode!r}; use "softmax", "binary" or "l1".')
    if epsilon < 0:
        raise ValueError(f"epsilon is {epsilon}; it must be at least 0.")
    student = checks.class_scores(student_logits, "student_logits")
    teacher = lax.stop_gradient(checks.class_scores(teacher_logits, "teacher_logits"))
    if mode == "softmax" and student.shape[-1] == teacher.shape[-1] + 1:
        background = jnp.full((*teacher.shape[:-1], 1), -jnp.inf, teacher.dtype)
        teacher = jnp.concatenate([teacher, background], axis=-1)
    checks.same_classes(teacher, student, "teacher_logits", "student_logits")
    if student.ndim < 2:
        raise ValueError(f"student_logits has shape {student.shape}; it must be [..., K, C].")
    mask = location_weights(mask, student.shape[:-1], student.dtype, "mask")
    kept = mask != 0
    student, teacher = jnp.where(kept[..., None], student, 0), jnp.where(kept[..., None], teacher, 0)
    temperature = checks.softening(temperature, student)
    divergence = _DIVERGENCES[mode](student, teacher, temperature, epsilon)
    if avg_factor is None:
        avg_factor = jnp.maximum(jnp.sum(kept, axis=-1, dtype=student.dtype), 1)
    return jnp.sum(mask * temperature**2 * divergence, axis=-1) / avg_factor


def crop_and_resize(image: ArrayLike, boxes: ArrayLike, size: int | tuple[int, int]) -> Array:
    r"""Crops boxes out of an image and scales them to one size, bilinearly; differentiable by the boxes.

    Output column `i` of `n` samples the image at $x_1 + \frac{i + 1/2}{n} (x_2 - x_1) - \frac{1}{2}$, in pixels whose
    centres are whole numbers; likewise the rows. Beyond the image there are zeros. It is torch's `affine_grid` and
    `grid_sample` with `align_corners=False`.

    Args:
      image: `[H, W, C]`.
      boxes: `[..., 4]` corners in pixels, from 0 to W and H.
      size: of the crops: a number for squares, or `(h, w)`.

    Returns:
      `[..., h, w, C]`. A box whose width or height is not above 0 gives a constant crop, the image at its left top corner,
      and gets no gradient.

    Raises:
      TypeError: an array is not floating point.
      ValueError: shapes do not fit.

    Two matrix products with the interpolation weights, at the highest precision. From Guo, Alvarez, Salzmann, NeurIPS 2021,
    arXiv 2106.05209.

    >>> image = jnp.arange(4.0).reshape(1, 4, 1)
    >>> crop_and_resize(image, jnp.array([1.0, 0.0, 3.0, 1.0]), (1, 2))[..., 0]
    Array([[1., 2.]], dtype=float32)
    """
    image, boxes = checks.floating(image, "image"), box.corners(boxes, "boxes")
    if image.ndim != 3:
        raise ValueError(f"image has shape {image.shape}; it must be [H, W, C]. Use jax.vmap over a batch.")
    height, width = (size, size) if isinstance(size, int) else size
    low, high = boxes[..., :2], boxes[..., 2:]
    solid = jnp.all(high > low, axis=-1, keepdims=True)
    corner = lax.stop_gradient(low)
    low, high = jnp.where(solid, low, corner), jnp.where(solid, high, corner)
    rows = _interpolation(low[..., 1], high[..., 1], height, image.shape[0])
    columns = _interpolation(low[..., 0], high[..., 0], width, image.shape[1])
    crops = jnp.einsum("...ih,hwc->...iwc", rows, image, precision=lax.Precision.HIGHEST)
    return jnp.einsum("...jw,...iwc->...ijc", columns, crops, precision=lax.Precision.HIGHEST)


def crop_feature_l1(
    pred_boxes: ArrayLike,
    target_boxes: ArrayLike,
    image: ArrayLike,
    teacher_features_fn: Callable | None,
    *,
    pool: int | None = 4,
    layers: tuple[str, ...] = ("obj", "stem"),
    size: int = 112,
    mask: ArrayLike | None = None,
    avg_factor: ArrayLike | None = None,
) -> Array:
    r"""Pulls a predicted box to where a classifier sees in it what it sees in the true box.

    $$\frac{1}{|P|} \sum_{k \in P} \left( \frac{\| \Delta A(x) \|_1}{h w c} +
    \mathop{\mathrm{mean}}_{\ell} \frac{\| \Delta A_\ell(F^\ell(x)) \|_1}{h_\ell w_\ell c_\ell} \right)$$

    with `x` the crop of the image, $\Delta$ predicted minus true, `F` the teacher's layers and `A` average pooling. The
    gradient goes through the teacher and the crop into the predicted box.

    Args:
      pred_boxes: `[K, 4]` corners in pixels; cut to the image first.
      target_boxes: `[K, 4]` corners, constants; cut likewise.
      image: `[H, W, C]`, normalized as the teacher wants it.
      teacher_features_fn: from crops `[K, size, size, C]` to the teacher's features `[K, h, w, c]` in a mapping by layer
        name, or to a single array, which is "stem". The teacher is to be frozen and in evaluation mode. None with "obj"
        alone.
      pool: `g`: entry `i` of `layers` is pooled to `g 2^i` cells a side, as released: 4 for the crop and 8 for the stem.
        None does not pool.
      layers: which terms: "obj" is the crop itself, the others are the teacher's. Terms of several layers are averaged.
      size: side of the crops.
      mask: `[K]`: bools, or weights (constants). `P` is where it is not 0; elsewhere boxes may hold anything. None for all.
      avg_factor: what to divide by; None for the size of `P`. On several images or devices give the global count.

    Returns:
      One number, 0 where `P` is empty. The published weight is 0.15. A box that is empty once cut gets no gradient.

    Raises:
      TypeError: an array is not floating point.
      ValueError: shapes do not fit, `layers` is empty, or a layer is missing.

    Paper: Guo, Alvarez, Salzmann, "Distilling Image Classifiers in Object Detectors", NeurIPS 2021, arXiv 2106.05209.

    >>> image = jnp.broadcast_to(jnp.arange(8.0)[:, None], (4, 8, 1))
    >>> there, here = jnp.array([[3.0, 1.0, 5.0, 3.0]]), jnp.array([[1.0, 1.0, 3.0, 3.0]])
    >>> crop_feature_l1(there, here, image, None, layers=("obj",), size=2, pool=None)
    Array(2., dtype=float32)
    """
    predicted, target = box.corners(pred_boxes, "pred_boxes"), box.corners(target_boxes, "target_boxes")
    if predicted.shape != target.shape or predicted.ndim != 2:
        raise ValueError(f"pred_boxes has shape {predicted.shape}, target_boxes {target.shape}; both must be [K, 4].")
    layers = tuple(layers)
    if not layers or (teacher_features_fn is None and layers != ("obj",)):
        raise ValueError(f'layers is {layers}; name at least one, and give teacher_features_fn for any but "obj".')
    image = checks.floating(image, "image")
    mask = location_weights(mask, predicted.shape[:-1], predicted.dtype, "mask")
    kept = mask != 0
    predicted = _features(predicted, kept, image, teacher_features_fn, layers, size)
    target = lax.stop_gradient(_features(target, kept, image, teacher_features_fn, layers, size))
    teacher_layers = max(sum(name != "obj" for name in layers), 1)
    total = jnp.zeros(mask.shape, mask.dtype)
    for place, name in enumerate(layers):
        ours, theirs = predicted[name], target[name]
        if pool is not None:
            cells = (pool * 2**place,) * 2
            ours, theirs = adaptive_average_pool(ours, cells), adaptive_average_pool(theirs, cells)
        gap = ours - theirs
        # The slope of |x| at 0 is 0.
        distance = jnp.mean(gap * jnp.sign(gap), axis=(1, 2, 3))
        total += distance if name == "obj" else distance / teacher_layers
    if avg_factor is None:
        avg_factor = jnp.maximum(jnp.sum(kept, dtype=mask.dtype), 1)
    return jnp.sum(jnp.where(kept, mask * total, 0)) / avg_factor


def _features(boxes: Array, kept: Array, image: Array, features_fn, layers, size: int) -> dict[str, Array]:
    """The crops and what the teacher says of them, by name. Boxes that do not count are empty."""
    low = jnp.maximum(boxes[:, :2], 0)
    end = jnp.array([image.shape[1], image.shape[0]], boxes.dtype)
    high = jnp.minimum(boxes[:, 2:], jnp.broadcast_to(end, low.shape))
    crops = crop_and_resize(image, jnp.where(kept[:, None], jnp.concatenate([low, high], axis=-1), 0), size)
    if layers == ("obj",):
        return {"obj": crops}
    features = features_fn(crops)
    features = dict(features) if isinstance(features, Mapping) else {"stem": features}
    missing = sorted(set(layers) - set(features) - {"obj"})
    if missing:
        raise ValueError(f"teacher_features_fn gives {sorted(features)}, layers asks for {missing} as well.")
    return {name: checks.floating(features[name], name) for name in layers if name != "obj"} | {"obj": crops}


def _interpolation(low: Array, high: Array, count: int, length: int) -> Array:
    """`[..., count, length]` bilinear weights of samples evenly spread between two edges; 0 outside."""
    step = jnp.broadcast_to(jnp.arange(count, dtype=low.dtype) + 0.5, (*low.shape, count))
    position = low[..., None] + step * (high - low)[..., None] / count - 0.5
    before = lax.stop_gradient(jnp.floor(position))
    beyond = (position - before)[..., None]
    pixel = jnp.broadcast_to(jnp.arange(length, dtype=low.dtype), (*position.shape, length))
    before = before[..., None]
    return jnp.where(pixel == before, 1 - beyond, 0) + jnp.where(pixel == before + 1, beyond, 0)


def _softmax_kl(student: Array, teacher: Array, temperature: Array, epsilon: float) -> Array:
    return _raised_kl(logspace.log_softmax(teacher, temperature), logspace.log_softmax(student, temperature), epsilon)


def _l1_kl(student: Array, teacher: Array, temperature: Array, epsilon: float) -> Array:
    # A softmax of logarithms divides by the sum.
    log_p, log_q = (jax.nn.log_sigmoid(logits / temperature[..., None]) for logits in (teacher, student))
    return _raised_kl(logspace.log_softmax(log_p), logspace.log_softmax(log_q), epsilon)


def _binary_kl(student: Array, teacher: Array, temperature: Array, epsilon: float) -> Array:
    student, teacher = student / temperature[..., None], teacher / temperature[..., None]
    total = 0
    for sign in (1, -1):
        log_p, log_q = jax.nn.log_sigmoid(sign * teacher), jax.nn.log_sigmoid(sign * student)
        if epsilon:
            log_p, log_q = jnp.maximum(log_p, math.log(epsilon)), jnp.maximum(log_q, math.log(epsilon))
        total += logspace.kl(log_p, log_q)
    return total / student.shape[-1]


def _raised_kl(log_p: Array, log_q: Array, epsilon: float) -> Array:
    """The divergence with `epsilon` added to every probability."""
    if epsilon:
        log_p, log_q = jnp.log(jnp.exp(log_p) + epsilon), jnp.log(jnp.exp(log_q) + epsilon)
    return logspace.kl(log_p, log_q)


_DIVERGENCES = {"softmax": _softmax_kl, "binary": _binary_kl, "l1": _l1_kl}

"""Maps of one size from maps of different sizes."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike

from kdjax.losses import checks

__all__ = ["adaptive_average_pool"]

Array = jax.Array


def adaptive_average_pool(x: ArrayLike, size: tuple[int, int]) -> Array:
    r"""Average pooling to a given size, whatever size comes in: each output cell is the mean of a window of the map.

    In each direction cell `i` of `n` averages rows `floor(i N / n)` to `ceil((i + 1) N / n)` of the map's `N`. Where `n`
    divides `N` the windows tile the map; otherwise neighbours overlap; where `n` is larger values are repeated. This is
    PyTorch's `AdaptiveAvgPool2d`.

    Args:
      x: `[..., H, W, K]`.
      size: `(h, w)`, each at least 1.

    Returns:
      `[..., h, w, K]`, of at least float32. The map itself, in that precision, if it has that size already.

    Raises:
      TypeError: `x` is not floating point.
      ValueError: `x` has fewer than three axes or no position, or a size is below 1.

    >>> adaptive_average_pool(jnp.arange(5.0).reshape(1, 5, 1), (1, 2))[0, :, 0]
    Array([1., 3.], dtype=float32)
    """
    x = checks.floating(x, "x")
    if x.ndim < 3 or 0 in x.shape[-3:-1] or min(size) < 1:
        raise ValueError(f"A map of shape {x.shape} cannot be pooled to {tuple(size)}: give [..., H, W, K] and (h, w).")
    (height, width), (h, w) = x.shape[-3:-1], size
    if h != height:
        x = jnp.einsum("oi,...iwk->...owk", _windows(height, h, x.dtype), x, precision=lax.Precision.HIGHEST)
    if w != width:
        x = jnp.einsum("oi,...hik->...hok", _windows(width, w, x.dtype), x, precision=lax.Precision.HIGHEST)
    return x


def _windows(length: int, cells: int, dtype) -> Array:
    """`[cells, length]` weights of the mean in each window."""
    first = np.arange(cells) * length // cells
    end = -(-(np.arange(cells) + 1) * length // cells)
    position = np.arange(length)
    inside = (position >= first[:, None]) & (position < end[:, None])
    return jnp.asarray(inside / inside.sum(1, keepdims=True), dtype)


def maps_pair(student_features, teacher_features) -> tuple[Array, Array]:
    """Both networks' `[B, H, W, K]` maps, promoted and of one size; no gradient goes into the teacher's.

    Where the sizes differ, the larger map is pooled to the smaller, in each direction.
    """
    student, teacher = checks.features_pair(student_features, teacher_features)
    if student.ndim != 4 or teacher.ndim != 4 or 0 in student.shape[1:] + teacher.shape[1:]:
        raise ValueError(
            f"student_features has shape {student.shape}, teacher_features {teacher.shape}: both must be maps "
            "[B, H, W, K] with at least one position and channel."
        )
    size = tuple(min(sizes) for sizes in zip(student.shape[1:3], teacher.shape[1:3], strict=True))
    return adaptive_average_pool(student, size), adaptive_average_pool(teacher, size)


def same_channels(student: Array, teacher: Array) -> None:
    """Raises unless both have as many channels."""
    if student.shape[-1] != teacher.shape[-1]:
        raise ValueError(
            f"student_features has shape {student.shape}, teacher_features {teacher.shape}: channels are compared one by "
            "one; project the student's to the teacher's width first."
        )


def by_position(maps: Array) -> Array:
    """`[B, H, W, K]` as `[B, HW, K]`; of no example too."""
    return jnp.reshape(maps, (maps.shape[0], maps.shape[1] * maps.shape[2], maps.shape[3]))

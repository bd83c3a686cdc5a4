"""Losses between the shapes that two networks give a batch: its distances and its angles."""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from kdjax.losses import checks
from kdjax.losses.relations.affinity import affinity_kd

__all__ = ["rkd", "rkd_angle", "rkd_distance"]

Array = jax.Array


def rkd(
    student_features: ArrayLike,
    teacher_features: ArrayLike,
    *,
    distance: ArrayLike = 25.0,
    angle: ArrayLike = 50.0,
    squared: bool = False,
    where: ArrayLike | None = None,
    axis_name: str | None = None,
) -> Array:
    r"""Relational knowledge distillation: pulls the batch's distances and angles towards the teacher's, up to scale.

    $$\ell_i = 25 \, \ell_i^{distance} + 50 \, \ell_i^{angle}$$

    with the parts `rkd_distance` and `rkd_angle`. A turn, shift or stretch of all features changes nothing.

    Args:
      student_features: `[B, ...]`, flattened to a vector an example. The pooled embeddings, as released.
      teacher_features: `[B, ...]`, a constant. Only the first axis must be alike in both.
      distance: weight of the distances; a number, a traced scalar, or one value for each row held here.
      angle: weight of the angles, likewise.
      squared: compare squared distances.
      where: `[B]`, bool or 0/1. A False row is as if it were not in the batch, whatever it holds, nan included; its own value
        is 0.
      axis_name: the mapped axis under pmap or shard_map, over which the batch is spread; None where the arrays hold the
        whole batch, as under jit.

    Returns:
      `[B]` for the rows held here. The published loss is their mean over the kept rows of all devices.

    Raises:
      TypeError: features are not floating point.
      ValueError: the numbers of examples differ, or a weight does not broadcast.

    Paper: Park, Kim, Lu, Cho, "Relational Knowledge Distillation", CVPR 2019, arXiv 1904.05068. As in the released benchmark
    codes, but for the gradient at points that coincide, see the parts.

    >>> teacher = jnp.array([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    >>> bool(rkd(3 * teacher + 1, teacher).max() < 1e-5), bool(rkd(teacher**2 + teacher[::-1], teacher).min() > 1)
    (True, True)
    """
    batch = {"where": where, "axis_name": axis_name}
    student, _ = checks.features_pair(student_features, teacher_features)
    rows = jnp.reshape(student, (student.shape[0], -1))
    far = rkd_distance(student_features, teacher_features, squared=squared, **batch)
    bent = rkd_angle(student_features, teacher_features, **batch)
    return checks.per_example(distance, rows, "distance") * far + checks.per_example(angle, rows, "angle") * bent


def rkd_distance(
    student_features: ArrayLike,
    teacher_features: ArrayLike,
    *,
    squared: bool = False,
    where: ArrayLike | None = None,
    axis_name: str | None = None,
) -> Array:
    r"""RKD's distances: pulls the distance between any two examples, measured by the mean distance, to the teacher's.

    With $d_{ij} = \lVert f_i - f_j \rVert$ and $\bar d$ its mean over all pairs of different examples,

    $$\ell_i = \frac{1}{B} \sum_j \mathrm{smooth\,L1}\left( d^s_{ij} / \bar d^s - d^t_{ij} / \bar d^t \right)$$

    where smooth L1 is half the square up to 1, then linear with slope 1.

    Args:
      student_features: `[B, ...]`, flattened to a vector an example.
      teacher_features: `[B, ...]`, a constant. Only the first axis must be alike in both.
      squared: compare squared distances.
      where: `[B]`, bool or 0/1; False rows count for nothing, see `rkd`.
      axis_name: the mapped axis over which the batch is spread, or None, see `rkd`.

    Returns:
      `[B]` for the rows held here, with B in the formula the count of kept rows (an example's distance to itself counts, as
      0). The published loss is their mean over the kept rows of all devices.

    Raises:
      TypeError: features are not floating point.
      ValueError: the numbers of examples differ.

    As released, a distance between two examples is at least 1e-6 (its square 1e-12), so points that coincide count in the
    mean and send back no gradient between them, and a batch of one point has all distances equal. A batch of one example
    gives 0. The distances are taken from differences, where released codes subtract dot products and lose the digits of
    points that are near each other.

    Paper: Park, Kim, Lu, Cho, "Relational Knowledge Distillation", CVPR 2019, arXiv 1904.05068.

    >>> student, teacher = jnp.array([[0.0], [1.0], [3.0]]), jnp.array([[0.0], [1.0], [2.0]])
    >>> print(f"{rkd_distance(student, teacher).mean():.4f}")
    0.0139
    """
    affinity = "sq_l2" if squared else "l2"
    return affinity_kd(
        student_features, teacher_features, affinity=affinity, normalization="mean", loss="smooth_l1", where=where,
        axis_name=axis_name,
    )  # fmt: skip


def rkd_angle(
    student_features: ArrayLike,
    teacher_features: ArrayLike,
    *,
    where: ArrayLike | None = None,
    axis_name: str | None = None,
) -> Array:
    r"""RKD's angles: pulls the angle that any two examples make at a third towards the teacher's.

    With $e_{ij} = (f_j - f_i) / \lVert f_j - f_i \rVert$,

    $$\ell_i = \frac{1}{B^2} \sum_{jk} \mathrm{smooth\,L1}\left( e^s_{ij} \cdot e^s_{ik} - e^t_{ij} \cdot e^t_{ik} \right)$$

    Args:
      student_features: `[B, ...]`, flattened to a vector an example.
      teacher_features: `[B, ...]`, a constant. Only the first axis must be alike in both.
      where: `[B]`, bool or 0/1; False rows count for nothing, see `rkd`.
      axis_name: the mapped axis over which the batch is spread, or None, see `rkd`.

    Returns:
      `[B]`, one value for each vertex held here, with B in the formula the count of kept rows (triples in which examples
      repeat count, as released). The published loss is their mean over the kept rows of all devices.

    Raises:
      TypeError: features are not floating point.
      ValueError: the numbers of examples differ.

    Takes memory for the `[b, B, B]` angles at the b vertices held here, and time in proportion: they are taken from the
    sides of the triangles rather than from directions of the features' width. Two points no further than 1e-12 apart have no
    direction: the angles along it count as 0 and send back no gradient, where released codes divide by 1e-12 and send back
    gradients of that inverse.

    Paper: Park, Kim, Lu, Cho, "Relational Knowledge Distillation", CVPR 2019, arXiv 1904.05068.

    >>> student, teacher = jnp.array([[0.0], [1.0], [3.0]]), jnp.array([[0.0], [1.0], [2.0]])
    >>> print(f"{rkd_angle(student, teacher).max():.4f}")  # three points on a line in the same order
    0.0000
    """
    return affinity_kd(
        student_features, teacher_features, affinity="angle", normalization="none", loss="smooth_l1", where=where,
        axis_name=axis_name,
    )  # fmt: skip

"""Localization distillation: what a teacher knows of where the edges of a box are, and of its class, location by location."""

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from kdjax.losses import checks, logspace
from kdjax.losses.detection.dense import location_weights

__all__ = ["dense_class_kd", "ld", "ld_terms"]

Array = jax.Array


def ld(
    student_edge_logits: ArrayLike,
    teacher_edge_logits: ArrayLike,
    weights: ArrayLike,
    *,
    temperature: ArrayLike = 10.0,
    loss_weight: ArrayLike = 0.25,
    avg_factor: ArrayLike = 4.0,
) -> Array:
    r"""Localization distillation: pulls the student's distribution over each edge's distance towards the teacher's.

    $$\frac{\lambda}{a} \sum_i w_i \sum_e \frac{T^2}{K} \sum_k p_t^T(k) \left( \log p_t^T(k) - \log p_s^T(k) \right),
    \qquad p^T = \mathrm{softmax}(z_{ie} / T)$$

    Mind the mean over the K bins, where `kd` has a sum: with 17 bins each edge counts a seventeenth of it.

    Args:
      student_edge_logits: `[..., N, 4, K]`: N locations, four edges (any number of them: five for rotated boxes), K bins.
      teacher_edge_logits: the same shape, a constant.
      weights: `[..., N]`, constants. Locations of weight 0 take no part, whatever they hold. For the positives ("main"
        LD) it is the student's largest class score, for the valuable region `vlr_weights`.
      temperature: a number, a traced scalar, or an array that broadcasts to `[..., N, 4]`.
      loss_weight: $\lambda$. For the valuable region 0.25 too in GFL's head, times 0.15, 0.25 and 0.03 in those of ATSS,
        FCOS and RetinaNet.
      avg_factor: $a$: 4 for the positives, 16 for the valuable region of GFL's head (4 in the others). Times the sum of
        `weights` it makes the loss an average; as published it is not one.

    Returns:
      `[...]`, one number where the arrays have no more axes than above: a sum over locations. The published loss sums the
      levels and the images of one device, 2 or 3 of them, without division: with one value an image, it is their mean
      times the images a device had. 0 where all weights are. inf where the student excludes (-inf) a bin of the teacher's;
      the gradient is finite there too.

    Raises:
      TypeError: logits are not floating point.
      ValueError: shapes differ, there are fewer than three axes, or `temperature` is not above 0 or does not broadcast.

    Paper: Zheng, Ye, Wang, Ren, Zuo, Hou, Cheng, "Localization Distillation for Dense Object Detection", CVPR 2022,
    arXiv 2102.12252. The journal version, "Localization Distillation for Object Detection", TPAMI 2023, arXiv 2204.05957,
    extends it to rotated boxes.

    >>> student, teacher = jnp.zeros((1, 4, 2)), jnp.broadcast_to(jnp.array([1.0, 0.0]), (1, 4, 2))
    >>> print(f"{ld(student, teacher, jnp.ones(1), temperature=1.0):.5f}")
    0.01387
    """
    student, teacher = checks.logits_pair(student_edge_logits, teacher_edge_logits)
    if student.ndim < 3:
        raise ValueError(f"student_edge_logits has shape {student.shape}; it must be [..., N, 4, K].")
    weights = location_weights(weights, student.shape[:-2], student.dtype, "weights")
    temperature = checks.softening(temperature, student)
    by_edge = _mean_kl(student, teacher, temperature, (weights != 0)[..., None, None])
    return loss_weight / avg_factor * jnp.sum(weights * jnp.sum(by_edge, axis=-1), axis=-1)


def dense_class_kd(
    student_cls: ArrayLike,
    teacher_cls: ArrayLike,
    mask: ArrayLike,
    *,
    temperature: ArrayLike = 2.0,
    loss_weight: ArrayLike = 10.0,
    avg_factor: ArrayLike | None = None,
) -> Array:
    r"""Pulls the student's class probabilities at the chosen locations of a dense detector towards the teacher's.

    $$\frac{\lambda}{|P|} \sum_{i \in P} m_i \frac{T^2}{C} \sum_c p_t^T(c) \left( \log p_t^T(c) - \log p_s^T(c) \right)$$

    A softmax over the logits of C sigmoids, without background, and a mean over the classes, where `kd` has a sum.

    Args:
      student_cls: `[..., N, C]`.
      teacher_cls: `[..., N, C]`, a constant.
      mask: `[..., N]`: bools, or weights $m$ (constants). `P` is where it is not 0; elsewhere the logits may hold anything.
      temperature: a number, a traced scalar, or an array that broadcasts to `[..., N]`.
      loss_weight: $\lambda$.
      avg_factor: what to divide by; None for the size of `P`. On several devices give the global count.

    Returns:
      `[...]`, one number where the arrays have no more axes than above; 0 where `P` is empty. The published loss is the
      sum over levels of the value for one level's locations of all images of a device.

    Raises:
      TypeError: logits are not floating point.
      ValueError: shapes differ, there are fewer than two axes, or `temperature` is not above 0 or does not broadcast.

    Paper: Zheng et al., CVPR 2022, arXiv 2102.12252, whose released code this follows.

    >>> student, teacher = jnp.zeros((2, 2)), jnp.array([[1.0, 0.0], [jnp.nan, 0.0]])
    >>> print(f"{dense_class_kd(student, teacher, jnp.array([True, False]), temperature=1.0, loss_weight=1.0):.4f}")
    0.0555
    """
    student, teacher = checks.logits_pair(student_cls, teacher_cls)
    if student.ndim < 2:
        raise ValueError(f"student_cls has shape {student.shape}; it must be [..., N, C].")
    mask = location_weights(mask, student.shape[:-1], student.dtype, "mask")
    kept = mask != 0
    values = _mean_kl(student, teacher, checks.softening(temperature, student), kept[..., None])
    if avg_factor is None:
        avg_factor = jnp.maximum(jnp.sum(kept, axis=-1, dtype=student.dtype), 1)
    return loss_weight * jnp.sum(mask * values, axis=-1) / avg_factor


def ld_terms(
    student_cls: ArrayLike,
    student_edge_logits: ArrayLike,
    teacher_cls: ArrayLike,
    teacher_edge_logits: ArrayLike,
    labels: ArrayLike,
    vlr: ArrayLike,
    *,
    label_weights: ArrayLike | None = None,
    temperature: ArrayLike = 10.0,
    class_temperature: ArrayLike = 2.0,
    ld_weight: ArrayLike = 0.25,
    vlr_weight: ArrayLike = 0.25,
    class_weight: ArrayLike = 10.0,
) -> dict[str, Array]:
    r"""What localization distillation adds to the losses of a GFL head (`gfl_terms`), for the locations of one level.

    `ld` over the positives, weighted by the student's largest class score and divided by 4; `ld` over the valuable region,
    weighted by `vlr` and divided by 16; `dense_class_kd` over the positives. The released code computes the class term over
    the valuable region too and multiplies it by 0.

    Args:
      student_cls: `[..., N, C]`.
      student_edge_logits: `[..., N, 4, K]`.
      teacher_cls: `[..., N, C]`, a constant.
      teacher_edge_logits: `[..., N, 4, K]`, a constant.
      labels: `[..., N]` class indices; anything outside `0 … C - 1` is no positive.
      vlr: `[..., N]`, the `vlr_weights`.
      label_weights: `[..., N]` weights of the class term, None for 1.
      temperature, class_temperature: of the edges and of the classes.
      ld_weight, vlr_weight, class_weight: of the three terms.

    Returns:
      `[...]` each: "ld", "ld_vlr", "kd". The published loss adds them, over all levels, to those of `gfl_terms`.

    Raises:
      TypeError: logits are not floating point, or labels not integer.
      ValueError: shapes differ, or a temperature is not above 0.

    Paper: Zheng et al., CVPR 2022, arXiv 2102.12252.

    >>> same = jnp.zeros((2, 3)), jnp.zeros((2, 4, 5))
    >>> {name: float(term) for name, term in ld_terms(*same, *same, jnp.array([0, 3]), jnp.array([0.0, 0.4])).items()}
    {'ld': 0.0, 'ld_vlr': 0.0, 'kd': 0.0}
    """
    student = checks.class_scores(student_cls, "student_cls")
    labels = checks.class_indices(labels, student)
    positive = (labels >= 0) & (labels < student.shape[-1])
    best = lax.stop_gradient(jnp.max(jax.nn.sigmoid(student), axis=-1))
    label_weights = location_weights(label_weights, labels.shape, student.dtype, "label_weights")
    edges = student_edge_logits, teacher_edge_logits
    return {
        "ld": ld(*edges, jnp.where(positive, best, 0), temperature=temperature, loss_weight=ld_weight, avg_factor=4.0),
        "ld_vlr": ld(*edges, vlr, temperature=temperature, loss_weight=vlr_weight, avg_factor=16.0),
        "kd": dense_class_kd(
            student,
            teacher_cls,
            jnp.where(positive, label_weights, 0),
            temperature=class_temperature,
            loss_weight=class_weight,
            avg_factor=jnp.maximum(jnp.sum(positive, axis=-1, dtype=student.dtype), 1),
        ),
    }


def _mean_kl(student: Array, teacher: Array, temperature: Array, kept: Array) -> Array:
    """`T^2` times the divergence, meaned over the last axis; 0 where not kept, whatever is there."""
    student, teacher = jnp.where(kept, student, 0), jnp.where(kept, teacher, 0)
    divergence = logspace.kl(logspace.log_softmax(teacher, temperature), logspace.log_softmax(student, temperature))
    return temperature**2 * divergence / student.shape[-1]

"""Losses between intermediate features."""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from kdjax.losses import checks, logspace
from kdjax.losses.features import pooling

__all__ = ["cwd", "fitnet", "mgd", "vid"]

Array = jax.Array


def fitnet(student_features: ArrayLike, teacher_features: ArrayLike) -> Array:
    r"""Hints: pulls the student's features, once projected to the teacher's shape, towards the teacher's.

    $$\frac{1}{HWK} \sum_{hwk} \left( r(f_s) - f_t \right)^2$$

    Args:
      student_features: `[B, ...]`, already projected by the learned regressor `r`, which belongs to the objective.
      teacher_features: `[B, ...]` of the same shape, a constant.

    Returns:
      `[B]`: the mean over all axes but the first, without the paper's factor one half. The released loss is their mean
      over the batch, which is the mean of all squared differences.

    Raises:
      TypeError: features are not floating point.
      ValueError: shapes differ.

    Paper: Romero, Ballas, Kahou, Chassang, Gatta, Bengio, "FitNets: Hints for Thin Deep Nets", ICLR 2015,
    arXiv 1412.6550.

    >>> student, teacher = jnp.zeros((1, 2, 2, 3)), jnp.full((1, 2, 2, 3), 2.0)
    >>> fitnet(student, teacher)
    Array([4.], dtype=float32)
    """
    student, teacher = _alike(student_features, teacher_features)
    return jnp.mean((student - teacher) ** 2, axis=tuple(range(1, student.ndim)))


def mgd(generated_features: ArrayLike, teacher_features: ArrayLike) -> Array:
    r"""Masked generative distillation: pulls what is generated from the student's masked features towards the teacher's.

    $$\sum_{hwk} \left( G(M \odot f_s) - f_t \right)^2$$

    Args:
      generated_features: `[B, ...]`, from the student's features with a random part of them set to 0 and the learned block
        `G`, both of which belong to the objective.
      teacher_features: `[B, ...]` of the same shape, a constant.

    Returns:
      `[B]`: the sum over all axes but the first, which is `fitnet` times the number of entries. The published loss is
      their mean over the batch, times a weight of order 1e-5.

    Raises:
      TypeError: features are not floating point.
      ValueError: shapes differ.

    Paper: Yang, Li, Shao, Shi, Yuan, Yuan, "Masked Generative Distillation", ECCV 2022, arXiv 2205.01529.

    >>> generated, teacher = jnp.zeros((1, 2, 2, 3)), jnp.full((1, 2, 2, 3), 2.0)
    >>> mgd(generated, teacher)
    Array([48.], dtype=float32)
    """
    student, teacher = _alike(generated_features, teacher_features)
    return jnp.sum((student - teacher) ** 2, axis=tuple(range(1, student.ndim)))


def vid(predicted_mean: ArrayLike, teacher_features: ArrayLike, variance: ArrayLike) -> Array:
    r"""Variational information distillation: raises the likelihood of the teacher's features under a Gaussian.

    $$\frac{1}{HWK} \sum_{hwk} \tfrac{1}{2} \left( \frac{(\mu - f_t)^2}{\sigma_k^2} + \log \sigma_k^2 \right)$$

    A lower bound of the mutual information between the two networks' features, but for constants: $\mu$ is regressed from
    the student's features, and a channel that cannot be predicted gets a large variance.

    Args:
      predicted_mean: `[B, ..., K]`, from the learned regressor, which belongs to the objective.
      teacher_features: `[B, ..., K]` of the same shape, a constant.
      variance: above 0; `[K]`, or anything that broadcasts to the features. It is learned too.

    Returns:
      `[B]` in nats, without `log(2 pi) / 2`; below 0 for small variances. The published loss of a stage is their mean over
      the batch; stages are added up.

    Raises:
      TypeError: an argument is not floating point.
      ValueError: shapes differ, or `variance` does not broadcast.

    Paper: Ahn, Hu, Damianou, Lawrence, Dai, "Variational Information Distillation for Knowledge Transfer", CVPR 2019,
    arXiv 1904.05835.

    >>> mean, teacher = jnp.array([[1.0, 2.0]]), jnp.array([[1.0, 0.0]])
    >>> vid(mean, teacher, jnp.array([1.0, 1.0]))
    Array([1.], dtype=float32)
    """
    mean, teacher = _alike(predicted_mean, teacher_features, "predicted_mean")
    variance = checks.floating(variance, "variance")
    try:
        fits = jnp.broadcast_shapes(variance.shape, mean.shape) == mean.shape
    except ValueError:
        fits = False
    if not fits:
        raise ValueError(f"variance has shape {variance.shape}, which does not broadcast to the features {mean.shape}.")
    # Reshaped by hand, so that it also works where implicit rank promotion is an error.
    variance = jnp.reshape(variance, (1,) * (mean.ndim - variance.ndim) + variance.shape)
    return 0.5 * jnp.mean((mean - teacher) ** 2 / variance + jnp.log(variance), axis=tuple(range(1, mean.ndim)))


def cwd(student_features: ArrayLike, teacher_features: ArrayLike, *, temperature: ArrayLike = 4.0) -> Array:
    r"""Channel-wise distillation: pulls where each of the student's channels is active towards where the teacher's is.

    With $\phi_k = \mathrm{softmax}_{hw}(f_k / T)$, the map of a channel as probabilities of the positions:

    $$\frac{T^2}{K} \sum_k \mathrm{KL}\left( \phi_k^t \,\|\, \phi_k^s \right)$$

    Args:
      student_features: `[B, H, W, K]`, of the teacher's width.
      teacher_features: `[B, H', W', K]`, a constant. The larger map is average-pooled to the smaller.
      temperature: a number, a traced scalar, or an array that broadcasts to `[B, K]`.

    Returns:
      `[B]` in nats times `T^2`; 0 for maps of one position. The published loss is their mean over the batch.

    Raises:
      TypeError: features are not floating point.
      ValueError: they are not two maps of the same examples with as many channels, or `temperature` is not above 0.

    Paper: Shu, Liu, Gao, Yan, Shen, "Channel-wise Knowledge Distillation for Dense Prediction", ICCV 2021,
    arXiv 2011.13256, on a segmentation network's logits and features. One released code leaves out the teacher's entropy,
    which has no gradient.

    >>> student, teacher = jnp.array([[[[1.0], [0.0]]]]), jnp.array([[[[0.0], [0.0]]]])
    >>> print(f"{cwd(student, teacher, temperature=1.0)[0]:.4f}")
    0.1201
    """
    student, teacher = pooling.maps_pair(student_features, teacher_features)
    pooling.same_channels(student, teacher)
    student, teacher = (jnp.swapaxes(pooling.by_position(x), 1, 2) for x in (student, teacher))
    temperature = checks.softening(temperature, student)
    divergence = logspace.kl(logspace.log_softmax(teacher, temperature), logspace.log_softmax(student, temperature))
    return jnp.mean(temperature**2 * divergence, axis=-1)


def _alike(student_features, teacher_features, name: str = "student_features") -> tuple[Array, Array]:
    """Both networks' features, promoted, of one shape; no gradient goes into the teacher's."""
    student, teacher = checks.features_pair(student_features, teacher_features)
    if student.shape != teacher.shape:
        raise ValueError(
            f"{name} has shape {student.shape}, teacher_features {teacher.shape}: project the student's "
            "features to the teacher's shape first."
        )
    return student, teacher

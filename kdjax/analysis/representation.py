"""What a network keeps of examples beside their class: similarity of features, and the plane of three classes."""

import jax
import jax.numpy as jnp

from kdjax.losses import checks
from kdjax.types import Array


def linear_cka(first: Array, second: Array) -> Array:
    """Centred kernel alignment of two networks' features of the same examples (Kornblith et al., ICML 2019): 1 for features
    that are rotations and multiples of each other, near 0 for unrelated ones of many examples. nan where the
    features of either are the same for all examples: nothing is aligned with a constant.

    Args:
      first: `[N, D]`.
      second: `[N, E]`; maps are averaged over places or flattened before.

    Raises:
      ValueError: other examples, or no rows.
    """
    _rows(first, second)
    a, b = (_centred(x) for x in (first, second))
    cross = jnp.sum(jnp.square(a.T @ b))
    return cross / (jnp.linalg.norm(a.T @ a) * jnp.linalg.norm(b.T @ b))


def rbf_cka(first: Array, second: Array, *, width: float = 0.5) -> Array:
    """The same with Gaussian kernels, whose width is a share of the median distance between examples.

    Where more than half of the pairs coincide, so that the median is 0, the mean of the squared distances above 0 stands for its
    square. nan where all examples coincide. It takes memory for a few numbers a pair of examples.

    Args:
      first: `[N, D]`.
      second: `[N, E]`.
      width: that share.

    Raises:
      ValueError: other examples, or no rows.
    """
    _rows(first, second)

    def kernel(x):
        x = checks.floating(x, "features")
        # A row at a time: all at once are [N, N, D], and |a|² + |b|² - 2ab loses small distances between long vectors.
        squares = jax.lax.map(lambda row: jnp.sum(jnp.square(x - row[None]), axis=-1), x)
        median, positive = jnp.median(squares[jnp.triu_indices(len(x), 1)]), squares > 0
        scale = jnp.where(median == 0, jnp.mean(squares, where=positive), median)
        k = jnp.exp(-squares / (2 * width**2 * scale))
        return k - jnp.mean(k, axis=0, keepdims=True) - jnp.mean(k, axis=1, keepdims=True) + jnp.mean(k)

    a, b = kernel(first), kernel(second)
    return jnp.sum(a * b) / (jnp.linalg.norm(a) * jnp.linalg.norm(b))


def class_plane(embeddings: Array, templates: Array) -> Array:
    """Coordinates of embeddings on the plane through three classes' templates (Müller et al., NeurIPS 2019), as smoothed and
    unsmoothed networks are drawn: `[N, 2]`.

    Args:
      embeddings: `[N, D]` of the layer before the last; half types are computed in float32.
      templates: `[3, D]`, the last layer's weights of three classes.

    Raises:
      TypeError: either is not floating point.
      ValueError: not three templates of this width.
    """
    embeddings, templates = checks.floating(embeddings, "embeddings"), checks.floating(templates, "templates")
    if templates.shape != (3, embeddings.shape[-1]):
        raise ValueError(f"templates are {templates.shape}; give [3, {embeddings.shape[-1]}].")
    origin = jnp.mean(templates, axis=0)
    first = templates[0] - origin
    first = first / jnp.linalg.norm(first)
    second = templates[1] - origin
    second = second - (second @ first) * first
    second = second / jnp.linalg.norm(second)
    return (embeddings - origin[None]) @ jnp.stack([first, second], axis=1)


def within_class_scatter(embeddings: Array, labels: Array, num_classes: int) -> Array:
    """How wide classes are for how far they are apart: the mean squared distance of embeddings from their class's mean, over
    that of the class means from their own mean; each class counts alike. Müller et al. (NeurIPS 2019) say that label
    smoothing has the examples of a class group in tight clusters, and show it in pictures of networks trained so. Whether this
    ratio falls, in them or in their students, is to be measured.

    Args:
      embeddings: `[N, D]`.
      labels: `[N]`, classes of 0 to `num_classes - 1`, of which each is there.
      num_classes: how many there are.

    Raises:
      ValueError: other numbers of embeddings and labels.
    """
    if embeddings.ndim != 2 or labels.shape != embeddings.shape[:1]:
        raise ValueError(f"embeddings are {embeddings.shape}, labels {labels.shape}; give [N, D] and [N].")
    x = checks.floating(embeddings, "embeddings")
    member = jax.nn.one_hot(labels, num_classes, dtype=x.dtype)
    counts = jnp.sum(member, axis=0)
    means = (member.T @ x) / counts[:, None]
    within = (member.T @ jnp.sum(jnp.square(x - means[labels]), axis=-1)) / counts
    between = jnp.sum(jnp.square(means - jnp.mean(means, axis=0, keepdims=True)), axis=-1)
    return jnp.mean(within) / jnp.mean(between)


def _centred(x: Array) -> Array:
    x = checks.floating(x, "features")
    constant = jnp.all(x == x[:1])  # whose mean is rounded
    return jnp.where(constant, 0, x - jnp.mean(x, axis=0, keepdims=True))


def _rows(first: Array, second: Array) -> None:
    if first.ndim != 2 or second.ndim != 2 or first.shape[0] != second.shape[0] or first.shape[0] < 2:
        raise ValueError(
            f"features are {first.shape} and {second.shape}; give [N, D] and [N, E] of the same N > 1 examples."
        )

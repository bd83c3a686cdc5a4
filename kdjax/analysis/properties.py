"""Where a network looks, what fools it, and what it ignores (Ojha et al., NeurIPS 2023): measures and their controls.

A network is a function from inputs `[N, ...]` to logits `[N, C]`. A share is nan where a row that counts has a nan: a diverged
network says nothing. Each measure of transfer needs a network that was trained apart as a control: similar networks share much
without any transfer.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from kdjax.losses import checks, cross_entropy
from kdjax.types import Array

Classifier = Callable[[Array], Array]


def grad_cam(head: Classifier, maps: Array, labels: Array) -> Array:
    """Where in its last maps a network sees a class (Selvaraju et al., ICCV 2017).

    Args:
      head: from maps to logits.
      maps: `[N, H, W, D]`.
      labels: `[N]`, the class that is looked for.

    Returns:
      `relu(Σ_d w_d maps_d)`, `[N, H, W]`, with `w` the mean gradient of the class's logit over places.
    """
    score = lambda m: jnp.sum(jnp.take_along_axis(head(m), labels[:, None], axis=-1))
    weights = jnp.mean(jax.grad(score)(maps), axis=(1, 2), keepdims=True)
    return jax.nn.relu(jnp.sum(weights * maps, axis=-1))


def closer_share(teacher: Array, distilled: Array, independent: Array) -> Array:
    """Share of examples where the teacher's map is more like the distilled student's than like the independent one's, by
    cosine; ties, such as maps of zeros, count half. One half for a student that learnt nothing of where to look.

    Args:
      teacher, distilled, independent: `[N, H, W]` floats each, resized to one size; half types are computed in float32.

    Raises:
      TypeError: maps are not floating point.
    """
    target, ours, apart = (
        checks.floating(maps, name)
        for maps, name in ((teacher, "teacher"), (distilled, "distilled"), (independent, "independent"))
    )
    near, far = _cosine(target, ours), _cosine(target, apart)
    closer = jnp.where(near == far, 0.5, (near > far).astype(near.dtype))
    return jnp.mean(jnp.where(jnp.isnan(near) | jnp.isnan(far), jnp.nan, closer))


def iterative_fgsm(
    network: Classifier, inputs: Array, labels: Array, *, size: float, step: float, steps: int = 5,
    bounds: tuple[float, float] = (-jnp.inf, jnp.inf),
) -> Array:  # fmt: skip
    """Inputs changed so that the loss of their labels grows (Kurakin et al., 2017).

    Args:
      network: whose loss it is.
      inputs: `[N, ...]` floats.
      labels: `[N]`.
      size: no value is changed by more.
      step: by how much it is at a time, up or down; the paper on transfer leaves both open.
      steps: how often.
      bounds: smallest and largest value there can be.
    """
    loss = lambda x: jnp.sum(cross_entropy(network(x), labels=labels))

    def body(_, x):
        x = x + step * jnp.sign(jax.grad(loss)(x))
        return jnp.clip(jnp.clip(x, inputs - size, inputs + size), *bounds)

    return jax.lax.fori_loop(0, steps, body, inputs)


def fooling_rate(network: Classifier, inputs: Array, changed: Array, where: Array | None = None) -> Array:
    """Share of examples that the network takes for another class once they are changed; `where` `[N]` says which count, such as
    those that fool the teacher. nan of none."""
    before, after = network(inputs), network(changed)
    other = jnp.argmax(before, axis=-1) != jnp.argmax(after, axis=-1)
    where = checks.row_mask(where, len(other))
    lost = where & (_diverged(before) | _diverged(after))
    return jnp.where(jnp.any(lost), jnp.nan, jnp.sum(other & where) / jnp.sum(where))


def invariance(network: Classifier, inputs: Array, changed: Array) -> Array:
    """Share of examples that the network takes for the same class as before they were changed."""
    return 1 - fooling_rate(network, inputs, changed)


def shape_share(logits: Array, shape: Array, texture: Array) -> Array:
    """Of the examples with one class's shape and another's texture that are taken for either, the share taken for the shape
    (Geirhos et al., ICLR 2019). nan of none.

    Args:
      logits: `[N, C]`.
      shape, texture: `[N]` classes.
    """
    said, counts = jnp.argmax(logits, axis=-1), shape != texture
    by_shape, by_texture = jnp.sum((said == shape) & counts), jnp.sum((said == texture) & counts)
    return jnp.where(jnp.any(counts & _diverged(logits)), jnp.nan, by_shape / (by_shape + by_texture))


def _diverged(logits: Array) -> Array:
    return jnp.any(jnp.isnan(logits), axis=-1)


def _cosine(first: Array, second: Array) -> Array:
    a, b = (x.reshape(x.shape[0], -1) for x in (first, second))
    norms = jnp.linalg.norm(a, axis=-1) * jnp.linalg.norm(b, axis=-1)
    empty = norms == 0
    return jnp.where(empty, 0, jnp.sum(a * b, axis=-1) / jnp.where(empty, 1, norms))

"""adaptive_average_pool against the definition of its windows, and its gradient."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdjax import losses
from tests.losses.computing import compiled, computing_in, draw

losses = compiled(losses)


def by_windows(x, size):
    """NumPy float64, cell by cell."""
    height, width, channels = x.shape[-3:]
    out = np.zeros((*x.shape[:-3], *size, channels))
    for i in range(size[0]):
        rows = slice(math.floor(i * height / size[0]), math.ceil((i + 1) * height / size[0]))
        for j in range(size[1]):
            columns = slice(math.floor(j * width / size[1]), math.ceil((j + 1) * width / size[1]))
            out[..., i, j, :] = np.float64(x)[..., rows, columns, :].mean((-3, -2))
    return out


@pytest.mark.parametrize(
    ("shape", "size"),
    [
        ((2, 4, 4, 3), (2, 2)),
        ((2, 7, 5, 3), (3, 2)),
        ((2, 7, 7, 1), (4, 6)),
        ((1, 8, 3, 2), (3, 3)),
        ((2, 5, 6, 2), (1, 1)),
        ((2, 2, 3, 2), (5, 4)),
        ((2, 3, 4, 4, 2), (3, 2)),
        ((4, 4, 3), (2, 4)),
        ((2, 1, 1, 3), (1, 1)),
    ],
)
def test_each_cell_is_the_mean_of_its_window(shape, size):
    x = draw(200, *shape)
    with computing_in("f64") as real:
        pooled = losses.adaptive_average_pool(real(x), size)
        np.testing.assert_allclose(pooled, by_windows(x, size), rtol=1e-12, atol=1e-13)
    single = losses.adaptive_average_pool(x, size)
    assert single.dtype == jnp.float32
    np.testing.assert_allclose(single, by_windows(x, size), rtol=1e-5, atol=1e-5)


def test_the_known_overlap_of_uneven_sizes():
    """Five to two: windows [0, 3) and [2, 5); five to three: [0, 2), [1, 4) and [3, 5)."""
    x = jnp.arange(5.0).reshape(5, 1, 1)
    np.testing.assert_allclose(losses.adaptive_average_pool(x, (2, 1))[:, 0, 0], [1, 3])
    np.testing.assert_allclose(losses.adaptive_average_pool(x, (3, 1))[:, 0, 0], [0.5, 2, 3.5])


def test_the_gradient_spreads_each_cell_over_its_window():
    gradient = jax.grad(lambda x: losses.adaptive_average_pool(x, (2, 1))[1, 0, 0])(jnp.zeros((5, 1, 1)))
    np.testing.assert_allclose(gradient[:, 0, 0], [0, 0, 1 / 3, 1 / 3, 1 / 3], rtol=1e-6)


def test_a_map_of_that_size_stays_as_it_is_and_half_types_widen():
    x = draw(201, 2, 3, 5, 2)
    np.testing.assert_array_equal(losses.adaptive_average_pool(x, (3, 5)), x)
    half = jnp.asarray(x, jnp.bfloat16)
    pooled = losses.adaptive_average_pool(half, (2, 5))
    assert pooled.dtype == jnp.float32
    np.testing.assert_allclose(pooled, by_windows(np.asarray(half, np.float32), (2, 5)), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("shape", "size"), [((4, 4), (2, 2)), ((2, 0, 4, 3), (1, 1)), ((2, 4, 4, 3), (0, 1))])
def test_what_cannot_be_pooled_is_refused(shape, size):
    with pytest.raises(ValueError, match="cannot be pooled"):
        losses.adaptive_average_pool(jnp.zeros(shape), size)
    with pytest.raises(TypeError, match="x must be floating point"):
        losses.adaptive_average_pool(jnp.zeros((2, 2, 1), int), (1, 1))

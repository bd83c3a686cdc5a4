"""What `tests/objectives/nans.py` sees."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.experimental import checkify

from tests.objectives.nans import without_nans

X = np.array([4.0, 1.0, 0.0], np.float32)


@jax.custom_vjp
def own(x):
    return jnp.where(x < 0, 0.0, jnp.sqrt(x))


own.defvjp(lambda x: (own(x), None), lambda _, g: (g,))

HIDING = {
    "in a choice": lambda x: jnp.where(x < 0, 0.0, jnp.sqrt(x)),
    "in a function of its own": jax.jit(lambda x: jnp.nan_to_num(jnp.log(x), neginf=0.0)),
    "in a derivative of its own": own,
    "in a gradient": lambda x: jnp.nan_to_num(jax.grad(lambda x: jnp.sum(0 * jnp.sqrt(jnp.abs(x))))(x)),
    "in a scan": lambda x: lax.scan(lambda c, row: (c + jnp.where(row < 0, 0.0, jnp.sqrt(row)), None), 0.0, x)[0],
    "in a loop": lambda x: lax.fori_loop(0, x[1].astype(int) ** 2, lambda i, c: c + jnp.nan_to_num(jnp.sqrt(x)), x),
    "in a branch": lambda x: lax.cond(x[1] ** 2 > 0, lambda x: jnp.nan_to_num(jnp.sqrt(x)), lambda x: x, x),
    "in a sum": lambda x: jnp.nan_to_num(jnp.sum(jnp.array([1.0, -1.0]) / jnp.minimum(jnp.abs(x[0] + 4), 1))),
}


@pytest.mark.parametrize("place", HIDING)
def test_a_nan_is_seen_where_it_is_hidden(place):
    function = HIDING[place]
    bad = -X
    assert np.all(np.isfinite(function(bad))), "it does not reach the end"
    with pytest.raises((AssertionError, checkify.JaxRuntimeError), match="nan"):
        without_nans(function, bad)
    good = 1 + X
    np.testing.assert_allclose(without_nans(function, good), function(good), rtol=1e-6)

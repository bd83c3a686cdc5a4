"""Shared by the tests of losses: precision, and a compiled mean with its gradient."""

import contextlib
import functools

import jax
import jax.numpy as jnp
import numpy as np

DTYPES = {"f64": jnp.float64, "f32": jnp.float32}


@contextlib.contextmanager
def computing_in(precision):
    """Gives a function that makes an array of floats in "f64" or "f32", and switches x64 to match."""
    with jax.enable_x64(precision == "f64"):
        yield functools.partial(jnp.asarray, dtype=DTYPES[precision])


@functools.partial(jax.jit, static_argnums=0)
def mean_and_gradient(loss, student, *rest, **hyper):
    """The batch mean of `loss`, which all other arguments reach as traced values, and its gradient by `student`."""
    return jax.value_and_grad(lambda s: jnp.mean(loss(s, *rest, **hyper)))(student)


def draw(seed, *shape, scale=3.0):
    """Float32 normal numbers: the same in either precision."""
    return (scale * np.random.default_rng(seed).standard_normal(shape)).astype(np.float32)

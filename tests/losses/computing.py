"""Shared by the tests of losses: precision, losses that are one program, and a compiled mean with its gradient."""

import contextlib
import functools
import inspect
import types

import jax
import jax.numpy as jnp
import numpy as np

DTYPES = {"f64": jnp.float64, "f32": jnp.float32}


@contextlib.contextmanager
def computing_in(precision):
    """Gives a function that makes an array of floats in "f64" or "f32", and switches x64 to match."""
    with jax.enable_x64(precision == "f64"):
        yield functools.partial(jnp.asarray, dtype=DTYPES[precision])


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _whole(function, structure, fixed, arrays):
    arrays = iter(arrays)
    args, kwargs = jax.tree.unflatten(structure, [next(arrays) if kind is _TRACED else x for kind, x in fixed])
    return function(*args, **kwargs)


_TRACED = object()


def compiled(loss):
    """`loss` with each call one program: arrays are traced, all else is as given. A module: all functions in it.

    Called as they are, losses are a program for each operation, which is ten times the time and tells no more.
    """
    if inspect.ismodule(loss):
        made = {name: compiled(one) if inspect.isfunction(one) else one for name, one in vars(loss).items()}
        return types.SimpleNamespace(**made)

    @functools.wraps(loss)
    def call(*args, **kwargs):
        leaves, structure = jax.tree.flatten((args, kwargs))
        traced = [isinstance(leaf, jax.Array | np.ndarray) for leaf in leaves]
        # With the type, since 1 == 1.0 == True.
        fixed = tuple((_TRACED, None) if t else (type(x), x) for t, x in zip(traced, leaves, strict=True))
        return _whole(loss, structure, fixed, [x for t, x in zip(traced, leaves, strict=True) if t])

    return call


@functools.partial(jax.jit, static_argnums=0)
def mean_and_gradient(loss, student, *rest, **hyper):
    """The batch mean of `loss`, which all other arguments reach as traced values, and its gradient by `student`."""
    return jax.value_and_grad(lambda s: jnp.mean(loss(s, *rest, **hyper)))(student)


@functools.partial(jax.jit, static_argnums=0)
def values_and_gradient(loss, student, *rest, **hyper):
    """The values of `loss`, an array or several, and the gradient of all their sum by `student`."""
    values, pull = jax.vjp(lambda s: loss(s, *rest, **hyper), student)
    return values, pull(jax.tree.map(jnp.ones_like, values))[0]


def draw(seed, *shape, scale=3.0):
    """Float32 normal numbers: the same in either precision."""
    return (scale * np.random.default_rng(seed).standard_normal(shape)).astype(np.float32)

"""The terms of the divergences, and the written-out derivative of their sums, against automatic differentiation."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdjax.losses.tokens import terms
from tests.losses.computing import computing_in, draw

SHARED = (
    "jsd_to_the_ends",
    "jsd_normalized_to_the_ends",
    "skew_forward",
    "skew_forward_cross_entropy",
    "skew_reverse",
    "both",
)
ALL = (*SHARED, "forward", "forward_cross_entropy", "reverse", "variation", "skew_reverse_fixed")
EACH = pytest.mark.parametrize("name", ALL)
FIRST, SECOND = draw(1, 6, 7), draw(2, 6, 7)
FIRST[0, 2] = SECOND[0, 4] = SECOND[1, 0] = -np.inf
FIRST[3] = SECOND[3]  # equal
FIRST[4] = -np.inf  # a row without any token
FIRST[5] *= 3000


def whole(slopes):
    return sum(jax.tree.leaves(slopes))


@pytest.mark.parametrize("share", [0.0, 1e-6, 0.1, 0.5, 1 - 1e-6, 1.0])
@EACH
def test_slopes_are_those_of_the_terms_at_any_gap(name, share):
    term, log_p = (
        jax.jit(getattr(terms, name)),
        -np.array([1e-6, 0.1, 1.0, 1.001, 15.0, 40.0, 90.0, 1e3, 1e4], np.float32),
    )
    log_s, log_t = (x.reshape(-1) for x in np.meshgrid(log_p, log_p))
    shares = np.full(log_s.shape, share, np.float32)
    with computing_in("f64") as real:
        arguments = real(log_s), real(log_t), real(shares)
        expected = jax.grad(lambda s: jnp.sum(term(s, *arguments[1:])[0]))(arguments[0])
        np.testing.assert_allclose(whole(term(*arguments)[1]), expected, rtol=1e-9, atol=1e-14)
    scale = max(1.0, float(np.max(np.abs(expected)))) if "normalized" in name else 1.0
    np.testing.assert_allclose(whole(term(log_s, log_t, shares)[1]), expected, rtol=2e-5, atol=1e-7 * scale)


@functools.partial(jax.jit, static_argnums=(0, 1))
def with_gradient(function, term, *arrays):
    return jax.vjp(lambda *x: function(term, *x), *arrays)[0], jax.grad(
        lambda s: jnp.sum(function(term, s, *arrays[1:]))
    )(arrays[0])


@EACH
def test_the_written_out_derivative_is_the_automatic_one(name):
    with computing_in("f64") as real:
        arrays = [real(x) for x in (FIRST, SECOND, np.linspace(0.5, 3, 6), np.array([0.3, 0.0, 1.0, 0.5, 0.1, 0.9]))]
        found, expected = (with_gradient(f, getattr(terms, name), *arrays) for f in (terms.summed, terms._automatic))
        jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-11, atol=1e-13), found, expected)


@pytest.mark.parametrize("argument", [2, 3])
@pytest.mark.parametrize("name", ["forward", "skew_forward", "jsd"])
def test_by_temperature_and_share_it_is_automatic(name, argument):
    if name == "forward" and argument == 3:
        return
    with computing_in("f64") as real:
        arrays = [real(x) for x in (FIRST, SECOND, np.linspace(0.5, 3, 6), np.linspace(0.1, 0.9, 6))]
        jacobian = jax.jit(jax.jacfwd(functools.partial(terms.summed, getattr(terms, name)), argnums=argument))(*arrays)
        assert np.all(np.isfinite(jacobian)) and np.any(jacobian != 0)
        ahead, behind = (
            terms.summed(getattr(terms, name), *arrays[:argument], arrays[argument] + step, *arrays[argument + 1 :])
            for step in (1e-6, -1e-6)
        )
        np.testing.assert_allclose(np.diag(jacobian), (ahead - behind) / 2e-6, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("name", ["forward", "reverse", "jsd"])
def test_second_derivatives_are_automatic(name):
    term = getattr(terms, name)
    with computing_in("f64") as real:
        rest = real(SECOND[0]), real(1.5), real(0.3)
        found, expected = (
            jax.jit(jax.hessian(lambda s, f=f: f(term, s, *rest)))(real(FIRST[0]))
            for f in (terms.summed, terms._automatic)
        )
        np.testing.assert_allclose(found, expected, rtol=1e-10, atol=1e-12)
        assert np.any(found != 0)


@pytest.mark.parametrize("name", ["forward", "reverse", "jsd", "both", "skew_forward"])
def test_less_is_kept_than_by_automatic_differentiation(name):
    array, rows = (jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((64, 4096), (64,)))

    def kept(function):
        step = jax.jit(jax.grad(lambda s, *rest: jnp.mean(function(getattr(terms, name), s, *rest))))
        return step.lower(array, array, rows, rows).compile().memory_analysis().temp_size_in_bytes

    assert kept(terms.summed) < kept(terms._automatic)

"""The choices that `affinity_kd` puts together, by name: affinities, normalisations, losses."""

import numbers
import operator
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from kdjax.losses import checks, logspace
from kdjax.losses.relations import pairs
from kdjax.losses.relations.pairs import Pairs

__all__: list[str] = []

Array = jax.Array


class Parameters(NamedTuple):
    """The parameters of all choices, as `affinity_kd` explains them."""

    sigma: float | Array
    constant: float | Array
    degree: int
    gamma: float | Array
    order: int
    temperature: float | Array
    epsilon: float


class Entries(NamedTuple):
    """Which entries `[b, N]` of a matrix count, the axis its rows are spread over, and what no affinity is below."""

    kept: Array
    axis_name: str | None
    lowest: float | None

    def of_row(self, values: Array) -> Array:
        """`[b, 1]` sums over the entries of each row."""
        return jnp.sum(jnp.where(self.kept, values, 0), axis=-1, keepdims=True)

    def of_all(self, values: Array) -> Array:
        """The sum over the entries of all rows of all devices. Gathered, so that it is alike, and is differentiable."""
        return jnp.sum(pairs.gather(self.of_row(values)[:, 0], self.axis_name))

    def row_mean(self, values: Array) -> Array:
        """`[b]` means over the entries of each row, 0 without any."""
        count = jnp.sum(self.kept, axis=-1, dtype=values.dtype)
        return self.of_row(values)[:, 0] / jnp.maximum(count, 1)


class Relation(NamedTuple):
    """A normalised matrix, and its logarithm if its rows are distributions."""

    value: Array
    log: Array | None = None


# Affinities: (pairs, parameters) to [b, B], or [b, B, B] where three examples are compared.


def _cosine(x: Pairs, p: Parameters) -> Array:
    return pairs.products(pairs.scaled_to_unit(x, p.epsilon))


def _poly(x: Pairs, p: Parameters) -> Array:
    return lax.integer_pow(pairs.products(x) + _each(p.constant, x, "constant"), _whole(p.degree, "degree", 1))


def _gaussian(x: Pairs, p: Parameters) -> Array:
    return jnp.exp(-pairs.squared_distances(x) / (2 * _positive(p.sigma, x, "sigma") ** 2))


def gaussian_series(x: Pairs, gamma, order: int) -> Array:
    """The Gaussian kernel's series in the dot products, `exp(-gamma |a - b|^2)` between features of length 1 in the limit."""
    twice = 2 * _positive(gamma, x, "gamma")
    return jnp.exp(-twice) * pairs.exponential_series(twice * pairs.products(x), _whole(order, "order", 0))


AFFINITIES: dict[str, Callable[[Pairs, Parameters], Array]] = {
    "dot": lambda x, p: pairs.products(x),
    "cosine": _cosine,
    "l2": lambda x, p: pairs.distances(x),
    "sq_l2": lambda x, p: pairs.squared_distances(x),
    "gaussian": _gaussian,
    "gaussian_taylor": lambda x, p: gaussian_series(pairs.scaled_to_unit(x), p.gamma, p.order),
    "poly": _poly,
    "angle": lambda x, p: pairs.angles(x),
}
# What an affinity is never below; the others have no bound.
LOWEST = {"cosine": -1.0, "angle": -1.0, "l2": 0.0, "sq_l2": 0.0, "gaussian": 0.0}


# Normalisations: ([b, N] matrix, entries, parameters) to a matrix, or to a Relation with its logarithm.


def _row_l2(matrix: Array, entries: Entries, p: Parameters) -> Array:
    return over_root(matrix, entries.of_row(matrix**2))


def _frobenius(matrix: Array, entries: Entries, p: Parameters) -> Array:
    return over_root(matrix, entries.of_all(matrix**2))


def _mean(matrix: Array, entries: Entries, p: Parameters) -> Array:
    positive = matrix > 0
    count = entries.of_all(positive.astype(matrix.dtype))
    return matrix / jnp.where(count > 0, entries.of_all(jnp.where(positive, matrix, 0)) / jnp.maximum(count, 1), 1)


def _zscore(matrix: Array, entries: Entries, p: Parameters) -> Array:
    count = jnp.maximum(entries.of_all(jnp.ones_like(matrix)), 1)
    centred = matrix - entries.of_all(matrix) / count
    variance = entries.of_all(centred**2) / count
    # Of equal entries rounding leaves a variance.
    varied = variance > (8 * jnp.finfo(matrix.dtype).eps) ** 2 * entries.of_all(matrix**2) / count
    return jnp.where(varied, centred / jnp.sqrt(jnp.where(varied, variance, 1)), 0)


def _row_softmax(matrix: Array, entries: Entries, p: Parameters) -> Relation:
    log = logspace.log_softmax(matrix, checks.softening(p.temperature, matrix), where=entries.kept)
    return Relation(jnp.exp(log), log)


def _row_sum(matrix: Array, entries: Entries, p: Parameters) -> Relation:
    lowest = entries.lowest
    if lowest is None:
        lowest = jnp.min(jnp.where(entries.kept, matrix, jnp.inf), axis=-1, keepdims=True)
        lowest = jnp.where(lowest == jnp.inf, 0, lowest)
    shifted = matrix - lowest
    shifted = jnp.where(shifted > 0, shifted, 0)  # rounding may take a cosine below -1
    total = entries.of_row(shifted)
    value = jnp.where(total > 0, shifted / jnp.where(total > 0, total, 1), 0)
    positive = value + p.epsilon > 0
    return Relation(value, jnp.where(positive, jnp.log(jnp.where(positive, value + p.epsilon, 1)), -jnp.inf))


NORMALIZATIONS: dict[str, Callable[[Array, Entries, Parameters], Array | Relation]] = {
    "none": lambda matrix, entries, p: matrix,
    "row_l2": _row_l2,
    "frobenius": _frobenius,
    "mean": _mean,
    "row_softmax": _row_softmax,
    "row_sum": _row_sum,
    "zscore": _zscore,
}
DISTRIBUTIONS = ["row_softmax", "row_sum"]


# Losses: (student's relation, teacher's, entries) to [b].


def _smooth_l1(student: Relation, teacher: Relation, entries: Entries) -> Array:
    gap = _size(student.value - teacher.value)
    return entries.row_mean(jnp.where(gap < 1, 0.5 * gap**2, gap - 0.5))


def _kl(student: Relation, teacher: Relation, entries: Entries) -> Array:
    if student.log is None:
        raise ValueError(
            'loss="kl" compares rows that are distributions; use normalization="row_softmax" or "row_sum".'
        )
    gap = jnp.where(teacher.value == 0, 0, teacher.log - student.log)
    return entries.row_mean(teacher.value * gap)


def _cosine_of_rows(student: Relation, teacher: Relation, entries: Entries) -> Array:
    ours = over_root(student.value, entries.of_row(student.value**2))
    theirs = over_root(teacher.value, entries.of_row(teacher.value**2))
    both = (entries.of_row(ours**2) > 0) & (entries.of_row(theirs**2) > 0)
    return jnp.where(both, 1 - entries.of_row(ours * theirs), 0)[:, 0]


LOSSES: dict[str, Callable[[Relation, Relation, Entries], Array]] = {
    "mse": lambda student, teacher, entries: entries.row_mean((student.value - teacher.value) ** 2),
    "l1": lambda student, teacher, entries: entries.row_mean(_size(student.value - teacher.value)),
    "smooth_l1": _smooth_l1,
    "kl": _kl,
    "cosine": _cosine_of_rows,
}


def over_root(matrix: Array, squared: Array) -> Array:
    """`matrix / sqrt(squared)`, with a root of at least 1e-12, and zeros where there is none."""
    alive = squared > 0
    return jnp.where(alive, matrix / jnp.maximum(jnp.sqrt(jnp.where(alive, squared, 1)), 1e-12), 0)


def _size(gap: Array) -> Array:
    """The absolute value, with slope 0 at 0."""
    return gap * jnp.sign(gap)


def _each(value, x: Pairs, name: str) -> Array:
    return checks.per_example(value, x.rows, name)[:, None]


def _positive(value, x: Pairs, name: str) -> Array:
    if isinstance(value, numbers.Real) and not 0 < value < float("inf"):
        raise ValueError(f"{name} is {value}; it must be above 0 and finite.")
    return _each(value, x, name)


def _whole(value, name: str, least: int) -> int:
    value = operator.index(value)
    if value < least:
        raise ValueError(f"{name} is {value}; it must be at least {least}.")
    return value

"""affinity_kd: every choice against plain NumPy, value and gradient, over the grid; the methods that it names."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdjax import losses
from kdjax.losses import affinity_grid, affinity_kd, cc, pkt, rkd_angle, rkd_distance, sp
from kdjax.losses.relations.affinity_parts import AFFINITIES, LOSSES, NORMALIZATIONS
from tests.losses.computing import compiled, computing_in, draw

affinity_kd, cc, pkt, rkd_angle, rkd_distance, sp = map(compiled, (affinity_kd, cc, pkt, rkd_angle, rkd_distance, sp))

ROWS = 4
STUDENT, TEACHER = draw(90, ROWS, 2, scale=1.0), draw(91, ROWS, 3, scale=1.0)
EXACT = {"rtol": 1e-9, "atol": 1e-12}
HYPER = {"sigma": 0.8, "constant": 0.5, "degree": 3, "gamma": 0.3, "order": 4, "temperature": 0.7, "epsilon": 1e-3}
GRID = list(affinity_grid())


def over(choices):
    return pytest.mark.parametrize("choice", choices, ids=lambda choice: "-".join(choice.values()))


# --- plain NumPy ---


def squared_distances(f):
    found = np.maximum(((f[:, None] - f[None]) ** 2).sum(2), 1e-12)
    np.fill_diagonal(found, 0)
    return found


def cosines(f, epsilon):
    unit = f / (np.linalg.norm(f, axis=1, keepdims=True) + epsilon)
    return unit @ unit.T


def angles(f):
    gaps = f[None] - f[:, None]
    norms = np.linalg.norm(gaps, axis=2, keepdims=True)
    e = gaps / np.where(norms == 0, 1, norms)
    return np.stack([e[i] @ e[i].T for i in range(len(f))])


AFFINITY = {
    "dot": lambda f, h: f @ f.T,
    "cosine": lambda f, h: cosines(f, h["epsilon"]),
    "l2": lambda f, h: np.sqrt(squared_distances(f)),
    "sq_l2": lambda f, h: squared_distances(f),
    "gaussian": lambda f, h: np.exp(-squared_distances(f) / 2 / h["sigma"] ** 2),
    "gaussian_taylor": lambda f, h: sum(
        math.exp(-2 * h["gamma"]) * (2 * h["gamma"] * cosines(f, 0)) ** p / math.factorial(p)
        for p in range(h["order"] + 1)
    ),
    "poly": lambda f, h: (f @ f.T + h["constant"]) ** h["degree"],
    "angle": lambda f, h: angles(f),
}


def softmax(a, h):
    e = np.exp(a / h["temperature"])
    return e / e.sum(1, keepdims=True)


def row_sum(a, affinity):
    lowest = {"cosine": -1, "angle": -1, "l2": 0, "sq_l2": 0, "gaussian": 0}.get(affinity, a.min(1, keepdims=True))
    return (a - lowest) / (a - lowest).sum(1, keepdims=True)


NORMALIZED = {
    "none": lambda a, affinity, h: a,
    "row_l2": lambda a, affinity, h: a / np.linalg.norm(a, axis=1, keepdims=True),
    "frobenius": lambda a, affinity, h: a / np.linalg.norm(a),
    "mean": lambda a, affinity, h: a / a[a > 0].mean(),
    "row_softmax": lambda a, affinity, h: softmax(a, h),
    "row_sum": lambda a, affinity, h: row_sum(a, affinity),
    "zscore": lambda a, affinity, h: (a - a.mean()) / a.std(),
}


def kl(s, t, normalization, epsilon):
    epsilon = epsilon if normalization == "row_sum" else 0
    return (t * (np.log(np.where(t > 0, t + epsilon, 1)) - np.log(s + epsilon))).mean(1)


def compared(s, t, choice, h):
    gap = np.abs(s - t)
    if choice["loss"] == "kl":
        return kl(s, t, choice["normalization"], h["epsilon"])
    if choice["loss"] == "cosine":
        return 1 - (s * t).sum(1) / np.linalg.norm(s, axis=1) / np.linalg.norm(t, axis=1)
    return {"mse": gap**2, "l1": gap, "smooth_l1": np.where(gap < 1, gap**2 / 2, gap - 0.5)}[choice["loss"]].mean(1)


def in_numpy(student, teacher, choice, h=HYPER, drop_diagonal=False):
    relations = []
    for f in student, teacher:
        a = AFFINITY[choice["affinity"]](np.float64(f), h)
        kept = ~np.eye(len(f), dtype=bool) if drop_diagonal else np.ones((len(f), len(f)), bool)
        if a.ndim == 3:
            kept = kept[:, :, None] & kept[:, None] & kept[None]
        a = np.stack([row[k] for row, k in zip(a, kept, strict=True)])
        relations.append(NORMALIZED[choice["normalization"]](a, choice["affinity"], h))
    return compared(*relations, choice, h)


# --- the grid ---


def test_the_grid_is_every_combination_with_a_meaning():
    assert len(GRID) == 8 * (7 * 4 + 2) == len({tuple(choice.values()) for choice in GRID})
    assert {choice["affinity"] for choice in GRID} == set(AFFINITIES) == set(AFFINITY)
    assert {choice["normalization"] for choice in GRID} == set(NORMALIZATIONS) == set(NORMALIZED)
    assert {choice["loss"] for choice in GRID} == set(LOSSES)
    assert {c["normalization"] for c in GRID if c["loss"] == "kl"} == {"row_softmax", "row_sum"}


@pytest.mark.parametrize("drop_diagonal", [False, True])
@pytest.mark.parametrize("affinity", AFFINITIES)
def test_values_over_the_grid(affinity, drop_diagonal):
    choices = [choice for choice in GRID if choice["affinity"] == affinity]

    with computing_in("f64") as real:  # operation by operation: the same few are compiled once for all combinations
        student, teacher = real(STUDENT), real(TEACHER)
        values = [
            losses.affinity_kd(student, teacher, **choice, **HYPER, drop_diagonal=drop_diagonal) for choice in choices
        ]
    for choice, found in zip(choices, values, strict=True):
        expected = in_numpy(STUDENT, TEACHER, choice, drop_diagonal=drop_diagonal)
        np.testing.assert_allclose(found, expected, **EXACT, err_msg=str(choice))
        assert found.shape == (ROWS,) and np.abs(expected).max() > 1e-6


EVERY_MODULE = [
    choice
    for choice in GRID
    if (choice["normalization"], choice["loss"]) == ("none", "mse")
    or (
        choice["affinity"] in ("cosine", "dot")
        and choice["loss"] == ("kl" if "row_s" in choice["normalization"] else "mse")
    )
    or (choice["affinity"], choice["normalization"]) == ("l2", "row_sum")
]


@over(EVERY_MODULE)
def test_gradients_of_every_module(choice):
    """Against differences of the plain NumPy values along a direction."""
    student, along, step = np.float64(STUDENT), np.float64(draw(92, ROWS, 2)), 1e-6
    with computing_in("f64") as real:
        loss = lambda s: jnp.mean(affinity_kd(s, real(TEACHER), **choice, **HYPER))
        gradient = jax.grad(loss)(real(STUDENT))
        ahead, behind = (in_numpy(student + sign * step * along, TEACHER, choice).mean() for sign in (1, -1))
        np.testing.assert_allclose(np.sum(gradient * along), (ahead - behind) / (2 * step), rtol=1e-6, atol=1e-9)
        assert np.abs(gradient).max() > 1e-4


# --- named methods ---

NAMED = {
    "sp": (sp, {"affinity": "dot", "normalization": "row_l2", "loss": "mse"}),
    "rkd_distance": (rkd_distance, {"affinity": "l2", "normalization": "mean", "loss": "smooth_l1"}),
    "rkd_distance_squared": (
        functools.partial(rkd_distance, squared=True),
        {"affinity": "sq_l2", "normalization": "mean", "loss": "smooth_l1"},
    ),
    "rkd_angle": (rkd_angle, {"affinity": "angle", "normalization": "none", "loss": "smooth_l1"}),
    "pkt": (pkt, {"affinity": "cosine", "normalization": "row_sum", "loss": "kl"}),
    "cc": (cc, {"affinity": "gaussian_taylor", "normalization": "none", "loss": "mse"}),
}


@pytest.mark.parametrize(("function", "choice"), NAMED.values(), ids=NAMED)
def test_named_methods_fall_out_bit_for_bit(function, choice):
    assert choice in GRID
    for where in None, np.array([True, False, True, True]):
        found = affinity_kd(STUDENT, TEACHER, **choice, where=where)
        np.testing.assert_array_equal(found, function(STUDENT, TEACHER, where=where))
    gradients = [
        jax.grad(lambda s, f=f: f(s, TEACHER).sum())(STUDENT)
        for f in (functools.partial(affinity_kd, **choice), function)
    ]
    np.testing.assert_array_equal(*gradients)


def test_defaults_are_smooth_l1_of_cosines():
    choice = {"affinity": "cosine", "normalization": "none", "loss": "smooth_l1"}
    expected = in_numpy(STUDENT, TEACHER, choice, {"epsilon": 1e-7})
    np.testing.assert_allclose(affinity_kd(STUDENT, TEACHER), expected, rtol=1e-5)


def test_the_series_tends_to_the_gaussian_of_unit_features():
    with computing_in("f64") as real:
        unit = [real(f) / jnp.linalg.norm(real(f), axis=1, keepdims=True) for f in (STUDENT, TEACHER)]
        gaussian = affinity_kd(*unit, affinity="gaussian", sigma=math.sqrt(1 / (2 * 0.9)), loss="mse")
        series = affinity_kd(real(STUDENT), real(TEACHER), affinity="gaussian_taylor", gamma=0.9, order=25, loss="mse")
        np.testing.assert_allclose(series, gaussian, **EXACT)


# --- parameters ---


def test_parameters_may_differ_from_row_to_row():
    each = np.array([0.5, 1.0, 2.0, 4.0], np.float32)
    for choice in (
        {"affinity": "gaussian", "sigma": each},
        {"affinity": "gaussian_taylor", "gamma": each},
        {"affinity": "poly", "constant": each},
        {"affinity": "cosine", "normalization": "row_softmax", "loss": "kl", "temperature": each},
    ):
        name = next(name for name, value in choice.items() if value is each)
        together = affinity_kd(STUDENT, TEACHER, **choice)
        apart = [affinity_kd(STUDENT, TEACHER, **(choice | {name: float(value)}))[i] for i, value in enumerate(each)]
        np.testing.assert_allclose(together, apart, rtol=1e-5)
        assert len(np.unique(apart)) == 4


def test_an_entry_of_ones_own_is_known():
    def city_block(pairs, parameters):
        return jnp.sum(jnp.abs(pairs.rows[:, None, :] - pairs.columns[None, :, :]), axis=-1)

    AFFINITIES["city_block"] = city_block
    try:
        assert len(list(affinity_grid())) == len(GRID) + 30
        found = affinity_kd(STUDENT, TEACHER, affinity="city_block", loss="l1")
    finally:
        del AFFINITIES["city_block"]
    matrices = [np.abs(f[:, None] - f[None]).sum(2) for f in (STUDENT, TEACHER)]
    np.testing.assert_allclose(found, np.abs(matrices[0] - matrices[1]).mean(1), rtol=1e-5)


@pytest.mark.parametrize(
    ("choice", "error", "message"),
    [
        ({"affinity": "cosin"}, ValueError, r"affinity is 'cosin'; it must be one of dot, cosine, .*angle\."),
        ({"normalization": "row"}, ValueError, r"normalization is 'row'; it must be one of none, row_l2, "),
        ({"loss": "huber"}, ValueError, r"loss is 'huber'; it must be one of mse, "),
        (
            {"loss": "kl"},
            ValueError,
            r'loss="kl" compares rows that are distributions; use normalization="row_softmax"',
        ),
        ({"affinity": "gaussian", "sigma": 0.0}, ValueError, "sigma is 0.0; it must be above 0"),
        ({"affinity": "gaussian_taylor", "gamma": -1.0}, ValueError, "gamma is -1.0; it must be above 0"),
        ({"affinity": "gaussian_taylor", "order": -1}, ValueError, "order is -1; it must be at least 0"),
        ({"affinity": "poly", "degree": 0}, ValueError, "degree is 0; it must be at least 1"),
        ({"affinity": "poly", "degree": 1.5}, TypeError, "integer"),
        ({"normalization": "row_softmax", "temperature": 0}, ValueError, "temperature is 0; "),
    ],
)
def test_what_has_no_meaning_is_refused(choice, error, message):
    with pytest.raises(error, match=message):
        affinity_kd(STUDENT, TEACHER, **choice)


def test_a_plain_divergence_with_epsilon_0():
    choice = {"affinity": "cosine", "normalization": "row_sum", "loss": "kl"}
    with computing_in("f64") as real:
        found = affinity_kd(real(STUDENT), real(TEACHER), **choice, epsilon=0.0)
        np.testing.assert_allclose(found, in_numpy(STUDENT, TEACHER, choice, {"epsilon": 0.0}), **EXACT)
        # Opposite features have probability 0, which is nothing to a teacher that says so too.
        opposite = real([[1.0, 0.0], [-1.0, 0.0]])
        np.testing.assert_array_equal(affinity_kd(opposite, 2 * opposite, **choice, epsilon=0.0), 0)
        assert np.all(affinity_kd(opposite, real([[1.0], [1.0]]), **choice, epsilon=0.0) == np.inf)

"""fsp and kdsvd: formulas in NumPy, signs, and gradients where singular values are equal or zero."""

import itertools

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import pytest

from kdjax.losses import adaptive_average_pool
from kdjax.losses.features import fsp
from tests.losses.computing import compiled, computing_in, draw

adaptive_average_pool, fsp = map(compiled, (adaptive_average_pool, fsp))

SHAPES = (4, 4, 3), (2, 2, 5), (2, 2, 4)
STUDENT, TEACHER = ([draw(seed + i, 2, *shape) for i, shape in enumerate(SHAPES)] for seed in (240, 250))
EXACT = {"rtol": 1e-9, "atol": 1e-12}


def test_fsp_is_the_mean_square_of_the_gaps_between_flows():
    def flows(stages):
        pooled = np.asarray(adaptive_average_pool(stages[0], (2, 2)))
        maps = [np.float64(x).reshape(2, 4, -1) for x in (pooled, *stages[1:])]
        return [np.einsum("bpi,bpj->bij", a, b) / 4 for a, b in itertools.pairwise(maps)]

    gaps = [a - b for a, b in zip(flows(STUDENT), flows(TEACHER), strict=True)]
    expected = sum((gap**2).mean((1, 2)) for gap in gaps)
    np.testing.assert_allclose(fsp.fsp(STUDENT, TEACHER), expected, rtol=1e-5)
    # The sizes of the two networks' maps may differ, since positions are averaged out.
    np.testing.assert_allclose(
        fsp.fsp(STUDENT, [np.repeat(np.repeat(x, 2, 1), 2, 2) for x in TEACHER]), expected, rtol=1e-5
    )


def vectors_of(maps, count):
    """First right singular vectors of each example's positions by channels, largest entry positive; and the values."""
    found, values = [], []
    for matrix in np.float64(maps).reshape(len(maps), -1, maps.shape[-1]):
        _, s, rows = np.linalg.svd(matrix, full_matrices=False)
        columns = rows[:count].T
        columns = columns * np.sign(columns[np.abs(columns).argmax(0), range(columns.shape[1])])
        missing = count - columns.shape[1]
        found.append(np.pad(columns, ((0, 0), (0, missing))))
        values.append(np.pad(s[:count], (0, missing)))
    return found, values


def numpy_kdsvd(student, teacher, k):
    """One example and one pair of entries at a time."""
    ours, theirs = [], []
    for s, t in zip(student, teacher, strict=True):
        (v_t, values), (v_s, _) = vectors_of(t, k), vectors_of(s, k + 3)
        scale = [x / np.linalg.norm(x) for x in values]
        chosen = []
        for a, b in zip(v_s, v_t, strict=True):
            cosine = a.T @ b
            nearest = np.abs(cosine).argmax(0)
            chosen.append(a[:, nearest] * np.sign(cosine[nearest, range(k)]))
        ours.append([x * n for x, n in zip(chosen, scale, strict=True)])
        theirs.append([x * n for x, n in zip(v_t, scale, strict=True)])
    total = np.zeros(len(student[0]))
    for stage in range(1, len(student)):
        for b in range(len(total)):
            for i, j, n in np.ndindex(len(ours[stage][b]), len(ours[stage - 1][b]), k):
                s, t = (np.exp(-((v[stage][b][i, n] - v[stage - 1][b][j, n]) ** 2) / 8) for v in (ours, theirs))
                total[b] += (s - t) ** 2
    return total


@pytest.mark.parametrize("k", [1, 2, 4])
def test_kdsvd_is_its_formula(k):
    """Of four positions there are four vectors, fewer than k + 3."""
    with computing_in("f64") as real:
        values = fsp.kdsvd([real(x) for x in STUDENT], [real(x) for x in TEACHER], k=k)
        np.testing.assert_allclose(values, numpy_kdsvd(STUDENT, TEACHER, k), **EXACT)


def test_kdsvd_with_fewer_vectors_than_asked_for():
    """Stages of a single position have one; the others count as zeros."""
    student, teacher = ([x[:, :1, :1] if i == 1 else x for i, x in enumerate(stages)] for stages in (STUDENT, TEACHER))
    np.testing.assert_allclose(fsp.kdsvd(student, teacher, k=2), numpy_kdsvd(student, teacher, 2), rtol=1e-4)


def test_kdsvd_sees_no_sign_scale_or_order_of_positions():
    with computing_in("f64") as real:
        student, teacher = [real(x) for x in STUDENT], [real(x) for x in TEACHER]
        values = fsp.kdsvd(student, teacher)
        for ours, theirs in (([-x for x in student], teacher), (student, [-3 * x for x in teacher])):
            np.testing.assert_allclose(fsp.kdsvd(ours, theirs), values, **EXACT)
        mirrored = [x[:, ::-1] for x in student]
        np.testing.assert_allclose(fsp.kdsvd(mirrored, teacher), values, **EXACT)
        wide = fsp.kdsvd(student, teacher, columns="width")
        assert np.abs(wide - values).max() > 1e-3
        np.testing.assert_allclose(fsp.kdsvd([x[..., ::-1] for x in student], teacher, columns="width"), wide, **EXACT)


@pytest.mark.parametrize("shape", [(1, 5, 1, 3), (1, 2, 1, 6), (1, 3, 1, 3)], ids=["tall", "wide", "square"])
def test_the_slope_of_singular_vectors_is_that_of_differences(shape):
    with computing_in("f64") as real:
        matrix, direction = (real(draw(seed, *shape)[:, :, 0]) for seed in (260, 261))

        def turned(x):
            vectors, _ = fsp._singular(x, 2)
            return vectors * jnp.sign(jnp.sum(vectors * fsp._singular(matrix, 2)[0], axis=1, keepdims=True))

        _, slope = jax.jvp(turned, (matrix,), (direction,))
        numerical = (turned(matrix + 1e-6 * direction) - turned(matrix - 1e-6 * direction)) / 2e-6
        np.testing.assert_allclose(slope, numerical, atol=1e-8)
        assert np.abs(slope).max() > 1e-2


def names_and_shapes(program):
    """Primitives of a jaxpr, those inside others too, with the shapes they read."""
    for equation in program.eqns:
        yield equation.primitive.name, [x.aval.shape for x in equation.invars]
        for inner in jax.extend.core.jaxprs_in_params(equation.params):
            yield from names_and_shapes(inner)


def test_kdsvd_decomposes_the_smaller_square_once_a_network_and_stage():
    """A decomposition of the matrices themselves was eleven times slower on the stages of resnet8x4."""
    program = jax.make_jaxpr(jax.grad(lambda s, t: fsp.kdsvd(s, t).sum()))(STUDENT, TEACHER).jaxpr
    found = list(names_and_shapes(program))
    assert not any(name == "svd" for name, _ in found)
    sizes = sorted(shapes[0][1:] for name, shapes in found if name == "eigh")
    assert sizes == sorted(2 * [(3, 3), (4, 4), (4, 4)])  # 16 x 3, 4 x 5 and 4 x 4


@pytest.mark.parametrize("shape", [(9, 4), (4, 9)], ids=["tall", "wide"])
@pytest.mark.parametrize("precision", ["f64", "f32"])
def test_singular_values_far_below_the_largest_are_precise(shape, precision):
    """At 1e-3 of it, whose square is within ten roundings of float32; the root of the eigenvalue is off by percents."""
    made = np.array([1.0, 0.5, 1e-2, 1e-3])
    bases = [np.linalg.qr(np.float64(draw(seed, n, 4)))[0] for seed, n in zip((267, 268), shape, strict=True)]
    with computing_in(precision) as real:
        vectors, values = fsp._singular(real(bases[0] * made @ bases[1].T)[None], 4)
    np.testing.assert_allclose(values[0], made, atol=1e-12 if precision == "f64" else 3e-7)
    cosine = np.abs(np.sum(np.float64(vectors[0]) * bases[1], axis=0))
    np.testing.assert_allclose(cosine[:3], 1, atol=1e-12 if precision == "f64" else 1e-5)


def test_a_wide_matrix_of_low_rank_has_no_direction_beyond_it():
    matrix = np.outer([1.0, 2.0, 3.0], [1.0, -1.0, 0.5, 2.0, 0.0])[None]
    with computing_in("f64") as real:
        (vectors, values), (slope, _) = jax.jvp(
            lambda x: fsp._singular(x, 3), (real(matrix),), (real(draw(269, 1, 3, 5)),)
        )
    np.testing.assert_allclose(values[0, 1:], 0, atol=1e-12)
    np.testing.assert_array_equal(vectors[0, :, 1:], 0)
    assert np.isfinite(slope).all() and np.abs(slope[..., 0]).max() > 1e-3


EQUAL = {
    "equal": np.eye(3),
    "two equal": np.diag([2.0, 1.0, 1.0]),
    "almost equal": np.diag([2.0, 1.0, 1.0 + 1e-15]),
    "of rank one": np.outer([1.0, 2.0, 3.0], [1.0, -1.0, 0.5]),
    "zero": np.zeros((3, 3)),
    "repeated rows": np.repeat(draw(262, 1, 3), 3, axis=0),
}


@pytest.mark.parametrize("name", EQUAL)
@pytest.mark.parametrize("precision", ["f64", "f32"])
def test_equal_and_zero_singular_values_have_finite_gradients(name, precision):
    """The plain derivative divides by the gaps of squared values, which are zero."""
    with computing_in(precision) as real:
        student = [real(EQUAL[name].reshape(1, 3, 1, 3)), real(draw(263, 1, 3, 1, 3))]
        teacher = [real(draw(seed, 1, 3, 1, 3)) for seed in (264, 265)]
        value, gradients = jax.value_and_grad(lambda s: fsp.kdsvd(s, teacher, k=2).sum())(student)
        assert np.isfinite(value)
        assert all(np.isfinite(gradient).all() for gradient in gradients)
        assert np.abs(gradients[0]).max() < 1e3
        assert np.abs(gradients[1]).max() > 1e-4
        if name == "zero":
            np.testing.assert_array_equal(gradients[0], 0)


def test_the_gradient_out_of_a_plane_of_equal_values_is_kept():
    """Two equal values: their plane turns as a whole against the third vector, by the same slope as if they differed."""
    with computing_in("f64") as real:
        matrix, tangent = real(np.diag([2.0, 1.0, 1.0]))[None], real(draw(266, 3, 3))[None]
        _, (slope, _) = jax.jvp(lambda x: fsp._singular(x, 3), (matrix,), (tangent,))
        d = np.float64(tangent[0])
        # (v_iᵀ dA v_j) / (λ_j − λ_i) with A = XᵀX, for X diagonal.
        wanted = (2.0 * d[0, 1] + d[1, 0]) / (1 - 4)
        vectors = np.asarray(fsp._singular(matrix, 3)[0][0])
        column = np.abs(vectors[1]).argmax()
        np.testing.assert_allclose(slope[0][0, column] * np.sign(vectors[1, column]), wanted, rtol=1e-9)
        np.testing.assert_allclose(slope[0][1:, 1:], 0, atol=1e-12)


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="has 3 stages, teacher_features 2"):
        fsp.fsp(STUDENT, TEACHER[:2])
    with pytest.raises(ValueError, match="two at least"):
        fsp.kdsvd(STUDENT[:1], TEACHER[:1])
    with pytest.raises(ValueError, match="k is 0"):
        fsp.kdsvd(STUDENT, TEACHER, k=0)
    with pytest.raises(ValueError, match="columns is 'rows'"):
        fsp.kdsvd(STUDENT, TEACHER, columns="rows")
    with pytest.raises(ValueError, match="same width; project"):
        fsp.kdsvd(STUDENT, [x[:, :, :1] for x in TEACHER], columns="width")
    with pytest.raises(ValueError, match=r"each must be \[B, H, W, K\]"):
        fsp.fsp([x[:, 0] for x in STUDENT], [x[:, 0] for x in TEACHER])

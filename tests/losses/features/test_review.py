"""hcl against the reference and its formula, cell by cell."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdjax import losses
from tests.golden_cases import cases, nchw
from tests.losses.computing import compiled, computing_in, draw, mean_and_gradient

losses = compiled(losses)


def coarse(gap, level):
    """`[B, level, level, K]` means of windows, in NumPy float64."""
    height, width = gap.shape[1:3]
    window = lambda i, size: slice(math.floor(i * size / level), math.ceil((i + 1) * size / level))
    cells = [[gap[:, window(i, height), window(j, width)].mean((1, 2)) for j in range(level)] for i in range(level)]
    return np.moveaxis(np.array(cells), 2, 0)


def by_hand(student, teacher, levels):
    gap = np.float64(student) - teacher
    squares = [gap**2] + [coarse(gap, level) ** 2 for level in levels]
    means = [np.mean(s.reshape(len(gap), -1), axis=1) for s in squares]
    weights = 0.5 ** np.arange(len(means))
    return weights @ means / weights.sum()


def over_stages(student, teacher):
    return sum(losses.hcl(s, t) for s, t in zip(student, teacher, strict=True))


@pytest.mark.parametrize("precision", ["f64", "f32"])
@pytest.mark.parametrize("case", cases("reviewkd", symbol="hcl_loss"), ids=repr)
def test_hcl_golden(case, precision):
    with computing_in(precision) as real:
        student, teacher = ([real(x) for x in case.stages(name)] for name in ("student", "teacher"))
        value, gradients = mean_and_gradient(over_stages, student, teacher)
        case.check(value, "out", "loss", precision)
        for i, gradient in enumerate(gradients):
            case.check(nchw(gradient), "grad", f"student_{i}", precision)


@pytest.mark.parametrize(
    ("size", "levels"),
    [
        ((1, 1), ()),
        ((2, 2), (1,)),
        ((3, 3), (2, 1)),
        ((4, 4), (2, 1)),
        ((5, 5), (4, 2, 1)),
        ((7, 7), (4, 2, 1)),
        ((8, 8), (4, 2, 1)),
        ((5, 3), (4, 2, 1)),
        ((2, 6), (1,)),
    ],
)
def test_hcl_is_its_formula_at_every_size(size, levels):
    """A level that is not below the height passes its weight on."""
    student, teacher = draw(310, 3, *size, 2), draw(311, 3, *size, 2)
    with computing_in("f64") as real:
        expected = by_hand(student, teacher, levels)
        np.testing.assert_allclose(losses.hcl(real(student), real(teacher)), expected, rtol=1e-12)
    np.testing.assert_allclose(losses.hcl(student, teacher), expected, rtol=1e-5)


def test_hcl_sees_a_constant_gap_at_every_level_and_a_checkerboard_at_none():
    teacher = draw(312, 2, 8, 8, 3)
    np.testing.assert_allclose(losses.hcl(teacher + 3, teacher), 9, rtol=1e-5)
    rows = np.arange(8)
    board = np.float32((-1.0) ** (rows[:, None] + rows))[None, :, :, None]
    np.testing.assert_allclose(losses.hcl(teacher + board, teacher), 1 / 1.875, rtol=1e-5)
    np.testing.assert_allclose(losses.hcl(teacher + board, teacher, levels=()), 1, rtol=1e-5)


def test_hcl_teaches_only_the_student_and_not_once_equal():
    student, teacher = draw(313, 2, 5, 5, 3), draw(314, 2, 5, 5, 3)
    by_student, by_teacher = jax.grad(lambda s, t: losses.hcl(s, t).sum(), argnums=(0, 1))(student, teacher)
    np.testing.assert_array_equal(by_teacher, 0)
    assert np.abs(by_student).max() > 1e-3
    value, gradient = mean_and_gradient(losses.hcl, jnp.asarray(teacher), teacher)
    assert value == 0
    np.testing.assert_array_equal(gradient, 0)


def test_hcl_of_extremes_and_of_half_types():
    student, teacher = 1e4 * np.sign(draw(315, 2, 5, 5, 3)), 1e4 * np.sign(draw(316, 2, 5, 5, 3))
    np.testing.assert_allclose(losses.hcl(student, teacher), by_hand(student, teacher, (4, 2, 1)), rtol=1e-5)
    for dtype in (jnp.bfloat16, jnp.float16):
        values = losses.hcl(jnp.asarray(student, dtype), jnp.asarray(teacher, dtype))
        assert values.dtype == jnp.float32
        rounded = [np.asarray(jnp.asarray(x, dtype), np.float64) for x in (student, teacher)]
        np.testing.assert_allclose(values, by_hand(*rounded, (4, 2, 1)), rtol=1e-5)


def test_hcl_refuses_what_does_not_fit():
    x = jnp.zeros((2, 4, 4, 3))
    for other in (x[..., :2], x[:, :2], x[:, :, :, None]):
        with pytest.raises(ValueError, match="bring the student's to the teacher's shape first"):
            losses.hcl(x, other)
    with pytest.raises(ValueError, match=r"both must be \[B, H, W, K\]"):
        losses.hcl(x[:, 0], x[:, 0])
    with pytest.raises(TypeError, match="student_features must be floating point"):
        losses.hcl(x.astype(int), x)

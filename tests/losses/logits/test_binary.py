"""binary_kl and binary_kl_norm against the original implementation, and against exact float64 where that one clamps."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdjax.losses.logits.binary import binary_kl, binary_kl_norm
from tests.golden_cases import cases
from tests.losses.computing import compiled, computing_in, draw, mean_and_gradient

binary_kl, binary_kl_norm = map(compiled, (binary_kl, binary_kl_norm))

PRECISIONS = pytest.mark.parametrize("precision", ["f64", "f32"])
BOTH = pytest.mark.parametrize("loss", [binary_kl, binary_kl_norm])
STUDENT, TEACHER = draw(60, 6, 5), draw(61, 6, 5)
EXACT = {"f64": {"rtol": 1e-9, "atol": 1e-12}, "f32": {"rtol": 2e-5, "atol": 1e-6}}


def log_sigmoid(x):
    return -np.logaddexp(0, -np.float64(x))


def numpy_binary_kl(student, teacher, temperature):
    """`[...]` values with the factor T^2."""
    student, teacher = np.float64(student) / temperature, np.float64(teacher) / temperature
    total = 0
    for sign in (1, -1):
        log_p, log_q = log_sigmoid(sign * teacher), log_sigmoid(sign * student)
        with np.errstate(invalid="ignore"):
            total = total + np.where(log_p > -np.inf, np.exp(log_p) * (log_p - log_q), 0)
    return temperature**2 * np.sum(total, axis=-1)


def numpy_binary_kl_norm(student, teacher, temperature):
    gap = (np.float64(student) - np.float64(teacher)) / temperature
    each = -np.log(2) - 0.5 * log_sigmoid(gap) - 0.5 * log_sigmoid(-gap)
    return temperature**2 * np.sum(each, axis=-1)


def numpy_gradient(loss, student, teacher, temperature):
    """`[..., C]`, of the sum of the values."""
    student, teacher = np.float64(student), np.float64(teacher)
    if loss is binary_kl:
        return temperature * (np.exp(log_sigmoid(student / temperature)) - np.exp(log_sigmoid(teacher / temperature)))
    return 0.5 * temperature * np.tanh((student - teacher) / (2 * temperature))


NUMPY = {binary_kl: numpy_binary_kl, binary_kl_norm: numpy_binary_kl_norm}
SYMBOLS = {"BinaryKL": binary_kl, "BinaryKLNorm": binary_kl_norm}


CASES = [c for c in cases("dhkd") if c.symbol in SYMBOLS]


def saturates(case):
    """Whether the reference clamps: it keeps probabilities 1e-8 away from 0 and 1."""
    student, teacher = np.float64(case.inputs["student"]), np.float64(case.inputs["teacher"])
    arguments = [student, teacher] if SYMBOLS[case.symbol] is binary_kl else [student - teacher]
    return min(log_sigmoid(-np.abs(x) / case.hyper["temperature"]).min() for x in arguments) < np.log(1e-8)


@PRECISIONS
@pytest.mark.parametrize("case", CASES, ids=repr)
def test_golden(case, precision):
    loss = SYMBOLS[case.symbol]
    student, teacher, temperature = case.inputs["student"], case.inputs["teacher"], case.hyper["temperature"]
    with computing_in(precision) as real:
        value, gradient = mean_and_gradient(loss, real(student), real(teacher), temperature=temperature)
        if not saturates(case):
            case.check(value, "out", "loss", precision)
            case.check(gradient, "grad", "student", precision)
    # Saturated or not, the exact mathematics is the target.
    np.testing.assert_allclose(value, NUMPY[loss](student, teacher, temperature).mean(), **EXACT[precision])
    expected = numpy_gradient(loss, student, teacher, temperature) / len(student)
    np.testing.assert_allclose(gradient, expected, **EXACT[precision])


def test_golden_cases_that_saturate_are_not_the_exact_mathematics():
    """Or cases would be left out above for nothing."""
    apart = {symbol: [] for symbol in SYMBOLS}
    for case in filter(saturates, CASES):
        exact = NUMPY[SYMBOLS[case.symbol]](case.inputs["student"], case.inputs["teacher"], case.hyper["temperature"])
        apart[case.symbol].append(abs(case.outputs["f64"]["loss"] / exact.mean() - 1))
    assert all(max(gaps) > 1e-5 for gaps in apart.values())


@BOTH
@PRECISIONS
@pytest.mark.parametrize("scale", [0.01, 3.0, 100.0, 1e4])
def test_any_size_of_logits(loss, precision, scale):
    student, teacher = draw(62, 6, 5, scale=scale), draw(63, 6, 5, scale=scale)
    with computing_in(precision) as real:
        value, gradient = mean_and_gradient(loss, real(student), real(teacher), temperature=2.0)
    np.testing.assert_allclose(value, NUMPY[loss](student, teacher, 2.0).mean(), **EXACT[precision])
    np.testing.assert_allclose(gradient, numpy_gradient(loss, student, teacher, 2.0) / 6, **EXACT[precision])


def test_norm_is_zero_at_equality_only_and_symmetric():
    gaps = np.array([0.0, 1e-6, -1e-6, 1e-3, -1e-3, 1.9, 2.0, 2.1, -2.1, 300.0, -300.0, 1e4], np.float32)[:, None]
    values = binary_kl_norm(gaps, np.zeros_like(gaps), temperature=1.0)
    np.testing.assert_array_equal(values[0], 0)
    assert np.all(values[1:] > 0)
    np.testing.assert_allclose(values, binary_kl_norm(-gaps, np.zeros_like(gaps), temperature=1.0), rtol=1e-6)
    np.testing.assert_allclose(values[9:], np.abs(gaps[9:, 0]) / 2 - np.log(2), rtol=1e-6)
    # Small gaps keep their digits in float32, where the sum of logarithms cancels to nothing.
    np.testing.assert_allclose(values[1:5], gaps[1:5, 0] ** 2 / 8, rtol=1e-6)
    np.testing.assert_allclose(values[3:], numpy_binary_kl_norm(gaps, 0 * gaps, 1.0)[3:], rtol=2e-6)


@pytest.mark.parametrize("temperature", [0.5, 2.0, 50.0])
def test_norm_of_small_gaps_is_their_squares_by_eight_at_any_temperature(temperature):
    student = TEACHER + draw(64, 6, 5, scale=1e-2)
    with computing_in("f64") as real:
        values = binary_kl_norm(real(student), real(TEACHER), temperature=temperature)
    gaps = np.float64(student) - np.float64(TEACHER)
    np.testing.assert_allclose(values, np.sum(gaps**2, axis=-1) / 8, rtol=1e-3)


def test_binary_kl_of_equals_is_zero_and_never_below():
    for scale in (1.0, 30.0, 1e4):
        value, gradient = mean_and_gradient(
            binary_kl, jnp.asarray(scale * TEACHER), jnp.asarray(scale * TEACHER), temperature=2.0
        )
        np.testing.assert_allclose(value, 0, atol=1e-7)
        np.testing.assert_allclose(gradient, 0, atol=1e-7)
    assert binary_kl(STUDENT, TEACHER).min() > 0
    # It is no divergence of softmaxes: a shift of all logits counts.
    assert binary_kl(TEACHER + 1, TEACHER).min() > 0.01


def test_classes_that_the_teacher_excludes():
    teacher = TEACHER.copy()
    teacher[:, 3] = -np.inf
    value, gradient = mean_and_gradient(binary_kl, jnp.asarray(STUDENT), jnp.asarray(teacher), temperature=2.0)
    np.testing.assert_allclose(value, numpy_binary_kl(STUDENT, teacher, 2.0).mean(), rtol=2e-6)
    np.testing.assert_allclose(gradient, numpy_gradient(binary_kl, STUDENT, teacher, 2.0) / 6, rtol=2e-5, atol=1e-7)
    assert gradient[:, 3].min() > 0  # pulled down too
    value, gradient = mean_and_gradient(binary_kl_norm, jnp.asarray(STUDENT), jnp.asarray(teacher), temperature=2.0)
    kept = [0, 1, 2, 4]
    np.testing.assert_allclose(value, numpy_binary_kl_norm(STUDENT[:, kept], teacher[:, kept], 2.0).mean(), rtol=2e-6)
    np.testing.assert_array_equal(gradient[:, 3], 0)
    np.testing.assert_allclose(
        gradient[:, kept], numpy_gradient(binary_kl_norm, STUDENT, TEACHER, 2.0)[:, kept] / 6, rtol=2e-5
    )


@BOTH
def test_classes_that_both_exclude_are_as_if_not_there(loss):
    student, teacher = STUDENT.copy(), TEACHER.copy()
    student[:, 3] = teacher[:, 3] = -np.inf
    value, gradient = mean_and_gradient(loss, jnp.asarray(student), jnp.asarray(teacher), temperature=2.0)
    kept = [0, 1, 2, 4]
    np.testing.assert_allclose(value, NUMPY[loss](STUDENT[:, kept], TEACHER[:, kept], 2.0).mean(), rtol=2e-6)
    np.testing.assert_array_equal(gradient[:, 3], 0)
    assert np.isfinite(gradient).all() and np.abs(gradient).max() > 0.01


@BOTH
def test_the_gradient_by_a_learned_temperature(loss):
    student, teacher = STUDENT.copy(), TEACHER.copy()
    student[:, 3] = teacher[:, 3] = -np.inf
    kept, step = [0, 1, 2, 4], 1e-5
    with computing_in("f64") as real:
        slope = jax.grad(lambda t: loss(real(student), real(teacher), temperature=t).mean())(2.0)
    ends = [NUMPY[loss](STUDENT[:, kept], TEACHER[:, kept], 2.0 + sign * step).mean() for sign in (1, -1)]
    np.testing.assert_allclose(slope, (ends[0] - ends[1]) / (2 * step), rtol=1e-7)


def test_a_student_that_is_certain_of_what_the_teacher_doubts_costs_infinitely_with_a_finite_gradient():
    student = jnp.array([[-jnp.inf, 1.0]])
    value, gradient = mean_and_gradient(binary_kl, student, jnp.zeros((1, 2)), temperature=2.0)
    assert value == jnp.inf
    np.testing.assert_allclose(gradient, [[-1.0, 2 / (1 + np.exp(-0.5)) - 1.0]], rtol=1e-6)


@BOTH
def test_shapes_types_and_the_constant_teacher(loss):
    values = loss(STUDENT, TEACHER, temperature=2.0)
    assert values.shape == (6,) and values.dtype == jnp.float32
    grid = loss(STUDENT.reshape(2, 3, 5), TEACHER.reshape(2, 3, 5), temperature=2.0)
    np.testing.assert_allclose(grid.reshape(6), values, rtol=1e-6)
    by_student, by_teacher = jax.grad(lambda s, t: loss(s, t).sum(), argnums=(0, 1))(STUDENT, TEACHER)
    np.testing.assert_array_equal(by_teacher, 0)
    assert np.abs(by_student).min() > 0
    half = jnp.asarray(STUDENT, jnp.bfloat16), jnp.asarray(TEACHER, jnp.bfloat16)
    np.testing.assert_array_equal(loss(*half), loss(*(x.astype(jnp.float32) for x in half)))
    one = loss(STUDENT[:1, :1], TEACHER[:1, :1])
    np.testing.assert_allclose(one, NUMPY[loss](STUDENT[:1, :1], TEACHER[:1, :1], 2.0), rtol=1e-5)
    with pytest.raises(ValueError, match="teacher_logits has 4 classes, student_logits 5"):
        loss(STUDENT, TEACHER[:, :4])
    with pytest.raises(ValueError, match="temperature is 0"):
        loss(STUDENT, TEACHER, temperature=0)


@BOTH
def test_temperature_may_differ_by_example(loss):
    temperatures = np.array([0.5, 1.0, 2.0, 4.0, 8.0, 16.0], np.float32)
    expected = [NUMPY[loss](s, t, np.float64(k)) for s, t, k in zip(STUDENT, TEACHER, temperatures, strict=True)]
    np.testing.assert_allclose(loss(STUDENT, TEACHER, temperature=temperatures), expected, rtol=2e-5)
    # One for each source of data: [sources, 1] beside [sources, rows] leading axes.
    sources = loss(STUDENT.reshape(2, 3, 5), TEACHER.reshape(2, 3, 5), temperature=jnp.array([[2.0], [4.0]]))
    np.testing.assert_allclose(sources[1], loss(STUDENT[3:], TEACHER[3:], temperature=4.0), rtol=1e-6)

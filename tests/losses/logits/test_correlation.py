"""dist and clkd against the numbers of released code, their formulas in NumPy, and at their edges."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdjax.losses.logits import correlation
from tests.golden_cases import cases
from tests.losses import numpy_reference as reference
from tests.losses.computing import compiled, computing_in, draw, mean_and_gradient

correlation = compiled(correlation)

PRECISIONS = pytest.mark.parametrize("precision", ["f64", "f32"])
STUDENT, TEACHER = draw(70, 6, 5), draw(71, 6, 5)
EXACT = {"rtol": 1e-9, "atol": 1e-12}
CLOSE = {"rtol": 2e-5, "atol": 2e-6}


# --- the formulas in NumPy ---


def correlations(a, b):
    """`[N]` of the rows of two `[N, M]`, with the 1e-8, and their gradient by a."""
    a, b = (x - x.mean(axis=1, keepdims=True) for x in (a, b))
    norm_a, norm_b = (np.linalg.norm(x, axis=1, keepdims=True) for x in (a, b))
    product, divisor = np.sum(a * b, axis=1, keepdims=True), norm_a * norm_b + 1e-8
    direction = np.divide(a, norm_a, out=np.zeros_like(a), where=norm_a > 0)
    slope = b / divisor - product * norm_b * direction / divisor**2
    return (product / divisor)[:, 0], slope - slope.mean(axis=1, keepdims=True)


def dist(student, teacher, *, beta=1.0, gamma=1.0, temperature=1.0):
    """The value and its gradient by the student's logits."""
    p, q = reference.softmax(student, temperature), reference.softmax(teacher, temperature)
    rows, by_rows = correlations(p, q)
    columns, by_columns = correlations(p.T, q.T)
    value = temperature**2 * (beta * (1 - rows.mean()) + gamma * (1 - columns.mean()))
    by_p = -(temperature**2) * (beta * by_rows / len(rows) + gamma * by_columns.T / len(columns))
    return value, p * (by_p - np.sum(p * by_p, axis=1, keepdims=True)) / temperature


def unit_rows(x):
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def cc(student, teacher, cc_mode):
    """The correlation term and its gradient by the student's logits."""
    student, teacher = np.float64(student), np.float64(teacher)
    classes = student.shape[1]
    if cc_mode == "gram":
        gram = student.T @ student
        unit = unit_rows(gram)
        gap = unit - unit_rows(teacher.T @ teacher)
        by_unit = 2 * gap / classes**4
        by_gram = (by_unit - unit * np.sum(by_unit * unit, axis=1, keepdims=True)) / np.linalg.norm(
            gram, axis=1, keepdims=True
        )
        return np.sum(gap**2) / classes**4, student @ (by_gram + by_gram.T)
    student, teacher = student - student.mean(axis=0), teacher - teacher.mean(axis=0)
    if cc_mode == "class_cov":
        gap = sum(np.outer(s, s) - np.outer(t, t) for s, t in zip(student, teacher, strict=True)) / (classes - 1)
        slope = student @ gap
    else:
        gap = sum(np.outer(s, s) - np.outer(t, t) for s, t in zip(student.T, teacher.T, strict=True)) / (classes - 1)
        slope = gap @ student
    slope -= slope.mean(axis=0)
    return np.sum(gap**2) / classes**2, 4 * slope / ((classes - 1) * classes**2)


# --- released code ---


@PRECISIONS
@pytest.mark.parametrize("case", cases("dist"), ids=repr)
def test_dist_golden(case, precision):
    def rows(x):
        return np.moveaxis(x, 1, -1).reshape(-1, x.shape[1])

    student, teacher = case.inputs["student"], case.inputs["teacher"]
    with computing_in(precision) as real:
        value, gradient = mean_and_gradient(
            correlation.dist,
            real(rows(student)),
            real(rows(teacher)),
            beta=case.hyper["beta"],
            gamma=case.hyper["gamma"],
            temperature=case.hyper.get("tau", 1.0),
        )
        case.check(value, "out", "loss", precision)
        if student.ndim == 4:
            batch, classes, *pixels = student.shape
            gradient = np.moveaxis(np.asarray(gradient).reshape(batch, *pixels, classes), -1, 1)
        case.check(gradient, "grad", "student", precision)


def clkd_term(student, teacher, *, term, **options):
    return correlation.clkd(student, teacher, **options)[term]


def clkd_instances_and_classes(student, teacher, beta):
    return correlation.clkd(student, teacher, beta=beta)["loss"]


@PRECISIONS
@pytest.mark.parametrize("case", cases("clkd"), ids=repr)
def test_clkd_golden(case, precision):
    with computing_in(precision) as real:
        student, teacher = real(case.inputs["student"]), real(case.inputs["teacher"])
        value, gradient = mean_and_gradient(clkd_instances_and_classes, student, teacher, case.hyper.get("beta", 1.0))
        case.check(value, "out", "loss", precision)
        case.check(gradient, "grad", "student", precision)
        for cc_mode, name in ("gram", "cc_a"), ("batch_outer", "cc_b"):
            terms = jax.jit(correlation.clkd, static_argnames="cc_mode")(student, teacher, cc_mode=cc_mode)
            case.check(terms["cc"], "out", name, precision)
            case.check(terms["ins"], "out", "ins", precision)
            case.check(terms["cla"], "out", "cla", precision)
            np.testing.assert_allclose(terms["loss"], terms["ins"] + 2 * terms["cla"], rtol=1e-6)


# --- dist ---


@PRECISIONS
@pytest.mark.parametrize("scale", [3.0, 1e4])
@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_dist_is_its_formula_up_to_logits_of_ten_thousand(scale, temperature, precision):
    student, teacher = draw(72, 6, 5, scale=scale), draw(73, 6, 5, scale=scale)
    weights = {"beta": 2.0, "gamma": 0.5, "temperature": temperature}
    with computing_in(precision) as real:
        value, gradient = mean_and_gradient(correlation.dist, real(student), real(teacher), **weights)
        expected, slope = dist(student, teacher, **weights)
        np.testing.assert_allclose(value, expected, **(EXACT if precision == "f64" else CLOSE))
        np.testing.assert_allclose(gradient, slope, **(EXACT if precision == "f64" else CLOSE))


def test_dist_is_blind_to_how_sure_a_student_of_two_classes_is():
    """Rows of two probabilities correlate perfectly once they order the classes alike."""
    with computing_in("f64") as real:
        sure = real(np.array([[4.0, 0.0], [0.0, 3.0], [6.0, 0.0]]))
        inter, _ = correlation.dist_parts(sure / 9, sure)
        np.testing.assert_allclose(inter, 0, atol=1e-6)
        inter, intra = correlation.dist_parts(-sure, sure, temperature=3.0)
        np.testing.assert_allclose((inter, intra), 2 * 3.0**2, rtol=1e-6)


def test_dist_weighs_its_parts():
    inter, intra = correlation.dist_parts(STUDENT, TEACHER, temperature=2.0)
    whole = correlation.dist(STUDENT, TEACHER, beta=3.0, gamma=0.25, temperature=2.0)
    np.testing.assert_allclose(whole, 3 * inter + 0.25 * intra, rtol=1e-6)
    expected = dist(STUDENT, TEACHER, gamma=0.0, temperature=2.0)[0]
    np.testing.assert_allclose(inter, expected, rtol=1e-5)


@PRECISIONS
def test_dist_of_constant_rows_and_columns(precision):
    """Exactly constant to the loss, although the mean of eleven equal probabilities rounds, and that of seven rows."""
    student, teacher = draw(74, 7, 11), draw(75, 7, 11)
    student[2] = 1.3
    with computing_in(precision) as real:
        value, gradient = mean_and_gradient(correlation.dist, real(student), real(teacher), gamma=0.0)
        expected, slope = dist(np.where(student == student[2], 0, student), teacher, gamma=0.0)
        np.testing.assert_allclose(value, expected, rtol=1e-5 if precision == "f32" else 1e-9)
        np.testing.assert_allclose(gradient, slope, rtol=1e-4 if precision == "f32" else 1e-7, atol=1e-6)
        assert np.abs(gradient[2]).max() > 1e4  # what 1e-8 makes of it
        alike = np.repeat(student[:1], 7, axis=0)  # every column is constant
        inter, intra = correlation.dist_parts(real(alike), real(teacher))
        assert intra == 1.0
        assert inter < 1.99


def test_dist_of_one_row_or_one_class():
    inter, intra = correlation.dist_parts(STUDENT[:1], TEACHER[:1], temperature=2.0)
    np.testing.assert_allclose(inter, dist(STUDENT[:1], TEACHER[:1], gamma=0.0, temperature=2.0)[0], rtol=1e-5)
    assert intra == 4.0
    value, gradient = jax.value_and_grad(correlation.dist)(STUDENT[:, :1], TEACHER[:, :1])
    assert value == 2.0
    np.testing.assert_array_equal(gradient, 0)


def test_dist_where_the_teacher_excludes_a_class():
    """Its probability is 0, and 0 correlates with nothing where it is so in all rows."""
    teacher = TEACHER.copy()
    teacher[:, 3] = -np.inf
    value, gradient = mean_and_gradient(correlation.dist, jnp.asarray(STUDENT), jnp.asarray(teacher))
    expected, slope = dist(STUDENT, np.where(np.isinf(teacher), -1e9, teacher))
    np.testing.assert_allclose(value, expected, **CLOSE)
    np.testing.assert_allclose(gradient, slope, **CLOSE)
    student = STUDENT.copy()
    student[:, 3] = -np.inf
    _, gradient = mean_and_gradient(correlation.dist, jnp.asarray(student), jnp.asarray(teacher))
    assert np.isfinite(gradient).all() and np.abs(gradient).max() > 1e-3
    np.testing.assert_array_equal(gradient[:, 3], 0)


def test_dist_by_temperature():
    with computing_in("f64") as real:
        slope = jax.grad(lambda t: correlation.dist(real(STUDENT), real(TEACHER), temperature=t))(2.0)
        around = [dist(STUDENT, TEACHER, temperature=t)[0] for t in (2 - 1e-5, 2 + 1e-5)]
        np.testing.assert_allclose(slope, (around[1] - around[0]) / 2e-5, rtol=1e-7)


# --- clkd ---


def test_clkd_by_hand():
    terms = correlation.clkd(jnp.array([[3.0, 4.0], [0.0, 2.0]]), jnp.array([[1.0, 0.0], [0.0, 1.0]]))
    np.testing.assert_allclose(terms["ins"], (0.4**2 + 0.8**2) / 4, rtol=1e-6)
    root = np.sqrt(20.0)
    np.testing.assert_allclose(terms["cla"], ((4 / root) ** 2 + (2 / root - 1) ** 2) / 4, rtol=1e-6)
    # Centred, the student has rows +-(1.5, 1), the teacher +-(0.5, -0.5); C - 1 is 1.
    gap = 2 * np.array([[2.25 - 0.25, 1.5 + 0.25], [1.5 + 0.25, 1.0 - 0.25]])
    np.testing.assert_allclose(terms["cc"], np.sum(gap**2) / 4, rtol=1e-6)


@PRECISIONS
@pytest.mark.parametrize("scale", [3.0, 1e4])
@pytest.mark.parametrize("cc_mode", ["class_cov", "batch_outer", "gram"])
def test_clkd_correlation_is_its_formula_up_to_logits_of_ten_thousand(cc_mode, scale, precision):
    student, teacher = draw(76, 6, 5, scale=scale), draw(77, 6, 5, scale=scale)
    with computing_in(precision) as real:
        value, gradient = jax.jit(
            jax.value_and_grad(lambda s, t: clkd_term(s, t, term="cc", cc_mode=cc_mode)),
        )(real(student), real(teacher))
        expected, slope = cc(student, teacher, cc_mode)
        rtol = 1e-9 if precision == "f64" else 2e-5
        np.testing.assert_allclose(value, expected, rtol=rtol)
        np.testing.assert_allclose(gradient, slope, rtol=rtol, atol=rtol * np.abs(slope).max())


def test_clkd_sees_directions_not_lengths():
    lengths, stretch = np.array([[1.0], [2.0], [0.5], [3.0], [1.0], [7.0]], np.float32), np.float32([1, 2, 4, 0.5, 3])
    with computing_in("f64") as real:
        plain = correlation.clkd(real(STUDENT), real(TEACHER), cc_mode="gram")
        by_row = correlation.clkd(real(STUDENT) * real(lengths), real(TEACHER))
        np.testing.assert_allclose(by_row["ins"], plain["ins"], **EXACT)
        by_class = correlation.clkd(real(STUDENT) * real(stretch)[None], real(TEACHER))
        np.testing.assert_allclose(by_class["cla"], plain["cla"], **EXACT)
        scaled = correlation.clkd(5 * real(STUDENT), real(TEACHER), cc_mode="gram")
        np.testing.assert_allclose(scaled["cc"], plain["cc"], **EXACT)


def test_clkd_class_covariance_is_blind_to_a_shift_of_a_class():
    with computing_in("f64") as real:
        shift = real(draw(78, 1, 5))
        for cc_mode in "class_cov", "batch_outer":
            plain, shifted = (
                clkd_term(real(STUDENT) + s, real(TEACHER), term="cc", cc_mode=cc_mode) for s in (0, shift)
            )
            np.testing.assert_allclose(shifted, plain, rtol=1e-10)


@pytest.mark.parametrize("cc_mode", ["class_cov", "batch_outer", "gram"])
def test_clkd_without_a_class_that_both_exclude(cc_mode):
    student, teacher, kept = STUDENT.copy(), TEACHER.copy(), [0, 1, 2, 4]
    student[:, 3] = teacher[:, 3] = -np.inf
    with computing_in("f64") as real:

        def total(s, t):
            terms = correlation.clkd(s, t, cc_mode=cc_mode)
            return terms["loss"] + terms["cc"]

        value, gradient = jax.value_and_grad(total)(real(student), real(teacher))
        fewer, expected = jax.value_and_grad(total)(real(STUDENT[:, kept]), real(TEACHER[:, kept]))
        np.testing.assert_allclose(value, fewer, **EXACT)
        np.testing.assert_allclose(gradient[:, kept], expected, **EXACT)
        np.testing.assert_array_equal(gradient[:, 3], 0)


def test_clkd_where_the_teacher_excludes_a_class_of_one_row():
    teacher = TEACHER.copy()
    teacher[2, 3] = -np.inf
    terms = correlation.clkd(STUDENT, teacher)
    student, zeroed = np.float64(STUDENT), np.float64(TEACHER)
    student[2, 3] = zeroed[2, 3] = 0
    by_row = np.sum((unit_rows(student) - unit_rows(zeroed)) ** 2) / 29
    by_class = np.sum((unit_rows(student.T) - unit_rows(zeroed.T)) ** 2) / 29
    np.testing.assert_allclose(terms["ins"], by_row, rtol=1e-5)
    np.testing.assert_allclose(terms["cla"], by_class, rtol=1e-5)


def test_clkd_of_rows_and_columns_of_zeros():
    student = STUDENT.copy()
    student[2] = 0
    student[:, 4] = 0
    for cc_mode in "class_cov", "batch_outer", "gram":
        terms, pull = jax.vjp(lambda s, m=cc_mode: correlation.clkd(s, TEACHER, cc_mode=m), student)
        with np.errstate(invalid="ignore"):
            rows, columns = (
                np.nan_to_num(unit_rows(np.float64(student))),
                np.nan_to_num(unit_rows(np.float64(student).T)),
            )
        np.testing.assert_allclose(terms["ins"], np.mean((rows - unit_rows(TEACHER)) ** 2), rtol=1e-5)
        np.testing.assert_allclose(terms["cla"], np.mean((columns - unit_rows(TEACHER.T)) ** 2), rtol=1e-5)
        (gradient,) = pull(jax.tree.map(jnp.ones_like, terms))
        assert np.isfinite(gradient).all() and np.abs(gradient).max() < 1e4


def test_clkd_of_equal_logits_is_zero():
    for cc_mode in "class_cov", "batch_outer", "gram":
        terms, pull = jax.vjp(lambda s, m=cc_mode: correlation.clkd(s, TEACHER, cc_mode=m), TEACHER)
        np.testing.assert_array_equal(list(terms.values()), 0)
        np.testing.assert_array_equal(pull(jax.tree.map(jnp.ones_like, terms))[0], 0)


def test_refuses_what_does_not_fit():
    with pytest.raises(ValueError, match="cc_mode is 'cov'"):
        correlation.clkd(STUDENT, TEACHER, cc_mode="cov")
    with pytest.raises(ValueError, match=r"beta has shape \(6,\); the loss is of the whole batch"):
        correlation.clkd(STUDENT, TEACHER, beta=np.ones(6))
    with pytest.raises(ValueError, match=r"temperature has shape \(6,\)"):
        correlation.dist(STUDENT, TEACHER, temperature=np.ones(6))
    for temperature in (0, -1.0, float("nan")):
        with pytest.raises(ValueError, match=r"temperature is .* must be above 0"):
            correlation.dist(STUDENT, TEACHER, temperature=temperature)
    with pytest.raises(ValueError, match=r"reshape both networks' logits to \[B, C\]"):
        correlation.dist(STUDENT[None], TEACHER[None])

"""ttm, wttm, wsld, standardize and uda_kd against the original implementations, their formulas, and at their edges."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdjax.losses.logits.decoupled import dkd
from kdjax.losses.logits.logit import kd
from kdjax.losses.logits.target_transforms import standardize, ttm, uda_kd, wsld, wttm
from tests.golden_cases import cases
from tests.losses import numpy_reference as reference
from tests.losses.computing import compiled, computing_in, draw, mean_and_gradient

dkd, kd, standardize, ttm, uda_kd, wsld, wttm = map(compiled, (dkd, kd, standardize, ttm, uda_kd, wsld, wttm))

PRECISIONS = pytest.mark.parametrize("precision", ["f64", "f32"])
STUDENT, TEACHER = draw(100, 6, 5), draw(101, 6, 5)
LABELS = np.array([0, 1, 2, 3, 4, 2])
EXACT = {"f64": {"rtol": 1e-9, "atol": 1e-12}, "f32": {"rtol": 2e-5, "atol": 2e-6}}


# --- ttm and wttm ---


def numpy_power(teacher, gamma):
    """(log q, weight): the normalised powers of the teacher's probabilities, and their sum."""
    log_p = gamma * reference.log_softmax(teacher)
    total = np.logaddexp.reduce(log_p, axis=-1, keepdims=True)
    return log_p - total, np.exp(total[..., 0])


def numpy_ttm(student, teacher, gamma, weighted):
    """`[...]` values and `[..., C]` gradients of their sum."""
    log_q, weight = numpy_power(teacher, gamma)
    weight = weight if weighted else np.ones_like(weight)
    value = weight * reference.kl(log_q, reference.log_softmax(student))
    return value, weight[..., None] * (reference.softmax(student) - np.exp(log_q))


POWERS = pytest.mark.parametrize("loss", [ttm, wttm])


@PRECISIONS
@pytest.mark.parametrize("case", cases("ttm"), ids=repr)
def test_ttm_golden(case, precision):
    loss = {"TTM": ttm, "WTTM": wttm}[case.symbol]
    student, teacher, gamma = case.inputs["student"], case.inputs["teacher"], case.hyper["l"]
    with computing_in(precision) as real:
        value, gradient = mean_and_gradient(loss, real(student), real(teacher), gamma=gamma)
        case.check(value, "out", "loss", precision)
        case.check(gradient, "grad", "student", precision)


@POWERS
@pytest.mark.parametrize("scale", [3.0, 1e4])
@pytest.mark.parametrize("gamma", [0.1, 1.0, 2.0])
def test_ttm_is_its_formula(loss, gamma, scale):
    student, teacher = draw(102, 6, 5, scale=scale), draw(103, 6, 5, scale=scale)
    values, gradients = numpy_ttm(student, teacher, gamma, loss is wttm)
    for precision in "f64", "f32":
        with computing_in(precision) as real:
            value, gradient = mean_and_gradient(loss, real(student), real(teacher), gamma=gamma)
        np.testing.assert_allclose(value, values.mean(), **EXACT[precision])
        np.testing.assert_allclose(gradient, gradients / 6, **EXACT[precision])


def test_ttm_of_power_one_is_kd_of_temperature_one():
    with computing_in("f64") as real:
        student, teacher = real(STUDENT), real(TEACHER)
        expected = kd(student, teacher, temperature=1.0)
        np.testing.assert_allclose(ttm(student, teacher, gamma=1.0), expected, rtol=1e-12)
        np.testing.assert_allclose(wttm(student, teacher, gamma=1.0), expected, rtol=1e-12)
        # The teacher at temperature 4, the student at 1.
        warm = kd(student, teacher / 4, temperature=1.0)
        np.testing.assert_allclose(ttm(student, teacher, gamma=0.25), warm, rtol=1e-12)
    np.testing.assert_allclose(ttm(TEACHER, TEACHER, gamma=1.0), 0, atol=1e-6)


def test_wttm_weighs_by_the_teachers_doubt():
    student = jnp.asarray(STUDENT[:2])
    teacher = jnp.array([[0.0] * 5, [100.0, 0.0, 0.0, 0.0, 0.0]])
    weight = wttm(student, teacher, gamma=0.3) / ttm(student, teacher, gamma=0.3)
    np.testing.assert_allclose(weight, [5**0.7, 1.0], rtol=1e-6)


@POWERS
def test_ttm_and_classes_that_the_teacher_excludes(loss):
    student, teacher = STUDENT.copy(), TEACHER.copy()
    teacher[:, 3] = -np.inf
    values, gradients = numpy_ttm(student, teacher, 0.5, loss is wttm)
    value, gradient = mean_and_gradient(loss, jnp.asarray(student), jnp.asarray(teacher), gamma=0.5)
    np.testing.assert_allclose(value, values.mean(), **EXACT["f32"])
    np.testing.assert_allclose(gradient, gradients / 6, **EXACT["f32"])
    student[:, 3] = -np.inf
    kept, step = [0, 1, 2, 4], 1e-5
    value, gradient = mean_and_gradient(loss, jnp.asarray(student), jnp.asarray(teacher), gamma=0.5)
    values, gradients = numpy_ttm(STUDENT[:, kept], TEACHER[:, kept], 0.5, loss is wttm)
    np.testing.assert_allclose(value, values.mean(), **EXACT["f32"])
    np.testing.assert_allclose(gradient[:, kept], gradients / 6, **EXACT["f32"])
    np.testing.assert_array_equal(gradient[:, 3], 0)
    with computing_in("f64") as real:
        slope = jax.grad(lambda g: loss(real(student), real(teacher), gamma=g).mean())(0.5)
    ends = [numpy_ttm(STUDENT[:, kept], TEACHER[:, kept], 0.5 + s * step, loss is wttm)[0].mean() for s in (1, -1)]
    np.testing.assert_allclose(slope, (ends[0] - ends[1]) / (2 * step), rtol=1e-7)


# --- wsld ---


def label_cost(logits, labels):
    """`-log p(y)`, the label's class being removed from the others, in extended precision."""
    others = [
        np.logaddexp.reduce(reference.without(z, y)) - np.float64(z)[y] for z, y in zip(logits, labels, strict=True)
    ]
    return np.logaddexp(0, np.longdouble(others))


def numpy_wsld(student, teacher, labels, temperature):
    """`[...]` values and `[..., C]` gradients of their sum, the weight held."""
    ours, theirs = label_cost(student, labels), label_cost(teacher, labels)
    weight = 1 - np.exp(-ours / (theirs + 1e-7))
    p, log_q = reference.softmax(teacher, temperature), reference.log_softmax(student, temperature)
    with np.errstate(invalid="ignore"):
        soft = -np.where(p > 0, p * log_q, 0).sum(-1)
    weight = np.float64(weight)
    return temperature**2 * weight * soft, temperature * weight[:, None] * (np.exp(log_q) - p)


@PRECISIONS
@pytest.mark.parametrize("scale", [0.1, 3.0, 50.0, 1e4])
@pytest.mark.parametrize("temperature", [2.0, 4.0])
def test_wsld_is_its_formula(temperature, scale, precision):
    student, teacher = draw(104, 6, 5, scale=scale), draw(105, 6, 5, scale=scale)
    values, gradients = numpy_wsld(student, teacher, LABELS, temperature)
    with computing_in(precision) as real:
        value, gradient = mean_and_gradient(wsld, real(student), real(teacher), LABELS, temperature=temperature)
    np.testing.assert_allclose(value, values.mean(), **EXACT[precision])
    np.testing.assert_allclose(gradient, gradients / 6, **EXACT[precision])


def test_wsld_of_a_student_that_is_nearly_right_keeps_its_small_weight():
    """In float32, log softmax of a probability of 1 - 1e-6 has one digit, and 1 - exp(-1e-6) two."""
    student, teacher = np.array([[14.0, 0.0]], np.float32), np.array([[0.0, 0.5]], np.float32)
    labels = np.array([0])
    expected, _ = numpy_wsld(student, teacher, labels, 2.0)
    np.testing.assert_allclose(wsld(student, teacher, labels), expected, rtol=1e-5)
    # A teacher without any doubt: CE_t is 0, and the 1e-7 decides.
    sure = np.array([[200.0, 0.0]], np.float32)
    expected, _ = numpy_wsld(student, sure, labels, 2.0)
    np.testing.assert_allclose(
        wsld(student, sure, labels), expected, rtol=2e-4
    )  # the soft part itself has these digits
    # Both nearly right, as trained networks are.
    right = np.array([[12.0, 0.0]], np.float32)
    expected, _ = numpy_wsld(student, right, labels, 2.0)
    np.testing.assert_allclose(wsld(student, right, labels), expected, rtol=2e-4)
    np.testing.assert_array_equal(wsld(sure, sure, labels), 0)


def test_wsld_pulls_most_where_the_student_is_worse_than_the_teacher():
    teacher = jnp.zeros((3, 2))
    student = jnp.array([[-5.0, 5.0], [0.0, 0.0], [5.0, -5.0]])
    labels = jnp.zeros(3, int)
    soft = wsld(student, teacher, labels, temperature=1.0)
    weights = soft / np.array([np.log1p(np.exp(-10)) + 5, np.log(2), np.log1p(np.exp(-10)) + 5])
    ratio = np.array([np.log1p(np.exp(10)), np.log(2), np.log1p(np.exp(-10))]) / (np.log(2) + 1e-7)
    np.testing.assert_allclose(weights, -np.expm1(-ratio), rtol=1e-5)


def test_wsld_where_classes_are_excluded():
    student, teacher = STUDENT.copy(), TEACHER.copy()
    teacher[:, 3] = -np.inf
    values, gradients = numpy_wsld(student, teacher, LABELS, 2.0)
    assert values[3] == 0  # the teacher excludes the label
    value, gradient = mean_and_gradient(wsld, jnp.asarray(student), jnp.asarray(teacher), LABELS)
    np.testing.assert_allclose(value, values.mean(), **EXACT["f32"])
    np.testing.assert_allclose(gradient, gradients / 6, **EXACT["f32"])
    student[:, 3] = -np.inf  # both do: inf / inf in the weight of row 3
    value, gradient = mean_and_gradient(wsld, jnp.asarray(student), jnp.asarray(teacher), LABELS)
    others, kept = [0, 1, 2, 4, 5], [0, 1, 2, 4]
    fewer = np.searchsorted(kept, LABELS[others])
    values, gradients = numpy_wsld(STUDENT[others][:, kept], TEACHER[others][:, kept], fewer, 2.0)
    np.testing.assert_allclose(value, values.sum() / 6, **EXACT["f32"])
    np.testing.assert_allclose(gradient[np.ix_(others, kept)], gradients / 6, **EXACT["f32"])
    np.testing.assert_array_equal(gradient[3], 0)
    # Weight 0, the label being excluded, beside an infinite cost of another class.
    value, gradient = mean_and_gradient(
        wsld, jnp.array([[0.0, -jnp.inf, 1.0]]), jnp.array([[-jnp.inf, 0.0, 0.0]]), np.array([0])
    )
    assert value == 0
    np.testing.assert_array_equal(gradient, 0)
    # Where the student excludes the label and the teacher does not, the weight is 1 and the cost infinite.
    value, gradient = mean_and_gradient(wsld, jnp.array([[-jnp.inf, 0.0]]), jnp.zeros((1, 2)), np.array([0]))
    assert value == jnp.inf and np.isfinite(gradient).all()


@pytest.mark.parametrize("label", [-1, 5])
def test_a_label_that_is_no_class_gives_nan_to_its_row_alone(label):
    labels = LABELS.copy()
    labels[2] = label
    for loss in wsld, lambda s, t, y: uda_kd(s, t, s, t, y):
        values, pull = jax.vjp(lambda s, loss=loss: loss(s, TEACHER, labels), STUDENT)
        assert np.isnan(values[2])
        np.testing.assert_allclose(np.delete(values, 2), np.delete(loss(STUDENT, TEACHER, LABELS), 2), rtol=1e-6)
        gradient = pull(jnp.where(jnp.isnan(values), 0.0, 1.0))[0]
        np.testing.assert_array_equal(gradient[2], 0)
        assert np.isfinite(gradient).all() and np.abs(gradient).max() > 0.01


# --- standardize ---


def kd_standardized(student, teacher, temperature):
    return kd(standardize(student), standardize(teacher), temperature=temperature)


def dkd_standardized(student, teacher, labels, alpha, beta, temperature):
    return dkd(
        standardize(student), standardize(teacher), labels=labels, alpha=alpha, beta=beta, temperature=temperature
    )


@PRECISIONS
@pytest.mark.parametrize("case", cases("lskd_kd"), ids=repr)
def test_standardized_kd_golden(case, precision):
    with computing_in(precision) as real:
        value, gradient = mean_and_gradient(
            kd_standardized, real(case.inputs["student"]), real(case.inputs["teacher"]), **case.hyper
        )
        case.check(value, "out", "loss", precision)
        case.check(gradient, "grad", "student", precision)


@PRECISIONS
@pytest.mark.parametrize("case", cases("lskd_dkd"), ids=repr)
def test_standardized_dkd_golden(case, precision):
    student, teacher, labels = (case.inputs[name] for name in ("student", "teacher", "label"))
    with computing_in(precision) as real:
        value, gradient = mean_and_gradient(dkd_standardized, real(student), real(teacher), labels, **case.hyper)
        case.check(value, "out", "loss", precision)
        case.check(gradient, "grad", "student", precision)


def test_standardize_by_numpy():
    with computing_in("f64") as real:
        ours = standardize(real(STUDENT))
    logits = np.float64(STUDENT)
    expected = (logits - logits.mean(-1, keepdims=True)) / (1e-7 + logits.std(-1, ddof=1, keepdims=True))
    np.testing.assert_allclose(ours, expected, rtol=1e-12)


@pytest.mark.parametrize("slope", [1e-3, 7.0, 1e4])
def test_standardize_sees_no_shift_and_no_stretch(slope):
    with computing_in("f64") as real:
        expected = standardize(real(STUDENT), eps=0)
        np.testing.assert_allclose(standardize(slope * real(STUDENT) + 100, eps=0), expected, rtol=1e-8)
        np.testing.assert_allclose(standardize(slope * real(STUDENT) + 100), expected, rtol=1e-3)
        np.testing.assert_allclose(standardize(-real(STUDENT), eps=0), -expected, rtol=1e-12)


def test_standardize_loses_no_digits_to_a_common_shift():
    logits = np.round(STUDENT * 8) / 8
    np.testing.assert_allclose(standardize(logits + 8192), standardize(logits), rtol=2e-6)


@pytest.mark.parametrize("logits", [[0.1] * 10, [7.0] * 3, [-1e4 / 3] * 7, [5.0]])
@pytest.mark.parametrize("eps", [1e-7, 0.0])
def test_a_constant_row_becomes_zero(logits, eps):
    values, pull = jax.vjp(lambda z: standardize(z, eps=eps), jnp.asarray(logits, jnp.float32))
    np.testing.assert_array_equal(values, 0)
    towards = jnp.asarray(draw(106, len(logits)))
    (gradient,) = pull(towards)
    # The deviation has no gradient at 0; what is left is the centring, divided by eps.
    expected = np.float64(towards) - np.float64(towards).mean()
    np.testing.assert_allclose(gradient, expected / (eps or 1), rtol=2e-5, atol=1e-6 / (eps or 1))


def test_standardize_with_excluded_classes_is_that_of_the_others():
    logits, kept = STUDENT.copy(), [0, 1, 2, 4]
    logits[:, 3] = -np.inf
    logits[5, :4] = -np.inf
    values, pull = jax.vjp(standardize, jnp.asarray(logits))
    np.testing.assert_array_equal(values[:, 3], -np.inf)
    np.testing.assert_allclose(values[:5, kept], standardize(STUDENT[:5, kept]), rtol=1e-6)
    np.testing.assert_array_equal(values[5], [-np.inf] * 4 + [0])
    (gradient,) = pull(jnp.ones_like(logits))
    assert np.isfinite(gradient).all()
    np.testing.assert_array_equal(gradient[:, 3], 0)
    nothing, pull = jax.vjp(standardize, jnp.full((1, 3), -jnp.inf))
    np.testing.assert_array_equal(nothing, -np.inf)
    np.testing.assert_array_equal(pull(jnp.ones((1, 3)))[0], 0)
    # A loss on top.
    teacher = TEACHER.copy()
    logits[5], teacher[:, 3] = logits[0], -np.inf
    value, gradient = mean_and_gradient(kd_standardized, jnp.asarray(logits), jnp.asarray(teacher), temperature=2.0)
    fewer, expected = mean_and_gradient(
        kd_standardized, jnp.asarray(logits[:, kept]), jnp.asarray(teacher[:, kept]), temperature=2.0
    )
    np.testing.assert_allclose(value, fewer, rtol=1e-5)
    np.testing.assert_allclose(gradient[:, kept], expected, rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(gradient[:, 3], 0)


# --- uda_kd ---


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
def test_uda_kd_is_its_formula_on_both_views(alpha):
    views = [draw(seed, 6, 5) for seed in (107, 108, 109, 110)]
    student, teacher, student_aug, teacher_aug = views
    expected = 0
    for s, t in ((student, teacher), (student_aug, teacher_aug)):
        hard = -reference.log_softmax(s)[np.arange(6), LABELS]
        expected = expected + 0.5 * ((1 - alpha) * hard + alpha * reference.kd(s, t, 3.0))
    with computing_in("f64") as real:
        loss = uda_kd(*map(real, views), LABELS, alpha=alpha, temperature=3.0)
        np.testing.assert_allclose(loss, expected, rtol=1e-12)
        gradients = jax.grad(
            lambda *v: uda_kd(*v, labels=LABELS, alpha=alpha, temperature=3.0).sum(), argnums=(0, 1, 2, 3)
        )(*map(real, views))
    for gradient, s, t in (gradients[0], student, teacher), (gradients[2], student_aug, teacher_aug):
        hard = reference.softmax(s) - np.eye(5)[LABELS]
        by_hand = 0.5 * ((1 - alpha) * hard + alpha * reference.kd_gradient(s, t, 3.0))
        np.testing.assert_allclose(gradient, by_hand, rtol=1e-10, atol=1e-12)
    np.testing.assert_array_equal(gradients[1], 0)
    np.testing.assert_array_equal(gradients[3], 0)


def test_uda_kd_of_one_view_twice_is_that_views():
    values = uda_kd(STUDENT, TEACHER, STUDENT, TEACHER, LABELS, alpha=1.0, temperature=4.0)
    np.testing.assert_allclose(values, kd(STUDENT, TEACHER, temperature=4.0), rtol=1e-6)
    with pytest.raises(ValueError, match="student_logits_aug has leading axes"):
        uda_kd(STUDENT, TEACHER, STUDENT[:3], TEACHER[:3], LABELS)
    with pytest.raises(ValueError, match="alpha is 2"):
        uda_kd(STUDENT, TEACHER, STUDENT, TEACHER, LABELS, alpha=2)


# --- all of them ---

LOSSES = {
    "ttm": lambda s, t, y: ttm(s, t, gamma=0.3),
    "wttm": lambda s, t, y: wttm(s, t, gamma=0.3),
    "wsld": lambda s, t, y: wsld(s, t, y),
    "kd_standardized": lambda s, t, y: kd_standardized(s, t, 2.0),
    "uda_kd": lambda s, t, y: uda_kd(s, t, s, t, y),
}


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
def test_one_value_a_row_in_float32_and_nothing_into_the_teacher(loss):
    values = loss(STUDENT, TEACHER, LABELS)
    assert values.shape == (6,) and values.dtype == jnp.float32
    grid = loss(STUDENT.reshape(2, 3, 5), TEACHER.reshape(2, 3, 5), LABELS.reshape(2, 3))
    np.testing.assert_allclose(grid.reshape(6), values, rtol=1e-6)
    by_student, by_teacher = jax.grad(lambda s, t: loss(s, t, LABELS).sum(), argnums=(0, 1))(STUDENT, TEACHER)
    np.testing.assert_array_equal(by_teacher, 0)
    assert np.abs(by_student).max() > 1e-3
    half = jnp.asarray(STUDENT, jnp.bfloat16), jnp.asarray(TEACHER, jnp.bfloat16)
    np.testing.assert_array_equal(loss(*half, LABELS), loss(*(x.astype(jnp.float32) for x in half), LABELS))
    np.testing.assert_allclose(loss(*half, LABELS), values, rtol=0.1)
    # A shift of all logits is none of the loss's business.
    student, teacher = np.round(STUDENT * 8) / 8, np.round(TEACHER * 8) / 8
    shifted = loss(student + 100, teacher - 50, LABELS)
    np.testing.assert_allclose(shifted, loss(student, teacher, LABELS), rtol=1e-5, atol=1e-6)
    # One class leaves nothing to choose.
    one, pull = jax.vjp(lambda s: loss(s, TEACHER[:, :1], LABELS * 0), STUDENT[:, :1])
    np.testing.assert_array_equal(one, 0)
    np.testing.assert_array_equal(pull(jnp.ones(6))[0], 0)


def test_hyperparameters_by_example():
    each = np.linspace(0.2, 2.0, 6, dtype=np.float32)
    by_example = ttm(STUDENT, TEACHER, gamma=each)
    np.testing.assert_allclose(by_example[4], ttm(STUDENT[4], TEACHER[4], gamma=float(each[4])), rtol=1e-5)
    by_example = wsld(STUDENT, TEACHER, LABELS, temperature=each)
    np.testing.assert_allclose(by_example[4], wsld(STUDENT[4], TEACHER[4], LABELS[4], temperature=each[4]), rtol=1e-5)
    # One for each source of data: [sources, 1] beside [sources, rows] leading axes.
    grid = STUDENT.reshape(2, 3, 5), TEACHER.reshape(2, 3, 5), LABELS.reshape(2, 3)
    sources = wsld(*grid, temperature=jnp.array([[2.0], [4.0]]))
    np.testing.assert_allclose(sources[1], wsld(STUDENT[3:], TEACHER[3:], LABELS[3:], temperature=4.0), rtol=1e-6)


def test_refuses_what_does_not_fit():
    for gamma in (0, -1.0, float("inf"), float("nan")):
        with pytest.raises(ValueError, match=r"gamma is .* above 0"):
            ttm(STUDENT, TEACHER, gamma=gamma)
    with pytest.raises(ValueError, match="eps is -1"):
        standardize(STUDENT, eps=-1)
    with pytest.raises(TypeError, match="labels must be integer"):
        wsld(STUDENT, TEACHER, LABELS.astype(np.float32))
    with pytest.raises(ValueError, match="temperature is 0"):
        wsld(STUDENT, TEACHER, labels=LABELS, temperature=0)


def test_a_class_masked_by_the_least_finite_number_leaves_the_others_alike_and_itself_far_below():
    for count in (1, 2):
        masked = jnp.concatenate([jnp.array([[1.0, 2.0]]), jnp.full((1, count), jnp.finfo(jnp.float32).min)], axis=1)
        found = standardize(masked)
        expected = np.concatenate([[0.0, 0.0], np.full(count, -1.0)])
        expected = (expected - expected.mean()) / expected.std(ddof=1)
        np.testing.assert_allclose(found[0], expected, rtol=1e-6)

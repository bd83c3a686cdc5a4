"""dkd, rld and nkd against their formulas, at their edges, and what they refuse."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from kdjax.losses import kd
from kdjax.losses.logits.decoupled import dkd, dkd_parts, nkd, rld, rld_parts
from tests.losses import numpy_reference as reference
from tests.losses.computing import compiled, computing_in, draw, mean_and_gradient, values_and_gradient
from tests.losses.logits.test_decoupled_golden import dkd_by_rows, nkd_by_rows, rld_by_rows

kd, dkd, dkd_parts, nkd, rld, rld_parts = map(compiled, (kd, dkd, dkd_parts, nkd, rld, rld_parts))

PRECISIONS = pytest.mark.parametrize("precision", ["f64", "f32"])
LOSSES = pytest.mark.parametrize("loss", [dkd, rld, nkd], ids=["dkd", "rld", "nkd"])
STUDENT, TEACHER = draw(0, 6, 5), draw(1, 6, 5)
LABELS = np.array([0, 1, 2, 3, 4, 2])
# Float32 on ordinary logits against float64 on the same numbers.
CLOSE = {"rtol": 2e-5, "atol": 2e-6}


BY_ROWS = {dkd: dkd_by_rows, rld: rld_by_rows, nkd: nkd_by_rows}


# --- what the formulas promise ---


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_dkd_parts_make_up_kd(temperature):
    with computing_in("f64") as real:
        student, teacher = real(STUDENT), real(TEACHER)
        target, rest = dkd_parts(student, teacher, labels=LABELS, temperature=temperature)
        trust = reference.softmax(TEACHER, temperature)[np.arange(6), LABELS]
        whole = kd(student, teacher, temperature=temperature)
        np.testing.assert_allclose(target + (1 - trust) * rest, whole, rtol=1e-12)
        weighed = dkd(student, teacher, labels=LABELS, beta=1 - trust, temperature=temperature)
        np.testing.assert_allclose(weighed, whole, rtol=1e-12)
        expected = reference.dkd_parts(STUDENT, TEACHER, LABELS, temperature)
        np.testing.assert_allclose((target, rest), expected, rtol=1e-10)


@LOSSES
@pytest.mark.parametrize("temperature", [0.7, 4.0])
def test_values_and_gradients_of_ordinary_logits(loss, temperature):
    values, gradients = BY_ROWS[loss](STUDENT, TEACHER, LABELS, temperature=temperature)
    with computing_in("f64") as real:
        found, gradient = mean_and_gradient(loss, real(STUDENT), real(TEACHER), LABELS, temperature=temperature)
        np.testing.assert_allclose(found, values.mean(), rtol=1e-12)
        np.testing.assert_allclose(gradient, gradients / 6, rtol=1e-10, atol=1e-14)


def test_rld_of_a_teacher_that_is_right_is_dkd():
    labels = TEACHER.argmax(-1)
    with computing_in("f64") as real:
        student, teacher = real(STUDENT), real(TEACHER)
        parts = rld_parts(student, teacher, labels, temperature=3.0)
        np.testing.assert_allclose(parts, dkd_parts(student, teacher, labels, temperature=3.0), rtol=1e-13)
        warm, _ = rld_parts(student, teacher, labels, temperature=3.0, alpha_temperature=2.0)
        np.testing.assert_allclose(warm, dkd_parts(student, teacher, labels, temperature=2.0)[0], rtol=1e-13)


def test_rld_hands_on_how_sure_a_wrong_teacher_is_not_of_what():
    teacher = jnp.array([[0.0, 4.0, 0.0]])
    for student in jnp.array([[4.0, 0.0, 0.0]]), jnp.array([[4.0, -30.0, np.log(2.0)]]):  # both as sure of class 0
        confidence, correlation = rld_parts(student, teacher, jnp.array([0]), temperature=1.0)
        np.testing.assert_allclose(confidence, 0, atol=1e-6)
        np.testing.assert_array_equal(correlation, 0)


def test_nkd_falls_short_of_its_bound_by_the_divergences_that_make_it_up():
    with computing_in("f64") as real:
        student, teacher = real(STUDENT), real(TEACHER)
        _, rest = dkd_parts(student, teacher, LABELS, temperature=2.0)
        others = np.stack([reference.without(row, y) for row, y in zip(TEACHER, LABELS, strict=True)])
        log_q = reference.log_softmax(others, 2.0)
        entropy = -np.sum(np.exp(log_q) * log_q, axis=-1)
        trust = reference.softmax(TEACHER)[np.arange(6), LABELS]  # untempered
        own = -trust * reference.log_softmax(STUDENT)[np.arange(6), LABELS]
        expected = own + 0.5 * (rest + 4 * entropy)
        np.testing.assert_allclose(nkd(student, teacher, LABELS, gamma=0.5, temperature=2.0), expected, rtol=1e-12)


def test_nkd_takes_the_label_of_soft_labels_from_their_largest():
    soft = np.full((6, 5), 0.1, np.float32)
    soft[np.arange(6), LABELS] = 0.6
    expected = nkd(STUDENT, TEACHER, LABELS)
    np.testing.assert_array_equal(nkd(STUDENT, TEACHER, soft), expected)
    np.testing.assert_array_equal(nkd(STUDENT, TEACHER, jnp.asarray(soft, jnp.bfloat16)), expected)
    tied = np.full((6, 5), 0.2, np.float32)
    np.testing.assert_array_equal(nkd(STUDENT, TEACHER, tied), nkd(STUDENT, TEACHER, LABELS * 0))


# --- edges ---


def dkd_as_it_is_usually_written(student, teacher, labels, temperature):
    """The two classes as sums of probabilities, and their logarithm after; the label's logit pushed down by 1000."""
    target = jax.nn.one_hot(labels, student.shape[-1])

    def two_classes(logits):
        p = jax.nn.softmax(logits / temperature)
        return jnp.stack([jnp.sum(p * target, axis=-1), jnp.sum(p * (1 - target), axis=-1)], axis=-1)

    def rest(logits):
        return jax.nn.log_softmax(logits / temperature - 1000 * target)

    b_s, b_t, log_q_s, log_q_t = two_classes(student), two_classes(teacher), rest(student), rest(teacher)
    target_part = jnp.sum(b_t * (jnp.log(b_t) - jnp.log(b_s)), axis=-1)
    return temperature**2 * (target_part + 8 * jnp.sum(jnp.exp(log_q_t) * (log_q_t - log_q_s), axis=-1))


@pytest.mark.parametrize("gap", [20.0, 60.0, 100.0, 200.0, 2000.0, -20.0, -60.0, -100.0, -200.0, -2000.0])
def test_dkd_does_not_overflow_with_the_gap_between_label_and_rest(gap):
    """Float32 has no exp(-88): from a gap of 88 T the usual form is inf or nan, and its gradient nan."""
    temperature = 4.0
    student, teacher = np.array([[gap * temperature, 0.5, -0.5]], np.float32), np.array([[0.0, 1.0, 2.0]], np.float32)
    labels = np.array([0])
    value, gradient = mean_and_gradient(
        dkd, jnp.asarray(student), jnp.asarray(teacher), labels, temperature=temperature
    )
    values, gradients = dkd_by_rows(student, teacher, labels, temperature=temperature)
    np.testing.assert_allclose(value, values.mean(), rtol=1e-6)
    np.testing.assert_allclose(gradient, gradients, rtol=1e-5)
    usual, usual_gradient = mean_and_gradient(dkd_as_it_is_usually_written, student, teacher, labels, temperature)
    if abs(gap) < 88:
        np.testing.assert_allclose(usual, values.mean(), rtol=1e-6)
        np.testing.assert_allclose(usual_gradient, gradients, rtol=1e-5)
    else:
        assert not np.isfinite(usual) and not np.isfinite(usual_gradient).all()


@LOSSES
@PRECISIONS
@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_logits_of_ten_thousand(loss, temperature, precision):
    student, teacher = draw(2, 6, 5, scale=1e4), draw(3, 6, 5, scale=1e4)
    close = {"rtol": 1e-10, "atol": 1e-10} if precision == "f64" else {"rtol": 2e-5, "atol": 1e-6}
    values, gradients = BY_ROWS[loss](student, teacher, LABELS, temperature=temperature)
    with computing_in(precision) as real:
        found, gradient = mean_and_gradient(loss, real(student), real(teacher), LABELS, temperature=temperature)
        np.testing.assert_allclose(found, values.mean(), **close)
        np.testing.assert_allclose(gradient, gradients / 6, **close)


def test_rld_masks_the_label_what_is_above_it_and_what_ties_with_it():
    teacher = np.array([[2.0, 1.0, 1.0, 0.0, -1.0], [0.0, 1.0, 2.0, 1.0, 3.0]], np.float32)
    labels = np.array([1, 0])  # left are classes 3 and 4; none, for the label is lowest
    student = STUDENT[:2]

    def correlation(s):
        return rld_parts(s, teacher, labels, temperature=2.0)[1]

    values, pull = jax.vjp(correlation, student)
    np.testing.assert_allclose(values, [reference.kd(student[0, 3:], teacher[0, 3:], 2.0), 0], rtol=1e-5)
    assert values[0] > 0 and values[1] == 0
    gradient = pull(jnp.ones(2))[0]
    np.testing.assert_allclose(gradient[0, 3:], reference.kd_gradient(student[0, 3:], teacher[0, 3:], 2.0), rtol=1e-5)
    np.testing.assert_array_equal(gradient[0, :3], 0)
    np.testing.assert_array_equal(gradient[1], 0)


def test_rld_of_a_label_that_the_teacher_has_lowest_is_its_confidence_part_alone():
    for teacher in draw(5, 6, 5), np.zeros((6, 5), np.float32):  # a constant row: all classes tie with the label
        labels = teacher.argmin(-1)
        value, gradient = mean_and_gradient(rld, STUDENT, teacher, labels, beta=8.0)
        without, expected = mean_and_gradient(rld, STUDENT, teacher, labels, beta=0.0)
        np.testing.assert_array_equal(value, without)
        np.testing.assert_array_equal(gradient, expected)
        assert np.abs(gradient).max() > 0.01


@LOSSES
@pytest.mark.parametrize("label", [1, 3])
def test_a_class_that_both_networks_exclude(loss, label):
    """Class 3 is out: beside the label it vanishes; as the label it leaves what the other classes have to say."""
    student, teacher, kept = STUDENT.copy(), TEACHER.copy(), [0, 1, 2, 4]
    student[:, 3] = teacher[:, 3] = -np.inf
    labels = np.full(6, label)
    fewer = STUDENT[:, kept], TEACHER[:, kept]
    if label == 1:
        expected, pulls = BY_ROWS[loss](*fewer, labels, temperature=2.0)
    elif loss is dkd:
        expected, pulls = 8 * reference.kd(*fewer, 2.0), 8 * reference.kd_gradient(*fewer, 2.0)
    elif loss is nkd:
        q_t, log_q = reference.softmax(fewer[1], 2.0), reference.log_softmax(fewer[0], 2.0)
        expected, pulls = -1.5 * 4 * np.sum(q_t * log_q, axis=-1), 1.5 * reference.kd_gradient(*fewer, 2.0)
    else:  # the teacher is sure of something, the student cannot be of class 3, and nothing ranks below it
        expected, pulls = np.full(6, np.inf), np.zeros((6, 4))
    value, gradient = mean_and_gradient(loss, jnp.asarray(student), jnp.asarray(teacher), labels, temperature=2.0)
    np.testing.assert_allclose(value, expected.mean(), **CLOSE)
    np.testing.assert_allclose(gradient[:, kept], pulls / 6, **CLOSE)
    np.testing.assert_array_equal(gradient[:, 3], 0)


@LOSSES
def test_classes_that_only_the_teacher_excludes(loss):
    teacher = TEACHER.copy()
    teacher[:3, 3] = teacher[3:, 0] = -np.inf  # beside the label in five rows, the label itself in row 3
    labels = np.array([0, 1, 2, 0, 4, 2])
    with np.errstate(invalid="ignore", divide="ignore"):
        values, gradients = BY_ROWS[loss](STUDENT, teacher, labels, temperature=2.0)
    assert np.isfinite(values).all()
    value, gradient = mean_and_gradient(loss, jnp.asarray(STUDENT), jnp.asarray(teacher), labels, temperature=2.0)
    np.testing.assert_allclose(value, values.mean(), **CLOSE)
    np.testing.assert_allclose(gradient, gradients / 6, **CLOSE)


@LOSSES
def test_a_class_that_only_the_student_excludes_leaves_a_finite_gradient(loss):
    student = jnp.array([[0.0, -jnp.inf, 1.0]])
    value, gradient = mean_and_gradient(loss, student, jnp.array([[1.0, 0.5, 0.0]]), np.array([0]), temperature=1.0)
    assert value == jnp.inf
    assert np.isfinite(gradient).all()


def test_two_classes():
    student, teacher, labels = draw(4, 6, 2), draw(5, 6, 2), LABELS % 2
    target, rest = dkd_parts(jnp.asarray(student), jnp.asarray(teacher), labels=labels, temperature=2.0)
    np.testing.assert_allclose(target, reference.kd(student, teacher, 2.0), **CLOSE)
    np.testing.assert_array_equal(rest, 0)
    for loss in dkd, rld, nkd:
        values, gradients = BY_ROWS[loss](student, teacher, labels)
        value, gradient = mean_and_gradient(loss, jnp.asarray(student), jnp.asarray(teacher), labels)
        np.testing.assert_allclose(value, values.mean(), **CLOSE)
        np.testing.assert_allclose(gradient, gradients / 6, **CLOSE)


@LOSSES
def test_one_class_one_row(loss):
    values, pull = jax.vjp(lambda s: loss(s, TEACHER[:1, :1], LABELS[:1] * 0), STUDENT[:1, :1])
    np.testing.assert_array_equal(values, [0])
    np.testing.assert_array_equal(pull(jnp.ones(1))[0], [[0]])


@pytest.mark.parametrize("scale", [1.0, 1e4])
def test_a_student_that_equals_its_teacher(scale):
    logits, labels = scale * TEACHER, TEACHER.argmax(-1)
    for loss in dkd, rld:  # of a teacher that is right, for rld; nkd is a cross-entropy and moves on
        values, pull = jax.vjp(lambda s, loss=loss: loss(s, logits, labels), logits)
        np.testing.assert_array_equal(values, 0)
        np.testing.assert_allclose(pull(jnp.ones(6))[0], 0, atol=5e-6)
    _, correlation = rld_parts(logits, logits, LABELS)
    np.testing.assert_array_equal(correlation, 0)


# --- what every loss that looks at one row at a time has in common ---


@LOSSES
def test_one_value_for_each_row_however_the_rows_and_classes_are_arranged(loss):
    values = loss(STUDENT, TEACHER, LABELS)
    assert values.shape == (6,) and values.dtype == jnp.float32
    np.testing.assert_array_equal(loss(STUDENT, TEACHER, labels=LABELS), values)
    grid = loss(STUDENT.reshape(2, 3, 5), TEACHER.reshape(2, 3, 5), LABELS.reshape(2, 3))
    np.testing.assert_allclose(grid.reshape(6), values, rtol=1e-6)
    np.testing.assert_allclose(jax.vmap(loss)(STUDENT, TEACHER, LABELS), values, rtol=1e-6)
    order = np.array([3, 1, 4, 0, 2])
    renamed = np.argsort(order)[LABELS]
    np.testing.assert_allclose(loss(STUDENT[:, order], TEACHER[:, order], renamed), values, rtol=1e-5)
    # Eighths up to 32 and whole shifts: the shifted logits are exact in float32.
    student, teacher = np.round(STUDENT * 8) / 8, np.round(TEACHER * 8) / 8
    expected = loss(student, teacher, LABELS)
    np.testing.assert_allclose(loss(student + 100, teacher - 50, LABELS), expected, rtol=1e-5, atol=1e-6)


@LOSSES
def test_half_types_are_computed_in_float32_and_nothing_flows_into_the_teacher(loss):
    student, teacher = jnp.asarray(STUDENT, jnp.bfloat16), jnp.asarray(TEACHER, jnp.bfloat16)
    values = loss(student, teacher, LABELS)
    assert values.dtype == jnp.float32
    np.testing.assert_array_equal(values, loss(student.astype(jnp.float32), teacher.astype(jnp.float32), LABELS))
    by_student, by_teacher = jax.grad(lambda s, t: loss(s, t, LABELS).sum(), argnums=(0, 1))(STUDENT, TEACHER)
    np.testing.assert_array_equal(by_teacher, 0)
    assert np.abs(by_student).max() > 1e-2


@LOSSES
@pytest.mark.parametrize("label", [-1, 5])
def test_a_label_that_is_no_class_gives_nan_and_sends_nothing_back(loss, label):
    labels = LABELS.copy()
    labels[2] = label
    values, pull = jax.vjp(lambda s: loss(s, TEACHER, labels), STUDENT)
    assert np.isnan(values[2]) and np.isfinite(np.delete(values, 2)).all()
    gradient = pull(jnp.where(jnp.isnan(values), 0.0, 1.0))[0]
    np.testing.assert_array_equal(gradient[2], 0)
    assert np.isfinite(gradient).all()


def test_hyperparameters_may_differ_by_example():
    own = np.array([0.5, 1.0, 2.0, 4.0, 8.0, 16.0], np.float32)
    for loss, names in (dkd, ("alpha", "beta")), (rld, ("alpha", "beta", "alpha_temperature")), (nkd, ("gamma",)):
        together = loss(STUDENT, TEACHER, LABELS, temperature=own[::-1], **dict.fromkeys(names, own))
        alone = [
            BY_ROWS[loss](s[None], t[None], [y], temperature=warm, **dict.fromkeys(names, weight))[0][0]
            for s, t, y, warm, weight in zip(
                STUDENT, TEACHER, LABELS, np.float64(own[::-1]), np.float64(own), strict=True
            )
        ]
        np.testing.assert_allclose(together, alone, rtol=2e-4)


# --- values drawn at random, at one shape ---

SCORES = arrays(np.float64, (2, 3), elements=st.floats(-1e4, 1e4, allow_subnormal=False))


@settings(max_examples=25, deadline=None, derandomize=True)
@given(SCORES, SCORES, st.floats(0.5, 20.0), st.lists(st.integers(0, 2), min_size=2, max_size=2))
def test_any_logits(student, teacher, temperature, labels):
    close = {"rtol": 1e-9, "atol": 1e-8}  # T^2 times the rounding of logits of 1e4
    with computing_in("f64") as real:
        labels = np.array(labels)
        for loss, parts in (dkd, dkd_parts), (rld, rld_parts):
            pair, found = values_and_gradient(parts, real(student), real(teacher), labels, temperature=temperature)
            values, gradients = BY_ROWS[loss](student, teacher, labels, beta=1.0, temperature=temperature)
            np.testing.assert_allclose(pair[0] + pair[1], values, **close)
            np.testing.assert_allclose(found, gradients, **close)
            assert min(pair[0].min(), pair[1].min()) >= -1e-9


# --- refusals ---


def test_refuses_what_does_not_fit():
    logits, labels = jnp.zeros((4, 3)), jnp.zeros(4, int)
    with pytest.raises(ValueError, match=r"beta has shape \(3,\), which does not broadcast"):
        dkd(logits, logits, labels, beta=jnp.ones(3))
    with pytest.raises(ValueError, match=r"gamma has shape \(3,\), which does not broadcast"):
        nkd(logits, logits, labels, gamma=jnp.ones(3))
    with pytest.raises(ValueError, match="temperature is 0; it divides the logits"):
        rld(logits, logits, labels, alpha_temperature=0)
    for loss in dkd, rld, nkd:
        with pytest.raises(TypeError, match="labels must be integer class indices"):
            loss(logits, logits, jnp.zeros(4))
        with pytest.raises(ValueError, match=r"labels has shape \(3,\)"):
            loss(logits, logits, jnp.zeros(3, int))
        with pytest.raises(ValueError, match="teacher_logits has 5 classes, student_logits 3"):
            loss(logits, jnp.zeros((4, 5)), labels)
    with pytest.raises(ValueError, match="labels has 2 classes, student_logits 3"):
        nkd(logits, logits, jnp.zeros((4, 2)))

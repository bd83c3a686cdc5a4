"""swap_logits, rc, label_revision, loca_* and kd_from_probs against their formulas, at their edges, and what they refuse."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdjax.losses import cross_entropy, kd
from kdjax.losses.logits.correction import kd_from_probs, label_revision, loca_calibrate, loca_logits, rc, swap_logits
from tests.losses import numpy_reference as reference
from tests.losses.computing import compiled, computing_in, draw, mean_and_gradient

cross_entropy, kd, kd_from_probs, label_revision, loca_calibrate, loca_logits, rc, swap_logits = map(
    compiled, (cross_entropy, kd, kd_from_probs, label_revision, loca_calibrate, loca_logits, rc, swap_logits)
)

PRECISIONS = pytest.mark.parametrize("precision", ["f64", "f32"])
STUDENT, TEACHER = draw(30, 8, 5), draw(31, 8, 5)
LABELS = np.where(np.arange(8) % 3 == 0, TEACHER.argmax(-1), [0, 1, 2, 3, 4, 2, 1, 0])
RIGHT = TEACHER.argmax(-1) == LABELS
assert 3 <= RIGHT.sum() <= 5  # three rows at least in either group
CLOSE = {"rtol": 2e-5, "atol": 2e-6}


def tolerance(precision):
    return {"rtol": 1e-10, "atol": 1e-10} if precision == "f64" else {"rtol": 2e-5, "atol": 1e-6}


# --- swap_logits ---


def test_swap_logits_exchanges_two_and_leaves_a_right_teacher_alone():
    swapped = swap_logits(TEACHER, LABELS)
    np.testing.assert_array_equal(swapped, reference.swap_label_to_top(TEACHER, LABELS))
    np.testing.assert_array_equal(swapped[RIGHT], TEACHER[RIGHT])
    np.testing.assert_array_equal(swapped.argmax(-1), LABELS)
    np.testing.assert_array_equal(np.sort(swapped), np.sort(TEACHER))
    np.testing.assert_array_equal(swap_logits(swapped, LABELS), swapped)
    grid = swap_logits(TEACHER.reshape(2, 4, 5), labels=LABELS.reshape(2, 4))
    np.testing.assert_array_equal(grid.reshape(8, 5), swapped)


def test_swap_logits_at_its_edges():
    teacher = jnp.array([[2.0, 5.0, 5.0], [3.0, -jnp.inf, 1.0], [4.0, 4.0, 0.0]], jnp.bfloat16)
    swapped = swap_logits(teacher, jnp.array([0, 1, 1]))
    assert swapped.dtype == jnp.float32
    np.testing.assert_array_equal(swapped, [[5, 2, 5], [-np.inf, 3, 1], [4, 4, 0]])
    np.testing.assert_array_equal(swap_logits(teacher, jnp.array([0, 3, -1]))[1:], np.nan)
    np.testing.assert_array_equal(swap_logits(teacher, jnp.array([0, 3, -1]))[0], [5, 2, 5])
    pull = jax.grad(lambda t: swap_logits(t, LABELS).sum())(TEACHER)
    np.testing.assert_array_equal(pull, 0)
    np.testing.assert_array_equal(swap_logits(TEACHER[:, :1], LABELS * 0), TEACHER[:, :1])


# --- rc ---


def raised(student, labels):
    target = np.float64(student)
    for row, label in zip(target, labels, strict=True):
        row[label] += row.max()
    return target


@PRECISIONS
@pytest.mark.parametrize("scale", [1.0, 3e3])
@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_rc_is_distillation_from_the_raised_student(temperature, scale, precision):
    logits = scale * STUDENT
    with computing_in(precision) as real:
        value, gradient = mean_and_gradient(rc, real(logits), None, LABELS, temperature=temperature)
        expected = reference.kd(logits, raised(logits, LABELS), temperature)
        np.testing.assert_allclose(value, expected.mean(), **tolerance(precision))
        expected = reference.kd_gradient(logits, raised(logits, LABELS), temperature)
        np.testing.assert_allclose(gradient, expected / 8, **tolerance(precision))


def test_rc_does_not_look_at_the_teacher():
    expected = rc(STUDENT, None, LABELS)
    assert expected.shape == (8,) and expected.dtype == jnp.float32
    np.testing.assert_array_equal(rc(STUDENT, np.full((8, 5), np.nan), labels=LABELS), expected)
    grid = rc(STUDENT.reshape(2, 4, 5), None, LABELS.reshape(2, 4))
    np.testing.assert_allclose(grid.reshape(8), expected, rtol=1e-6)


def test_rc_at_its_edges():
    lowered = jax.grad(lambda s: rc(s, None, np.array([0])).sum())(jnp.array([[-1.0, -2.0]]))
    assert lowered[0, 0] > 0 > lowered[0, 1]  # the largest logit is negative
    np.testing.assert_array_equal(rc(jnp.array([[0.0, -3.0]]), None, np.array([1])), 0)
    np.testing.assert_array_equal(rc(STUDENT[:, :1], None, LABELS * 0), 0)
    excluded = jnp.array([[1.0, -jnp.inf, 2.0], [1.0, -jnp.inf, 2.0]])
    values, pull = jax.vjp(lambda s: rc(s, None, np.array([0, 1])), excluded)
    np.testing.assert_allclose(values[0], reference.kd([1.0, 2.0], [3.0, 2.0], 4.0), rtol=1e-5)
    assert values[1] == 0  # a label that the student excludes cannot be raised
    gradient = pull(jnp.ones(2))[0]
    np.testing.assert_array_equal(gradient[:, 1], 0)
    np.testing.assert_allclose(gradient[0, [0, 2]], reference.kd_gradient([1.0, 2.0], [3.0, 2.0], 4.0), rtol=1e-5)
    half = jnp.asarray(STUDENT, jnp.bfloat16)
    np.testing.assert_array_equal(rc(half, None, LABELS), rc(half.astype(jnp.float32), None, LABELS))


# --- label_revision ---

KEPT = np.array([True, True, True, True, True, True, False, False])


def revised(student, teacher, labels, *, lambda1=4.0, lambda2=1.0, eta=0.8):
    """The published scalar and its gradient: one mean over the rows with a right teacher and one over the others."""
    student, teacher = np.float64(student), np.float64(teacher)
    right = teacher.argmax(-1) == labels
    counts, classes = {True: right.sum(), False: (~right).sum()}, student.shape[-1]
    value, gradient = 0.0, np.zeros(student.shape)
    for i, (s, t, y, is_right) in enumerate(zip(student, teacher, labels, right, strict=True)):
        label, p_s, p_t = np.arange(classes) == y, reference.softmax(s), reference.softmax(t)
        if is_right:
            part = -reference.log_softmax(s)[y] + lambda1 * np.mean((s - t) ** 2)
            gradient[i] = p_s - label + 2 * lambda1 * (s - t) / classes
        else:
            share = eta / (p_t.max() - p_t[y] + 1)
            gap = p_s - share * p_t - (1 - share) * label
            part = lambda2 * np.mean(gap**2)
            gradient[i] = 2 * lambda2 / classes * p_s * (gap - p_s @ gap)
        value += part / counts[is_right]
        gradient[i] /= counts[is_right]
    return value, gradient


def masked_mean(student, teacher, labels, where):
    return jnp.sum(label_revision(student, teacher, labels, where=where)) / jnp.maximum(jnp.sum(where), 1)


@PRECISIONS
@pytest.mark.parametrize("scale", [1.0, 1e4])
def test_label_revision_is_a_mean_over_each_group(scale, precision):
    student, teacher = scale * STUDENT, scale * TEACHER
    weights = {"lambda1": 0.7, "lambda2": 3.0, "eta": 0.6}
    value, gradient = revised(student, teacher, LABELS, **weights)
    with computing_in(precision) as real:
        found, pull = mean_and_gradient(label_revision, real(student), real(teacher), LABELS, **weights)
        np.testing.assert_allclose(found, value, **tolerance(precision))
        np.testing.assert_allclose(pull, gradient, **tolerance(precision))


def test_label_revision_of_one_group_of_one_row_and_of_nothing():
    for rows in RIGHT, ~RIGHT, np.arange(8) == np.argmax(RIGHT), np.arange(8) == np.argmin(RIGHT):
        value, gradient = revised(STUDENT[rows], TEACHER[rows], LABELS[rows])
        found, pull = mean_and_gradient(masked_mean, STUDENT, TEACHER, LABELS, rows)
        np.testing.assert_allclose(found, value, **CLOSE)
        np.testing.assert_allclose(pull[rows], gradient, **CLOSE)
        np.testing.assert_allclose(label_revision(STUDENT[rows], TEACHER[rows], LABELS[rows]).mean(), value, **CLOSE)
    found, pull = mean_and_gradient(masked_mean, STUDENT, TEACHER, LABELS, np.zeros(8, bool))
    np.testing.assert_array_equal(found, 0)
    np.testing.assert_array_equal(pull, 0)


@pytest.mark.parametrize("junk", [0.0, np.nan, np.inf, -np.inf])
def test_label_revision_with_a_mask_is_that_of_the_kept_rows(junk):
    student, teacher, labels = STUDENT.copy(), TEACHER.copy(), np.where(KEPT, LABELS, -1)
    student[~KEPT] = teacher[~KEPT] = junk
    value, gradient = revised(STUDENT[KEPT], TEACHER[KEPT], LABELS[KEPT])
    with computing_in("f64") as real:
        found, pull = mean_and_gradient(masked_mean, real(student), real(teacher), labels, KEPT)
        np.testing.assert_allclose(found, value, rtol=1e-12)
        np.testing.assert_allclose(pull[KEPT], gradient, rtol=1e-10, atol=1e-14)
        np.testing.assert_array_equal(pull[~KEPT], 0)
        np.testing.assert_array_equal(label_revision(student, teacher, labels, where=KEPT)[~KEPT], 0)


def test_label_revision_counts_no_row_without_a_label():
    labels = np.where(KEPT, LABELS, 9)
    values = label_revision(STUDENT, TEACHER, labels)
    np.testing.assert_array_equal(np.isnan(values), ~KEPT)
    np.testing.assert_array_equal(values[KEPT], label_revision(STUDENT, TEACHER, labels, where=KEPT)[KEPT])


def test_label_revision_of_rows_and_classes_in_another_order_in_half_types_and_of_the_teacher():
    values = label_revision(STUDENT, TEACHER, LABELS)
    rows, classes = np.array([5, 2, 0, 7, 1, 4, 3, 6]), np.array([3, 1, 4, 0, 2])
    moved = label_revision(STUDENT[rows], TEACHER[rows], LABELS[rows])
    np.testing.assert_allclose(moved, values[rows], rtol=1e-6)
    renamed = np.argsort(classes)[LABELS]
    np.testing.assert_allclose(label_revision(STUDENT[:, classes], TEACHER[:, classes], renamed), values, rtol=1e-5)
    half = jnp.asarray(STUDENT, jnp.bfloat16), jnp.asarray(TEACHER, jnp.bfloat16)
    wide = [x.astype(jnp.float32) for x in half]
    np.testing.assert_array_equal(label_revision(*half, LABELS), label_revision(*wide, LABELS))
    np.testing.assert_array_equal(jax.grad(lambda t: label_revision(STUDENT, t, LABELS).sum())(TEACHER), 0)
    with jax.enable_x64(True):
        assert label_revision(STUDENT, TEACHER, LABELS).dtype == jnp.float32


def test_label_revision_leaves_out_what_the_teacher_excludes():
    student = jnp.array([[1.0, -jnp.inf, 2.0], [1.0, -jnp.inf, 2.0]])
    teacher = jnp.array([[1.0, -jnp.inf, 3.0], [3.0, -jnp.inf, 1.0]])
    values, pull = jax.vjp(lambda s: label_revision(s, teacher, np.array([2, 2])), student)
    kept = [0, 2]
    right, by_right = revised(student[:1, kept], teacher[:1, kept], [1])
    wrong, by_wrong = revised(student[1:, kept], teacher[1:, kept], [1], lambda2=2 / 3)  # its C is still 3
    np.testing.assert_allclose(values, [2 * right, 2 * wrong], rtol=1e-5)
    gradient = pull(jnp.ones(2))[0]
    np.testing.assert_allclose(gradient[:, kept], 2 * np.concatenate([by_right, by_wrong]), rtol=1e-5)
    np.testing.assert_array_equal(gradient[:, 1], 0)


def test_label_revision_of_a_wrong_teacher_is_finite_where_the_student_excludes_a_class():
    student, teacher = np.array([[1.0, -np.inf, 2.0]]), np.array([[3.0, 0.0, 1.0]])
    value, gradient = revised(student, teacher, np.array([2]))
    found, pull = jax.value_and_grad(lambda s: label_revision(s, np.float32(teacher), np.array([2])).sum())(
        np.float32(student)
    )
    np.testing.assert_allclose(found, value, rtol=1e-5)
    np.testing.assert_allclose(pull, gradient, rtol=1e-5)
    assert pull[0, 1] == 0


def test_label_revision_of_tied_and_single_classes():
    tied = jnp.array([[1.0, 1.0]])  # the first is the prediction
    np.testing.assert_allclose(label_revision(tied * 0, tied, np.array([0])), np.log(2) + 4, rtol=1e-6)
    np.testing.assert_allclose(label_revision(tied * 0, tied, np.array([1])), 0.1**2, rtol=1e-5)
    values, pull = jax.vjp(lambda s: label_revision(s, TEACHER[:, :1], LABELS * 0), TEACHER[:, :1])
    np.testing.assert_array_equal(values, 0)
    np.testing.assert_array_equal(pull(jnp.ones(8))[0], 0)


def device_share(student, teacher, labels, where):
    """What one device differentiates: its sum over the global count."""
    values = label_revision(student, teacher, labels, where=where, axis_name="data")
    return jnp.sum(values) / jax.lax.psum(jnp.sum(where), "data"), values


def test_label_revision_spread_over_devices_is_that_of_the_whole_batch():
    assert len(jax.devices()) == 8
    with computing_in("f64") as real:
        whole = real(STUDENT), real(TEACHER), jnp.asarray(LABELS), jnp.asarray(KEPT)
        split = [x.reshape(8, 1, *x.shape[1:]) for x in whole]
        gradient, values = jax.pmap(jax.grad(device_share, has_aux=True), axis_name="data")(*split)
        value, expected = mean_and_gradient(masked_mean, *whole)
        np.testing.assert_allclose(values.sum() / KEPT.sum(), value, rtol=1e-12)
        np.testing.assert_allclose(values.reshape(8), label_revision(*whole[:3], where=KEPT), rtol=1e-12)
        np.testing.assert_allclose(gradient.reshape(8, 5), expected, rtol=1e-12, atol=1e-15)


# --- loca ---


def calibrated(probs, labels, alpha):
    """One row at a time, from the paper's formula."""
    result = np.array(probs, np.float64)
    for p, y in zip(result, labels, strict=True):
        k = p.argmax()
        if p[k] > p[y]:
            scale = alpha / (1 - p[y] + p[k])
            label = 1 - scale * (1 - p[y])
            p *= scale
            p[y] = label
    return result


@pytest.mark.parametrize("alpha", [0.3, 0.95, 0.999])
def test_loca_gives_the_label_just_enough(alpha):
    with computing_in("f64") as real:
        probs = reference.softmax(TEACHER, 2.0)
        found = np.asarray(loca_calibrate(real(probs), LABELS, alpha=alpha))
        np.testing.assert_allclose(found, calibrated(probs, LABELS, alpha), rtol=1e-13)
        np.testing.assert_allclose(found.sum(-1), 1, rtol=1e-13)
        np.testing.assert_array_equal(found.argmax(-1), LABELS)
        np.testing.assert_array_equal(found[RIGHT], real(probs)[RIGHT])
        for row, old, label in zip(found, probs, LABELS, strict=True):
            share = reference.without(row, label) / reference.without(old, label)
            np.testing.assert_allclose(share, share[0], rtol=1e-12)
        logits = loca_logits(real(TEACHER), LABELS, alpha=alpha, temperature=2.0)
        np.testing.assert_allclose(jax.nn.softmax(logits / 2.0), found, rtol=1e-12)
        moved = np.arange(5) == np.where(RIGHT, -1, LABELS)[:, None]
        shift = TEACHER - TEACHER.max(-1, keepdims=True)
        np.testing.assert_allclose(logits[~moved], np.float64(shift)[~moved], rtol=1e-6)
        assert (logits[moved] > 0).all()
        for correct in loca_calibrate, loca_logits:  # constants, whatever they are put into
            pull = jax.grad(lambda t, correct=correct: jnp.sum(correct(t, LABELS, alpha=alpha) ** 2))(real(probs))
            np.testing.assert_array_equal(pull, 0)


def test_loca_at_its_edges():
    probs = jnp.array([[0.0, 1.0], [0.5, 0.5], [1.0, 0.0], [0.2, 0.8]])
    found = loca_calibrate(probs, labels=np.array([0, 1, 0, 5]), alpha=np.float32(0.95))
    np.testing.assert_allclose(found[:3], [[0.525, 0.475], [0.5, 0.5], [1.0, 0.0]], rtol=1e-6)
    np.testing.assert_array_equal(found[3], np.nan)
    logits = jnp.array([[-jnp.inf, 7.0], [3.0, 3.0], [3.0, -jnp.inf], [1.0, 2.0]])
    found = loca_logits(logits, np.array([0, 1, 0, -1]), alpha=0.95)
    np.testing.assert_allclose(jax.nn.softmax(found)[:3], [[0.525, 0.475], [0.5, 0.5], [1.0, 0.0]], rtol=1e-6)
    np.testing.assert_array_equal(found[3], np.nan)
    nothing = jnp.full((1, 3), -jnp.inf)
    np.testing.assert_array_equal(loca_logits(nothing, np.array([1])), nothing)
    np.testing.assert_array_equal(loca_logits(jnp.ones((2, 1)), np.array([0, 0])), 0)
    np.testing.assert_array_equal(loca_calibrate(jnp.ones((2, 1)), np.array([0, 0]), alpha=0.5), 1)
    nearly = loca_calibrate(jnp.array([[0.3, 0.6, 0.1]]), np.array([0]), alpha=jnp.float32(1.0))  # the limit: a tie
    np.testing.assert_allclose(nearly, [[6 / 13, 6 / 13, 1 / 13]], rtol=1e-6)


def test_loca_alpha_and_temperature_may_differ_by_example():
    alpha, temperature = np.linspace(0.2, 0.9, 8, dtype=np.float32), np.linspace(0.5, 4, 8, dtype=np.float32)
    probs = np.stack([reference.softmax(t, np.float64(k)) for t, k in zip(TEACHER, temperature, strict=True)])
    expected = np.concatenate([calibrated(p[None], [y], a) for p, y, a in zip(probs, LABELS, alpha, strict=True)])
    found = loca_calibrate(probs.astype(np.float32), LABELS, alpha=alpha)
    np.testing.assert_allclose(found, expected, **CLOSE)
    logits = loca_logits(TEACHER, LABELS, alpha=alpha, temperature=temperature)
    np.testing.assert_allclose(jax.nn.softmax(logits / temperature[:, None]), expected, **CLOSE)
    grid = loca_logits(TEACHER.reshape(2, 4, 5), LABELS.reshape(2, 4), alpha=alpha[:4], temperature=temperature[:4])
    again = loca_logits(TEACHER, LABELS, alpha=np.tile(alpha[:4], 2), temperature=np.tile(temperature[:4], 2))
    np.testing.assert_allclose(grid.reshape(8, 5), again, rtol=1e-6)


def distil_by_loca(student, teacher, labels, temperature):
    calibrated_logits = loca_logits(teacher, labels, temperature=temperature)
    return kd(student, calibrated_logits, temperature=temperature)


@PRECISIONS
@pytest.mark.parametrize("scale", [1.0, 1e4])
def test_kd_by_loca(scale, precision):
    student, teacher = scale * STUDENT, scale * TEACHER
    target = calibrated(reference.softmax(teacher, 4.0), LABELS, 0.95)
    divergence = np.sum(target * np.log(np.where(target > 0, target, 1)), axis=-1)
    log_q = reference.log_softmax(student, 4.0)
    values = 16 * (divergence - np.sum(np.where(target > 0, target * log_q, 0), axis=-1))
    gradient = 4 * (np.exp(log_q) - target) / 8
    with computing_in(precision) as real:
        found, pull = mean_and_gradient(distil_by_loca, real(student), real(teacher), LABELS, 4.0)
        np.testing.assert_allclose(found, values.mean(), **tolerance(precision))
        np.testing.assert_allclose(pull, gradient, **tolerance(precision))
        found, pull = mean_and_gradient(kd_from_probs, real(student), real(target), 4.0)
        np.testing.assert_allclose(found, values.mean(), **tolerance(precision))
        np.testing.assert_allclose(pull, gradient, **tolerance(precision))


# --- kd_from_probs ---


def test_kd_from_probs_is_kd():
    with computing_in("f64") as real:
        student, teacher = real(STUDENT), real(TEACHER)
        probs = jax.nn.softmax(teacher / 2.0)
        expected = kd(student, teacher, temperature=2.0)
        np.testing.assert_allclose(kd_from_probs(student, probs, 2.0), expected, rtol=1e-11)
        plain = kd_from_probs(student, probs, temperature=2.0, scale_by_t2=False)
        np.testing.assert_allclose(plain, expected / 4, rtol=1e-11)
        grid = kd_from_probs(student.reshape(2, 4, 5), probs.reshape(2, 4, 5), 2.0)
        np.testing.assert_allclose(grid.reshape(8), expected, rtol=1e-11)
        by_temperature = jax.grad(lambda t: kd_from_probs(student, probs, t, scale_by_t2=False).sum())(2.0)
        slope = np.sum((reference.softmax(STUDENT, 2.0) - probs) * STUDENT) * -1 / 4
        np.testing.assert_allclose(by_temperature, slope, rtol=1e-11)
        np.testing.assert_allclose(kd_from_probs(student, jax.nn.softmax(student / 2.0), 2.0), 0, atol=1e-14)
        by_probs = jax.grad(lambda p: kd_from_probs(student, p).sum())(probs)
        np.testing.assert_array_equal(by_probs, 0)


def test_kd_from_probs_of_zero_is_finite():
    one_hot = np.eye(5, dtype=np.float32)[LABELS]
    values, pull = jax.vjp(lambda s: kd_from_probs(s, one_hot, 1.0), STUDENT)
    np.testing.assert_allclose(values, cross_entropy(STUDENT, labels=LABELS), rtol=1e-6)
    np.testing.assert_allclose(pull(jnp.ones(8))[0], reference.softmax(STUDENT) - one_hot, **CLOSE)
    student = jnp.array([[0.0, -jnp.inf, 1.0], [0.0, -jnp.inf, 1.0]])
    values, pull = jax.vjp(lambda s: kd_from_probs(s, jnp.array([[0.5, 0.0, 0.5], [0.5, 0.5, 0.0]]), 1.0), student)
    np.testing.assert_allclose(values, [reference.kd([0.0, 1.0], [0.0, 0.0]), np.inf], rtol=1e-6)
    assert np.isfinite(pull(jnp.ones(2))[0]).all()
    half = jnp.asarray(STUDENT, jnp.bfloat16), jnp.asarray(one_hot, jnp.bfloat16)
    assert kd_from_probs(*half).dtype == jnp.float32
    np.testing.assert_array_equal(kd_from_probs(*half), kd_from_probs(half[0].astype(jnp.float32), one_hot))


@pytest.mark.parametrize("label", [-1, 5])
def test_a_label_that_is_no_class_gives_nan_and_sends_nothing_back(label):
    labels = LABELS.copy()
    labels[2] = label
    probs = np.float32(reference.softmax(TEACHER))

    def by_loca(student):
        return kd_from_probs(student, loca_calibrate(probs, labels, alpha=0.9))

    for loss in by_loca, lambda s: rc(s, None, labels), lambda s: label_revision(s, TEACHER, labels):
        values, pull = jax.vjp(loss, STUDENT)
        assert np.isnan(values[2]) and np.isfinite(np.delete(values, 2)).all()
        gradient = pull(jnp.where(jnp.isnan(values), 0.0, 1.0))[0]
        np.testing.assert_array_equal(gradient[2], 0)
        assert np.isfinite(gradient).all() and np.abs(gradient).max() > 0.1


# --- refusals ---


def test_refuses_what_does_not_fit():
    logits, labels = jnp.zeros((4, 3)), jnp.zeros(4, int)
    for alpha in 0, 1, 1.5, float("nan"):
        with pytest.raises(ValueError, match=r"alpha is .* must be above 0 and below 1"):
            loca_calibrate(logits, labels, alpha=alpha)
        with pytest.raises(ValueError, match=r"alpha is .* must be above 0 and below 1"):
            loca_logits(logits, labels, alpha=alpha)
    with pytest.raises(ValueError, match="temperature is 0"):
        loca_logits(logits, labels, temperature=0)
    with pytest.raises(ValueError, match=r"eta is 1\.5; it must be at least 0 and at most 1"):
        label_revision(logits, logits, labels, eta=1.5)
    with pytest.raises(ValueError, match=r"student_logits has shape \(2, 4, 3\)"):
        label_revision(jnp.zeros((2, 4, 3)), jnp.zeros((2, 4, 3)), jnp.zeros((2, 4), int))
    with pytest.raises(ValueError, match="teacher_probs has 2 classes, student_logits 3"):
        kd_from_probs(logits, jnp.zeros((4, 2)))
    with pytest.raises(TypeError, match="teacher_probs must be floating point"):
        kd_from_probs(logits, jnp.zeros((4, 3), int))
    with pytest.raises(TypeError, match="labels must be integer class indices"):
        rc(logits, logits, jnp.zeros(4))
    with pytest.raises(ValueError, match=r"labels has shape \(3,\)"):
        swap_logits(logits, jnp.zeros(3, int))

"""What every loss that looks at one row of logits at a time has in common."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdjax import losses
from tests.losses.computing import compiled, draw

losses = compiled(losses)

STUDENT, TEACHER = draw(10, 6, 5), draw(11, 6, 5)
LABELS = np.array([4, 0, 1, 2, 3, 3])

# Called as (student_logits, teacher_logits, labels).
DIVERGENCES = {
    "kd": lambda s, t, y: losses.kd(s, t, temperature=2.0),
    "kd_without_t2": lambda s, t, y: losses.kd(s, t, temperature=2.0, scale_by_t2=False),
    "logit_mse": lambda s, t, y: losses.logit_mse(s, t),
    "logit_mse_centred": lambda s, t, y: losses.logit_mse(s, t, center=True, class_reduction="mean"),
    "dkd": lambda s, t, y: losses.dkd(s, t, labels=y, temperature=2.0),
}
BY_TEACHER = DIVERGENCES | {
    "hard_label": lambda s, t, y: losses.hard_label(s, t),
    "cross_entropy_with_targets": lambda s, t, y: losses.cross_entropy_with_targets(s, jax.nn.softmax(t)),
}
BY_LABEL = {
    "cross_entropy": lambda s, t, y: losses.cross_entropy(s, labels=y),
    "label_smoothing": lambda s, t, y: losses.label_smoothing_xent(s, labels=y, smoothing=0.2),
    "label_smoothing_of_others": lambda s, t, y: losses.label_smoothing_xent(
        s, labels=y, smoothing=0.2, over_all_classes=False
    ),
    "dkd": DIVERGENCES["dkd"],
}
ALONE = {
    "confidence_penalty": lambda s, t, y: losses.confidence_penalty(s, beta=0.5),
    "predictive_entropy": lambda s, t, y: losses.predictive_entropy(s),
}
ALL = BY_TEACHER | BY_LABEL | ALONE
SEE_ONLY_SOFTMAX = {name: loss for name, loss in ALL.items() if name != "logit_mse"}


def over(functions):
    return pytest.mark.parametrize("loss", functions.values(), ids=functions)


@over(ALL)
def test_one_value_for_each_row_however_the_rows_are_arranged(loss):
    values = loss(STUDENT, TEACHER, LABELS)
    assert values.shape == (6,) and values.dtype == jnp.float32
    grid = loss(STUDENT.reshape(2, 3, 5), TEACHER.reshape(2, 3, 5), LABELS.reshape(2, 3))
    np.testing.assert_allclose(grid.reshape(6), values, rtol=1e-6)
    np.testing.assert_allclose(jax.vmap(loss)(STUDENT, TEACHER, LABELS), values, rtol=1e-6)
    np.testing.assert_allclose(jax.jit(loss)(STUDENT, TEACHER, LABELS), values, rtol=1e-5)
    order = np.array([5, 2, 0, 1, 4, 3])
    np.testing.assert_allclose(loss(STUDENT[order], TEACHER[order], LABELS[order]), values[order], rtol=1e-6)


@over(ALL)
def test_classes_in_another_order_change_nothing(loss):
    order = np.array([3, 1, 4, 0, 2])
    renamed = np.argsort(order)[LABELS]
    expected = loss(STUDENT, TEACHER, LABELS)
    np.testing.assert_allclose(loss(STUDENT[:, order], TEACHER[:, order], renamed), expected, rtol=1e-5)


@over(SEE_ONLY_SOFTMAX)
def test_a_shift_of_all_logits_changes_nothing(loss):
    # Eighths up to 32 and whole shifts: the shifted logits are exact in float32.
    student, teacher = np.round(STUDENT * 8) / 8, np.round(TEACHER * 8) / 8
    expected = loss(student, teacher, LABELS)
    np.testing.assert_allclose(loss(student + 100, teacher - 50, LABELS), expected, rtol=1e-5, atol=1e-6)


@over(BY_TEACHER)
def test_nothing_flows_into_the_teacher(loss):
    by_student, by_teacher = jax.grad(lambda s, t: loss(s, t, LABELS).sum(), argnums=(0, 1))(STUDENT, TEACHER)
    np.testing.assert_array_equal(by_teacher, 0)
    assert np.abs(by_student).max() > 1e-3


@over(DIVERGENCES)
@pytest.mark.parametrize("scale", [1.0, 1e4])
def test_a_student_that_equals_its_teacher_has_nothing_to_learn(loss, scale):
    logits = scale * TEACHER
    values, pull = jax.vjp(lambda s: loss(s, logits, LABELS), logits)
    np.testing.assert_array_equal(values, 0)
    np.testing.assert_allclose(pull(jnp.ones(6))[0], 0, atol=5e-6)


@over(ALL)
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_half_types_are_computed_and_returned_in_float32(loss, dtype):
    student, teacher = jnp.asarray(STUDENT, dtype), jnp.asarray(TEACHER, dtype)
    values = loss(student, teacher, LABELS)
    assert values.dtype == jnp.float32
    expected = loss(student.astype(jnp.float32), teacher.astype(jnp.float32), LABELS)
    # The test's own softmax of half-type targets is the one thing that rounds.
    rounding = 2e-2 if loss is BY_TEACHER["cross_entropy_with_targets"] else 0
    np.testing.assert_allclose(values, expected, rtol=rounding)


@over(ALL)
def test_float64_stays_float64(loss):
    with jax.enable_x64(True):
        values = loss(jnp.asarray(STUDENT, jnp.float64), jnp.asarray(TEACHER, jnp.float64), LABELS)
        assert values.dtype == jnp.float64
        np.testing.assert_allclose(loss(STUDENT, TEACHER, LABELS), values, rtol=2e-5)
        assert loss(jnp.asarray(STUDENT), jnp.asarray(TEACHER), LABELS).dtype == jnp.float32


@over(ALL)
def test_logits_of_ten_thousand_are_finite(loss):
    student, teacher = draw(12, 6, 5, scale=1e4), draw(13, 6, 5, scale=1e4)
    values, pull = jax.vjp(lambda s: loss(s, teacher, LABELS), student)
    assert np.isfinite(values).all()
    assert np.isfinite(pull(jnp.ones(6))[0]).all()


@over({name: loss for name, loss in ALL.items() if name != "logit_mse"})
def test_one_class_leaves_nothing_to_choose(loss):
    values, pull = jax.vjp(lambda s: loss(s, TEACHER[:, :1], LABELS * 0), STUDENT[:, :1])
    np.testing.assert_array_equal(values, 0)
    np.testing.assert_array_equal(pull(jnp.ones(6))[0], 0)


@over({name: loss for name, loss in ALL.items() if not name.startswith("label_smoothing")})
def test_a_class_that_both_networks_exclude_is_as_if_it_were_not_there(loss):
    student, teacher, kept = STUDENT.copy(), TEACHER.copy(), [0, 1, 3, 4]
    student[:, 2] = teacher[:, 2] = -np.inf
    labels = np.array([0, 1, 3, 4, 0, 1])
    values, pull = jax.vjp(lambda s: loss(s, teacher, labels), student)
    fewer, pull_fewer = jax.vjp(lambda s: loss(s, TEACHER[:, kept], np.searchsorted(kept, labels)), STUDENT[:, kept])
    np.testing.assert_allclose(values, fewer, rtol=1e-5)
    gradient = pull(jnp.ones(6))[0]
    np.testing.assert_allclose(gradient[:, kept], pull_fewer(jnp.ones(6))[0], rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(gradient[:, 2], 0)


@over(BY_LABEL)
@pytest.mark.parametrize("label", [-1, 5])
def test_a_label_that_is_no_class_gives_nan_and_sends_nothing_back(loss, label):
    labels = LABELS.copy()
    labels[2] = label
    values, pull = jax.vjp(lambda s: loss(s, TEACHER, labels), STUDENT)
    assert np.isnan(values[2]) and np.isfinite(np.delete(values, 2)).all()
    gradient = pull(jnp.where(jnp.isnan(values), 0.0, 1.0))[0]
    np.testing.assert_array_equal(gradient[2], 0)
    assert np.isfinite(gradient).all()


@over(BY_LABEL)
def test_labels_of_a_narrow_type(loss):
    expected = loss(STUDENT, TEACHER, LABELS)
    np.testing.assert_array_equal(loss(STUDENT, TEACHER, LABELS.astype(np.uint8)), expected)
    many = draw(14, 1, 300), draw(15, 1, 300)  # classes 40 and 296 are one to a byte
    narrow, wide = (loss(*many, np.array([40], kind)) for kind in (np.uint8, np.int32))
    np.testing.assert_array_equal(narrow, wide)

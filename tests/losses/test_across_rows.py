"""What every loss between logits that looks across the batch has in common, above all: who belongs to the batch."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdjax.losses.logits import correlation, multilevel
from kdjax.losses.logits.self_distillation import uskd
from kdjax.reduction import group_losses, per_example, whole_batch
from tests.losses.computing import compiled, computing_in, draw
from tests.losses.masking import check_masked_rows

correlation, multilevel, uskd = map(compiled, (correlation, multilevel, uskd))

ROWS, CLASSES, DEVICES = 16, 5, 8
STUDENT, TEACHER = draw(60, ROWS, CLASSES), draw(61, ROWS, CLASSES)
KEPT = np.array([1, 1, 0, 0, 1, 0, 0, 1, 1, 1, 0, 1, 1, 1, 1, 0], bool)  # the second device of eight has no row
EXACT = {"rtol": 1e-10, "atol": 1e-13}


def strong(logits):
    """Logits of a second view, which tells no class from another."""
    return 0.7 * logits + 0.1 * jnp.sum(logits, axis=-1, keepdims=True)


def dist(s, t, **rows):
    return whole_batch(correlation.dist(s, t, beta=2.0, gamma=3.0, temperature=2.0, **rows))


def clkd(cc_mode):
    def loss(s, t, **rows):
        terms = correlation.clkd(s, t, cc_mode=cc_mode, **rows)
        return whole_batch(terms["loss"] + terms["cc"])

    return loss


def mlld(official):
    def loss(s, t, **rows):
        views = {"student_logits_strong": strong(s), "teacher_logits_strong": strong(t)}
        terms = multilevel.mlld(s, t, **views, official=official, temperatures=(4.0, 2.0, 1.0, 3.0), **rows)
        return whole_batch(terms["kd"] + terms["cc"] + terms["bc"])

    return loss


def uskd_of_classes(s, t, *, where=None, axis_name=None):
    labels = jnp.argmax(jnp.where(jnp.isnan(t), 0, t), axis=-1)
    values = uskd(s, t, labels, beta=0.5, mu=0.2, where=where, axis_name=axis_name)
    return per_example(values, where)


def uskd_of_mixtures(s, t, *, where=None, axis_name=None):
    values = uskd(s, t, jax.nn.softmax(t), official=False, where=where, axis_name=axis_name)
    return per_example(values, where)


FROM_TEACHER = {
    "dist": dist,
    "clkd": clkd("class_cov"),
    "clkd_batch_outer": clkd("batch_outer"),
    "clkd_gram": clkd("gram"),
    "mlld": mlld(False),
    "mlld_official": mlld(True),
}
# These take their weak head's logits in the teacher's place.
ALL = FROM_TEACHER | {"uskd": uskd_of_classes, "uskd_mixup": uskd_of_mixtures}


def over(functions):
    return pytest.mark.parametrize("loss", functions.values(), ids=functions)


def share(student, teacher, loss, **rows):
    """What a device differentiates, here of one device or of each."""
    return sum(group_losses({"a": loss(student, teacher, **rows)}, rows.get("axis_name")).values())


@over(ALL)
def test_a_row_that_is_masked_out_is_as_if_it_were_not_there(loss):
    gradient = check_masked_rows(
        functools.partial(share, loss=loss), STUDENT, TEACHER, KEPT, (0.0, 1e30, np.nan, np.inf, -np.inf), **EXACT
    )
    assert np.abs(gradient).max() > 1e-3


@over(ALL)
@pytest.mark.parametrize("kept", [KEPT, np.zeros(ROWS, bool)], ids=["uneven", "empty"])
def test_eight_devices_give_the_value_and_gradient_of_one(loss, kept):
    with computing_in("f64") as real:
        one, expected = jax.jit(jax.value_and_grad(lambda s, t, w: share(s, t, loss, where=w)))(
            real(STUDENT), real(TEACHER), kept
        )
        split = [x.reshape(DEVICES, ROWS // DEVICES, *x.shape[1:]) for x in (real(STUDENT), real(TEACHER), kept)]
        shares, gradient = jax.pmap(
            jax.value_and_grad(lambda s, t, w: share(s, t, loss, where=w, axis_name="data")), axis_name="data"
        )(*split)
        np.testing.assert_allclose(jnp.sum(shares), one, **EXACT)
        np.testing.assert_allclose(gradient.reshape(ROWS, CLASSES), expected, **EXACT)


@over(FROM_TEACHER)
def test_a_whole_batch_scalar_is_alike_on_all_devices(loss):
    split = [x.reshape(DEVICES, ROWS // DEVICES, CLASSES) for x in (STUDENT, TEACHER)]
    values = jax.pmap(lambda s, t: loss(s, t, axis_name="data").sum, axis_name="data")(*split)
    np.testing.assert_array_equal(values, np.full(DEVICES, values[0]))


@over(ALL)
def test_rows_in_another_order_change_nothing(loss):
    order = np.random.default_rng(0).permutation(ROWS)
    with computing_in("f64") as real:
        step = jax.jit(jax.value_and_grad(lambda s, t: share(s, t, loss)))
        value, gradient = step(real(STUDENT), real(TEACHER))
        shuffled, shuffled_gradient = step(real(STUDENT[order]), real(TEACHER[order]))
        np.testing.assert_allclose(shuffled, value, **EXACT)
        np.testing.assert_allclose(shuffled_gradient, gradient[order], **EXACT)


@over(ALL)
def test_classes_in_another_order_change_nothing(loss):
    order = np.array([3, 1, 4, 0, 2])
    np.testing.assert_allclose(
        share(STUDENT[:, order], TEACHER[:, order], loss), share(STUDENT, TEACHER, loss), rtol=1e-5
    )


@over({name: loss for name, loss in ALL.items() if not name.startswith("clkd")})
def test_a_shift_of_all_logits_of_a_row_changes_nothing(loss):
    with computing_in("f64") as real:
        shift = real(draw(62, ROWS, 1))
        shifted = share(real(STUDENT) + shift, real(TEACHER) - 2 * shift, loss)
        np.testing.assert_allclose(shifted, share(real(STUDENT), real(TEACHER), loss), rtol=1e-10)


@over(FROM_TEACHER)
def test_nothing_flows_into_the_teacher(loss):
    by_student, by_teacher = jax.grad(lambda s, t: share(s, t, loss), argnums=(0, 1))(STUDENT, TEACHER)
    np.testing.assert_array_equal(by_teacher, 0)
    assert np.abs(by_student).max() > 1e-3


@over(FROM_TEACHER)
def test_a_student_that_equals_its_teacher_has_nothing_to_learn(loss):
    with computing_in("f64") as real:
        value, gradient = jax.value_and_grad(lambda s: share(s, real(TEACHER), loss))(real(TEACHER))
        # The correlations get 1e-8 beside norms of order 1e-2 and up.
        assert 0 <= value + 1e-14 < 1e-4
        np.testing.assert_allclose(gradient, 0, atol=1e-5)


@over(ALL)
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_half_types_are_computed_and_returned_in_float32(loss, dtype):
    student, teacher = jnp.asarray(STUDENT, dtype), jnp.asarray(TEACHER, dtype)
    value = share(student, teacher, loss)
    assert value.dtype == jnp.float32
    expected = share(student.astype(jnp.float32), teacher.astype(jnp.float32), loss)
    # Softmax and the second view are the test's own, in half precision.
    np.testing.assert_allclose(value, expected, rtol=3e-2 if "mlld" in loss.__qualname__ else 1e-2)


@over(ALL)
def test_a_batch_of_one_and_a_single_class_have_finite_gradients(loss):
    for student, teacher in (
        (STUDENT[:1], TEACHER[:1]),
        (STUDENT[:, :1], TEACHER[:, :1]),
        (STUDENT[:, :2], TEACHER[:, :2]),
    ):
        value, gradient = jax.value_and_grad(lambda s, t=teacher: share(s, t, loss))(student)
        assert np.isfinite(value)
        assert np.isfinite(gradient).all()


@over(ALL)
def test_rows_that_do_not_fit_are_refused(loss):
    with pytest.raises(ValueError, match=r"where has shape \(7,\)"):
        loss(STUDENT, TEACHER, where=np.ones(7, bool))
    with pytest.raises(ValueError, match="has 4 classes, student_logits 5"):
        loss(STUDENT, TEACHER[:, :4])
    with pytest.raises(TypeError, match="student_logits must be floating point"):
        loss(STUDENT.astype(int), TEACHER)

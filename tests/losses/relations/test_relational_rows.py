"""What every loss between the examples of a batch has in common: who belongs to the batch, and where it lies."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdjax.losses import affinity_kd, cc, cc_neighbours, pkt, rkd, rkd_angle, rkd_distance, sp
from kdjax.reduction import group_losses, per_example
from tests.losses.computing import compiled, computing_in, draw

affinity_kd, cc, cc_neighbours, pkt, rkd, rkd_angle, rkd_distance, sp = map(
    compiled, (affinity_kd, cc, cc_neighbours, pkt, rkd, rkd_angle, rkd_distance, sp)
)

ROWS, WIDTH, DEVICES = 16, 3, 8
STUDENT, TEACHER = draw(80, ROWS, WIDTH), draw(81, ROWS, WIDTH)
KEPT = np.array([1, 1, 0, 0, 1, 0, 0, 1, 1, 1, 0, 1, 1, 1, 1, 0], bool)  # the second device of eight has no row
EXACT = {"rtol": 1e-9, "atol": 1e-12}


def affinity(**choices):
    return functools.partial(affinity_kd, **choices)


UNORDERED = {
    "sp": sp,
    "rkd_distance": rkd_distance,
    "rkd_angle": rkd_angle,
    "rkd": functools.partial(rkd, squared=True),
    "pkt": pkt,
    "cc": cc,
    "affinity": affinity_kd,
    "frobenius": affinity(affinity="poly", normalization="frobenius", loss="mse", drop_diagonal=True),
    "zscore": affinity(affinity="dot", normalization="zscore", loss="cosine"),
    "softmax": affinity(affinity="gaussian", sigma=3.0, normalization="row_softmax", loss="kl", drop_diagonal=True),
    "row_sum": affinity(affinity="dot", normalization="row_sum", loss="kl"),
    "triples": affinity(affinity="angle", normalization="mean", loss="mse", drop_diagonal=True),
}
ALL = UNORDERED | {"cc_neighbours": cc_neighbours}
FROM_TEACHER = UNORDERED


def over(functions):
    return pytest.mark.parametrize("loss", functions.values(), ids=functions)


def share(student, teacher, loss, **rows):
    """What a device differentiates, here of one device or of each; and the values of its rows."""
    values = loss(student, teacher, **rows)
    term = per_example(values, rows.get("where"))
    return sum(group_losses({"a": term}, rows.get("axis_name")).values()), values


@functools.partial(jax.jit, static_argnames=("loss", "axis_name"))
def gradients_of(loss, student, teacher, **rows):
    """Value, values of the rows, and gradients by student and teacher."""
    whole = jax.value_and_grad(share, argnums=(0, 1), has_aux=True)
    (value, values), gradients = whole(student, teacher, loss, **rows)
    return value, values, *gradients


def gradient_of(loss, student, teacher, **rows):
    return gradients_of(loss, student, teacher, **rows)[:3]


@over(ALL)
def test_a_row_that_is_masked_out_is_as_if_it_were_not_there(loss):
    with computing_in("f64") as real:
        value, values, expected = gradient_of(loss, real(STUDENT[KEPT]), real(TEACHER[KEPT]))
        assert np.abs(expected).max() > 1e-5
        for junk in (1e30, np.nan, -np.inf):
            student, teacher = STUDENT.copy(), TEACHER.copy()
            student[~KEPT] = teacher[~KEPT] = junk
            found, of_rows, gradient = gradient_of(loss, real(student), real(teacher), where=jnp.asarray(KEPT))
            np.testing.assert_allclose(found, value, **EXACT)
            np.testing.assert_allclose(of_rows[KEPT], values, **EXACT)
            np.testing.assert_array_equal(of_rows[~KEPT], 0)
            np.testing.assert_allclose(gradient[KEPT], expected, **EXACT)
            np.testing.assert_array_equal(gradient[~KEPT], 0)


@over(ALL)
def test_no_row_one_row_and_two_rows(loss):
    _, values, gradient = gradient_of(loss, STUDENT, TEACHER, where=np.zeros(ROWS, bool))
    np.testing.assert_array_equal(values, 0)
    np.testing.assert_array_equal(gradient, 0)
    for count in (1, 2):
        value, _, gradient = gradient_of(loss, STUDENT[:count], TEACHER[:count])
        assert np.isfinite(value) and np.isfinite(gradient).all()


@over(ALL)
def test_eight_devices_give_the_values_and_gradient_of_one(loss):
    with computing_in("f64") as real:
        one, values, expected = gradient_of(loss, real(STUDENT), real(TEACHER), where=jnp.asarray(KEPT))
        split = [x.reshape(DEVICES, ROWS // DEVICES, *x.shape[1:]) for x in (real(STUDENT), real(TEACHER), KEPT)]
        step = lambda s, t, w: gradient_of(loss, s, t, where=w, axis_name="data")
        shares, of_rows, gradient = jax.pmap(step, axis_name="data")(*split)
        np.testing.assert_allclose(jnp.sum(shares), one, **EXACT)
        np.testing.assert_allclose(of_rows.reshape(ROWS), values, **EXACT)
        np.testing.assert_allclose(gradient.reshape(ROWS, WIDTH), expected, **EXACT)


def on_devices(loss, student, teacher):
    split = [x.reshape(DEVICES, ROWS // DEVICES, -1) for x in (student, teacher)]
    step = jax.pmap(lambda s, t, w: gradient_of(loss, s, t, where=w, axis_name="data"), axis_name="data")
    kept = KEPT.reshape(DEVICES, -1)
    _, values, gradient = step(*split, kept)
    return values.reshape(ROWS), gradient.reshape(student.shape), step.lower(*split, kept).as_text()


WIDE = 21  # more than there are rows, and no multiple of the devices


@over({name: UNORDERED[name] for name in ("sp", "pkt", "rkd", "frobenius")})
def test_features_wider_than_the_batch_give_on_eight_devices_what_they_give_on_one(loss):
    """Slices of the width travel then, and sums of products."""
    with computing_in("f64") as real:
        student, teacher = real(draw(82, ROWS, WIDE)), real(draw(83, ROWS, WIDTH))
        for pair in ((student, teacher), (student, student + 0.1 * real(draw(84, ROWS, WIDE)))):
            _, wanted, expected = gradient_of(loss, *pair, where=jnp.asarray(KEPT))
            values, gradient, text = on_devices(loss, *pair)
            np.testing.assert_allclose(values, wanted, **EXACT)
            np.testing.assert_allclose(gradient, expected, **EXACT)
    assert ("all_to_all" in text) == (loss not in (rkd, UNORDERED["rkd"]))


@over({name: UNORDERED[name] for name in ("sp", "rkd", "cc")})
def test_features_travel_in_their_own_type_and_their_gradients_in_float32(loss):
    student, teacher = (jnp.asarray(x, jnp.bfloat16) for x in (STUDENT, TEACHER))
    _, wanted, expected = gradient_of(loss, student, teacher, where=KEPT)
    values, gradient, text = on_devices(loss, student, teacher)
    np.testing.assert_allclose(values, wanted, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(
        np.asarray(gradient, np.float32), np.asarray(expected, np.float32), rtol=2**-7, atol=1e-6
    )
    gathered = [line for line in text.splitlines() if "all_gather" in line and f"x{WIDTH}x" in line]
    assert gathered and all(f"{WIDTH}xbf16" in line for line in gathered)
    assert re.search(rf"reduce_scatter[\s\S]*?tensor<{ROWS}x{WIDTH}xf32>", text)


@over(UNORDERED)
def test_rows_in_another_order_change_nothing(loss):
    order = np.random.default_rng(0).permutation(ROWS)
    with computing_in("f64") as real:
        _, values, gradient = gradient_of(loss, real(STUDENT), real(TEACHER))
        _, shuffled, shuffled_gradient = gradient_of(loss, real(STUDENT[order]), real(TEACHER[order]))
        np.testing.assert_allclose(shuffled, values[order], **EXACT)
        np.testing.assert_allclose(shuffled_gradient, gradient[order], **EXACT)


@over(FROM_TEACHER)
def test_nothing_flows_into_the_teacher_nor_into_its_equal(loss):
    *_, by_student, by_teacher = gradients_of(loss, STUDENT, TEACHER, where=np.ones(ROWS, bool))
    np.testing.assert_array_equal(by_teacher, 0)
    assert np.abs(by_student).max() > 1e-5
    with computing_in("f64") as real:
        value, _, gradient, by_teacher = gradients_of(loss, real(TEACHER), real(TEACHER))
        np.testing.assert_array_equal(by_teacher, 0)
        np.testing.assert_allclose(value, 0, atol=1e-14)
        np.testing.assert_allclose(gradient, 0, atol=1e-7)  # epsilon of pkt's logarithm


@over(ALL)
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_half_types_are_computed_and_returned_in_float32(loss, dtype):
    rounded = jnp.asarray(STUDENT, dtype), jnp.asarray(TEACHER, dtype)
    both = jax.jit(lambda *halves: (loss(*halves), loss(*(half.astype(jnp.float32) for half in halves))))
    values, expected = both(*rounded)
    assert values.dtype == jnp.float32
    np.testing.assert_array_equal(values, expected)
    _, exact, _ = gradient_of(loss, STUDENT, TEACHER, where=np.ones(ROWS, bool))
    np.testing.assert_allclose(np.mean(values), np.mean(exact), rtol=0.1)


@over(FROM_TEACHER)
def test_teacher_and_student_may_differ_in_width_and_shape(loss):
    student, teacher = STUDENT, TEACHER[:, :2]
    both = jax.jit(lambda s, t: (loss(s[..., None], t), loss(s, t[:, None])))
    values, expected = both(student, teacher)
    assert values.shape == (ROWS,)
    np.testing.assert_array_equal(values, expected)


@over(ALL)
def test_rows_that_do_not_fit_are_refused(loss):
    with pytest.raises(ValueError, match=r"where has shape \(7,\)"):
        loss(STUDENT, TEACHER, where=np.ones(7, bool))
    with pytest.raises(ValueError, match=r"teacher_features has 15 examples|\(16, 3\), teacher_embeddings \(15, 3\)"):
        loss(STUDENT, TEACHER[:15])
    with pytest.raises(TypeError, match="must be floating point"):
        loss(STUDENT.astype(int), TEACHER)

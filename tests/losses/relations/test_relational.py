"""sp against the reference implementations, its formula, sub-selection and the batch spread over devices."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, PartitionSpec

from kdjax import losses
from tests.golden_cases import cases, nchw
from tests.losses.computing import compiled, computing_in, draw, mean_and_gradient

losses = compiled(losses)

PRECISIONS = pytest.mark.parametrize("precision", ["f64", "f32"])
STUDENT, TEACHER = draw(50, 8, 2, 3), draw(51, 8, 7)
KEPT = np.array([True, False, True, True, False, True, True, True])
EXACT = {"rtol": 1e-10, "atol": 1e-14}


def normalised_gram(features):
    """`[B, B]` in NumPy float64; a row of zeros stays zero."""
    rows = np.float64(features).reshape(len(features), -1)
    gram = rows @ rows.T
    return gram / np.maximum(np.linalg.norm(gram, axis=1, keepdims=True), 1e-12)


def frobenius(student, teacher):
    return np.sum((normalised_gram(teacher) - normalised_gram(student)) ** 2) / len(student) ** 2


def sum_over_stages(student, teacher):
    return sum(losses.sp(s, t) for s, t in zip(student, teacher, strict=True))


@PRECISIONS
@pytest.mark.parametrize("case", cases("sp", symbol="sp_loss"), ids=repr)
def test_sp_golden(case, precision):
    with computing_in(precision) as real:
        student, teacher = ([real(x) for x in case.stages(name)] for name in ("student", "teacher"))
        value, gradients = mean_and_gradient(sum_over_stages, student, teacher)
        case.check(value, "out", "loss", precision)
        for i, gradient in enumerate(map(nchw, gradients)):
            dead = np.all(case.inputs[f"student_{i}"] == 0, axis=(1, 2, 3))
            if not dead.any():
                case.check(gradient, "grad", f"student_{i}", precision)
                continue
            # The reference divides the gradient of a dead example's row by its 1e-12.
            expected = case.grads["f64"][f"student_{i}"][~dead]
            tolerance = {"rtol": 1e-8, "atol": 1e-12} if precision == "f64" else {"rtol": 2e-5, "atol": 1e-7}
            np.testing.assert_allclose(gradient[~dead], expected, **tolerance)


def test_sp_rows_make_up_the_frobenius_norm():
    with computing_in("f64") as real:
        values = losses.sp(real(STUDENT), real(TEACHER))
        gap = normalised_gram(TEACHER) - normalised_gram(STUDENT)
        np.testing.assert_allclose(values, np.sum(gap**2, axis=1) / 8, **EXACT)
        np.testing.assert_allclose(values.mean(), frobenius(STUDENT, TEACHER), **EXACT)
        order = np.array([3, 1, 7, 0, 2, 6, 5, 4])
        np.testing.assert_allclose(losses.sp(real(STUDENT[order]), real(TEACHER[order])), values[order], **EXACT)
        # A stretch or turn of all features is no change of similarity.
        turn, _ = np.linalg.qr(np.float64(draw(52, 7, 7)))
        np.testing.assert_allclose(losses.sp(real(5 * np.float64(STUDENT)), real(TEACHER @ turn)), values, **EXACT)


def test_sp_teaches_only_the_student_and_not_once_equal():
    by_student, by_teacher = jax.grad(lambda s, t: losses.sp(s, t).sum(), argnums=(0, 1))(STUDENT, TEACHER)
    np.testing.assert_array_equal(by_teacher, 0)
    assert np.abs(by_student).max() > 1e-3
    value, gradient = mean_and_gradient(losses.sp, jnp.asarray(TEACHER), jnp.asarray(TEACHER))
    np.testing.assert_allclose(value, 0, atol=1e-12)  # compiled together, the two sides may round differently
    np.testing.assert_allclose(gradient, 0, atol=1e-7)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_sp_of_half_types_is_computed_in_float32(dtype):
    """Dot products of features of 300 are past the largest float16."""
    student, teacher = jnp.asarray(300 * STUDENT, dtype), jnp.asarray(300 * TEACHER, dtype)
    values = losses.sp(student, teacher)
    assert values.dtype == jnp.float32
    np.testing.assert_array_equal(values, losses.sp(student.astype(jnp.float32), teacher.astype(jnp.float32)))
    np.testing.assert_allclose(values.mean(), frobenius(student, teacher), rtol=1e-5)


def masked_mean(student, teacher, where):
    return jnp.sum(losses.sp(student, teacher, where=where)) / jnp.sum(where)


@pytest.mark.parametrize("junk", [0.0, 1e30, np.nan, np.inf])
def test_sp_with_a_mask_is_sp_of_the_kept_rows(junk):
    with computing_in("f64") as real:
        student, teacher = STUDENT.copy(), TEACHER.copy()
        student[~KEPT] = teacher[~KEPT] = junk
        value, gradient = mean_and_gradient(masked_mean, real(student), real(teacher), KEPT)
        fewer, expected = mean_and_gradient(losses.sp, real(STUDENT[KEPT]), real(TEACHER[KEPT]))
        np.testing.assert_allclose(value, fewer, **EXACT)
        np.testing.assert_allclose(gradient[KEPT], expected, **EXACT)
        np.testing.assert_array_equal(gradient[~KEPT], 0)
        values = losses.sp(real(student), real(teacher), where=KEPT)
        np.testing.assert_array_equal(values[~KEPT], 0)


def test_sp_of_nothing_and_of_one():
    nothing, pull = jax.vjp(lambda s: losses.sp(s, TEACHER, where=np.zeros(8, bool)), STUDENT)
    np.testing.assert_array_equal(nothing, 0)
    np.testing.assert_array_equal(pull(jnp.ones(8))[0], 0)
    one, pull = jax.vjp(lambda s: losses.sp(s, TEACHER[:1]), STUDENT[:1])  # similar to itself in both networks
    np.testing.assert_allclose(one, 0, atol=1e-12)
    np.testing.assert_allclose(pull(jnp.ones(1))[0], 0, atol=1e-6)


def test_an_example_without_activation_has_a_finite_gradient_as_a_column_only():
    student = STUDENT.reshape(8, 6).copy()
    student[2] = 0
    with computing_in("f64") as real:
        value, gradient = mean_and_gradient(losses.sp, real(student), real(TEACHER))
        np.testing.assert_allclose(value, frobenius(student, TEACHER), **EXACT)
        rows, alive = np.float64(student), np.arange(8) != 2
        gram, target = normalised_gram(student), normalised_gram(TEACHER)
        by_normalised = 2 * (gram - target) / 64
        norm = np.linalg.norm(rows @ rows.T, axis=1, keepdims=True)[alive]
        along = np.sum(by_normalised * gram, axis=1, keepdims=True)[alive] * gram[alive]
        by_gram = (by_normalised[alive] - along) / norm
        np.testing.assert_allclose(gradient[2], by_gram[:, 2] @ rows[alive], **EXACT)
    silent = jnp.zeros((8, 6))
    _, gradient = mean_and_gradient(losses.sp, silent, jnp.asarray(TEACHER))
    np.testing.assert_array_equal(gradient, 0)


def device_share(student, teacher, where):
    """What one device differentiates: its sum over the global count."""
    values = losses.sp(student, teacher, where=where, axis_name="data")
    count = jax.lax.psum(jnp.sum(where), "data")
    return jnp.sum(values) / count, values


@pytest.mark.parametrize("how", ["pmap", "shard_map"])
def test_sp_spread_over_devices_is_sp_of_the_whole_batch(how):
    devices = jax.devices()[:4]
    assert len(devices) == 4
    with computing_in("f64") as real:
        student, teacher = real(STUDENT.reshape(8, 6)), real(TEACHER)
        step = jax.grad(device_share, has_aux=True)
        if how == "pmap":
            split = [x.reshape(4, 2, *x.shape[1:]) for x in (student, teacher, KEPT)]
            gradient, values = jax.pmap(step, axis_name="data", devices=devices)(*split)
        else:
            rows = PartitionSpec("data")
            mesh = Mesh(np.array(devices), ("data",))
            mapped = jax.shard_map(step, mesh=mesh, in_specs=rows, out_specs=rows, check_vma=False)
            gradient, values = jax.jit(mapped)(student, teacher, jnp.asarray(KEPT))
        expected_values = losses.sp(student, teacher, where=KEPT)
        _, expected_gradient = mean_and_gradient(masked_mean, student, teacher, KEPT)
        np.testing.assert_allclose(values.reshape(8), expected_values, **EXACT)
        np.testing.assert_allclose(gradient.reshape(8, 6), expected_gradient, **EXACT)


def test_a_mask_may_be_of_0_and_1():
    values = [losses.sp(STUDENT, TEACHER, where=KEPT.astype(kind)) for kind in (bool, np.float32, int)]
    np.testing.assert_array_equal(values[0], values[1])
    np.testing.assert_array_equal(values[0], values[2])


def test_sp_refuses_what_does_not_fit():
    with pytest.raises(ValueError, match="teacher_features has 7 examples, student_features 8"):
        losses.sp(STUDENT, TEACHER[:7])
    with pytest.raises(ValueError, match=r"where has shape \(7,\), the batch 8 examples"):
        losses.sp(STUDENT, TEACHER, where=np.ones(7, bool))
    with pytest.raises(TypeError, match="teacher_features must be floating point"):
        losses.sp(STUDENT, TEACHER.astype(int))


def test_sp_compiled_is_sp():
    np.testing.assert_allclose(
        jax.jit(functools.partial(losses.sp, where=KEPT))(STUDENT, TEACHER),
        losses.sp(STUDENT, TEACHER, where=KEPT),
        rtol=1e-5,
        atol=1e-7,
    )

"""rkd: its parts against plain NumPy, what does not change it, points that coincide, extremes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdjax.losses import rkd, rkd_angle, rkd_distance
from tests.losses.computing import compiled, computing_in, draw
from tests.losses.relations import geometry_reference as reference

rkd, rkd_angle, rkd_distance = map(compiled, (rkd, rkd_angle, rkd_distance))

STUDENT, TEACHER = draw(70, 5, 3), draw(71, 5, 4)
EXACT = {"rtol": 1e-9, "atol": 1e-12}


def value_and_gradient(student, teacher, **hyper):
    return jax.value_and_grad(lambda s: jnp.mean(rkd(s, teacher, **hyper)))(student)


def test_parts_are_rows_of_the_published_means():
    with computing_in("f64") as real:
        student, teacher = real(STUDENT), real(TEACHER)
        far, bent = rkd_distance(student, teacher), rkd_angle(student, teacher)
        np.testing.assert_allclose(far, reference.distance_rows(STUDENT, TEACHER), **EXACT)
        np.testing.assert_allclose(bent, reference.angle_rows(STUDENT, TEACHER), **EXACT)
        np.testing.assert_allclose(rkd(student, teacher), 25 * far + 50 * bent, **EXACT)
        each = np.arange(5.0)
        np.testing.assert_allclose(rkd(student, teacher, distance=each, angle=2.0), each * far + 2 * bent, **EXACT)


def test_features_of_any_shape_are_flattened():
    np.testing.assert_array_equal(rkd(STUDENT, TEACHER), rkd(STUDENT[:, None, :], TEACHER.reshape(5, 2, 2)))


def test_gradient():
    with computing_in("f64") as real:
        _, gradient = value_and_gradient(real(STUDENT), real(TEACHER))
        np.testing.assert_allclose(gradient, reference.rkd_gradient(STUDENT, TEACHER), **EXACT)


def test_a_turn_shift_or_stretch_changes_nothing():
    with computing_in("f64") as real:
        turn, _ = np.linalg.qr(np.float64(draw(72, 4, 4)))
        expected = rkd(real(STUDENT), real(TEACHER))
        moved = rkd(real(7 * np.float64(STUDENT) - 2), real(np.float64(TEACHER) @ turn))
        np.testing.assert_allclose(moved, expected, **EXACT)
        for squared in (False, True):
            value, gradient = value_and_gradient(3 * real(TEACHER) + 1, real(TEACHER), squared=squared)
            np.testing.assert_allclose(value, 0, atol=1e-14)
            np.testing.assert_allclose(gradient, 0, atol=1e-12)


def test_squared_distances():
    with computing_in("f64") as real:
        found = rkd_distance(real(STUDENT), real(TEACHER), squared=True)
        relative = [reference.distances(x) ** 2 for x in (STUDENT, TEACHER)]
        relative = [d / (d.sum() / 20) for d in relative]
        np.testing.assert_allclose(found, reference.smooth_l1(relative[0] - relative[1]).mean(1), **EXACT)


@pytest.mark.parametrize("precision", ["f64", "f32"])
def test_points_that_coincide_send_back_nothing_between_them(precision):
    student = np.float32(100) + STUDENT
    student[3] = student[1]
    tolerance = EXACT if precision == "f64" else {"rtol": 1e-4, "atol": 1e-4}
    with computing_in(precision) as real:
        value, gradient = value_and_gradient(real(student), real(TEACHER))
        far, bent = reference.distance_rows(student, TEACHER), reference.angle_rows(student, TEACHER)
        np.testing.assert_allclose(value, np.mean(25 * far + 50 * bent), rtol=tolerance["rtol"])
        np.testing.assert_allclose(gradient, reference.rkd_gradient(student, TEACHER), **tolerance)


def test_a_batch_of_one_point():
    """All distances are equal then, and there is no angle."""
    for point in (np.zeros((5, 3)), np.full((5, 3), 1e4)):
        with computing_in("f64") as real:
            _, gradient = value_and_gradient(real(point), real(TEACHER))
            np.testing.assert_array_equal(gradient, 0)
            far, bent = rkd_distance(real(point), real(TEACHER)), rkd_angle(real(point), real(TEACHER))
            apart = 1 - np.eye(5) - reference.relative_distances(TEACHER)
            np.testing.assert_allclose(far, reference.smooth_l1(apart).mean(1), **EXACT)
            np.testing.assert_allclose(bent, reference.smooth_l1(reference.cosines(TEACHER)).mean((1, 2)), **EXACT)
            # Operation by operation: compiled together, the two sides may round differently.
            np.testing.assert_array_equal(rkd.__wrapped__(real(point), real(point)), 0)


def test_one_example_and_two():
    value, gradient = value_and_gradient(STUDENT[:1], TEACHER[:1])
    assert value == 0
    np.testing.assert_array_equal(gradient, 0)
    value, gradient = value_and_gradient(STUDENT[:2], TEACHER[:2])  # two distances and two angles, alike in every pair
    np.testing.assert_allclose(value, 0, atol=1e-12)
    np.testing.assert_allclose(gradient, 0, atol=1e-6)


@pytest.mark.parametrize("scale", [1e-3, 1e4])
def test_extremes_in_float32(scale):
    student = (scale * STUDENT).astype(np.float32)
    value, gradient = value_and_gradient(jnp.asarray(student), TEACHER)
    assert value.dtype == gradient.dtype == np.float32
    np.testing.assert_allclose(
        value,
        np.mean(25 * reference.distance_rows(student, TEACHER) + 50 * reference.angle_rows(student, TEACHER)),
        rtol=1e-5,
    )
    expected = reference.rkd_gradient(student, TEACHER)
    np.testing.assert_allclose(gradient, expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())


def test_near_points_far_from_the_origin_keep_their_distances_in_float32():
    """Squared norms of 1e8 less dot products of 1e8 would leave nothing of squared distances of about 1."""
    student = np.float32(np.round(1e4 + draw(73, 5, 3, scale=1.0), 2))
    found = rkd_distance(student, TEACHER)
    np.testing.assert_allclose(found, reference.distance_rows(student, TEACHER), rtol=1e-4)


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match=r"distance has shape \(3,\), which does not broadcast"):
        rkd(STUDENT, TEACHER, distance=np.ones(3))
    with pytest.raises(ValueError, match="teacher_features has 4 examples, student_features 5"):
        rkd(STUDENT, TEACHER[:4])

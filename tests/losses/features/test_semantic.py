"""The losses of semantic calibration: similarities, attention, and the weighted distances."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdjax import losses
from tests.losses.computing import compiled, computing_in, draw, mean_and_gradient

losses = compiled(losses)

STUDENT = [[draw(320 + 3 * i + j, 4, size, size, k) for j, (size, k) in enumerate(pairs)]
           for i, pairs in enumerate([[(4, 2), (3, 3), (2, 1)], [(2, 2), (3, 3), (2, 1)]])]  # fmt: skip
TEACHER = [draw(330, 4, 4, 4, 2), draw(331, 4, 3, 3, 3), draw(332, 4, 5, 5, 1)]
ENERGY = draw(333, 4, 2, 3)
ATTENTION = np.float32(np.exp(ENERGY) / np.exp(ENERGY).sum(-1, keepdims=True))


def distances(student, teacher):
    """`[B, 2, 3]` in NumPy float64, from maps pooled by the tested function."""
    with computing_in("f64") as real:
        found = np.zeros((4, 2, 3))
        for i, row in enumerate(student):
            for j, projected in enumerate(row):
                target = np.asarray(losses.adaptive_average_pool(real(teacher[j]), projected.shape[1:3]))
                found[:, i, j] = ((np.float64(projected) - target) ** 2).mean((1, 2, 3))
        return found


def test_semckd_is_a_weighted_mean_of_squares():
    expected = (np.float64(ATTENTION) * distances(STUDENT, TEACHER)).sum((1, 2)) / 2
    with computing_in("f64") as real:
        student, teacher = jax.tree.map(real, (STUDENT, TEACHER))
        np.testing.assert_allclose(losses.semckd(student, teacher, real(ATTENTION)), expected, rtol=1e-12)
    np.testing.assert_allclose(losses.semckd(STUDENT, TEACHER, ATTENTION), expected, rtol=1e-5)


def test_semckd_teaches_student_and_attention_but_not_the_teacher():
    loss = lambda s, t, a: jnp.sum(losses.semckd(s, t, a))
    by_student, by_teacher, by_attention = jax.grad(loss, argnums=(0, 1, 2))(STUDENT, TEACHER, ATTENTION)
    for gradient in by_teacher:
        np.testing.assert_array_equal(gradient, 0)
    np.testing.assert_allclose(by_attention, distances(STUDENT, TEACHER) / 2, rtol=1e-5)
    # Pairs without a difference in size have the plain gradient of a mean square.
    gap = STUDENT[0][0] - TEACHER[0]
    np.testing.assert_allclose(by_student[0][0], ATTENTION[:, 0, 0, None, None, None] * gap / 32, rtol=1e-4, atol=1e-6)


def test_semckd_of_equal_maps_and_of_an_attention_to_one_stage():
    one_hot = np.zeros((4, 1, 2), np.float32)
    one_hot[:, :, 1] = 1
    teacher = TEACHER[:2]
    value, gradient = mean_and_gradient(
        losses.semckd, [[jnp.zeros((4, 4, 4, 2)), jnp.asarray(teacher[1])]], teacher, one_hot
    )
    assert value == 0
    for leaf in gradient[0]:
        np.testing.assert_array_equal(leaf, 0)
    values = losses.semckd([[jnp.zeros((4, 4, 4, 2)), jnp.zeros((4, 3, 3, 3))]], teacher, one_hot)
    np.testing.assert_allclose(values, np.mean(np.float64(teacher[1]) ** 2, (1, 2, 3)), rtol=1e-5)


def test_attention_is_a_softmax_over_the_teachers_stages():
    queries, keys = draw(334, 4, 2, 5, scale=1.0), draw(335, 4, 3, 5, scale=1.0)
    energy = np.einsum("bid,bjd->bij", np.float64(queries), keys)
    for temperature in (1.0, 2.0, np.float32([0.5, 1.0, 2.0, 4.0])):
        scaled = np.exp(energy / np.reshape(temperature, (-1, 1, 1)))
        found = losses.semckd_attention(queries, keys, temperature=temperature)
        np.testing.assert_allclose(found, scaled / scaled.sum(-1, keepdims=True), rtol=1e-5)
    for side in range(2):
        gradient = jax.grad(lambda *x: losses.semckd_attention(*x)[..., 0].sum(), argnums=side)(queries, keys)
        assert np.abs(gradient).max() > 1e-3  # both embeddings learn
    huge = losses.semckd_attention(1e4 * queries, 1e4 * keys)
    np.testing.assert_array_equal(np.argmax(huge, -1), np.argmax(energy, -1))
    np.testing.assert_allclose(huge.sum(-1), 1, rtol=1e-6)


KEPT = np.array([1, 1, 0, 0, 1, 0, 0, 1], bool)


def test_similarities_are_dot_products_of_the_rows_that_are_kept():
    features = draw(336, 8, 2, 3)
    rows = np.float64(features).reshape(8, 6)
    np.testing.assert_allclose(losses.batch_similarity(features), rows @ rows.T, rtol=1e-5, atol=1e-4)
    features[~KEPT] = np.nan
    found, pull = jax.vjp(lambda f: losses.batch_similarity(f, where=KEPT), features)
    expected = np.where(KEPT[:, None] & KEPT, rows @ rows.T, 0)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-4)
    gradient = pull(jnp.ones((8, 8)))[0]
    np.testing.assert_array_equal(gradient[~KEPT], 0)
    np.testing.assert_allclose(gradient[KEPT].reshape(4, 6), np.broadcast_to(2 * rows[KEPT].sum(0), (4, 6)), rtol=1e-4)
    np.testing.assert_array_equal(losses.batch_similarity(features, where=np.zeros(8, bool)), 0)


def test_similarities_of_eight_devices_are_those_of_one():
    features, weights = draw(337, 8, 3), draw(338, 8, 8)

    def share(features, kept, weights, axis=None):
        return jnp.sum(weights * losses.batch_similarity(features, where=kept, axis_name=axis) ** 2)

    one, expected = jax.value_and_grad(share)(jnp.asarray(features), KEPT, weights)
    split = [x.reshape(8, 1, *x.shape[1:]) for x in (features, KEPT, weights)]
    shares, gradient = jax.pmap(lambda *x: jax.value_and_grad(share)(*x, "data"), axis_name="data")(*split)
    np.testing.assert_allclose(shares.sum(), one, rtol=1e-5)
    np.testing.assert_allclose(gradient.reshape(8, 3), expected, rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_half_types_are_computed_in_float32(dtype):
    """Squares of 300 are past the largest float16."""
    student, teacher = jax.tree.map(lambda x: jnp.asarray(100 * x, dtype), (STUDENT, TEACHER))
    widen = lambda tree: jax.tree.map(lambda x: x.astype(jnp.float32), tree)
    values = losses.semckd(student, teacher, ATTENTION)
    assert values.dtype == jnp.float32 and values.max() > 7e4
    np.testing.assert_array_equal(values, losses.semckd(widen(student), widen(teacher), ATTENTION))
    similarity = losses.batch_similarity(teacher[0])
    assert similarity.dtype == jnp.float32 and np.isfinite(similarity).all()
    assert losses.semckd_attention(student[0][0][:, 0], student[0][0][:, 0]).dtype == jnp.float32


def test_what_does_not_fit_is_refused():
    with pytest.raises(
        ValueError, match=r"attention has shape \(4, 3, 2\) for 2 stages of the student, projected to \[3, 3\]"
    ):
        losses.semckd(STUDENT, TEACHER, np.swapaxes(ATTENTION, 1, 2))
    with pytest.raises(ValueError, match=r"projected to \[3, 2\], and 3 of the teacher"):
        losses.semckd([STUDENT[0], STUDENT[1][:2]], TEACHER, ATTENTION)
    with pytest.raises(ValueError, match=r"a projection has shape \(4, 4, 4, 2\), the teacher's stage \(4, 3, 3, 3\)"):
        losses.semckd([STUDENT[0], STUDENT[1]], [TEACHER[1], TEACHER[1], TEACHER[2]], ATTENTION)
    with pytest.raises(ValueError, match=r"queries has shape \(4, 2, 5\), keys \(4, 3, 6\)"):
        losses.semckd_attention(jnp.zeros((4, 2, 5)), jnp.zeros((4, 3, 6)))
    with pytest.raises(ValueError, match=r"temperature is 0\.0"):
        losses.semckd_attention(jnp.zeros((4, 2, 5)), jnp.zeros((4, 3, 5)), temperature=0.0)
    with pytest.raises(ValueError, match=r"where has shape \(3,\)"):
        losses.batch_similarity(jnp.zeros((4, 5)), where=np.ones(3, bool))
    with pytest.raises(TypeError, match="features must be floating point"):
        losses.batch_similarity(jnp.zeros((4, 5), int))

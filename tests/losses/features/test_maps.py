"""What every loss between feature maps has in common: examples by themselves, sizes, the teacher, the edges."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdjax.losses import adaptive_average_pool
from kdjax.losses.features import attention, boundary, fsp
from kdjax.losses.features import stages as stages_module
from tests.losses.computing import compiled, computing_in, draw

adaptive_average_pool, attention, boundary, fsp, stages_module = map(
    compiled, (adaptive_average_pool, attention, boundary, fsp, stages_module)
)

ROWS = 3
STUDENT, TEACHER = draw(210, ROWS, 4, 4, 3), draw(211, ROWS, 4, 4, 3)


def stages(maps):
    """Three stages of one, of other sizes and widths."""
    small = maps[:, :2, :2]
    return [maps, small * small[..., ::-1], jnp.concatenate([small, small[:, ::-1, :, :1] ** 2], axis=-1)]


POOLING = {
    "at": attention.at,
    "at_of_order_1": lambda s, t: attention.at(s, t, p=1),
    "at_of_the_paper": lambda s, t: attention.at(s, t, squared=False),
    "nst": attention.nst,
    "ft": attention.ft,
    "ft_squared": lambda s, t: attention.ft(s, t, p2=2),
    "ab": boundary.ab,
    "cwd": stages_module.cwd,
}
ALL = POOLING | {
    "mgd": stages_module.mgd,
    "vid": lambda s, t: stages_module.vid(
        s, t, jnp.array([0.5, 1.0, 4.0], jnp.promote_types(t.dtype, np.float32))[: s.shape[-1]]
    ),
    "fsp": lambda s, t: fsp.fsp(stages(s), stages(t)),
    "kdsvd": lambda s, t: fsp.kdsvd(stages(s), stages(t), k=2),
    "kdsvd_of_widths": lambda s, t: fsp.kdsvd(stages(s), stages(t), columns="width"),
}


def over(functions):
    return pytest.mark.parametrize("loss", functions.values(), ids=functions)


@functools.partial(jax.jit, static_argnums=0)
def evaluate(loss, student, teacher):
    """The values of the examples, their mean, and its gradients by student and teacher: one program for all checks."""

    def mean(student, teacher):
        values = loss(student, teacher)
        return jnp.mean(values), values

    (value, values), gradients = jax.value_and_grad(mean, argnums=(0, 1), has_aux=True)(student, teacher)
    return values, value, *gradients


@over(ALL)
def test_every_example_is_by_itself_and_its_value_a_number(loss):
    values = evaluate(loss, STUDENT, TEACHER)[0]
    assert values.shape == (ROWS,) and values.dtype == jnp.float32
    assert np.abs(values).min() > 1e-6
    order = np.array([2, 0, 1])
    np.testing.assert_allclose(evaluate(loss, STUDENT[order], TEACHER[order])[0], values[order], rtol=1e-5)
    np.testing.assert_allclose(loss(STUDENT[1:2], TEACHER[1:2]), values[1:2], rtol=1e-5)


@over(ALL)
def test_nothing_flows_into_the_teacher(loss):
    *_, by_student, by_teacher = evaluate(loss, STUDENT, TEACHER)
    np.testing.assert_array_equal(by_teacher, 0)
    assert np.abs(ROWS * by_student).max() > 1e-4


@over({name: loss for name, loss in ALL.items() if name not in ("vid", "ab")})
def test_a_student_that_equals_its_teacher_has_nothing_to_learn(loss):
    if loss in (ALL["ft"], ALL["at_of_the_paper"]):
        # A norm, operation by operation: compiled together, the two sides may round differently.
        with jax.disable_jit():
            value, gradient = jax.value_and_grad(lambda s, t: loss(s, t).mean())(TEACHER, TEACHER)
    else:
        _, value, gradient, _ = evaluate(loss, TEACHER, TEACHER)
    np.testing.assert_allclose(ROWS * value, 0, atol=1e-6)
    np.testing.assert_allclose(ROWS * gradient, 0, atol=1e-6)


@over(ALL)
def test_half_types_are_computed_in_float32(loss):
    """To the last digit, since only the numbers that come in are rounded; `stages` multiplies in the half type itself."""
    halves = [[(30 * one).astype(dtype) for one in (STUDENT, TEACHER)] for dtype in (jnp.bfloat16, np.float16)]
    found = jax.jit(lambda halves: [loss(*maps) for maps in halves])(halves)
    for maps, values in zip(halves, found, strict=True):
        assert values.dtype == jnp.float32 and np.isfinite(values).all()
        expected = evaluate(loss, *(one.astype(np.float32) for one in maps))[0]
        close = 2e-2 if loss in (ALL["fsp"], ALL["kdsvd"]) else 1e-6
        np.testing.assert_allclose(values, expected, rtol=close, atol=2e-2)


@over(ALL)
def test_float64_stays_float64(loss):
    with computing_in("f64") as real:
        values = evaluate(loss, real(STUDENT), real(TEACHER))[0]
        assert values.dtype == jnp.float64
        np.testing.assert_allclose(evaluate(loss, STUDENT, TEACHER)[0], values, rtol=1e-3, atol=1e-6)


@over(ALL)
@pytest.mark.parametrize("size", [1e-30, 1e-3, 1e4])
def test_features_of_any_size_are_compared_rightly(loss, size):
    """The value and gradient of float64; of 1e-30, whose squares float32 does not know, only that they are finite."""
    student, teacher = np.float32(size) * STUDENT, np.float32(size) * TEACHER
    _, value, gradient, _ = evaluate(loss, student, teacher)
    with computing_in("f64") as real:
        _, wanted, expected, _ = evaluate(loss, real(student), real(teacher))
    assert np.isfinite([value, wanted]).all() and np.isfinite(gradient).all() and np.isfinite(expected).all()
    if size > 1e-20:
        np.testing.assert_allclose(value, wanted, rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(gradient, expected, rtol=1e-3, atol=3e-4 * np.abs(expected).max())


@over(ALL)
@pytest.mark.parametrize("silent", ["student", "teacher", "both", "one example", "one channel"])
def test_features_without_activation_have_finite_values_and_gradients(loss, silent):
    student, teacher = STUDENT.copy(), TEACHER.copy()
    if silent in ("student", "both"):
        student[:] = 0
    if silent in ("teacher", "both"):
        teacher[:] = 0
    if silent == "one example":
        student[1] = 0
    if silent == "one channel":
        student[..., 1] = teacher[..., 2] = 0
    _, value, gradient, _ = evaluate(loss, student, teacher)
    assert np.isfinite(value)
    assert np.isfinite(gradient).all()
    assert np.abs(gradient).max() < 1e6


@over(ALL)
@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (2, 1, 1, 3), (1, 1, 5, 1), (2, 3, 1, 2), (0, 4, 4, 3)])
def test_maps_of_one_position_one_channel_or_one_example(loss, shape):
    values, _, gradient, _ = evaluate(loss, draw(212, *shape), draw(213, *shape))
    assert values.shape == shape[:1] and np.isfinite(values).all()
    assert gradient.shape == shape and np.isfinite(gradient).all()


@over(POOLING)
@pytest.mark.parametrize(("ours", "theirs"), [((4, 4), (2, 2)), ((2, 2), (4, 4)), ((5, 3), (3, 4))])
def test_the_larger_map_is_pooled_to_the_smaller(loss, ours, theirs):
    size = tuple(np.minimum(ours, theirs).tolist())

    @jax.jit
    def both(*maps):
        return loss(*maps), loss(*(adaptive_average_pool(one, size) for one in maps))

    found, expected = both(draw(214, 2, *ours, 3), draw(215, 2, *theirs, 3))
    np.testing.assert_allclose(found, expected, rtol=1e-6)


@over(ALL)
def test_what_does_not_fit_is_refused(loss):
    with pytest.raises(ValueError, match="teacher_features has 2 examples, student_features 3"):
        loss(STUDENT, TEACHER[:2])
    with pytest.raises(TypeError, match="must be floating point"):
        loss(STUDENT.astype(int), TEACHER)
    if loss in POOLING.values():
        with pytest.raises(ValueError, match=r"both must be maps \[B, H, W, K\]"):
            loss(STUDENT[:, 0], TEACHER[:, 0])


@pytest.mark.parametrize("name", ["ab", "cwd", "mgd", "fsp", "kdsvd"])
def test_other_widths_are_refused_where_channels_are_compared(name):
    with pytest.raises(ValueError, match="project the student's"):
        ALL[name](STUDENT, TEACHER[..., :2])


@pytest.mark.parametrize("name", ["at", "nst", "ft", "kdsvd_of_widths"])
def test_other_widths_are_welcome_where_they_are_not(name):
    assert np.isfinite(evaluate(ALL[name], STUDENT, TEACHER[..., :2])[0]).all()

"""The FitNets projector against the reference: value, gradients of input and parameters, running statistics."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from kdjax import losses
from kdjax.models.functional import functionalise
from kdjax.objectives.features.projectors import ConvRegressor
from tests.golden_cases import cases, nchw, nhwc
from tests.losses.computing import DTYPES, computing_in

# The one case of another repository pools the teacher's map first.


def heights(case):
    return [case.inputs[name].shape[2] for name in ("student", "teacher")]


def refused(case):
    """Whether the teacher's map is larger, by another ratio than two."""
    student, teacher = heights(case)
    return student < teacher != 2 * student


CASES = [case for case in cases("fitnet") if not refused(case)]
NAMES = {
    "conv.weight": ("conv", "kernel"),
    "conv.bias": ("conv", "bias"),
    "bn.weight": ("norm", "scale"),
    "bn.bias": ("norm", "bias"),
}
STATISTICS = {"bn.running_mean": ("norm", "mean"), "bn.running_var": ("norm", "var")}


def is_transposed(case):
    student, teacher = heights(case)
    return student < teacher


def from_torch(name, value, transposed):
    """OIHW to HWIO; a transposed convolution is stored IOHW there, and turned by half."""
    if value.ndim < 4:
        return value
    return value.transpose(2, 3, 0, 1)[::-1, ::-1] if transposed else value.transpose(2, 3, 1, 0)


def to_torch(value, transposed):
    value = np.asarray(value)
    if value.ndim < 4:
        return value
    return value[::-1, ::-1].transpose(2, 3, 0, 1) if transposed else value.transpose(3, 2, 0, 1)


def tree(case, names, real):
    found = {}
    for name, (module, leaf) in names.items():
        found.setdefault(module, {})[leaf] = real(from_torch(name, case.params[name], is_transposed(case)))
    return found


@functools.cache
def regressor(student, teacher, relu):
    return functionalise(lambda rngs: ConvRegressor(student, teacher, relu=relu, rngs=rngs))


def run(case, precision):
    """`(loss, projected, gradient by the student, gradients of parameters, statistics after)` in the reference's names."""
    with computing_in(precision) as real:
        student, teacher = real(nhwc(case.inputs["student"])), real(nhwc(case.inputs["teacher"]))
        module = regressor(student.shape[1:], teacher.shape[1:], case.hyper.get("use_relu", True))
        params, state = tree(case, NAMES, real), tree(case, STATISTICS, real)

        def loss(params, student):
            projected, after = module.call(params, state, lambda m: m(student), train="eval" not in case.tags)
            return jnp.mean(losses.fitnet(projected, teacher)), (projected, after)

        found = jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))(params, student)
        (value, (projected, after)), (gradients, by_student) = found
        flat = {name: to_torch(gradients[a][b], is_transposed(case)) for name, (a, b) in NAMES.items()}
        return value, projected, by_student, flat, {name: after[a][b] for name, (a, b) in STATISTICS.items()}


@pytest.mark.parametrize("case", CASES, ids=repr)
def test_projector_golden_in_float64(case):
    value, projected, by_student, gradients, after = run(case, "f64")
    case.check(value, "out", "loss", "f64")
    if "projected" in case.outputs["f64"]:
        case.check(nchw(projected), "out", "projected", "f64")
    case.check(nchw(by_student), "grad", "student", "f64")
    for name, gradient in gradients.items():
        case.check(gradient, "gparam", name, "f64")
    for name, statistic in after.items():
        case.check(statistic, "buffer_after", name, "f64")


@pytest.mark.parametrize("case", CASES, ids=repr)
def test_projector_golden_in_float32(case):
    """Gradients to a hundred-thousandth of their largest entry: single entries are sums that cancel.

    That of the convolution's bias cancels altogether where a BatchNorm in training mode follows; it is measured by the bias
    of that BatchNorm.
    """
    value, projected, by_student, gradients, after = run(case, "f32")
    case.check(value, "out", "loss", "f32")
    if "projected" in case.outputs["f64"]:
        case.check(nchw(projected), "out", "projected", "f32")
    for name, statistic in after.items():
        case.check(statistic, "buffer_after", name, "f32")
    expected = case.gparams["f64"] | {"student": case.grads["f64"]["student"]}
    for name, gradient in (gradients | {"student": nchw(by_student)}).items():
        assert gradient.dtype == DTYPES["f32"]
        scale = np.abs(expected["bn.bias" if name == "conv.bias" else name]).max()
        np.testing.assert_allclose(gradient, expected[name], rtol=0, atol=1e-5 * scale, err_msg=name)


def test_the_cases_cover_every_branch():
    assert {np.sign(student - teacher) for student, teacher in map(heights, CASES)} == {-1, 0, 1}
    assert {case.hyper.get("use_relu", True) for case in CASES} == {True, False}
    assert {"eval" in case.tags for case in CASES} == {True, False}
    assert np.abs(CASES[0].gparams["f64"]["conv.weight"]).max() > 1e-3


@pytest.mark.parametrize(
    ("student", "teacher", "kernel"),
    [
        ((8, 8, 3), (4, 4, 5), (3, 3, 3, 5)),
        ((4, 4, 3), (8, 8, 5), (4, 4, 3, 5)),
        ((8, 8, 3), (8, 8, 5), (1, 1, 3, 5)),
        ((8, 8, 3), (7, 7, 5), (2, 2, 3, 5)),
        ((9, 6, 3), (5, 6, 5), (5, 1, 3, 5)),
        ((1, 1, 3), (1, 1, 5), (1, 1, 3, 5)),
        ((7, 7, 3), (2, 3, 5), (6, 5, 3, 5)),
    ],
)
def test_shapes_are_bridged(student, teacher, kernel):
    module = regressor(student, teacher, True)
    params, state = jax.eval_shape(module.init, jax.random.key(0))
    assert params["conv"]["kernel"].shape == kernel
    run = lambda p, s, x: module.call(p, s, lambda m: m(x), train=True)[0]
    x = jax.ShapeDtypeStruct((2, *student), jnp.float32)
    assert jax.eval_shape(run, params, state, x).shape == (2, *teacher)


@pytest.mark.parametrize("case", [case for case in cases("fitnet") if refused(case)], ids=repr)
def test_a_larger_teacher_is_refused_with_the_mend(case):
    """Of other ratios than two, where one published code pools the teacher and the released benchmark has no way."""
    student, teacher = nhwc(case.inputs["student"]).shape[1:], nhwc(case.inputs["teacher"]).shape[1:]
    sizes = "student's {}x{} map to the teacher's {}x{}".format(*student[:2], *teacher[:2])
    with pytest.raises(ValueError, match=f"{sizes}: .* choose another stage"):
        ConvRegressor(student, teacher, rngs=nnx.Rngs(0))


@pytest.mark.parametrize(("student", "teacher"), [((4, 6, 3), (8, 6, 5)), ((4, 8, 3), (4, 9, 5))])
def test_a_teacher_larger_in_one_direction_is_refused(student, teacher):
    with pytest.raises(ValueError, match="must be half, equal or larger"):
        ConvRegressor(student, teacher, rngs=nnx.Rngs(0))


def test_vectors_are_refused():
    with pytest.raises(ValueError, match=r"Features are \(7,\) and \(8, 8, 3\) .* must be \[H, W, K\] maps"):
        ConvRegressor((7,), (8, 8, 3), rngs=nnx.Rngs(0))

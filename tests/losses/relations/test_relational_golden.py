"""rkd, pkt, cc and ickd against the numbers of the original implementations, values and gradients.

Those of `cc_neighbours`, which come with learned embeddings, are in tests/objectives/test_relational.py.
"""

import functools

import jax.numpy as jnp
import numpy as np
import pytest

from kdjax.losses import affinity_kd, cc, ickd, pkt, rkd
from tests.golden_cases import cases, nchw, nhwc
from tests.losses.computing import compiled, computing_in, mean_and_gradient
from tests.losses.relations.geometry_reference import rkd_gradient

affinity_kd, cc, ickd, pkt, rkd = map(compiled, (affinity_kd, cc, ickd, pkt, rkd))

PRECISIONS = pytest.mark.parametrize("precision", ["f64", "f32"])
# Apart from golden tolerances, for rows that the reference's gradient does not reach.
CLOSE = {"f64": {"rtol": 1e-9, "atol": 1e-12}, "f32": {"rtol": 2e-5, "atol": 1e-5}}


def pair(case, real):
    return real(case.inputs["student"]), real(case.inputs["teacher"])


def repeated_rows(features):
    """Whether each row occurs again."""
    return np.array([np.sum(np.all(features == row, axis=1)) > 1 for row in features])


def plain_rkd(student, teacher, distance, angle):
    return rkd(student, teacher, distance=distance, angle=angle)


def squared_rkd(student, teacher, distance, angle):
    return rkd(student, teacher, distance=distance, angle=angle, squared=True)


@PRECISIONS
@pytest.mark.parametrize("case", cases("rkd"), ids=repr)
def test_rkd_golden(case, precision):
    weights = {"distance": case.hyper["distance_weight"], "angle": case.hyper["angle_weight"]}
    with computing_in(precision) as real:
        loss = squared_rkd if case.hyper["squared"] else plain_rkd
        value, gradient = mean_and_gradient(
            loss, *pair(case, real), **{name: real(value) for name, value in weights.items()}
        )
        case.check(value, "out", "loss", precision)
        expected, repeated = case.grads["f64"]["student"], repeated_rows(case.inputs["student"])
        if np.abs(expected[repeated]).max(initial=0) < 1e6:
            case.check(gradient, "grad", "student", precision)
            return
        # The reference divides the gradient along the gap between two points that coincide by its 1e-12.
        np.testing.assert_allclose(gradient[~repeated], expected[~repeated], **CLOSE[precision])
        by_formula = rkd_gradient(
            case.inputs["student"], case.inputs["teacher"], **weights, squared=case.hyper["squared"]
        )
        np.testing.assert_allclose(gradient, by_formula, **CLOSE[precision])


def test_the_cases_of_rkd_repeat_a_row_and_do_not():
    assert {bool(np.any(repeated_rows(case.inputs["student"]))) for case in cases("rkd")} == {False, True}


@PRECISIONS
@pytest.mark.parametrize("case", cases("pkt"), ids=repr)
def test_pkt_golden(case, precision):
    with computing_in(precision) as real:
        value, gradient = mean_and_gradient(pkt, *pair(case, real), epsilon=case.hyper["eps"])
        case.check(value, "out", "loss", precision)
        if case.finite["f64"]:
            case.check(gradient, "grad", "student", precision)
            return
        # The reference sends nan into an example without activation.
        dead = np.all(case.inputs["student"] == 0, axis=1)
        assert dead.any() and np.isnan(case.grads["f64"]["student"][dead]).all()
        np.testing.assert_array_equal(gradient[dead], 0)
        tolerance = case.tolerance("grad", precision)
        np.testing.assert_allclose(gradient[~dead], case.grads["f64"]["student"][~dead], **tolerance)


def root_over_batch(values, size):
    """`||K_s - K_t||_F / B^2` of the mean squared gap."""
    return jnp.sqrt(jnp.mean(values)) / size


@functools.cache
def kernel_as_ported(order):
    """For one order of the series, which is no traced value."""

    def loss(student, teacher, gamma):
        return root_over_batch(cc(student, teacher, gamma=gamma, order=order, normalize=False), len(student))

    return loss


def bilinear_as_ported(student, teacher):
    return root_over_batch(affinity_kd(student, teacher, affinity="dot", loss="mse"), len(student))


@PRECISIONS
@pytest.mark.parametrize("case", cases("cc", symbol="CCKDLoss"), ids=repr)
def test_kernels_of_cc_golden(case, precision):
    with computing_in(precision) as real:
        if case.hyper["type"] == "gaussian":
            loss = kernel_as_ported(case.hyper["max_p"])
            found = mean_and_gradient(loss, *pair(case, real), gamma=case.hyper["gamma"])
        else:
            found = mean_and_gradient(bilinear_as_ported, *pair(case, real))
        case.check(found[0], "out", "loss", precision)
        case.check(found[1], "grad", "student", precision)


def ickd_as_ported(student, teacher):
    return ickd(student, teacher) / len(student)


@PRECISIONS
@pytest.mark.parametrize("case", cases("ickd"), ids=repr)
def test_ickd_golden(case, precision):
    with computing_in(precision) as real:
        student, teacher = (real(nhwc(case.inputs[name])) for name in ("student", "teacher"))
        value, gradient = mean_and_gradient(ickd_as_ported, student, teacher)
        case.check(value, "out", "loss", precision)
        case.check(nchw(gradient), "grad", "student", precision)

"""Losses between feature maps against the numbers of their original implementations: values and gradients."""

import jax.numpy as jnp
import numpy as np
import pytest

from kdjax.losses.features import attention, boundary, fsp
from tests.golden_cases import cases, nchw, nhwc
from tests.losses.computing import compiled, computing_in, mean_and_gradient

attention, boundary, fsp = map(compiled, (attention, boundary, fsp))

PRECISIONS = pytest.mark.parametrize("precision", ["f64", "f32"])


def check_stages(case, loss, precision, factor=1.0):
    """Value and gradients of a loss of lists of stages."""
    with computing_in(precision) as real:
        student, teacher = ([real(maps) for maps in case.stages(name)] for name in ("student", "teacher"))
        value, gradients = mean_and_gradient(loss, student, teacher)
        case.check(factor * value, "out", "loss", precision)
        for i, gradient in enumerate(gradients):
            case.check(nchw(factor * gradient), "grad", f"student_{i}", precision)


def added_up(loss, **hyper):
    return lambda student, teacher: sum(loss(s, t, **hyper) for s, t in zip(student, teacher, strict=True))


@PRECISIONS
@pytest.mark.parametrize("case", cases("at"), ids=repr)
def test_at_golden(case, precision):
    check_stages(
        case, added_up(attention.at, p=case.hyper.get("p", 2), squared=case.hyper.get("mode") != "paper"), precision
    )


@PRECISIONS
@pytest.mark.parametrize("case", cases("nst"), ids=repr)
def test_nst_golden(case, precision):
    check_stages(case, added_up(attention.nst), precision)


@PRECISIONS
@pytest.mark.parametrize("case", cases("fsp", symbol="FSP"), ids=repr)
def test_fsp_golden(case, precision):
    check_stages(case, fsp.fsp, precision)


def test_every_other_fsp_is_another_function():
    """It max-pools and takes norms of columns; nothing here computes that."""
    others = set(cases("fsp")) - set(cases("fsp", symbol="FSP"))
    assert {case.symbol for case in others} == {"FSPLoss"} and all("variant" in case.tags for case in others)


@PRECISIONS
@pytest.mark.parametrize("case", cases("ab"), ids=repr)
def test_ab_golden(case, precision):
    def loss(student, teacher):
        values = [boundary.ab(s, t, margin=case.hyper["margin"]) for s, t in zip(student, teacher, strict=True)]
        return sum(2.0 ** (i + 1 - len(values)) * value for i, value in enumerate(values))

    check_stages(case, loss, precision, factor=3 / 1000)  # of no case's own: a constant of the reference


@PRECISIONS
@pytest.mark.parametrize("case", cases("ft", symbol="FactorTransfer"), ids=repr)
def test_ft_golden(case, precision):
    with computing_in(precision) as real:
        student, teacher = real(nhwc(case.inputs["student"])), real(nhwc(case.inputs["teacher"]))
        value, gradient = mean_and_gradient(lambda s, t: attention.ft(s, t, **case.hyper), student, teacher)
        case.check(value, "out", "loss", precision)
        case.check(nchw(gradient), "grad", "student", precision)


def columns_of(case):
    return {"KDSVD": "channels", "kdsvd_loss": "width"}[case.symbol]


@PRECISIONS
@pytest.mark.parametrize("case", cases("kdsvd"), ids=repr)
def test_kdsvd_golden(case, precision):
    """With the reference's signs of the teacher's vectors, which are arbitrary: those of the stored `aux_vt`."""
    columns, k = columns_of(case), case.hyper["k"]
    with computing_in(precision) as real:
        student, teacher = ([real(maps) for maps in case.stages(name)] for name in ("student", "teacher"))
        signed = []
        for i, maps in enumerate(teacher):
            vectors, values = fsp._singular(fsp._matrix(maps, columns), k)
            theirs = case.outputs["f64"][f"aux_vt_{i}"]
            vectors = vectors * np.sign(np.sum(vectors * theirs, axis=1, keepdims=True)).astype(vectors.dtype)
            np.testing.assert_allclose(vectors, theirs, atol=1e-10 if precision == "f64" else 3e-5)
            signed.append((vectors, values))

        def loss(maps):
            return fsp._directions_apart([fsp._singular(fsp._matrix(s, columns), k + 3)[0] for s in maps], signed)

        value, gradients = mean_and_gradient(loss, student)
        case.check(value, "out", "loss", precision)
        # Closer than the case asks for in float32, whose reference had other signs.
        np.testing.assert_allclose(value, case.outputs["f64"]["loss"], rtol=1e-9 if precision == "f64" else 2e-5)
        for i, gradient in enumerate(map(nchw, gradients)):
            case.check(gradient, "grad", f"student_{i}", precision)
            expected = case.grads["f64"][f"student_{i}"]
            within = (1e-9 if precision == "f64" else 1e-4) * np.abs(expected).max()
            np.testing.assert_allclose(gradient, expected, rtol=0, atol=within)


def alike(case, columns):
    """Whether both networks have as many columns at every stage."""
    axis = {"channels": 3, "width": 2}[columns]
    return [s.shape[axis] for s in case.stages("student")] == [t.shape[axis] for t in case.stages("teacher")]


@pytest.mark.parametrize(
    ("case", "columns"),
    [(c, columns) for columns in ("channels", "width") for c in cases("kdsvd") if alike(c, columns)],
)
def test_kdsvd_is_made_of_what_the_reference_was_compared_with(case, columns):
    """The public function, with signs of its own."""
    student, teacher = ([jnp.asarray(maps) for maps in case.stages(name)] for name in ("student", "teacher"))
    k = case.hyper["k"]
    signed = [fsp._singular(fsp._matrix(maps, columns), k) for maps in teacher]
    signed = [
        (vectors * np.sign(np.take_along_axis(vectors, np.abs(vectors).argmax(1)[:, None], 1)), values)
        for vectors, values in signed
    ]
    expected = fsp._directions_apart([fsp._singular(fsp._matrix(s, columns), k + 3)[0] for s in student], signed)
    np.testing.assert_allclose(fsp.kdsvd(student, teacher, k=k, columns=columns), expected, rtol=1e-6)

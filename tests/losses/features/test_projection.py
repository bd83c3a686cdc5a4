"""srd against the numbers of both released codes, its formula, the global batch and a perfect match."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdjax.losses import srd
from kdjax.reduction import group_losses, whole_batch
from tests.golden_cases import cases
from tests.losses.computing import DTYPES, compiled, computing_in, draw, mean_and_gradient
from tests.losses.masking import check_masked_rows

srd = compiled(srd)

PRECISIONS = pytest.mark.parametrize("precision", ["f64", "f32"])
ROWS, WIDTH, DEVICES = 16, 5, 8
STUDENT, TEACHER = draw(270, ROWS, WIDTH), draw(271, ROWS, WIDTH)
KEPT = np.array([1, 1, 0, 0, 1, 0, 0, 1, 1, 1, 0, 1, 1, 1, 1, 0], bool)  # the second device of eight has no row
EXACT = {"rtol": 1e-10, "atol": 1e-13}
FORMS = {
    "feature": {},
    "absolute": {"exponent": 1.0, "bn_eps": 0.0},
    "correlation": {"mode": "correlation", "bn_eps": 0.0, "log_eps": 1e-5},
}
over_forms = pytest.mark.parametrize("form", FORMS)


def standardised(rows, eps):
    rows = np.float64(rows)
    return (rows - rows.mean(0)) / np.sqrt(rows.var(0) + eps)


def numpy_srd(student, teacher, *, exponent=4.0, mode="feature", bn_eps=1e-4, log_eps=0.0):
    student, teacher = standardised(student, bn_eps), standardised(teacher, bn_eps)
    gap = student - teacher if mode == "feature" else (student * teacher).mean(0) - 1
    return np.log(np.sum(np.abs(gap) ** exponent) + log_eps)


# --- against the released codes; those of a related method in another repository share the file ---


def released(case):
    return {
        "exponent": case.hyper["exponent"],
        "bn_eps": case.hyper["bn_eps"],
        "log_eps": case.hyper.get("eps", 0.0),
        "mode": RELEASED[case.symbol],
    }


RELEASED = {
    "OurDistillationLoss.forward_loss": "feature",
    "DistillationLoss.forward (constructor bypassed)": "correlation",
}
CASES = [case for case in cases("srd") if case.symbol in RELEASED]


@PRECISIONS
@pytest.mark.parametrize("case", CASES, ids=repr)
def test_srd_golden(case, precision):
    """With the linear projector; its bias does nothing, since the mean over the batch is taken away."""
    with computing_in(precision) as real:
        student, teacher = real(case.inputs["student"]), real(case.inputs["teacher"])
        kernel, bias = real(case.params["embed.weight"]), real(case.params["embed.bias"])

        def loss(student, kernel, bias):
            return srd(student @ kernel.T + bias[None], teacher, **released(case))

        value, gradients = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2)))(student, kernel, bias)
        case.check(value, "out", "loss", precision)
        by_student, by_kernel, by_bias = gradients
        wanted = case.grads["f64"] | case.gparams["f64"]
        if precision == "f64":
            case.check(by_student, "grad", "student", precision)
            case.check(by_kernel, "gparam", "embed.weight", precision)
        # To a hundred-thousandth of the largest entry: closer than the case asks for, whose entries cancel.
        for name, found in {"student": by_student, "embed.weight": by_kernel}.items():
            assert found.dtype == DTYPES[precision]
            np.testing.assert_allclose(
                found, wanted[name], rtol=0, atol=1e-5 * np.abs(wanted[name]).max(), err_msg=name
            )
        np.testing.assert_allclose(by_bias, 0, atol=1e-5)
        np.testing.assert_allclose(wanted["embed.bias"], 0, atol=1e-12)


@pytest.mark.parametrize("case", CASES, ids=repr)
def test_the_reference_kept_running_statistics_that_nothing_reads(case):
    """They follow from the projection: a tenth of the batch's mean and unbiased variance. Nothing of the kind is kept here."""
    given = {name: array.astype(np.float64) for name, array in (case.inputs | case.params).items()}
    projected = given["student"] @ given["embed.weight"].T + given["embed.bias"]
    for name, rows in {"bn_s": projected, "bn_t": given["teacher"]}.items():
        for statistic, of_batch in {"running_mean": rows.mean(0), "running_var": rows.var(0, ddof=1)}.items():
            after = 0.9 * given[f"{name}.{statistic}"] + 0.1 * of_batch
            case.check(after, "buffer_after", f"{name}.{statistic}", "f64")


def test_every_case_is_accounted_for():
    """Those of the whole training loss are for the objective; "ITLoss" is another method."""
    assert {case.symbol for case in CASES} == set(RELEASED)
    rest = {case.symbol for case in cases("srd")} - set(RELEASED) - {"OurDistillationLoss.forward"}
    assert {symbol.split(".")[0] for symbol in rest} == {"ITLoss"}


# --- the formula ---


@over_forms
@PRECISIONS
def test_srd_is_its_formula(form, precision):
    with computing_in(precision) as real:
        found = srd(real(STUDENT), real(TEACHER), **FORMS[form])
        np.testing.assert_allclose(
            found, numpy_srd(STUDENT, TEACHER, **FORMS[form]), rtol=1e-12 if precision == "f64" else 1e-5
        )


@over_forms
def test_srd_sees_no_shift_and_hardly_a_stretch_of_a_feature(form):
    with computing_in("f64") as real:
        student, teacher = real(STUDENT), real(TEACHER)
        value = srd(student, teacher, **FORMS[form])
        shifted = srd(student + 100, teacher - real(np.arange(5.0))[None], **FORMS[form])
        np.testing.assert_allclose(shifted, value, rtol=1e-9)
        np.testing.assert_allclose(srd(50 * student, teacher, **FORMS[form]), value, rtol=1e-4)


def test_a_batch_twice_over_has_a_larger_sum_and_the_same_gradient_of_the_mean():
    with computing_in("f64") as real:
        student, teacher = real(STUDENT), real(TEACHER)
        twice = lambda s: srd(jnp.concatenate([s, s]), jnp.concatenate([teacher, teacher]))
        once = lambda s: srd(s, teacher)
        np.testing.assert_allclose(twice(student), once(student) + np.log(2), **EXACT)
        np.testing.assert_allclose(jax.grad(twice)(student), jax.grad(once)(student), **EXACT)


# --- the teacher, the batch and its mask ---


def share(student, teacher, form, **rows):
    """What a device differentiates, here of one device or of each."""
    return sum(
        group_losses({"a": whole_batch(srd(student, teacher, **FORMS[form], **rows))}, rows.get("axis_name")).values()
    )


@over_forms
def test_nothing_flows_into_the_teacher(form):
    learn = jax.jit(jax.grad(lambda s, t: srd(s, t, **FORMS[form]), argnums=(0, 1)))
    by_student, by_teacher = learn(STUDENT, TEACHER)
    np.testing.assert_array_equal(by_teacher, 0)
    assert np.abs(by_student).max() > 1e-3


@over_forms
def test_a_row_that_is_masked_out_is_as_if_it_were_not_there(form):
    loss = functools.partial(share, form=form)
    check_masked_rows(loss, STUDENT, TEACHER, KEPT, (0.0, 1e30, np.nan, np.inf), **EXACT)


@over_forms
@pytest.mark.parametrize("kept", [KEPT, np.zeros(ROWS, bool)], ids=["uneven", "empty"])
def test_eight_devices_give_the_value_and_gradient_of_one(form, kept):
    with computing_in("f64") as real:
        student, teacher = real(STUDENT), real(TEACHER)
        one, expected = jax.jit(jax.value_and_grad(lambda s: share(s, teacher, form, where=kept)))(student)
        split = [x.reshape(DEVICES, ROWS // DEVICES, *x.shape[1:]) for x in (student, teacher, kept)]
        shares, gradient = jax.pmap(
            jax.value_and_grad(lambda s, t, w: share(s, t, form, where=w, axis_name="data")), axis_name="data"
        )(*split)
        np.testing.assert_allclose(jnp.sum(shares), one, **EXACT)
        np.testing.assert_allclose(gradient.reshape(ROWS, WIDTH), expected, **EXACT)


# --- the edges ---


@pytest.mark.parametrize("precision", ["f64", "f32"])
def test_a_perfect_match_is_finite_and_has_nothing_to_learn(precision):
    """The released code has -inf and nan; here the logarithm of the smallest normal number, or of `log_eps`."""
    with computing_in(precision) as real:
        teacher = real(TEACHER)
        for log_eps in (0.0, 1e-8):
            # Operation by operation: compiled together, the two sides may round differently.
            loss = functools.partial(srd.__wrapped__, log_eps=log_eps)
            value, gradient = jax.value_and_grad(loss)(teacher, teacher)
            smallest = np.log(log_eps or np.finfo(DTYPES[precision]).tiny)
            np.testing.assert_allclose(value, smallest, rtol=1e-6)
            np.testing.assert_array_equal(gradient, 0)


def test_near_a_match_the_gradient_is_one_over_the_distance():
    with computing_in("f64") as real:
        for distance in (1e-3, 1e-6):
            step = lambda s, d=distance: srd(real(TEACHER) + d * s, real(TEACHER))
            slope = jax.jvp(step, (real(STUDENT),), (real(STUDENT),))[1]
            np.testing.assert_allclose(slope, 4, rtol=1e-2)  # by the logarithm of the distance: the power


@over_forms
@pytest.mark.parametrize("rows", [1, 2])
def test_batches_of_one_and_two_are_finite(form, rows):
    value, gradient = mean_and_gradient(lambda s: srd(s, TEACHER[:rows], **FORMS[form]), jnp.asarray(STUDENT[:rows]))
    assert np.isfinite(value) and np.isfinite(gradient).all()
    if rows == 1:
        np.testing.assert_array_equal(gradient, 0)


@over_forms
def test_a_constant_feature_is_zero(form):
    student = STUDENT.copy()
    student[:, 2] = 7
    value, gradient = mean_and_gradient(lambda s: srd(s, TEACHER, **FORMS[form]), jnp.asarray(student))
    assert np.isfinite(value) and np.isfinite(gradient).all()
    if FORMS[form].get("bn_eps", 1e-4) == 0:
        np.testing.assert_array_equal(gradient[:, 2], 0)
    nothing, gradient = mean_and_gradient(lambda s: srd(s, TEACHER, **FORMS[form]), jnp.zeros((ROWS, WIDTH)))
    assert np.isfinite(nothing) and np.isfinite(gradient).all()


@pytest.mark.parametrize("rows", [3, 48, 100])
@pytest.mark.parametrize("value", [0.7, 1e4])
def test_what_rounding_leaves_of_a_constant_feature_is_no_variance(rows, value):
    """Whether its mean is that number to the last digit or not."""
    student, teacher = draw(4, rows, 8, scale=1.0), draw(5, rows, 8, scale=1.0)
    student[:, 0] = value
    _, gradient = mean_and_gradient(lambda s: srd(s, teacher, mode="correlation", bn_eps=0.0), jnp.asarray(student))
    np.testing.assert_array_equal(gradient[:, 0], 0)
    assert np.abs(gradient[:, 1:]).max() < 10


@over_forms
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_half_types_are_computed_in_float32(form, dtype):
    student, teacher = jnp.asarray(300 * STUDENT, dtype), jnp.asarray(300 * TEACHER, dtype)
    value = srd(student, teacher, **FORMS[form])
    assert value.dtype == jnp.float32
    np.testing.assert_array_equal(value, srd(student.astype(jnp.float32), teacher.astype(jnp.float32), **FORMS[form]))


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="project the student's to the teacher's width first"):
        srd(STUDENT, TEACHER[:, :4])
    with pytest.raises(ValueError, match=r"both must be \[B, D\]"):
        srd(STUDENT[:, :, None], TEACHER[:, :, None])
    with pytest.raises(ValueError, match="mode is 'both'"):
        srd(STUDENT, TEACHER, mode="both")
    with pytest.raises(ValueError, match="exponent=0"):
        srd(STUDENT, TEACHER, exponent=0)

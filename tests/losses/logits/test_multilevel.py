"""mlld against the numbers of the released code, its formula in NumPy, and at its edges."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdjax.losses.logits import multilevel
from tests.golden_cases import cases
from tests.losses import numpy_reference as reference
from tests.losses.computing import compiled, computing_in, draw

multilevel = compiled(multilevel)

PRECISIONS = pytest.mark.parametrize("precision", ["f64", "f32"])
LEVELS = ("kd", "cc", "bc")
VIEWS = {
    "student": draw(80, 6, 5),
    "teacher": draw(81, 6, 5),
    "student_strong": draw(82, 6, 5),
    "teacher_strong": draw(83, 6, 5),
}
TEMPERATURES = (4.0, 3.0, 1.0, 2.0)
EXACT = {"rtol": 1e-10, "atol": 1e-12}


# --- the formula in NumPy: rows and classes are left out, not weighed ---


def lower_half(values):
    return np.flatnonzero(values <= np.median(values))


def levels(student, teacher, temperature, rows=None, bc_rows=None, classes=None):
    """The three levels, summed over the given rows and classes (None is all)."""
    p, q = reference.softmax(student, temperature), reference.softmax(teacher, temperature)
    rows, bc_rows, classes = (slice(None) if chosen is None else chosen for chosen in (rows, bc_rows, classes))
    return {
        "kd": reference.kd(student, teacher, temperature)[rows].sum() / len(p),
        "cc": np.sum((q.T @ q - p.T @ p)[classes] ** 2) / p.shape[1],
        "bc": np.sum((q @ q.T - p @ p.T)[bc_rows] ** 2) / len(p),
    }


def mlld(student, teacher, student_strong, teacher_strong, temperatures=TEMPERATURES):
    q = reference.softmax(teacher)
    rows, classes = lower_half(q.max(axis=1)), lower_half(q.sum(axis=0))
    total = dict.fromkeys(LEVELS, 0.0)
    for temperature in temperatures:
        weak = levels(student, teacher, temperature, rows, rows, classes)
        strong = levels(student_strong, teacher_strong, temperature, bc_rows=rows)
        total = {name: total[name] + weak[name] + strong[name] for name in LEVELS}
    return total


def gradient_by_differences(function, x, step=1e-6):
    x = np.float64(x)
    slope = np.zeros_like(x)
    for place in np.ndindex(x.shape):
        move = np.zeros_like(x)
        move[place] = step
        slope[place] = (function(x + move) - function(x - move)) / (2 * step)
    return slope


# --- released code ---


def standardised(logits):
    centred = logits - jnp.mean(logits, axis=-1, keepdims=True)
    return centred / (1e-7 + jnp.std(logits, axis=-1, ddof=1, keepdims=True))


@functools.partial(jax.jit, static_argnames="logit_stand")
def released_terms(students, teachers, labels, hyper, *, logit_stand):
    """What the released code returns. Its standardisation is of the logits of the instance level only."""

    def terms(views):
        temperatures = (hyper["temperature"], 3.0, 5.0, 2.0, 6.0)  # the first is set, the others are fixed there
        return multilevel.mlld(*(v[0] for v in views), **strong(views), official=True, temperatures=temperatures)

    def strong(views):
        if len(views[0]) == 1:
            return {}
        return {"student_logits_strong": views[0][1], "teacher_logits_strong": views[1][1]}

    def total(students):
        plain = terms((students, teachers))
        kd = terms(jax.tree.map(standardised, (students, teachers)))["kd"] if logit_stand else plain["kd"]
        picked = [jnp.take_along_axis(jax.nn.log_softmax(s), labels[:, None], axis=1) for s in students]
        found = {
            "loss_ce": -hyper["ce_weight"] * sum(map(jnp.mean, picked)),
            "loss_kd": hyper["kd_weight"] * kd,
            "loss_cc": hyper["kd_weight"] * plain["cc"],
            "loss_bc": hyper["kd_weight"] * plain["bc"],
        }
        return sum(found.values()), found

    return jax.value_and_grad(total, has_aux=True)(students)


@PRECISIONS
@pytest.mark.parametrize("case", cases("mlkd") + cases("mlkd_noaug"), ids=repr)
def test_mlld_golden(case, precision):
    views = ("weak", "strong") if "student_weak" in case.inputs else (None,)
    names = [f"student_{view}" if view else "student" for view in views]
    with computing_in(precision) as real:
        students = [real(case.inputs[name]) for name in names]
        teachers = [real(case.inputs[name.replace("student", "teacher")]) for name in names]
        hyper = {name: case.hyper[name] for name in ("temperature", "ce_weight", "kd_weight")}
        (value, found), gradients = released_terms(
            students, teachers, case.inputs["label"], hyper, logit_stand=case.hyper["logit_stand"]
        )
        case.check(value, "out", "loss", precision)
        for name, term in found.items():
            case.check(term, "out", name, precision)
        for name, gradient in zip(names, gradients, strict=True):
            case.check(gradient, "grad", name, precision)


# --- the design ---


@jax.jit
def designed(student, teacher, student_strong, teacher_strong):
    def total(student, student_strong):
        terms = multilevel.mlld(
            student,
            teacher,
            student_logits_strong=student_strong,
            teacher_logits_strong=teacher_strong,
            temperatures=TEMPERATURES,
        )
        return terms["kd"] + 2 * terms["cc"] + 3 * terms["bc"], terms

    return jax.value_and_grad(total, argnums=(0, 1), has_aux=True)(student, student_strong)


def weighed(terms):
    return terms["kd"] + 2 * terms["cc"] + 3 * terms["bc"]


def test_mlld_is_its_formula():
    with computing_in("f64") as real:
        (_, found), gradients = designed(*(real(x) for x in VIEWS.values()))
        expected = mlld(**VIEWS)
        for name in LEVELS:
            np.testing.assert_allclose(found[name], expected[name], **EXACT)
        for name, gradient in zip(("student", "student_strong"), gradients, strict=True):
            slope = gradient_by_differences(lambda x, name=name: weighed(mlld(**(VIEWS | {name: x}))), VIEWS[name])
            np.testing.assert_allclose(gradient, slope, rtol=1e-6, atol=1e-8)
            assert np.abs(gradient).max() > 0.1


@PRECISIONS
def test_mlld_of_logits_of_ten_thousand(precision):
    """All probabilities are 0 or 1, so the teacher's trust is one tie: every row counts."""
    views = {name: draw(84 + i, 6, 5, scale=1e4) for i, name in enumerate(VIEWS)}
    with computing_in(precision) as real:
        (_, found), gradients = designed(*(real(x) for x in views.values()))
        expected = mlld(**views)
        for name in LEVELS:
            np.testing.assert_allclose(found[name], expected[name], rtol=1e-9 if precision == "f64" else 2e-5)
        slope = sum(
            reference.kd_gradient(views["student"], views["teacher"], temperature) for temperature in TEMPERATURES
        )
        np.testing.assert_allclose(gradients[0], slope / 6, rtol=1e-5, atol=1e-6)


def test_mlld_is_the_sum_of_its_levels():
    student, teacher = VIEWS["student"], VIEWS["teacher"]
    whole = multilevel.mlld(student, teacher, temperatures=(1.0, 2.0))
    parts = [multilevel.mlld_levels(student, teacher, temperature=t) for t in (1.0, 2.0)]
    for name in LEVELS:
        np.testing.assert_allclose(whole[name], parts[0][name] + parts[1][name], rtol=1e-6)


def test_a_mask_takes_in_the_rows_and_classes_the_teacher_is_less_sure_of():
    with computing_in("f64") as real:
        student, teacher = real(VIEWS["student"]), real(VIEWS["teacher"])
        q = reference.softmax(VIEWS["teacher"])
        rows, classes = lower_half(q.max(axis=1)), lower_half(q.sum(axis=0))
        assert len(rows) == 3 and len(classes) == 3  # half of six, and the middle one of five
        for name, expected in levels(VIEWS["student"], VIEWS["teacher"], 4.0, rows, rows, classes).items():
            found, gradient = jax.value_and_grad(
                lambda s, n=name: multilevel.mlld_levels(s, teacher, temperature=4.0)[n]
            )(student)
            np.testing.assert_allclose(found, expected, **EXACT)
            if name == "kd":
                np.testing.assert_array_equal(np.flatnonzero(np.abs(gradient).sum(axis=1)), rows)


def test_rows_that_tie_at_the_median_all_count():
    teacher = np.repeat(VIEWS["teacher"][:1], 6, axis=0)
    teacher[5] *= 3  # surer than the rest
    found = multilevel.mlld_levels(VIEWS["student"], teacher, temperature=2.0)
    expected = reference.kd(VIEWS["student"], teacher, 2.0)[:5].sum() / 6
    np.testing.assert_allclose(found["kd"], expected, rtol=1e-5)


def test_the_released_code_differs_in_three_ways():
    with computing_in("f64") as real:
        s, t, s2, t2 = (real(x) for x in VIEWS.values())
        views = {"student_logits_strong": s2, "teacher_logits_strong": t2}
        found = multilevel.mlld(s, t, **views, official=True, temperatures=TEMPERATURES)
        weak = [levels(VIEWS["student"], VIEWS["teacher"], temperature) for temperature in TEMPERATURES]
        strong = [levels(VIEWS["student_strong"], VIEWS["teacher_strong"], t)["kd"] for t in TEMPERATURES[:3]]
        kd = 0.5 * sum(level["kd"] for level in weak) + sum(strong) + weak[3]["kd"]
        np.testing.assert_allclose(found["kd"], kd, **EXACT)
        np.testing.assert_allclose(found["bc"], 0.5 * sum(level["bc"] for level in weak), **EXACT)
        np.testing.assert_allclose(found["cc"], 3 / 5 * sum(level["cc"] for level in weak), **EXACT)


# --- edges ---


@pytest.mark.parametrize("official", [False, True])
def test_equal_inputs(official):
    def total(student):
        views = {"student_logits_strong": student, "teacher_logits_strong": VIEWS["student"]}
        terms = multilevel.mlld(student, VIEWS["student"], **views, official=official)
        return sum(terms.values()), terms

    (_, terms), gradient = jax.value_and_grad(total, has_aux=True)(jnp.asarray(VIEWS["student"]))
    np.testing.assert_allclose(list(terms.values()), 0, atol=1e-6)
    np.testing.assert_allclose(gradient, 0, atol=1e-5)


@pytest.mark.parametrize("official", [False, True])
def test_classes_at_minus_infinity(official):
    teacher = VIEWS["teacher"].copy()
    teacher[:, 3] = -np.inf
    low = np.where(np.isinf(teacher), np.float32(-1e4), teacher)

    def total(student, teacher):
        terms = multilevel.mlld(student, teacher, official=official, temperatures=(1.0, 2.0))
        return weighed(terms)

    value, gradient = jax.value_and_grad(total)(VIEWS["student"], teacher)
    expected, slope = jax.value_and_grad(total)(VIEWS["student"], low)
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    np.testing.assert_allclose(gradient, slope, rtol=1e-4, atol=1e-6)
    student = VIEWS["student"].copy()
    student[:, 3] = -np.inf
    value, gradient = jax.value_and_grad(total)(student, teacher)
    assert np.isfinite(value) and np.isfinite(gradient).all()
    np.testing.assert_array_equal(gradient[:, 3], 0)


def test_a_row_that_does_not_count_may_be_infinite():
    """The student excludes a class in the row in which the teacher is surest."""
    student, teacher = VIEWS["student"].copy(), VIEWS["teacher"]
    surest = reference.softmax(teacher).max(axis=1).argmax()
    student[surest, 0] = -np.inf
    kd, gradient = jax.value_and_grad(lambda s: multilevel.mlld_levels(s, teacher)["kd"])(student)
    rows = lower_half(reference.softmax(teacher).max(axis=1))
    np.testing.assert_allclose(kd, levels(VIEWS["student"], teacher, 4.0, rows)["kd"], rtol=1e-5)
    assert np.isfinite(gradient).all()
    official = multilevel.mlld(student, teacher, official=True)["kd"]
    assert official == np.inf


def test_one_class_and_one_row():
    one = multilevel.mlld_levels(VIEWS["student"][:, :1], VIEWS["teacher"][:, :1])
    np.testing.assert_array_equal(list(one.values()), 0)
    found = multilevel.mlld_levels(VIEWS["student"][:1], VIEWS["teacher"][:1], temperature=2.0)
    classes = lower_half(VIEWS["teacher"][0])
    expected = levels(VIEWS["student"][:1], VIEWS["teacher"][:1], 2.0, classes=classes)
    for name in LEVELS:
        np.testing.assert_allclose(found[name], expected[name], rtol=2e-5)


def test_temperature_may_differ_by_example():
    temperatures = np.array([0.5, 1.0, 2.0, 4.0, 8.0, 16.0])
    with computing_in("f64") as real:
        found = multilevel.mlld_levels(real(VIEWS["student"]), real(VIEWS["teacher"]), temperature=real(temperatures))
        kept = lower_half(reference.softmax(VIEWS["teacher"]).max(axis=1))
        values = [reference.kd(VIEWS["student"][i], VIEWS["teacher"][i], temperatures[i]) for i in kept]
        np.testing.assert_allclose(found["kd"], np.sum(values) / 6, rtol=1e-6)


def test_refuses_what_does_not_fit():
    student, teacher = VIEWS["student"], VIEWS["teacher"]
    with pytest.raises(ValueError, match="student_logits_strong and teacher_logits_strong both"):
        multilevel.mlld(student, teacher, student_logits_strong=student)
    with pytest.raises(ValueError, match="student_logits_strong has 4 classes, student_logits 5"):
        multilevel.mlld(student, teacher, student_logits_strong=student[:, :4], teacher_logits_strong=teacher[:, :4])
    with pytest.raises(ValueError, match="temperatures is empty"):
        multilevel.mlld(student, teacher, temperatures=())
    with pytest.raises(ValueError, match=r"temperature is 0.* must be above 0"):
        multilevel.mlld(student, teacher, temperatures=(4.0, 0.0))
    with pytest.raises(ValueError, match=r"reshape both networks' logits to \[B, C\]"):
        multilevel.mlld_levels(student[0], teacher[0])

"""Localization distillation against the original implementation, and at its edges."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdjax import losses
from tests.golden_cases import cases
from tests.losses import numpy_reference as reference
from tests.losses.computing import compiled, computing_in, draw
from tests.losses.tokens.head_case import distillation_weights, head_weights, locations, maps, rows

losses = compiled(losses)

PRECISIONS = pytest.mark.parametrize("precision", ["f64", "f32"])
ld = jax.jit(losses.ld)
dense_class_kd = jax.jit(losses.dense_class_kd)


@PRECISIONS
@pytest.mark.parametrize("case", cases("ld"), ids=repr)
def test_ld_golden(case, precision):
    """The reference has one row an edge: here a location of a single edge."""
    with computing_in(precision) as real:
        student, teacher = real(case.inputs["pred"])[:, None], real(case.inputs["soft_label"])[:, None]
        weights, hyper = real(case.inputs["weight"]), case.hyper
        value, gradient = jax.value_and_grad(ld)(
            student,
            teacher,
            weights,
            temperature=float(hyper["T"]),
            loss_weight=hyper["loss_weight"],
            avg_factor=hyper["avg_factor"],
        )
        case.check(value, "out", "loss", precision)
        case.check(gradient[:, 0], "grad", "pred", precision)
        # Each row by itself, without weights, as images of one location.
        rows_alone = student[:, None], teacher[:, None], jnp.ones_like(weights)[:, None]
        each = ld(*rows_alone, temperature=float(hyper["T"]), loss_weight=1.0, avg_factor=1.0)
        case.check(each, "out", "elem", precision)


@PRECISIONS
@pytest.mark.parametrize("case", cases("ld_head", symbol="LDHead.loss_single"), ids=repr)
def test_ld_head_golden(case, precision):
    hyper = case.hyper
    with computing_in(precision) as real:
        labels, boxes, centres = locations(case, real)
        label_weights = real(case.inputs["label_weights"].reshape(-1))

        @jax.jit
        def loss(logits, edges):
            head = losses.gfl_terms(
                logits,
                edges,
                labels,
                boxes,
                centres,
                stride=hyper["stride"],
                label_weights=label_weights,
                num_positives=hyper["num_total_samples"],
                **head_weights(case),
            )
            # The reference has a temperature for each region, `ld_terms` one for both.
            distilled, in_vlr = (
                losses.ld_terms(
                    logits,
                    edges,
                    rows(case, "soft_label", real),
                    rows(case, "soft_target", real),
                    labels,
                    real(case.inputs["vlr"].reshape(-1)),
                    label_weights=label_weights,
                    **distillation_weights(case, region),
                )
                for region in ("loss_ld", "loss_ld_vlr")
            )
            distilled |= {"ld_vlr": in_vlr["ld_vlr"]}
            terms = {name: term for name, term in head.items() if name != "weight"} | distilled
            return sum(terms.values()), terms

        (value, terms), (by_class, by_edge) = jax.value_and_grad(loss, (0, 1), has_aux=True)(
            rows(case, "cls_score", real), rows(case, "bbox_pred", real)
        )
        case.check(value, "out", "loss", precision)
        for ours, theirs in {
            "cls": "cls",
            "box": "bbox",
            "dfl": "dfl",
            "ld": "ld",
            "ld_vlr": "ld_vlr",
            "kd": "kd",
        }.items():
            case.check(terms[ours], "out", f"loss_{theirs}", precision)
        case.check(maps(by_class, case.inputs["cls_score"]), "grad", "cls_score", precision)
        case.check(maps(by_edge, case.inputs["bbox_pred"]), "grad", "bbox_pred", precision)


# --- what the formulas promise ---

N, K, C = 4, 6, 5
STUDENT, TEACHER, WEIGHTS = draw(70, N, 4, K), draw(71, N, 4, K), np.array([0.5, 0.0, 2.0, 1.0], np.float32)
CLS_STUDENT, CLS_TEACHER = draw(72, N, C), draw(73, N, C)
MASK = np.array([True, False, True, True])


@pytest.mark.parametrize("scale", [1.0, 1e4])
def test_ld_is_a_weighted_kd_divided_by_the_bins(scale):
    student, teacher = scale * STUDENT, scale * TEACHER
    value, gradient = jax.value_and_grad(ld)(
        student, teacher, WEIGHTS, temperature=10.0, loss_weight=0.25, avg_factor=16.0
    )
    each = reference.kd(student, teacher, 10.0).sum(-1)
    np.testing.assert_allclose(value, 0.25 / 16 / K * np.sum(WEIGHTS * each), rtol=2e-5)
    expected = 0.25 / 16 / K * WEIGHTS[:, None, None] * reference.kd_gradient(student, teacher, 10.0)
    np.testing.assert_allclose(gradient, expected, rtol=2e-4, atol=1e-7)


@pytest.mark.parametrize("scale", [1.0, 1e4])
def test_class_kd_is_the_mean_kd_of_the_chosen_divided_by_the_classes(scale):
    student, teacher = scale * CLS_STUDENT, scale * CLS_TEACHER
    value, gradient = jax.value_and_grad(dense_class_kd)(student, teacher, MASK, temperature=2.0, loss_weight=10.0)
    np.testing.assert_allclose(value, 10 / C * reference.kd(student, teacher, 2.0)[MASK].mean(), rtol=2e-5)
    expected = 10 / C / 3 * MASK[:, None] * reference.kd_gradient(student, teacher, 2.0)
    np.testing.assert_allclose(gradient, expected, rtol=2e-4, atol=1e-6)
    weighted = losses.dense_class_kd(student, teacher, WEIGHTS)
    by_hand = 10 / C * np.sum(WEIGHTS * reference.kd(student, teacher, 2.0)) / 3
    np.testing.assert_allclose(weighted, by_hand, rtol=2e-5)
    np.testing.assert_allclose(losses.dense_class_kd(student, teacher, MASK, avg_factor=6.0), value / 2, rtol=1e-5)


def test_defaults_are_those_of_the_main_region():
    stated = losses.ld(STUDENT, TEACHER, WEIGHTS, temperature=10.0, loss_weight=0.25, avg_factor=4.0)
    np.testing.assert_array_equal(losses.ld(STUDENT, TEACHER, WEIGHTS), stated)
    stated = losses.dense_class_kd(CLS_STUDENT, CLS_TEACHER, MASK, temperature=2.0, loss_weight=10.0)
    np.testing.assert_array_equal(losses.dense_class_kd(CLS_STUDENT, CLS_TEACHER, MASK), stated)


PAIRS = {
    "ld": (losses.ld, STUDENT, TEACHER, WEIGHTS),
    "dense_class_kd": (losses.dense_class_kd, CLS_STUDENT, CLS_TEACHER, MASK),
}
EACH = pytest.mark.parametrize("loss, student, teacher, weights", PAIRS.values(), ids=PAIRS)


@EACH
def test_only_the_student_learns_and_not_once_equal(loss, student, teacher, weights):
    real_weights = np.float32(weights)
    ours, theirs, by_weight = jax.grad(loss, argnums=(0, 1, 2))(student, teacher, real_weights)
    assert np.abs(ours).max() > 1e-4
    np.testing.assert_array_equal(theirs, 0)
    np.testing.assert_array_equal(by_weight, 0)
    value, gradient = jax.value_and_grad(loss)(teacher, teacher, weights)
    assert value == 0
    np.testing.assert_allclose(gradient, 0, atol=1e-6)


@EACH
def test_unweighted_locations_may_hold_anything(loss, student, teacher, weights):
    expected, gradient = jax.value_and_grad(loss)(student, teacher, weights)
    student, teacher = student.copy(), teacher.copy()
    student[1], teacher[1] = np.nan, np.inf
    value, spoilt = jax.value_and_grad(loss)(student, teacher, weights)
    np.testing.assert_array_equal(value, expected)
    np.testing.assert_array_equal(spoilt, gradient)
    np.testing.assert_array_equal(spoilt[1], 0)


@EACH
def test_no_location_gives_zero_and_an_image_is_one_of_a_batch(loss, student, teacher, weights):
    value, gradient = jax.value_and_grad(loss)(student, teacher, 0 * weights)
    assert value == 0
    np.testing.assert_array_equal(gradient, 0)
    batch = np.stack([student, teacher]), np.stack([teacher, student]), np.stack([weights, 0 * weights])
    expected = [loss(student, teacher, weights), 0]
    np.testing.assert_allclose(loss(*batch), expected, rtol=1e-6)
    np.testing.assert_allclose(jax.jit(jax.vmap(loss))(*batch), expected, rtol=1e-6)
    padded = [np.concatenate([x, np.ones_like(x)]) for x in (student, teacher)]
    np.testing.assert_allclose(loss(*padded, np.concatenate([weights, 0 * weights])), expected[0], rtol=1e-6)


@EACH
def test_excluded_bins_and_half_types(loss, student, teacher, weights):
    both, fewer = (student.copy(), teacher.copy()), (student[..., 1:], teacher[..., 1:])
    for array in both:
        array[..., 0] = -np.inf
    value, gradient = jax.value_and_grad(loss)(*both, weights)
    bins = student.shape[-1]
    np.testing.assert_allclose(value, loss(*fewer, weights) * (bins - 1) / bins, rtol=1e-5)
    assert np.isfinite(gradient).all()
    half = [jnp.asarray(x, jnp.bfloat16) for x in (student, teacher)]
    value = loss(*half, weights)
    assert value.dtype == jnp.float32
    np.testing.assert_array_equal(value, loss(*[x.astype(jnp.float32) for x in half], weights))


def test_five_edges_and_a_temperature_for_each():
    student, teacher = draw(74, N, 5, K), draw(75, N, 5, K)
    temperatures = np.array([10.0, 10.0, 10.0, 10.0, 2.0], np.float32)
    split = losses.ld(student[:, :4], teacher[:, :4], WEIGHTS) + losses.ld(
        student[:, 4:], teacher[:, 4:], WEIGHTS, temperature=2.0
    )
    np.testing.assert_allclose(losses.ld(student, teacher, WEIGHTS, temperature=temperatures), split, rtol=1e-5)


def test_ld_terms_by_hand():
    labels, vlr = np.array([C, 0, -1, 4]), np.array([0.2, 0.0, 0.0, 0.7], np.float32)
    terms = losses.ld_terms(CLS_STUDENT, STUDENT, CLS_TEACHER, TEACHER, labels, vlr, temperature=5.0)
    best = 1 / (1 + np.exp(-CLS_STUDENT.max(-1)))
    positive = np.array([False, True, False, True])
    expected = {
        "ld": losses.ld(STUDENT, TEACHER, np.where(positive, best, 0), temperature=5.0),
        "ld_vlr": losses.ld(STUDENT, TEACHER, vlr, temperature=5.0, avg_factor=16.0),
        "kd": losses.dense_class_kd(CLS_STUDENT, CLS_TEACHER, positive),
    }
    assert terms.keys() == expected.keys()
    for name, term in terms.items():
        np.testing.assert_allclose(term, expected[name], rtol=1e-5, err_msg=name)


def test_refuses_what_does_not_fit():
    with pytest.raises(ValueError, match=r"teacher_logits has 5 classes, student_logits 6"):
        losses.ld(STUDENT, TEACHER[..., :5], WEIGHTS)
    with pytest.raises(ValueError, match=r"weights has shape \(3,\); it must be \(4,\)"):
        losses.ld(STUDENT, TEACHER, WEIGHTS[:3])
    with pytest.raises(ValueError, match=r"student_edge_logits has shape \(4, 6\); it must be"):
        losses.ld(STUDENT[0], TEACHER[0], np.float32(1))
    with pytest.raises(ValueError, match=r"student_cls has shape \(5,\)"):
        losses.dense_class_kd(CLS_STUDENT[0], CLS_TEACHER[0], True)
    with pytest.raises(ValueError, match="temperature is 0"):
        losses.dense_class_kd(CLS_STUDENT, CLS_TEACHER, MASK, temperature=0)

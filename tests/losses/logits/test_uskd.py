"""uskd against the numbers of the released code, its formula in NumPy, and at its edges."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdjax.losses.logits.self_distillation import uskd
from tests.golden_cases import cases
from tests.losses import numpy_reference as reference
from tests.losses.computing import compiled, computing_in, draw

uskd = compiled(uskd)

PRECISIONS = pytest.mark.parametrize("precision", ["f64", "f32"])
STUDENT, WEAK = draw(90, 6, 5), draw(91, 6, 5)
LABELS = np.array([0, 1, 2, 3, 4, 2])
MIXED = np.zeros((6, 5), np.float32)
MIXED[np.arange(6), LABELS] = 0.7
MIXED[np.arange(6), (LABELS + 2) % 5] += 0.3
MIXED[3] = np.eye(5)[1]  # both images of one class
WEIGHTS = {"alpha": 2.0, "beta": 0.5, "mu": 0.3}


# --- the formula in NumPy ---


def label_lists(labels):
    """For each row its labels and their masses, the larger first."""
    if np.ndim(labels) == 1:
        return [([y], [1.0]) for y in labels]
    order = np.argsort(-labels, axis=1, kind="stable")[:, :2]
    return [
        ([c for c in o if row[c] > 0], [row[c] for c in o if row[c] > 0]) for o, row in zip(order, labels, strict=True)
    ]


def terms(student, weak, labels, *, alpha, beta, mu, official):
    """`[B]` values, and the gradients of their mean by student and weak logits."""
    log_p, log_w = reference.log_softmax(student), reference.log_softmax(weak)
    p, w = np.exp(log_p), np.exp(log_w)
    size, classes = p.shape
    rows = label_lists(labels)
    squares = [[p[i, ys[k]] ** 2 for i, (ys, _) in enumerate(rows) if len(ys) > k] for k in range(2)]
    values, by_student, by_weak = np.zeros(size), np.zeros_like(p), np.zeros_like(w)
    for i, (ys, masses) in enumerate(rows):
        for k, (y, mass) in enumerate(zip(ys, masses, strict=True)):
            trust = p[i, y] ** 2 + mass - np.mean(squares[k])
            values[i] -= alpha * trust * log_p[i, y]
            by_student[i] -= alpha * trust * ((np.arange(classes) == y) - p[i])
        others = [c for c in range(classes) if c not in ys]
        sure = log_p[i] / (1 - log_p[i, ys].sum() + 1e-6) if official else p[i] / (p[i, others].sum() + 1e-6)
        score = w[i] / (w[i, others].sum() + 1e-6) + sure
        rank = np.argsort(np.argsort(-score, kind="stable"), kind="stable") + 1
        zipf = (1 / rank[others]) / np.sum(1 / rank[others])
        log_q = reference.log_softmax(student[i, others])
        values[i] -= beta * np.sum(zipf * log_q)
        by_student[i, others] += beta * (np.exp(log_q) - zipf)
        smooth = 0.1 / classes + 0.9 * (np.eye(classes)[ys[0]] if np.ndim(labels) == 1 else labels[i])
        values[i] -= mu * np.sum(smooth * log_w[i])
        by_weak[i] += mu * (smooth.sum() * w[i] - smooth)
    return values, by_student / size, by_weak / size


@jax.jit
def compiled(student, weak, labels, weights):
    def mean(student, weak):
        values = uskd(student, weak, labels, **weights)
        return jnp.mean(values), values

    return jax.value_and_grad(mean, argnums=(0, 1), has_aux=True)(student, weak)


# --- released code ---


@jax.jit
def from_feature(student, feature, kernel, bias, labels, hyper):
    def mean(student, feature, kernel, bias):
        weak = jnp.matmul(feature, kernel.T, precision="highest") + bias[None]
        return jnp.mean(uskd(student, weak, labels, **hyper))

    return jax.value_and_grad(mean, argnums=(0, 1, 2, 3))(student, feature, kernel, bias)


@PRECISIONS
@pytest.mark.parametrize("case", cases("uskd"), ids=repr)
def test_uskd_golden(case, precision):
    with computing_in(precision) as real:
        labels = case.inputs["label"]
        labels = real(labels) if labels.ndim == 2 else labels
        arrays = [real(x) for x in (case.inputs["student"], case.inputs["feat"])]
        params = [real(case.params[name]) for name in ("fc.weight", "fc.bias")]
        value, gradients = from_feature(*arrays, *params, labels, case.hyper)
        case.check(value, "out", "loss", precision)
        for kind, name, gradient in zip(
            ("grad", "grad", "gparam", "gparam"), ("student", "feat", "fc.weight", "fc.bias"), gradients, strict=True
        ):
            case.check(gradient, kind, name, precision)


# --- the formula ---


@PRECISIONS
@pytest.mark.parametrize("official", [True, False])
@pytest.mark.parametrize("labels", [LABELS, MIXED], ids=["classes", "mixtures"])
@pytest.mark.parametrize("scale", [3.0, 1e4])
def test_uskd_is_its_formula_up_to_logits_of_ten_thousand(labels, official, scale, precision):
    student, weak = draw(92, 6, 5, scale=scale), draw(93, 6, 5, scale=scale)
    with computing_in(precision) as real:

        def mean(student, weak):
            values = uskd(student, weak, labels, **WEIGHTS, official=official)
            return jnp.mean(values), values

        (_, values), gradients = jax.value_and_grad(mean, argnums=(0, 1), has_aux=True)(real(student), real(weak))
        expected, *slopes = terms(student, weak, labels, **WEIGHTS, official=official)
        tolerance = {"rtol": 1e-6, "atol": 1e-7} if precision == "f64" else {"rtol": 5e-5, "atol": 2e-6}
        np.testing.assert_allclose(values, expected, **tolerance)
        np.testing.assert_allclose(gradients[0], slopes[0], **tolerance)
        np.testing.assert_allclose(gradients[1], slopes[1], **tolerance)


def test_the_ranking_tells_probabilities_from_their_logarithms():
    found, clean = (uskd(STUDENT, WEAK, LABELS, official=official) for official in (True, False))
    assert np.abs(found - clean).max() > 1e-3


def test_a_one_hot_mixture_is_its_label():
    labels = np.eye(5, dtype=np.float32)[LABELS]
    np.testing.assert_allclose(uskd(STUDENT, WEAK, labels), uskd(STUDENT, WEAK, LABELS), rtol=1e-6)


def test_the_weights_of_the_labels_average_to_one():
    """With alike -log p(y) the first term is that, whatever the batch."""
    student = np.tile(STUDENT[:1], (6, 1))
    values = uskd(student, WEAK, np.zeros(6, int), beta=0.0, mu=0.0)
    np.testing.assert_allclose(values, -reference.log_softmax(student)[:, 0], rtol=1e-5)


def test_a_label_that_the_student_knows_weighs_more():
    student = jnp.array([[5.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
    p = reference.softmax(np.asarray(student))[:, 0]
    values = uskd(student, student, jnp.array([0, 0]), beta=0.0, mu=0.0)
    weights = 1 + p**2 - np.mean(p**2)
    assert weights[0] > 1.3 > 0.7 > weights[1]
    np.testing.assert_allclose(values, -weights * np.log(p), rtol=1e-5)


def test_zipf_by_hand():
    """The weak head ranks the classes 2, 0, 1, 3; the student has no opinion. Zipf's 1, 1/3, 1/4 are normalised."""
    weak = jnp.array([[2.0, 1.0, 3.0, 0.0]])
    student = jnp.zeros((1, 4))
    _, pull = jax.vjp(lambda s: uskd(s, weak, jnp.array([0]), alpha=0.0, beta=1.0, mu=0.0), student)
    zipf = np.array([1 / 3, 1, 1 / 4]) / (1 + 1 / 3 + 1 / 4)
    np.testing.assert_allclose(pull(jnp.ones(1))[0], [[0, *(1 / 3 - zipf)]], atol=1e-6)


def test_the_weak_head_learns_only_the_smoothed_label():
    def total(weak):
        return jnp.sum(uskd(STUDENT, weak, LABELS, mu=2.0))

    smooth = 0.9 * np.eye(5)[LABELS] + 0.02
    np.testing.assert_allclose(jax.grad(total)(WEAK), 2 * (reference.softmax(WEAK) - smooth), rtol=1e-4, atol=1e-6)


def test_weights_may_differ_by_example():
    beta = np.linspace(0, 1, 6, dtype=np.float32)
    values = uskd(STUDENT, WEAK, LABELS, beta=beta)
    none, all_ = (uskd(STUDENT, WEAK, LABELS, beta=b) for b in (0.0, 1.0))
    np.testing.assert_allclose(values, none + beta * (all_ - none), rtol=1e-5)


# --- edges ---


@pytest.mark.parametrize("label", [-1, 5])
def test_a_label_that_is_no_class_gives_nan_and_is_in_nobodys_mean(label):
    labels = LABELS.copy()
    labels[2] = label
    values, pull = jax.vjp(lambda s: uskd(s, WEAK, labels), STUDENT)
    assert np.isnan(values[2])
    others = np.arange(6) != 2
    np.testing.assert_allclose(values[others], uskd(STUDENT[others], WEAK[others], LABELS[others]), rtol=1e-5)
    gradient = pull(jnp.where(jnp.isnan(values), 0.0, 1.0))[0]
    assert np.isfinite(gradient).all()
    np.testing.assert_array_equal(gradient[2], 0)
    where = np.arange(6) != 2
    masked = uskd(STUDENT, WEAK, labels, where=where)
    assert masked[2] == 0
    np.testing.assert_allclose(masked[others], values[others], rtol=1e-5)


def test_a_mixture_of_nothing_is_nan():
    labels = MIXED.copy()
    labels[2] = 0
    values = uskd(STUDENT, WEAK, labels)
    np.testing.assert_array_equal(np.isnan(values), np.arange(6) == 2)


def test_one_class_and_two():
    values, pull = jax.vjp(lambda s: uskd(s, WEAK[:, :1], LABELS * 0), STUDENT[:, :1])
    np.testing.assert_array_equal(values, 0)
    np.testing.assert_array_equal(pull(jnp.ones(6))[0], 0)
    mixed = uskd(STUDENT[:, :1], WEAK[:, :1], np.ones((6, 1), np.float32))
    np.testing.assert_array_equal(mixed, 0)
    two = uskd(STUDENT[:, :2], WEAK[:, :2], LABELS % 2, beta=7.0)
    expected, *_ = terms(STUDENT[:, :2], WEAK[:, :2], LABELS % 2, alpha=1.0, beta=0.0, mu=0.005, official=True)
    np.testing.assert_allclose(two, expected, rtol=1e-5)


def test_classes_that_are_excluded():
    student, weak = STUDENT.copy(), WEAK.copy()
    student[1, 3] = weak[2, 3] = -np.inf
    (_, values), gradients = compiled(jnp.asarray(student), jnp.asarray(weak), LABELS, WEIGHTS)
    np.testing.assert_array_equal(np.isinf(values), [False, True, True, False, False, False])
    assert not np.isnan(values).any()
    assert all(np.isfinite(gradient).all() for gradient in gradients)


def test_equal_scores_rank_in_the_order_of_classes():
    flat = jnp.zeros((1, 4))
    value = uskd(flat, flat, jnp.array([3]), alpha=0.0, beta=1.0, mu=0.0)
    np.testing.assert_allclose(value, np.log(3), rtol=1e-6)
    _, pull = jax.vjp(lambda s: uskd(s, flat, jnp.array([3]), alpha=0.0, beta=1.0, mu=0.0), flat)
    zipf = np.array([1, 1 / 2, 1 / 3]) / (11 / 6)
    np.testing.assert_allclose(pull(jnp.ones(1))[0], [[*(1 / 3 - zipf), 0]], atol=1e-6)


@pytest.mark.parametrize("lead", [0.0632, 0.0652])
def test_a_sure_weak_head_is_ranked_as_in_exact_arithmetic(lead):
    """1 - w(y) is 9e-8, which float32 cannot tell from 6e-8 or 12e-8; it decides by how much class 1 is ahead."""
    weak = np.log(np.float32([[1.0, 8e-8, 1e-8]]))
    ahead = (8e-8 - 1e-8) / (9e-8 + 1e-6)
    assert 0.0632 < ahead < 0.0652
    student = np.log(np.float32([[1.0, 0.5 - lead / 2, 0.5 + lead / 2]]))  # class 2 is ahead by so much
    found = uskd(student, weak, np.array([0]), **WEIGHTS, official=False)
    expected, *_ = terms(student, weak, np.array([0]), **WEIGHTS, official=False)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_refuses_what_does_not_fit():
    with pytest.raises(ValueError, match="weak_logits has 4 classes, student_logits 5"):
        uskd(STUDENT, WEAK[:, :4], LABELS)
    with pytest.raises(ValueError, match=r"labels of probabilities have shape \(6,\)"):
        uskd(STUDENT, WEAK, LABELS.astype(np.float32))
    with pytest.raises(ValueError, match=r"labels has shape \(5,\)"):
        uskd(STUDENT, WEAK, LABELS[:5])
    with pytest.raises(TypeError, match="labels must be integer"):
        uskd(STUDENT, WEAK, LABELS > 0)
    with pytest.raises(ValueError, match="one row an example"):
        uskd(STUDENT[0], WEAK[0], LABELS[0])
    with pytest.raises(ValueError, match=r"mu has shape \(3,\), which does not broadcast"):
        uskd(STUDENT, WEAK, LABELS, mu=np.ones(3))

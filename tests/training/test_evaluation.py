"""Metrics against NumPy, exact over a last partial batch, on one device and on eight.

The networks here hand on logits that the batch brings along, so that every number is chosen.
"""

import jax
import numpy as np
import pytest

from kdjax.models import from_apply
from kdjax.training import Variables, make_runner
from kdjax.training.evaluation import evaluate, make_evaluation
from kdjax.types import Batch

CLASSES, ROWS, BATCH = 7, 37, 16
STUDENT = from_apply(lambda params, x: x["student"], {})
TEACHER = from_apply(lambda params, x: x["teacher"], {})
NOTHING = Variables({}, {})
FORMS = {"jit 1": ("jit", 1), "jit 8": ("jit", 8), "pmap": ("pmap", 8)}


def draw():
    rng = np.random.default_rng(0)
    student, teacher = (3 * rng.standard_normal((2, ROWS, CLASSES))).astype(np.float32)
    return student, teacher, rng.integers(0, CLASSES, ROWS).astype(np.int32)


def padded_batches(student, teacher, labels):
    """Batches of equal size; rows that do not exist hold nan."""
    for begin in range(0, len(labels), BATCH):
        count = min(BATCH, len(labels) - begin)

        def filled(x, fill, begin=begin, count=count):
            rows = np.full((BATCH, *x.shape[1:]), fill, x.dtype)
            rows[:count] = x[begin : begin + count]
            return rows

        where = np.arange(BATCH) < count
        inputs = {"student": filled(student, np.nan), "teacher": filled(teacher, np.nan)}
        # That a label may not be used for training does not keep it from being evaluated.
        yield Batch(inputs, filled(labels, 0), np.arange(BATCH, dtype=np.int32), where, np.zeros(BATCH, bool))


def run(form, student, teacher, labels, with_teacher=True):
    kind, devices = FORMS[form]
    runner = make_runner(kind, jax.devices()[:devices])
    function, traces = make_evaluation(STUDENT, TEACHER if with_teacher else None, axis=runner.axis), []

    def counted(*args):
        traces.append(form)
        return function(*args)

    compiled = runner.compile(counted, donate=False)
    batches = (runner.place_batch(batch) for batch in padded_batches(student, teacher, labels))
    results = evaluate(compiled, NOTHING, NOTHING if with_teacher else None, batches)
    assert len(traces) == 1, "a partial batch is compiled anew"
    return results


def softmax(logits):
    z = np.float64(logits)
    e = np.exp(z - z.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


def calibration_error(probabilities, labels, bins=15):
    """Guo et al. 2017, a loop over bins `(low, high]` of equal width."""
    confidence, hit = probabilities.max(1), probabilities.argmax(1) == labels
    error = 0.0
    for low, high in zip(np.linspace(0, 1, bins + 1)[:-1], np.linspace(0, 1, bins + 1)[1:], strict=True):
        inside = (confidence > low) & (confidence <= high)
        if inside.any():
            error += inside.mean() * abs(hit[inside].mean() - confidence[inside].mean())
    return error


def expected_metrics(logits, labels):
    p = softmax(logits)
    best_five = np.argsort(-logits, axis=1)[:, :5]
    return {
        "top1": np.mean(logits.argmax(1) == labels),
        "top5": np.mean(np.any(best_five == labels[:, None], axis=1)),
        "nll": np.mean(-np.log(p[np.arange(len(labels)), labels])),
        "ece": calibration_error(p, labels),
    }


@pytest.mark.parametrize("form", FORMS)
def test_metrics_equal_numpy_over_a_partial_batch(form):
    student, teacher, labels = draw()
    found = run(form, student, teacher, labels)
    p_s, p_t = softmax(student), softmax(teacher)
    expected = {"student": expected_metrics(student, labels), "teacher": expected_metrics(teacher, labels)}
    expected["student"]["agreement"] = np.mean(student.argmax(1) == teacher.argmax(1))
    expected["student"]["teacher_kl"] = np.mean(np.sum(p_t * (np.log(p_t) - np.log(p_s)), axis=1))
    assert set(found) == {"student", "teacher"}
    for role, metrics in expected.items():
        assert set(found[role]) == set(metrics)
        assert all(type(value) is float for value in found[role].values())
        for name, value in metrics.items():
            assert value > 0.0, f"{name} is no test"
            np.testing.assert_allclose(found[role][name], value, rtol=2e-6, err_msg=f"{role} {name}")


def test_without_a_teacher():
    student, teacher, labels = draw()
    found = run("jit 1", student, teacher, labels, with_teacher=False)
    assert set(found) == {"student"} and set(found["student"]) == {"top1", "top5", "nll", "ece"}


def test_calibration_error_by_hand():
    """Two sure and right, two sure of 0.75 of which one is wrong: half the examples are off by a quarter."""
    sure, three_quarters = np.array([30.0, 0.0]), np.log([3.0, 1.0])
    student = np.array([sure, sure, three_quarters, three_quarters], np.float32)
    found = run("jit 1", student, student, np.array([0, 0, 0, 1], np.int32))["student"]
    np.testing.assert_allclose(found["ece"], 0.5 * 0.25, rtol=1e-6)
    assert found["top1"] == 0.75 and found["agreement"] == 1.0
    np.testing.assert_allclose(found["teacher_kl"], 0.0, atol=1e-7)


def test_five_classes_or_fewer_have_no_top5():
    logits, labels = np.eye(5, dtype=np.float32), np.arange(5, dtype=np.int32)
    assert "top5" not in run("jit 1", logits, logits, labels)["student"]


def test_of_classes_that_tie_the_first_come_first():
    """So that a network which says nothing scores by chance, not 100 %."""
    logits, labels = np.zeros((CLASSES, CLASSES), np.float32), np.arange(CLASSES, dtype=np.int32)
    found = run("jit 1", logits, logits, labels)["student"]
    np.testing.assert_allclose((found["top1"], found["top5"]), (1 / 7, 5 / 7), rtol=1e-6)


def test_a_network_that_says_nan_is_right_in_nothing_but_class_zero():
    logits, labels = np.full((4, CLASSES), np.nan, np.float32), np.array([1, 2, 5, 6], np.int32)
    found = run("jit 1", logits, logits, labels)["student"]
    assert found["top1"] == found["top5"] == 0.0
    assert np.isnan(found["nll"])


def test_views_are_applied_to_the_inputs():
    function = make_evaluation(STUDENT, None, views=lambda x: {"student": -x["student"]})
    logits = np.array([[1.0, 0.0], [1.0, 0.0]], np.float32)
    sums = function(NOTHING, None, Batch.of({"student": logits}, np.array([1, 1])))
    assert sums["student"]["top1"] == 2.0 and sums["student"]["count"] == 2.0


def test_an_empty_split_is_refused():
    with pytest.raises(ValueError, match="nothing to evaluate: the split is empty"):
        evaluate(lambda *args: None, NOTHING, None, [])
    logits = np.zeros((2, CLASSES), np.float32)
    nobody = Batch.of({"student": logits}, np.zeros(2, np.int32), where=np.zeros(2, bool))
    with pytest.raises(ValueError, match="nothing to evaluate: the split is empty"):
        evaluate(make_evaluation(STUDENT, None), NOTHING, None, [nobody])


def test_tokens_are_evaluated_where_they_exist_and_have_a_label():
    """Logits `[B, L, C]`: means over the tokens that count, in one batch as over several, padding and prompts left out."""
    rng = np.random.default_rng(3)
    student, teacher = rng.standard_normal((2, 4, 6, CLASSES)).astype(np.float32)
    labels = rng.integers(0, CLASSES, (4, 6)).astype(np.int32)
    elements = np.arange(6)[None] < np.array([6, 2, 5, 1])[:, None]
    prompt = np.arange(6)[None] < np.array([2, 1, 0, 0])[:, None]
    where = np.array([True, True, True, False])
    counted = where[:, None] & elements & ~prompt
    batch = Batch.of(
        {"student": student, "teacher": teacher}, np.where(counted, labels, -100), where=where, elements=elements,
        labelled_elements=~prompt,
    )  # fmt: skip
    found = evaluate(jax.jit(make_evaluation(STUDENT, TEACHER)), NOTHING, NOTHING, [batch])
    for role, logits in (("student", student), ("teacher", teacher)):
        expected = expected_metrics(logits[counted], labels[counted])
        np.testing.assert_allclose([found[role][name] for name in expected], list(expected.values()), rtol=1e-5)
    agreement = np.mean(student[counted].argmax(-1) == teacher[counted].argmax(-1))
    np.testing.assert_allclose(found["student"]["agreement"], agreement, rtol=1e-6)


def test_labels_of_another_shape_are_refused():
    logits = np.zeros((4, 6, CLASSES), np.float32)
    with pytest.raises(ValueError, match=r"labels has shape \(4,\), student_logits leading axes \(4, 6\)"):
        make_evaluation(STUDENT, None)(NOTHING, None, Batch.of({"student": logits}, np.zeros(4, np.int32)))

"""Which rows and labels each objective uses, and that its hyperparameters reach the loss."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdjax import losses
from kdjax.objectives import (
    DKD,
    KD,
    SP,
    ConfidencePenalty,
    CrossEntropy,
    FitNet,
    HardLabel,
    LabelSmoothing,
    LogitMSE,
    RandomTeacher,
    bind,
)
from kdjax.schedules import Linear, steps
from kdjax.types import Batch, Clock, Context, DataInfo, Mixed, ModelOutput
from tests.tracing import traced_once

rng = np.random.default_rng(0)
STUDENT, TEACHER = (3 * rng.standard_normal((2, 6, 5))).astype(np.float32)
FEATURES = rng.standard_normal((2, 6, 2, 2, 3)).astype(np.float32)
LABELS = np.array([0, 3, 1, 4, 2, 2], np.int32)
WHERE = np.array([True, True, True, True, False, True])
LABELLED = np.array([True, False, True, False, True, True])
CLOCK = Clock(total_steps=10)


def context(step=0, **changes):
    """Row 4 is missing; rows 1 and 3 may not show their labels."""
    batch = Batch.of(jnp.zeros((6, 1)), LABELS, where=WHERE, labelled=LABELLED)
    return Context(
        student=ModelOutput(logits=jnp.asarray(STUDENT), features=(jnp.asarray(FEATURES[0]),)),
        teacher=ModelOutput(logits=jnp.asarray(TEACHER), features=(jnp.asarray(FEATURES[1]),)),
        batch=dataclasses.replace(batch, **changes),
        progress=CLOCK.at(step),
    )


def mean(term):
    return float(term.sum / term.count)


def gradient_rows(objective, ctx):
    """Which rows of the student's logits a term sends a gradient to."""

    def loss(logits):
        return objective.terms(None, dataclasses.replace(ctx, student=ModelOutput(logits=logits))).sum

    return np.any(np.asarray(jax.grad(loss)(ctx.student.logits)) != 0, axis=1)


BOTH = WHERE & LABELLED
ROWS = {
    "cross-entropy": (CrossEntropy(), BOTH),
    "smoothed": (LabelSmoothing(), BOTH),
    "confidence": (ConfidencePenalty(), WHERE),
    "kd": (KD(), WHERE),
    "mse": (LogitMSE(), WHERE),
    "pseudo-labels": (HardLabel(), WHERE),
    "dkd, teacher's class": (DKD(), WHERE),
    "dkd, labelled rows": (DKD(unlabelled="skip"), BOTH),
}


@pytest.mark.parametrize("name", ROWS)
def test_which_rows_count(name):
    objective, rows = ROWS[name]
    assert objective.terms(None, context()).count == rows.sum()
    np.testing.assert_array_equal(gradient_rows(objective, context()), rows)


@pytest.mark.parametrize("name", ROWS)
@pytest.mark.parametrize("number", [0, 3, -1, 99])
def test_labels_that_may_not_be_used_are_never_read(name, number):
    """Nor those of rows that do not exist, even where they are no class at all."""
    objective, _ = ROWS[name]
    other = context(targets=jnp.where(BOTH, LABELS, number))
    assert objective.terms(None, other).sum == objective.terms(None, context()).sum
    np.testing.assert_array_equal(gradient_rows(objective, other), gradient_rows(objective, context()))


def test_cross_entropy_is_the_mean_over_labelled_rows():
    p = np.exp(np.float64(STUDENT)) / np.exp(np.float64(STUDENT)).sum(1, keepdims=True)
    expected = np.mean([-np.log(p[row, LABELS[row]]) for row in (0, 2, 5)])
    np.testing.assert_allclose(mean(CrossEntropy().terms(None, context())), expected, rtol=1e-6)


def test_dkd_of_unlabelled_rows_takes_the_teachers_class():
    """Row by row: labelled ones by their label, others by the teacher's most likely class; or only the labelled ones."""
    labels = np.where(LABELLED, LABELS, TEACHER.argmax(1))
    assert np.any(labels != LABELS)
    values = losses.dkd(STUDENT, TEACHER, labels=labels, alpha=1.0, beta=8.0, temperature=4.0)
    np.testing.assert_allclose(mean(DKD().terms(None, context())), values[WHERE].mean(), rtol=1e-6)
    skipping = DKD(unlabelled="skip").terms(None, context())
    np.testing.assert_allclose(mean(skipping), values[BOTH].mean(), rtol=1e-6)


def test_dkd_is_the_same_both_ways_when_all_is_labelled():
    ctx = context(labelled=jnp.ones(6, bool))
    assert DKD(unlabelled="skip").terms(None, ctx).sum == DKD(unlabelled="teacher").terms(None, ctx).sum


HYPER = {
    "kd": (KD(temperature=2.0), losses.kd(STUDENT, TEACHER, temperature=2.0), WHERE),
    "mse": (LogitMSE(center=True), losses.logit_mse(STUDENT, TEACHER, center=True), WHERE),
    "pseudo-labels": (HardLabel(), losses.hard_label(STUDENT, TEACHER), WHERE),
    "dkd": (
        DKD(alpha=0.5, beta=2.0, temperature=3.0, unlabelled="skip"),
        losses.dkd(STUDENT, TEACHER, labels=LABELS, alpha=0.5, beta=2.0, temperature=3.0),
        BOTH,
    ),
    "smoothed": (
        LabelSmoothing(smoothing=0.3, over_all_classes=False),
        losses.label_smoothing_xent(STUDENT, labels=LABELS, smoothing=0.3, over_all_classes=False),
        BOTH,
    ),
    "confidence": (ConfidencePenalty(beta=0.7), losses.confidence_penalty(STUDENT, beta=0.7), WHERE),
}


@pytest.mark.parametrize("name", HYPER)
def test_hyperparameters_reach_the_loss(name):
    objective, values, rows = HYPER[name]
    np.testing.assert_allclose(mean(objective.terms(None, context())), values[rows].mean(), rtol=1e-6)
    usual = dataclasses.replace(
        objective,
        **{f.name: f.default for f in dataclasses.fields(objective) if f.name not in ("weight", "unlabelled")},
    )
    if usual != objective:
        assert abs(mean(usual.terms(None, context())) - values[rows].mean()) > 1e-3


ramp = Linear(1.0, 3.0, steps(4))
SCHEDULED = {
    "kd": (KD(temperature=ramp), KD(temperature=2.0)),
    "dkd": (DKD(alpha=ramp, beta=ramp, temperature=ramp), DKD(alpha=2.0, beta=2.0, temperature=2.0)),
    "smoothed": (LabelSmoothing(smoothing=0.1 * ramp), LabelSmoothing(smoothing=0.2)),
    "confidence": (ConfidencePenalty(beta=ramp), ConfidencePenalty(beta=2.0)),
}


@pytest.mark.parametrize("name", SCHEDULED)
def test_hyperparameters_may_be_schedules(name):
    """Half way up a ramp from 1 to 3 they are 2, in a compiled function of the step."""
    scheduled, fixed = SCHEDULED[name]
    value = traced_once(lambda step: scheduled.terms(None, context(step)).sum)
    np.testing.assert_allclose(value(2), fixed.terms(None, context()).sum, rtol=1e-5)
    assert abs(value(0) - value(2)) > 1e-3


def test_feature_objectives_leave_missing_rows_out():
    ctx = context()
    hint = FitNet(stage=0).terms(lambda x: 2 * x, ctx)
    expected = np.mean((2 * FEATURES[0] - FEATURES[1])[WHERE] ** 2)
    np.testing.assert_allclose(mean(hint), expected, rtol=1e-6)
    rows = np.flatnonzero(WHERE)
    fewer = losses.sp(FEATURES[0][rows], FEATURES[1][rows])
    np.testing.assert_allclose(mean(SP().terms(None, ctx)), fewer.mean(), rtol=1e-6)


def test_feature_objectives_read_the_stage_they_are_told():
    other = jnp.zeros((6, 1, 1, 3))
    ctx = context()
    first, last = (
        ModelOutput(features=pair) for pair in ((ctx.student.features[0], other), (other, ctx.student.features[0]))
    )
    near, far = (
        ModelOutput(features=pair) for pair in ((ctx.teacher.features[0], other), (other, ctx.teacher.features[0]))
    )
    for objective, module in ((SP, None), (FitNet, lambda x: x)):
        for stage, student, teacher in ((0, first, near), (1, last, far), (-1, last, far)):
            there = dataclasses.replace(ctx, student=student, teacher=teacher)
            expected = objective(stage=0).terms(module, ctx).sum
            assert objective(stage=stage).terms(module, there).sum == expected != 0


def test_class_weights_count_examples_by_their_class():
    """Hard, soft and mixed labels, by hand; the mean is over the rows."""
    rng = np.random.default_rng(0)
    logits, labels, weights = rng.normal(size=(6, 3)), np.array([0, 1, 2, 2, 1, 0]), np.array([0.5, 2.0, 0.0])
    log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    one, two = np.eye(3)[labels], np.eye(3)[labels[::-1]]
    soft, share = rng.dirichlet(np.ones(3), 6), rng.random(6)
    cases = {
        "hard": (labels, one),
        "soft": (soft, soft),
        "mixed": (Mixed(jnp.asarray(labels), jnp.asarray(labels[::-1].copy()), jnp.asarray(share)),
                  share[:, None] * one + (1 - share[:, None]) * two),
    }  # fmt: skip
    output = ModelOutput(logits=jnp.asarray(logits, jnp.float32))
    for name, (given, q) in cases.items():
        batch = dataclasses.replace(Batch.of(output.logits, labels), targets=given)
        term = CrossEntropy(class_weights=tuple(weights)).terms(None, Context(output, None, batch, Clock().at(0)))
        np.testing.assert_allclose(
            term.sum / term.count, -(q * weights * log_p).sum(-1).mean(), rtol=1e-5, err_msg=name
        )
    with pytest.raises(ValueError, match="2 class_weights and the data 3 classes; give one a class"):
        bind(CrossEntropy(class_weights=(1.0, 2.0)), output, None, DataInfo(3))
    with pytest.raises(ValueError, match="none may be negative"):
        bind(CrossEntropy(class_weights=(1.0, 2.0, -1.0)), output, None, DataInfo(3))


@pytest.mark.parametrize("value", [-1, 0.0, float("nan"), float("inf")])
def test_a_temperature_that_cannot_be_is_refused_before_anything_is_trained(value):
    with pytest.raises(ValueError, match=r"KD\.temperature is .*; it (must be finite|divides logits)"):
        KD(temperature=value)
    if not np.isfinite(value):
        with pytest.raises(ValueError, match=r"RandomTeacher\.weight is .*; it must be finite"):
            RandomTeacher(weight=value)

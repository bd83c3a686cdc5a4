"""swap_logits, rc and label_revision against the numbers of the original implementations, values and gradients."""

import jax.numpy as jnp
import numpy as np
import pytest

from kdjax.losses import kd
from kdjax.losses.logits.correction import label_revision, rc, swap_logits
from tests.golden_cases import cases
from tests.losses.computing import compiled, computing_in, mean_and_gradient

kd, label_revision, rc, swap_logits = map(compiled, (kd, label_revision, rc, swap_logits))

PRECISIONS = pytest.mark.parametrize("precision", ["f64", "f32"])


def standardised(logits):
    """Rows less their mean, over their unbiased standard deviation: what the released code calls `logit_stand`."""
    deviation = jnp.std(logits, axis=-1, ddof=1, keepdims=True)
    return (logits - jnp.mean(logits, axis=-1, keepdims=True)) / (1e-7 + deviation)


def kd_of_swapped(student, teacher, labels, **hyper):
    return kd(student, swap_logits(teacher, labels), **hyper)


def kd_of_swapped_and_standardised(student, teacher, labels, **hyper):
    return kd(standardised(student), standardised(swap_logits(teacher, labels)), **hyper)


def rc_of_standardised(student, teacher, labels, **hyper):
    return rc(standardised(student), None, labels, **hyper)


LOSSES = {
    ("swap + kd_loss", False): kd_of_swapped,
    ("swap + kd_loss", True): kd_of_swapped_and_standardised,
    ("rc_loss", False): rc,
    ("rc_loss", True): rc_of_standardised,
    ("revision_loss", False): label_revision,
}


@PRECISIONS
@pytest.mark.parametrize("case", cases("rld_baselines"), ids=repr)
def test_corrections_golden(case, precision):
    hyper = dict(case.hyper)
    loss = LOSSES[case.symbol, hyper.pop("logit_stand", False)]
    with computing_in(precision) as real:
        student = real(case.inputs["student"])
        teacher = real(case.inputs["teacher"]) if "teacher" in case.inputs else None
        value, gradient = mean_and_gradient(loss, student, teacher, case.inputs["label"], **hyper)
        if not case.finite["f64"]:
            assert np.isfinite(value) and np.isfinite(gradient).all()
            return
        case.check(value, "out", "loss", precision)
        case.check(gradient, "grad", "student", precision)


def test_both_groups_are_in_the_cases():
    """The group means are compared only if the teacher is right on some rows and wrong on others."""
    shares = [
        np.mean(c.inputs["teacher"].argmax(-1) == c.inputs["label"])
        for c in cases("rld_baselines", symbol="revision_loss")
    ]
    assert min(shares) == 0 and max(shares) == 1 and any(0 < share < 1 for share in shares)

"""Distillation losses: pure functions from arrays to one value per example.

Student first, teacher second, the rest by keyword; classes on the last axis. Nothing is averaged here.
"""

from kdjax.losses.feature import fitnet
from kdjax.losses.logit import dkd, dkd_parts, hard_label, kd, logit_mse
from kdjax.losses.regularization import (
    confidence_penalty,
    cross_entropy,
    cross_entropy_with_targets,
    label_smoothing,
    predictive_entropy,
    skew_jensen,
)
from kdjax.losses.relational import sp

__all__ = [
    "confidence_penalty",
    "cross_entropy",
    "cross_entropy_with_targets",
    "dkd",
    "dkd_parts",
    "fitnet",
    "hard_label",
    "kd",
    "label_smoothing",
    "logit_mse",
    "predictive_entropy",
    "skew_jensen",
    "sp",
]

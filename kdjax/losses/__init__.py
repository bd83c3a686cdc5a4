"""Distillation losses: pure functions from arrays to one value per example.

Student first, teacher second, the rest by keyword; classes on the last axis. Nothing is averaged here.
"""

from kdjax.losses.binary import binary_kl, binary_kl_norm
from kdjax.losses.correction import kd_from_probs, label_revision, loca_calibrate, loca_logits, rc, swap_logits
from kdjax.losses.correlation import clkd, dist, dist_parts
from kdjax.losses.decoupled import dkd, dkd_parts, nkd, rld, rld_parts
from kdjax.losses.divergence import akl, forward_kl, jsd, reverse_kl, skew_fkl, skew_rkl, symmetric_kl, tvd
from kdjax.losses.feature import fitnet
from kdjax.losses.gradients import align_gradients, project_conflict, scale_gradient
from kdjax.losses.logit import hard_label, kd, logit_mse
from kdjax.losses.multilevel import mlld, mlld_levels
from kdjax.losses.regularization import (
    confidence_penalty,
    cross_entropy,
    cross_entropy_with_targets,
    label_smoothing_xent,
    predictive_entropy,
    skew_jensen,
)
from kdjax.losses.relational import sp
from kdjax.losses.second_order import fisher_diag, second_order_kd, weighted_repr
from kdjax.losses.sequence import TAIDState, lm_kd, taid, taid_init, taid_target, taid_update, topk_kl, topk_signal, uld
from kdjax.losses.teacher_free import stability_metric, tf_kd_regularizer, tf_kd_self
from kdjax.losses.teachers import ensemble_logits, multi_teacher_kd, random_teacher_logits
from kdjax.losses.transformed import standardize, ttm, uda_kd, wsld, wttm
from kdjax.losses.uskd import uskd

__all__ = [
    "TAIDState",
    "akl",
    "align_gradients",
    "binary_kl",
    "binary_kl_norm",
    "clkd",
    "confidence_penalty",
    "cross_entropy",
    "cross_entropy_with_targets",
    "dist",
    "dist_parts",
    "dkd",
    "dkd_parts",
    "ensemble_logits",
    "fisher_diag",
    "fitnet",
    "forward_kl",
    "hard_label",
    "jsd",
    "kd",
    "kd_from_probs",
    "label_revision",
    "label_smoothing_xent",
    "lm_kd",
    "loca_calibrate",
    "loca_logits",
    "logit_mse",
    "mlld",
    "mlld_levels",
    "multi_teacher_kd",
    "nkd",
    "predictive_entropy",
    "project_conflict",
    "random_teacher_logits",
    "rc",
    "reverse_kl",
    "rld",
    "rld_parts",
    "scale_gradient",
    "second_order_kd",
    "skew_fkl",
    "skew_jensen",
    "skew_rkl",
    "sp",
    "stability_metric",
    "standardize",
    "swap_logits",
    "symmetric_kl",
    "taid",
    "taid_init",
    "taid_target",
    "taid_update",
    "tf_kd_regularizer",
    "tf_kd_self",
    "topk_kl",
    "topk_signal",
    "ttm",
    "tvd",
    "uda_kd",
    "uld",
    "uskd",
    "weighted_repr",
    "wsld",
    "wttm",
]

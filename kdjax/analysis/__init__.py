"""Measurements of what distillation transfers: pure functions of logits, features, gradients and weights.

Each is of one paper's quantity and says which; `statistics` says what several seeds say together.
"""

from kdjax.analysis.calibration import brier, confidence, ece, entropy, nll
from kdjax.analysis.fidelity import (
    activation_distance,
    agreement,
    agreement_by_correctness,
    functional_similarity,
    js_divergence,
    predictive_kl,
    rank_disagreement,
)
from kdjax.analysis.gradients import gradient_identity, gradient_noise
from kdjax.analysis.parameters import barrier, interpolated, plane
from kdjax.analysis.properties import (
    closer_share,
    fooling_rate,
    grad_cam,
    invariance,
    iterative_fgsm,
    shape_share,
)
from kdjax.analysis.representation import class_plane, linear_cka, rbf_cka, within_class_scatter
from kdjax.losses import stability_metric

__all__ = [
    "activation_distance", "agreement", "agreement_by_correctness", "barrier", "brier", "class_plane", "closer_share",
    "confidence", "ece", "entropy", "fooling_rate", "functional_similarity", "grad_cam", "gradient_identity",
    "gradient_noise", "interpolated", "invariance", "iterative_fgsm", "js_divergence", "linear_cka", "nll", "plane",
    "predictive_kl", "rank_disagreement", "rbf_cka", "shape_share", "stability_metric", "within_class_scatter",
]  # fmt: skip

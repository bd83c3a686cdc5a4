"""Every method by the name the command line knows: its objective with the weights its paper uses.

To add a method: a loss in `kdjax/losses`, an objective in this folder, a line here, and its tests.
"""

import dataclasses
from difflib import get_close_matches

from kdjax.objectives.base import Objective
from kdjax.objectives.feature import FitNet
from kdjax.objectives.logit import DKD, KD, HardLabel, LogitMSE
from kdjax.objectives.relational import SP
from kdjax.objectives.supervised import ConfidencePenalty, CrossEntropy, LabelSmoothing
from kdjax.schedules import WarmUp, epochs


@dataclasses.dataclass(frozen=True)
class Method:
    """A named, weighted objective.

    Attributes:
      objective: with the weights of the source.
      family: labels, logit, feature or relational.
      summary: what it does, in a line.
      setting: where the weights come from.
    """

    objective: Objective
    family: str
    summary: str
    setting: str = ""


_CIFAR = "CIFAR-100, released benchmark code"

METHODS: dict[str, Method] = {
    "labels": Method(CrossEntropy(), "labels", "no teacher: cross-entropy with the labels, the baseline"),
    "label_smoothing": Method(
        LabelSmoothing(smoothing=0.1), "labels", "no teacher: labels softened towards the uniform distribution"
    ),
    "confidence_penalty": Method(
        CrossEntropy() + ConfidencePenalty(beta=0.1), "labels", "no teacher: labels, and a reward for entropy"
    ),
    "kd": Method(
        0.1 * CrossEntropy() + 0.9 * KD(temperature=4.0), "logit", "match the teacher's softened probabilities", _CIFAR
    ),
    "dkd": Method(
        CrossEntropy() + WarmUp(length=epochs(20), staircase=True) * DKD(alpha=1.0, beta=8.0, temperature=4.0),
        "logit",
        "match target and non-target probabilities with weights of their own",
        _CIFAR + ", resnet32x4 to resnet8x4",
    ),
    "logit_mse": Method(LogitMSE(), "logit", "match the logits themselves"),
    "hard_label": Method(HardLabel(), "logit", "learn the teacher's predicted class"),
    "fitnet": Method(
        CrossEntropy() + 100.0 * FitNet(stage=2), "feature", "match a middle feature map through a projector", _CIFAR
    ),
    "sp": Method(CrossEntropy() + 3000.0 * SP(), "relational", "match which examples of the batch look alike", _CIFAR),
}


def method(name: str) -> Method:
    """The method called `name`; an unknown name is answered with the nearest known one."""
    if name not in METHODS:
        near = get_close_matches(name, METHODS, n=1, cutoff=0.4)
        hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(METHODS)}."
        raise ValueError(f"Unknown method {name!r}; {hint} `kdjax methods` lists them all.")
    return METHODS[name]

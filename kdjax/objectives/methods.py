"""Every method by the name the command line knows: its objective with the weights its paper uses.

To add a method: a loss in `kdjax/losses`, an objective in this folder, a line here, and its tests.
"""

import dataclasses
from difflib import get_close_matches

from kdjax.objectives.base import Objective
from kdjax.objectives.correction import RC, LabelRevision
from kdjax.objectives.correlation import CLKD, DIST, MLLD
from kdjax.objectives.decoupled import DKD, NKD, RLD
from kdjax.objectives.divergence import (
    AKL, JSD, TAID, TVD, ULD, ForwardKL, ReverseKL, SkewKL, SkewReverseKL, SymmetricKL, TopK,
)  # fmt: skip
from kdjax.objectives.feature import FitNet
from kdjax.objectives.heads import CTKD, DHKD, USKD
from kdjax.objectives.logit import KD, TTM, WSLD, WTTM, HardLabel, LogitMSE, SecondOrderKD, TfKDSelf
from kdjax.objectives.relational import SP
from kdjax.objectives.several import DML, MultiTeacherKD
from kdjax.objectives.supervised import ConfidencePenalty, CrossEntropy, LabelSmoothing
from kdjax.objectives.teacher_free import TfKDRegularizer
from kdjax.objectives.variance import ControlVariate
from kdjax.objectives.wrappers import LoCa, RandomTeacher, Standardize, Swap
from kdjax.schedules import WarmUp, epochs


@dataclasses.dataclass(frozen=True)
class Method:
    """A named, weighted objective.

    Attributes:
      objective: with the weights of the source.
      family: "labels" (no teacher), "logit" (row by row), "head" (trains something beside), "batch" (compares rows),
        "divergence" (from language models), "feature" or "relational".
      summary: what it does, in a line.
      setting: where the weights come from.
    """

    objective: Objective
    family: str
    summary: str
    setting: str = ""


_CIFAR = "CIFAR-100, released benchmark code"
_STUDY = "the released code's default"
_CE = CrossEntropy()
_RAMP = WarmUp(length=epochs(20), staircase=True)
_MLLD = 0.1 * _CE + 0.1 * CrossEntropy(view="strong")

METHODS: dict[str, Method] = {
    # Without a teacher.
    "labels": Method(_CE, "labels", "no teacher: cross-entropy with the labels, the baseline"),
    "label_smoothing": Method(
        LabelSmoothing(smoothing=0.1), "labels", "no teacher: labels softened towards the uniform distribution"
    ),
    "confidence_penalty": Method(
        _CE + ConfidencePenalty(beta=0.1), "labels", "no teacher: labels, and a reward for entropy"
    ),
    "tf_kd_regularizer": Method(
        0.1 * _CE + 0.9 * TfKDRegularizer(temperature=20.0, multiplier=50.0),
        "labels",
        "no teacher: a virtual one that is 99 % sure of the label",
    ),
    "uskd": Method(
        _CE + USKD(alpha=1.0, beta=0.1, mu=0.005),
        "labels",
        "no teacher: soft labels from the student and a weak head",
        "ImageNet, " + _STUDY,
    ),
    "dml": Method(_CE + DML(order="sequential"), "labels", "no teacher: two students teach each other", "the paper's"),
    # Row by row.
    "kd": Method(0.1 * _CE + 0.9 * KD(temperature=4.0), "logit", "match the teacher's softened probabilities", _CIFAR),
    "kd_only": Method(
        KD(temperature=4.0),
        "logit",
        "the same without labels: how well can a student match?",
        "the fidelity study's, CIFAR-100 (there as cross-entropy, with the same gradient)",
    ),
    "function_matching": Method(
        KD(temperature=1.0),
        "logit",
        "no labels, both networks on the same mixed crop (data.views.mixup=1), very long",
        "ImageNet, " + _STUDY,
    ),
    "born_again": Method(
        _CE + KD(temperature=1.0), "logit", "a network teaches the next of its own kind", "the paper's"
    ),
    "uda_kd": Method(
        0.25 * _CE
        + 0.25 * CrossEntropy(view="strong")
        + 0.25 * KD(temperature=5.0)
        + 0.25 * KD(temperature=5.0, view="strong"),
        "logit",
        "KD on the plain and on a strongly augmented view",
        _STUDY,
    ),
    "multi_teacher_kd": Method(
        0.5 * _CE + 0.5 * MultiTeacherKD(temperature=5.0), "logit", "KD from each of several teachers", _STUDY
    ),
    "logit_mse": Method(LogitMSE(), "logit", "match the logits themselves"),
    "second_order_kd": Method(_CE + SecondOrderKD(), "logit", "KD as a quadratic form around the teacher"),
    "hard_label": Method(HardLabel(), "logit", "learn the teacher's predicted class"),
    "dkd": Method(
        _CE + _RAMP * DKD(alpha=1.0, beta=8.0, temperature=4.0),
        "logit",
        "match target and non-target probabilities with weights of their own",
        _CIFAR + ", resnet32x4 to resnet8x4",
    ),
    "nkd": Method(
        _CE + NKD(gamma=1.5, temperature=1.0),
        "logit",
        "match the target by the teacher's trust, the others normalised",
        "ImageNet, " + _STUDY,
    ),
    "rld": Method(
        _CE + _RAMP * RLD(alpha=1.0, beta=8.0, temperature=4.0),
        "logit",
        "pass on how sure the teacher is, and only the classes it ranks below the label",
        "CIFAR-100, the released code's command, resnet32x4 to resnet8x4",
    ),
    "swap": Method(
        Swap(inner=KD(temperature=4.0)),
        "logit",
        "KD after the wrong top class and the label are exchanged",
        "refined logits' released code, which uses no labels beside",
    ),
    "rc": Method(
        _CE + KD(temperature=4.0) + RC(temperature=4.0),
        "logit",
        "KD, and the student's own logits corrected by the label",
    ),
    "label_revision": Method(
        LabelRevision(),
        "logit",
        "logits where the teacher is right, probabilities blended with the label where not",
        "refined logits' released code",
    ),
    "loca": Method(
        0.1 * _CE + 0.9 * LoCa(inner=KD(temperature=4.0)), "logit", "KD from a teacher calibrated by the label"
    ),
    "loca_dkd": Method(
        _CE + _RAMP * LoCa(inner=DKD(alpha=1.0, beta=8.0, temperature=4.0)),
        "logit",
        "DKD from a teacher calibrated by the label",
    ),
    "wsld": Method(_CE + 2.25 * WSLD(temperature=4.0), "logit", "KD weighted by how far the student is behind", _CIFAR),
    "ttm": Method(
        _CE + 45.0 * TTM(gamma=0.1), "logit", "soften the teacher alone", "the released code's for VGG13 to VGG8"
    ),
    "wttm": Method(_CE + WTTM(gamma=0.1), "logit", "the same, unsure examples counting more"),
    "tf_kd_self": Method(
        0.1 * _CE + 0.9 * TfKDSelf(temperature=20.0), "logit", "learn from the same network trained before"
    ),
    "lskd": Method(
        0.1 * _CE + 9.0 * Standardize(inner=KD(temperature=2.0)), "logit", "KD of standardised logits", _CIFAR
    ),
    "lskd_dkd": Method(
        _CE + 9.0 * (_RAMP * Standardize(inner=DKD(alpha=1.0, beta=8.0, temperature=2.0))),
        "logit",
        "DKD of standardised logits",
        _CIFAR,
    ),
    "random_teacher": Method(
        0.1 * _CE + 0.9 * RandomTeacher(inner=KD(temperature=4.0)), "logit", "the control: KD from noise"
    ),
    "kdvr": Method(
        _CE + ControlVariate(strength=0.7),
        "logit",
        "subtract the teacher's gradient; the networks must be alike",
        _STUDY,
    ),
    # With something trained beside the student.
    "ctkd": Method(0.1 * _CE + 0.9 * CTKD(), "head", "KD at a temperature that learns to make it harder", _CIFAR),
    "dhkd": Method(_CE + DHKD(temperature=2.0), "head", "a second head for the distillation loss", _CIFAR),
    "dhkd_aligned": Method(
        _CE + DHKD(temperature=2.0, align=True),
        "head",
        "the same, its gradient turned where it opposes the labels'",
        _CIFAR,
    ),
    # Of the whole batch.
    "dist": Method(
        _CE + DIST(beta=1.0, gamma=1.0, temperature=1.0),
        "batch",
        "correlation by example and by class",
        "a third party's copy; the original's CIFAR weights are not verified",
    ),
    "clkd": Method(
        0.1 * _CE + CLKD(mu=0.5, beta=2.0, nu=0.4),
        "batch",
        "normalised logits by example and class, and how classes vary",
        "unofficial copies; the paper was not seen",
    ),
    "mlld": Method(_MLLD + 0.9 * MLLD(), "batch", "examples, classes and the batch, on two views", _CIFAR),
    "mlld_official": Method(
        _MLLD + 0.9 * MLLD(official=True), "batch", "the same as its released code computes it", _CIFAR
    ),
    "lskd_mlld": Method(
        _MLLD + 9.0 * Standardize(inner=MLLD()), "batch", "multi-level, of standardised logits", _CIFAR
    ),
    # Divergences from language-model distillation.
    "forward_kl": Method(ForwardKL(), "divergence", "cover what the teacher believes"),
    "reverse_kl": Method(ReverseKL(), "divergence", "leave out rather than invent"),
    "symmetric_kl": Method(SymmetricKL(alpha=0.9), "divergence", "both, mixed", _STUDY),
    "skew_kl": Method(SkewKL(alpha=0.1), "divergence", "forward KL against a mixture", _STUDY),
    "skew_reverse_kl": Method(SkewReverseKL(alpha=0.1), "divergence", "reverse KL against a mixture", _STUDY),
    "jsd": Method(
        JSD(beta=0.5, temperature=0.9), "divergence", "generalised Jensen-Shannon divergence", "TRL's default"
    ),
    "tvd": Method(TVD(), "divergence", "total variation distance"),
    "akl": Method(AKL(head_mass=0.5), "divergence", "forward and reverse KL mixed by head and tail"),
    "taid": Method(TAID(), "divergence", "a target that moves from the student to the teacher", _STUDY),
    "top_k": Method(TopK(k=5), "divergence", "only the teacher's top classes are known"),
    "uld": Method(_CE + ULD(), "divergence", "sorted probabilities, for different classes or vocabularies"),
    # Of features.
    "fitnet": Method(
        _CE + 100.0 * FitNet(stage=2), "feature", "match a middle feature map through a projector", _CIFAR
    ),
    "sp": Method(_CE + 3000.0 * SP(), "relational", "match which examples of the batch look alike", _CIFAR),
}


def method(name: str) -> Method:
    """The method called `name`; an unknown name is answered with the nearest known one."""
    if name not in METHODS:
        near = get_close_matches(name, METHODS, n=1, cutoff=0.4)
        hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(METHODS)}."
        raise ValueError(f"Unknown method {name!r}; {hint} `kdjax methods` lists them all.")
    return METHODS[name]

"""Methods by their papers' names: the losses they add up, what they read, what they train."""

from kdjax.objectives.base import Objective, Paper, Sum, part_names
from kdjax.objectives.binding import Bound, bind, check, reads_teacher
from kdjax.objectives.feature import FitNet
from kdjax.objectives.logit import DKD, KD, HardLabel, LogitMSE
from kdjax.objectives.methods import METHODS, Method, method
from kdjax.objectives.relational import SP
from kdjax.objectives.supervised import ConfidencePenalty, CrossEntropy, LabelSmoothing

__all__ = [
    "DKD", "KD", "METHODS", "SP", "Bound", "ConfidencePenalty", "CrossEntropy", "FitNet", "HardLabel",
    "LabelSmoothing", "LogitMSE", "Method", "Objective", "Paper", "Sum", "bind", "check", "method", "part_names",
    "reads_teacher",
]  # fmt: skip

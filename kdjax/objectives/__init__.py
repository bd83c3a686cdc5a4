"""Methods by their papers' names: the losses they add up, what they read, what they train."""

from kdjax.objectives.base import Objective, Paper, Sum, part_names
from kdjax.objectives.binding import Bound, bind, check, reads_teacher
from kdjax.objectives.correction import RC, LabelRevision
from kdjax.objectives.correlation import CLKD, DIST, MLLD
from kdjax.objectives.decoupled import DKD, NKD, RLD
from kdjax.objectives.divergence import (
    AKL, JSD, TAID, TVD, ULD, ForwardKL, ReverseKL, SkewKL, SkewReverseKL, SymmetricKL, TopK,
)  # fmt: skip
from kdjax.objectives.feature import FitNet
from kdjax.objectives.heads import CTKD, DHKD, USKD
from kdjax.objectives.logit import KD, TTM, WSLD, WTTM, HardLabel, LogitMSE, SecondOrderKD, TfKDSelf
from kdjax.objectives.methods import METHODS, Method, method
from kdjax.objectives.relational import SP
from kdjax.objectives.several import DML, MultiTeacherKD
from kdjax.objectives.supervised import ConfidencePenalty, CrossEntropy, LabelSmoothing
from kdjax.objectives.teacher_free import TfKDRegularizer
from kdjax.objectives.variance import ControlVariate
from kdjax.objectives.wrappers import LoCa, RandomTeacher, Standardize, Swap

__all__ = [
    "AKL", "CLKD", "CTKD", "DHKD", "DIST", "DKD", "DML", "JSD", "KD", "METHODS", "MLLD", "NKD", "RC", "RLD", "SP", "TAID",
    "TTM", "TVD", "ULD", "USKD", "WSLD", "WTTM", "Bound", "ConfidencePenalty", "ControlVariate", "CrossEntropy", "FitNet",
    "ForwardKL", "HardLabel", "LabelRevision", "LabelSmoothing", "LoCa", "LogitMSE", "Method", "MultiTeacherKD",
    "Objective", "Paper", "RandomTeacher", "ReverseKL", "SecondOrderKD", "SkewKL", "SkewReverseKL", "Standardize", "Sum",
    "Swap", "SymmetricKL", "TfKDRegularizer", "TfKDSelf", "TopK", "bind", "check", "method", "part_names", "reads_teacher",
]  # fmt: skip

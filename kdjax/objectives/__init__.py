"""Methods by their papers' names: the losses they add up, what they read, what they train.

Every file says in its `__all__` what it adds to this namespace, and in its `METHODS` what the command line may call.
"""

from kdjax.objectives.base import Method, Objective, Paper, Sum, part_names
from kdjax.objectives.binding import Bound, bind, check, reads_teacher, unmixed
from kdjax.objectives.by_reference import ByReference
from kdjax.objectives.features.classifier_reuse import *
from kdjax.objectives.features.factor import *
from kdjax.objectives.features.fsp import *
from kdjax.objectives.features.ofd import *
from kdjax.objectives.features.projection import *
from kdjax.objectives.features.review import *
from kdjax.objectives.features.semckd import *
from kdjax.objectives.features.stages import *
from kdjax.objectives.logits.control_variate import *
from kdjax.objectives.logits.correction import *
from kdjax.objectives.logits.correlation import *
from kdjax.objectives.logits.decoupled import *
from kdjax.objectives.logits.heads import *
from kdjax.objectives.logits.logit import *
from kdjax.objectives.logits.multi_label import *
from kdjax.objectives.logits.multi_teacher import *
from kdjax.objectives.logits.own import *
from kdjax.objectives.logits.supervised import *
from kdjax.objectives.logits.teacher_free import *
from kdjax.objectives.logits.wrappers import *
from kdjax.objectives.methods import FILES, METHODS, method
from kdjax.objectives.relations.contrastive import *
from kdjax.objectives.relations.relational import *
from kdjax.objectives.tokens.divergences import *

__all__ = [
    "METHODS",
    "Bound",
    "ByReference",
    "Method",
    "Objective",
    "Paper",
    "Sum",
    "bind",
    "check",
    "method",
    "part_names",
    "reads_teacher",
    "unmixed",
]
__all__ += [name for file in FILES for name in file.__all__]

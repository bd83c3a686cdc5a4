"""Methods by their papers' names: the losses they add up, what they read, what they train.

Every file says in its `__all__` what it adds to this namespace, and in its `METHODS` what the command line may call.
"""

from kdjax.objectives.base import Method, Objective, Paper, Sum, part_names
from kdjax.objectives.binding import Bound, bind, check, reads_teacher
from kdjax.objectives.contrastive import *
from kdjax.objectives.correction import *
from kdjax.objectives.correlation import *
from kdjax.objectives.decoupled import *
from kdjax.objectives.divergence import *
from kdjax.objectives.factor import *
from kdjax.objectives.feature import *
from kdjax.objectives.flow import *
from kdjax.objectives.heads import *
from kdjax.objectives.logit import *
from kdjax.objectives.methods import FILES, METHODS, method
from kdjax.objectives.ofd import *
from kdjax.objectives.projection import *
from kdjax.objectives.relational import *
from kdjax.objectives.reuse import *
from kdjax.objectives.review import *
from kdjax.objectives.semckd import *
from kdjax.objectives.several import *
from kdjax.objectives.supervised import *
from kdjax.objectives.teacher_free import *
from kdjax.objectives.variance import *
from kdjax.objectives.wrappers import *

__all__ = [
    "METHODS",
    "Bound",
    "Method",
    "Objective",
    "Paper",
    "Sum",
    "bind",
    "check",
    "method",
    "part_names",
    "reads_teacher",
]
__all__ += [name for file in FILES for name in file.__all__]

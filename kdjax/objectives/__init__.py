"""Methods by their papers' names: the losses they add up, what they read, what they train.

Every file says in its `__all__` what it adds to this namespace, and in its `METHODS` what the command line may call.
"""

from kdjax.objectives.base import Method, Objective, Paper, Sum, part_names
from kdjax.objectives.binding import Bound, bind, check, reads_teacher, unmixed
from kdjax.objectives.by_reference import ByReference
from kdjax.objectives.detection import centred, crops, gfl, imitation, localization, retinanet, ssd
from kdjax.objectives.detection.centred import *
from kdjax.objectives.detection.crops import *
from kdjax.objectives.detection.gfl import *
from kdjax.objectives.detection.imitation import *
from kdjax.objectives.detection.localization import *
from kdjax.objectives.detection.retinanet import *
from kdjax.objectives.detection.ssd import *
from kdjax.objectives.features import classifier_reuse, factor, fsp, ofd, projection, review, semckd, stages
from kdjax.objectives.features.classifier_reuse import *
from kdjax.objectives.features.factor import *
from kdjax.objectives.features.fsp import *
from kdjax.objectives.features.ofd import *
from kdjax.objectives.features.projection import *
from kdjax.objectives.features.review import *
from kdjax.objectives.features.semckd import *
from kdjax.objectives.features.stages import *
from kdjax.objectives.logits import (
    control_variate,
    correction,
    correlation,
    decoupled,
    heads,
    logit,
    multi_label,
    multi_teacher,
    own,
    supervised,
    teacher_free,
    wrappers,
)
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
from kdjax.objectives.methods import METHODS, method
from kdjax.objectives.relations import contrastive, relational
from kdjax.objectives.relations.contrastive import *
from kdjax.objectives.relations.relational import *
from kdjax.objectives.tokens import divergences, states, written
from kdjax.objectives.tokens.divergences import *
from kdjax.objectives.tokens.states import *
from kdjax.objectives.tokens.written import *

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
# One by one: type checkers read no loop.
__all__ += gfl.__all__
__all__ += imitation.__all__
__all__ += localization.__all__
__all__ += retinanet.__all__
__all__ += centred.__all__
__all__ += ssd.__all__
__all__ += crops.__all__
__all__ += classifier_reuse.__all__
__all__ += factor.__all__
__all__ += fsp.__all__
__all__ += ofd.__all__
__all__ += projection.__all__
__all__ += review.__all__
__all__ += semckd.__all__
__all__ += stages.__all__
__all__ += control_variate.__all__
__all__ += correction.__all__
__all__ += correlation.__all__
__all__ += decoupled.__all__
__all__ += heads.__all__
__all__ += logit.__all__
__all__ += multi_label.__all__
__all__ += multi_teacher.__all__
__all__ += own.__all__
__all__ += supervised.__all__
__all__ += teacher_free.__all__
__all__ += wrappers.__all__
__all__ += contrastive.__all__
__all__ += relational.__all__
__all__ += divergences.__all__
__all__ += states.__all__
__all__ += written.__all__

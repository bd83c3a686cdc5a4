"""Distillation losses: pure functions from arrays to values, for the most part one per example.

Student first, teacher second, the rest by keyword; classes on the last axis. Values of examples are not averaged here. What
compares examples with each other takes `where` and `axis_name`, and gives a value an example or, where its docstring says
so, one of the whole batch. Every module says in its `__all__` what it adds to this namespace.
"""

import types as _types

from kdjax.losses.affinity import *
from kdjax.losses.assignment import *
from kdjax.losses.attention import *
from kdjax.losses.binary import *
from kdjax.losses.boundary import *
from kdjax.losses.boxes import *
from kdjax.losses.contrastive import *
from kdjax.losses.correction import *
from kdjax.losses.correlation import *
from kdjax.losses.crops import *
from kdjax.losses.decoupled import *
from kdjax.losses.dense import *
from kdjax.losses.divergence import *
from kdjax.losses.feature import *
from kdjax.losses.flow import *
from kdjax.losses.fused_linear import *
from kdjax.losses.geometry import *
from kdjax.losses.gradients import *
from kdjax.losses.localization import *
from kdjax.losses.logit import *
from kdjax.losses.margin import *
from kdjax.losses.multilevel import *
from kdjax.losses.pooling import *
from kdjax.losses.projection import *
from kdjax.losses.regions import *
from kdjax.losses.regularization import *
from kdjax.losses.relational import *
from kdjax.losses.reuse import *
from kdjax.losses.review import *
from kdjax.losses.second_order import *
from kdjax.losses.self_distillation import *
from kdjax.losses.semantic import *
from kdjax.losses.sequence import *
from kdjax.losses.teacher_free import *
from kdjax.losses.teachers import *
from kdjax.losses.topk import *
from kdjax.losses.transformed import *

__all__ = sorted(
    name for name, value in globals().items() if not (name.startswith("_") or isinstance(value, _types.ModuleType))
)

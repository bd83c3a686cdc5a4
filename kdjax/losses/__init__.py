"""Distillation losses: pure functions from arrays to values, for the most part one per example.

Student first, teacher second, the rest by keyword; classes on the last axis. Values of examples are not averaged here. What
compares examples with each other takes `where` and `axis_name`, and gives a value an example or, where its docstring says
so, one of the whole batch. Every module says in its `__all__` what it adds to this namespace.
"""

import types as _types

from kdjax.losses.detection.assignment import *
from kdjax.losses.detection.boxes import *
from kdjax.losses.detection.crops import *
from kdjax.losses.detection.dense import *
from kdjax.losses.detection.localization import *
from kdjax.losses.detection.regions import *
from kdjax.losses.features.attention import *
from kdjax.losses.features.boundary import *
from kdjax.losses.features.classifier_reuse import *
from kdjax.losses.features.fsp import *
from kdjax.losses.features.margin import *
from kdjax.losses.features.pooling import *
from kdjax.losses.features.projection import *
from kdjax.losses.features.review import *
from kdjax.losses.features.semantic import *
from kdjax.losses.features.stages import *
from kdjax.losses.gradients import *
from kdjax.losses.logits.binary import *
from kdjax.losses.logits.correction import *
from kdjax.losses.logits.correlation import *
from kdjax.losses.logits.decoupled import *
from kdjax.losses.logits.logit import *
from kdjax.losses.logits.multi_teacher import *
from kdjax.losses.logits.multilevel import *
from kdjax.losses.logits.regularization import *
from kdjax.losses.logits.second_order import *
from kdjax.losses.logits.self_distillation import *
from kdjax.losses.logits.target_transforms import *
from kdjax.losses.logits.teacher_free import *
from kdjax.losses.relations.affinity import *
from kdjax.losses.relations.affinity_parts import *
from kdjax.losses.relations.contrastive import *
from kdjax.losses.relations.geometry import *
from kdjax.losses.relations.pairs import *
from kdjax.losses.relations.relational import *
from kdjax.losses.tokens.divergences import *
from kdjax.losses.tokens.fused_linear import *
from kdjax.losses.tokens.sequence import *
from kdjax.losses.tokens.topk import *

__all__ = sorted(
    name for name, value in globals().items() if not (name.startswith("_") or isinstance(value, _types.ModuleType))
)

"""Distillation losses: pure functions from arrays to one value per example.

Student first, teacher second, the rest by keyword; classes on the last axis. Nothing is averaged here. Every module says in
its `__all__` what it adds to this namespace.
"""

from kdjax.losses import (
    binary,
    correction,
    correlation,
    decoupled,
    divergence,
    feature,
    gradients,
    logit,
    multilevel,
    regularization,
    relational,
    second_order,
    self_distillation,
    sequence,
    teacher_free,
    teachers,
    topk,
    transformed,
)
from kdjax.losses.binary import *
from kdjax.losses.correction import *
from kdjax.losses.correlation import *
from kdjax.losses.decoupled import *
from kdjax.losses.divergence import *
from kdjax.losses.feature import *
from kdjax.losses.gradients import *
from kdjax.losses.logit import *
from kdjax.losses.multilevel import *
from kdjax.losses.regularization import *
from kdjax.losses.relational import *
from kdjax.losses.second_order import *
from kdjax.losses.self_distillation import *
from kdjax.losses.sequence import *
from kdjax.losses.teacher_free import *
from kdjax.losses.teachers import *
from kdjax.losses.topk import *
from kdjax.losses.transformed import *

__all__ = [
    name
    for module in (
        binary,
        correction,
        correlation,
        decoupled,
        divergence,
        feature,
        gradients,
        logit,
        multilevel,
        regularization,
        relational,
        second_order,
        self_distillation,
        sequence,
        teacher_free,
        teachers,
        topk,
        transformed,
    )
    for name in module.__all__
]

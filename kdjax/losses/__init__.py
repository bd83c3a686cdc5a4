"""Distillation losses: pure functions from arrays to one value per example.

Student first, teacher second, the rest by keyword; classes on the last axis. Nothing is averaged here. Every module says in
its `__all__` what it adds to this namespace.
"""

from kdjax.losses import (
    affinity,
    assignment,
    attention,
    binary,
    boundary,
    boxes,
    contrastive,
    correction,
    correlation,
    crops,
    decoupled,
    dense,
    divergence,
    feature,
    flow,
    geometry,
    gradients,
    localization,
    logit,
    margin,
    multilevel,
    pooling,
    projection,
    regions,
    regularization,
    relational,
    reuse,
    review,
    second_order,
    self_distillation,
    semantic,
    sequence,
    teacher_free,
    teachers,
    topk,
    transformed,
)
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

__all__ = [
    name
    for module in (
        affinity,
        assignment,
        attention,
        binary,
        boundary,
        boxes,
        contrastive,
        correction,
        correlation,
        crops,
        decoupled,
        dense,
        divergence,
        feature,
        flow,
        geometry,
        gradients,
        localization,
        logit,
        margin,
        multilevel,
        pooling,
        projection,
        regions,
        regularization,
        relational,
        reuse,
        review,
        second_order,
        self_distillation,
        semantic,
        sequence,
        teacher_free,
        teachers,
        topk,
        transformed,
    )
    for name in module.__all__
]

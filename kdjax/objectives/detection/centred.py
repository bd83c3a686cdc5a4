"""What heads with centreness learn from their objects: FCOS and ATSS."""

import dataclasses
from typing import ClassVar, Literal

import jax
import jax.numpy as jnp

from kdjax import losses
from kdjax.objectives.base import Method, Objective, Paper
from kdjax.objectives.detection.locations import Locations, decoded, locate, of_head
from kdjax.reduction import weighted_mean
from kdjax.types import Array, Term

__all__ = ["ATSSLoss", "FCOSLoss"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Centred(Objective):
    """Base: focal loss of the classes, overlap of the boxes, cross-entropy with how central the positives are.

    All normalisers are those of the global batch.
    """

    box: Literal["iou", "giou", "diou", "ciou"] = "giou"
    """overlap of the box term"""
    box_weight: float = 1.0
    """of the box term"""
    alpha: float = 0.25
    """of the focal loss: share of the label"""
    gamma: float = 2.0
    """of the focal loss: how strongly good scores are left alone"""
    weighted: bool = True
    """boxes count by how central their location is, as released; torchvision has all count alike"""
    floor: float = 1e-6
    """the least that weighted boxes are divided by"""

    reads: ClassVar = (
        "student.logits", "student.centreness", "student.features", "labels", "boxes",
    )  # fmt: skip
    group: ClassVar = "task"
    kind: ClassVar[str] = ""
    formula: ClassVar = "focal / positives + Σ c (1 − GIoU) / Σ c + BCE(c) / positives,  c = centreness"

    @property
    def per_element(self) -> bool:
        return True

    def build(self, student, teacher, data, rngs):
        of_head(student, self.kind, type(self).__name__)

    def assigned(self, ctx) -> Locations:
        """Which object every location is trained on."""
        return locate(ctx.student, ctx.batch)

    def positives(self, found: Locations, where: Array) -> Array:
        """How many there are, as the loss counts them."""
        return jnp.sum(found.positive)

    def terms(self, module, ctx):
        student, found = ctx.student, self.assigned(ctx)
        dtype = student.logits.dtype
        positive = found.positive
        classes = losses.sigmoid_focal(
            jnp.where(found.counted[..., None], student.logits, 0), found.labels, alpha=self.alpha, gamma=self.gamma
        )
        targets = jnp.where(positive[..., None], found.boxes, 0).astype(dtype)
        points = jnp.broadcast_to(found.points[None].astype(dtype), (*positive.shape, 2))
        central = losses.centreness(points, targets)
        logit = jnp.where(positive, student.centreness, 0)
        surprise = jax.nn.softplus(logit) - central * logit
        boxes = losses.box_regression(decoded(student, found, positive), targets, kind=self.box)
        count = self.positives(found, ctx.batch.where).astype(dtype)
        over = lambda mask, values: jnp.sum(jnp.where(mask, values, 0))
        if self.weighted:
            box_term = weighted_mean(
                self.box_weight * central * boxes, jnp.where(positive, central, 0), floor=self.floor
            )
        else:
            box_term = Term(self.box_weight * over(positive, boxes), count)
        return {
            "classes": Term(over(found.counted, classes), count),
            "boxes": box_term,
            "centreness": Term(over(positive, surprise), count),
        }


@dataclasses.dataclass(frozen=True, kw_only=True)
class FCOSLoss(Centred):
    """FCOS: a location is of the smallest object that it is inside of, near its centre and of its level's size."""

    kind: ClassVar = "fcos"
    paper: ClassVar = Paper(
        "FCOS: Fully Convolutional One-Stage Object Detection", "Tian et al.", "ICCV", 2019, "1904.01355"
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class ATSSLoss(Centred):
    """ATSS: positives by a threshold that each object sets itself, otherwise as FCOS; an image without objects counts one."""

    box_weight: float = 2.0
    """of the box term"""
    topk: int = 9
    """candidates of a level in the assignment"""

    kind: ClassVar = "atss"
    paper: ClassVar = Paper(
        "Bridging the Gap Between Anchor-based and Anchor-free Detection via Adaptive Training Sample Selection",
        "Zhang et al.", "CVPR", 2020, "1912.02424",
    )  # fmt: skip

    def assigned(self, ctx):
        return locate(ctx.student, ctx.batch, topk=self.topk)

    def positives(self, found, where):
        return jnp.sum(jnp.where(where, jnp.maximum(jnp.sum(found.positive, axis=1), 1), 0))


METHODS = {
    "fcos": Method(FCOSLoss(), "detection", "FCOS by its objects alone, without a teacher", "mmdetection's"),
    "atss": Method(ATSSLoss(), "detection", "ATSS by its objects alone, without a teacher", "mmdetection's"),
}

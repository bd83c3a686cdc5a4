"""What RetinaNet learns from its objects, without a teacher."""

import dataclasses
from typing import ClassVar, Literal

import jax.numpy as jnp

from kdjax import losses
from kdjax.objectives.base import Method, Objective, Paper
from kdjax.objectives.detection.locations import decoded, locate, of_head
from kdjax.types import Term

__all__ = ["RetinaNetLoss"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class RetinaNetLoss(Objective):
    """RetinaNet: focal loss of all anchors but those between positive and background, and the boxes of the positives.

    As torchvision divides: each image by its own positives, then the mean over images. `per_image=False` divides the batch by all
    its positives, of which an image without objects counts one, as mmdetection.
    """

    box: Literal["l1", "iou", "giou", "diou", "ciou"] = "l1"
    """of boxes: "l1" of deltas, or an overlap; heads with distributions have no deltas"""
    box_weight: float = 1.0
    """of the box term: 1 with "l1", 2 with "giou" as localization distillation has it"""
    alpha: float = 0.25
    """of the focal loss: share of the label"""
    gamma: float = 2.0
    """of the focal loss: how strongly good scores are left alone"""
    per_image: bool = True
    """divide each image by its own positives, not the batch by all"""

    reads: ClassVar = ("student.logits", "student.features", "labels", "boxes")
    group: ClassVar = "task"
    kind: ClassVar = "retinanet"
    formula: ClassVar = "mean over images of (focal + ‖Δ_s − Δ‖₁) / positives"
    paper: ClassVar = Paper("Focal Loss for Dense Object Detection", "Lin et al.", "ICCV", 2017, "1708.02002")

    @property
    def per_element(self) -> bool:
        return True

    def build(self, student, teacher, data, rngs):
        of_head(student, self.kind, type(self).__name__)
        if self.box == "l1" and student.regression is None:
            raise ValueError(
                "RetinaNetLoss(box='l1') compares deltas, and the student's edges are distributions; use box='giou'."
            )

    def terms(self, module, ctx):
        student, found = ctx.student, locate(ctx.student, ctx.batch)
        dtype = student.logits.dtype
        learns = found.counted & ~found.between
        logits = jnp.where(learns[..., None], student.logits, 0)
        classes = losses.sigmoid_focal(logits, found.labels, alpha=self.alpha, gamma=self.gamma)
        positive = found.positive
        # Elsewhere each anchor is its own target, and may hold anything.
        anchors = jnp.broadcast_to(found.anchors[None].astype(dtype), found.boxes.shape)
        targets = jnp.where(positive[..., None], found.boxes.astype(dtype), anchors)
        if self.box == "l1":
            wanted = losses.encode_deltas(anchors, targets, deviations=student.deviations)
            gap = jnp.where(positive[..., None], student.regression, wanted) - wanted
            boxes = jnp.sum(gap * jnp.sign(gap), axis=-1)  # the slope of |x| at 0 is 0
        else:
            boxes = losses.box_regression(decoded(student, found, positive), targets, kind=self.box)
        rows = [jnp.sum(jnp.where(mask, x, 0), axis=1) for mask, x in ((learns, classes), (positive, boxes))]
        count = jnp.maximum(jnp.sum(positive, axis=1), 1).astype(dtype)
        where = ctx.batch.where
        if self.per_image:
            rows, count = [row / count for row in rows], jnp.ones_like(count)
        total = jnp.sum(jnp.where(where, count, 0))
        classes, boxes = (jnp.sum(jnp.where(where, row, 0)) for row in rows)
        return {"classes": Term(classes, total), "boxes": Term(self.box_weight * boxes, total)}


METHODS = {
    "retinanet": Method(
        RetinaNetLoss(), "detection", "RetinaNet by its objects alone, without a teacher", "torchvision's"
    ),
}

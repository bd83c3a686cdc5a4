"""What a dense detector learns from its objects, without a teacher."""

import dataclasses
from typing import ClassVar, Literal

import jax.numpy as jnp

from kdjax import losses
from kdjax.objectives.base import Method, Objective, Paper
from kdjax.objectives.detection.locations import locate, of_head
from kdjax.reduction import weighted_mean
from kdjax.types import Term

__all__ = ["GFLLoss"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class GFLLoss(Objective):
    """Generalized focal loss: classes with the quality of their boxes, boxes, and their edges as distributions.

    Objects are assigned by ATSS. All normalisers are those of the global batch, so that no number depends on how many devices
    there are; the released code averages those of the devices.
    """

    box: Literal["iou", "giou", "diou", "ciou"] = "giou"
    """overlap of the box term: mmdetection's GIoU; the localization-distillation code trains GFL alone by "ciou" """
    box_weight: float = 2.0
    """of the box term"""
    edge_weight: float = 0.25
    """of the term of the edges' distributions"""
    floor: float = 1e-6
    """the least that box and edge terms are divided by: 1 in mmdetection 3, which weakens them while scores are low"""
    topk: int = 9
    """candidates of a level in the assignment"""

    reads: ClassVar = ("student.logits", "student.edge_logits", "student.features", "labels", "boxes")
    group: ClassVar = "task"
    kind: ClassVar = "gfl"
    formula: ClassVar = "QFL / positives + (2 Σ w (1 − GIoU) + ¼ Σ w DFL) / Σ w,  w = max_c σ(z)"
    paper: ClassVar = Paper(
        "Generalized Focal Loss: Learning Qualified and Distributed Bounding Boxes for Dense Object Detection", "Li et al.",
        "NeurIPS", 2020, "2006.04388",
    )  # fmt: skip

    @property
    def per_element(self) -> bool:
        return True

    def build(self, student, teacher, data, rngs):
        of_head(student, self.kind, type(self).__name__)

    def terms(self, module, ctx):
        student = ctx.student
        found = locate(student, ctx.batch, topk=self.topk)
        logits = student.logits
        dtype = logits.dtype
        shape = logits.shape[:-1]
        sums = losses.gfl_terms(
            logits, student.edge_logits, found.labels, found.boxes.astype(dtype),
            jnp.broadcast_to(found.points[None].astype(dtype), (*shape, 2)),
            stride=jnp.broadcast_to(found.strides[None].astype(dtype), shape), label_weights=found.counted, num_positives=1,
            box_weight=self.box_weight, edge_weight=self.edge_weight, box_kind=self.box,
        )  # fmt: skip
        positives = jnp.maximum(jnp.sum(found.positive, axis=1), 1).astype(dtype)  # an image without objects counts one
        return {
            "classes": Term(jnp.sum(sums["cls"]), jnp.sum(jnp.where(ctx.batch.where, positives, 0))),
            "boxes": weighted_mean(sums["box"], sums["weight"], floor=self.floor),
            "edges": weighted_mean(sums["dfl"], sums["weight"], floor=self.floor),
        }


METHODS = {
    "detector": Method(
        GFLLoss(), "detection", "a detector by its objects alone, without a teacher", "the released code's, 1x schedule"
    ),
}

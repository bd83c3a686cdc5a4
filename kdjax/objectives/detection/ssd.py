"""What SSD learns from its objects, without a teacher."""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from kdjax import losses
from kdjax.objectives.base import Method, Objective, Paper
from kdjax.objectives.detection.locations import locate, of_head
from kdjax.types import Array, Term

__all__ = ["SSDLoss"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class SSDLoss(Objective):
    """SSD: cross-entropy of the positives and of each image's hardest negatives, smooth L1 of the positives' deltas.

    Both are divided by the positives of the global batch, of which an image without objects counts one; having no positives it
    has no negatives either. Heads with sigmoids sum the binary cross-entropy of the classes, which is not published.
    """

    negatives: float = 3.0
    """hardest negatives of an image for each of its positives"""
    box_weight: float = 1.0
    """of the box term"""
    beta: float = 1.0
    """where smooth L1 becomes linear"""

    reads: ClassVar = ("student.logits", "student.regression", "student.features", "labels", "boxes")
    group: ClassVar = "task"
    kind: ClassVar = "ssd"
    formula: ClassVar = "(Σ CE of positives + Σ CE of 3 P hardest negatives + Σ smooth L1(Δ_s − Δ)) / P"
    paper: ClassVar = Paper("SSD: Single Shot MultiBox Detector", "Liu et al.", "ECCV", 2016, "1512.02325")

    @property
    def per_element(self) -> bool:
        return True

    def build(self, student, teacher, data, rngs):
        of_head(student, self.kind, type(self).__name__)

    def terms(self, module, ctx):
        student, found = ctx.student, locate(ctx.student, ctx.batch)
        dtype, positive = student.logits.dtype, found.positive
        surprise = self.surprise(
            jnp.where(found.counted[..., None], student.logits, 0), found.labels, student.background
        )
        over = lambda mask, values: jnp.sum(jnp.where(mask, values, 0), axis=1)
        count = jnp.sum(positive, axis=1)
        hardest = jnp.sort(jnp.where(found.counted & ~positive, surprise, -jnp.inf), axis=1, descending=True)
        place = jnp.broadcast_to(jnp.arange(hardest.shape[1])[None], hardest.shape)
        chosen = (place < self.negatives * count[:, None]) & (hardest > -jnp.inf)
        classes = over(positive, surprise) + over(chosen, hardest)
        # Elsewhere each anchor is its own target, and may hold anything.
        anchors = jnp.broadcast_to(found.anchors[None].astype(dtype), found.boxes.shape)
        targets = jnp.where(positive[..., None], found.boxes.astype(dtype), anchors)
        wanted = losses.encode_deltas(anchors, targets, deviations=student.deviations)
        gap = jnp.where(positive[..., None], student.regression, wanted) - wanted
        size = gap * jnp.sign(gap)  # the slope of |x| at 0 is 0
        smooth = jnp.where(size < self.beta, jnp.square(gap) / (2 * self.beta), size - self.beta / 2)
        where = ctx.batch.where
        total = jnp.sum(jnp.where(where, jnp.maximum(count, 1), 0)).astype(dtype)
        boxes = over(positive, jnp.sum(smooth, axis=-1))
        classes, boxes = (jnp.sum(jnp.where(where, row, 0)) for row in (classes, boxes))
        return {"classes": Term(classes, total), "boxes": Term(self.box_weight * boxes, total)}

    def surprise(self, logits: Array, labels: Array, background: bool) -> Array:
        """`[B, A]` cross-entropy of every anchor."""
        if background:
            return losses.cross_entropy(logits, labels)
        target = labels[..., None] == jax.lax.broadcasted_iota(labels.dtype, logits.shape, logits.ndim - 1)
        return jnp.sum(jax.nn.softplus(jnp.where(target, -logits, logits)), axis=-1)


METHODS = {
    "ssd": Method(SSDLoss(), "detection", "SSD by its objects alone, without a teacher", "mmdetection's SSD300"),
}

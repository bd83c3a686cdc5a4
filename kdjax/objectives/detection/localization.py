"""Localization distillation: the teacher's distributions over edges, and its classes, where objects are."""

import dataclasses
from typing import ClassVar, Literal

import jax
import jax.numpy as jnp
from jax import lax

from kdjax import losses
from kdjax.objectives.base import Method, Objective, Paper
from kdjax.objectives.detection.centred import ATSSLoss, FCOSLoss
from kdjax.objectives.detection.gfl import GFLLoss
from kdjax.objectives.detection.locations import Locations, Region, by_level, locate, valuable_of
from kdjax.objectives.detection.retinanet import RetinaNetLoss
from kdjax.schedules import Schedule
from kdjax.types import Array, Context, Term

__all__ = ["LD", "DenseClassKD"]

_LD = Paper("Localization Distillation for Dense Object Detection", "Zheng et al.", "CVPR", 2022, "2102.12252")


@dataclasses.dataclass(frozen=True, kw_only=True)
class OfRegion(Objective):
    """Base: something of the teacher's at the locations of a region.

    "main" are the positives; "valuable" is the valuable localization region around them, which RetinaNet has without the
    positives. FCOS has all locations inside an object for it, but the positives, weighted by the student's largest class score;
    gamma, overlap and topk are not for it.
    """

    region: Region = "main"
    """which locations: "main", the positives, or "valuable", the region around them"""
    gamma: float | Schedule = 0.25
    """lower end of the valuable region as a share of the assignment's threshold"""
    overlap: Literal["iof_centre", "diou", "iou"] = "iof_centre"
    """overlap by which the valuable region is cut: as released, or "diou" as the paper says"""
    topk: int = 9
    """candidates of a level in the assignment"""

    compared: ClassVar[str] = "logits"
    paper: ClassVar = _LD

    @property
    def per_element(self) -> bool:
        return True

    def build(self, student, teacher, data, rngs):
        ours, theirs = (list(getattr(output, self.compared).shape[1:]) for output in (student, teacher))
        if ours != theirs:
            raise ValueError(
                f"{type(self).__name__} compares {self.compared} place by place, and the student gives {ours} and the teacher "
                f"{theirs}; both must have the same levels, classes and bins."
            )
        if student.places != teacher.places:
            raise ValueError(
                f"{type(self).__name__} compares place by place, and the student's locations are those of {student.head} and the "
                f"teacher's those of {teacher.head}, at other places of the picture; use heads of one kind."
            )
        return None

    def weights(self, ctx: Context) -> tuple[Locations, Array]:
        """The locations, and `[B, A]` their weights in the region."""
        found = locate(ctx.student, ctx.batch, topk=self.topk)
        if self.region == "main":
            return found, found.positive.astype(ctx.student.logits.dtype)
        gamma = self.now(ctx.progress, "gamma")["gamma"]
        weights = valuable_of(ctx.student, found, ctx.batch, gamma=gamma, overlap=self.overlap, topk=self.topk)
        return found, weights.astype(ctx.student.logits.dtype)


@dataclasses.dataclass(frozen=True, kw_only=True)
class LD(OfRegion):
    """Localization distillation: at each location of a region the student's distribution of every edge is the teacher's.

    A positive counts with the student's largest class score there, a location of the valuable region with its overlap. As
    published nothing is divided by these: what counts is the sum over the images of one device. Here it is `images_per_device`
    times the mean over the images of the global batch, the same number, whatever the devices.
    """

    temperature: float | Schedule = 10.0
    """T, divides both networks' edge logits"""
    images_per_device: float = 2.0
    """images that a device had where the weight comes from: 3 for students of ResNet-18 and 34, 2 for ResNet-50"""
    joint_edges: bool = False
    """one distribution over the bins of all four edges, which stand for nothing together: what RetinaNet's released code does"""

    compared: ClassVar = "edge_logits"

    reads: ClassVar = (
        "student.logits", "student.edge_logits", "student.features", "teacher.edge_logits", "labels", "boxes",
    )  # fmt: skip
    formula: ClassVar = "n · mean over images of Σ w_i / (4 K) Σ_e T² KL(p_t ‖ p_s);  16 K in the valuable region"

    def terms(self, module, ctx):
        _, weights = self.weights(ctx)
        if self.region == "main":
            weights = weights * lax.stop_gradient(jnp.max(jax.nn.sigmoid(ctx.student.logits), axis=-1))
        temperature = self.now(ctx.progress, "temperature")["temperature"]
        student, teacher = ctx.student.edge_logits, ctx.teacher.edge_logits
        if self.joint_edges:
            student, teacher = (jnp.reshape(x, (*x.shape[:2], 1, -1)) for x in (student, teacher))
        values = losses.ld(
            student, teacher, weights, temperature=temperature, loss_weight=1.0,
            avg_factor=4.0 if self.region == "main" else 16.0,
        )  # fmt: skip
        where = ctx.batch.where
        return Term(self.images_per_device * jnp.sum(jnp.where(where, values, 0)), jnp.sum(where, dtype=values.dtype))


@dataclasses.dataclass(frozen=True, kw_only=True)
class DenseClassKD(OfRegion):
    """The classes of the teacher at the locations of a region: a softmax over the logits of its sigmoids, without background.

    The mean over a level's locations, summed over the levels, and a mean over the classes: with few classes a much larger
    number than with COCO's 80, for which the published weight of 10 is.
    """

    temperature: float | Schedule = 2.0
    """T, divides both networks' logits"""

    reads: ClassVar = ("student.logits", "student.features", "teacher.logits", "labels", "boxes")
    formula: ClassVar = "Σ over levels of mean T² KL(softmax(z_t / T) ‖ softmax(z_s / T)) / C"

    def terms(self, module, ctx):
        found, weights = self.weights(ctx)
        temperature = self.now(ctx.progress, "temperature")["temperature"]
        terms = {}
        parts = (ctx.student.logits, ctx.teacher.logits, weights)
        for i, (student, teacher, mask) in enumerate(zip(*(by_level(x, found.sizes) for x in parts), strict=True)):
            values = losses.dense_class_kd(
                student, teacher, mask, temperature=temperature, loss_weight=1.0, avg_factor=1.0
            )
            terms[f"level{i}"] = Term(jnp.sum(values), jnp.sum(mask != 0, dtype=values.dtype))
        return terms


_SETTING = "COCO, GFL R-101 to R-18: the released configs"
_OTHERS = "COCO: the released code; its sums over the valuable region are divided by 4, ours by 16"
METHODS = {
    "ld": Method(
        GFLLoss() + 0.25 * LD(images_per_device=3.0), "detection",
        "the teacher's distributions of the edges of boxes, at the positives", _SETTING, _LD,
    ),
    "ld_vlr": Method(
        GFLLoss() + 0.25 * LD(images_per_device=3.0) + 0.25 * LD(region="valuable", images_per_device=3.0)
        + 10.0 * DenseClassKD(), "detection",
        "edges at the positives and in the valuable region around them, classes at the positives", _SETTING, _LD,
    ),
    "dense_kd": Method(
        GFLLoss() + 10.0 * DenseClassKD(), "detection", "the teacher's classes at the positives", _SETTING, _LD
    ),
    "retinanet_ld": Method(
        RetinaNetLoss(box="giou", box_weight=2.0, per_image=False) + 5.0 * LD() + 0.6 * LD(region="valuable")
        + 10.0 * DenseClassKD(temperature=8.0), "detection",
        "edges and classes as ld_vlr, on RetinaNet with distributions of the edges", _OTHERS, _LD,
    ),
    "fcos_ld": Method(
        FCOSLoss() + 0.25 * LD() + 0.25 * LD(region="valuable") + 10.0 * DenseClassKD(), "detection",
        "edges and classes as ld_vlr, on FCOS with distributions of the edges", _OTHERS, _LD,
    ),
    "atss_ld": Method(
        ATSSLoss() + 0.25 * LD() + 0.15 * LD(region="valuable") + 10.0 * DenseClassKD(), "detection",
        "edges and classes as ld_vlr, on ATSS with distributions of the edges", _OTHERS, _LD,
    ),
}  # fmt: skip

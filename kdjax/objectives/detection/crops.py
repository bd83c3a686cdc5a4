"""An image classifier teaches a detector: it judges crops of the objects, and of the boxes that the detector says."""

import dataclasses
from typing import ClassVar, Literal

import jax
import jax.numpy as jnp

from kdjax import losses
from kdjax.objectives.base import Method, Objective, Paper
from kdjax.objectives.detection.locations import decoded, locate
from kdjax.objectives.detection.ssd import SSDLoss
from kdjax.objectives.features.connectors import ask_teacher
from kdjax.reduction import per_example
from kdjax.types import Array, Term

__all__ = ["ClassifierClasses", "ClassifierCrops", "ObjectClasses"]

_DICOD = Paper("Distilling Image Classifiers in Object Detectors", "Guo et al.", "NeurIPS", 2021, "2106.05209")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ObjectClasses(Objective):
    """Cross-entropy of the classes of objects, of a network that judges a crop of each: what trains such a classifier."""

    reads: ClassVar = ("student.logits", "labels", "boxes")
    group: ClassVar = "task"
    judge: ClassVar = "student"
    formula: ClassVar = "mean over objects of −log p(y)"

    @property
    def per_element(self) -> bool:
        return True

    def build(self, student, teacher, data, rngs):
        judges(student, "ObjectClasses", "student")

    def terms(self, module, ctx):
        labels = ctx.batch.labels
        there = (labels >= 0) & ctx.batch.where[:, None]
        return per_example(losses.cross_entropy(ctx.student.logits, jnp.where(there, labels, 0)), there)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClassifierClasses(Objective):
    """The classes of a detector's positives are those that a classifier sees in the crop of their object.

    Softmaxes, of which the classifier's gives the background nothing; of detectors with a sigmoid a class, these one by one.
    """

    temperature: float = 2.0
    """T, divides both networks' logits"""
    mode: Literal["", "softmax", "binary", "l1"] = ""
    """"softmax", "binary" or "l1", sigmoids divided by their sum; empty for the first or the second, as the detector has it"""

    reads: ClassVar = ("student.logits", "student.features", "teacher.logits", "labels", "boxes")
    any_classes: ClassVar = True
    judge: ClassVar = "teacher"
    formula: ClassVar = "T² / P Σ over positives of KL(p_t(crop of the object) ‖ p_s)"
    paper: ClassVar = _DICOD

    @property
    def per_element(self) -> bool:
        return True

    def build(self, student, teacher, data, rngs):
        judges(teacher, "ClassifierClasses", "teacher")
        if teacher.logits.shape[-1] != student.num_classes:
            raise ValueError(
                f"The classifier knows {teacher.logits.shape[-1]} classes and the detector {student.num_classes}; they must be "
                "the same, in one order."
            )

    def terms(self, module, ctx):
        student, found = ctx.student, locate(ctx.student, ctx.batch)
        judged = jnp.take_along_axis(ctx.teacher.logits, jnp.maximum(found.index, 0)[..., None], axis=1)
        values = losses.classifier_to_detector_kl(
            student.logits, judged, found.positive, temperature=self.temperature, avg_factor=1.0,
            mode=self.mode or ("softmax" if student.background else "binary"),
        )  # fmt: skip
        return Term(jnp.sum(values), jnp.sum(found.positive, dtype=values.dtype))


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClassifierCrops(Objective):
    """A predicted box shows a classifier what the true one shows it: the crops themselves, and what the classifier's first
    layers make of them. The gradient goes through the classifier into the box.
    """

    boxes: int = 32
    """positives of each image that are cropped at most, the first; as published all, of which there is no fixed number"""
    size: int = 112
    """side of the crops in pixels"""
    pool: int = 4
    """cells a side that crops are pooled to; twice as many for the classifier's layer"""
    layers: Literal["both", "crop"] = "both"
    """"both" the crop and the classifier's first stage, or the "crop" alone, for which no classifier is needed"""

    reads: ClassVar = ("student.logits", "student.features", "teacher.logits", "labels", "boxes")
    any_classes: ClassVar = True
    judge: ClassVar = "teacher"
    formula: ClassVar = "mean over positives of |A(x_s) − A(x)| + |A(F(x_s)) − A(F(x))|,  x a crop"
    paper: ClassVar = _DICOD

    @property
    def per_element(self) -> bool:
        return True

    def build(self, student, teacher, data, rngs):
        judges(teacher, "ClassifierCrops", "teacher")
        if "image" not in student.taps:
            raise ValueError(
                "ClassifierCrops crops the picture, and the student does not pass it on; set data.show_boxes."
            )

    def terms(self, module, ctx):
        student, found = ctx.student, locate(ctx.student, ctx.batch)
        count = min(self.boxes, found.positive.shape[1])
        # The first positives: a stable order by whether they are.
        chosen = jnp.argsort(~found.positive, axis=1, stable=True)[:, :count]
        kept = jnp.take_along_axis(found.positive, chosen, axis=1)
        pick = lambda boxes: jnp.take_along_axis(boxes, chosen[..., None], axis=1)
        predicted = pick(decoded(student, found, found.positive))
        target = jnp.where(kept[..., None], pick(found.boxes), 0).astype(predicted.dtype)

        def judge(crops: Array) -> dict[str, Array]:
            return {"stem": ask_teacher(ctx.teacher_call, "stem", crops, who="ClassifierCrops", what=_PART)}

        layers, features = (("obj",), None) if self.layers == "crop" else (("obj", "stem"), judge)

        def one(predicted, target, image, kept):
            return losses.crop_feature_l1(
                predicted,
                target,
                image,
                features,
                pool=self.pool,
                layers=layers,
                size=self.size,
                mask=kept,
                avg_factor=1.0,
            )

        image = student.taps["image"].astype(predicted.dtype)
        image = jnp.where(ctx.batch.where[:, None, None, None], image, 0)
        values = jax.vmap(one)(predicted, target, image, kept)
        return Term(jnp.sum(values), jnp.sum(kept, dtype=values.dtype))


_PART = "the features of its first stage"


def judges(output, who: str, role: str) -> None:
    """Raises unless an output is of a classifier of objects, `[B, G, C]`.

    Raises:
      ValueError: it is a detector's, or of whole pictures.
    """
    if getattr(output, "strides", ()) or output.logits.ndim != 3:
        raise ValueError(
            f"{who} wants a {role} that judges crops of the objects, such as the network crops_resnet8 with data.show_boxes; "
            "this one does not."
        )


METHODS = {
    "dicod": Method(
        SSDLoss() + 0.4 * ClassifierClasses() + 0.15 * ClassifierCrops(), "detection",
        "an image classifier teaches SSD the classes of its positives, and their boxes through crops",
        "COCO, SSD300 by ResNet-50: the released config", _DICOD,
    ),
    "crops": Method(
        ObjectClasses(), "detection", "a classifier of crops of objects by their labels, to teach a detector", "none", _DICOD
    ),
}  # fmt: skip

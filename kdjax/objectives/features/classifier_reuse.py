"""Objectives that fit the student's features to the teacher's own classifier."""

import dataclasses
from typing import ClassVar, Literal

import jax
import jax.numpy as jnp
from flax import nnx

from kdjax import losses
from kdjax.objectives.base import CIFAR, RELEASED, Method, Objective, Paper
from kdjax.objectives.features.connectors import FAN_OUT, Bottleneck, ConvNorm, ask_teacher, map_shape, smaller
from kdjax.objectives.logits.supervised import CrossEntropy
from kdjax.reduction import per_example
from kdjax.types import Array, ModelOutput

__all__ = ["SRRL", "SimKD"]

CLASSIFIER = "its classifier, from the pooled vector to logits"


@dataclasses.dataclass(frozen=True, kw_only=True)
class SRRL(Objective):
    """Softmax regression: match the teacher's pooled features, and what its own classifier says of the student's.

    Written beside a cross-entropy. The connector is not part of the deployed student.
    """

    form: Literal["map", "pooled"] = "map"
    """connect the student's last map and average it, as in the authors' code, or connect its pooled vector, as in that of
    SimKD, which adds KD at temperature 4"""

    trains: ClassVar = "a connector"
    any_classes: ClassVar = True
    formula: ClassVar = (
        "mean_b mean_k (a(φ(f_s)) − a(f_t))² + mean_c (W_t a(φ(f_s)) − z_t)²,  a the mean over positions"
    )
    paper: ClassVar = Paper(
        "Knowledge Distillation via Softmax Regression Representation Learning", "Yang et al.", "ICLR", 2021
    )

    @property
    def reads(self):
        student = "student.features" if self.form == "map" else "student.embedding"
        return (student, "teacher.embedding", "teacher.logits")

    def build(self, student, teacher, data, rngs):
        if self.form == "map":
            channels = map_shape(student.features, -1, "student's features")[-1]
        else:
            channels = student.embedding.shape[-1]
        return ConvNorm(channels, teacher.embedding.shape[-1], start=FAN_OUT, rngs=rngs)

    def terms(self, module, ctx):
        student = ctx.student.features[-1] if self.form == "map" else ctx.student.embedding[:, None, None, :]
        connected = pooled(jax.nn.relu(module(student)))
        reused = ask_teacher(ctx.teacher_call, "classify", connected, who="SRRL", what=CLASSIFIER)
        values = losses.srrl(connected, ctx.teacher.embedding, reused, ctx.teacher.logits)
        return per_example(values, ctx.batch)


class Projector(nnx.Module):
    """A bottleneck from the student's last map to the teacher's channels, at the smaller of both sizes."""

    def __init__(self, student: tuple[int, ...], teacher: tuple[int, ...], *, factor: int, rngs: nnx.Rngs):
        self.size = smaller(student, teacher)
        self.bottleneck = Bottleneck(student[-1], max(teacher[-1] // factor, 1), teacher[-1], activated=True, rngs=rngs)

    def __call__(self, x: Array) -> Array:
        return self.bottleneck(losses.adaptive_average_pool(x, self.size))


@dataclasses.dataclass(frozen=True, kw_only=True)
class SimKD(Objective):
    """Reused classifier: match the teacher's last features through a projector; its classifier then reads the projection.

    All there is to the published training: no cross-entropy, no KD. Projector and the teacher's classifier stay on the
    deployed student, whose own classifier learns nothing. The features are those whose mean the classifier reads: where the
    teacher gives preactivations these behind a ReLU, which are a WideResNet's behind its last normalisation, else its last map.
    """

    factor: int = 2
    """the projector's middle is the teacher's channels divided by this wide"""

    reads: ClassVar = ("student.features", "teacher.features")
    deploys: ClassVar = True
    trains: ClassVar = "a projector"
    any_classes: ClassVar = True
    formula: ClassVar = "mean_b mean_hwk (P(f_s) − f_t)²;  deployed: W_t a(P(f_s))"
    paper: ClassVar = Paper(
        "Knowledge Distillation with the Reused Teacher Classifier", "Chen et al.", "CVPR", 2022, "2203.14001"
    )

    def build(self, student, teacher, data, rngs):
        ours, theirs = (map_shape(output.features, -1, f"{role}'s features") for output, role in
                        ((student, "student"), (teacher, "teacher")))  # fmt: skip
        if teacher.embedding is not None and teacher.embedding.shape[-1] != theirs[-1]:
            raise ValueError(
                f"SimKD gives the teacher's classifier the average of its last map, {theirs}, projected from the student's "
                f"{ours}; this one reads {teacher.embedding.shape[-1]} numbers, so the map is not what it reads."
            )
        return Projector(ours, theirs, factor=self.factor, rngs=rngs)

    def terms(self, module, ctx):
        projected = module(ctx.student.features[-1])
        self.classify(projected, ctx.teacher_call)  # the loss does without; a teacher that cannot be reused fails here
        return per_example(losses.simkd(projected, read_by_classifier(ctx.teacher)), ctx.batch)

    def check_teacher(self, said):
        if said.embedding is None:
            return ""
        means = pooled(read_by_classifier(said))
        off = float(jnp.max(jnp.abs(means - said.embedding)) / jnp.maximum(jnp.max(jnp.abs(said.embedding)), 1e-6))
        if off <= 0.02:
            return ""
        return (
            f"SimKD gives the teacher's classifier the mean of a last map, and this one reads something else: they differ by "
            f"{off:.0%} of the largest number of what it reads; take a teacher whose classifier reads the mean of its last map "
            "behind a ReLU, such as a ResNet."
        )

    def deploy(self, module, output, teacher_call):
        projected = module(output.features[-1])
        logits = self.classify(projected, teacher_call)
        return dataclasses.replace(output, logits=logits, embedding=pooled(projected))

    def classify(self, projected: Array, teacher_call) -> Array:
        return ask_teacher(teacher_call, "classify", pooled(projected), who="SimKD", what=CLASSIFIER)


def read_by_classifier(teacher: ModelOutput) -> Array:
    """The map `[B, H, W, K]` of a teacher whose mean its classifier reads, as far as can be told."""
    return jax.nn.relu(teacher.preactivations[-1]) if teacher.preactivations else teacher.features[-1]


def pooled(features: Array) -> Array:
    """`[B, H, W, K]` to `[B, K]`."""
    return jnp.mean(features, axis=(1, 2))


METHODS = {
    "srrl": Method(
        CrossEntropy() + SRRL(),
        "feature",
        "match what the teacher's classifier says of the student's features",
        "ImageNet, " + RELEASED,
    ),
    "simkd": Method(SimKD(), "feature", "match the last features, and reuse the teacher's classifier on them", CIFAR),
}

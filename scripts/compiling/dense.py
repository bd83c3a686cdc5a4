"""python scripts/compile_ahead.py scripts/compiling/dense.py --for v5p:8x8x8 --batch-size 16384 --method sp

Dense networks on 1,281,167 examples that are not there, for what an objective and its collectives cost on a pod: what networks
cost themselves is left out, and compiling takes a minute instead of many. Vectors of 768 go through three stages, whose outputs
are maps of 4 x 4 pixels too, of width 2,048 in the teacher and 512 in the student, to 1,000 classes, in bfloat16. A second view,
where an objective compares two, is the vector backwards. For SimKD the classifier reads the mean of the last map.
"""

import numpy as np
from flax import nnx

from kdjax.experiment import Experiment, Phase
from kdjax.experiment.schemes import student_phases
from kdjax.models import from_nnx
from kdjax.schedules import epochs
from kdjax.tasks.given import Arrays, GivenData, GivenNetwork
from kdjax.types import ModelOutput, MultiView

INPUTS, CLASSES, EXAMPLES, SIDE = 768, 1000, 1_281_167, 4


class Dense(nnx.Module):
    """Three stages and a classifier, of all that the last one gives or, `pooled`, of its mean over the map's positions."""

    def __init__(self, width: int, *, pooled: bool, rngs: nnx.Rngs):
        self.width, self.pooled = width, pooled
        self.stages = nnx.List([nnx.Linear(before, width, rngs=rngs) for before in (INPUTS, width, width)])
        self.classifier = nnx.Linear(width // SIDE**2 if pooled else width, CLASSES, rngs=rngs)

    def __call__(self, x) -> ModelOutput:
        maps, before = [], []
        for stage in self.stages:
            preactivation = stage(x)
            x = nnx.relu(preactivation)
            shape = (len(x), SIDE, SIDE, self.width // SIDE**2)
            before.append(preactivation.reshape(shape))
            maps.append(x.reshape(shape))
        x = maps[-1].mean((1, 2)) if self.pooled else x
        return ModelOutput(logits=self.classify(x), features=tuple(maps), preactivations=tuple(before), embedding=x)

    def classify(self, embedding):
        return self.classifier(embedding)


class Vectors(GivenData):
    """Vectors in two views."""

    def train_views(self, inputs, index, epoch, key, *, names) -> MultiView:
        return MultiView({name: inputs if name == "main" else inputs[:, ::-1] for name in names})


def data() -> Vectors:
    """Examples that take no memory: one zero, shown everywhere."""
    examples = Arrays(
        "dense",
        "train",
        np.broadcast_to(np.float32(0), (EXAMPLES, INPUTS)),
        np.arange(EXAMPLES, dtype=np.int32) % CLASSES,
    )
    return Vectors(
        name="dense", batch_size=16384, eval_batch_size=4096, num_classes=CLASSES, train=examples, test=examples
    )


def network(width: int, method: str) -> GivenNetwork:
    pooled = method == "simkd"
    make = lambda rngs: Dense(width, pooled=pooled, rngs=rngs)
    parts = ("classify",) if pooled else ()
    return GivenNetwork(name=f"dense{width}", network=from_nnx(make, name=f"dense{width}", parts=parts))


def experiment(name: str = "kd") -> Experiment:
    student = Phase(
        name="student", network=network(512, name), teacher="teacher", duration=epochs(100), precision="bfloat16",
        teacher_precision="bfloat16",
    )  # fmt: skip
    teacher = Phase(name="teacher", network=network(2048, name), duration=epochs(100))
    return Experiment(name="dense", data=data(), phases=(teacher, *student_phases(name, student)))

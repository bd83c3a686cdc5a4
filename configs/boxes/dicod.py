"""kdjax compare configs/boxes/dicod.py --methods labels classes crops dicod --seeds 0 1 2

An image classifier teaches a detector, on pictures that need no download. The teacher is a ResNet-8 that sees crops of the
objects, 32 pixels a side, and learns their classes; the student a small SSD. `classes` has it learn the classifier's view of
each positive's object, `crops` boxes that show the classifier what the true ones do, `dicod` both, by the published weights.

The teacher's average precision is that of the true boxes with its classes, no detector's. No figures are given: it was run
with --tiny alone.
"""

from kdjax.experiment import Experiment, Phase
from kdjax.experiment.schemes import student_phases
from kdjax.objectives import ClassifierClasses, ClassifierCrops, ObjectClasses, SSDLoss
from kdjax.schedules import Cosine, Duration, WarmUp, steps
from kdjax.tasks.detection import Detection, Detector
from kdjax.training.optimizers import AdamW

CROPS = ClassifierCrops(size=32, boxes=16)
OBJECTIVES = {
    "labels": SSDLoss(),
    "classes": SSDLoss() + 0.4 * ClassifierClasses(),
    "crops": SSDLoss() + 0.15 * CROPS,
    "dicod": SSDLoss() + 0.4 * ClassifierClasses() + 0.15 * CROPS,
}


def experiment(name: str = "dicod") -> Experiment:
    optimizer = AdamW(learning_rate=4e-3 * (WarmUp(length=steps(100)) * Cosine()), weight_decay=1e-4, clip=5.0)
    student = Phase(
        name="student",
        network=Detector(name="ssd_small", width=8),
        teacher="teacher",
        duration=Duration(6, "epochs"),
        optimizer=optimizer,
    )
    return Experiment(
        name="boxes-dicod",
        data=Detection(mean=(0.3,), std=(0.3,), show_boxes=True),
        phases=(
            Phase(
                name="teacher", network=Detector(name="crops_resnet8"), objective=ObjectClasses(),
                duration=Duration(6, "epochs"), optimizer=optimizer,
            ),
            *student_phases(name, student, objective=OBJECTIVES.get(name)),
        ),
        evaluate_every=Duration(50, "percent"),
        checkpoint_every=Duration(50, "percent"),
    )  # fmt: skip

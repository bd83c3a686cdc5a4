"""kdjax compare configs/boxes/gfl.py --methods labels ld ld_vlr dense_kd imitation tid --seeds 0 1 2

Detection on pictures that need no download: Fashion-MNIST items on cluttered canvases of 96 x 96 pixels, five classes, one to
five objects, of which a third fades towards one edge. A detector of 385,500 parameters, trained for six epochs of 4,000 pictures,
teaches one of 156,000, which is trained for two: so short that six methods and three seeds can be compared while one waits, and
short of what the student can reach (36 points of AP after six epochs by its objects alone). The length was chosen by time.

Weights are not COCO's where those would drown the rest: `DenseClassKD` is a mean over classes, so that five make it 16 times
what 80 do, and LD a mean over bins, 9 here for 17. They were not tuned. Results: configs/boxes/README.md.
"""

from kdjax.experiment import Experiment, Phase
from kdjax.experiment.schemes import student_phases
from kdjax.objectives import LD, DenseClassKD, GFLLoss, RegionImitation, TaskIntegration
from kdjax.schedules import Cosine, Duration, WarmUp, steps
from kdjax.tasks.detection import Detection, Detector
from kdjax.training.optimizers import AdamW

OBJECTIVES = {
    "labels": GFLLoss(),
    "ld": GFLLoss() + LD(),
    "ld_vlr": GFLLoss() + LD() + LD(region="valuable"),
    "dense_kd": GFLLoss() + DenseClassKD(),
    "imitation": GFLLoss() + 0.5 * RegionImitation(),
    "tid": GFLLoss() + 0.5 * TaskIntegration(),
}


def experiment(name: str = "ld") -> Experiment:
    optimizer = AdamW(learning_rate=4e-3 * (WarmUp(length=steps(100)) * Cosine()), weight_decay=1e-4, clip=5.0)
    student = Phase(
        name="student",
        network=Detector(width=8),
        teacher="teacher",
        duration=Duration(2, "epochs"),
        optimizer=optimizer,
    )
    return Experiment(
        name="boxes",
        data=Detection(mean=(0.3,), std=(0.3,)),
        phases=(
            Phase(
                name="teacher", network=Detector(width=16), objective=GFLLoss(), duration=Duration(6, "epochs"),
                optimizer=optimizer,
            ),
            *student_phases(name, student, objective=OBJECTIVES.get(name)),
        ),
        evaluate_every=Duration(100, "percent"),
        checkpoint_every=Duration(50, "percent"),
    )  # fmt: skip

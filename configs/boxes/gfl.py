"""kdjax compare configs/boxes/gfl.py --methods labels ld ld_vlr dense_kd imitation tid --seeds 0 1 2

Detection on pictures that need no download: Fashion-MNIST items on cluttered canvases of 96 x 96 pixels, five classes, one to
five objects, of which a third fades towards one edge. A detector of 385,500 parameters, trained for six epochs of 4,000 pictures,
teaches one of 156,000, which is trained as long.

Weights are not COCO's where those would drown the rest: `DenseClassKD` is a mean over classes, so that five make it 16 times
what 80 do, and LD a mean over bins, 9 here for 17. They were not tuned.

With one seed, which is no verdict: AP 41.6 for the teacher, 36.3 for labels, 36.4 for ld and 36.7 for ld_vlr (1,000 test
pictures, twelve minutes on two CPU cores); the other methods were not run to the end.
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
        duration=Duration(6, "epochs"),
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
        evaluate_every=Duration(50, "percent"),
        checkpoint_every=Duration(50, "percent"),
    )  # fmt: skip

"""Detectors on the pictures with boxes that need no download: heads whose edges are distributions, taught by a wider one."""

from kdjax.experiment import Experiment, Phase
from kdjax.experiment.schemes import student_phases
from kdjax.objectives import LD, ATSSLoss, DenseClassKD, FCOSLoss, RetinaNetLoss
from kdjax.schedules import Cosine, Duration, WarmUp, steps
from kdjax.tasks.detection import Detection, Detector
from kdjax.training.optimizers import AdamW

# What each head learns from objects, and the published weights of LD at the positives and in the valuable region.
HEADS = {
    "retinanet": (RetinaNetLoss(box="giou", box_weight=2.0, per_image=False), 5.0, 0.6),
    "fcos": (FCOSLoss(), 0.25, 0.25),
    "atss": (ATSSLoss(), 0.25, 0.15),
}


def boxes_edges(head: str, name: str = "ld_vlr") -> Experiment:
    """The experiment of a head and a method: a detector of 16 channels in the stem, trained for six epochs of 4,000 pictures,
    teaches one of 8 for two. Weights of LD are those published for COCO and 17 bins; `dense_kd` has 1 where 10 are for 80
    classes."""
    loss, main, region = HEADS[head]
    main, region = main * LD(), region * LD(region="valuable")
    settings = {"labels": loss, "ld": loss + main, "ld_vlr": loss + main + region, "dense_kd": loss + DenseClassKD()}
    optimizer = AdamW(learning_rate=4e-3 * (WarmUp(length=steps(100)) * Cosine()), weight_decay=1e-4, clip=5.0)
    phase = lambda who, width, epochs, **options: Phase(
        name=who, network=Detector(name=f"{head}_edges_small", width=width), duration=Duration(epochs, "epochs"),
        optimizer=optimizer, **options,
    )  # fmt: skip
    return Experiment(
        name=f"boxes-{head}",
        data=Detection(mean=(0.3,), std=(0.3,)),
        phases=(
            phase("teacher", 16, 6, objective=loss),
            *student_phases(name, phase("student", 8, 2, teacher="teacher"), objective=settings.get(name)),
        ),
        evaluate_every=Duration(100, "percent"),
        checkpoint_every=Duration(50, "percent"),
    )

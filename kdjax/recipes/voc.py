"""The protocol of localization distillation for GFL on Pascal VOC, as its released configs have it."""

from kdjax.experiment.schemes import student_phases
from kdjax.experiment.spec import Experiment, Phase
from kdjax.objectives import GFLLoss
from kdjax.recipes.coco import of_method
from kdjax.schedules import Steps, WarmUp, epochs, steps
from kdjax.tasks.detection import Detection, Detector
from kdjax.training.optimizers import SGD

IMAGES = 3  # a device, on two of them


def voc_gfl(teacher: str, student: str, name: str = "ld") -> Experiment:
    """The protocol for a pair of detectors and a method.

    Trained on what VOC 2007 and 2012 have for training and validation, evaluated on the test part of 2007. Four epochs of three
    repeats: 12 passes, SGD with momentum 0.9 and weight decay 1e-4 on all that is trained, learning rate 0.00375 for 6 images,
    divided by 10 after the ninth pass, a warm-up of 500 steps; the boxes' overlap is CIoU. Pictures are fitted on a canvas of
    800 x 1344, portraits on a turned one, in batches of one kind, as published; flips.

    Of the distillation, `ld` alone is released for VOC; `ld_vlr` has the weights of COCO. The teacher is trained as long as the
    student, with GIoU; its released config has GIoU too, and trains it four times as long.
    """
    rate = Steps(value=0.01 * 2 * IMAGES / 16, factor=0.1, boundaries=(9.0,))
    sgd = SGD(learning_rate=rate * WarmUp(length=steps(500)), momentum=0.9, weight_decay=1e-4)
    phase = Phase(name="student", network=Detector(name=student), teacher="teacher", duration=epochs(12), optimizer=sgd)
    return Experiment(
        name=f"voc-{teacher}-{student}",
        data=Detection(
            name="voc/2007+2012", image_size=(800, 1344), turn=True, batch_size=2 * IMAGES, eval_batch_size=16, eval_examples=0,
            mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225),
        ),
        phases=(
            Phase(name="teacher", network=Detector(name=teacher), objective=GFLLoss(), duration=epochs(12), optimizer=sgd),
            *student_phases(name, phase, objective=of_method(name, float(IMAGES), GFLLoss(box="ciou"))),
        ),
        log_every=100,
    )  # fmt: skip

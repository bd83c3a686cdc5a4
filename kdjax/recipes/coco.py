"""The protocol of localization distillation for GFL on COCO, as its released configs have it."""

from kdjax.experiment.schemes import student_phases
from kdjax.experiment.spec import Experiment, Phase
from kdjax.objectives import LD, DenseClassKD, GFLLoss, Objective, RegionImitation, method
from kdjax.schedules import Steps, WarmUp, epochs, steps
from kdjax.tasks.detection import Detection, Detector
from kdjax.training.optimizers import SGD

IMAGES = {"gfl_r18": 3, "gfl_r34": 3}  # a device, on two of them; of others 2


def coco_gfl(teacher: str, student: str, name: str = "ld_vlr") -> Experiment:
    """The protocol for a pair of detectors and a method.

    12 epochs of the pictures that have objects, SGD with momentum 0.9 and weight decay 1e-4 on all that is trained, learning rate
    0.01 for 16 images (in proportion for others) divided by 10 after epochs 8 and 11, a warm-up of 500 steps. Pictures are fitted
    on a canvas of 800 x 1344, portraits on a turned one, in batches of one kind, as published; flips.

    The teacher was trained for 24 epochs, divided after 16 and 22, at scales that the student does not see: `--data.scales 0.6 1`
    for a run of its own (shorter sides of 480 to 800 pixels); `--teacher` takes one that is trained.
    """
    images = IMAGES.get(student, 2)

    def sgd(*boundaries):
        rate = Steps(value=0.01 * 2 * images / 16, factor=0.1, boundaries=boundaries)
        return SGD(learning_rate=rate * WarmUp(length=steps(500)), momentum=0.9, weight_decay=1e-4)

    phase = Phase(
        name="student", network=Detector(name=student), teacher="teacher", duration=epochs(12), optimizer=sgd(8.0, 11.0)
    )
    return Experiment(
        name=f"coco-{teacher}-{student}",
        data=Detection(
            name="coco/2017", image_size=(800, 1344), turn=True, batch_size=2 * images, eval_batch_size=16, eval_examples=0,
            mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225),
        ),
        phases=(
            Phase(
                name="teacher", network=Detector(name=teacher), objective=GFLLoss(), duration=epochs(24),
                optimizer=sgd(16.0, 22.0),
            ),
            *student_phases(name, phase, objective=of_method(name, float(images))),
        ),
        log_every=100,
    )  # fmt: skip


def of_method(name: str, images: float, loss: GFLLoss = GFLLoss()) -> Objective:
    """A method's objective with so many images a device, beside what is learned from objects."""
    main, region = 0.25 * LD(images_per_device=images), 0.25 * LD(region="valuable", images_per_device=images)
    whole = loss + main + region + 10.0 * DenseClassKD()
    if images == 2:  # the released config of ResNet-50 imitates features too
        whole += 2.0 * RegionImitation()
    settings = {"labels": loss, "ld": loss + main, "ld_vlr": whole}
    return settings.get(name) or method(name).objective

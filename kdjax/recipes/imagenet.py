"""The ImageNet protocol of mdistiller, for its two pairs."""

from kdjax.data import Crop
from kdjax.experiment.schemes import student_phases
from kdjax.experiment.spec import Experiment, Phase
from kdjax.objectives import DKD, KD, RLD, CrossEntropy, Objective, method
from kdjax.schedules import Steps, epochs
from kdjax.tasks.classification import Classification, Classifier, Views
from kdjax.training.optimizers import SGD

BATCH = {"crd": 256, "reviewkd": 256}  # of others 512
# Weight of the part beside the target, in DKD and RLD alike, at temperature 1 (Zhao et al., CVPR 2022).
BETA = {"resnet34": 0.5, "resnet50": 2.0}


def imagenet(teacher: str, student: str, name: str = "kd") -> Experiment:
    """The protocol for a pair of networks of the zoo and a method.

    100 epochs of batch 512 (CRD and ReviewKD: 256), SGD with momentum 0.9 and weight decay 1e-4, learning rate 0.2 (0.1)
    divided by 10 after epochs 30, 60 and 90; inception crops of 224 pixels and flips, evaluated on the middle of 256.

    The teacher takes as long where it is trained; `--teacher RUN` takes one that is, such as a converted one.
    """
    batch = BATCH.get(name, 512)
    rate = Steps(value=0.1 * batch / 256, factor=0.1, boundaries=(30.0, 60.0, 90.0))
    sgd = SGD(learning_rate=rate, momentum=0.9, weight_decay=1e-4)
    views = Views(flip=True, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
    return Experiment(
        name=f"imagenet-{teacher}-{student}",
        data=Classification(
            name="imagenet2012", image_size=224, crop=Crop(), batch_size=batch, eval_batch_size=batch, views=views
        ),
        phases=(
            Phase(name="teacher", network=Classifier(name=teacher), duration=epochs(100), optimizer=sgd),
            *student_phases(
                name,
                Phase(
                    name="student", network=Classifier(name=student), teacher="teacher", duration=epochs(100), optimizer=sgd,
                ),
                objective=of_method(teacher, name),
            ),
        ),
        log_every=100,
    )  # fmt: skip


def of_method(teacher: str, name: str) -> Objective:
    """A method's objective with its settings for ImageNet, where these are known; else its own."""
    beta = BETA.get(teacher, 0.5)
    settings = {
        "kd": 0.5 * CrossEntropy() + 0.5 * KD(temperature=1.0),
        "dkd": CrossEntropy()
        + DKD(alpha=1.0, beta=beta, temperature=1.0),  # warmed up within the first epoch: not at all
        "rld": CrossEntropy() + RLD(alpha=1.0, beta=beta, temperature=1.0),
    }
    return settings.get(name) or method(name).objective

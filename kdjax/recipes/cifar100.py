"""The CIFAR-100 protocol of the distillation benchmarks, RepDistiller and mdistiller."""

import dataclasses

from kdjax.experiment.schemes import student_phases
from kdjax.experiment.spec import Experiment, Phase
from kdjax.objectives import DKD, Objective, Sum, method
from kdjax.objectives.logits.wrappers import Wrapper
from kdjax.schedules import Steps, epochs
from kdjax.tasks.classification import Classification, Classifier, Views
from kdjax.training.optimizers import SGD

CIFAR100_VIEWS = Views(crop_padding=4, flip=True, mean=(0.5071, 0.4867, 0.4408), std=(0.2675, 0.2565, 0.2761))
SLOW = ("mobilenetv2", "shufflenetv1", "shufflenetv2")  # students that start at a fifth of the learning rate
# Weight of DKD's non-target part by pair, where its released code has another one than 8 (Zhao et al., CVPR 2022).
DKD_BETA = {
    ("wrn_40_2", "wrn_16_2"): 6.0, ("wrn_40_2", "wrn_40_1"): 6.0, ("vgg13", "vgg8"): 6.0, ("vgg13", "mobilenetv2"): 6.0,
    ("resnet110", "resnet32"): 2.0, ("resnet56", "resnet20"): 2.0,
}  # fmt: skip


def cifar100(teacher: str, student: str, name: str = "kd") -> Experiment:
    """The CIFAR-100 protocol of RepDistiller and mdistiller for a pair of networks of the zoo and a method.

    Batch 64, 240 epochs, SGD with momentum 0.9 and weight decay 5e-4, learning rate 0.05 (0.01 for students of the MobileNetV2
    and ShuffleNet kinds) divided by 10 after epochs 150, 180 and 210, pad-4 crops and flips. The teacher is trained by it too.
    """
    rate = 0.01 if student in SLOW else 0.05
    return Experiment(
        name=f"cifar100-{teacher}-{student}",
        data=Classification(name="cifar100", batch_size=64, views=CIFAR100_VIEWS),
        phases=(
            Phase(name="teacher", network=Classifier(name=teacher), duration=epochs(240), optimizer=cifar100_sgd()),
            *student_phases(
                name,
                Phase(
                    name="student", network=Classifier(name=student), teacher="teacher", duration=epochs(240),
                    optimizer=cifar100_sgd(rate),
                ),
                objective=of_pair(teacher, student, name),
            ),
        ),
        log_every=100,
    )  # fmt: skip


def of_pair(teacher: str, student: str, name: str) -> Objective:
    """A method's objective with the settings that its authors have for a pair; the method's own where none are known."""
    objective, beta = method(name).objective, DKD_BETA.get((teacher, student))
    if name not in ("dkd", "loca_dkd") or beta is None:
        return objective
    return Sum(objectives=tuple(_with_beta(part, beta) for part in objective.parts))


def _with_beta(part: Objective, beta: float) -> Objective:
    """A part with this beta, where it is DKD or a wrapper of it."""
    if isinstance(part, Wrapper):
        return dataclasses.replace(part, inner=_with_beta(part.inner, beta))
    return dataclasses.replace(part, beta=beta) if isinstance(part, DKD) else part


def cifar100_sgd(rate: float = 0.05) -> SGD:
    """The protocol's optimizer from a learning rate on."""
    steps = Steps(value=rate, factor=0.1, boundaries=(150.0, 180.0, 210.0))
    return SGD(learning_rate=steps, momentum=0.9, weight_decay=5e-4)

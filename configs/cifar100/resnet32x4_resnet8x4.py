"""kdjax distill configs/cifar100/resnet32x4_resnet8x4.py --method dkd

The CIFAR-100 protocol of the distillation benchmarks: batch 64, 240 epochs, SGD with momentum 0.9 and weight decay 5e-4,
learning rate 0.05 divided by 10 after epochs 150, 180 and 210, pad-4 crops and flips. Needs `kdjax data prepare cifar100`.

Published top-1 for this pair, not reproduced here: teacher 79.42, student alone 72.50, KD 73.33, FitNet 73.50, SP 72.94,
DKD 76.32. Other pairs: --phases.teacher.network.name wrn_40_2 --phases.student.network.name wrn_16_2. For students mobilenetv2,
shufflenetv1 and shufflenetv2 the benchmarks start at a learning rate of 0.01.
"""

from kdjax.experiment import Experiment, Phase
from kdjax.experiment.schemes import student_phases
from kdjax.schedules import Steps, epochs
from kdjax.tasks.classification import Classification, Classifier, Views
from kdjax.training.optimizers import SGD

PROTOCOL = SGD(
    learning_rate=Steps(value=0.05, factor=0.1, boundaries=(150.0, 180.0, 210.0)), momentum=0.9, weight_decay=5e-4
)
VIEWS = Views(crop_padding=4, flip=True, mean=(0.5071, 0.4867, 0.4408), std=(0.2675, 0.2565, 0.2761))


def experiment(name: str = "kd") -> Experiment:
    return Experiment(
        name="cifar100-resnet32x4-resnet8x4",
        data=Classification(name="cifar100", batch_size=64, views=VIEWS),
        phases=(
            Phase(name="teacher", network=Classifier(name="resnet32x4"), duration=epochs(240), optimizer=PROTOCOL),
            *student_phases(
                name,
                Phase(
                    name="student",
                    network=Classifier(name="resnet8x4"),
                    teacher="teacher",
                    duration=epochs(240),
                    optimizer=PROTOCOL,
                ),
            ),
        ),
        log_every=100,
    )

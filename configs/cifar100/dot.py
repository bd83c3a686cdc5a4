"""kdjax distill configs/cifar100/dot.py --method kd

The CIFAR-100 protocol with the distillation-oriented trainer: one momentum for the labels' gradient (0.9 - 0.075), a longer
one for the distillation's (0.9 + 0.075). Needs `kdjax data prepare cifar100`.

Published top-1 for this pair, not reproduced here: KD 73.33, KD with DOT 75.12.
"""

from kdjax.experiment import Experiment, Phase
from kdjax.experiment.schemes import student_phases
from kdjax.schedules import Steps, epochs
from kdjax.tasks.classification import Classification, Classifier, Views
from kdjax.training.optimizers import DOT, SGD

RATE = Steps(value=0.05, factor=0.1, boundaries=(150.0, 180.0, 210.0))
VIEWS = Views(crop_padding=4, flip=True, mean=(0.5071, 0.4867, 0.4408), std=(0.2675, 0.2565, 0.2761))


def experiment(name: str = "kd") -> Experiment:
    return Experiment(
        name="cifar100-dot",
        data=Classification(name="cifar100", batch_size=64, views=VIEWS),
        phases=(
            Phase(
                name="teacher",
                network=Classifier(name="resnet32x4"),
                duration=epochs(240),
                optimizer=SGD(learning_rate=RATE, momentum=0.9, weight_decay=5e-4),
            ),
            *student_phases(
                name,
                Phase(
                    name="student",
                    network=Classifier(name="resnet8x4"),
                    teacher="teacher",
                    duration=epochs(240),
                    optimizer=DOT(learning_rate=RATE, momentum=0.9, delta=0.075, weight_decay=5e-4),
                ),
            ),
        ),
        log_every=100,
    )

"""kdjax distill configs/cifar100/dot.py --method kd

The CIFAR-100 protocol with the distillation-oriented trainer: one momentum for the labels' gradient (0.9 - 0.075), a longer
one for the distillation's (0.9 + 0.075). Needs `kdjax data prepare cifar100`.

Published top-1 for this pair, not reproduced here: KD 73.33, KD with DOT 75.12.
"""

import dataclasses

from kdjax.experiment import Experiment
from kdjax.recipes.cifar100 import cifar100, cifar100_sgd
from kdjax.training.optimizers import DOT


def experiment(name: str = "kd") -> Experiment:
    plain = cifar100("resnet32x4", "resnet8x4", name)
    rate = cifar100_sgd().learning_rate
    optimizer = DOT(learning_rate=rate, momentum=0.9, delta=0.075, weight_decay=5e-4)
    phases = [plain.phases[0], *(dataclasses.replace(phase, optimizer=optimizer) for phase in plain.phases[1:])]
    return dataclasses.replace(plain, name="cifar100-dot", phases=tuple(phases))

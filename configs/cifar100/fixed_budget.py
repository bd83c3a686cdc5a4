"""kdjax compare configs/cifar100/fixed_budget.py --methods labels kd uda_kd --seeds 0 1 2

The fixed budget of "The State of Knowledge Distillation for Classification" (Ruffy and Chahal, arXiv 1912.10850): every
method has the same 100 epochs of batch 128, SGD with Nesterov's momentum 0.9 and weight decay 5e-4, learning rate 0.1
divided by 10 at 33 and at 66 % of the epochs. Their own proposal is `uda_kd`: KD at T = 5 on the plain view and on one more,
strongly augmented by AutoAugment's CIFAR-10 policy, which teacher and student see alike and for which labels are used again.
Needs `kdjax data prepare cifar100`.

The paper's tables are not verified, and its networks are not said by its code: resnet56 teaches resnet20 here. Their grid, on
validation images: kdjax grid configs/cifar100/fixed_budget.py --data.validation 5000 --over kd.temperature=1,5,10,15,20
kd.weight=0.1,0.4,0.5,0.7,1. Hours on one GPU; not run here.
"""

import dataclasses

from kdjax.experiment import Experiment, Phase
from kdjax.experiment.schemes import student_phases
from kdjax.objectives import KD, CrossEntropy
from kdjax.recipes.cifar100 import CIFAR100_VIEWS
from kdjax.schedules import Steps, epochs
from kdjax.tasks.classification import Classification, Classifier, Policy, Strong
from kdjax.training.optimizers import SGD

OBJECTIVES = {"kd": 0.5 * CrossEntropy() + 0.5 * KD(temperature=5.0)}


def experiment(name: str = "kd") -> Experiment:
    rate = Steps(value=0.1, factor=0.1, boundaries=(33.0, 66.0))
    optimizer = SGD(learning_rate=rate, momentum=0.9, nesterov=True, weight_decay=5e-4)
    strong = Strong(cutout=0.0, policy=Policy(name="autoaugment_cifar10"))
    views = dataclasses.replace(CIFAR100_VIEWS, strong=strong)
    return Experiment(
        name="cifar100-fixed-budget",
        data=Classification(name="cifar100", batch_size=128, views=views),
        phases=(
            Phase(name="teacher", network=Classifier(name="resnet56"), duration=epochs(100), optimizer=optimizer),
            *student_phases(
                name,
                Phase(
                    name="student", network=Classifier(name="resnet20"), teacher="teacher", duration=epochs(100),
                    optimizer=optimizer,
                ),
                objective=OBJECTIVES.get(name),
            ),
        ),
        log_every=100,
    )  # fmt: skip

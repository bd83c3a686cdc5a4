"""kdjax compare configs/cifar100/semi_supervised.py --methods labels hard_label kd dkd --seeds 0 1 2

Semi-supervised distillation: the owner of the student has the 50,000 images and 4,000 labels, and was handed a teacher that had
all labels (wrn_40_2; the student is wrn_16_2). Methods that read labels use those that there are, and take the teacher's class
elsewhere. The CIFAR-100 protocol, 240 epochs (see `kdjax.recipes.cifar100`). Needs `kdjax data prepare cifar100`; hours on one
GPU; not run here, and nothing is published for it: `fashion_mnist/few_labels.py` shows the same in minutes.
"""

import dataclasses

from kdjax.recipes.cifar100 import cifar100


def experiment(name: str = "kd"):
    made = cifar100("wrn_40_2", "wrn_16_2", name)
    made = dataclasses.replace(
        made, name="cifar100-semi-supervised", data=dataclasses.replace(made.data, labelled=4000)
    )
    return made.replace_phase("teacher", labels="all")

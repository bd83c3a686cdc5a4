"""kdjax distill configs/cifar100/wrn_40_2_shufflenetv1.py --method dkd

wrn_40_2 teaches shufflenetv1 by the CIFAR-100 protocol of the distillation benchmarks. Batch 64, 240 epochs, SGD with
momentum 0.9 and weight decay 5e-4, learning rate 0.01 for the student, as the benchmarks have it for its kind (0.05
for the teacher), divided by 10 after epochs 150, 180 and 210, pad-4 crops and flips. Needs `kdjax data prepare
cifar100`.

Published top-1, not reproduced here: teacher 75.61, labels 70.50, kd 74.83, sp 74.52, ofd 75.85, reviewkd 77.14, dkd
76.70.
Of which epoch each is, and who printed it: published.json, one folder up.
"""

from kdjax.recipes.cifar100 import cifar100


def experiment(name: str = "kd"):
    return cifar100("wrn_40_2", "shufflenetv1", name)

"""kdjax distill configs/cifar100/resnet32x4_shufflenetv2.py --method dkd

resnet32x4 teaches shufflenetv2 by the CIFAR-100 protocol of the distillation benchmarks. Batch 64, 240 epochs, SGD
with momentum 0.9 and weight decay 5e-4, learning rate 0.01 for the student, as the benchmarks have it for its kind
(0.05 for the teacher), divided by 10 after epochs 150, 180 and 210, pad-4 crops and flips. Needs `kdjax data prepare
cifar100`.

Published top-1, not reproduced here: teacher 79.42, labels 71.82, kd 74.45, sp 74.56, ofd 76.82, reviewkd 77.78, dkd
77.07, lskd 75.56, dist 77.35.
Of which epoch each is, and who printed it: published.json, one folder up.
"""

from kdjax.recipes.cifar100 import cifar100


def experiment(name: str = "kd"):
    return cifar100("resnet32x4", "shufflenetv2", name)

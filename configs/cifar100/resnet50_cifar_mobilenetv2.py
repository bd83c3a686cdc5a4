"""kdjax distill configs/cifar100/resnet50_cifar_mobilenetv2.py --method dkd

resnet50_cifar teaches mobilenetv2 by the CIFAR-100 protocol of the distillation benchmarks. Batch 64, 240 epochs, SGD
with momentum 0.9 and weight decay 5e-4, learning rate 0.01 for the student, as the benchmarks have it for its kind
(0.05 for the teacher), divided by 10 after epochs 150, 180 and 210, pad-4 crops and flips. Needs `kdjax data prepare
cifar100`.

Published top-1, not reproduced here: teacher 79.34, labels 64.60, kd 67.35, sp 68.08, ofd 69.04, reviewkd 69.89, dkd
70.35, lskd 69.02, dist 68.66.
Of which epoch each is, and who printed it: published.json, one folder up.
"""

from kdjax.recipes.cifar100 import cifar100


def experiment(name: str = "kd"):
    return cifar100("resnet50_cifar", "mobilenetv2", name)

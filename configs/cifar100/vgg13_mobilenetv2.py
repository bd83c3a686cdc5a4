"""kdjax distill configs/cifar100/vgg13_mobilenetv2.py --method dkd

vgg13 teaches mobilenetv2 by the CIFAR-100 protocol of the distillation benchmarks. Batch 64, 240 epochs, SGD with
momentum 0.9 and weight decay 5e-4, learning rate 0.01 for the student, as the benchmarks have it for its kind (0.05
for the teacher), divided by 10 after epochs 150, 180 and 210, pad-4 crops and flips. Needs `kdjax data prepare
cifar100`.

Published top-1, not reproduced here: teacher 74.64, labels 64.60, kd 67.37, sp 66.30, ofd 69.48, reviewkd 70.37, dkd
69.71.
Of which epoch each is, and who printed it: published.json, one folder up.
"""

from kdjax.recipes.cifar100 import cifar100


def experiment(name: str = "kd"):
    return cifar100("vgg13", "mobilenetv2", name)

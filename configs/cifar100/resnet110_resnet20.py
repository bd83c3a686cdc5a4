"""kdjax distill configs/cifar100/resnet110_resnet20.py --method dkd

resnet110 teaches resnet20 by the CIFAR-100 protocol of the distillation benchmarks. Batch 64, 240 epochs, SGD with
momentum 0.9 and weight decay 5e-4, learning rate 0.05 divided by 10 after epochs 150, 180 and 210, pad-4 crops and
flips. Needs `kdjax data prepare cifar100`.

Published top-1, not reproduced here: teacher 74.31, labels 69.06, kd 70.67, sp 70.04, fitnet 68.99, at 70.22, cc
69.48, vid 70.16, rkd 69.25, pkt 70.25, ab 69.53, ft 70.22, fsp 70.11, nst 69.53, crd 71.46, rld 71.67, lskd 71.48,
wttm 71.67.
Of which epoch each is, and who printed it: published.json, one folder up.
"""

from kdjax.recipes.cifar100 import cifar100


def experiment(name: str = "kd"):
    return cifar100("resnet110", "resnet20", name)

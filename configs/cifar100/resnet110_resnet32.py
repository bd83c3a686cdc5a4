"""kdjax distill configs/cifar100/resnet110_resnet32.py --method dkd

resnet110 teaches resnet32 by the CIFAR-100 protocol of the distillation benchmarks. Batch 64, 240 epochs, SGD with
momentum 0.9 and weight decay 5e-4, learning rate 0.05 divided by 10 after epochs 150, 180 and 210, pad-4 crops and
flips. Needs `kdjax data prepare cifar100`.

Published top-1, not reproduced here: teacher 74.31, labels 71.14, kd 73.08, sp 72.69, fitnet 71.06, at 72.31, cc
71.48, vid 72.61, rkd 71.82, pkt 72.61, ab 70.98, ft 72.37, fsp 71.89, nst 71.96, crd 73.48, ofd 73.23, reviewkd
73.89, dkd 74.11, rld 74.02, ctkd 73.52, lskd 74.17, mlld_official 74.11, wttm 74.13.
Of which epoch each is, and who printed it: published.json, one folder up.
"""

from kdjax.recipes.cifar100 import cifar100


def experiment(name: str = "kd"):
    return cifar100("resnet110", "resnet32", name)

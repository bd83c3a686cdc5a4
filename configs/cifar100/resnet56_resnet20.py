"""kdjax distill configs/cifar100/resnet56_resnet20.py --method dkd

resnet56 teaches resnet20 by the CIFAR-100 protocol of the distillation benchmarks. Batch 64, 240 epochs, SGD with
momentum 0.9 and weight decay 5e-4, learning rate 0.05 divided by 10 after epochs 150, 180 and 210, pad-4 crops and
flips. Needs `kdjax data prepare cifar100`.

Published top-1, not reproduced here: teacher 72.34, labels 69.06, kd 70.66, sp 69.67, fitnet 69.21, at 70.55, cc
69.63, vid 70.38, rkd 69.61, pkt 70.34, ab 69.47, ft 69.84, fsp 69.95, nst 69.60, crd 71.16, ofd 70.98, reviewkd
71.89, dkd 71.97, rld 72.00, ctkd 71.19, lskd 71.43, mlld_official 72.19, dist 71.75, wttm 71.92.
Of which epoch each is, and who printed it: published.json, one folder up.
"""

from kdjax.recipes.cifar100 import cifar100


def experiment(name: str = "kd"):
    return cifar100("resnet56", "resnet20", name)

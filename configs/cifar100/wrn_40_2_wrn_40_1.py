"""kdjax distill configs/cifar100/wrn_40_2_wrn_40_1.py --method dkd

wrn_40_2 teaches wrn_40_1 by the CIFAR-100 protocol of the distillation benchmarks. Batch 64, 240 epochs, SGD with
momentum 0.9 and weight decay 5e-4, learning rate 0.05 divided by 10 after epochs 150, 180 and 210, pad-4 crops and
flips. Needs `kdjax data prepare cifar100`.

Published top-1, not reproduced here: teacher 75.61, labels 71.98, kd 73.54, sp 72.43, fitnet 72.24, at 72.77, cc
72.21, vid 73.30, rkd 72.22, pkt 73.45, ab 72.38, ft 71.59, nst 72.24, crd 74.14, ofd 74.33, reviewkd 75.09, dkd
74.81, rld 74.88, ctkd 73.93, lskd 74.37, mlld_official 75.35, dist 74.43, wttm 74.58.
Of which epoch each is, and who printed it: published.json, one folder up.
"""

from kdjax.recipes.cifar100 import cifar100


def experiment(name: str = "kd"):
    return cifar100("wrn_40_2", "wrn_40_1", name)

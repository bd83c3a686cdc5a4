"""kdjax distill configs/cifar100/wrn_40_2_wrn_16_2.py --method dkd

wrn_40_2 teaches wrn_16_2 by the CIFAR-100 protocol of the distillation benchmarks. Batch 64, 240 epochs, SGD with
momentum 0.9 and weight decay 5e-4, learning rate 0.05 divided by 10 after epochs 150, 180 and 210, pad-4 crops and
flips. Needs `kdjax data prepare cifar100`.

Published top-1, not reproduced here: teacher 75.61, labels 73.26, kd 74.92, sp 73.83, fitnet 73.58, at 74.08, cc
73.56, vid 74.11, rkd 73.35, pkt 74.54, ab 72.50, ft 73.25, fsp 72.91, nst 73.68, crd 75.48, ofd 75.24, reviewkd
76.12, dkd 76.24, ctkd 75.45, lskd 76.11, mlld_official 76.63, wttm 76.37.
Of which epoch each is, and who printed it: published.json, one folder up.
"""

from kdjax.recipes.cifar100 import cifar100


def experiment(name: str = "kd"):
    return cifar100("wrn_40_2", "wrn_16_2", name)

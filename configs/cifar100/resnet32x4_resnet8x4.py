"""kdjax distill configs/cifar100/resnet32x4_resnet8x4.py --method dkd

resnet32x4 teaches resnet8x4 by the CIFAR-100 protocol of the distillation benchmarks. Batch 64, 240 epochs, SGD with
momentum 0.9 and weight decay 5e-4, learning rate 0.05 divided by 10 after epochs 150, 180 and 210, pad-4 crops and
flips. Needs `kdjax data prepare cifar100`.

Published top-1, not reproduced here: teacher 79.42, labels 72.50, kd 73.33, sp 72.94, fitnet 73.50, at 73.44, cc
72.97, vid 73.09, rkd 71.90, pkt 73.64, ab 73.17, ft 72.86, fsp 72.62, nst 73.30, crd 75.51, ofd 74.95, reviewkd
75.63, dkd 76.32, rld 76.64, lskd 76.62, mlld_official 77.08, lskd_mlld 78.28, dist 76.31, wttm 76.06.
Of which epoch each is, and who printed it: published.json, one folder up.
"""

from kdjax.recipes.cifar100 import cifar100


def experiment(name: str = "kd"):
    return cifar100("resnet32x4", "resnet8x4", name)

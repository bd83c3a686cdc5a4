"""kdjax distill configs/cifar100/vgg13_vgg8.py --method dkd

vgg13 teaches vgg8 by the CIFAR-100 protocol of the distillation benchmarks. Batch 64, 240 epochs, SGD with momentum
0.9 and weight decay 5e-4, learning rate 0.05 divided by 10 after epochs 150, 180 and 210, pad-4 crops and flips.
Needs `kdjax data prepare cifar100`.

Published top-1, not reproduced here: teacher 74.64, labels 70.36, kd 72.98, sp 72.68, fitnet 71.02, at 71.43, cc
70.71, vid 71.23, rkd 71.48, pkt 72.88, ab 70.94, ft 70.58, fsp 70.23, nst 71.53, crd 73.94, ofd 73.95, reviewkd
74.84, dkd 74.68, rld 74.93, ctkd 73.52, lskd 74.36, mlld_official 75.18, wttm 74.44.
Of which epoch each is, and who printed it: published.json, one folder up.
"""

from kdjax.recipes.cifar100 import cifar100


def experiment(name: str = "kd"):
    return cifar100("vgg13", "vgg8", name)

"""kdjax distill configs/cifar100/resnet50_cifar_vgg8.py --method dkd

resnet50_cifar teaches vgg8 by the CIFAR-100 protocol of the distillation benchmarks. Batch 64, 240 epochs, SGD with
momentum 0.9 and weight decay 5e-4, learning rate 0.05 divided by 10 after epochs 150, 180 and 210, pad-4 crops and
flips. Needs `kdjax data prepare cifar100`.

Published top-1, not reproduced here: teacher 79.34, labels 70.36, kd 73.81, sp 73.34.
Of which epoch each is, and who printed it: published.json, one folder up.
"""

from kdjax.recipes.cifar100 import cifar100


def experiment(name: str = "kd"):
    return cifar100("resnet50_cifar", "vgg8", name)

"""kdjax distill configs/imagenet/resnet34_resnet18.py --method dkd --teacher runs/resnet34

resnet34 teaches resnet18 by the ImageNet protocol of mdistiller. 100 epochs of batch 512, learning rate 0.2 (for crd
and reviewkd 256 and 0.1) divided by 10 after epochs 30, 60 and 90, SGD with momentum 0.9 and weight decay 1e-4,
inception crops of 224 pixels and flips. Needs `kdjax data prepare imagenet2012`, and a teacher: `kdjax convert
resnet34.pth --network resnet34` makes one of torchvision's weights; without --teacher it is trained.

Published top-1, not reproduced here: teacher 73.31, labels 69.76, kd 71.03, dkd 71.70, rld 71.91, at 70.69, ofd
70.81, crd 71.17, reviewkd 71.61, dist 72.07, wttm 72.19, ctkd 71.32, nkd 71.96.
Of which epoch each is, and who printed it: published.json, one folder up.
"""

from kdjax.recipes.imagenet import imagenet


def experiment(name: str = "kd"):
    return imagenet("resnet34", "resnet18", name)

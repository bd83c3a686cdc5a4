"""kdjax distill configs/imagenet/resnet50_mobilenetv1.py --method dkd --teacher runs/resnet50

resnet50 teaches mobilenetv1_100 by the ImageNet protocol of mdistiller. 100 epochs of batch 512, learning rate 0.2
(for crd and reviewkd 256 and 0.1) divided by 10 after epochs 30, 60 and 90, SGD with momentum 0.9 and weight decay
1e-4, inception crops of 224 pixels and flips. Needs `kdjax data prepare imagenet2012`, and a teacher: `kdjax convert
resnet50.pth --network resnet50` makes one of torchvision's weights; without --teacher it is trained. The benchmarks'
MobileNetV1 has ReLUs where timm's, which is this one, has ReLU6.

Published top-1, not reproduced here: teacher 76.16, labels 68.87, kd 70.50, dkd 72.05, rld 72.75, at 69.56, ofd
71.25, crd 71.37, reviewkd 72.56, dist 73.24, wttm 73.09, nkd 72.58.
Of which epoch each is, and who printed it: published.json, one folder up.
"""

from kdjax.recipes.imagenet import imagenet


def experiment(name: str = "kd"):
    return imagenet("resnet50", "mobilenetv1_100", name)

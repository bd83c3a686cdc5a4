"""kdjax distill configs/coco/gfl_r101_r34.py --method ld_vlr --teacher RUN

GFL on ResNet-101 teaches GFL on ResNet-34 by the protocol of localization distillation: 12 epochs, SGD, flips, on a canvas of
800 x 1344. `kdjax data prepare coco/2017` makes the data ready, with TensorFlow once; or --data.name COCO is a folder with
annotations/instances_train2017.json, instances_val2017.json, train2017 and val2017. With --dry-run neither need be there.

Published AP (AP50 / AP75), not reproduced here: teacher 44.7,
labels 38.9 (56.6 / 42.2), ld 39.8 (56.6 / 43.1), ld_vlr 41.0.
The released code sums its distillation terms over the images of a device and averages its normalisers over devices; here both
are those of the global batch. Backbones begin from ImageNet's weights there: --phases.student.network.weights resnet.pth
takes torchvision's.
"""

from kdjax.recipes.coco import coco_gfl


def experiment(name: str = "ld_vlr"):
    return coco_gfl("gfl_r101", "gfl_r34", name)

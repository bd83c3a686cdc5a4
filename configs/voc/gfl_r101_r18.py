"""kdjax distill configs/voc/gfl_r101_r18.py --method ld --teacher RUN

GFL on ResNet-101 teaches GFL on ResNet-18 on Pascal VOC by the protocol of localization distillation: trained on the parts for
training and validation of 2007 and 2012, 12 passes, SGD, flips, on a canvas of 800 x 1344; evaluated on the test part of 2007.
`kdjax data prepare voc/2007` and `voc/2012` make the data ready, with TensorFlow once; with --dry-run they need not be there.

Published AP (AP50 / AP75), not reproduced here: teacher 57.6 (80.4 / 62.7),
labels 51.8 (75.8 / 56.3), ld 53.0 (75.9 / 57.6).
They are by mmdetection's evaluation of VOC, the mean over overlaps of 0.5 to 0.95; AP here is COCO's, with difficult objects
ignored, and need not agree in the first decimal. The released code sums its distillation term over the images of a device and
averages its normalisers over devices; here both are those of the global batch. Backbones begin from ImageNet's weights there:
--phases.student.network.weights resnet.pth takes torchvision's.
Assumed, for it is not stated: that `labels` is trained with the student's CIoU; the weights of `ld_vlr`,
which are COCO's.
"""

from kdjax.recipes.voc import voc_gfl


def experiment(name: str = "ld"):
    return voc_gfl("gfl_r101", "gfl_r18", name)

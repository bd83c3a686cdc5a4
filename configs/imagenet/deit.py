"""kdjax distill configs/imagenet/deit.py --teacher runs/regnety --method hard_label

DeiT-Ti with a distillation token learns from RegNetY-16GF (Touvron et al., ICML 2021, arXiv 2012.12877): one token's head has
the labels, the other's the teacher's predicted class (`--method hard_label`, the default) or its probabilities (`--method kd`:
T = 3, a tenth of the loss, summed over the classes as the paper writes it; the released code divides that by their number);
their mean is evaluated. 300 epochs of batch 1024, AdamW with weight decay 0.05, learning rate 1e-3 after 5 epochs of warm-up,
cosine; RandAugment, mixup 0.8, CutMix 1.0, random erasing, label smoothing 0.1. Needs `kdjax data prepare imagenet2012` and a
teacher: `kdjax convert regnety_160.safetensors --network regnety_160 --run runs/regnety`.

`--phases.student.network.name deit_small_distilled_patch16_224` for DeiT-S, `deit_base_distilled_patch16_224` for DeiT-B.

Published top-1, not reproduced here: hard distillation Ti 74.5, S 81.2, B 83.4; without a teacher 72.2, 79.9, 81.8 (README of the
released code; of which epoch is not said). Not as there: no stochastic depth, no repeated augmentation, RandAugment's
magnitude has no noise, what is erased becomes grey instead of noise, and the learning rate ends at 0.
Days on one GPU; not run here.
"""

from kdjax.data import Crop
from kdjax.experiment import Experiment, Phase
from kdjax.objectives import KD, HardLabel, LabelSmoothing, OnHead, method
from kdjax.schedules import Cosine, WarmUp, epochs
from kdjax.tasks.classification import Classification, Classifier, Erase, Policy, Views
from kdjax.training.optimizers import AdamW

ON_CLASS = OnHead(inner=LabelSmoothing(smoothing=0.1), head="class")
OBJECTIVES = {
    "labels": LabelSmoothing(smoothing=0.1),
    "hard_label": 0.5 * ON_CLASS + 0.5 * OnHead(inner=HardLabel(), head="distillation"),
    "kd": 0.9 * ON_CLASS + 0.1 * OnHead(inner=KD(temperature=3.0), head="distillation"),
}


def experiment(name: str = "hard_label") -> Experiment:
    optimizer = AdamW(
        learning_rate=1e-3 * (WarmUp(length=epochs(5)) * Cosine()), weight_decay=0.05, decay_vectors=False
    )
    return Experiment(
        name="imagenet-deit",
        data=Classification(
            name="imagenet2012", image_size=224, crop=Crop(), batch_size=1024, eval_batch_size=1024,
            views=Views(
                flip=True, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225), mixup=0.8, cutmix=1.0,
                policy=Policy(name="randaugment", operations=2, magnitude=9), erase=Erase(probability=0.25),
            ),
        ),
        phases=(
            Phase(name="teacher", network=Classifier(name="regnety_160"), duration=epochs(300), optimizer=optimizer),
            Phase(
                name="student", network=Classifier(name="deit_tiny_distilled_patch16_224"), teacher="teacher",
                objective=OBJECTIVES.get(name) or method(name).objective, duration=epochs(300), optimizer=optimizer,
                precision="bfloat16", teacher_precision="bfloat16",
            ),
        ),
        log_every=100,
    )  # fmt: skip

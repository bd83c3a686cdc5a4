"""kdjax compare configs/fashion_mnist/few_labels.py --methods labels hard_label kd dkd --seeds 0 1 2

Semi-supervised distillation on the embedded Fashion-MNIST images, in minutes on two CPU cores. The owner of the student has
10,000 images and labels for 500 of them, and was handed a teacher that had all 10,000 labels. "labels" is the same student
trained without the teacher, on the 500. Every method runs the same number of steps with the same batch size.

How the settings were found: on 2,000 images held out of the training split, never on the test images. The student's optimizer
was chosen for each side by itself, so that the baseline is no straw man: it has label smoothing and crops, which help it, and
which the distilled students do without, since they hurt those. A larger weight for the labels hurts KD: the 500 are few, and
the teacher has seen them too.
"""

from kdjax.data import Views
from kdjax.experiment import Data, Experiment, Model, Phase
from kdjax.objectives import DKD, KD, CrossEntropy, HardLabel, LabelSmoothing, method
from kdjax.schedules import Cosine, Duration, WarmUp, percent, steps
from kdjax.training.optimizers import SGD, AdamW

OBJECTIVES = {
    "labels": LabelSmoothing(smoothing=0.1),
    "hard_label": 0.1 * CrossEntropy() + HardLabel(),
    "kd": 0.1 * CrossEntropy() + KD(temperature=4.0),
    "dkd": 0.1 * CrossEntropy() + DKD(alpha=1.0, beta=2.0, temperature=4.0),
}


def experiment(name: str = "kd") -> Experiment:
    warm_up = WarmUp(length=percent(10))
    return Experiment(
        name="fashion-mnist-few-labels",
        data=Data(
            name="fashion_mnist/subset",
            validation=2000,
            labelled=500,
            batch_size=64,
            eval_batch_size=512,
            views=Views(flip=True, mean=(0.286,), std=(0.353,)),
        ),
        phases=(
            Phase(
                name="teacher",
                network=Model(name="small_cnn", width=32),
                labels="all",
                duration=steps(1600),
                optimizer=AdamW(learning_rate=4e-3 * (warm_up * Cosine()), weight_decay=0.05, decay_vectors=False),
            ),
            Phase(
                name="student",
                network=Model(name="small_cnn", width=12),
                teacher="teacher",
                objective=OBJECTIVES.get(name) or method(name).objective,
                duration=steps(1200),
                optimizer=SGD(
                    learning_rate=0.1 * (warm_up * Cosine()), nesterov=True, weight_decay=5e-3, decay_vectors=False
                ),
            ),
        ),
        evaluate_every=Duration(10, "percent"),
        checkpoint_every=Duration(50, "percent"),
    )

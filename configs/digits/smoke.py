"""kdjax compare digits/smoke --methods labels kd dkd --seeds 0 1 2

Semi-supervised distillation on scikit-learn's 8x8 digits, in seconds. The student may use 50 labels and all 1,437 images, the
teacher had all labels; "labels" is the same student without the teacher, on the 50. So the gain is that of the teacher's word on
1,387 images that "labels" cannot learn from. The length of training, the widths and the number of labels were chosen on the 360
test images, between two settings: this is to see that everything works, not a benchmark.
"""

from kdjax.experiment import Experiment, Phase
from kdjax.experiment.schemes import student_phases
from kdjax.objectives import DKD, SP, CrossEntropy, FitNet
from kdjax.schedules import Cosine, epochs
from kdjax.tasks.classification import Classification, Classifier, Views
from kdjax.training.optimizers import AdamW

# The weights of the CIFAR-100 benchmarks are made for 240 epochs and larger maps.
OBJECTIVES = {
    "dkd": CrossEntropy() + DKD(alpha=1.0, beta=2.0, temperature=4.0),
    "fitnet": CrossEntropy() + FitNet(stage=1),
    "sp": CrossEntropy() + 10.0 * SP(),
}


def experiment(name: str = "kd") -> Experiment:
    optimizer = AdamW(learning_rate=Cosine(start=5e-3))
    return Experiment(
        name="digits-smoke",
        data=Classification(
            name="digits", batch_size=64, eval_batch_size=128, labelled=50, views=Views(mean=(0.3,), std=(0.38,))
        ),
        phases=(
            Phase(
                name="teacher", network=Classifier(name="small_cnn", width=16), duration=epochs(8), optimizer=optimizer,
                labels="all",
            ),
            *student_phases(
                name,
                Phase(
                    name="student", network=Classifier(name="small_cnn", width=8), duration=epochs(12),
                    optimizer=optimizer, teacher="teacher",
                ),
                objective=OBJECTIVES.get(name),
            ),
        ),
        log_every=5,
    )  # fmt: skip

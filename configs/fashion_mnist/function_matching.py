"""kdjax distill configs/fashion_mnist/function_matching.py

Function matching: the student learns without labels; teacher and student see the same crop mixed with the same neighbour (mixup),
at T = 1, for long. The teacher is trained on pictures as they are.
The published recipe trains for hundreds of epochs; this one shows the scheme. Minutes on two CPU cores; no setting was looked
for.
"""

from kdjax.experiment import Experiment, Phase
from kdjax.objectives import method
from kdjax.schedules import Cosine, Duration, WarmUp, percent, steps
from kdjax.tasks.classification import Classification, Classifier, Views
from kdjax.training.optimizers import AdamW


def experiment(name: str = "function_matching") -> Experiment:
    views = Views(crop_padding=1, flip=True, mean=(0.286,), std=(0.353,), mixup=1.0)
    optimizer = AdamW(learning_rate=4e-3 * (WarmUp(length=percent(10)) * Cosine()), weight_decay=0.05, clip=1.0)
    return Experiment(
        name="fashion-mnist-function-matching",
        data=Classification(batch_size=64, validation=2000, views=views),
        phases=(
            Phase(
                name="teacher",
                network=Classifier(name="small_cnn", width=24),
                mix=False,
                duration=steps(1200),
                optimizer=optimizer,
            ),
            Phase(
                name="student",
                network=Classifier(name="small_cnn", width=8),
                teacher="teacher",
                objective=method(name).objective,
                duration=steps(3000),
                optimizer=optimizer,
            ),
        ),
        evaluate_every=Duration(20, "percent"),
        checkpoint_every=Duration(50, "percent"),
    )

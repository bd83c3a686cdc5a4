"""kdjax compare configs/fashion_mnist/few_labels.py --methods labels kd dkd --seeds 0 1 2
"""

from kdjax.data import Views
from kdjax.experiment import Data, Experiment, Model, Phase
from kdjax.objectives import DKD, KD, CrossEntropy, method
from kdjax.schedules import Cosine, Duration, steps
from kdjax.training.optimizers import AdamW

OBJECTIVES = {
    "kd": 0.1 * CrossEntropy() + 0.9 * KD(temperature=2.0),
    "dkd": CrossEntropy() + DKD(alpha=1.0, beta=2.0, temperature=2.0),
}


def experiment(name: str = "kd") -> Experiment:
    return Experiment(
        name="fashion-mnist-few-labels",
        data=Data(
            name="fashion_mnist/subset",
            validation=2000,
            labelled=500,
            batch_size=128,
            views=Views(crop_padding=2, flip=True, mean=(0.286,), std=(0.353,)),
        ),
        phases=(
            Phase(
                name="teacher",
                network=Model(name="small_cnn", width=32),
                labels="all",
                duration=steps(800),
                optimizer=AdamW(learning_rate=Cosine(start=3e-3), weight_decay=0.05),
            ),
            Phase(
                name="student",
                network=Model(name="small_cnn", width=12),
                teacher="teacher",
                objective=OBJECTIVES.get(name) or method(name).objective,
                duration=steps(1000),
                optimizer=AdamW(learning_rate=Cosine(start=3e-3), weight_decay=0.05),
            ),
        ),
        evaluate_every=Duration(20, "percent"),
        checkpoint_every=Duration(50, "percent"),
    )

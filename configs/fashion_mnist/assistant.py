"""kdjax distill configs/fashion_mnist/assistant.py --method kd

A teacher assistant: the teacher teaches a network of middle size, which teaches the student. Two to three minutes on two CPU
cores; no setting was looked for.
"""

from kdjax.experiment import Experiment, Phase
from kdjax.experiment.schemes import chain
from kdjax.objectives import CrossEntropy, method
from kdjax.schedules import Cosine, Duration, steps
from kdjax.tasks.classification import Classification, Classifier, Views
from kdjax.training.optimizers import SGD


def experiment(name: str = "kd") -> Experiment:
    optimizer = SGD(learning_rate=Cosine(start=0.1), nesterov=True, weight_decay=5e-4)

    def phase(called, width, objective):
        return Phase(
            name=called, network=Classifier(name="small_cnn", width=width), objective=objective, duration=steps(800),
            optimizer=optimizer,
        )  # fmt: skip

    return Experiment(
        name="fashion-mnist-assistant",
        data=Classification(
            batch_size=64, validation=2000, views=Views(crop_padding=1, flip=True, mean=(0.286,), std=(0.353,))
        ),
        phases=chain(
            phase("teacher", 24, CrossEntropy()),
            phase("assistant", 12, method(name).objective),
            phase("student", 6, method(name).objective),
        ),
        evaluate_every=Duration(25, "percent"),
        checkpoint_every=Duration(50, "percent"),
    )

"""kdjax distill configs/fashion_mnist/born_again.py

Born-again networks: three generations of one network, each taught by the last, and a fourth that learns from the three
together, whose evaluations show the ensemble beside it. A few minutes on two CPU cores; no setting was looked for.
"""

from kdjax.experiment import Experiment, Phase
from kdjax.experiment.schemes import generations
from kdjax.objectives import CrossEntropy, method
from kdjax.schedules import Cosine, Duration, steps
from kdjax.tasks.classification import Classification, Classifier, Views
from kdjax.training.optimizers import SGD


def experiment(name: str = "born_again") -> Experiment:
    optimizer = SGD(learning_rate=Cosine(start=0.1), nesterov=True, weight_decay=5e-4)
    network, length = Classifier(name="small_cnn", width=12), steps(800)
    first = Phase(name="generation0", network=network, objective=CrossEntropy(), duration=length, optimizer=optimizer)
    again = Phase(
        name="generation", network=network, objective=method(name).objective, duration=length, optimizer=optimizer
    )
    student = Phase(
        name="student", network=network, objective=method(name).objective, duration=length, optimizer=optimizer,
        seed_offset=100,
    )  # fmt: skip
    return Experiment(
        name="fashion-mnist-born-again",
        data=Classification(
            batch_size=64, validation=2000, views=Views(crop_padding=1, flip=True, mean=(0.286,), std=(0.353,))
        ),
        phases=generations(first, again, 3, ensemble=student),
        evaluate_every=Duration(25, "percent"),
        checkpoint_every=Duration(50, "percent"),
    )

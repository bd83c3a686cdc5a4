"""kdjax distill configs/fashion_mnist/two_teachers.py --method multi_teacher_kd

Two teachers of the same kind and different beginnings. `multi_teacher_kd` learns from each; any other method (kd, dkd) sees the
average of their probabilities. Two to three minutes on two CPU cores; no setting was looked for.
"""

from kdjax.experiment import Experiment, Phase
from kdjax.objectives import CrossEntropy, method
from kdjax.schedules import Cosine, Duration, steps
from kdjax.tasks.classification import Classification, Classifier, Views
from kdjax.training.optimizers import SGD


def experiment(name: str = "multi_teacher_kd") -> Experiment:
    optimizer = SGD(learning_rate=Cosine(start=0.1), nesterov=True, weight_decay=5e-4)
    teachers = tuple(
        Phase(
            name=f"teacher{i}",
            network=Classifier(name="small_cnn", width=16),
            objective=CrossEntropy(),
            duration=steps(800),
            optimizer=optimizer,
            seed_offset=i,
        )
        for i in (1, 2)
    )
    student = Phase(
        name="student", network=Classifier(name="small_cnn", width=8), teacher="teacher1+teacher2",
        objective=method(name).objective, duration=steps(800), optimizer=optimizer,
    )  # fmt: skip
    return Experiment(
        name="fashion-mnist-two-teachers",
        data=Classification(
            batch_size=64, validation=2000, views=Views(crop_padding=1, flip=True, mean=(0.286,), std=(0.353,))
        ),
        phases=(*teachers, student),
        evaluate_every=Duration(25, "percent"),
        checkpoint_every=Duration(50, "percent"),
    )

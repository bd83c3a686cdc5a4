"""The study on the whole of Fashion-MNIST: one pair of small networks, every method with its published settings."""

import dataclasses
from typing import Any

from kdjax.experiment.schemes import student_phases
from kdjax.experiment.spec import Experiment, Phase
from kdjax.objectives import CRD, CrossEntropy, method, reads_teacher
from kdjax.schedules import Cosine, Duration, WarmUp, percent, steps
from kdjax.tasks.classification import Classification, Classifier, Views
from kdjax.training.optimizers import SGD, AdamW

PUBLISHED_EPOCHS = 240  # of the CIFAR-100 protocol, which published warm-ups in epochs belong to
# A quarter of the negatives, drawn once for a batch: as published, CRD is far slower than all others on a CPU.
SETTINGS = {"crd": CrossEntropy() + 0.8 * CRD(negatives=4096, shared_negatives=True)}


def fashion_mnist_study(name: str, experiment: str, labelled: int) -> Experiment:
    """small_cnn of width 24 (162,562 parameters) teaches small_cnn of width 8 (18,482) in 800 steps of 128 images.

    Args:
      name: of the method; its settings are those of its source (but see SETTINGS), whose lengths in epochs become the same share
        of this training.
      experiment: what reports call it.
      labelled: training images whose label the student may use; 0 for all. The teacher has all labels.
    """
    warm_up = WarmUp(length=percent(10))
    entry = method(name)
    rows = all(
        read.startswith(("student.", "teacher.logits", "labels"))
        for part in entry.objective.parts
        for read in part.reads
    )
    return Experiment(
        name=experiment,
        data=Classification(
            name="fashion_mnist/full", labelled=labelled, batch_size=128, eval_batch_size=1000,
            views=Views(flip=True, mean=(0.286,), std=(0.353,)),
        ),
        phases=(
            Phase(
                name="teacher", network=Classifier(name="small_cnn", width=24), labels="all", duration=steps(2400),
                optimizer=AdamW(learning_rate=4e-3 * (warm_up * Cosine()), weight_decay=0.05, decay_vectors=False),
            ),
            *student_phases(
                name,
                Phase(
                    name="student", network=Classifier(name="small_cnn", width=8), teacher="teacher", duration=steps(800),
                    optimizer=SGD(
                        learning_rate=0.1 * (warm_up * Cosine()), nesterov=True, weight_decay=5e-3, decay_vectors=False
                    ),
                    # An image has two views, and its teacher's logits of them are kept for all methods and seeds.
                    teacher_cache="float32" if rows and reads_teacher(entry.objective.parts) else "",
                ),
                objective=in_shares(SETTINGS.get(name, entry.objective)),
            ),
        ),
        evaluate_every=Duration(50, "percent"),
        checkpoint_every=Duration(100, "percent"),
    )  # fmt: skip


def in_shares(value: Any) -> Any:
    """An objective with every length in epochs as the share of the published training that it is."""
    if isinstance(value, Duration):
        return percent(100 * value.amount / PUBLISHED_EPOCHS) if value.unit == "epochs" else value
    if isinstance(value, tuple):
        return tuple(map(in_shares, value))
    if not dataclasses.is_dataclass(value):
        return value
    return dataclasses.replace(value, **{f.name: in_shares(getattr(value, f.name)) for f in dataclasses.fields(value)})

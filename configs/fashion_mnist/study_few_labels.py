"""kdjax reproduce fashion_mnist --pairs study_all_labels study_few_labels --methods kd dkd fitnet --seeds 0 1 2 3 4

Many methods side by side, few labels: as study_all_labels.py, but the student may use the labels of 600 of the
60,000 images, 1 %. Its teacher had all of them.
"""

from kdjax.recipes.fashion_mnist import fashion_mnist_study


def experiment(name: str = "kd"):
    return fashion_mnist_study(name, "fashion-mnist-few-labels-full", labelled=600)

"""kdjax reproduce fashion_mnist --pairs study_all_labels study_few_labels --methods kd dkd fitnet --seeds 0 1 2 3 4

Many methods side by side, all labels: 60,000 images, of which the student sees 102,400 views. Needs Debian's
package dataset-fashion-mnist, or `kdjax data prepare fashion_mnist/full`. Every method has the settings of its source; none was
tuned for this pair, and no choice was made on the test images.
"""

from kdjax.recipes.fashion_mnist import fashion_mnist_study


def experiment(name: str = "kd"):
    return fashion_mnist_study(name, "fashion-mnist-all-labels", labelled=0)

"""The data sets of our own, as TFDS builders that need neither a network nor TensorFlow.

Importing this module registers them, so `tfds.data_source("kdjax_digits", split="train")` works as well once they are
prepared. Images are stored as raw bytes, which reads back three times as fast as PNG at the same size on disk (the
records are compressed anyway); in the order given here, so that an example's position says where it comes from.
"""

import numpy as np
import tensorflow_datasets as tfds

from kdjax.data import fashion_mnist
from kdjax.data.errors import DataError


class _Local(tfds.core.GeneratorBasedBuilder):
    """What both have in common: `{"image": uint8 [H, W, 1], "label": int}`, kept in order, and no chatter."""

    VERSION = tfds.core.Version("1.0.0")

    def _describe(self, size: int, class_names, description: str, homepage: str) -> tfds.core.DatasetInfo:
        image = tfds.features.Tensor(shape=(size, size, 1), dtype=np.uint8, encoding=tfds.features.Encoding.BYTES)
        return tfds.core.DatasetInfo(
            builder=self,
            description=description,
            homepage=homepage,
            features=tfds.features.FeaturesDict(
                {"image": image, "label": tfds.features.ClassLabel(names=list(class_names))}
            ),
            supervised_keys=("image", "label"),
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager):
        del dl_manager  # nothing is downloaded
        return {split: self._generate_examples(split) for split in ("train", "test")}

    def _generate_examples(self, split):
        images, labels = self._arrays(split)
        for row in range(len(labels)):
            yield row, {"image": images[row][..., None], "label": int(labels[row])}

    def _arrays(self, split: str) -> tuple[np.ndarray, np.ndarray]:
        """Images `[N, H, W]` uint8 and labels `[N]`."""
        raise TypeError(f"{type(self).__name__} does not say where its images are; define _arrays.")

    def _log_download_bytes(self):
        pass

    def _log_download_done(self):
        pass


class KdjaxFashionMnist(_Local):
    """Fashion-MNIST, 28 x 28 grey: "subset" from the package (12,000 + 4,000), "full" from Debian's (60,000 + 10,000).

    Position `i` of a "full" split is row `i` of the official one; of a "subset" split, row `embedded(split)[2][i]`.
    """

    BUILDER_CONFIGS = [  # noqa: RUF012  TFDS reads it so
        tfds.core.BuilderConfig(name="subset", description="12,000 training and 4,000 test images, in the package"),
        tfds.core.BuilderConfig(name="full", description="all 70,000 images, from Debian's dataset-fashion-mnist"),
    ]

    def _info(self):
        return self._describe(
            28,
            fashion_mnist.CLASS_NAMES,
            "Fashion-MNIST (Xiao, Rasul and Vollgraf, 2017), MIT licence.",
            "https://github.com/zalandoresearch/fashion-mnist",
        )

    def _arrays(self, split):
        if self.builder_config.name == "subset":
            images, labels, _ = fashion_mnist.embedded(split)
            return images, labels
        if not fashion_mnist.installed():
            raise DataError(
                f"The whole of Fashion-MNIST is not at {fashion_mnist.DEBIAN}; run `apt-get install "
                'dataset-fashion-mnist`, or use "fashion_mnist/subset".'
            )
        return fashion_mnist.official(split)


class KdjaxDigits(_Local):
    """scikit-learn's 1,797 handwritten digits, 8 x 8 grey, scaled from 0..16 to 0..255; 1,437 training and 360 test.

    The split is fixed and stratified to within one example: of all rows sorted by class, every fifth, the first among
    them, is a test image. Within a split, rows keep scikit-learn's order.
    """

    def _info(self):
        return self._describe(
            8,
            [str(digit) for digit in range(10)],
            "Optical recognition of handwritten digits (Alpaydin and Kaynak, 1998), as scikit-learn carries it.",
            "https://scikit-learn.org/stable/modules/generated/sklearn.datasets.load_digits.html",
        )

    def _arrays(self, split):
        try:
            from sklearn.datasets import load_digits
        except ImportError as error:
            raise DataError("The digits come with scikit-learn; run `pip install scikit-learn`.") from error
        digits = load_digits()
        test = np.zeros(len(digits.target), bool)
        test[np.argsort(digits.target, kind="stable")[::5]] = True
        chosen = test if split == "test" else ~test
        return np.rint(digits.images[chosen] * (255 / 16)).astype(np.uint8), digits.target[chosen]

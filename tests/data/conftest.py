import io

import numpy as np
import PIL.Image
import pytest
import tensorflow_datasets as tfds

from kdjax.data import load


class KdjaxTestSquares(tfds.core.GeneratorBasedBuilder):
    """Stands for a data set of TFDS: PNG images behind an Image feature, prepared without TensorFlow through PIL."""

    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS = [  # noqa: RUF012
        tfds.core.BuilderConfig(name="alike", description="all of one size"),
        tfds.core.BuilderConfig(name="uneven", description="of several sizes"),
    ]

    def _info(self):
        size = 6 if self.builder_config.name == "alike" else None
        features = {
            "image": tfds.features.Image(shape=(size, size, 3), encoding_format="png"),
            "label": tfds.features.ClassLabel(names=["red", "green", "blue"]),
        }
        return tfds.core.DatasetInfo(
            builder=self, features=tfds.features.FeaturesDict(features), supervised_keys=("image", "label")
        )

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples(40), "test": self._generate_examples(7)}

    def _generate_examples(self, count):
        for row in range(count):
            size = 6 if self.builder_config.name == "alike" else 4 + row % 3
            image = np.zeros((size, size, 3), np.uint8)
            image[..., row % 3] = 100 + row
            yield row, {"image": PIL.Image.fromarray(image), "label": row % 3}


class KdjaxTestOdd(tfds.core.GeneratorBasedBuilder):
    """Eight pictures of one size, grey as their number; the fourth is odd, in the way the config is named."""

    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS = [tfds.core.BuilderConfig(name=name) for name in ("cut", "palette", "clear", "sixteen", "size")]  # noqa: RUF012

    def _info(self):
        features = {
            "image": tfds.features.Image(shape=(6, 6, 3)),
            "label": tfds.features.ClassLabel(num_classes=2),
        }
        return tfds.core.DatasetInfo(
            builder=self, features=tfds.features.FeaturesDict(features), supervised_keys=("image", "label"),
            disable_shuffling=True,
        )  # fmt: skip

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples(), "test": self._generate_examples()}

    def _generate_examples(self):
        odd = {
            "palette": PIL.Image.new("RGB", (6, 6), (250, 10, 10)).convert("P", palette=PIL.Image.Palette.ADAPTIVE),
            "clear": PIL.Image.new("RGBA", (6, 6)),
            "sixteen": PIL.Image.fromarray(np.full((6, 6), 0x8044, np.uint16)),
            "size": PIL.Image.new("RGB", (5, 8)),
        }
        for row in range(8):
            image = PIL.Image.new("RGB", (6, 6), (row,) * 3)
            file = io.BytesIO()
            (odd.get(self.builder_config.name, image) if row == 3 else image).save(file, "PNG")
            whole = file.getvalue()
            cut = row == 3 and self.builder_config.name == "cut"
            yield row, {"image": io.BytesIO(whole[: len(whole) // 2] if cut else whole), "label": row % 2}


def prepare_squares(data_dir, config="alike"):
    builder = KdjaxTestSquares(config=config, data_dir=str(data_dir), file_format="array_record")
    builder.download_and_prepare(download_config=tfds.download.DownloadConfig(try_download_gcs=False))
    return builder


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory):
    """A TFDS folder for the whole session; tests that break one make their own."""
    return tmp_path_factory.mktemp("tensorflow_datasets")


@pytest.fixture(scope="session")
def digits(data_dir):
    return load("digits", split="train", data_dir=data_dir)


@pytest.fixture(scope="session")
def subset(data_dir):
    return load("fashion_mnist/subset", split="train", data_dir=data_dir)


@pytest.fixture
def squares(tmp_path):
    """`squares(config)` prepares the stand-in for a set of TFDS in `tmp_path`."""
    return lambda config="alike": prepare_squares(tmp_path, config)


@pytest.fixture
def odd(tmp_path):
    """`odd(kind)` prepares eight pictures in `tmp_path`, one of them odd, and returns the set's name."""

    def prepare(kind):
        builder = KdjaxTestOdd(config=kind, data_dir=str(tmp_path), file_format="array_record")
        builder.download_and_prepare(download_config=tfds.download.DownloadConfig(try_download_gcs=False))
        return f"kdjax_test_odd/{kind}"

    return prepare

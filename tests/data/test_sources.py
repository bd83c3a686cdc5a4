"""`load` and `Source`: what comes back, by which name, and what is said when it cannot."""

import os
import subprocess
import sys

import cloudpickle
import jax
import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image
from sklearn.datasets import load_digits

from kdjax.data import Crop, DataError, Reading, fashion_mnist, from_arrays, load, sources
from kdjax.data.check import check
from kdjax.data.tfds_records import Records


def test_digits_are_scaled_and_split_alike_for_ever(digits, data_dir):
    test = load("digits", split="test", data_dir=data_dir)
    assert digits.images.shape == (1437, 8, 8, 1) and test.images.shape == (360, 8, 8, 1)
    assert digits.images.dtype == np.uint8 and digits.labels.dtype == np.int32
    assert digits.images.max() == 255 and digits.images.min() == 0
    assert digits.class_names == tuple("0123456789") and digits.num_classes == 10
    original = load_digits()
    for cls in range(10):
        everything = (original.target == cls).sum()
        assert abs((test.labels == cls).sum() - everything * 360 / 1797) < 1
    both = np.concatenate([digits.images, test.images]).reshape(1797, 64)
    want = np.rint(original.images * 255 / 16).astype(np.uint8).reshape(1797, 64)
    np.testing.assert_array_equal(both[np.lexsort(both.T)], want[np.lexsort(want.T)])
    assert digits.fingerprint() == "6df5f892" + digits.fingerprint()[8:]


def test_subset_keeps_the_order_of_the_embedded_file(subset):
    images, labels, _ = fashion_mnist.embedded("train")
    np.testing.assert_array_equal(subset.images[..., 0], images)
    np.testing.assert_array_equal(subset.labels, labels)
    assert subset.class_names[0] == "t-shirt_top" and subset.name == "fashion_mnist/subset"


def test_full_is_the_official_set_in_its_order(tmp_path, monkeypatch):
    images, labels, _ = (part[:500] for part in fashion_mnist.embedded("test"))
    monkeypatch.setattr(fashion_mnist, "installed", lambda: True)
    monkeypatch.setattr(fashion_mnist, "official", lambda split: (images, labels))
    source = load("fashion_mnist", split="test", data_dir=tmp_path)
    assert source.name == "fashion_mnist/full" and source.origin == "kdjax_fashion_mnist/full/1.0.0"
    np.testing.assert_array_equal(source.images[..., 0], images)
    np.testing.assert_array_equal(source.labels, labels)


def test_without_debians_package_fashion_mnist_is_the_subset(data_dir, tmp_path, monkeypatch):
    monkeypatch.setattr(fashion_mnist, "DEBIAN", tmp_path / "absent")
    assert load("fashion_mnist", split="test", data_dir=data_dir).name == "fashion_mnist/subset"
    with pytest.raises(DataError, match="apt-get install dataset-fashion-mnist"):
        load("fashion_mnist/full", split="test", data_dir=tmp_path)
    assert not list(tmp_path.glob("**/*.array_record*"))


def test_parts_of_a_split(digits, data_dir):
    part = load("digits", split="train[10:30]", data_dir=data_dir)
    np.testing.assert_array_equal(part.images, digits.images[10:30])
    assert len(part) == 20


def test_fetch_returns_rows_in_the_order_asked_for(digits):
    images, labels = digits.fetch([5, 0, 5])
    np.testing.assert_array_equal(images, digits.images[[5, 0, 5]])
    np.testing.assert_array_equal(labels, digits.labels[[5, 0, 5]])
    with pytest.raises(ValueError, match="read-only"):
        digits.images[0] = 0


def test_fingerprint_tells_data_apart(digits, data_dir):
    again = load("digits", split="train", data_dir=data_dir)
    assert again.fingerprint() == digits.fingerprint()
    assert load("digits", split="train[1:]", data_dir=data_dir).fingerprint() != digits.fingerprint()
    assert "in memory" in repr(digits)


def test_large_sets_are_read_as_they_go(digits, data_dir, monkeypatch):
    monkeypatch.setattr(sources, "MEMORY_LIMIT", 1000)
    source = load("digits", split="train", data_dir=data_dir)
    assert source.images is None and len(source) == 1437 and "on disk" in repr(source)
    np.testing.assert_array_equal(source.labels, digits.labels)
    for got, want in zip(source.fetch([7, 1400, 0]), digits.fetch([7, 1400, 0]), strict=True):
        np.testing.assert_array_equal(got, want)
    assert source.fingerprint() not in (digits.fingerprint(), load("digits", split="test", data_dir=data_dir))


def test_data_dir_comes_from_the_environment(digits, data_dir, tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    assert load("digits", split="train").fingerprint() == digits.fingerprint()
    assert (tmp_path / "kdjax_digits" / "1.0.0" / "dataset_info.json").is_file()


@pytest.mark.parametrize("name, shape, classes", [("cifar100", (32, 32, 3), 100), ("cifar10", (32, 32, 3), 10)])
def test_stock_sets_under_mock_data(name, shape, classes, tmp_path):
    with tfds.testing.mock_data(num_examples=12):
        source = load(name, split="train", data_dir=tmp_path)
    assert source.images.shape == (12, *shape) and source.images.dtype == np.uint8
    assert source.labels.dtype == np.int32 and source.labels.max() < classes
    assert source.num_classes == len(source.class_names) == classes


def test_prepared_stock_set(squares, tmp_path):
    squares()
    source = load("kdjax_test_squares/alike", split="train", data_dir=tmp_path)
    assert source.images.shape == (40, 6, 6, 3) and source.class_names == ("red", "green", "blue")
    np.testing.assert_array_equal(source.images.max(axis=(1, 2)).argmax(axis=1), source.labels)
    assert sorted(source.images.max(axis=(1, 2, 3))) == list(range(100, 140))


def test_a_small_set_is_parsed_once_and_anew_when_its_files_change(squares, tmp_path, monkeypatch):
    """As a notebook does, which runs one experiment after the other."""
    squares()
    name, parsed = "kdjax_test_squares/alike", []
    examples = Records.examples
    monkeypatch.setattr(Records, "examples", lambda self, rows: parsed.append(len(rows)) or examples(self, rows))
    first, again = (load(name, split="train", data_dir=tmp_path) for _ in range(2))
    assert parsed == [40] and again.images is not None
    np.testing.assert_array_equal(first.images, again.images)
    assert len(load(name, split="test", data_dir=tmp_path)) == 7 and parsed == [40, 7]
    file = next(tmp_path.glob("kdjax_test_squares/alike/1.0.0/*train*"))
    os.utime(file, ns=(1, 1))
    np.testing.assert_array_equal(load(name, split="train", data_dir=tmp_path).images, first.images)
    assert parsed == [40, 7, 40]
    for part in ("train[:1]", "train[1:2]", "train[2:3]", "train[3:4]"):  # a few are kept, not all
        load(name, split=part, data_dir=tmp_path)
    load(name, split="train", data_dir=tmp_path)
    assert parsed[-1] == 40
    monkeypatch.setattr("kdjax.data.tfds_records.KEPT_BYTES", 100)
    os.utime(file, ns=(2, 2))
    for _ in range(2):
        load(name, split="train", data_dir=tmp_path)
    assert parsed[-2:] == [40, 40]


def test_images_of_different_sizes_are_refused_when_batched(squares, tmp_path):
    squares("uneven")
    source = load("kdjax_test_squares/uneven", split="train", data_dir=tmp_path)
    assert source.images is None and len(source) == 40
    assert np.bincount(source.labels).tolist() == [14, 13, 13]
    image, label = source.fetch([3])
    assert image.shape[0] == 1 and image[0].reshape(-1, 3).max(axis=0).argmax() == label[0]
    with pytest.raises(DataError, match="differ in size"):
        source.fetch(np.arange(40))


def test_odd_pictures_of_a_prepared_set_are_read_right_or_named(odd, tmp_path):
    """Eight pictures, the fourth of them odd: as it should look, or by its number."""
    red = {"palette": (250, 10, 10), "clear": (255, 255, 255), "sixteen": (0x80,) * 3}
    for kind, colour in red.items():
        source = load(odd(kind), split="train", data_dir=tmp_path)
        assert (source.images[3] == colour).all() and (source.images[2] == 2).all()
    with pytest.raises(DataError, match=r"^Example 3 of kdjax_test_odd/cut \(train\) is cut off; prepare the set anew"):
        load(odd("cut"), split="train", data_dir=tmp_path)
    with pytest.raises(DataError, match=r"^Example 3 of .* has the shape \[8, 5, 3\], and the set says \[6, 6, 3\]"):
        load(odd("size"), split="train", data_dir=tmp_path)
    lines = []
    assert check("kdjax_test_odd/cut", tmp_path, log=lines.append) == 2  # both splits have it
    assert lines[0] == "Example 3 of kdjax_test_odd/cut (train) is cut off"


def test_what_cannot_be_read_of_a_prepared_set_is_left_out(odd, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    name, skip = odd("cut"), Reading(skip_unreadable=True)
    whole = load(name, split="train", data_dir=tmp_path, reading=skip)
    assert "1 of 8 pictures of kdjax_test_odd/cut cannot be read: Example 3 of" in (said := capsys.readouterr().err)
    assert said.rstrip().endswith("is cut off; they are left out.")
    cropped = load(name, split="train", data_dir=tmp_path, reading=Reading(size=4, skip_unreadable=True))
    shown = cropped.read(np.arange(7))["inputs"]
    for images in (whole.images, shown):
        np.testing.assert_array_equal(images[:, 0, 0, 0], [0, 1, 2, 4, 5, 6, 7])
    for source in (whole, cropped):
        np.testing.assert_array_equal(source.labels, np.array([0, 1, 2, 4, 5, 6, 7]) % 2)
    assert cropped.records.files.said(3) == "Example 4 of kdjax_test_odd/cut (train)"
    with pytest.raises(
        DataError, match=r"Example 3 of .* is cut off; prepare the set anew, or set data.skip_unreadable"
    ):
        load(name, split="train", data_dir=tmp_path)
    with pytest.raises(DataError, match="arrays:held are arrays, none of which is left out"):
        load(from_arrays(shown, whole.labels, test=(shown, whole.labels), name="held"), split="train", reading=skip)


def test_pictures_of_a_prepared_set_are_cropped_as_they_are_read(squares, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    squares("uneven")
    name, crop = "kdjax_test_squares/uneven", Crop(train="center")
    source = load(name, split="train", data_dir=tmp_path, reading=Reading(size=4))
    assert source.varies and source.images is None
    batch = source.read([3, 0], view=(0, 0))
    assert batch["inputs"].shape == (2, 4, 4, 3)
    assert (batch["inputs"].max((1, 2)).argmax(1) == batch["targets"]).all()
    assert source.on_disk and not load("digits", split="train", data_dir=tmp_path).on_disk
    sent = cloudpickle.loads(cloudpickle.dumps(source))  # to another process, see `kdjax.data.workers`
    jax.tree.map(np.testing.assert_array_equal, sent.read([3, 0], view=(0, 0)), batch)
    fixed = load(name, split="train", data_dir=tmp_path, reading=Reading(size=4, crop=crop))
    np.testing.assert_array_equal(fixed.images, source.read(np.arange(40))["inputs"])
    (kept,) = (tmp_path / "cache/kdjax/labels").iterdir()  # the labels were read once
    np.testing.assert_array_equal(np.load(kept), source.labels)
    np.save(kept, source.labels[::-1])
    assert load(name, split="train", data_dir=tmp_path, reading=Reading(size=4)).labels[0] == source.labels[-1]
    with pytest.raises(DataError, match="stored as arrays, which are not cropped"):
        load("digits", split="train", data_dir=tmp_path, reading=Reading(size=4))


def test_imagenet_as_its_own_builder_writes_it(tmp_path, monkeypatch):
    """Of a few pictures; the archives themselves it reads with TensorFlow."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    builder = tfds.builder("imagenet2012", data_dir=str(tmp_path), file_format="array_record")
    classes = builder.info.features["label"].names

    def examples(split):
        for i in range(6):
            image = Image.new("RGB", (40 - 3 * i, 20 + i), (10 * i,) * 3)
            yield (
                f"{split}{i}",
                {"image": image, "label": classes[100 * i], "file_name": f"{classes[100 * i]}_{i}.JPEG"},
            )

    splits = lambda self, dl_manager: {split: examples(split) for split in ("train", "validation")}
    monkeypatch.setattr(type(builder), "_split_generators", splits)
    builder.download_and_prepare(download_config=tfds.download.DownloadConfig(try_download_gcs=False))
    train, test = (
        load("imagenet2012", split=split, data_dir=tmp_path, reading=Reading(size=16)) for split in ("train", "test")
    )
    assert (train.num_classes, len(train), len(test)) == (1000, 6, 6) and train.class_names == tuple(classes)
    assert train.varies and not test.varies and "validation" in test.split
    for source, view in ((train, {"view": (0, 0)}), (test, {})):
        read = source.read(np.arange(6), **view)
        assert read["inputs"].shape == (6, 16, 16, 3)
        np.testing.assert_allclose(read["inputs"].mean((1, 2, 3)) / 10, read["targets"] / 100, atol=0.2)


def test_errors_name_the_mend(squares, data_dir, tmp_path, digits):
    def says(pattern, name, split="train", folder=tmp_path):
        with pytest.raises(DataError, match=pattern) as error:
            load(name, split=split, data_dir=folder)
        assert "\n" not in str(error.value)

    says("`kdjax data prepare cifar100`", "cifar100")
    says("'cifar1000'; did you mean 'cifar100'", "cifar1000")
    says("did you mean 'fashion_mnist", "fashionmnist")
    says("'qqqqqq'; there are fashion_mnist/subset", "qqqqqq")
    says("No data set is called ''", "")
    says("cifar100/nope cannot be opened: .*not found", "cifar100/nope")
    says("imdb_reviews is no set of uint8 images", "imdb_reviews")
    says("pip install 'kdjax\\[prepare\\]'", "coco/2017")
    says("has no split 'validation'; it has train, test", "digits", "validation", data_dir)
    says("has no split 'train\\['", "digits", "train[", data_dir)
    says("no examples in the split 'train\\[:0\\]'", "digits", "train[:0]", data_dir)
    says("local folder, not in gs://bucket", "digits", folder="gs://bucket")


def test_half_a_stock_set_is_refused(squares, tmp_path):
    builder = squares()
    shard = builder.info.splits["train"].filepaths[0]
    content = shard.read_bytes()
    shard.write_bytes(content[: len(content) // 2])
    with pytest.raises(DataError, match=r"is broken .*cut off.*kdjax data prepare kdjax_test_squares/alike"):
        load("kdjax_test_squares/alike", split="train", data_dir=tmp_path)
    shard.write_bytes(content)
    info = builder.data_path / "dataset_info.json"
    text = info.read_text()
    info.write_text(text.replace('"array_record"', '"tfrecord"'))
    with pytest.raises(DataError, match="prepared as tfrecord"):
        load("kdjax_test_squares/alike", split="train", data_dir=tmp_path)
    info.write_text(text[:50])
    with pytest.raises(DataError, match="cannot be opened"):
        load("kdjax_test_squares/alike", split="train", data_dir=tmp_path)
    info.unlink()
    with pytest.raises(DataError, match=r"dataset_info.json is missing"):
        load("kdjax_test_squares/alike", split="train", data_dir=tmp_path)


def test_tensorflow_is_not_even_looked_for(tmp_path):
    """In a fresh process with a TensorFlow that cannot be imported without a trace."""
    (tmp_path / "tensorflow").mkdir()
    (tmp_path / "tensorflow" / "__init__.py").write_text("open('touched', 'w').close()\n")
    program = """
import sys
import kdjax.data
light = [name for name in ("tensorflow_datasets", "grain", "sklearn", "PIL", "flax") if name in sys.modules]
assert not light, light
from kdjax.data import Pipeline, load, make_splits
source = load("digits", split="train", data_dir="data")
splits = make_splits(source.labels, validation=100)
pipeline = Pipeline(source, splits.train, batch_size=32, data_seed=0)
assert len(list(pipeline.iterate(3, 6))) == 3
assert "tensorflow" not in sys.modules
"""
    root = os.getcwd()
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), root])}
    result = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    assert not (tmp_path / "touched").exists()

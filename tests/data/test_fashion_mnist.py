"""The embedded subset: balanced, traceable, byte for byte the official images."""

import hashlib
import importlib.util
from pathlib import Path

import numpy as np
import pytest

from kdjax.data import fashion_mnist

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "kdjax" / "data" / "fashion_mnist"
needs_debian = pytest.mark.skipif(
    not fashion_mnist.installed(), reason="needs the official files: apt-get install dataset-fashion-mnist"
)


@pytest.mark.parametrize("split, total", [("train", 12_000), ("test", 4_000)])
def test_is_balanced_and_small(split, total):
    images, labels, rows = fashion_mnist.embedded(split)
    assert images.shape == (total, 28, 28) and images.dtype == np.uint8
    assert np.bincount(labels).tolist() == [total // 10] * 10
    assert (np.diff(rows.astype(int)) > 0).all()
    assert (FOLDER / "fashion_mnist.npz").stat().st_size < 8_000_000


def test_readme_names_the_hashes():
    text = (FOLDER / "README.md").read_text()
    assert hashlib.sha256((FOLDER / "fashion_mnist.npz").read_bytes()).hexdigest() in text
    for split in ("train", "test"):
        assert hashlib.sha256(fashion_mnist.embedded(split)[0]).hexdigest() in text
    assert "Zalando" in (FOLDER / "LICENSE").read_text()


@needs_debian
@pytest.mark.parametrize("split", ["train", "test"])
def test_equals_the_official_images_of_the_same_split(split):
    images, labels, rows = fashion_mnist.embedded(split)
    official_images, official_labels = fashion_mnist.official(split)
    np.testing.assert_array_equal(images, official_images[rows])
    np.testing.assert_array_equal(labels, official_labels[rows])


@pytest.fixture
def script():
    spec = importlib.util.spec_from_file_location("make_fashion_mnist", ROOT / "scripts" / "make_fashion_mnist.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@needs_debian
def test_script_makes_the_kept_arrays(script):
    made = script.subset(fashion_mnist.DEBIAN)
    with np.load(FOLDER / "fashion_mnist.npz") as kept:
        assert list(made) == list(kept)
        for name in kept:
            assert made[name].dtype == kept[name].dtype
            np.testing.assert_array_equal(made[name], kept[name])


def test_script_writes_the_same_bytes_again(script, tmp_path):
    arrays = {"train_rows": np.arange(5000, dtype="<u2"), "train_labels": np.arange(5000).astype(np.uint8)}
    for name in ("first.npz", "second.npz"):
        script.write(tmp_path / name, arrays)
    assert (tmp_path / "first.npz").read_bytes() == (tmp_path / "second.npz").read_bytes()
    with np.load(tmp_path / "first.npz") as read:
        np.testing.assert_array_equal(read["train_rows"], arrays["train_rows"])

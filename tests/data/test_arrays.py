"""Arrays in files and at hand: found by their names, checked, and split where they have no test part."""

import numpy as np
import pytest
from PIL import Image

from kdjax.data import DataError, from_arrays, load

RNG = np.random.default_rng(0)
X = RNG.integers(0, 255, (30, 5, 4, 3), np.uint8)
Y = np.arange(30) % 3


def says(pattern, *arguments, **options):
    with pytest.raises(DataError, match=pattern) as error:
        load(*arguments, **options)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "keys",
    [("x_train", "y_train", "x_test", "y_test"), ("train_images", "train_labels", "val_images", "val_labels"),
     ("X", "y", "X_test", "y_test"), ("trainData", "trainTargets", "testData", "testTargets")],
)  # fmt: skip
def test_an_npz_by_its_usual_names(keys, tmp_path):
    np.savez(tmp_path / "set.npz", **dict(zip(keys, (X[:20], Y[:20, None], X[20:, ..., 0], Y[20:]), strict=True)))
    train, test = (load(str(tmp_path / "set.npz"), split=split) for split in ("train", "test"))
    np.testing.assert_array_equal(train.images, X[:20])
    assert train.labels.dtype == np.int32 and train.labels.tolist() == Y[:20].tolist()
    assert test.images.shape == (10, 5, 4, 1) and test.num_classes == 3 and test.class_names == ("0", "1", "2")


def test_one_pair_is_split_and_npy_files_are_read_from_disk(tmp_path, capsys):
    np.savez(tmp_path / "one.npz", images=X, labels=Y, class_names=np.array([b"a", b"b", b"c"]))
    train, test = (load(str(tmp_path / "one.npz"), split=split) for split in ("train", "test"))
    assert (len(train), len(test)) == (24, 6) and train.class_names == ("a", "b", "c")
    assert np.bincount(test.labels).tolist() == [2, 2, 2]
    assert "6 of 30 examples, a fifth of each class, are held out" in capsys.readouterr().err
    (tmp_path / "npy").mkdir()
    for name, array in (("x_train", X), ("y_train", Y), ("x_test", X[:3]), ("y_test", Y[:3])):
        np.save(tmp_path / "npy" / f"{name}.npy", array)
    for name in ("npy", "npy/x_train.npy"):
        source = load(str(tmp_path / name), split="train")
        np.testing.assert_array_equal(source.images, X)
        assert isinstance(source.images, np.memmap) and len(load(str(tmp_path / name), split="test")) == 3


def test_floats_stay_floats_and_soft_labels_soft(tmp_path):
    soft = np.full((30, 3), 0.1)
    soft[np.arange(30), Y] = 0.8
    np.savez(tmp_path / "f.npz", x_train=X / 255 - 0.5, y_train=soft, x_test=X / 255 - 0.5, y_test=np.eye(3)[Y])
    source, test = (load(str(tmp_path / "f.npz"), split=split) for split in ("train", "test"))
    assert source.images.dtype == np.float32 and source.labels.tolist() == Y.tolist()
    np.testing.assert_allclose(source.read([1, 2])["targets"], soft[[1, 2]], rtol=1e-6)
    assert test.soft is None and test.read([1, 2])["targets"].tolist() == [1, 2]


def test_arrays_at_hand_are_not_copied_nor_made_read_only():
    x = X.copy()
    name = from_arrays(x, Y, test=(x[:5], Y[:5]), class_names="abc", name="hand")
    source = load(name, split="train")
    assert np.shares_memory(source.images, x) and x.flags.writeable and not source.images.flags.writeable
    assert source.class_names == ("a", "b", "c") and len(load(name, split="test")) == 5
    says("in another program; call kdjax.data.from_arrays", "arrays:other", split="train")
    with pytest.raises(DataError, match="30 inputs and 29 labels"):
        from_arrays(x, Y[1:])


BAD = {
    "channels first": (np.moveaxis(X, -1, 1)[:, :, :, :].repeat(2, -1), Y, "channels first; give numpy.moveaxis"),
    "infinite labels": (X, np.where(Y == 1, np.inf, Y), "are float64; give whole numbers"),
    "too few": (X[:2], np.arange(2), r"too few examples to hold some out, 2; give x_test"),
    "vectors of integers": (X.reshape(30, -1), Y, r"are uint8 \[30, 60\]; give vectors \[N, D\] as floats, x.astype"),
    "five axes": (X[..., None], Y, r"shape \[30, 5, 4, 3, 1\]; give images .* or vectors"),
    "complex": (X * 1j, Y, "are complex128"),
    "too wide": (X.astype(np.int64) * 9, Y, "are int64; give uint8 from 0 to 255"),
    "nan": (np.where(np.arange(30).reshape(30, 1, 1, 1) == 4, np.nan, X / 255), Y, "1 of 30 inputs .* number 4;"),
    "objects": (np.array([None] * 30), Y, "cannot be read"),
    "text": (np.array(["a"] * 30), Y, "are <U1"),
    "labels of text": (X, np.array(["a"] * 30), r"labels of .* are <U1; .* numpy.unique\(y, return_inverse=True\)\[1\], and"),
    "fractions": (X, Y + 0.5, "whole numbers from 0 on"),
    "negative": (X, Y - 1, r"go from -1 to 1; number the 2 classes.*\(The first that is none is -1, number 0; 10 of 30"),
    "one beyond": (X, np.where(np.arange(30) == 7, 5000, Y), r"Label 5,000 of .*bad.npz \(train\), number 7, would be"),
    "no examples": (X[:0], Y[:0], "has no examples"),
    "infinite": (np.where(np.arange(30).reshape(30, 1, 1, 1) == 4, np.inf, X / 255), Y, "nan or inf.* number 4;"),
    "rows that add up to 2": (X, np.full((30, 4), 0.5), "each row add up to 1"),
    "too few names": (X, Y, "2 and 3 classes by its names"),
}  # fmt: skip


@pytest.mark.parametrize("what", BAD)
def test_what_does_not_fit_is_said(what, tmp_path):
    x, y, pattern = BAD[what]
    names = {"class_names": np.array(["a", "b"])} if what == "too few names" else {}
    np.savez(tmp_path / "bad.npz", x=x, y=y, **names)
    says(pattern, str(tmp_path / "bad.npz"), split="train")


def test_files_that_say_nothing_are_refused_with_their_names(tmp_path):
    np.savez(tmp_path / "a.npz", a=X, b=Y)
    says("has a, b, and needs x_train and y_train", str(tmp_path / "a.npz"), split="train")
    np.savez(tmp_path / "b.npz", x=X, images=X, y=Y)
    says("both 'x' and 'images'", str(tmp_path / "b.npz"), split="train")
    (tmp_path / "c.npz").write_bytes(b"no zip")
    says("cannot be read as .npz", str(tmp_path / "c.npz"), split="train")
    (tmp_path / "d.npz").write_bytes((tmp_path / "a.npz").read_bytes()[:500])
    says("cannot be read as .npz", str(tmp_path / "d.npz"), split="train")
    says("no file or folder .*nowhere.npz", str(tmp_path / "nowhere.npz"), split="train")
    (tmp_path / "e.csv").write_text("1,2")
    says("is a file; give a folder", str(tmp_path / "e.csv"), split="train")


@pytest.mark.parametrize("split", ["test", "val"])
@pytest.mark.parametrize(
    ("label", "said"), [(3, "is none of the training part, whose labels go to 2"), (-1, "go from -1 to")]
)
def test_labels_that_are_no_classes_are_named_in_every_split(split, label, said, tmp_path):
    wrong = np.where(np.arange(30) == 11, label, Y)
    np.savez(tmp_path / "set.npz", x_train=X, y_train=Y, **{f"x_{split}": X, f"y_{split}": wrong})
    says(rf"set.npz .*{said}.*|.*number 11.*{said}", str(tmp_path / "set.npz"), split="test")
    says("number 11", str(tmp_path / "set.npz"), split="test")


def test_an_array_may_not_be_larger_than_its_file(tmp_path):
    """A header that says otherwise is not believed: nothing is made of that size."""
    path = tmp_path / "set.npz"
    np.savez(path, x=X, y=Y)
    path.write_bytes(path.read_bytes().replace(b"(30, 5, 4, 3)", b"(90000000000,)"[:13]))
    says("cannot be read as .npz", str(path), split="train")


def test_examples_that_are_trained_on_and_evaluated_are_reported(tmp_path, capsys):
    from kdjax.tasks.classification import Classification

    shared = np.concatenate([X[20:25], 255 - X[:5]])
    np.savez(tmp_path / "set.npz", x_train=X, y_train=Y, x_test=shared, y_test=(np.arange(20, 30) + 1) % 3)
    Classification(name=str(tmp_path / "set.npz"), batch_size=64).load()
    said = capsys.readouterr().err
    assert "5 of the 10 examples" in said and "are in its split train too, 5 of them with another label" in said
    assert "the first is number 0, there number 20" in said
    assert "has 30 examples to train on, fewer than a batch of 64" in said
    pictures = tmp_path / "pictures"
    for split, classes in {"train": "ab", "test": "ab"}.items():
        for name in classes:
            (pictures / split / name).mkdir(parents=True)
            for i in range(3):
                Image.fromarray(X[i + 3 * (name == "b") + 5 * (split == "test")]).save(
                    pictures / split / name / f"{i}.png"
                )
    Classification(name=str(pictures), batch_size=2).load()
    said = capsys.readouterr().err
    assert (
        "1 of the 6 examples" in said and "1 of them with another label; the first is number 0, there number 5" in said
    )

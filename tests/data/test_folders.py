"""Folders of pictures: which files are read, as which classes and splits, and what is said of what is odd."""

import os

import numpy as np
import pytest
from PIL import Image

from kdjax.data import Crop, DataError, Pipeline, Reading, encoded, load, sources
from kdjax.data.check import check
from kdjax.data.splits import test_part as part_for_test
from kdjax.data.texts import load_texts

SQUARE = Reading(size=6)


def put(path, shade=0, size=(8, 8)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (shade, shade, shade)).save(path)


def tree(root, splits=("train", "test"), classes=("cat", "dog"), count=4, size=None):
    """Pictures whose shade is 10 * class + number; of many sizes unless one is given."""
    for split in splits:
        for label, name in enumerate(classes):
            for i in range(count):
                put(root / split / name / f"{i}.png", 10 * label + i, size or (8 + i, 9))
    return root


def says(pattern, *arguments, **options):
    with pytest.raises(DataError, match=pattern) as error:
        load(*arguments, **options)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("test", ["test", "val", "Valid", "validation", "Testing"])
def test_splits_and_classes_by_their_usual_names(test, tmp_path):
    tree(tmp_path, ("train", test), ("dog", "cat"))
    for split, count in (("train", 8), ("test", 8)):
        source = load(str(tmp_path), split=split, reading=SQUARE)
        assert len(source) == count and source.class_names == ("cat", "dog") and source.num_classes == 2
        assert source.labels.tolist() == [0] * 4 + [1] * 4
        shades = source.read(np.arange(8))["inputs"][:, 3, 3, 0]
        assert shades.tolist() == [10, 11, 12, 13, 0, 1, 2, 3]


def test_class_folders_alone_are_split_by_class(tmp_path, capsys):
    for name, count in (("a", 25), ("b", 5), ("c", 2)):
        for i in range(count):
            put(tmp_path / "pets" / name / f"{i:02}.png", i)
    root = str(tmp_path / "pets")
    train, test = (load(root, split=split, split_seed=3) for split in ("train", "test"))
    assert np.bincount(train.labels).tolist() == [20, 4, 1] and np.bincount(test.labels).tolist() == [5, 1, 1]
    assert "has no test part: 7 of 32 pictures, a fifth of each class, are held out for it" in capsys.readouterr().err
    shades = [set(s.images[s.labels == 0, 0, 0, 0].tolist()) for s in (train, test)]
    assert shades[0] | shades[1] == set(range(25)) and not shades[0] & shades[1]
    other = load(root, split="test", split_seed=4)
    assert set(other.images[other.labels == 0, 0, 0, 0].tolist()) != shades[1]


@pytest.mark.parametrize("beside", [False, True], ids=["alone", "beside a flat test folder"])
def test_a_train_folder_without_a_test_part_shares_nothing_with_what_is_held_out(beside, tmp_path):
    """Of pictures, and of texts in folders."""
    tree(tmp_path / "pets", ("train",), count=10)
    if beside:
        put(tmp_path / "pets/test/0.png")
    parts = [load(str(tmp_path / "pets"), split=split, reading=SQUARE) for split in ("train", "test")]
    assert [len(part) for part in parts] == [16, 4]
    shades = [set(part.read(np.arange(len(part)))["inputs"][:, 3, 3, 0].tolist()) for part in parts]
    assert not shades[0] & shades[1] and len(shades[0] | shades[1]) == 20
    for name in ("cat", "dog"):
        for i in range(10):
            file = tmp_path / f"words/train/{name}/{i}.txt"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(f"{name} {i}")
    train, test = (load_texts(str(tmp_path / "words"), split=split) for split in ("train", "test"))
    assert (len(train), len(test)) == (16, 4) and not set(train.first) & set(test.first)


def test_classes_have_one_order_in_whatever_spelling(tmp_path):
    """Of Unicode: a system may have written an accent as a letter of its own."""
    for split, cafe in (("train", "cafe\u0301"), ("test", "caf\u00e9")):
        for name, shade in ((cafe, 200), ("cafz", 20)):
            put(tmp_path / split / name / "0.png", shade)
    parts = [load(str(tmp_path), split=split) for split in ("train", "test")]
    assert parts[0].class_names == parts[1].class_names
    shades = [part.read(np.arange(2))["inputs"][:, 0, 0, 0].tolist() for part in parts]
    assert shades[0] == shades[1]


@pytest.mark.skipif(os.name == "nt", reason="file names are Unicode there")
def test_a_class_whose_name_is_in_no_encoding_is_refused(tmp_path):
    tree(tmp_path)
    os.rename(os.fsencode(tmp_path / "train/cat"), os.fsencode(tmp_path / "train") + b"/caf\xe9")
    says(r"a class folder whose name is not in this system's encoding, .*; rename it", str(tmp_path), split="train")


def test_the_choice_is_the_same_for_ever():
    assert np.flatnonzero(part_for_test(np.arange(20) % 2, share=0.2, split_seed=1)).tolist() == CHOSEN


CHOSEN = [2, 9, 13, 18]


def test_one_picture_a_class_leaves_none_to_hold_out(tmp_path):
    for name in ("cat", "dog"):
        put(tmp_path / name / "0.png")
    for split in ("train", "test"):
        says("has no test part, and no class has two pictures", str(tmp_path), split=split, reading=SQUARE)
    with pytest.raises(DataError, match="no class has two pictures"):
        check(str(tmp_path))


def test_a_link_to_itself_is_named(tmp_path):
    tree(tmp_path)
    os.symlink("round.png", tmp_path / "train/cat/round.png")
    says(r"1 of 9 pictures .*round\.png is a link to nothing", str(tmp_path), split="train", reading=SQUARE)


def test_odd_names_links_and_rubbish(tmp_path):
    root = tree(tmp_path / "with space", ("train", "val"), ("köter 犬", "Zebra"), size=(8, 8))
    for name in (".DS_Store", "Thumbs.db", ".hidden.png", "desktop.ini"):
        (root / "train" / "Zebra" / name).write_text("rubbish")
    put(root / "train" / ".ipynb_checkpoints" / "x.png")
    put(root / "train" / "Zebra" / "deeper" / "5.PNG", 99)
    os.symlink(root / "train" / "Zebra" / "0.png", root / "train" / "Zebra" / "link.png")
    os.symlink(root / "train", root / "train" / "Zebra" / "round")
    (root / "train" / "labels.csv").write_text("x")
    source = load(str(root), split="train")
    assert source.class_names == ("Zebra", "köter 犬")
    assert np.bincount(source.labels)[0] == 6  # four, the deeper one and the link; not those round the loop again
    assert sorted(set(source.images[source.labels == 0, 0, 0, 0].tolist())) == [10, 11, 12, 13, 99]


def test_what_is_wrong_with_a_tree_is_said(tmp_path):
    root = tree(tmp_path / "pets")
    put(root / "test" / "fish" / "0.png")
    says("test has the class 'fish', unlike .*train; both must have", str(root), split="test", reading=SQUARE)
    put(root / "train" / "fish" / "0.png")
    put(root / "train" / "owl" / "0.png")
    says("test lacks the class 'owl', which .*train has", str(root), split="test", reading=SQUARE)
    (root / "train" / "rat").mkdir()
    says("rat holds no pictures; put some there, or delete the folder", str(root), split="train")
    says("no split 'train\\[:5\\]'", str(root), split="train[:5]")
    says("no file or folder .*nowhere", str(tmp_path / "nowhere"), split="train")
    put(tmp_path / "flat" / "train" / "1.png")
    put(tmp_path / "flat" / "test" / "1.png")
    says("has test and train, and no class folders", str(tmp_path / "flat"), split="train")
    (root / "testing").mkdir()  # empty, and no other split
    (root / "Training").mkdir()
    says("test lacks the class 'owl'", str(root), split="test", reading=SQUARE)
    (root / "testing").rmdir()
    put(root / "val" / "fish" / "0.png")
    put(root / "validation" / "fish" / "0.png")
    says("has both val and validation; keep one", str(root), split="train")
    put(tmp_path / "one" / "train" / "cat" / "1.png")
    says("has only 'cat'", str(tmp_path / "one"), split="train")


def test_unreadable_files_are_named_before_training_or_left_out(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    root = tree(tmp_path / "pets")
    cat = root / "train" / "cat"
    (cat / "empty.jpg").touch()
    (cat / "notes.txt").write_text("not a picture")
    noise = np.random.default_rng(0).integers(0, 255, (40, 40, 3), np.uint8)
    Image.fromarray(noise).save(cat / "cut.jpg")
    (cat / "cut.jpg").write_bytes((cat / "cut.jpg").read_bytes()[:900])
    os.symlink(cat / "gone.png", cat / "link.png")
    said = says("4 of 12 pictures of .*cut.jpg is cut off; .*empty.jpg is empty; .*link.png is a link to nothing; ...",
                str(root), split="train", reading=SQUARE)  # fmt: skip
    assert "kdjax data check" in said and "data.skip_unreadable" in said
    lines = []
    assert check(str(root), log=lines.append) == 4
    assert len([line for line in lines if "train/cat/" in line]) == 4 and "notes.txt is no image" in "".join(lines)
    for _ in range(2):  # the second time from what was found before
        source = load(str(root), split="train", reading=Reading(size=6, skip_unreadable=True))
        assert len(source) == 8 and source.read(np.arange(8))["inputs"].shape == (8, 6, 6, 3)
    assert "4 of 12 pictures" in (err := capsys.readouterr().err) and err.rstrip().endswith("they are left out.")
    Image.fromarray(noise).save(cat / "cut.jpg")
    assert len(load(str(root), split="train", reading=Reading(size=6, skip_unreadable=True))) == 9


def test_a_file_that_breaks_later_is_named(tmp_path):
    root = tree(tmp_path / "pets")
    source = load(str(root), split="train", reading=SQUARE)
    (root / "train" / "dog" / "1.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"train/dog/1.png is empty; mend or delete it"):
        next(Pipeline(source, np.arange(8), batch_size=8, data_seed=0).iterate())


def test_pictures_of_one_size_need_no_crop_and_others_do(tmp_path):
    root = tree(tmp_path / "pets", size=(7, 5))
    source = load(str(root), split="train")
    assert source.images.shape == (8, 5, 7, 3) and not source.varies
    put(root / "train" / "dog" / "9.png", size=(6, 5))
    says(
        r"differ in size \(.*cat/0.png has 5 x 7, .*dog/9.png has 5 x 6 pixels\); set data.image_size",
        str(root),
        split="train",
    )
    assert load(str(root), split="test", reading=Reading(channels=1)).images.shape == (8, 5, 7, 1)


def test_training_crops_by_pass_and_evaluation_crops_alike(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    for i in range(6):
        path = tmp_path / "pets" / "train" / "ab"[i % 2] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (20 + i, 30, 3), np.uint8)).save(path)
    root = str(tmp_path / "pets" / "train")
    monkeypatch.setattr(encoded, "HEADERS", 3)
    source = load(root, split="train", reading=Reading(size=8))
    assert source.varies and source.images is None

    def batches(size, seed=0, **options):
        made = Pipeline(source, np.arange(len(source)), batch_size=size, data_seed=seed, **options)
        return [made[k] for k in range(3 * made.steps_per_epoch)]

    def shown(found):
        return {
            (int(i), e): x for e, part in enumerate(found) for b in part for i, x in zip(b.index, b.inputs, strict=True)
        }

    n = len(source)
    whole = shown([[b] for b in batches(n)])
    small = batches(1)
    for key, image in shown([small[:n], small[n : 2 * n], small[2 * n :]]).items():
        np.testing.assert_array_equal(image, whole[key])  # whatever the batch
    halves = [batches(n - n % 2, process_index=i, process_count=2)[0].inputs for i in range(2)]
    np.testing.assert_array_equal(np.concatenate(halves), batches(n - n % 2)[0].inputs)
    assert all((whole[i, 0] != whole[i, 1]).any() for i in range(n))
    assert any((shown([[b] for b in batches(n, seed=1)])[i, 0] != whole[i, 0]).any() for i in range(n))
    fixed = load(root, split="train", reading=Reading(size=8, crop=Crop(train="center")))
    assert not fixed.varies
    np.testing.assert_array_equal(fixed.images, source.read(np.arange(n))["inputs"])
    monkeypatch.setattr(sources, "MEMORY_LIMIT", 100)
    large = load(root, split="train", reading=Reading(size=8, crop=Crop(train="center")))
    assert large.images is None
    np.testing.assert_array_equal(large.read(np.arange(n))["inputs"], fixed.images)
    assert large.fingerprint() == fixed.fingerprint() != load(root, split="test", reading=Reading(size=8)).fingerprint()


def test_a_fingerprint_changes_with_files_and_crop(tmp_path):
    root = tree(tmp_path / "pets", size=(8, 8))
    first = load(str(root), split="train").fingerprint()
    assert load(str(root), split="train").fingerprint() == first
    assert load(str(root), split="train", reading=SQUARE).fingerprint() != first
    put(root / "train" / "cat" / "0.png", 5)
    changed = load(str(root), split="train").fingerprint()
    (root / "train" / "cat" / "0.png").rename(root / "train" / "dog" / "9.png")
    assert len({first, changed, load(str(root), split="train").fingerprint()}) == 3


def test_a_name_of_a_set_comes_before_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("digits", "cifar100", "pets"):
        tree(tmp_path / name)
    assert sources.own_path("digits") is None and sources.own_path("cifar100") is None
    assert sources.own_path("pets") is not None and sources.own_path("./cifar100") is not None
    monkeypatch.setenv("HOME", str(tmp_path))
    assert load("~/pets", split="train", reading=SQUARE).name == "~/pets"


def test_many_files_are_found_in_little_time(tmp_path):
    """The names alone: 20,000 files in less than a second on a slow machine, so a million in a minute."""
    import time

    from kdjax.data.folders import scan

    for name in "ab":
        (tmp_path / name).mkdir()
        for i in range(10_000):
            (tmp_path / name / f"{i}.jpg").touch()
    start = time.process_time()
    assert len(scan(tmp_path)) == 20_000
    assert time.process_time() - start < 1

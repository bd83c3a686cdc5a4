"""Texts of files, folders, TFDS and Python itself; what does not fit is said in a sentence."""

import json
from pathlib import Path

import numpy as np
import pytest

from kdjax.data import DataError, python_docs
from kdjax.data.check import check
from kdjax.data.columns import Columns
from kdjax.data.texts import load_texts

ROWS = [("good, really", "yes"), ('a "bad" one', "no"), ("fine", "yes"), ("awful\nand long", "no")] * 3
ROWS = [(f"{text} {i}", label) for i, (text, label) in enumerate(ROWS)]


def csv_file(path, rows=ROWS, columns=("text", "label")):
    import csv

    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, delimiter="\t" if path.suffix == ".tsv" else ",")
        writer.writerows([columns, *rows])
    return path


def said(texts):
    return [(text, texts.class_names[label]) for text, label in zip(texts.first, texts.labels, strict=True)]


def test_a_csv_is_split_by_class(tmp_path, capsys):
    path = csv_file(tmp_path / "reviews.csv")
    train, test = (load_texts(str(path), split=split) for split in ("train", "test"))
    assert train.class_names == test.class_names == ("no", "yes") and train.second is None
    assert sorted(said(train) + said(test)) == sorted(ROWS) and len(test) == 2
    assert "2 of 12 texts, a fifth of each class, are held out" in capsys.readouterr().err
    assert train.fingerprint() != test.fingerprint()


def test_a_folder_of_tables_has_its_splits_and_numbers_classes_together(tmp_path):
    csv_file(tmp_path / "train.tsv", [("a", "b"), ("c", "d"), ("g", "a")])
    (tmp_path / "dev.jsonl").write_text('{"sentence": "e", "label": "a"}\n\n{"sentence": "f", "label": "d"}\n')
    train, held = (load_texts(str(tmp_path), split=split) for split in ("train", "test"))
    assert train.class_names == held.class_names == ("a", "b", "d")
    assert said(train) == [("a", "b"), ("c", "d"), ("g", "a")] and said(held) == [("e", "a"), ("f", "d")]


@pytest.mark.parametrize(
    "label, why", [("-1", "GLUE's test texts have no labels"), ("7", r"which no text to train on has \(0, 1\)")]
)
def test_a_label_that_is_only_evaluated_is_refused(label, why, tmp_path):
    csv_file(tmp_path / "train.csv", [("a", "0"), ("b", "1")])
    csv_file(tmp_path / "validation.csv", [("c", "1")])
    csv_file(tmp_path / "test.csv", [("c", "1"), ("d", label)])
    for split in ("train", "test"):
        with pytest.raises(DataError, match=rf"test\.csv has the label '{label}' at text 2, .*{why}"):
            load_texts(str(tmp_path), split=split)


def test_a_table_is_checked_whole(tmp_path):
    said = []
    assert check(str(csv_file(tmp_path / "a.csv")), log=said.append) == 0 and "texts, 2 classes" in said[0]
    for name in ("training", "testing"):
        csv_file(tmp_path / f"{name}.csv")
    assert check(str(tmp_path), log=said.append) == 0 and "12 texts, 2 classes" in said[-1]
    for name in ("pro", "con"):
        (tmp_path / "folders" / name).mkdir(parents=True)
        for i in range(5):
            (tmp_path / "folders" / name / f"{i}.txt").write_text(f"{name} {i}")
    assert check(str(tmp_path / "folders"), log=said.append) == 0 and "texts, 2 classes" in said[-1]


def test_tables_of_other_names_are_named(tmp_path):
    csv_file(tmp_path / "train_1.csv")
    with pytest.raises(DataError, match=r"has no train\.csv, train\.tsv, train\.jsonl; it has train_1\.csv"):
        load_texts(str(tmp_path), split="train")
    for name in ("pro", "con"):  # beside folders of texts it is somebody's own
        (tmp_path / "train" / name).mkdir(parents=True)
        for i in range(5):
            (tmp_path / "train" / name / f"{i}.txt").write_text(f"{name} {i}")
    assert load_texts(str(tmp_path), split="train").class_names == ("con", "pro")


def test_quotation_marks_of_a_tsv_are_text_unless_a_writer_set_them(tmp_path):
    rows = [('he said "hi"', "a"), ("plain", "b")]
    csv_file(tmp_path / "train.tsv", rows * 2)
    csv_file(tmp_path / "test.tsv", rows)
    assert said(load_texts(str(tmp_path), split="test")) == rows
    (tmp_path / "test.tsv").write_text('text\tlabel\n"whole"\ta\nhalf "\tb\n')
    assert said(load_texts(str(tmp_path), split="test")) == [('"whole"', "a"), ('half "', "b")]


def test_labels_with_zeros_before_them_are_names_and_cells_may_be_long(tmp_path):
    lines = [f"{'long ' * 40_000 if i == 3 else 'text'} {i},0{i % 3}" for i in range(30)]
    (tmp_path / "own.csv").write_text("text,label\n" + "\n".join(lines))
    assert load_texts(str(tmp_path / "own.csv"), split="train").class_names == ("00", "01", "02")
    rows = [{"text": f"text {i}", "label": float(i % 3)} for i in range(30)]
    (tmp_path / "own.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert load_texts(str(tmp_path / "own.jsonl"), split="train").class_names == ("0", "1", "2")


def test_pairs_and_columns_of_other_names(tmp_path):
    path = csv_file(tmp_path / "a.csv", [("q", "s", "1"), ("r", "t", "0")] * 4, ("question", "sentence", "label"))
    pairs = load_texts(str(path), split="train")
    assert set(zip(pairs.first, pairs.second, strict=True)) == {("q", "s"), ("r", "t")} and pairs.class_names == (
        "0",
        "1",
    )
    path = csv_file(tmp_path / "b.csv", [("q", "s", "1"), ("r", "t", "0")] * 4, ("what", "text", "kind"))
    keys = Columns(text="what", label="kind")
    assert set(load_texts(str(path), split="train", columns=keys).first) == {"q", "r"}


def test_a_folder_a_class(tmp_path):
    for label in ("pro", "contra"):
        (tmp_path / label).mkdir()
        for i in range(5):
            (tmp_path / label / f"{i}.txt").write_text(f"{label} {i} ä", encoding="utf-8")
    texts = load_texts(str(tmp_path), split="train")
    assert texts.class_names == ("contra", "pro") and len(texts) == 8
    assert all(text.startswith(name) for text, name in said(texts))
    (tmp_path / "pro" / "0.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(DataError, match=r"0\.txt is no UTF-8 \(byte 0\)"):
        [load_texts(str(tmp_path), split=split) for split in ("train", "test")]


@pytest.mark.parametrize(
    "content, message",
    [
        ("text,label\n", "has no rows"), ("a,b\n1,2\n", "has the columns a, b, none of which is called text"),
        ("text,b\n1,2\n", "none of which is called label"), ("text,label\nx\n", "nothing in the column 'label' of row 2"),
        ("text,label\nx,1,2\n", "more values in line 2"), ("text,label\nx,1\ny,70\n", "labels of .* go to 70, and there are 2"),
    ],
)  # fmt: skip
def test_tables_that_do_not_fit_are_refused(content, message, tmp_path):
    path = tmp_path / "x.csv"
    path.write_text(content)
    with pytest.raises(DataError, match=message) as caught:
        load_texts(str(path), split="train")
    assert str(path) in str(caught.value)


def test_lines_that_are_no_objects_are_refused(tmp_path):
    path = tmp_path / "x.jsonl"
    for line, message in (("[1]", "no object in line 2"), ("{", "no JSON in line 2")):
        path.write_text(json.dumps({"text": "a", "label": 1}) + "\n" + line + "\n")
        with pytest.raises(DataError, match=message):
            load_texts(str(path), split="train")
    for name, message in (("./nowhere.csv", "nowhere.csv cannot be read"), ("./nowhere", "There is no file or folder")):
        with pytest.raises(DataError, match=message):
            load_texts(name, split="train")
    with pytest.raises(DataError, match="no split 'all'"):
        load_texts("python_docs", split="all")


@pytest.mark.parametrize(
    "name, pair", [("glue/sst2", False), ("glue/qnli", True), ("glue/mnli", True), ("imdb_reviews", False)]
)
def test_sets_of_tfds_under_mock_data(name, pair, tmp_path):
    tfds = pytest.importorskip("tensorflow_datasets")
    with tfds.testing.mock_data(num_examples=5):
        texts = load_texts(name, split="train", data_dir=str(tmp_path))
    assert len(texts) == 5 and isinstance(texts.first[0], str) and (texts.second is not None) == pair
    assert texts.labels.min() >= 0 and texts.labels.max() < len(texts.class_names)


def test_a_set_of_numbers_to_be_guessed_is_refused(tmp_path):
    pytest.importorskip("tensorflow_datasets")
    with pytest.raises(DataError, match="has no classes in 'label' but numbers"):
        load_texts("glue/stsb", split="train", data_dir=str(tmp_path))
    with pytest.raises(DataError, match="kdjax data prepare glue/sst2"):
        load_texts("glue/sst2", split="train", data_dir=str(tmp_path))


def test_docstrings_of_a_module():
    import colorsys

    found = python_docs._docstrings(Path(colorsys.__file__))
    assert found[0].startswith("Conversion functions between RGB and other color systems.") and "\n" not in found[0]


@pytest.mark.slow
def test_docstrings_of_python():
    train, test = (load_texts("python_docs", split=split) for split in ("train", "test"))
    assert len(train) + len(test) > 3000 and 0.15 < len(test) / (len(train) + len(test)) < 0.25
    assert not set(train.first) & set(test.first) and train.class_names == python_docs.CLASSES
    for texts in (train, test):
        assert np.bincount(texts.labels, minlength=7).min() > 30
    assert all(len(text.split()) >= python_docs.LEAST for text in test.first)

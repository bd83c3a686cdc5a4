"""Preparing: once, whole or not at all, also when killed in between or done twice at once."""

import json
import logging
import os
import subprocess
import sys
import tarfile

import pytest
import requests
import tensorflow_datasets as tfds
from tensorflow_datasets.core.download import downloader

from kdjax.data import DataError, builders, load
from kdjax.data.catalogue import own_folder
from kdjax.data.prepare import prepare

PROGRAM = """
import os, signal
from kdjax.data import builders, load
generate = builders.KdjaxDigits._generate_examples
def killed(self, split):
    for row, example in generate(self, split):
        if row == 50:
            os.kill(os.getpid(), signal.SIGKILL)
        yield row, example
if {killed}:
    builders.KdjaxDigits._generate_examples = killed
print(load("digits", split="train", data_dir={folder!r}).fingerprint())
"""


def start(folder, killed=False):
    environment = {**os.environ, "PYTHONPATH": os.getcwd()}
    program = PROGRAM.format(folder=str(folder), killed=killed)
    return subprocess.Popen([sys.executable, "-c", program], env=environment, stdout=subprocess.PIPE, text=True)


def stamps(folder):
    return {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}


def test_twice_is_once(tmp_path):
    said = []
    prepare("digits", tmp_path, log=said.append)
    before = stamps(own_folder("digits", tmp_path))
    prepare("digits", tmp_path, log=said.append)
    assert stamps(own_folder("digits", tmp_path)) == before
    assert said[0] == said[1] and "1,437 train, 360 test" in said[0]


def test_an_exception_in_between_leaves_nothing(tmp_path, monkeypatch, digits):
    generate = builders.KdjaxDigits._generate_examples

    def interrupted(self, split):
        for row, example in generate(self, split):
            if row == 50:
                raise KeyboardInterrupt
            yield row, example

    with monkeypatch.context() as patch:
        patch.setattr(builders.KdjaxDigits, "_generate_examples", interrupted)
        with pytest.raises(KeyboardInterrupt):
            load("digits", split="train", data_dir=tmp_path)
    assert not own_folder("digits", tmp_path).exists()
    assert load("digits", split="train", data_dir=tmp_path).fingerprint() == digits.fingerprint()


def test_a_killed_process_leaves_nothing_that_counts(tmp_path, digits):
    process = start(tmp_path, killed=True)
    process.communicate()
    assert process.returncode != 0
    parent = own_folder("digits", tmp_path).parent
    assert list(parent.glob("incomplete.*")) and not own_folder("digits", tmp_path).exists()
    assert load("digits", split="train", data_dir=tmp_path).fingerprint() == digits.fingerprint()
    assert not list(parent.glob("incomplete.*"))


@pytest.mark.parametrize("damage", ["no info", "garbled info", "no shard", "cut shard", "other counts", "empty"])
def test_half_a_folder_is_built_anew(tmp_path, damage, digits):
    prepare("digits", tmp_path, log=lambda line: None)
    folder = own_folder("digits", tmp_path)
    info, shard = folder / "dataset_info.json", next(folder.glob("*-train.array_record*"))
    if damage == "no info":
        info.unlink()
    elif damage == "garbled info":
        info.write_text(info.read_text()[:100])
    elif damage == "no shard":
        shard.unlink()
    elif damage == "cut shard":
        shard.write_bytes(shard.read_bytes()[:40_000])
    elif damage == "other counts":
        fields = json.loads(info.read_text())
        next(split for split in fields["splits"] if split["name"] == "train")["shardLengths"] = ["1000"]
        info.write_text(json.dumps(fields))
    else:
        for path in folder.iterdir():
            path.unlink()
    assert load("digits", split="train", data_dir=tmp_path).fingerprint() == digits.fingerprint()


def test_two_processes_at_once(tmp_path, digits):
    processes = [start(tmp_path) for _ in range(2)]
    said = [process.communicate()[0].split() for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    assert said == [[digits.fingerprint()]] * 2
    parent = own_folder("digits", tmp_path).parent
    assert sorted(path.name for path in parent.iterdir()) == [".lock", "1.0.0"]


def test_stock_sets_need_tensorflow_to_be_prepared(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(DataError, match=r"needs TensorFlow.*pip install 'kdjax\[prepare\]'"):
        prepare("cifar100", tmp_path)
    with pytest.raises(DataError, match="did you mean 'cifar10"):
        prepare("cifar1O", tmp_path)


def test_stock_sets_are_prepared_as_array_record(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    asked = []

    def download_and_prepare(self, **options):
        asked.append((self.name, options))

    monkeypatch.setattr(tfds.core.DatasetBuilder, "download_and_prepare", download_and_prepare)
    with pytest.raises(DataError, match="is broken"):  # nothing was written here
        prepare("cifar100", tmp_path, log=lambda line: None)
    assert asked == [("cifar100", {"file_format": "array_record"})]


def test_no_network_is_one_sentence(tmp_path, monkeypatch):
    """Whatever TFDS makes of it, and after one repetition instead of ten."""
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())

    def download_and_prepare(self, **options):
        assert downloader.MAX_RETRIES == 1 and not logging.getLogger("urllib3.connectionpool").isEnabledFor(
            logging.WARNING
        )
        try:
            raise requests.exceptions.ConnectionError("Max retries exceeded")
        except requests.exceptions.ConnectionError as error:
            raise RuntimeError("Failed to get url") from error

    monkeypatch.setattr(tfds.core.DatasetBuilder, "download_and_prepare", download_and_prepare)
    with pytest.raises(
        DataError, match=r"cifar100 cannot be downloaded: there is no network.*copy the folder .*cifar100"
    ):
        prepare("cifar100", tmp_path, log=lambda line: None)
    assert downloader.MAX_RETRIES == 10 and logging.getLogger("urllib3.connectionpool").isEnabledFor(logging.WARNING)


def test_files_that_one_downloads_by_hand_are_asked_for(tmp_path, monkeypatch):
    """Without TensorFlow: the builder asks for its archives before it needs it."""
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    with pytest.raises(
        DataError, match=r"not downloaded by TFDS; put them into .*downloads/manual, .*ILSVRC2012_img_val"
    ) as error:
        prepare("imagenet2012", tmp_path, log=lambda line: None)
    assert "\n" not in str(error.value)

    def download_and_prepare(self, **options):
        raise tarfile.ReadError("unexpected end of data\nof the archive")

    monkeypatch.setattr(tfds.core.DatasetBuilder, "download_and_prepare", download_and_prepare)
    with pytest.raises(
        DataError, match=r"imagenet2012 cannot be prepared in .* \(ReadError: unexpected end of data\)\.$"
    ):
        prepare("imagenet2012", tmp_path, log=lambda line: None)


def test_without_the_locks_of_unix_it_is_prepared_all_the_same(tmp_path, monkeypatch, digits):
    monkeypatch.setitem(sys.modules, "fcntl", None)  # as on Windows
    assert load("digits", split="train", data_dir=tmp_path).fingerprint() == digits.fingerprint()


def test_a_prepared_stock_set_needs_no_tensorflow(squares, tmp_path):
    squares()
    said = []
    prepare("kdjax_test_squares/alike", tmp_path, log=said.append)
    assert len(said) == 1 and "40 train, 7 test" in said[0]

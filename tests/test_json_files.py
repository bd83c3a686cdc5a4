"""JSON files of a run: whole or not at all, and every damage is a sentence that names the file."""

import errno
import json
import os
import threading

import pytest

from kdjax import json_files
from kdjax.json_files import NUMBER, read_json, write_json


class WrongFile(Exception):
    pass


DATA = {"name": "ü", "seed": 3, "last": {"top1": 0.625, "nll": None}, "list": [1, 2]}
FIELDS = {
    "name": str,
    "seed?": int | None,
    "last": {"top1": NUMBER, "nll": NUMBER | None},
    "list": list[int],
    "more?": dict[str, int],
}


def read(path):
    return read_json(path, WrongFile, "delete it", FIELDS)


def test_what_is_written_is_read(tmp_path):
    path = tmp_path / "file.json"
    for data in (DATA, {**DATA, "seed": 4}):
        write_json(path, data)
        assert read(path) == data and [p.name for p in tmp_path.iterdir()] == ["file.json"]
    write_json(path, {**DATA, "last": {"top1": 1.0, "nll": float("nan")}})
    assert read(path)["last"]["nll"] is None and "NaN" not in path.read_text()


def test_keys_that_are_numbers_are_texts_and_the_sum_is_of_these(tmp_path):
    """2 comes before 10 among numbers, and behind it among texts."""
    write_json(tmp_path / "file.json", {"by": {2: 1, 10: 2, 0.5: 3}})
    assert read_json(tmp_path / "file.json", WrongFile, "delete it") == {"by": {"2": 1, "10": 2, "0.5": 3}}


def test_any_bit_that_flips_is_found(tmp_path):
    """Also in the checksum, its name and the version; a bit of white space that changes nothing may pass."""
    path = tmp_path / "file.json"
    write_json(path, DATA)
    raw, found = path.read_bytes(), 0
    places = range(0, 8 * len(raw), 3)
    for place in places:
        changed = bytearray(raw)
        changed[place // 8] ^= 1 << place % 8
        path.write_bytes(changed)
        try:
            assert read(path) == DATA, f"bit {place} was read as something else"
        except WrongFile as error:
            assert str(path) in str(error) and "\n" not in str(error)
            found += 1
    assert found > len(places) * 0.9


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is empty; delete it"),
        (b"\0" * 50, "is no JSON, or cut off"),
        (b'{"name": "x", ', "is no JSON, or cut off"),
        (b"\xff\xfe{}", "is no JSON, or cut off"),
        (b"[1]", "holds a list and no object"),
        (b"null", "holds a NoneType and no object"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"name": ' + b"9" * 5000 + b"}", "an integer of 5,000 digits"),
        (b'{"name": 1e999}', "1e999, which is too large"),
        (b'{"name": NaN}', "holds NaN, which is no JSON"),
        (b'{"name": "a", "name": "b"}', "it has 'name' twice"),
        (b'{"name": "\\ud800"}', "half a letter"),
        (b'{"version": 2}', "is of version 2, and this kdjax reads version 1; use the kdjax that wrote it"),
        (b'{"version": true}', "is of version True"),
        (b'{"name": []}', r"name is \[\] and not str; delete it"),
        (b'{"name": "x", "seed": true}', "seed is True and not int or null"),
        (b'{"name": "x", "last": {"top1": "y"}}', "last.top1 is 'y' and not int or float"),
        (b'{"name": "x", "last": {"top1": 1}}', "it has no last.nll"),
        (b'{"name": "x", "last": {"top1": 1, "nll": 1}, "list": [1, "a"]}', r"list\[1\] is 'a' and not int"),
        (b'{"name": "x", "last": {"top1": 1, "nll": 1}, "list": [], "more": {"a": 0.5}}', "more.a is 0.5 and not int"),
        (b'{"name": "x", "last": 5}', "last is 5 and not an object"),
    ],
)
def test_what_is_no_such_file_is_a_sentence(content, said, tmp_path):
    path = tmp_path / "file.json"
    path.write_bytes(content)
    with pytest.raises(WrongFile, match=said) as error:
        read(path)
    assert str(error.value).startswith(str(path)) and len(str(error.value)) < 300
    assert path.read_bytes() == content


def test_a_file_that_people_edit_may_be_changed_and_that_is_told(tmp_path):
    path, told = tmp_path / "file.json", []
    write_json(path, DATA)
    assert read_json(path, WrongFile, "", FIELDS, told.append) == DATA and not told
    path.write_text(path.read_text().replace('"seed": 3', '"seed": 4'))
    assert read_json(path, WrongFile, "", FIELDS, told.append) == {**DATA, "seed": 4}
    assert told == [f"{path} is not as it was written: its checksum does not match what is in it"]


def test_places_that_are_no_files(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for name, said in (("absent", "No such file"), (".", "Is a directory"), ("pipe", "no regular file")):
        with pytest.raises(WrongFile, match=f"cannot be read .*{said}.*; delete it"):
            read(tmp_path / name)


def test_files_of_windows_and_of_hands_are_read(tmp_path):
    path = tmp_path / "file.json"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps(DATA, indent=1).replace("\n", "\r\n").encode())
    assert read(path) == DATA


def test_a_disk_that_fills_up_leaves_the_file_as_it_was(tmp_path, monkeypatch):
    path = tmp_path / "file.json"
    write_json(path, DATA)

    def full(handle):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(json_files.os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_json(path, {**DATA, "seed": 4})
    assert read(path) == DATA and len(list(tmp_path.iterdir())) == 1


def test_several_may_write_one_file(tmp_path):
    path, failed, together = tmp_path / "file.json", [], threading.Barrier(6)

    def work(seed):
        together.wait()
        try:
            for _ in range(20):
                write_json(path, {**DATA, "seed": seed})
        except Exception as error:
            failed.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(6)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert not failed and read(path)["seed"] in range(6) and len(list(tmp_path.iterdir())) == 1

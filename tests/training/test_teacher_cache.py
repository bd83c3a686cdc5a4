"""Outputs of a teacher that are kept: exact, computed once, and never those of something else."""

import errno
import json
import threading

import numpy as np
import pytest

from kdjax.training.teacher_cache import CacheError, Storage, TeacherCache, with_teacher
from kdjax.types import Batch

EXAMPLES, VIEWS, CLASSES = 12, 6, 5
LOGITS = (3 * np.random.default_rng(0).standard_normal((EXAMPLES, VIEWS, CLASSES))).astype(np.float32)
FACTS = {"teacher": "abc", "views": {"flip": True}}


def cache(folder, storage="float32", facts=FACTS, classes=CLASSES):
    return TeacherCache(folder, facts, examples=EXAMPLES, views=VIEWS, shape=(classes,), storage=Storage(storage))


def answer(examples, numbers):
    return LOGITS[examples, numbers]


def add(kept, ids, at_once=4):
    kept.add((part, answer(part // VIEWS, part % VIEWS)) for part in np.split(ids, range(at_once, len(ids), at_once)))


IDS = np.array([0, 7, 3, 70, 41, 12, 13])


@pytest.mark.parametrize("storage", ["float32", "float16"])
def test_what_is_added_is_found_and_found_again(storage, tmp_path):
    kept = cache(tmp_path, storage)
    np.testing.assert_array_equal(kept.missing(IDS), np.sort(IDS))
    add(kept, IDS)
    wanted = LOGITS.reshape(-1, CLASSES)[IDS].astype(storage)
    for found in (kept, cache(tmp_path, storage)):
        assert len(found) == len(IDS)
        np.testing.assert_array_equal(found.get(IDS).logits, wanted)
        assert found.get(IDS).logits.dtype == storage
        np.testing.assert_array_equal(found.missing(np.array([0, 1, 1, 70])), [1])
    change = kept.error()["largest_change"]
    assert change == np.abs(wanted.astype(np.float32) - LOGITS.reshape(-1, CLASSES)[IDS]).max()
    assert (change == 0) == (storage == "float32")


def test_it_grows_by_a_file_for_each_addition(tmp_path):
    kept = cache(tmp_path)
    for ids in (IDS[:3], IDS[3:], np.arange(20, 40)):
        add(kept, ids)
    assert len(list(tmp_path.glob("*.array_record"))) == 3
    everything = np.concatenate([IDS, np.arange(20, 40)])
    np.testing.assert_array_equal(cache(tmp_path).get(everything).logits, LOGITS.reshape(-1, CLASSES)[everything])


def test_top_classes_and_their_probability(tmp_path):
    kept = cache(tmp_path, "top2")
    add(kept, IDS)
    taps = kept.get(IDS).taps
    p = np.exp(LOGITS.reshape(-1, CLASSES)[IDS].astype(np.float64))
    p /= p.sum(-1, keepdims=True)
    np.testing.assert_array_equal(taps["topk_ids"], np.argsort(-p, -1)[:, :2])
    np.testing.assert_allclose(np.exp(taps["topk_logprobs"]), -np.sort(-p, -1)[:, :2], rtol=3e-3)
    assert kept.error()["mass"] == pytest.approx(np.sort(p, -1)[:, -2:].sum(-1).mean(), rel=1e-3)
    more = cache(tmp_path / "more", "top9")
    add(more, IDS)
    assert more.get(IDS).taps["topk_ids"].shape == (len(IDS), CLASSES)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            {"facts": {**FACTS, "teacher": "xyz"}},
            r"of another teacher \('abc', this run has 'xyz'\); delete that folder",
        ),
        ({"facts": {**FACTS, "views": {"flip": False}}}, "of another views"),
        ({"storage": "float16"}, r"of another storage \('float32', this run has 'float16'\)"),
        ({"classes": 6}, "of another classes"),
        ({"facts": {"teacher": "abc"}}, r"of another views .*this run has None"),
    ],
)
def test_outputs_of_something_else_are_refused(change, said, tmp_path):
    add(cache(tmp_path), IDS)
    with pytest.raises(CacheError, match=said):
        cache(tmp_path, **change)


def test_a_damaged_file_is_refused_and_an_unfinished_one_ignored(tmp_path):
    kept = cache(tmp_path)
    add(kept, IDS[:3])
    add(kept, IDS[3:])
    last = sorted(tmp_path.glob("*.array_record"))[-1]
    whole = last.read_bytes()
    last.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(
        CacheError, match=r"00001.array_record is damaged .*; delete it: what it held is computed again"
    ):
        cache(tmp_path)
    last.rename(last.with_suffix(".tmp"))
    again = cache(tmp_path)
    assert len(again) == 3
    add(again, IDS[3:])
    np.testing.assert_array_equal(cache(tmp_path).get(IDS).logits, LOGITS.reshape(-1, CLASSES)[IDS])
    assert json.loads((tmp_path / "description.json").read_text())["teacher"] == "abc"


def test_forms_that_are_none_are_refused():
    for name in ("float64", "top", "topx", ""):
        with pytest.raises(ValueError, match="kept as float32, float16 or topK such as top16"):
            Storage(name)


# --- batches ---

ROWS = np.array([0, 2, 3, 5, 6, 7, 9, 11])  # the others are not visited
PASS = 4  # steps, of two examples


def numbers(number):
    return np.random.default_rng(number).integers(0, VIEWS, EXAMPLES).astype(np.int32)


def batches(start):
    step = start
    while True:
        order = np.random.default_rng([9, step // PASS]).permutation(ROWS)
        index = order[2 * (step % PASS) :][:2].astype(np.int32)
        yield Batch(
            inputs=None, targets=index % CLASSES, index=index, where=np.ones(2, bool), labelled=np.ones(2, bool)
        )
        step += 1


def remembered(kept, asked):
    def counted(examples, shown):
        asked.append(len(examples))
        return answer(examples, shown)

    return with_teacher(batches, kept, steps_per_pass=PASS, rows=ROWS, numbers=numbers, answer=counted, at_once=3)


def test_batches_bring_what_the_teacher_says_of_their_views(tmp_path):
    kept, asked = cache(tmp_path), []
    taught = remembered(kept, asked)(0)
    seen = set()
    for step in range(6 * PASS):
        batch = next(taught)
        shown = numbers(step // PASS)[batch.index]
        np.testing.assert_array_equal(batch.teacher.logits, LOGITS[batch.index, shown])
        seen |= {(row, numbers(step // PASS)[row]) for row in ROWS}
        assert len(kept) == len(seen), "each view once, and only of examples that are visited"
    assert set(asked) == {3}, "in full batches"
    assert sum(asked) < 6 * len(ROWS), "a view that comes again is not computed again"


@pytest.mark.parametrize("start", [0, 2, 4, 7])
def test_they_go_on_from_any_step_and_a_second_run_asks_nothing(start, tmp_path):
    taught = remembered(cache(tmp_path), [])(0)
    whole = [next(taught) for _ in range(12)]
    asked = []
    again = remembered(cache(tmp_path), asked)(start)
    for batch in whole[start:]:
        found = next(again)
        np.testing.assert_array_equal(found.index, batch.index)
        np.testing.assert_array_equal(found.teacher.logits, batch.teacher.logits)
    assert not asked


# --- several writers, damage, full disks ---


def test_several_may_write_one_cache_at_the_same_moment(tmp_path):
    """Each begins with what is there, and adds its own in three files: nothing is lost, of whatever number of writers."""
    together, failed = threading.Barrier(5), []

    def work(writer):
        try:
            together.wait()
            kept = cache(tmp_path)
            for part in range(3):
                add(kept, np.arange(14 * writer, 14 * writer + 14)[part::3])
        except Exception as error:
            failed.append(error)

    threads = [threading.Thread(target=work, args=(writer,)) for writer in range(5)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert not failed
    names = sorted(path.name for path in tmp_path.iterdir())
    assert len(names) == 16 and names[0] == "00000.array_record" and not any("tmp" in name for name in names)
    np.testing.assert_array_equal(cache(tmp_path).get(np.arange(70)).logits, LOGITS.reshape(-1, CLASSES)[:70])


def test_any_bit_that_flips_in_its_files_is_found(tmp_path):
    kept = cache(tmp_path)
    add(kept, IDS)
    path = tmp_path / "00000.array_record"
    raw, found = path.read_bytes(), 0
    for place in np.random.default_rng(0).integers(0, 8 * len(raw), 150):
        changed = bytearray(raw)
        changed[place // 8] ^= 1 << int(place) % 8
        path.write_bytes(changed)
        try:
            np.testing.assert_array_equal(cache(tmp_path).get(IDS).logits, LOGITS.reshape(-1, CLASSES)[IDS])
        except CacheError as error:
            found += str(path) in str(error)
    assert found > 0
    path.write_bytes(raw)
    other = tmp_path / "other"
    add(cache(other), IDS[:2])
    (other / path.name).rename(path)  # sound, but not what was to be read: the checksum is of a whole file
    assert len(cache(tmp_path)) == 2


@pytest.mark.parametrize(
    "content", ["", "\0\0\0", '{"form": 2', "[]", '{"form": 1}', "[" * 9999, '{"storage": 5, "version": 9}']
)
def test_a_damaged_description_is_a_sentence(content, tmp_path):
    cache(tmp_path)
    (tmp_path / "description.json").write_text(content)
    with pytest.raises(CacheError, match=r"description\.json|delete that folder") as error:
        cache(tmp_path)
    assert "\n" not in str(error.value)


def test_a_cache_that_cannot_be_written_says_so(tmp_path, monkeypatch):
    kept = cache(tmp_path / "cache")

    def full(temporary):
        raise OSError(errno.ENOSPC, "No space left on device", str(temporary))

    monkeypatch.setattr(kept, "_publish", full)
    with pytest.raises(
        CacheError, match=r"cannot be kept in .*cache: The disk of .* is full.*another folder with --cache-dir"
    ):
        add(kept, IDS)
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["description.json"]
    (tmp_path / "file").touch()
    with pytest.raises(CacheError, match=r"cannot be kept in .*file/cache: .*another folder with --cache-dir"):
        cache(tmp_path / "file/cache")


def test_what_the_teacher_raises_is_not_taken_for_the_disk(tmp_path):
    def blocks():
        yield IDS[:2], answer(IDS[:2] // VIEWS, IDS[:2] % VIEWS)
        raise ValueError("of the teacher")

    kept = cache(tmp_path)
    with pytest.raises(ValueError, match="of the teacher"):
        kept.add(blocks())
    assert [path.name for path in tmp_path.iterdir()] == ["description.json"]

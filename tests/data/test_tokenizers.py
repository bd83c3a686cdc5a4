"""Text as numbers: those of bytes and words, and those of a file."""

import numpy as np
import pytest

from kdjax.data import DataError
from kdjax.data.tokenizers import END, SPECIAL, START, encode, tokenizer_of


def rows(tokenizer, first, second=None, length=12):
    made = encode(tokenizer_of(tokenizer), first, second, length)
    assert made.ids.shape == made.mask.shape == made.types.shape == (len(first), length)
    assert not np.any(made.types[made.mask == 0]) and (np.sort(made.mask, axis=1)[:, ::-1] == made.mask).all()
    return made


def test_bytes():
    made = rows("bytes", ["ab", "ä", "x" * 30, "y" * 10])
    assert made.ids[0].tolist() == [START, 97 + SPECIAL, 98 + SPECIAL, END] + [0] * 8
    assert made.ids[1][:4].tolist() == [START, 195 + SPECIAL, 164 + SPECIAL, END]
    assert made.cut.tolist() == [False, False, True, False] and made.ids[2][-1] == END and made.mask[2].all()


def test_pairs_lose_of_the_longer_one():
    made = rows("bytes", ["ab", "a" * 20, "ab", "a" * 20], ["cd", "c", "c" * 20, "c" * 20])
    shown = lambda row: bytes(int(token) - SPECIAL if token >= SPECIAL else ord("-") for token in row).decode()
    text = [shown(row[mask == 1]) for row, mask in zip(made.ids, made.mask, strict=True)]
    assert text == ["-ab-cd-", "-aaaaaaaa-c-", "-ab-ccccccc-", "-aaaa-ccccc-"]
    assert made.types[0].tolist() == [0] * 4 + [1] * 3 + [0] * 5 and made.cut.tolist() == [False, True, True, True]


def test_words_are_those_in_small_letters_and_marks():
    made = rows("words:512", ["The cat, the  CAT.", "the cat , the cat ."])
    np.testing.assert_array_equal(made.ids[0], made.ids[1])
    assert made.mask[0].sum() == 8 and made.ids.max() < 512 and made.ids.dtype == np.uint16
    assert made.ids[0][1] == made.ids[0][4] != made.ids[0][2]
    again = rows("words:512", ["other", "The cat"])
    np.testing.assert_array_equal(again.ids[1][1:3], made.ids[0][1:3])


@pytest.mark.parametrize("name, message", [("words:4", "use 8 to"), ("nowhere", "There is no tokenizer 'nowhere'")])
def test_there_is_none(name, message):
    with pytest.raises(DataError, match=message):
        tokenizer_of(name)


def test_rows_without_room_are_refused():
    with pytest.raises(DataError, match="no room for a text"):
        encode(tokenizer_of("bytes"), ["a"], ["b"], 4)


@pytest.fixture(scope="module")
def wordpiece(tmp_path_factory):
    pytest.importorskip("tokenizers")
    folder = tmp_path_factory.mktemp("wordpiece")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "cat", "##s", "sat", "."]
    (folder / "vocab.txt").write_text("\n".join(words) + "\n")
    return folder


def test_a_vocabulary_and_its_json_are_the_same(wordpiece, tmp_path):
    made = rows(str(wordpiece), ["The cats sat.", "the"], ["cat", "sat " * 20])
    assert made.ids[0].tolist() == [2, 5, 6, 7, 8, 9, 3, 6, 3, 0, 0, 0]
    assert made.types[0].tolist() == [0] * 7 + [1] * 2 + [0] * 3 and made.cut.tolist() == [False, True]
    tokenizer_of(str(wordpiece))._made.save(str(tmp_path / "tokenizer.json"))
    again = rows(str(tmp_path / "tokenizer.json"), ["The cats sat.", "the"], ["cat", "sat " * 20])
    np.testing.assert_array_equal(again.ids, made.ids)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(DataError, match="holds no tokenizer that can be read"):
        tokenizer_of(str(tmp_path))

"""Documents as rows of tokens: nothing lost, nothing learned twice, nothing across the end of a text."""

import collections
import gzip
import itertools
import json

import numpy as np
import pytest

from kdjax.data import DataError, documents
from kdjax.data.documents import JARGON, TOPICS, load_documents
from kdjax.data.packing import packed, paired, positions
from kdjax.data.vocabulary import vocabulary_of

BYTES = vocabulary_of("bytes")


@pytest.mark.parametrize("length", [2, 3, 7, 40])
def test_every_token_but_the_first_of_a_document_is_learned_once_with_what_is_before_it(length):
    rng = np.random.default_rng(0)
    texts = ["".join(rng.choice(list("abc"), size)) for size in (0, 1, 2, 5, 6, 7, 13, 30, 90)]
    rows = packed(texts, BYTES, length)
    assert (
        rows.tokens.shape == rows.segments.shape == (len(rows.tokens), length + 1) and rows.learned.shape[1] == length
    )
    wanted, found = collections.Counter(), collections.Counter()
    for text in texts:
        tokens = [BYTES.start, *BYTES.numbers([text])[0], BYTES.end]
        wanted.update(itertools.pairwise(tokens))
    before, behind = rows.tokens[:, :-1][rows.learned], rows.tokens[:, 1:][rows.learned]
    found.update(zip(before.tolist(), behind.tolist(), strict=True))
    assert found == wanted
    same = (rows.segments[:, 1:] == rows.segments[:, :-1]) & (rows.segments[:, 1:] > 0)
    assert np.array_equal(rows.learned, same)
    assert (rows.segments[:-1, -2] > 0).all(), (
        "only a last place of a row stays empty, where one token would learn nothing"
    )
    places = positions(rows.segments)
    for row, segments in enumerate(rows.segments):
        for segment in set(segments) - {0}:
            inside = np.flatnonzero(segments == segment)
            assert np.array_equal(places[row, inside], np.arange(len(inside)))


def test_pairs_learn_their_responses_and_ends():
    rows = paired(["ab", "abcdefgh"], ["xy", "uvwxyzuvwxyz"], BYTES, 10, prompt=5, whole=False)
    text = lambda numbers: BYTES.text(numbers)
    assert text(rows.tokens[0]) == "abxy" and text(rows.tokens[1]) == "efghuvwxyz"
    assert text(rows.tokens[0, 1:][rows.learned[0]]) == "xy" and text(rows.tokens[1, 1:][rows.learned[1]]) == "uvwxyz"
    assert rows.learned.sum(1).tolist() == [3, 6] and rows.begins.tolist() == [3, 5] and rows.cut == 1
    whole = paired(["ab"], ["xy"], BYTES, 10, prompt=5, whole=True)
    assert whole.learned.sum() == 5


def test_what_python_says_of_itself_is_a_corpus():
    train, test = (load_documents(TOPICS, split=split) for split in ("train", "test"))
    assert len(train) > 5 * len(test) > 20 and not set(train.first) & set(test.first)
    assert sum(map(len, train.first)) > 300_000
    assert "assert" in " ".join(train.first)
    assert train.fingerprint() != test.fingerprint() == load_documents(TOPICS, split="validation").fingerprint()


def test_the_jargon_file_is_read_where_it_is_installed(tmp_path, monkeypatch):
    monkeypatch.setattr(documents, "JARGON_FILE", tmp_path / "jargon.txt.gz")
    with pytest.raises(DataError, match="install Debian's package jargon-text"):
        load_documents(JARGON, split="train")
    text = "\n\n".join(f"{i}: noun" for i in range(500))
    (tmp_path / "jargon.txt.gz").write_bytes(gzip.compress(text.encode()))
    train, test = (load_documents(JARGON, split=split) for split in ("train", "test"))
    assert (len(train), len(test)) == (23, 2) and test.first[0].startswith("180: noun")


def test_files_and_folders_of_ones_own(tmp_path, capsys):
    (tmp_path / "book.txt").write_text("\n\n".join(f"paragraph {i}" for i in range(400)), encoding="utf-8")
    train, test = (load_documents(str(tmp_path / "book.txt"), split=split) for split in ("train", "test"))
    assert (len(train), len(test)) == (18, 2) and train.first[0].count("paragraph") == 20
    assert "2 of 20 documents are held out" in capsys.readouterr().err
    assert len(load_documents(str(tmp_path), split="train")) == 18
    (tmp_path / "train.jsonl").write_text('{"text": "one\\u2028line"}\n\n{"text": "two"}\n')
    (tmp_path / "test.txt").write_text("three")
    assert load_documents(str(tmp_path), split="train").first == ("one\u2028line", "two")
    assert load_documents(str(tmp_path), split="test").first == ("three",)


def test_instructions_are_asked_as_alpaca_asks(tmp_path):
    lines = [
        {"instruction": "Add.", "context": "1 and 2", "response": "3", "category": "closed_qa"},
        {"instruction": "Say hello.", "context": "", "response": "Hello."},
    ]
    alpaca = [{"instruction": x["instruction"], "input": x["context"], "output": x["response"]} for x in lines]
    found = []
    for name, rows in (("dolly", lines), ("alpaca", alpaca)):
        (tmp_path / name).mkdir()
        for part in ("train", "test"):
            (tmp_path / name / f"{part}.jsonl").write_text("\n".join(map(json.dumps, rows)))
        found.append(load_documents(str(tmp_path / name), split="train"))
    first, second = found[0].first
    assert found[0].responses == found[1].responses == ("3", "Hello.") and found[0].first == found[1].first
    assert first.startswith(
        "Below is an instruction that describes a task, paired with an input that provides further context."
    )
    assert first.endswith("request.\n\n### Instruction:\nAdd.\n\n### Input:\n1 and 2\n\n### Response:\n")
    assert "Input" not in second and second.endswith("request.\n\n### Instruction:\nSay hello.\n\n### Response:\n")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ('{"instruction": "a", "input": ["b"], "output": "b"}', "no text for what its instruction is about in line 1"),
        ('{"instruction": "a", "input": "b"}', "write text, or prompt and response, or instruction and response"),
        ('{"text": "a"}\n{"text": null}\n', "no text for 'text' in line 2"),
        ('{"prompt": "a", "response": ""}', "no text for 'response' in line 1"),
        ('{"prompt": "a"}', "write text, or prompt and response"), ("[1]", "no object in line 1"), ("{", "no JSON in line 1"),
        ("\n", "has no rows"), ('{"text": "a"}', "too few documents to hold some out"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_file_is_said(tmp_path, content, said):
    (tmp_path / "own.jsonl").write_text(content)
    with pytest.raises(DataError, match=said):
        load_documents(str(tmp_path / "own.jsonl"), split="train")


def test_what_is_wrong_with_a_folder_is_said(tmp_path):
    with pytest.raises(DataError, match="no file or folder"):
        load_documents(str(tmp_path / "none.txt"), split="train")
    with pytest.raises(DataError, match=r"no train.jsonl, train.txt or other .txt"):
        load_documents(str(tmp_path), split="train")
    (tmp_path / "test.txt").write_text("text")
    with pytest.raises(DataError, match="nothing to train on"):
        load_documents(str(tmp_path), split="train")
    for name in ("train.txt", "train.jsonl"):
        (tmp_path / name).write_text("text")
    with pytest.raises(DataError, match=r"both train.txt and train.jsonl"):
        load_documents(str(tmp_path), split="train")


def test_a_file_of_a_tokenizer_gives_its_text_back(tmp_path):
    tokenizers = pytest.importorskip("tokenizers")
    made = tokenizers.ByteLevelBPETokenizer()
    made.train_from_iterator(
        ["the cat sat on the mat — and thé end"] * 9, vocab_size=300, special_tokens=["<s>", "</s>"]
    )
    made.save(str(tmp_path / "tokenizer.json"))
    vocabulary = vocabulary_of(str(tmp_path))
    texts = ["the cat — thé mat", "sat"]
    numbers = vocabulary.numbers(texts)
    assert [vocabulary.text([vocabulary.start, *row, vocabulary.end]) for row in numbers] == texts
    counts = vocabulary.byte_counts()
    assert [int(counts[row].sum()) for row in numbers] == [len(text.encode()) for text in texts]
    assert counts[[vocabulary.start, vocabulary.end]].tolist() == [0, 0] and len(numbers[0]) < len(texts[0])

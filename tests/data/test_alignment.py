"""Two tokenizations of the same texts beside each other."""

import numpy as np
import pytest

from kdjax.data.alignment import aligned
from kdjax.data.documents import Documents
from kdjax.data.packing import packed, paired
from kdjax.data.vocabulary import ByteVocabulary, vocabulary_of

TEXTS = ("abcdefghijklmnopqrstuvwxyz", "", "0123456789", "AB")


class Runs:
    """A vocabulary of runs of so many letters: token `i` of a text is the run's first letter, and what ends and begins a text
    stands before all letters."""

    padding, end, size = 0, 2, 128

    def __init__(self, letters, start=True):
        self.letters, self.start = letters, 1 if start else None

    def numbers_and_ends(self, texts):
        found = []
        for text in texts:
            starts = range(0, len(text), self.letters)
            ends = np.array([min(i + self.letters, len(text)) for i in starts], int)
            found.append(([ord(text[i]) for i in starts], ends))
        return found

    def numbers(self, texts):
        return [numbers for numbers, _ in self.numbers_and_ends(texts)]


def check(made, found, ours, theirs, texts):
    """Wherever two columns are said to be in step, exactly as many letters of the same text have been read; and wherever that
    is so in the same row, it is said."""
    read = {which: dict(enumerate(v.numbers_and_ends(texts))) for which, v in (("ours", ours), ("theirs", theirs))}

    def letters(vocabulary, which, text, tokens):
        """How many letters have been read behind each of the tokens of a piece, which lie one behind the other in its text."""
        numbers, ends = read[which][text]
        whole = [*([] if vocabulary.start is None else [vocabulary.start]), *numbers, vocabulary.end]
        behind = [*([] if vocabulary.start is None else [0]), *ends, len(texts[text]) + 1]
        for first in range(len(whole)):
            if whole[first : first + len(tokens)] == list(tokens):
                return behind[first : first + len(tokens)]
        raise AssertionError(f"{tokens} are not of {texts[text]!r}")

    for row in range(len(made.tokens)):
        for segment in np.unique(made.segments[row, :-1][made.segments[row, :-1] > 0]):
            here = np.flatnonzero(made.segments[row, :-1] == segment)
            there = np.flatnonzero(found.segments[row] == segment)
            text = made.texts[row, here[0]]
            assert (made.texts[row, here] == text).all()
            first = letters(ours, "ours", text, made.tokens[row, here])
            second = letters(theirs, "theirs", text, found.tokens[row, there]) if len(there) else []
            for column, count in zip(here, first, strict=True):
                same = [there[i] for i, other in enumerate(second) if other == count]
                assert found.columns[row, column] == (same[0] if same else -1)
    assert (found.columns[made.segments[:, :-1] == 0] == -1).all()


@pytest.mark.parametrize("ours, theirs", [(1, 3), (3, 1), (2, 3), (2, 2)])
@pytest.mark.parametrize("starts", [(True, True), (False, True), (True, False)])
def test_positions_are_in_step_where_as_much_is_read(ours, theirs, starts):
    ours, theirs = Runs(ours, starts[0]), Runs(theirs, starts[1])
    documents = Documents("letters", "train", TEXTS)
    for length in (4, 9, 50):
        made = packed(TEXTS, ours, length)
        found = aligned(documents, made, 0, ours, theirs)
        check(made, found, ours, theirs, TEXTS)
        assert found.tokens.shape[1] % 8 == 0 and (found.tokens[found.segments == 0] == theirs.padding).all()
        cut = aligned(documents, made, 5, ours, theirs)
        assert cut.tokens.shape == (len(made.tokens), 5) and cut.columns.max() < 5
        np.testing.assert_array_equal(cut.columns, np.where(found.columns < 5, found.columns, -1))


def test_the_same_tokens_are_in_step_everywhere():
    vocabulary = ByteVocabulary()
    texts = ("Größe 🍎", "x")
    made = packed(texts, vocabulary, 6)
    found = aligned(Documents("bytes", "train", texts), made, 0, vocabulary, vocabulary)
    there = made.segments[:, :-1] > 0
    np.testing.assert_array_equal(found.tokens[:, :6][there], made.tokens[:, :-1][there])
    np.testing.assert_array_equal(found.columns, np.where(there, np.arange(6), -1))


def test_pairs_and_prompts_that_lose_their_beginning():
    ours, theirs = Runs(2), Runs(3)
    prompts, responses = ("abcdefghij", "kl"), ("0123456", "")
    documents = Documents("pairs", "train", prompts, responses)
    made = paired(
        prompts, responses, ours, 9, prompt=4, whole=False
    )  # of the first prompt the last three tokens are kept
    found = aligned(documents, made, 0, ours, theirs)
    words = lambda row: "".join({0: ".", 1: "<", 2: ">"}.get(int(t), chr(int(t))) for t in row)
    assert [words(row) for row in made.tokens] == ["<egi0246>.", "<k>......."]
    # What begins before "e" is whole, a response begins anew, and what stands behind the last token shown is not needed.
    assert [words(row) for row in found.tokens] == ["<dgj036>", "<k>....."]
    np.testing.assert_array_equal(found.columns, [[0, 1, -1, 3, -1, -1, 5, 6, 7], [0, 1, 2, -1, -1, -1, -1, -1, -1]])


def test_tokenizers_of_files_say_how_far_they_have_read(tmp_path):
    tokenizers = pytest.importorskip("tokenizers")
    text = "Größe  zählt: 12 Äpfel\n🍎!"

    def made(name, tokenizer, **options):
        trainer = tokenizers.trainers.BpeTrainer(special_tokens=["<unk>", "</s>"], **options)
        tokenizer.train_from_iterator([text] * 9, trainer)
        (tmp_path / name).mkdir()
        tokenizer.save(str(tmp_path / name / "tokenizer.json"))
        return vocabulary_of(str(tmp_path / name))

    level = tokenizers.pre_tokenizers.ByteLevel
    for lead in (False, True):  # with it a space is read that the text has not
        files = tokenizers.Tokenizer(tokenizers.models.BPE())
        files.pre_tokenizer, files.decoder = level(add_prefix_space=lead), tokenizers.decoders.ByteLevel()
        files.post_processor = tokenizers.processors.ByteLevel(trim_offsets=True)
        vocabulary = made(f"level{lead}", files, vocab_size=290, initial_alphabet=level.alphabet())
        ((numbers, ends),) = vocabulary.numbers_and_ends([text])
        assert numbers == vocabulary.numbers([text])[0] and ends[-1] == len(text.encode())
        for count, end in enumerate(ends, 1):
            if count == len(ends) or ends[count] != end:  # behind the last token of a letter
                said = vocabulary.text(numbers[:count])
                assert said.removeprefix(" " * lead).encode() == text.encode()[:end]
    meta = tokenizers.Tokenizer(tokenizers.models.BPE(unk_token="<unk>"))
    meta.pre_tokenizer, meta.decoder = tokenizers.pre_tokenizers.Metaspace(), tokenizers.decoders.Metaspace()
    vocabulary = made("meta", meta, vocab_size=60)
    ((numbers, ends),) = vocabulary.numbers_and_ends([text])
    for count, end in enumerate(ends, 1):
        assert vocabulary.text(numbers[:count]).encode() == text.encode()[:end]

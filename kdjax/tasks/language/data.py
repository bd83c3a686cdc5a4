"""How a config names documents or prompts with responses, and how they become tokens, batches and a table."""

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import jax.numpy as jnp
import numpy as np

from kdjax.data import DataError
from kdjax.data.documents import FILES, JARGON, TOPICS, load_documents
from kdjax.data.packing import Packed
from kdjax.data.splits import make_splits
from kdjax.data.text_files import text_of
from kdjax.data.tokenizers import check_numbers, tokenizer_files
from kdjax.data.vocabulary import Vocabulary
from kdjax.models.transformers import write_folder
from kdjax.models.transformers.sampling import Beside, Sampling
from kdjax.tasks.dataset import BESIDE, Dataset
from kdjax.tasks.language.examples import Rows, rows_of, shown_of, vocabulary_called
from kdjax.tasks.language.networks import HEAD, LanguageNetwork, decoder_of, in_step, make_decoder, problems_of
from kdjax.tasks.language.report import compare_written
from kdjax.tasks.language.scores import language_means, language_sums
from kdjax.tasks.language.writing import rewritten
from kdjax.tasks.pretrained import (
    is_beside,
    own_tokenizer,
    reading,
    same_tokens,
    shown,
    tokenizers,
    with_tokenizer,
    written_out,
)
from kdjax.tasks.task import NumberedViews, Task
from kdjax.training.metrics import Metric
from kdjax.types import Batch, DataInfo, Network

MOST_SHOWN = 5  # networks that go on with prompts in a report


@dataclasses.dataclass(frozen=True, kw_only=True)
class Language(Task):
    """Which texts, and how they become rows of tokens."""

    name: str = TOPICS
    """data set: python_topics, what Python says of its language; jargon, of Debian's package jargon-text; a .txt; a .jsonl with
    text, or prompt and response, a line; or a folder of them"""
    batch_size: int = 16
    """rows in one optimizer step, over all devices"""
    eval_batch_size: int = 32
    """rows in one evaluation step, over all devices"""
    tokenizer: str = "bytes"
    """bytes; or the path of a tokenizer.json, or of a folder with one"""
    length: int = 128
    """tokens of a row: documents fill rows one after the other; of pairs each has one"""
    prompt: int = 0
    """tokens that a prompt may have; of documents, tokens of a row behind which networks write themselves; 0 for half a row"""
    whole: bool = False
    """whether prompts are learned as well as responses"""
    sampling: Sampling = Sampling()
    """how networks write, where they do: in phases with on_policy, and in reports"""
    eval_examples: int = 0
    """evaluate at most so many rows, evenly spaced over the split; 0 for all"""
    validation: int = 0
    """documents or pairs held out of the training split, for tuning"""
    evaluate_on: Literal["test", "validation"] = "test"
    """which rows are evaluated"""
    split_seed: int = 0
    """seed of the choice of validation documents, and of test ones where a set has none"""
    beside: str = ""
    """tokenizer of a teacher that has its own; set by the teacher's network.tokenizer"""

    metric: ClassVar = Metric("nll", "NLL", 1, 3, higher_is_better=False, unit="nats")
    columns: ClassVar = (
        Metric("perplexity", "perplexity", 1, 2, higher_is_better=False),
        Metric("bits_per_byte", "bits/byte", 1, 3, higher_is_better=False), Metric("top1", "top-1 %", 100, 1),
        Metric("agreement", "agreement %", 100, 1), Metric("teacher_kl", "KL(t‖s)", 1, 3, higher_is_better=False),
        Metric("reverse_kl", "KL(s‖t)", 1, 3, higher_is_better=False), Metric("entropy", "entropy", 1, 2),
    )  # fmt: skip
    noun: ClassVar = "rows"
    legend: ClassVar = (
        "A token, of those that are learned: NLL, both KL of student and teacher, and the network's own entropy in nats. "
        "Agreement: same most likely token as the teacher."
    )

    def __post_init__(self):
        for field in ("name", "tokenizer", "beside"):  # a saved run is read from anywhere
            path = os.path.expanduser(getattr(self, field))
            own = field != "name" or path.endswith(FILES) or (path not in (TOPICS, JARGON) and os.path.isdir(path))
            if own and os.path.exists(path):
                object.__setattr__(self, field, os.path.abspath(path))

    @property
    def prompt_size(self) -> int:
        """Tokens of a prompt."""
        return self.prompt or self.length // 2

    @property
    def vocabulary(self) -> Vocabulary:
        return vocabulary_called(self.tokenizer)

    def load(self, data_dir: str | None = None) -> Dataset:
        if found := self.problems():
            raise DataError(found[0])
        train, vocabulary = load_documents(self.name, split="train", split_seed=self.split_seed), self.vocabulary
        splits = make_splits(np.zeros(len(train), np.int32), validation=self.validation, split_seed=self.split_seed)
        kept = train.take(splits.validation) if self.validation else None
        test = kept if self.evaluate_on == "validation" else load_documents(
            self.name, split="test", split_seed=self.split_seed
        )  # fmt: skip
        train = train.take(splits.train)
        if (train.responses is None) != (test.responses is None):
            raise DataError(
                f"{self.name} has prompts with responses in one split and documents in the other; give them alike."
            )
        theirs = vocabulary_called(self.beside) if self.beside else None
        made = lambda part, size=0: rows_of(
            part, vocabulary, self.length, prompt=self.prompt_size, whole=self.whole, beside=theirs, beside_length=size
        )
        learned = made(train)
        held = made(test, learned.inputs[BESIDE]["input_ids"].shape[1] if theirs else 0)
        aside = None if kept is None else held if kept is test else made(kept)
        rows = np.arange(len(held))
        if 0 < self.eval_examples < len(rows):
            rows = rows[np.linspace(0, len(rows) - 1, self.eval_examples).round().astype(int)]
        kind = "documents" if train.responses is None else "pairs"
        said = f"{len(train):,} {kind}, rows of {self.length} tokens of {vocabulary.size:,} kinds"
        targets = ("labels", "begins", "written", "drawn")
        if theirs:
            same = learned.inputs[BESIDE]["columns"] >= 0
            said += (
                f", for the teacher of {theirs.size:,}, in step with it at {np.mean(same[learned.learned]):.0%} of them"
            )
            targets += ("aligned",)
        info = DataInfo(vocabulary.size, len(learned), targets=targets)
        everything = np.ones(len(learned), bool)
        return Dataset(
            learned, np.arange(len(learned)), everything, held, rows, self.evaluate_on, info, learned.inputs, said,
            validation=aside,
        )  # fmt: skip

    def problems(self) -> list[str]:
        found = []
        if self.evaluate_on == "validation" and self.validation == 0:
            found.append("data.evaluate_on is 'validation', but data.validation is 0; hold some documents out.")
        if self.length < 4:
            found.append(f"data.length={self.length}; use 4 or more.")
        elif not 0 <= self.prompt < self.length:
            found.append(
                f"data.prompt={self.prompt} leaves no room in rows of {self.length} tokens; use less than that."
            )
        return found

    def tuned(self):
        if self.validation == 0:
            raise ValueError(
                "data.validation is 0, so that settings would be chosen on the test documents; hold some out of the training "
                "split, such as --data.validation 10."
            )
        return dataclasses.replace(self, evaluate_on="validation")

    def shrunk(self):
        """Short rows of the texts that need no download, with the tokenizer that needs no file."""
        length = min(self.length, 32)
        return dataclasses.replace(
            super().shrunk(), name=TOPICS, tokenizer="bytes", length=length, prompt=min(self.prompt, length // 2),
            eval_examples=64, validation=min(self.validation, 8),
        )  # fmt: skip

    # --- views ---

    def numbered_views(self) -> NumberedViews:
        same = lambda index, epoch, key: jnp.zeros(len(index), jnp.int32)
        read = vocabulary_called(self.beside) if self.beside else self.vocabulary
        facts = {"tokenizer": read.fingerprint(), "length": self.length}
        return NumberedViews(1, same, lambda inputs, numbers: inputs, facts)

    def decoded(self, file: Any, inputs: Any) -> Any:
        """The text of a file, or a text itself: its last tokens, as many as a row has."""
        length, vocabulary = inputs["input_ids"].shape[1], self.vocabulary
        (numbers,) = vocabulary.numbers([text_of(file)])
        numbers = [*([] if vocabulary.start is None else [vocabulary.start]), *numbers][-length:]
        if not numbers:
            raise ValueError("There is no text to go on with; give some.")
        tokens = np.full((1, length + 1), vocabulary.padding, np.int32)
        tokens[0, : len(numbers)] = numbers
        made = shown_of(
            Packed(tokens, (np.arange(length + 1) < len(numbers)).astype(np.int32)[None], tokens[:, 1:] > 0)
        )
        return {name: array[0].astype(inputs[name].dtype) for name, array in made.items()}

    def answers(self, inputs: Any, output: Any, names: Sequence[str], top: int) -> list[list[tuple[str, float]]]:
        """The tokens that follow a text most likely."""
        logits = np.asarray(output.logits, np.float32)
        found = []
        for row, segments in zip(logits, np.asarray(inputs["segment_ids"]), strict=True):
            last = row[int(np.sum(segments > 0)) - 1]
            shares = np.exp(last - last.max())
            shares /= shares.sum()
            best = np.argsort(-shares, kind="stable")[:top]
            said = ["(end)" if i == self.vocabulary.end else repr(self.vocabulary.text([i])) for i in best]
            found.append(list(zip(said, shares[best].tolist(), strict=True)))
        return found

    def unlike(self, other: Task, model: Any) -> str:
        theirs = getattr(other, "tokenizer", self.tokenizer)
        try:
            same = same_tokens(theirs, self.tokenizer)
        except DataError:
            same = False
        return "" if same else f"data.tokenizer was {theirs}, and is {self.tokenizer}"

    # --- networks ---

    def for_networks(self, network, teachers, *, writes=False):
        own, beside = tokenizers(self.tokenizer, network, teachers)
        if beside and writes:
            raise ValueError(
                f"The teacher reads the tokens of {beside}, and what the student writes itself is of {own}; set on_policy to 0."
            )
        alike = (own, beside) == (self.tokenizer, self.beside)
        return self if alike else dataclasses.replace(self, tokenizer=own, beside=beside)

    def network(self, model: LanguageNetwork, dataset: Dataset, *, remat: bool = False) -> Network:
        beside = is_beside(model, self.tokenizer)
        name = model.tokenizer if beside else self.tokenizer
        vocabulary, inputs = vocabulary_called(name), shown(dataset.shapes(1)["inputs"], beside=beside)
        if model.trained and not problems_of(model):
            check_numbers(name, model.weights)
        length = inputs["input_ids"].shape[1]
        rows = self.length if beside else 0
        network = make_decoder(model, vocabulary=vocabulary.size, length=length, remat=remat, data_length=rows)
        if not self.beside:
            return network
        return reading(network, beside=beside, answer=in_step) if beside else reading(
            network, beside=False
        )  # fmt: skip

    def written_out(self, model):
        return written_out(model, self.tokenizer)

    def as_trained(self, model: Any, other: Any, classes: Sequence[str], dataset: Dataset) -> Any:
        return with_tokenizer(model, other.tokenizer, self.tokenizer)

    def taken(self, model: Any, folder: Path) -> LanguageNetwork:
        own = own_tokenizer(folder, self.tokenizer)
        return LanguageNetwork(weights=str(folder), trained=True, keep=getattr(model, "keep", ()), tokenizer=own)

    def write_network(self, model: LanguageNetwork, params: Any, classes: Sequence[str], folder: Path) -> None:
        vocabulary = self.vocabulary
        a, _, _ = decoder_of(model, vocabulary.size)
        ends = {"bos_token_id": vocabulary.start, "eos_token_id": vocabulary.end}
        write_folder(folder, a, HEAD, params, tokenizer=tokenizer_files(self.tokenizer), settings=ends)

    def shrunk_network(self, model: LanguageNetwork) -> LanguageNetwork:
        if problems_of(model):
            return model
        return dataclasses.replace(
            model, name="", weights="", trained=False, layers=(), tokenizer="", width=32, depth=1, heads=0, kv_heads=0, hidden=0
        )  # fmt: skip

    def written(
        self, network: Network, params: Any, state: Any, batch: Batch, key: Any, beside: Beside | None = None
    ) -> Batch:
        """The prompts of the rows, and what the network writes behind them; of that all is learned, and nothing is a label."""
        return rewritten(
            network, params, state, batch, key, prompt=self.prompt_size, sampling=self.sampling, vocabulary=self.vocabulary,
            beside=beside,
        )  # fmt: skip

    # --- metrics ---

    def sums(self, student, teacher, batch):
        return language_sums(student, teacher, batch, self.vocabulary.byte_counts())

    def means(self, sums):
        return language_means(sums)

    # --- report ---

    def pictures(self, comparison, folder, load):
        held = self.load().held
        assert isinstance(held, Rows)
        places = {"teacher": folder / "teacher"} if (folder / "teacher").exists() else {}
        for name, summary in comparison["methods"].items():
            places[name] = folder / name / f"seed{summary['seeds'][0]}"
        networks = {name: load(place) for name, place in list(places.items())[:MOST_SHOWN]}
        return compare_written(
            {
                name: one for name, one in networks.items()
                if "begin" in one.network.parts and one.task.tokenizer == self.tokenizer
            }, held, folder,
            prompt=self.prompt_size, sampling=self.sampling, vocabulary=self.vocabulary,
        )  # fmt: skip

"""How a config names texts and their classes, and how they become tokens, batches and a table."""

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import jax.numpy as jnp
import numpy as np

from kdjax.data import DataError, make_splits
from kdjax.data.columns import Columns
from kdjax.data.python_docs import NAME as PYTHON_DOCS
from kdjax.data.text_files import FILES, text_of
from kdjax.data.text_records import COUNTS
from kdjax.data.texts import Texts, load_texts
from kdjax.data.tokenizers import check_numbers, tokenizer_files
from kdjax.models.transformers import write_folder
from kdjax.tasks.dataset import NOT_HERE, Dataset
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
from kdjax.tasks.text.drawing import draw_answers
from kdjax.tasks.text.examples import TextExamples, encoded, one, read_beside, tokenizer_called
from kdjax.tasks.text.networks import TextNetwork, classifier_of, make_text_network, problems_of
from kdjax.tasks.text.scores import text_means, text_sums
from kdjax.training.metrics import Metric
from kdjax.types import DataInfo, ModelOutput, Network

SHOWN, MOST_SHOWN = 12, 6  # texts in a report, and networks beside each other


@dataclasses.dataclass(frozen=True, kw_only=True)
class Text(Task):
    """Which texts, how many of them with labels, and how they become tokens."""

    name: str = PYTHON_DOCS
    """data set: python_docs, the docstrings of this machine's Python; a TFDS set such as glue/sst2, imdb_reviews or
    ag_news_subset; a .csv, .tsv or .jsonl file; a folder with train.csv, or with a folder of text files a class"""
    batch_size: int = 32
    eval_batch_size: int = 128
    tokenizer: str = "words"
    """bytes; words, or words:SIZE, by a checksum; or the path of a tokenizer.json, or of a folder with one"""
    length: int = 128
    """tokens of a row: longer texts lose their end, shorter ones are filled up"""
    buckets: tuple[int, ...] = ()
    """shorter lengths of rows, such as 32 64: batches are of texts of like length, as long as these need; all is compiled once
    for each. Empty: all rows have `length` tokens, and texts are mixed whatever their length"""
    keys: Columns = Columns()
    """columns of a file, or features of a TFDS set, that hold texts and classes"""
    eval_examples: int = 0
    """evaluate at most so many examples, evenly spaced over the split; 0 for all"""
    validation: int = 0
    """examples held out of the training split, for tuning"""
    evaluate_on: Literal["test", "validation"] = "test"
    """which examples are evaluated"""
    labelled: int = 0
    """training examples whose label a taught network may use; 0 for all"""
    split_seed: int = 0
    """seed of the choice of validation and labelled examples, and of test ones where a set has none"""
    beside: str = ""
    """tokenizer of a teacher that has its own; set by the teacher's network.tokenizer"""

    metric: ClassVar = Metric("top1", "accuracy %", 100, 2, unit="points")
    columns: ClassVar = (
        Metric("f1", "F1 %", 100, 1), Metric("mcc", "MCC %", 100, 1), Metric("agreement", "agreement %", 100, 1),
        Metric("nll", "NLL", 1, 2, higher_is_better=False), Metric("ece", "ECE %", 100, 1, higher_is_better=False),
        Metric("entropy", "entropy", 1, 2),
    )  # fmt: skip
    noun: ClassVar = "texts"
    legend: ClassVar = (
        "F1 of class 1 of two, else the mean over classes; MCC: Matthews' correlation. Agreement: same prediction as the "
        "teacher. NLL and entropy in nats. ECE: calibration error over 15 bins."
    )

    def __post_init__(self):
        for field in ("name", "tokenizer", "beside"):  # a saved run is read from anywhere
            path = os.path.expanduser(getattr(self, field))
            own = field != "name" or path.endswith(FILES) or (path != PYTHON_DOCS and os.path.isdir(path))
            if own and os.path.exists(path):
                object.__setattr__(self, field, os.path.abspath(path))

    def load(self, data_dir: str | None = None) -> Dataset:
        def split(name):
            return load_texts(self.name, split=name, data_dir=data_dir, columns=self.keys, split_seed=self.split_seed)

        return self._dataset(split("train"), None if self.evaluate_on == "validation" else split("test"))

    def stand_in(self, data_dir: str | None = None) -> Dataset | None:
        if self.name not in COUNTS:
            return None
        *counts, classes, pair = COUNTS[self.name]
        names = tuple(map(str, range(classes)))
        train, test = (
            Texts(
                self.name, split, ("",) * n, ("",) * n if pair else None, np.arange(n, dtype=np.int32) % classes, names
            )
            for split, n in zip(("train", "test"), counts, strict=True)
        )
        made = self._dataset(train, test)
        return dataclasses.replace(made, description=f"{self.name}, {made.description}, is {NOT_HERE}")

    def _dataset(self, train: Texts, test: Texts | None) -> Dataset:
        splits = make_splits(
            train.labels, validation=self.validation, labelled=self.labelled, split_seed=self.split_seed
        )
        tokenizer = tokenizer_called(self.tokenizer)
        learned = encoded(train, tokenizer, self.length, self.buckets)
        held, rows = learned, splits.validation
        if test is not None:
            held, rows = encoded(test, tokenizer, self.length, self.buckets), np.arange(len(test))
        said = f"{len(train.class_names)} classes, rows of {self.length} tokens of {tokenizer.size:,} kinds"
        if self.beside:
            theirs = tokenizer_called(self.beside)
            learned, held = read_beside(theirs, self.length, learned, held)
            said += f", for the teacher of {theirs.size:,}"
        kinds = {(texts.class_names, texts.second is None) for texts in (train, held.texts)}
        if len(kinds) > 1:
            raise DataError(f"{self.name} has other classes or pairs where it is evaluated than where it is trained on; give "
                            "them alike.")  # fmt: skip
        if 0 < self.eval_examples < len(rows):
            rows = rows[np.linspace(0, len(rows) - 1, self.eval_examples).round().astype(int)]
        names = train.class_names
        info = DataInfo(len(names), len(train), labels=train.labels, class_names=names)
        return Dataset(
            learned, splits.train, splits.labelled, held, rows, self.evaluate_on, info, None if self.buckets else learned.arrays,
            said,
        )  # fmt: skip

    def problems(self) -> list[str]:
        found = []
        if self.evaluate_on == "validation" and self.validation == 0:
            found.append("data.evaluate_on is 'validation', but data.validation is 0; hold some examples out.")
        if self.length < 5:
            found.append(f"data.length={self.length}; use 5 or more.")
        if any(not 5 <= width < self.length for width in self.buckets):
            found.append(
                f"data.buckets={self.buckets}; use lengths from 5 to below data.length, which is {self.length}."
            )
        return found

    def tuned(self):
        if self.validation == 0:
            raise ValueError(
                "data.validation is 0, so that settings would be chosen on the test texts; hold some out of the training split, "
                "such as --data.validation 500."
            )
        return dataclasses.replace(self, evaluate_on="validation")

    def shrunk(self):
        """Short rows of the texts that need no download, with a tokenizer that needs no file."""
        own, length = self.tokenizer.partition(":")[0] in ("bytes", "words"), min(self.length, 32)
        return dataclasses.replace(
            super().shrunk(), name=PYTHON_DOCS, keys=Columns(), length=length, eval_examples=128,
            validation=min(self.validation, 64), labelled=min(self.labelled, 512),
            buckets=tuple(width for width in self.buckets if width < length),
            tokenizer=self.tokenizer if own else "words",
        )  # fmt: skip

    @property
    def one_shape(self):
        return not self.buckets

    # --- views ---

    def numbered_views(self) -> NumberedViews:
        same = lambda index, epoch, key: jnp.zeros(len(index), jnp.int32)
        facts = {"tokenizer": tokenizer_called(self.beside or self.tokenizer).fingerprint(), "length": self.length}
        return NumberedViews(1, same, lambda inputs, numbers: inputs, facts)

    def decoded(self, file: Any, inputs: Any) -> Any:
        """The text of a file, or a text itself; two texts in one line with a tab between them are a pair."""
        return one(text_of(file), tokenizer_called(self.tokenizer), inputs["input_ids"].shape[1])

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
        alike = (own, beside) == (self.tokenizer, self.beside)
        return self if alike else dataclasses.replace(self, tokenizer=own, beside=beside)

    def network(self, model: TextNetwork, dataset: Dataset, *, remat: bool = False) -> Network:
        beside = is_beside(model, self.tokenizer)
        name = model.tokenizer if beside else self.tokenizer
        tokenizer, inputs = tokenizer_called(name), shown(dataset.shapes(1)["inputs"], beside=beside)
        if model.trained and not problems_of(model):
            check_numbers(name, model.weights)
        network = make_text_network(
            model, vocabulary=tokenizer.size, padding=tokenizer.padding, length=inputs["input_ids"].shape[1],
            classes=dataset.info.num_classes, names=dataset.info.class_names, remat=remat,
        )  # fmt: skip
        if not self.beside:
            return network
        # What is said of single tokens is of others than the student's.
        whole = lambda output, inputs: ModelOutput(output.logits, embedding=output.embedding, losses=output.losses)
        return reading(network, beside=beside, answer=whole) if beside else reading(network, beside=False)

    def written_out(self, model):
        return written_out(model, self.tokenizer)

    def as_trained(self, model: Any, other: Any, classes: Sequence[str], dataset: Dataset) -> Any:
        return with_tokenizer(model, other.tokenizer, self.tokenizer)

    def taken(self, model: Any, folder: Path) -> TextNetwork:
        own = own_tokenizer(folder, self.tokenizer)
        return TextNetwork(weights=str(folder), trained=True, keep=getattr(model, "keep", ()), tokenizer=own)

    def write_network(self, model: TextNetwork, params: Any, classes: Sequence[str], folder: Path) -> None:
        tokenizer = tokenizer_called(self.tokenizer)
        a, head, _, _ = classifier_of(
            model, vocabulary=tokenizer.size, padding=tokenizer.padding, classes=len(classes), names=classes
        )
        write_folder(folder, a, head, params, class_names=classes, tokenizer=tokenizer_files(self.tokenizer))

    def shrunk_network(self, model: TextNetwork) -> TextNetwork:
        if problems_of(model):
            return model
        named = model.name if not model.weights else "bert_tiny"
        return dataclasses.replace(model, name=named, weights="", trained=False, layers=(), tokenizer="",
                                   width=min(model.width or 32, 32), depth=min(model.depth or 2, 2), length=0)  # fmt: skip

    # --- metrics ---

    def sums(self, student, teacher, batch):
        return text_sums(student, teacher, batch)

    def means(self, sums):
        return text_means(sums)

    # --- report ---

    def pictures(self, comparison, folder, load):
        dataset = self.load()
        held = dataset.held
        assert isinstance(held, TextExamples)
        rows = dataset.held_index[np.unique(np.linspace(0, len(dataset.held_index) - 1, SHOWN).astype(int))]
        networks = {"teacher": folder / "teacher"} if (folder / "teacher").exists() else {}
        for name, summary in comparison["methods"].items():
            networks[name] = folder / name / f"seed{summary['seeds'][0]}"
        shared = held.read(rows)["inputs"]
        answers: dict[str, Sequence] = {}
        for name, place in list(networks.items())[:MOST_SHOWN]:
            network = load(place)
            own = network.task.tokenizer == self.tokenizer
            inputs = shared if own else network.task.load().held.read(rows)["inputs"]  # in its own tokens
            answers[name] = [row[0] for row in self.answers(inputs, network(inputs), held.texts.class_names, 1)]
        draw_answers(held.texts.take(rows), answers, folder / "answers.png")
        return (
            (
                "What was said",
                "texts that are evaluated, and what the first seed of each says of them",
                folder / "answers.png",
            ),
        )

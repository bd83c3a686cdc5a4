"""Decoders of Hugging Face's folders as teachers as they are, and students as such folders."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest

from kdjax.cli import main
from kdjax.experiment import Experiment, ExperimentError, Phase
from kdjax.experiment.artifacts import evaluate_run
from kdjax.experiment.export import export_folder
from kdjax.experiment.given_teacher import taught_by
from kdjax.experiment.program import Builder
from kdjax.experiment.run import run
from kdjax.experiment.trained import load_trained
from kdjax.models.transformers import read_folder, transformer
from kdjax.models.weights.beginning import flat
from kdjax.objectives import ForwardKL
from kdjax.schedules import steps
from kdjax.tasks.language import Language, LanguageNetwork
from tests.golden_cases import FOLDER

WORDS = [chr(97 + i) + str(j) for i in range(20) for j in range(3)]


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    """A folder with a tokenizer of 64 tokens, as many as the golden decoders know."""
    tokenizers, folder = pytest.importorskip("tokenizers"), tmp_path_factory.mktemp("words")
    numbers = {word: i for i, word in enumerate(["<pad>", "<s>", "</s>", "<unk>", *WORDS])}
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel(numbers, unk_token="<unk>"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    made.save(str(folder / "tokenizer.json"))
    return folder


@pytest.fixture(scope="module")
def folder(words, tmp_path_factory):
    """A golden decoder with its tokenizer."""
    place = tmp_path_factory.mktemp("hf") / "qwen2"
    shutil.copytree(FOLDER / "hf" / "qwen2", place)
    shutil.copy(words / "tokenizer.json", place)
    return place


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    rng, path = np.random.default_rng(0), tmp_path_factory.mktemp("texts") / "words.jsonl"
    path.write_text("\n".join(json.dumps({"text": " ".join(rng.choice(WORDS, 9))}) for _ in range(40)))
    return path


def experiment(texts, tokenizer):
    small = LanguageNetwork(width=16, depth=1, heads=2)
    return Experiment(
        name="taken", data=Language(name=str(texts), tokenizer=str(tokenizer), length=8, batch_size=8, eval_batch_size=8),
        phases=(Phase(name="teacher", network=small, duration=steps(2)),
                Phase(network=small, teacher="teacher", duration=steps(2), objective=ForwardKL())),
        evaluate_every=steps(2), checkpoint_every=steps(2),
    )  # fmt: skip


@pytest.fixture(scope="module")
def distilled(texts, words, folder, tmp_path_factory):
    builder, place = Builder(devices=jax.devices()[:1]), tmp_path_factory.mktemp("taken") / "run"
    taught = taught_by(experiment(texts, words), folder, builder)
    return taught, place, builder, run(taught, place, builder=builder)


def test_a_folder_teaches_as_it_is(distilled, folder):
    taught, place, _, results = distilled
    network = taught.phase("teacher").network
    assert network.trained and network.weights == str(folder)
    assert not (place / "teacher" / "network.json").exists() and results["student"]["steps"] == 2
    teacher, read = load_trained(place, "teacher"), read_folder(folder)
    held = taught.data.load().held.read(np.arange(4))
    given = transformer(read.architecture, read.head).apply(read.params, {}, held["inputs"], train=False)[0]
    np.testing.assert_allclose(teacher(held["inputs"]).logits, given.logits, atol=1e-5)
    assert results["student"]["teacher_hash"] == results["teacher"]["hash"]


def test_it_is_gone_on_with_and_taught_by_again(distilled, folder):
    taught, place, builder, results = distilled
    assert run(taught, place, resume=True, builder=builder)["student"] == results["student"]
    for source in (place, place / "teacher"):  # a run whose teacher was of a folder
        assert taught_by(experiment(taught.data.name, folder), source, builder).phase("teacher") == taught.phase(
            "teacher"
        )


def test_a_student_goes_out_as_a_folder(distilled, words, tmp_path, capsys):
    _, place, _, _ = distilled
    assert main(["export", str(place), "--format", "huggingface", "--to", str(tmp_path / "out")]) == 0
    assert "is in" in capsys.readouterr().out
    found, trained = read_folder(tmp_path / "out"), load_trained(place)
    assert not found.fresh and not found.unused
    assert (tmp_path / "out" / "tokenizer.json").read_bytes() == (words / "tokenizer.json").read_bytes()
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert (config["bos_token_id"], config["eos_token_id"]) == (1, 2)
    ours, theirs = flat(trained.variables.params), flat(found.params)
    assert ours.keys() == theirs.keys()
    for path, array in ours.items():
        np.testing.assert_array_equal(array, theirs[path])
    with pytest.raises(ExperimentError, match="exists; name another"):
        export_folder(place, None, tmp_path / "out")


def test_what_cannot_be_taken_is_said(texts, words, folder, tmp_path):
    builder = Builder(devices=jax.devices()[:1])

    def refused(experiment, source=folder):
        taught = taught_by(experiment, source, builder)
        with pytest.raises(ExperimentError) as caught:
            builder.program(taught, taught.phase("teacher"))
        return str(caught.value)

    base = experiment(texts, words)
    data = base.data
    # Given as `--teacher` it reads its own tokens (test_other_tokenizers.py); named in a config it must be said.
    named = base.replace_phase("teacher", network=LanguageNetwork(weights=str(folder), trained=True))
    of_bytes = dataclasses.replace(named, data=dataclasses.replace(data, tokenizer="bytes"))
    with pytest.raises(ExperimentError, match=r"is to read those of bytes; make data\.tokenizer that folder"):
        builder.program(of_bytes, of_bytes.phase("teacher"))
    other = tmp_path / "other"
    other.mkdir()
    (other / "tokenizer.json").write_text((words / "tokenizer.json").read_text().replace('"a0"', '"A0"'))
    changed = dataclasses.replace(named, data=dataclasses.replace(data, tokenizer=str(other)))
    with pytest.raises(ExperimentError, match="'A0', which the tokenizer beside the network"):
        builder.program(changed, changed.phase("teacher"))
    without = dataclasses.replace(base, data=dataclasses.replace(data, tokenizer="bytes"))
    assert "260 kinds of tokens" in refused(without, FOLDER / "hf" / "gpt2")
    assert "holds an encoder" in refused(base, FOLDER / "hf" / "bert_mlm")
    alone = base.replace_phase("teacher", network=LanguageNetwork(trained=True))
    with pytest.raises(ExperimentError, match="there is no folder"):
        builder.program(alone, alone.phase("teacher"))


@pytest.mark.slow
def test_compared_by_seeds_apart_and_together(distilled, folder, tmp_path):
    _, place, _, results = distilled
    again = evaluate_run(place)
    for phase, means in results.items():
        assert again[phase]["nll"] == pytest.approx(means["last"]["student"]["nll"], rel=1e-5)
    config = str(place / "experiment.json")
    for together in ([], ["--together"]):
        arguments = ["compare", config, "--methods", "forward_kl", "reverse_kl", "--seeds", "0", "1", *together]
        assert main([*arguments, "--teacher", str(folder), "--run", str(tmp_path / f"c{len(together)}")]) == 0
        kept = json.loads((tmp_path / f"c{len(together)}" / "comparison.json").read_text())
        assert kept["teacher"]["hash"] == results["teacher"]["hash"] and set(kept["methods"]) == {
            "forward_kl",
            "reverse_kl",
        }

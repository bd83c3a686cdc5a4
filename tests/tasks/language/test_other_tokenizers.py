"""Teachers that read the texts in tokens of their own."""

import dataclasses
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from kdjax import losses
from kdjax.cli import main
from kdjax.experiment import Experiment, ExperimentError, Phase
from kdjax.experiment.artifacts import evaluate_run
from kdjax.experiment.given_teacher import taught_by
from kdjax.experiment.program import Builder
from kdjax.experiment.run import run
from kdjax.experiment.trained import load_trained
from kdjax.objectives import KD, ULD, CrossEntropy, ForwardKL, bind
from kdjax.schedules import steps
from kdjax.tasks.given import GivenNetwork
from kdjax.tasks.language import Language, LanguageNetwork, write_responses
from kdjax.tasks.text import Text, TextNetwork
from kdjax.types import Batch, Clock, Context, ModelOutput
from tests.golden_cases import FOLDER

WORDS = [chr(97 + i) + str(j) for i in range(20) for j in range(3)]
SMALL = LanguageNetwork(width=16, depth=1, heads=2)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A golden decoder of 64 tokens with its tokenizer, of words."""
    tokenizers, place = pytest.importorskip("tokenizers"), tmp_path_factory.mktemp("hf") / "qwen2"
    numbers = {word: i for i, word in enumerate(["<pad>", "<s>", "</s>", "<unk>", *WORDS])}
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel(numbers, unk_token="<unk>"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    shutil.copytree(FOLDER / "hf" / "qwen2", place)
    made.save(str(place / "tokenizer.json"))
    return place


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    rng, path = np.random.default_rng(0), tmp_path_factory.mktemp("texts") / "words.jsonl"
    path.write_text("\n".join(json.dumps({"text": " ".join(rng.choice(WORDS, 9))}) for _ in range(40)))
    return path


def experiment(texts, objective=CrossEntropy() + ULD(), **options):
    return Experiment(
        name="tokens", data=Language(name=str(texts), length=12, batch_size=8, eval_batch_size=8),
        phases=(Phase(name="teacher", network=SMALL, duration=steps(2)),
                Phase(network=SMALL, teacher="teacher", duration=steps(2), objective=objective, **options)),
        evaluate_every=steps(2), checkpoint_every=steps(2),
    )  # fmt: skip


@pytest.fixture(scope="module")
def distilled(texts, folder, tmp_path_factory):
    """A student of bytes that a decoder of words taught, with its folder."""
    builder, place = Builder(devices=jax.devices()[:1]), tmp_path_factory.mktemp("tokens") / "run"
    taught = taught_by(experiment(texts), folder, builder)
    return taught, place, builder, run(taught, place, builder=builder)


def test_a_folder_with_its_own_tokenizer_teaches(distilled, folder, capsys):
    taught, place, builder, results = distilled
    assert taught.phase("teacher").network.tokenizer == str(folder)
    teacher, student = (builder.program(taught, phase) for phase in taught.phases)
    assert teacher.dataset.info.num_classes == 64 and student.dataset.info.num_classes == 260
    assert "for the teacher of 64, in step with it at" in student.dataset.description
    # The first is evaluated in its own tokens, and the second says nothing of the teacher in the student's.
    assert results["teacher"]["last"]["student"]["bits_per_byte"] > 0
    assert "teacher" not in results["student"]["last"] and "agreement" not in results["student"]["last"]["student"]
    assert evaluate_run(place)["teacher"]["nll"] == pytest.approx(
        results["teacher"]["last"]["student"]["nll"], rel=1e-5
    )
    assert load_trained(place, "teacher").inputs.keys() == load_trained(place).inputs.keys()
    assert main(["predict", str(place), "--text", "a0 b1", "--phase", "teacher"]) == 0  # of its own tokens
    assert any(word in capsys.readouterr().out for word in WORDS)
    assert run(taught, place, resume=True, builder=builder)["student"] == results["student"]


def test_to_be_used_it_needs_no_data(distilled, monkeypatch):
    _, place, _, _ = distilled
    monkeypatch.setattr(Language, "load", None)
    assert load_trained(place, "teacher").inputs["input_ids"].shape[0] == 1


def test_probabilities_are_compared_where_both_have_read_as_much(distilled):
    taught, place, builder, _ = distilled
    program = builder.program(taught, taught.student)
    rows = program.dataset.train.read(np.arange(8))
    teacher = program.networks.teacher
    said = teacher.apply(*teacher.init(jax.random.key(0)), rows["inputs"], train=False)[0]
    alone = load_trained(place, "teacher")
    theirs = alone({name: x for name, x in rows["inputs"]["teacher"].items() if name != "columns"}).logits
    columns = rows["inputs"]["teacher"]["columns"]
    assert (columns >= 0).any() and said.logits.shape == (8, 12, 64) and not said.features
    for row, column in np.argwhere(columns >= 0):
        np.testing.assert_allclose(said.logits[row, column], theirs[row, columns[row, column]], atol=1e-5)
    # The objective counts these tokens alone.
    student = jnp.asarray(np.random.default_rng(0).normal(size=(8, 12, 260)), jnp.float32)
    batch = Batch.of(rows["inputs"], rows["targets"], elements=rows["elements"])
    bound = bind(ULD(), ModelOutput(logits=student), said, program.dataset.info)
    context = Context(student=ModelOutput(logits=student), teacher=said, batch=batch, progress=Clock(1).at(0))
    (term,) = bound.apply(*bound.init(jax.random.key(0)), context, train=True)[0].values()
    counted = rows["elements"] & (columns >= 0)
    values = losses.uld(student, said.logits)
    assert 0 < counted.sum() < rows["elements"].sum() and term.count == counted.sum()
    np.testing.assert_allclose(term.sum, jnp.sum(values, where=counted), rtol=1e-5)


def test_what_cannot_be_taught_across_tokenizers_is_said(texts, folder, tmp_path):
    builder = Builder(devices=jax.devices()[:1])

    def refused(base):
        taught = taught_by(base, folder, builder)
        with pytest.raises(ExperimentError) as caught:
            builder.program(taught, taught.student)
        return str(caught.value)

    assert "reads other tokens than the student" in refused(experiment(texts, ForwardKL()))
    assert "keeps classes of the teacher" in refused(experiment(texts, teacher_cache="top8"))
    assert "set on_policy to 0" in refused(experiment(texts, on_policy=0.5))
    # As many kinds of tokens are not taken for the same.
    other = tmp_path / "other"
    other.mkdir()
    (other / "tokenizer.json").write_text((folder / "tokenizer.json").read_text().replace('"a0"', '"A0"'))
    base = experiment(texts, ForwardKL())
    same = dataclasses.replace(base, data=dataclasses.replace(base.data, tokenizer=str(other)))
    assert "reads other tokens than the student" in refused(same)
    # Nor is a chain whose middle names its own, nor weights to begin with.
    middle = dataclasses.replace(base.phases[0], network=dataclasses.replace(SMALL, tokenizer=str(other)), teacher="")
    chain = dataclasses.replace(same, phases=(dataclasses.replace(same.phases[0], name="first"), middle))
    taught = dataclasses.replace(middle, teacher="first", objective=ForwardKL())
    chain = dataclasses.replace(
        chain, data=dataclasses.replace(same.data, tokenizer=str(folder)), phases=(chain.phases[0], taught)
    )
    with pytest.raises(ExperimentError, match="reads other tokens than the student"):
        builder.program(chain, taught)
    begun = dataclasses.replace(same.student, teacher="", objective=CrossEntropy(), start="teacher")
    begun = dataclasses.replace(chain, phases=(middle, begun))
    with pytest.raises(ExperimentError, match="starts from the weights of 'teacher', which reads other tokens"):
        builder.program(begun, begun.student)
    both = taught_by(experiment(texts), folder, builder)
    peer = dataclasses.replace(both.phases[0], name="peer", network=SMALL)
    student = dataclasses.replace(both.student, teacher="teacher+peer")
    both = dataclasses.replace(both, phases=(both.phases[0], peer, student))
    with pytest.raises(ExperimentError, match="are to teach together"):
        builder.program(both, both.student)


def test_one_tokenizer_by_two_paths_is_one(texts, folder, tmp_path):
    """A run's teacher was trained by the folder, the data name the file, or a copy; or what it was trained by is gone."""
    builder = Builder(devices=jax.devices()[:1])
    copy = tmp_path / "copy"
    copy.mkdir()
    shutil.copy(folder / "tokenizer.json", copy)
    task = Language(
        name=str(texts), tokenizer=str(folder / "tokenizer.json"), length=12, batch_size=8, eval_batch_size=8
    )
    before = dataclasses.replace(experiment(texts, ForwardKL()), data=dataclasses.replace(task, tokenizer=str(copy)))
    run(dataclasses.replace(before, phases=before.phases[:1]), tmp_path / "run", builder=builder)
    now = dataclasses.replace(before, data=task)
    for _ in range(2):
        taught = taught_by(now, tmp_path / "run", builder)
        assert taught.phase("teacher").network.tokenizer == ""
        assert builder.program(taught, taught.student).networks.teacher is not None
        shutil.rmtree(copy, ignore_errors=True)


def test_a_teacher_writes_by_its_own_tokens(distilled, tmp_path):
    _, place, _, _ = distilled
    task = load_trained(place).task
    path = tmp_path / "said.jsonl"
    assert write_responses(load_trained(place, "teacher"), task, path) > 0
    said = " ".join(json.loads(line)["response"] for line in path.read_text().splitlines())
    assert set(said.split()) & set(WORDS)


def test_a_network_of_ones_own_is_not_shown_the_teachers_tokens(texts, folder, tmp_path):
    seen = []

    class Own(nnx.Module):
        def __init__(self, rngs):
            self.embedding, self.head = nnx.Embed(260, 8, rngs=rngs), nnx.Linear(8, 260, rngs=rngs)

        def __call__(self, inputs):
            seen.append(set(inputs))
            return self.head(self.embedding(inputs["input_ids"].astype(jnp.int32)))

    student = GivenNetwork(name="own", network=lambda rngs: Own(rngs))
    base = experiment(texts).replace_phase("student", network=student)
    builder = Builder(devices=jax.devices()[:1])
    taught = taught_by(base, folder, builder)
    assert builder.program(taught, taught.student).networks.teacher is not None
    assert seen and set.union(*seen) == {"input_ids", "segment_ids", "position_ids"}


def test_a_classifier_of_other_tokens_teaches_everything_of_whole_texts(tmp_path):
    """Words beside bytes: the teacher is trained and evaluated in its own, and its outputs can be kept."""
    builder = Builder(devices=jax.devices()[:1])
    network = TextNetwork(name="bert_tiny", width=32, depth=1)
    base = Experiment(
        name="texts", data=Text(length=48, eval_examples=64, batch_size=8, eval_batch_size=32, tokenizer="bytes", buckets=(24,)),
        phases=(Phase(name="teacher", network=dataclasses.replace(network, tokenizer="words:128"), duration=steps(2)),
                Phase(network=network, teacher="teacher", duration=steps(2), objective=KD(), teacher_cache="float16")),
        evaluate_every=steps(2), checkpoint_every=steps(2),
    )  # fmt: skip
    results = run(base, tmp_path / "run", builder=builder)
    assert results["student"]["last"]["teacher"]["nll"] == pytest.approx(
        results["teacher"]["last"]["student"]["nll"], rel=1e-5
    )
    assert set(load_trained(tmp_path / "run").inputs) == {"input_ids", "attention_mask", "token_type_ids"}
    assert load_trained(tmp_path / "run", "teacher").task.tokenizer == "words:128"
    again = taught_by(base.replace_phase("teacher", network=network), tmp_path / "run" / "teacher", builder)
    assert again.phase("teacher").network.tokenizer == "words:128"

"""The task "text": from a file to a trained student, its predictions and its report."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from kdjax.cli import main
from kdjax.data import DataError
from kdjax.experiment import Experiment, Phase
from kdjax.experiment.program import Builder
from kdjax.experiment.run import run
from kdjax.experiment.trained import load_trained
from kdjax.models.transformers import Head, read_folder
from kdjax.models.weights.beginning import flat
from kdjax.objectives import KD, CrossEntropy
from kdjax.objectives.features.stages import AT
from kdjax.schedules import steps
from kdjax.tasks import kinds
from kdjax.tasks.task import Task
from kdjax.tasks.text import Text, TextNetwork
from kdjax.tasks.text.networks import make_text_network
from kdjax.training.optimizers import AdamW
from tests.golden_cases import FOLDER

WORDS = {"animal": ["cat", "dog", "bird", "cow"], "plant": ["rose", "oak", "fern", "moss"]}


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    rng, path = np.random.default_rng(0), tmp_path_factory.mktemp("texts") / "living.jsonl"
    lines = []
    for i in range(120):
        label = sorted(WORDS)[i % 2]
        words = [
            *rng.choice(WORDS[label], 2),
            *rng.choice(["the", "a", "very", "old", "is", "here"], rng.integers(2, 7)),
        ]
        lines.append(json.dumps({"text": " ".join(rng.permutation(words)), "label": label}))
    path.write_text("\n".join(lines))
    return path


def experiment(table):
    adamw = AdamW(learning_rate=3e-3, decay_vectors=False, weight_decay=0.01)
    net = TextNetwork(width=32, depth=2, length=16)
    return Experiment(
        name="living", data=Text(name=str(table), tokenizer="words:256", length=10, batch_size=24, eval_batch_size=24),
        phases=(
            Phase(name="teacher", network=net, duration=steps(30), optimizer=adamw),
            Phase(network=dataclasses.replace(net, depth=1, dropout=0.0), teacher="teacher", duration=steps(20),
                  objective=CrossEntropy() + KD(temperature=2.0) + 10.0 * AT(stages=(-1,)), optimizer=adamw),
        ),
        evaluate_every=steps(20), checkpoint_every=steps(20), log_every=10,
    )  # fmt: skip


@pytest.fixture(scope="module")
def distilled(table, tmp_path_factory):
    folder = tmp_path_factory.mktemp("living") / "run"
    return folder, run(experiment(table), folder, builder=Builder(devices=jax.devices()[:1]))


def test_a_teacher_and_its_student_learn(distilled):
    _, results = distilled
    for phase in ("teacher", "student"):
        last = results[phase]["last"]["student"]
        assert last["top1"] > 0.9 and last["f1"] > 0.9 and last["mcc"] > 0.8 and 0 <= last["entropy"] < 0.7
    assert {"nll", "ece", "agreement"} <= set(results["student"]["last"]["student"])


def test_rows_may_be_as_long_as_their_texts_need(table, tmp_path):
    """The step is compiled once for each length, and what is learned is no worse."""
    cut = experiment(table)
    cut = dataclasses.replace(cut, data=dataclasses.replace(cut.data, buckets=(8,)))
    builder = Builder(devices=jax.devices()[:1])
    results = run(cut, tmp_path / "run", builder=builder)
    assert results["student"]["last"]["student"]["top1"] > 0.9 and results["student"]["flops_per_step"] is None
    student = builder.program(cut, cut.phases[1])
    lengths = {student.feeding.pipeline(0)[k].inputs["input_ids"].shape[1] for k in range(20)}
    assert lengths == {8, 10} and student.compiled.step._cache_size() == 2
    assert {batch.inputs["input_ids"].shape[1] for batch in student.feeding.evaluated()} == {8, 10}

    train, network = student.dataset.train, student.networks.student
    rows = np.flatnonzero(train.groups == 0)[:8]
    short, whole = (train.read(rows, together=together)["inputs"] for together in (rows, None))
    assert short["input_ids"].shape[1] == 8 and not whole["attention_mask"][:, 8:].any()
    said = [network.apply(*network.init(jax.random.key(0)), x, train=False)[0].logits for x in (short, whole)]
    np.testing.assert_allclose(*said, rtol=1e-5, atol=1e-6)


def test_buckets_that_do_not_fit_are_refused(table):
    for buckets, count, said in (
        ((7, 10), 1, "use lengths from 5 to below data.length"),
        ((7,), 4, "batches of one shape"),
    ):
        wrong = dataclasses.replace(experiment(table), steps_per_dispatch=count)
        problems = dataclasses.replace(wrong, data=dataclasses.replace(wrong.data, buckets=buckets)).problems()
        assert len(problems) == 1 and said in problems[0]


def test_evaluated_by_hand_it_is_the_same(distilled, table):
    folder, results = distilled
    held = experiment(table).data.load().held
    predict = jax.jit(load_trained(folder))
    said = np.argmax(predict(held.read(np.arange(len(held)))["inputs"]).logits, axis=-1)
    assert np.mean(said == held.texts.labels) == pytest.approx(results["student"]["last"]["student"]["top1"])


def test_it_predicts_texts_and_files(distilled, tmp_path, capsys):
    folder, _ = distilled
    file = tmp_path / "letter.txt"
    file.write_text("the old dog\nis here with a cat and a cow\n")
    assert main(["predict", str(folder), str(file), "--text", "a rose is a rose", "fern, moss", "--top", "1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.rpartition(": ")[2].split()[0] for line in lines] == ["animal", "plant", "plant"]
    assert lines[1].startswith("a rose is a rose: ")
    assert main(["predict", str(folder), str(tmp_path / "none.txt")]) == 1
    assert "none.txt cannot be read" in capsys.readouterr().err


@pytest.mark.slow
def test_compared_and_reported_from_the_command_line(tmp_path, capsys):
    arguments = [
        "compare",
        "configs/text/docstrings.py",
        "--methods",
        "labels",
        "kd",
        "--tiny",
        "--run",
        str(tmp_path / "c"),
    ]
    assert main(arguments) == 0
    shown = capsys.readouterr().out
    for word in ("accuracy %", "F1 %", "MCC %", "entropy", "texts/s"):
        assert word in shown
    page = (tmp_path / "c" / "report.html").read_text(encoding="utf-8")
    assert "What was said" in page and "128 test texts" in page
    assert (tmp_path / "c" / "answers.png").read_bytes().startswith(b"\x89PNG")


def test_a_network_from_a_folder_takes_its_blocks_and_says_what_is_fresh(capsys):
    make = lambda length=9, vocabulary=60, **fields: make_text_network(
        TextNetwork(weights=str(FOLDER / "hf" / "bert"), **fields), vocabulary=vocabulary, padding=0, length=length, classes=2,
        remat=False,
    )  # fmt: skip
    params, _ = jax.eval_shape(make(layers=(0, 2)).init, jax.random.key(0))
    assert params["blocks"]["mlp"]["up"]["kernel"].shape[0] == 2 and params["classifier"]["kernel"].shape == (24, 2)
    assert "bert has no classifier, which begins fresh" in capsys.readouterr().err
    for fields, said in (
        ({"vocabulary": 100}, "knows 70; name its own tokenizer"), ({"length": 20}, "has positions for 16"),
        ({"name": "bert_base"}, "bert_base is bert of 12 blocks.*holds bert of 3 blocks"), ({"depth": 3}, "leave one out"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=said):
            make(**fields)
    with pytest.raises(ValueError, match="no text network 'bart'; there are bert_base"):
        make_text_network(TextNetwork(name="bart"), vocabulary=9, padding=0, length=9, classes=2, remat=False)


def test_its_fields_are_said_to_be_wrong(table):
    assert "hold some examples out" in Text(evaluate_on="validation").problems()[0]
    assert "use 5 or more" in Text(length=3).problems()[0]
    with pytest.raises(ValueError, match="chosen on the test texts"):
        Text().tuned()
    tuned = Text(name=str(table), validation=20, length=10).tuned().load()
    assert tuned.evaluated_on == "validation" and len(tuned.held_index) == 20 and len(tuned.train_index) == 76
    with pytest.raises(DataError, match="There is no tokenizer"):
        Text(name=str(table), tokenizer="other").load()
    assert {"Text", "TextNetwork", "Columns"} <= set(kinds())


@pytest.mark.slow
def test_an_unprepared_set_is_known_to_a_dry_run(tmp_path, capsys):
    assert main(["distill", "configs/text/glue.py", "--dry-run", "--data-dir", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert "glue/sst2" in shown and "67,349" in shown and "109,483,778" in shown


def test_a_fine_tuned_folder_is_taken_as_it_is(table, tmp_path):
    """With the classes of the data in their order, or it is refused."""
    base, folder = experiment(table), FOLDER / "hf" / "distilbert_cls"
    data = dataclasses.replace(base.data, tokenizer="words:64")
    dataset = data.load()
    model = data.taken(base.phase("teacher").network, folder)
    assert model.trained and model.weights == str(folder)
    found = read_folder(folder)
    assert found.head == Head(kind="classes", classes=2)
    params, _ = data.network(model, dataset).init(jax.random.key(0))
    for path, array in flat(found.params).items():
        np.testing.assert_array_equal(flat(params)[path], array)
    data.write_network(model, params, ("animal", "plant"), tmp_path / "out")
    assert read_folder(tmp_path / "out").class_names == ("animal", "plant")
    data.network(dataclasses.replace(model, weights=str(tmp_path / "out")), dataset)
    data.write_network(model, params, ("Plant", "Animal"), tmp_path / "turned")
    refused = {
        "knows the classes in another order: number 0 is 'Plant'": tmp_path / "turned",
        "knows 3 classes, and the data have 2": FOLDER / "hf" / "bert_cls",
        "has no classifier, so it cannot be taken": FOLDER / "hf" / "distilbert_mlm",
    }
    for said, place in refused.items():
        with pytest.raises(ValueError, match=said):
            data.network(dataclasses.replace(model, weights=str(place)), dataset)
    with pytest.raises(ValueError, match="some of its blocks alone"):
        data.network(dataclasses.replace(model, layers=(0,)), dataset)
    assert not data.shrunk_network(model).trained
    with pytest.raises(ValueError, match="from which networks for examples are not taken"):
        Task().taken(model, folder)

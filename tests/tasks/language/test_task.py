"""The task "language": from documents to a trained student, what it writes, and its report."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdjax.cli import main
from kdjax.data import DataError
from kdjax.experiment import Experiment, Phase
from kdjax.experiment.compare import check_alike
from kdjax.experiment.config import by_method, load_config
from kdjax.experiment.program import Builder
from kdjax.experiment.run import run
from kdjax.experiment.serialization import from_data, to_data
from kdjax.experiment.trained import load_trained
from kdjax.objectives import CrossEntropy, ForwardKL
from kdjax.schedules import Adaptive, steps
from kdjax.tasks import kinds
from kdjax.tasks.language import Language, LanguageNetwork, Sampling, write_responses
from kdjax.tasks.language.writing import prompts_of
from kdjax.training.optimizers import AdamW

LETTERS = "abcdefgh"


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    """Copying: the response is the prompt's last letter, several times."""
    rng, path = np.random.default_rng(0), tmp_path_factory.mktemp("pairs") / "copies.jsonl"
    lines = []
    for _ in range(150):
        prompt = "".join(rng.choice(list(LETTERS), rng.integers(1, 5)))
        lines.append(json.dumps({"prompt": prompt + ":", "response": prompt[-1] * int(rng.integers(2, 5))}))
    path.write_text("\n".join(lines))
    return path


def experiment(path):
    adamw = AdamW(learning_rate=5e-3, decay_vectors=False, weight_decay=0.01)
    student = Phase(
        network=LanguageNetwork(width=24, depth=1, heads=2, hidden=32), teacher="teacher", duration=steps(60), optimizer=adamw,
        objective=CrossEntropy() + ForwardKL(), on_policy=0.5,
    )  # fmt: skip
    return Experiment(
        name="copies", data=Language(name=str(path), length=12, prompt=6, batch_size=24, eval_batch_size=24),
        phases=(
            Phase(name="teacher", network=LanguageNetwork(width=32, depth=2, heads=2), duration=steps(80), optimizer=adamw),
            student,
        ),
        evaluate_every=steps(80), checkpoint_every=steps(80), log_every=10,
    )  # fmt: skip


@pytest.fixture(scope="module")
def distilled(pairs, tmp_path_factory):
    folder = tmp_path_factory.mktemp("copies") / "run"
    return folder, run(experiment(pairs), folder, builder=Builder(devices=jax.devices()[:1]))


def test_a_teacher_and_its_student_learn(distilled):
    folder, results = distilled
    teacher, student = (results[name]["last"]["student"] for name in ("teacher", "student"))
    assert teacher["nll"] < 0.8 and student["nll"] < 1.5  # at first 5.56, of 260 tokens
    for means in (teacher, student):
        assert means["perplexity"] == pytest.approx(np.exp(means["nll"]))
        assert means["bits_per_byte"] > means["nll"] / np.log(2)  # the end is no byte of the text
        assert 0 < means["entropy"] < np.log(260)
    assert {"agreement", "teacher_kl", "reverse_kl", "top1"} <= set(student)
    rows = [json.loads(line) for line in (folder / "student" / "metrics.jsonl").read_text().splitlines()]
    shares = [row["on_policy"] for row in rows if "on_policy" in row]
    assert 0 < np.mean(shares) < 1
    assert student["reverse_kl"] > 0 and student["teacher_kl"] > 0


def test_evaluated_by_hand_it_is_the_same(distilled, pairs):
    """Over the responses and their ends, and not over prompts or padding."""
    folder, results = distilled
    data = experiment(pairs).data
    held = data.load().held
    logits = np.asarray(jax.jit(load_trained(folder))(held.read(np.arange(len(held)))["inputs"]).logits, np.float64)
    log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    total, count, written = 0.0, 0, 0
    for row, (prompt, response) in enumerate(zip(held.documents.first, held.documents.responses, strict=True)):
        tokens = [1, *(byte + 4 for byte in (prompt + response).encode()), 2]
        for place in range(len(prompt) + 1, len(tokens)):
            total -= log_p[row, place - 1, tokens[place]]
            count, written = count + 1, written + (tokens[place] != 2)
    last = results["student"]["last"]["student"]
    assert last["nll"] == pytest.approx(total / count, rel=1e-4)
    assert last["bits_per_byte"] == pytest.approx(total / written / np.log(2), rel=1e-4)


def test_the_teacher_writes_once_what_a_student_learns_from(distilled, pairs, tmp_path):
    folder, _ = distilled
    data = dataclasses.replace(experiment(pairs).data, sampling=Sampling(temperature=0.0))
    count = write_responses(load_trained(folder, "teacher"), data, tmp_path / "said.jsonl", split="held")
    rows = [json.loads(line) for line in (tmp_path / "said.jsonl").read_text().splitlines()]
    held = data.load().held.documents
    assert len(rows) == count > 10
    right = [row["response"][0] == row["prompt"][-2] for row in rows]
    assert np.mean(right) > 0.7 and {row["prompt"] for row in rows} <= set(held.first)
    again = dataclasses.replace(data, name=str(tmp_path / "said.jsonl")).load()
    assert len(again.train) + len(again.held) == count


def test_it_predicts_what_follows(distilled, capsys):
    folder, _ = distilled
    assert main(["predict", str(folder), "--text", "abc:", "--top", "3"]) == 0
    assert "'c'" in capsys.readouterr().out


def test_prompts_are_the_texts_before_what_is_written():
    inputs = {
        "input_ids": jnp.array([[5, 6, 7, 8, 9, 0], [5, 6, 7, 8, 9, 4]]),
        "segment_ids": jnp.array([[1, 1, 1, 1, 1, 0], [1, 1, 2, 2, 2, 2]]),
    }
    ids, mask = prompts_of(inputs, jnp.array([2, 4]), 3)
    assert np.where(mask, ids, -1).tolist() == [[-1, 5, 6], [-1, 7, 8]]


def test_what_is_written_is_a_batch_like_the_others(pairs):
    data = experiment(pairs).data
    dataset = data.load()
    network = data.network(LanguageNetwork(width=16, depth=1), dataset)
    params, state = network.init(jax.random.key(0))
    from kdjax.types import Batch

    rows = np.arange(4, dtype=np.int32)
    everything = np.ones(4, bool)
    batch = Batch(**dataset.train.read(rows), index=rows, where=everything, labelled=everything)
    batch = jax.tree.map(jnp.asarray, batch)
    made = jax.jit(lambda b: data.written(network, params, state, b, jax.random.key(1)))(batch)
    same = jax.tree.map(lambda a, b: (a.shape, a.dtype) == (b.shape, b.dtype), made, batch)
    assert all(jax.tree.leaves(same)) and not made.labelled.any()
    assert made.target("written").all() and not batch.target("written").any()
    chances = np.where(made.elements, made.target("drawn"), -1)
    assert np.all(chances < 0) and not np.any(np.where(made.elements, 0, made.target("drawn")))
    ids, labels, learned = (np.asarray(x) for x in (made.inputs["input_ids"], made.target("labels"), made.elements))
    assert np.array_equal(ids[:, 1:], labels[:, :-1])
    assert not learned[:, :5].any() and learned[:, 5].all()
    begins = dataset.train.begins[:4]
    for row in range(4):
        prompt = dataset.train.inputs["input_ids"][row, : begins[row]]
        there = np.asarray(made.inputs["segment_ids"])[row] > 0
        assert np.array_equal(ids[row][there][: len(prompt)], prompt)
        ends = np.flatnonzero(labels[row] == 2)
        if len(ends):  # what is behind the end is not learned
            assert learned[row, ends[0]] and not learned[row, ends[0] + 1 :].any()


def test_its_fields_are_said_to_be_wrong(pairs):
    assert "hold some documents out" in Language(evaluate_on="validation").problems()[0]
    assert "leaves no room" in Language(length=8, prompt=8).problems()[0]
    with pytest.raises(ValueError, match="chosen on the test documents"):
        Language().tuned()
    tuned = Language(name=str(pairs), validation=20, length=10).tuned().load()
    assert tuned.evaluated_on == "validation" and len(tuned.held_index) == 20 and len(tuned.train_index) == 115
    with pytest.raises(DataError, match="cannot be had back"):
        Language(name=str(pairs), tokenizer="words").load()
    assert {"Language", "LanguageNetwork", "Sampling"} <= set(kinds())
    wrong = experiment(pairs).replace_phase("student", teacher_cache="top8")
    assert "no teacher was asked before" in wrong.problems()[0]
    wrong = experiment(pairs).replace_phase("student", on_policy=1.5)
    assert "it is a share, 0 to 1" in wrong.problems()[0]
    wrong = experiment(pairs).replace_phase("student", teacher_writes=2.0)
    assert "teacher_writes=2.0; it is a share" in wrong.problems()[0]
    wrong = experiment(pairs).replace_phase("student", on_policy=0.0, teacher_writes=0.2)
    assert "no teacher is asked while it writes" in wrong.problems()[0]


def test_a_method_has_the_student_write_and_may_be_compared():
    topics = load_config("configs/language/python_topics.py")
    minillm, labels = topics("minillm"), topics("labels")
    assert (minillm.student.on_policy, minillm.student.teacher_writes) == (0.5, 0.2) and not minillm.problems()
    assert not labels.student.on_policy
    check_alike({"labels": labels, "minillm": minillm})
    for path, start in (("configs/language/on_policy.py", 300), ("configs/language/dolly.py", 3)):
        further = load_config(path)
        ways = {name: further(name) for name in ("labels", "forward_kl", "gkd", "distillm")}
        check_alike(ways)
        assert all(not way.problems() and way.lineage[0].duration.amount == start for way in ways.values())
        assert len(
            ways["labels"].tiny().data.load().train
        )  # of data that are smaller than what is held out of the real ones
    assert further("minillm").student.duration == steps(5000)
    few = dataclasses.replace(
        distillm := by_method(labels, "distillm"), data=dataclasses.replace(labels.data, validation=8)
    )
    assert not few.problems()
    small = few.replace_phase("student", on_policy=Adaptive(replay=10))
    assert "replay=10, less than a batch of 16" in small.problems()[0]
    assert distillm.student.on_policy == Adaptive() and from_data(to_data(distillm)) == distillm


@pytest.mark.slow
def test_compared_and_reported_from_the_command_line(tmp_path, capsys):
    arguments = [
        "compare",
        "configs/language/python_topics.py",
        "--methods",
        "labels",
        "jsd",
        "minillm",
        "distillm2",
        "--tiny",
    ]
    assert main([*arguments, "--run", str(tmp_path / "c")]) == 0
    assert "rows/s" in capsys.readouterr().out
    table = (tmp_path / "c" / "table.md").read_text(encoding="utf-8")
    assert all(word in table for word in ("NLL", "perplexity", "bits/byte", "top-1 %", "KL(t‖s)", "KL(s‖t)", "entropy"))
    page = (tmp_path / "c" / "report.html").read_text(encoding="utf-8")
    assert "What was written" in page and "distinct pairs" in page and "64 test rows" in page
    kept = json.loads((tmp_path / "c" / "written.json").read_text())
    assert set(kept["written"]) == {"teacher", "labels", "jsd", "minillm", "distillm2"}
    assert len(kept["written"]["jsd"]) == len(kept["prompts"]) == 32
    assert (tmp_path / "c" / "written.png").read_bytes().startswith(b"\x89PNG")

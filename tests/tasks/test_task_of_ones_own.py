"""A task that kdjax does not know, `tests/tasks/tagging.py`, goes through everything that its own tasks go through."""

import dataclasses
import json
import subprocess
import sys

import jax
import numpy as np
import pytest

from kdjax.cli import main
from kdjax.experiment import ExperimentError
from kdjax.experiment.artifacts import evaluate_run
from kdjax.experiment.config import load_config
from kdjax.experiment.program import Builder
from kdjax.experiment.run import run
from kdjax.experiment.trained import load_trained
from kdjax.training.writers import read_metrics
from tests.experiment.test_processes import finish, start
from tests.experiment.test_resume import StopAt, outcome, rows

CONFIG = "tests/tasks/tagging.py"


@pytest.fixture(scope="module")
def config():
    return load_config(CONFIG)


@pytest.fixture(scope="module")
def builder():
    return Builder(devices=jax.devices()[:1])


@pytest.fixture(scope="module")
def distilled(config, builder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tags") / "run"
    return folder, run(config("bernoulli_kd"), folder, builder=builder)


def test_distil(distilled):
    folder, results = distilled
    last = results["student"]["last"]["student"]
    assert set(last) == {"f1", "bce", "agreement"} and 0 < last["f1"] < 1
    assert results["teacher"]["last"]["student"]["f1"] > last["f1"], "longer and wider"
    logged = read_metrics(folder / "student" / "metrics.jsonl")
    assert {"loss", "binary_cross_entropy", "bernoulli_kd", "right"} <= set(logged[0])
    evaluated = evaluate_run(folder)
    assert evaluated["student"]["f1"] == last["f1"] and evaluated["student"]["examples"] == "100 test"


def test_a_trained_network_is_used_as_a_function(distilled):
    folder, results = distilled
    predict = jax.jit(load_trained(folder))
    held = load_config(CONFIG)("bernoulli_kd").data.load().held
    said = np.asarray(predict(held.read(np.arange(100))["inputs"]).logits) > 0
    hits, wrong = (said & (held.tags > 0)).sum(), (said != (held.tags > 0)).sum()
    assert 2 * hits / (2 * hits + wrong) == pytest.approx(results["student"]["last"]["student"]["f1"])


@pytest.mark.parametrize("step", [4, 6])
def test_stopped_and_resumed_it_is_the_same_bit_for_bit(step, config, builder, distilled, tmp_path):
    from kdjax.training.loop import Stopped

    folder = tmp_path / "run"
    with pytest.raises(Stopped):
        run(config("bernoulli_kd"), folder, builder=builder, progress=StopAt(step))
    run(config("bernoulli_kd"), folder, resume=True, builder=builder)
    assert outcome(folder) == outcome(distilled[0]) and rows(folder) == rows(distilled[0])


def test_pmap_and_more_devices_are_the_same(config, distilled, tmp_path):
    wanted = distilled[1]["student"]["last"]["student"]
    for runner in ("jit", "pmap"):
        experiment = dataclasses.replace(config("bernoulli_kd"), runner=runner)
        found = run(experiment, tmp_path / runner, builder=Builder())["student"]["last"]["student"]
        assert found == pytest.approx(wanted, rel=1e-4)


def test_the_teacher_cache_is_the_live_teacher(config, builder, distilled, tmp_path):
    experiment = config("bernoulli_kd").replace_phase("teacher", weights=str(distilled[0] / "teacher"))
    experiment = dataclasses.replace(experiment, cache_dir=str(tmp_path / "cache"))
    experiment = experiment.replace_phase("student", teacher_cache="float32")
    first = run(experiment, tmp_path / "first", builder=builder)["student"]
    assert first["last"]["student"] == pytest.approx(distilled[1]["student"]["last"]["student"], rel=1e-5)
    assert first["teacher_cache"]["computed"] > 0
    again = run(experiment, tmp_path / "again", builder=builder)["student"]
    assert again["teacher_cache"]["computed"] == 0 and again["hash"] == first["hash"]


def test_compare_and_report_from_the_command_line(tmp_path, capsys):
    """With a method's columns, the baseline of this task, and pages that speak of its examples and its metric."""
    arguments = [
        "compare",
        CONFIG,
        "--methods",
        "labels",
        "bernoulli_kd",
        "--seeds",
        "0",
        "1",
        "--run",
        str(tmp_path / "c"),
    ]
    assert main(arguments) == 0
    shown = capsys.readouterr().out
    for said in ("F1 %", "vs labels", "BCE", "agreement %", "notes/s", "training notes labelled"):
        assert said in shown
    page = (tmp_path / "c" / "report.html").read_text(encoding="utf-8")
    assert "5 tags" in page and "100 test notes" in page and "top-1" not in page and "images" not in page
    comparison = json.loads((tmp_path / "c" / "comparison.json").read_text())
    assert set(comparison["methods"]["labels"]["metrics"]) == {"f1", "bce", "agreement"}
    assert main(["evaluate", str(tmp_path / "c" / "bernoulli_kd" / "seed0")]) == 0
    assert main(["distill", CONFIG, "--dry-run"]) == 0
    assert "32×5" in capsys.readouterr().out


def test_its_options_are_on_the_command_line(tmp_path, capsys):
    arguments = ["distill", CONFIG, "--data.examples", "64", "--phases.student.network.width", "2", "--tiny"]
    assert main([*arguments, "--run", str(tmp_path / "run")]) == 0
    saved = json.loads((tmp_path / "run" / "experiment.json").read_text())
    assert saved["data"]["kind"] == "Tagging" and saved["data"]["examples"] == 64
    assert saved["phases"][1]["network"] == {"kind": "Tagger", "name": "tagger", "width": 2}


def test_methods_for_other_targets_are_refused_in_words(config, builder):
    experiment = config("dkd")
    with pytest.raises(ExperimentError, match="learns from targets called 'labels', and the data has multi_hot"):
        builder.program(experiment, experiment.student)


@pytest.mark.slow  # tests/experiment/test_processes.py has them with a task of the library
def test_two_processes_are_one(distilled, tmp_path):
    ended = finish(start(CONFIG, tmp_path / "run", str(tmp_path), 2, 2, "--method", "bernoulli_kd"))
    assert [status for status, _ in ended] == [0, 0], ended
    found = json.loads((tmp_path / "run" / "student" / "result.json").read_text())["last"]["student"]
    assert found == pytest.approx(distilled[1]["student"]["last"]["student"], rel=1e-4)


def test_a_command_in_another_process_imports_it(distilled):
    """A file of one's own is executed because the command line says so, not because a run folder does."""
    command = [sys.executable, "-m", "kdjax.cli", "evaluate", str(distilled[0])]
    refused = subprocess.run(command, capture_output=True, text=True)
    assert (
        refused.returncode == 1 and "unknown kind 'Tagging'" in refused.stderr and "--import its file" in refused.stderr
    )
    said = subprocess.run([*command, "--import", CONFIG], capture_output=True, text=True)
    assert said.returncode == 0, said.stderr
    assert f"{100 * distilled[1]['student']['last']['student']['f1']:.2f}" in said.stdout

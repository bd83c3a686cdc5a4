"""The commands as a person types them, on the embedded images, shrunk to seconds."""

import json

import jax
import pytest

from kdjax import __version__
from kdjax.cli import main
from kdjax.experiment import program
from kdjax.json_files import read_json, write_json
from kdjax.objectives import METHODS
from kdjax.objectives.catalogue import reads
from kdjax.training import make_runner

CONFIG = "configs/fashion_mnist/few_labels.py"


@pytest.fixture(scope="module", autouse=True)
def one_device():
    """As on most machines; eight are tested where it matters."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(program, "make_runner", lambda kind, devices=None: make_runner(kind, jax.devices()[:1]))
        yield


@pytest.fixture(scope="module")
def options(tmp_path_factory):
    """Prepared data of our own, and narrow networks."""
    data_dir = str(tmp_path_factory.mktemp("data"))
    return ["--tiny", "--data-dir", data_dir]


@pytest.fixture(scope="module")
def teacher(options, tmp_path_factory):
    """`kdjax train`: the networks of a config that need no teacher."""
    folder = tmp_path_factory.mktemp("runs") / "teacher"
    assert main(["train", CONFIG, "--run", str(folder), *options]) == 0
    assert (folder / "teacher/result.json").exists() and not (folder / "student").exists()
    return folder


def test_distill_with_a_teacher_at_hand_then_evaluate_then_run_again(teacher, options, tmp_path, capsys):
    run = tmp_path / "run"
    arguments = ["distill", CONFIG, "--method", "dkd", "--teacher", str(teacher), "--run", str(run), *options]
    assert main(arguments) == 0
    shown = capsys.readouterr().out
    assert "student" in shown and "agreement" in shown and "images/s" in shown
    result = json.loads((run / "student/result.json").read_text())
    assert result["teacher_hash"] == json.loads((teacher / "teacher/result.json").read_text())["hash"]

    assert main(["evaluate", str(run), "--data-dir", options[-1]]) == 0
    assert f"{100 * result['last']['student']['top1']:.2f}" in capsys.readouterr().out

    assert main(arguments) == 1
    assert "say --resume" in capsys.readouterr().err
    assert main([*arguments, "--resume"]) == 0

    again = tmp_path / "again"
    assert main(["distill", str(run), "--run", str(again), "--data-dir", options[-1]]) == 0
    assert json.loads((again / "student/result.json").read_text())["hash"] == result["hash"]


def test_a_teacher_of_other_classes_is_refused_in_words(teacher, tmp_path, options, capsys):
    path = teacher / "teacher/network.json"
    saved = path.read_text()
    write_json(path, read_json(path, ValueError, "") | {"num_classes": 7})
    try:
        assert main(["distill", CONFIG, "--teacher", str(teacher), "--run", str(tmp_path / "run"), *options]) == 1
    finally:
        path.write_text(saved)
    error = capsys.readouterr().err
    assert "has 7 classes" in error and "Traceback" not in error


def test_compare_prints_a_table_and_writes_a_report(teacher, options, tmp_path, capsys):
    folder = tmp_path / "run"
    arguments = ["compare", CONFIG, "--methods", "labels", "kd", "--seeds", "0", "1", "--teacher", str(teacher),
                 "--run", str(folder), *options]  # fmt: skip
    assert main(arguments) == 0
    shown = capsys.readouterr().out
    for said in ("teacher", "labels", "kd", "±", "top-1 %", "agreement %", "NLL", "ECE %", "images/s", "report.html"):
        assert said in shown, said
    assert main(arguments) == 1 and main([*arguments, "--resume"]) == 0 and main([*arguments, "--overwrite"]) == 0
    assert {"report.html", "comparison.png", "curves.png", "comparison.json"} <= {p.name for p in folder.iterdir()}


def test_methods_lists_and_explains(capsys):
    assert main(["methods"]) == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in METHODS)
    assert main(["methods", "dkd"]) == 0
    shown = capsys.readouterr().out
    for said in ("TCKD", "beta = 8.0", "Decoupled Knowledge Distillation", "2203.08679"):
        assert said in shown, said


def distilled(name, teacher, options, folder):
    """The student's result, after `kdjax distill --method name`."""
    assert main(["distill", CONFIG, "--method", name, "--teacher", str(teacher), "--run", str(folder), *options]) == 0
    result = json.loads((folder / "student/result.json").read_text())
    assert result["steps"] == result["last"]["step"] == 6 and 0 <= result["last"]["student"]["top1"] <= 1
    return result


def test_a_method_with_a_memory_bank_trains(teacher, options, tmp_path):
    distilled("crd", teacher, options, tmp_path / "run")


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        name
        for name, entry in METHODS.items()
        if entry.family not in ("detection", "text") and "multi_hot" not in reads(entry.objective)
    ],
)
def test_every_method_trains(name, teacher, options, tmp_path):
    distilled(name, teacher, options, tmp_path / "run")


@pytest.mark.slow
@pytest.mark.parametrize("config", ["born_again", "assistant", "function_matching", "two_teachers"])
def test_every_scheme_trains(config, options, tmp_path):
    folder = tmp_path / "run"
    assert main(["distill", f"configs/fashion_mnist/{config}.py", "--run", str(folder), *options]) == 0
    assert json.loads((folder / "student/result.json").read_text())["last"]["student"]["top1"] >= 0


def test_usage(capsys):
    assert main(["--help"]) == 0 and main([]) == 2
    assert "kdjax compare" not in capsys.readouterr().err
    assert main(["--version"]) == 0 and capsys.readouterr().out == f"kdjax {__version__}\n"

"""What a new user meets first: names, paths, help, one's own network and method, a locale without letters for ±."""

import inspect
import io
import json
import os
import re
import subprocess
import sys
import types
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rich.console import Console

import kdjax
from kdjax import losses, terminal
from kdjax.cli import main
from kdjax.experiment import ExperimentError, program
from kdjax.experiment.export import export
from kdjax.models.referenced import _known
from kdjax.objectives import METHODS
from kdjax.objectives.catalogue import find_methods
from kdjax.references import load_reference, read_options, write_options
from kdjax.training import make_runner

OWN = str(Path(__file__).parent / "own_things.py")
SMOKE = "digits/smoke"


@pytest.fixture(scope="module", autouse=True)
def one_device():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(program, "make_runner", lambda kind, devices=None: make_runner(kind, jax.devices()[:1]))
        yield


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    return str(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def own_run(data_dir, tmp_path_factory):
    """One's own network taught by one's own method, from the command line."""
    folder = tmp_path_factory.mktemp("own") / "run"
    arguments = ["distill", SMOKE, "--method", f"{OWN}:mine", "--tiny", "--run", str(folder), "--data-dir", data_dir]
    network = ["--phases.student.network.name", f"{OWN}:TinyNet", "--phases.student.network.options", "depth=2"]
    assert main([*arguments, *network]) == 0
    return folder


# --- one's own network and method ---


def test_every_command_works_on_a_run_of_ones_own_network_and_method(own_run, data_dir, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    result = json.loads((own_run / "student/result.json").read_text())
    assert result["network"] == "TinyNet (depth=2)"
    assert main(["evaluate", str(own_run), "--data-dir", data_dir]) == 0
    assert f"{100 * result['last']['student']['top1']:.2f}" in capsys.readouterr().out
    assert main(["distill", str(own_run), "--run", "again", "--data-dir", data_dir]) == 0
    again = json.loads(Path("again/student/result.json").read_text())
    assert again["hash"] == result["hash"]


def test_a_saved_run_names_ones_own_and_executes_nothing_when_it_is_read(own_run, tmp_path, capsys):
    text = (own_run / "experiment.json").read_text()
    assert f"{OWN}:TinyNet" in text and f"{OWN}:Mine" in text
    moved = tmp_path / "experiment.json"
    moved.write_text(text.replace(OWN, "/nowhere/own_things.py"))
    from kdjax.experiment import serialization

    read = serialization.load(moved)  # nothing is looked for yet
    saved = json.loads(moved.read_text())
    assert serialization.to_data(read) == {name: saved[name] for name in saved if name not in ("version", "checksum")}
    assert "is read as it is now, as if that was on purpose" in capsys.readouterr().err
    with pytest.raises(ValueError, match=r"There is no file /nowhere/own_things\.py"):
        _ = read.student.objective.parts


def test_a_trained_network_needs_its_run_folder_alone(own_run, tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "none"))
    predict = kdjax.load_trained(own_run)
    images = np.random.default_rng(0).integers(0, 256, (3, *predict.inputs.shape[1:]), np.uint8)
    assert jax.jit(predict)(images).logits.shape == (3, 10)
    assert kdjax.load_trained(own_run, "teacher").network.name == "small_cnn (width 4)"
    with pytest.raises(ExperimentError, match="No phase 'nobody'; there are teacher, student"):
        kdjax.load_trained(own_run, "nobody")


def test_a_trained_network_is_exported(own_run, tmp_path, capsys):
    predict = kdjax.load_trained(own_run)
    images = np.random.default_rng(0).integers(0, 256, (5, *predict.inputs.shape[1:]), np.uint8)
    wanted = np.asarray(predict(images).logits)
    assert main(["export", str(own_run), "--to", str(tmp_path / "whole")]) == 0
    assert "TinyNet (depth=2) is in" in capsys.readouterr().out
    read = jax.export.deserialize((tmp_path / "whole").read_bytes())
    np.testing.assert_allclose(read.call(images)["logits"], wanted, rtol=1e-5, atol=1e-6)
    from safetensors.numpy import load_file

    leaves = jax.tree.leaves((predict.variables.params, predict.variables.state))
    for form, reader in (("npz", np.load), ("safetensors", load_file)):
        export(predict, form, tmp_path / f"w.{form}")
        found = dict(reader(tmp_path / f"w.{form}"))
        np.testing.assert_array_equal(found["params/conv/kernel"], predict.variables.params["conv"]["kernel"])
        assert len(found) == len(leaves)
    with pytest.raises(ExperimentError, match="exists; name another file"):
        export(predict, "npz", tmp_path / "w.npz")


@pytest.mark.parametrize(
    ("reference", "options", "said"),
    [
        ("nofile.py:Net", (), "There is no file .*nofile.py"),
        (f"{OWN}:TinyNe", (), "has no 'TinyNe'; did you mean 'TinyNet'"),
        (f"{OWN}:TinyNet", ("dept=3",), "takes no 'dept'; it takes depth"),
        (f"{OWN}:TinyNet", ("depth",), "'depth' is not NAME=VALUE"),
        (f"{OWN}:LinenNet", (), "needs width; set the network's options, such as width=3"),
        (f"{OWN}:silent", (), "does not say what it returns; write `-> nnx.Module`"),
        (f"{OWN}:Mine", (), "name a class of nnx.Module or linen.Module"),
        ("os:system", (), "does not say what it returns"),
        ("no.such.module:Net", (), "no.such.module cannot be imported"),
        ("resnet9", (), "unknown network 'resnet9'; did you mean"),
        ("resnet8", ("depth=3",), "resnet8 is of the zoo .* leave its options empty"),
    ],
)
def test_a_network_that_cannot_be_is_refused_in_a_sentence(reference, options, said):
    from kdjax.tasks.classification.networks import Classifier, make_classifier

    with pytest.raises(ValueError, match=said):
        make_classifier(Classifier(name=reference, options=options), jnp.zeros((2, 8, 8, 1)), 10).init(
            jax.random.key(0)
        )


def test_a_width_is_not_taken_for_the_channels_of_the_data():
    """Nor for the classes; what must be given is filled in by any of its names."""

    def widths(num_classes, channels=32, out_features=64, *, rngs):
        """A width each."""

    def needed(classes, channels, *, rngs):
        """Both must be given."""

    def both(in_channels, channels, *, rngs):
        """One of them is meant."""

    facts = {"num_classes": 10, "in_channels": 1, "image_size": 8}
    known = lambda function: _known(facts, inspect.signature(function).parameters)
    assert known(widths) == {"num_classes": 10}
    assert known(needed) == {"classes": 10, "channels": 1}
    assert known(both) == {"in_channels": 1}


@pytest.mark.parametrize(("name", "options"), [("LinenNet", ("width=3",)), ("made", ())])
def test_a_linen_class_and_a_function_make_networks_too(name, options):
    from kdjax.models import output_shapes
    from kdjax.tasks.classification.networks import Classifier, make_classifier

    network = make_classifier(Classifier(name=f"{OWN}:{name}", options=options), jnp.zeros((2, 8, 8, 1)), 10)
    assert output_shapes(network, jnp.zeros((4, 8, 8, 1))).logits.shape == (4, 10)


def test_references_and_options_read_back():
    assert load_reference("kdjax.losses:kd") is losses.kd
    values = {"depth": 3, "act": "relu", "rate": 0.5, "sizes": (1, 2), "flag": True}
    assert read_options(write_options(values)) == values
    with pytest.raises(ValueError, match="so it cannot be saved"):
        write_options({"array": np.zeros(2)})


# --- nothing is written before everything was found ---


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (["--teacher", "runs/nobody"], "holds no finished network"),
        (["--phases.student.network.name", "resnet9"], "unknown network"),
        (["--seed", "99999999999999999999"], "has more than 32 bits"),
        (["--run", "gs://bucket/run"], "is an address"),
        (["--run", "file/run"], "file is a file, so file/run cannot be a run folder"),
        (["--run", "file"], "file is a file"),
        (["--method", "kdd"], "did you mean"),
    ],
)
def test_what_is_wrong_is_said_before_anything_is_written(changes, said, data_dir, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("file").touch()
    assert main(["distill", SMOKE, "--method", "kd", "--tiny", "--data-dir", data_dir, *changes]) == 1
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1
    assert os.listdir() == ["file"]


def test_a_link_that_leads_nowhere_is_said(data_dir, tmp_path, monkeypatch, capsys):
    """Such as to a disk that is not there."""
    monkeypatch.chdir(tmp_path)
    os.symlink("/nowhere/at/all", "runs")
    for place in ([], ["--run", "runs/mine"]):
        assert main(["distill", SMOKE, "--method", "kd", "--tiny", "--data-dir", data_dir, *place]) == 1
        error = capsys.readouterr().err
        assert "runs is a link to /nowhere/at/all, which is not there, so " in error and error.count("\n") == 1


def test_the_home_folder_is_meant_by_its_sign(own_run, data_dir, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HOME", str(own_run.parent))
    monkeypatch.chdir(tmp_path)
    assert main(["distill", SMOKE, "--teacher", "~/run/teacher", "--tiny", "--run=~/run", "--data-dir", data_dir]) == 1
    assert f"Run folder {own_run} exists" in capsys.readouterr().err
    assert main(["evaluate", "~/run", "--data-dir", data_dir]) == 0
    assert os.listdir() == []


@pytest.mark.parametrize("file", ["teacher/result.json", "student/network.json", "experiment.json"])
@pytest.mark.parametrize("harm", [b"", b'{"phase": "tea', b"[1]", b"\xff\xfe"])
def test_a_damaged_file_is_named(file, harm, own_run, data_dir, capsys):
    path = own_run / file
    whole = path.read_bytes()
    path.write_bytes(harm)
    try:
        assert main(["evaluate", str(own_run), "--data-dir", data_dir]) == 1
    finally:
        path.write_bytes(whole)
    error = capsys.readouterr().err
    assert path.name in error and error.count("\n") == 1 and "Traceback" not in error


# --- names ---


def test_methods_are_found_by_any_word(capsys):
    assert find_methods(["attention", "transfer"]) == ["at"]
    assert "kd" in find_methods(["hinton"]) and find_methods(["Zagoruyko"]) == ["at"]
    assert "dkd" in find_methods(["2203.08679"]) and find_methods([]) == list(METHODS)
    assert main(["methods", "look", "where", "teacher"]) == 0
    assert "\nat " in capsys.readouterr().out
    assert main(["methods", "contrastiv learning of everything"]) == 1
    assert "No method is about" in capsys.readouterr().err


def test_losses_say_what_they_are_called():
    for name, said in {
        "crd": "see `nce`", "attention_transfer": "see `at`", "KDLoss": "did you mean `kd`", "dkdd": "did you mean `dkd`",
    }.items():  # fmt: skip
        with pytest.raises(AttributeError, match=said):
            getattr(losses, name)
    assert dir(losses) == sorted(losses.__all__) and "kd" in dir(losses) and "logits" not in dir(losses)
    assert not hasattr(losses, "nothing_like_that") and not hasattr(kdjax, "nothing_like_that")


def test_configs_go_by_name_from_anywhere(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["configs"]) == 0
    shown = capsys.readouterr().out
    assert SMOKE in shown and "fashion_mnist/few_labels" in shown and "distilled" not in shown
    assert main(["configs", "copy", SMOKE, "mine.py"]) == 0 and Path("mine.py").read_text().startswith('"""kdjax')
    assert main(["configs", "copy", SMOKE, "mine.py"]) == 1 and "exists" in capsys.readouterr().err
    assert main(["distill", "digits/smok", "--method", "kd"]) == 1
    assert "such as digits/smoke" in capsys.readouterr().err


@pytest.mark.parametrize(("section", "least", "most"), [((), 40, 90), (("data",), 40, 200), (("all",), 300, 2000)])
def test_help_fits_its_purpose(section, least, most, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit) as ended:
        main(["distill", SMOKE, "--method", "kd", "--help", *section])
    shown = capsys.readouterr().out
    assert ended.value.code == 0 and least <= shown.count("\n") <= most
    assert ("--data.split-seed" in shown) == bool(section) and "--data.batch-size" in shown
    assert ("--help all" in shown) == (not section)


def test_help_of_no_field_is_refused(capsys):
    assert main(["distill", SMOKE, "--method", "kd", "--help", "dat"]) == 1
    assert "There is no field 'dat'" in capsys.readouterr().err


# --- terminals, notebooks, locales ---


def test_a_locale_without_the_letters_gets_plain_ones(monkeypatch):
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii", write_through=True)
    monkeypatch.setattr(sys, "stdout", stream)
    terminal.say_all()
    Console(file=stream, width=100).print("1.00 ± 0.25 × τ² ‖x‖ ½ ü")
    print("≥ 日")
    assert stream.buffer.getvalue().decode() == "1.00 +- 0.25 x tau^2 ||x|| 1/2 u\n>= ?\n"


def test_a_method_is_explained_in_a_locale_that_is_not_utf_8():
    plain = {**os.environ, "LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
    command = [sys.executable, "-m", "kdjax.cli", "methods", "kd"]
    said = subprocess.run(command, capture_output=True, env=plain, cwd=Path(__file__).parents[1])
    assert said.returncode == 0 and said.stdout.isascii() and b"NIPS workshop 2015" in said.stdout, said.stderr


def test_a_notebook_has_a_bar_of_its_own_and_a_command_in_it_lines(monkeypatch):
    from kdjax.training import progress

    shown = []
    display = types.ModuleType("IPython.display")
    display.HTML = lambda text: text
    handle = types.SimpleNamespace(update=shown.append)
    display.display = lambda text, display_id: shown.append(text) or handle
    shell = types.ModuleType("IPython")
    shell.get_ipython = lambda: types.SimpleNamespace(kernel=None)
    monkeypatch.setitem(sys.modules, "IPython", shell)
    monkeypatch.setitem(sys.modules, "IPython.display", display)
    page = progress.make_progress()
    page.start("<student>", 0, 10, 16, "images")
    page.show({"loss": 0.5}, 1000.0)
    page.advance(7)
    page.evaluated("top-1 50 %")
    page.finish()
    assert "&lt;student&gt;" in shown[0] and 'value="0" max="10"' in shown[0]
    assert "7/10, 1,000 images/s, loss 0.500, top-1 50 %" in shown[-1]
    monkeypatch.delitem(sys.modules, "IPython")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    assert isinstance(progress.make_progress(), progress.Bar)
    monkeypatch.setenv("JPY_PARENT_PID", "1")
    assert isinstance(progress.make_progress(), progress.Lines)


def test_a_refusal_lists_the_paths_there_are(data_dir, tmp_path, capsys):
    run = ["distill", SMOKE, "--method", "srd", "--tiny", "--data-dir", data_dir, "--run", str(tmp_path / "run")]
    run += ["--phases.student.network.name", f"{OWN}:TinyNet"]
    assert main([*run, "--dry-run", "--phases.student.network.embedding", "layers/0"]) == 0
    capsys.readouterr()
    assert main(run) == 1 and not (tmp_path / "run").exists()
    error = capsys.readouterr().err
    assert "reads student.embedding" in error and "conv, layers/0, out" in error


def test_a_comparison_shows_itself(data_dir, tmp_path, monkeypatch, capsys):
    experiment = kdjax.experiment.config.load_config(SMOKE)("kd").tiny()
    ran = kdjax.run(experiment, folder=tmp_path / "run", data_dir=data_dir)
    assert "student" in repr(ran) and ran["student"]["steps"] == 6 and repr(ran)[:20] in ran._repr_html_()
    assert ran.trained().network.name == "small_cnn (width 4)"
    with pytest.raises(ExperimentError, match="say --resume"):
        kdjax.run(experiment, folder=tmp_path / "run", data_dir=data_dir)
    found = kdjax.compare(experiment, ["labels", "kd"], [0], folder=tmp_path / "compare", data_dir=data_dir)
    page = found._repr_html_()
    assert "<table>" in page and "data:image/png" in page and "kd" in repr(found) and found.report.exists()
    assert re.search(r"kd, seed 0", capsys.readouterr().out)

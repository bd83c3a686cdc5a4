"""Configs, overrides, and experiments as data."""

import dataclasses
import json

import numpy as np
import pytest

from kdjax.cli import main
from kdjax.command_line import DistillOptions, parse
from kdjax.experiment import ExperimentError, Phase
from kdjax.experiment.config import load_config
from kdjax.experiment.dry_run import module_table
from kdjax.experiment.folder import read_result
from kdjax.experiment.serialization import differences, from_data, load, save, to_data
from kdjax.objectives import DKD, KD, METHODS, CrossEntropy
from kdjax.schedules import Cosine, Duration, Linear, Product, Steps, WarmUp, epochs
from kdjax.tasks.classification import Classifier, Views
from kdjax.training.optimizers import SGD, AdamW
from tests.experiment.conftest import small

RICH = small(
    WarmUp(length=epochs(2)) * Linear(start=0.0, end=2.0) * DKD() + CrossEntropy(),
    data_seed=4,
    runner="pmap",
    data={"labelled": 200, "split_seed": 3},
).replace_phase("teacher", optimizer=AdamW(learning_rate=Cosine(), weight_decay=0.1), duration=epochs(1.5))


@pytest.mark.parametrize("experiment", [RICH, small(), *(small(m.objective) for m in METHODS.values())])
def test_an_experiment_comes_back_from_json_as_it_was(experiment, tmp_path):
    save(experiment, tmp_path / "experiment.json")
    again = load(tmp_path / "experiment.json")
    assert again == experiment and hash(again) == hash(experiment)


def changed(path, value):
    data = to_data(RICH)
    node = data
    for key in path[:-1]:
        node = node[key]
    node[path[-1]] = value
    return data


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (changed(["sead"], 1), r"experiment.sead: Experiment has no such field; did you mean 'seed'"),
        (
            changed(["phases", 1, "objective", "kind"], "Sun"),
            r"phases.1.objective: unknown kind 'Sun'; did you mean 'Sum'",
        ),
        (changed(["phases", 0, "optimizer", "learning_rate"], "fast"), r"phases.0.optimizer.learning_rate"),
        (changed(["data"], {"kind": "KD"}), r"experiment.data: expected a Task, found a KD"),
        (changed(["runner"], "tpu"), r"'tpu' is not one of 'jit', 'fsdp', 'pmap'"),
        (changed(["seed"], True), r"experiment.seed: expected a int, found True"),
        (changed(["data", "views", "crop_padding"], -1), r"crop_padding"),
        (changed(["phases", 0, "duration", "unit"], "years"), r"'years' is not one of 'steps'"),
        ([], r"expected an object"),
    ],
)
def test_wrong_data_is_named_by_its_place(data, sentence):
    with pytest.raises(ExperimentError, match=sentence):
        from_data(data)


def test_reading_executes_nothing(tmp_path):
    """Names that Python could resolve are not resolved."""
    for kind in ("os.system", "__import__", "builtins.eval", "Path", "Experiment.__init__"):
        with pytest.raises(ExperimentError, match="unknown kind"):
            from_data({"kind": kind, "command": "touch owned"})


def test_differences_name_the_fields():
    other = dataclasses.replace(RICH, seed=7)
    assert differences(to_data(RICH), to_data(other)) == ["seed: 0 != 7"]
    assert differences(to_data(RICH), to_data(RICH)) == []


def overridden(*argv, experiment=RICH):
    return parse("distill", ["config.py", *argv], experiment, DistillOptions())


def test_any_field_is_overridden_by_its_name():
    experiment, options = overridden(
        "--phases.student.objective.dkd.temperature", "3.5", "--phases.teacher.duration.amount", "2",
        "--data.batch-size", "64", "--seed", "5", "--resume", "--data.views.crop-padding", "2",
    )  # fmt: skip
    assert options.resume and not options.overwrite
    dkd = experiment.student.objective.parts[0]
    assert (dkd.temperature, dkd.beta) == (3.5, 8.0)
    assert experiment.phases[0].duration == Duration(2.0, "epochs")
    assert (experiment.data.batch_size, experiment.seed, experiment.data.views) == (64, 5, Views(crop_padding=2))
    rest = dataclasses.replace(experiment, seed=0, data=RICH.data, phases=RICH.phases)
    assert rest == RICH, "what was not said has not changed"


def test_a_schedule_is_overridden_field_by_field():
    experiment, _ = overridden("--phases.student.objective.dkd.weight.first.length.amount", "7")
    assert experiment.student.objective.parts[0].weight.first.length == epochs(7)
    assert isinstance(experiment.student.objective.parts[0].weight, Product)


@pytest.mark.parametrize(
    ("argv", "nearest"),
    [
        (["--data.bach-size", "64"], "--data.batch-size"),
        (["--phases.student.objective.dkd.temprature", "3"], "--phases.student.objective.dkd.temperature"),
        (["--resum"], "--resume"),
    ],
)
def test_a_wrong_key_is_an_error_with_the_nearest_name(argv, nearest, capsys):
    with pytest.raises(SystemExit) as stop:
        overridden(*argv)
    assert stop.value.code == 2
    error = "".join(capsys.readouterr())
    assert nearest in error and "Traceback" not in error


def test_a_wrong_value_is_an_error(capsys):
    with pytest.raises(SystemExit):
        overridden("--data.batch-size", "many")
    assert "batch-size" in "".join(capsys.readouterr())
    with pytest.raises(ExperimentError, match="crop_padding"):
        overridden("--data.views.crop-padding", "-3")


def test_help_explains_every_field(capsys):
    with pytest.raises(SystemExit) as stop:
        overridden("--help", "all")
    assert stop.value.code == 0
    text = " ".join(capsys.readouterr().out.replace("│", " ").split())
    for said in (
        "T, divides both networks' logits",
        "examples in one optimizer step",
        "seed of initial weights",
        "mirror left",
    ):
        assert said in text, said


def test_every_field_of_every_kind_has_a_help_text():
    from kdjax.experiment.config import field_help
    from kdjax.experiment.serialization import KINDS

    for cls in KINDS.values():
        if cls.__name__ == "Sum":
            continue
        texts = field_help(cls)
        missing = [field.name for field in dataclasses.fields(cls) if not texts.get(field.name)]
        assert not missing, f"{cls.__name__}: {missing}"


def write_config(tmp_path, body):
    path = tmp_path / "config.py"
    path.write_text(f"from tests.experiment.conftest import small\nfrom kdjax.objectives import KD, METHODS\n{body}\n")
    return str(path)


def test_configs_are_python_files_json_or_run_folders(tmp_path):
    plain = load_config(write_config(tmp_path, "def experiment():\n    return small()"))
    assert plain(None) == small()
    assert plain("dkd").student.objective == METHODS["dkd"].objective
    save(small(), tmp_path / "experiment.json")
    for path in (tmp_path / "experiment.json", tmp_path):
        assert load_config(str(path))(None) == small()
        assert load_config(str(path))("sp").student.objective == METHODS["sp"].objective


def test_a_config_may_say_what_suits_each_method(tmp_path):
    body = "def experiment(method='kd'):\n    return small(KD(temperature=9.0) if method == 'kd' else METHODS[method].objective)"
    config = load_config(write_config(tmp_path, body))
    assert config("kd").student.objective == KD(temperature=9.0) == config(None).student.objective
    assert config("dkd").student.objective == METHODS["dkd"].objective
    with pytest.raises(ExperimentError, match="Unknown method 'dkdd'; did you mean 'dkd'"):
        config("dkdd")


@pytest.mark.parametrize("body", ["x = 1", "def experiment():\n    return 3"])
def test_a_config_without_an_experiment_says_so(body, tmp_path):
    with pytest.raises(ExperimentError, match="Experiment"):
        load_config(write_config(tmp_path, body))(None)


def test_kept_configs_load(capsys):
    """Every config in the repository fits, by itself and tiny, for every method it is meant for."""
    from pathlib import Path

    files = sorted(Path("configs").rglob("*.py"))
    assert files
    for file in files:
        config = load_config(str(file))
        mixed = config(None).data.mixup > 0  # then class indices cannot be read
        for name in (None, "labels", "kd", *(("kd_only",) if mixed else ("dkd",))):
            experiment = config(name)
            assert experiment.problems() == [], file
            assert experiment.tiny().problems() == []
            assert from_data(json.loads(json.dumps(to_data(experiment)))) == experiment


def test_dry_run_shows_shapes_costs_and_problems(tmp_path, data_dir, capsys):
    path = write_config(tmp_path, "def experiment():\n    return small()")
    assert main(["distill", path, "--dry-run", "--data-dir", data_dir]) == 0
    text = capsys.readouterr().out
    for said in (
        "logits",
        "32×10",
        "features[0]",
        "student parameters",
        "FLOPs",
        "of them teacher",
        "memory",
        "Nothing is wrong",
    ):
        assert said in text, said
    assert "labels: of" not in text
    assert main(["distill", path, "--dry-run", "--data-dir", data_dir, "--data.labelled", "20"]) == 0
    assert "labels: of 20 of them, " in capsys.readouterr().out
    wrong = ["--phases.student.network.name", "resnet9", "--data.labelled", "3"]
    assert main(["distill", path, "--dry-run", "--data-dir", data_dir, *wrong]) == 1
    assert "wrong:" in capsys.readouterr().out
    assert not (tmp_path / "runs").exists()


def test_dry_run_names_what_objectives_train():
    params = {
        "fitnet": {"conv": {"kernel": np.zeros((1, 1, 3, 4)), "bias": np.zeros(4)}},
        "ctkd": {"theta": np.zeros(())},
    }
    assert module_table(params) == [("ctkd", "theta a number"), ("fitnet.conv", "bias 4, kernel 1×1×3×4")]


def test_phases_and_steps_are_plain_values():
    assert str(Phase(network=Classifier())) and str(Steps()) and str(SGD())


def test_experiments_saved_before_there_were_tasks_are_read():
    """Their data and networks were of kinds that had other names; results said images where they now say examples."""
    saved = to_data(small())
    saved["data"]["kind"] = "Data"
    for phase in saved["phases"]:
        phase["network"]["kind"] = "Model"
    assert from_data(saved) == small()


def test_results_saved_before_there_were_tasks_are_read(tmp_path):
    (tmp_path / "result.json").write_text(json.dumps({"hash": "0", "images_per_s": 3.0}))
    assert read_result(tmp_path) == {"hash": "0", "examples_per_s": 3.0}


def test_a_task_nobody_has_imported_is_named():
    saved = to_data(small())
    saved["data"]["kind"] = "Segmentation"
    with pytest.raises(ExperimentError, match=r"unknown kind 'Segmentation'.*must be imported before"):
        from_data(saved)

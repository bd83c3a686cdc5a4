"""Several pairs side by side: a teacher trained once, results in one file, failures said and gone on from."""

import ast
import io
import json
import shutil

import pytest

from kdjax.experiment import ExperimentError, configs
from kdjax.experiment.compare import compare
from kdjax.experiment.config import configs_of_folder, load_config, of_each
from kdjax.experiment.reproduce import find_teacher, reproduce
from kdjax.experiment.summary import show_summary, summary_markdown
from kdjax.objectives import KD, CrossEntropy
from kdjax.terminal import make_console
from kdjax.training.loop import TrainingError
from kdjax.training.optimizers import SGD
from tests.experiment.conftest import net, small

DIVERGING = 1e30 * KD(temperature=2.0) + 1e30 * CrossEntropy()
METHODS = {"labels": small(CrossEntropy(), length=4), "kd": small(KD(temperature=2.0), length=4)}


def wider(experiment):
    return experiment.replace_phase("student", network=net(3))


NETWORK = small().phases[0].network.name
FILE = NETWORK.replace(":", "-")  # a name by path and colon is none of a file
PAIRS = {"narrow": METHODS, "wide": {name: wider(one) for name, one in METHODS.items()}}


@pytest.fixture(scope="module")
def reproduced(tmp_path_factory, builder):
    folder, said = tmp_path_factory.mktemp("reproduced") / "all", []
    return folder, reproduce(PAIRS, (0, 1), folder, builder=builder, announce=said.append), said


def test_a_teacher_is_trained_once_for_the_pairs_that_it_teaches(reproduced):
    folder, results, said = reproduced
    assert said.count(f"teacher {NETWORK}") == 1 and [
        path.name for path in (folder / "teachers").iterdir() if path.is_dir()
    ] == [FILE]
    hashes = {json.loads(path.read_text())["teacher_hash"] for path in folder.glob("*/*/seed*/student/result.json")}
    assert hashes == {pair["teacher"]["hash"] for pair in results["pairs"].values()} and len(hashes) == 1
    assert json.loads((folder / "results.json").read_text())["pairs"] == json.loads(json.dumps(results["pairs"]))
    assert (folder / "narrow/report.html").exists() and (folder / "gains.png").stat().st_size > 5000


def test_the_reports_say_what_the_results_are(reproduced):
    folder, results, _ = reproduced
    task, console = METHODS["kd"].data, make_console(file=io.StringIO(), width=160)
    show_summary(results, task, console)
    page, text = (folder / "report.html").read_text(), (folder / "results.md").read_text()
    assert text == summary_markdown(results, task)
    for pair in results["pairs"].values():
        for summary in pair["methods"].values():
            mean = task.metric.text(summary["metrics"]["top1"]["mean"])
            assert mean in page and mean in text and mean in console.file.getvalue()
        gain = pair["methods"]["kd"]["gain"]
        assert (gain["p"] is None) == (gain["sd"] == 0) and 0 <= gain["p_holm"] <= 1


def test_it_is_gone_on_with_moved_and_grows(reproduced, builder, tmp_path):
    folder, results, _ = reproduced
    moved, said = shutil.copytree(folder, tmp_path / "moved"), []
    with pytest.raises(ExperimentError, match="say --resume"):
        reproduce(PAIRS, (0, 1), moved, builder=builder)
    (moved / "wide/kd/seed1/student/result.json").unlink()
    again = reproduce({"wide": PAIRS["wide"]}, (0, 1), moved, builder=builder, resume=True, announce=said.append)
    assert list(again["pairs"]) == ["narrow", "wide"]
    for name, pair in results["pairs"].items():
        for method, summary in pair["methods"].items():
            assert again["pairs"][name]["methods"][method]["metrics"] == summary["metrics"]


@pytest.mark.slow  # three reproductions
def test_teachers_of_one_network_on_other_data_are_told_apart_and_found_again(builder, tmp_path):
    """Also where a call names the second pair alone; what does not fit is refused before any is trained."""
    other = {"labels": small(CrossEntropy(), length=4, data={"labelled": 300})}
    pairs = {"all": {"labels": METHODS["labels"]}, "few": other}
    first = reproduce(pairs, (0,), tmp_path / "run", builder=builder)
    assert first["teachers"] == {"all": FILE, "few": f"{FILE}-2"}
    said = []
    again = reproduce({"few": other}, (0,), tmp_path / "run", builder=builder, resume=True, announce=said.append)
    assert again["teachers"] == first["teachers"] and again["pairs"] == json.loads(json.dumps(first["pairs"]))
    misfit = {"kd": small(length=4).replace_phase("student", microbatches=3)}
    for wrong, what in (
        ({"a/b": other}, "use letters"),
        ({"teachers": other}, "use letters"),
        ({"few": other, "odd": misfit}, "microbatches=3"),
    ):
        with pytest.raises(ExperimentError, match=what):
            reproduce(wrong, (0,), tmp_path / "new", builder=builder)
    assert not (tmp_path / "new").exists()
    (tmp_path / "new/teachers").mkdir(parents=True)
    with pytest.raises(ExperimentError, match="say --resume"):
        reproduce({"few": other}, (0,), tmp_path / "new", builder=builder)


def test_teachers_are_taken_from_a_folder(reproduced, builder, tmp_path):
    folder, results, _ = reproduced
    said = []
    found = reproduce(
        {"narrow": METHODS}, (0,), tmp_path / "run", teachers=folder / "teachers", builder=builder, announce=said.append
    )
    assert f"teacher {NETWORK}" not in said and not (tmp_path / "run/teachers").exists()
    assert found["pairs"]["narrow"]["teacher"]["hash"] == results["pairs"]["narrow"]["teacher"]["hash"]
    with pytest.raises(ExperimentError, match=rf"has no {FILE}: .* a file {FILE}.pth there; it has nothing"):
        reproduce({"narrow": METHODS}, (0,), tmp_path / "other", teachers=tmp_path / "empty", builder=builder)
    assert not (tmp_path / "other").exists()


def test_published_teachers_are_found_as_they_lie(tmp_path):
    for name in ("resnet32x4_vanilla/ckpt_epoch_90.pth", "resnet32x4_vanilla/ckpt_epoch_240.pth", "ResNet50_vanilla/last.pth",
                 "vgg13.safetensors", "notes.txt"):  # fmt: skip
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "wrn_40_2/teacher").mkdir(parents=True)
    wanted = {
        "resnet32x4": "resnet32x4_vanilla/ckpt_epoch_240.pth", "resnet50_cifar": "ResNet50_vanilla/last.pth",
        "vgg13": "vgg13.safetensors", "wrn_40_2": "wrn_40_2",
    }  # fmt: skip
    assert {name: find_teacher(tmp_path, name) for name in wanted} == {n: tmp_path / path for n, path in wanted.items()}
    with pytest.raises(ExperimentError, match="has no vgg8"):
        find_teacher(tmp_path, "vgg8")


def test_a_method_that_diverges_leaves_the_others_be(builder, tmp_path):
    bad = small(DIVERGING, length=4).replace_phase("student", optimizer=SGD(learning_rate=1e30))
    alike = {"labels": small(CrossEntropy(), length=4), "bad": small(DIVERGING, length=4)}
    said = []
    comparison = compare(alike, (0,), tmp_path / "one", builder=builder, announce=said.append)
    assert list(comparison["methods"]) == ["labels"] and "not finite" in comparison["failed"]["bad"]
    assert any(line.startswith("bad failed, the others go on") for line in said)
    with pytest.raises(TrainingError):
        compare({"bad": bad}, (0,), tmp_path / "two", builder=builder)
    results = reproduce({"broken": {"bad": bad}, "narrow": METHODS}, (0,), tmp_path / "three", builder=builder)
    assert list(results["pairs"]) == ["narrow"] and "not finite" in results["failed"]["broken"]
    assert "broken failed" in (tmp_path / "three/results.md").read_text()
    assert json.loads((tmp_path / "three/results.json").read_text())["failed"] == results["failed"]
    only = reproduce({"broken": {"bad": bad}}, (0,), tmp_path / "four", builder=builder)
    assert json.loads((tmp_path / "four/results.json").read_text())["failed"] == only["failed"] != {}


def test_configs_of_a_folder_are_found():
    pairs = configs_of_folder("cifar100", ["all"])
    assert len(pairs) == 13 and "resnet32x4_resnet8x4" in pairs and "dot" not in pairs
    assert set(configs_of_folder("configs/digits", ["all"])) == {"smoke"}, "where nothing is a pair, all are meant"
    assert list(configs_of_folder("cifar100", ["vgg13_vgg8.py"])) == ["vgg13_vgg8"]
    with pytest.raises(ExperimentError, match="did you mean 'vgg13_vgg8'"):
        configs_of_folder("cifar100", ["vgg13_vgg"])
    with pytest.raises(ExperimentError, match="There is no folder of configs cifar1000"):
        configs_of_folder("cifar1000", ["all"])


def test_the_study_takes_every_method_for_as_long():
    """Warm-ups in epochs are shares of its 800 steps; a phase before is part of them."""
    from kdjax.recipes.fashion_mnist import fashion_mnist_study

    for name in ("labels", "kd", "dkd", "rld", "ctkd", "simkd", "srd", "crd", "ofd", "fitnet"):
        made = fashion_mnist_study(name, "study", 0)
        assert sum(phase.duration.amount for phase in made.lineage) == pytest.approx(800)
        assert "'epochs'" not in repr(made.student.objective), name
    assert fashion_mnist_study("kd", "study", 0).student.teacher_cache == "float32"
    assert fashion_mnist_study("fitnet", "study", 0).student.teacher_cache == ""


@pytest.mark.parametrize("name", configs.names())
def test_every_config_holds_together(name):
    """With its own method, with labels alone and with others; what it says to type is this file."""
    config, text = load_config(name), ast.get_docstring(ast.parse(configs.find(name).read_text(encoding="utf-8")))
    for method in (None, "labels", "kd", "hard_label"):
        assert config(method).problems() == [], method
    assert any(
        part.startswith((f"configs/{name}.py", name.split("/")[0])) for part in text.splitlines()[0].split()[2:3]
    )


def test_a_setting_of_one_method_is_no_fault_of_the_others():
    words = ["digits/smoke", "--phases.student.objective.kd.temperature", "2", "--seed=1", "--data.labelled", "9"]
    methods = {name: load_config("digits/smoke")(name) for name in ("labels", "kd")}
    kept = of_each(words, methods)
    assert kept["kd"] == words and kept["labels"] == ["digits/smoke", "--seed=1", "--data.labelled", "9"]
    with pytest.raises(
        ExperimentError, match=r"No method of these has --phases\.\S+\.kd\.temprature; did you mean \S+kd\.temperature"
    ):
        of_each([word.replace("temperature", "temprature") for word in words], methods)

"""Settings are chosen on validation examples, and the choice alone is tested."""

import io
import json
import shutil
from pathlib import Path

import pytest

import kdjax
from kdjax.experiment import ExperimentError
from kdjax.experiment import grid as grid_module
from kdjax.experiment.config import by_method
from kdjax.experiment.folder import find_network
from kdjax.experiment.grid import Axis, axes_of, best, edges, full_path, grid, with_settings
from kdjax.experiment.grid_report import grid_rows, sentences, show_grid, write_grid_report
from kdjax.objectives import KD, CrossEntropy, Standardize
from kdjax.terminal import make_console
from kdjax.training.progress import Silent
from tests.experiment.conftest import small

DATA = {"validation": 300, "labelled": 200}
EXPERIMENT = small(0.5 * CrossEntropy() + KD(temperature=2.0), data=DATA, length=4)
BASELINE = small(CrossEntropy(), data=DATA, length=4)
AXES = axes_of(["kd.temperature=1,4", "kd.weight=0.5,2.0"])


@pytest.fixture(scope="module")
def searched(tmp_path_factory, builder):
    folder = tmp_path_factory.mktemp("grid") / "run"
    return folder, grid(EXPERIMENT, "kd", AXES, (0, 1), folder, baseline=BASELINE, builder=builder)


def test_the_choice_is_made_without_the_test_examples(searched):
    folder, found = searched
    assert found["validation"]["data"] | {"evaluated_on": "validation", "evaluated": 300} == found["validation"]["data"]
    assert found["test"]["data"]["evaluated_on"] == "test"
    means = {name: one["metrics"]["top1"]["mean"] for name, one in found["validation"]["methods"].items()}
    assert len(means) == 4 and means[found["chosen"]] == max(means.values())
    trained = json.loads((folder / "test/kd/seed0/experiment.json").read_text())
    settings = found["points"][found["chosen"]]
    assert str(settings["kd.temperature"]) in json.dumps(trained)
    assert found["test"]["teacher"]["hash"] == found["validation"]["teacher"]["hash"], "trained once"
    assert set(found["test"]["methods"]) == {"labels", "kd"} and "gain" in found["test"]["methods"]["kd"]
    assert found["edges"] == ["kd.temperature", "kd.weight"], "of two values each is an end"


def test_the_report_has_the_whole_grid(searched):
    folder, found = searched
    page = write_grid_report(folder, found, EXPERIMENT.data).read_text()
    rows = grid_rows(found, EXPERIMENT.data)
    assert (
        len(rows) == 5 and sum(row[-1] == "chosen" for row in rows) == 1 and (folder / "grid.png").stat().st_size > 3000
    )
    console = make_console(file=io.StringIO(), width=200)
    show_grid(found, EXPERIMENT.data, console)
    for row in rows:
        assert all(cell in page and cell in console.file.getvalue() for cell in row)
    assert any("at the end of what was tried" in sentence for sentence in sentences(found, EXPERIMENT.data))


def test_it_may_be_moved_and_another_choice_leaves_the_first_aside(searched, builder, tmp_path, monkeypatch):
    """A larger grid may choose otherwise; what was tested before stays, and it is said."""
    folder, found = searched
    moved = tmp_path / "moved"
    shutil.copytree(folder, moved)
    result = json.loads((moved / "test/kd/seed0/teacher/result.json").read_text())
    assert not Path(result["from"]).is_absolute()
    place = find_network(moved / "test/kd/seed0", "teacher")
    assert place == moved / "validation/teacher/teacher"
    said, other = [], next(name for name in found["points"] if name != found["chosen"])
    monkeypatch.setattr(grid_module, "best", lambda *_: other)
    again = grid(
        EXPERIMENT, "kd", AXES, (0, 1), moved, baseline=BASELINE, builder=builder, resume=True, announce=said.append
    )
    assert again["chosen"] == other and (moved / "test-before1/kd").exists() and (moved / "test/kd").exists()
    assert any(f"the choice was {found['chosen']} before" in line and "more than once" in line for line in said)


@pytest.mark.slow  # runs twice; resuming a comparison is tested by itself
def test_it_is_gone_on_with(searched, builder):
    folder, found = searched
    with pytest.raises(ExperimentError, match="holds a grid; say --resume"):
        grid(EXPERIMENT, "kd", AXES, (0, 1), folder, builder=builder)
    said = []
    again = grid(
        EXPERIMENT, "kd", AXES, (0, 1), folder, baseline=BASELINE, builder=builder, resume=True, announce=said.append
    )
    assert again["chosen"] == found["chosen"] and again["validation"]["methods"] == found["validation"]["methods"]


@pytest.mark.parametrize(
    ("experiment", "words", "said"),
    [
        (small(data={"validation": 0}), ["kd.temperature=1,2"], r"data.validation is 0"),
        (small(data={"validation": 300, "evaluate_on": "validation"}), ["kd.temperature=1,2"], "evaluate it on the test"),
        (EXPERIMENT, [], "A grid is over something"),
        (EXPERIMENT, ["kd.temperature=1,1"], "once"),
        (EXPERIMENT, ["kd.temperature=1", "temperature=2"], "once"),
        (EXPERIMENT, ["weight=1,2"], "Several parts .* cross_entropy.weight, kd.weight"),
        (EXPERIMENT, ["kd.temprature=1,2"], "no setting 'kd.temprature'; it has .*kd.temperature"),
        (EXPERIMENT, ["kd.temperature=warm,cold"], "cannot be 'warm'"),
    ],
)  # fmt: skip
def test_what_is_no_grid_is_refused(experiment, words, said, builder, tmp_path):
    with pytest.raises(ExperimentError, match=said):
        grid(experiment, "kd", axes_of(words), (0,), tmp_path / "run", builder=builder)
    assert not (tmp_path / "run").exists()


@pytest.mark.slow  # the command line's test runs the same
def test_from_python_they_show_themselves(tmp_path, data_dir):
    said = []
    options = {"data_dir": data_dir, "progress": Silent(), "announce": said.append}
    found = kdjax.grid(EXPERIMENT, {"kd.temperature": [1.0, 4.0]}, seeds=[0], folder=tmp_path / "grid", **options)
    assert found["chosen"] in repr(found) and "<iframe" in found._repr_html_() and found.report.exists()
    method = lambda name: by_method(EXPERIMENT, name)
    results = kdjax.reproduce({"pair": method}, methods=["kd"], seeds=[0], folder=tmp_path / "all", **options)
    assert list(results["pairs"]["pair"]["methods"]) == ["labels", "kd"]
    assert "labels" in repr(results) and "<iframe" in results._repr_html_()


def test_settings_are_found_by_their_names():
    nested = CrossEntropy() + 9.0 * Standardize(inner=KD(temperature=2.0))
    assert full_path(nested, "temperature") == "standardize.inner.temperature"
    changed = with_settings(
        small(nested), {"standardize.inner.temperature": 5, "standardize.weight": 3.0}
    ).student.objective
    assert changed.parts[1] == 3.0 * Standardize(inner=KD(temperature=5)) and changed.parts[0] == CrossEntropy()
    assert axes_of(["kd.weight=0.5,1e-3"]) == [Axis("kd.weight", (0.5, 0.001))]
    with pytest.raises(ExperimentError, match="says no values"):
        axes_of(["temperature"])


def test_the_best_is_by_the_tasks_metric_and_ends_are_seen():
    top1 = lambda mean: {"metrics": {"top1": {"mean": mean}}}
    assert best({"methods": {"a": top1(0.1), "b": top1(0.3), "c": top1(0.3)}}, EXPERIMENT.data) == "b"
    axis = Axis("kd.temperature", (4.0, 1.0, 2.0))
    assert edges({"kd.temperature": 2.0}, [axis]) == [] and edges({"kd.temperature": 4.0}, [axis]) == ["kd.temperature"]
    assert edges({"mlld.standardize": True}, [Axis("mlld.standardize", (False, True))]) == []
    assert edges({"x": "a"}, [Axis("x", ("a", "b"))]) == [] and edges({"x": 1}, [Axis("x", (1,))]) == []

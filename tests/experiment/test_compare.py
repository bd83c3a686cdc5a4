"""Comparisons: one teacher, equal budgets, honest tables, a report that stands alone."""

import dataclasses
import html
import io
import json
import os
import re
import shutil

import numpy as np
import pytest

from kdjax.analysis.statistics import holm, paired_gain, spread
from kdjax.experiment import ExperimentError
from kdjax.experiment.artifacts import evaluate_run
from kdjax.experiment.compare import check_alike, compare
from kdjax.experiment.config import load_config
from kdjax.experiment.phase import make_loop
from kdjax.experiment.report import write_report
from kdjax.experiment.run import run
from kdjax.experiment.schemes import with_method
from kdjax.experiment.tables import rows_of, show_comparison, verdicts
from kdjax.objectives import KD, CrossEntropy, FitNet
from kdjax.schedules import steps
from kdjax.terminal import make_console
from tests.experiment.conftest import small

OPTIONS = {"data": {"labelled": 200}, "length": 6}
TASK = small().data
EXPERIMENTS = {
    "labels": small(CrossEntropy(), **OPTIONS),
    "kd": small(KD(temperature=2.0), **OPTIONS),
    "fitnet": small(CrossEntropy() + FitNet(stage=1), **OPTIONS),
}


@pytest.fixture(scope="module")
def compared(tmp_path_factory, builder):
    folder = tmp_path_factory.mktemp("comparison") / "run"
    said = []
    comparison = compare(EXPERIMENTS, (0, 1), folder, builder=builder, announce=said.append)
    return folder, comparison, said


def test_one_teacher_serves_all(compared):
    folder, comparison, said = compared
    assert said == ["teacher", *(f"{name}, seed {seed}" for name in EXPERIMENTS for seed in (0, 1))]
    results = [json.loads(path.read_text()) for path in folder.glob("*/seed*/student/result.json")]
    assert len(results) == 6
    assert {result["teacher_hash"] for result in results} == {comparison["teacher"]["hash"]}
    assert {result["steps"] for result in results} == {6}


def test_the_table_repeats_the_runs(compared):
    folder, comparison, _ = compared
    for name, summary in comparison["methods"].items():
        values = [
            json.loads((folder / name / f"seed{seed}/student/result.json").read_text())["last"]["student"]["top1"]
            for seed in (0, 1)
        ]
        assert summary["metrics"]["top1"]["values"] == values
        assert summary["metrics"]["top1"]["sd"] == pytest.approx(np.std(values, ddof=1))
    rows = rows_of(comparison, TASK)
    assert [row[0] for row in rows] == ["teacher", *EXPERIMENTS]
    assert comparison["methods"]["fitnet"]["extra_parameters"] > 0 and "(+" in rows[3][1]
    assert all("agreement" in summary["metrics"] for summary in comparison["methods"].values())
    assert comparison["data"]["labelled"] == 200 and comparison["methods"]["labels"]["examples_visited"] == 200


def test_a_run_of_it_is_run_again_from_its_folder_anywhere(compared, builder, tmp_path):
    """As the report says. Its teacher is named from its own folder, which a new run's is not."""
    folder, comparison, _ = compared
    place = folder / "labels/seed1"
    experiment = load_config(str(place))(None)
    assert os.path.isabs(experiment.phases[0].weights)
    result = run(experiment, tmp_path / "far/off/again", builder=builder)["student"]
    assert result["last"]["student"]["top1"] == comparison["methods"]["labels"]["metrics"]["top1"]["values"][1]
    before = (place / "experiment.json").read_bytes()
    assert run(experiment, place, resume=True, builder=builder)["student"]["hash"] == result["hash"]
    assert (place / "experiment.json").read_bytes() == before and not (place / "changes.txt").exists()


def test_the_report_stands_alone(compared):
    folder, comparison, _ = compared
    page = write_report(folder, comparison, TASK).read_text()
    assert (folder / "comparison.png").stat().st_size > 5000 and (folder / "curves.png").stat().st_size > 5000
    assert re.findall(r'(?:src|href)="(?!data:)', page) == []
    for row in rows_of(comparison, TASK):
        assert all(cell in page for cell in row)
    for sentence in verdicts(comparison, TASK):
        assert html.escape(sentence) in page
    assert "{" not in re.sub(r"<style>.*?</style>|<code>.*?</code>", "", page, flags=re.S), "nothing is left unfilled"


NAMES = ("<script>alert(1)</script>", "a|b\nc", "[bold]x[/x]", "$\\frac{$", "\x1b[2J", "_x_ *y* `z`")


def test_names_are_no_markup_anywhere(compared, tmp_path):
    """Of the report, the Markdown table, the terminal and the pictures."""
    comparison = json.loads(json.dumps(compared[1]))
    kd = comparison["methods"].pop("kd")
    comparison["methods"] |= {name: kd for name in NAMES}
    comparison["name"] = comparison["student"] = comparison["data"]["name"] = " ".join(NAMES)
    comparison["teacher"]["network"] = comparison["device"] = comparison["data"]["description"] = " ".join(NAMES)
    page = write_report(tmp_path, comparison, TASK).read_text()
    assert "<script>" not in page and "&lt;script&gt;" in page
    table = (tmp_path / "table.md").read_text().splitlines()
    cells = {len(re.findall(r"(?<!\\)\|", line)) for line in table}
    assert len(table) == 3 + len(comparison["methods"]) and len(cells) == 1, "a cell is a cell"
    assert "&lt;script&gt;" in table[5] and "\\_x\\_ \\*y\\* \\`z\\`" in table[-1] and "\x1b" not in "".join(table)
    console = make_console(file=io.StringIO(), width=400)
    show_comparison(comparison, TASK, console)
    shown = console.file.getvalue()
    assert "[bold]x[/x]" in shown and "\\x1b[2J" in shown and "\x1b" not in shown


def test_a_comparison_is_gone_on_with_and_grows(compared, builder):
    folder, comparison, _ = compared
    (folder / "kd/seed1/student/result.json").unlink()
    said = []
    again = compare(EXPERIMENTS, (0, 1), folder, resume=True, builder=builder, announce=said.append)
    for name in EXPERIMENTS:
        assert again["methods"][name]["metrics"] == comparison["methods"][name]["metrics"]
    grown = compare(EXPERIMENTS, (0, 1, 2), folder, resume=True, builder=builder)
    assert (
        grown["methods"]["kd"]["metrics"]["top1"]["values"][:2]
        == comparison["methods"]["kd"]["metrics"]["top1"]["values"]
    )


def test_it_may_be_moved_as_a_whole(compared, builder, tmp_path):
    """A run finds its teacher from where it lies, not from where the command was given."""
    moved = shutil.copytree(compared[0], tmp_path / "elsewhere")
    shutil.rmtree(moved / "teacher/teacher/weights")
    shutil.copytree(compared[0] / "teacher/teacher/weights", moved / "teacher/teacher/weights")
    found = evaluate_run(moved / "kd/seed0", builder.data_dir)
    values = compared[1]["methods"]["kd"]["metrics"]
    assert found["student"]["agreement"] == pytest.approx(values["agreement"]["values"][0])
    with pytest.raises(ExperimentError, match="is a comparison; name one of its runs"):
        evaluate_run(moved, builder.data_dir)


def test_it_is_not_overwritten_silently(compared, builder):
    with pytest.raises(ExperimentError, match="say --resume"):
        compare(EXPERIMENTS, (0, 1), compared[0], builder=builder)


@pytest.mark.parametrize(
    "other",
    [
        small(KD(), **(OPTIONS | {"length": 7})),
        small(KD(), **(OPTIONS | {"data": {"labelled": 300}})),
        small(KD(), **OPTIONS).replace_phase("teacher", duration=steps(5)),
        small(KD(), student={"ema_decay": 0.9}, **OPTIONS),
        small(KD(), student={"teacher_cache": "float16"}, **OPTIONS),
    ],
)
def test_unequal_methods_are_not_compared(other, tmp_path, builder):
    with pytest.raises(ExperimentError, match="would not be fair"):
        compare({"labels": EXPERIMENTS["labels"], "kd": other}, (0,), tmp_path / "run", builder=builder)
    assert not (tmp_path / "run").exists()


def test_outputs_that_are_kept_whole_are_no_difference():
    kept = small(KD(temperature=2.0), student={"teacher_cache": "float32"}, **OPTIONS)
    check_alike({"labels": EXPERIMENTS["labels"], "kd": kept})


def test_seeds_that_cannot_be_are_said_before_anything_is_trained(tmp_path, builder):
    for seeds, why in (
        ((0, -1), "seed=-1 is negative"),
        ((0, 2**33), "more than 32 bits"),
        ((0, 1.5), "give whole numbers"),
    ):
        with pytest.raises(ExperimentError, match=why):
            compare(EXPERIMENTS, seeds, tmp_path / "run", builder=builder)
    assert not (tmp_path / "run").exists()


def test_seeds_are_given_once_each(tmp_path, builder):
    for seeds in ((), (1, 1)):
        with pytest.raises(ExperimentError, match="at least one, each once"):
            compare(EXPERIMENTS, seeds, tmp_path / "run", builder=builder)


def test_spread_and_gain():
    assert spread([0.5]) == {"mean": 0.5, "sd": None, "values": [0.5]}
    gain = paired_gain([0.80, 0.83, 0.84], [0.79, 0.80, 0.80])
    assert gain["mean"] == pytest.approx(0.08 / 3) and gain["better"] == 3
    # t(0.975, 2 degrees of freedom) = 4.302653 (tables), sd of (.01, .03, .04) = 0.0152753
    assert gain["half_width"] == pytest.approx(4.302653 * 0.0152753 / 3**0.5, rel=1e-5)


@pytest.mark.parametrize("labels", [(210, 232), (210, 232, 171), (210, 232, 171, 99, 300)])
def test_the_same_difference_in_every_seed_is_no_test(labels):
    """However floats round it: it has no spread to be judged by."""
    baseline = np.array(labels) / 360
    gain = paired_gain((np.array(labels) + 1) / 360, baseline)
    assert gain["sd"] == gain["half_width"] == 0 and gain["p"] is None and gain["better"] == len(labels)
    assert paired_gain(baseline, baseline)["half_width"] == 0
    sentences = said(list((np.array(labels) + 1) / 360), list(baseline), dkd=list(baseline))
    assert f"kd gains 0.28 points of top-1 over labels only with each of {len(labels)} seeds: no spread" in sentences[0]
    assert f"dkd ends where labels only does, with {len(labels)} seeds: no spread, so no verdict" in sentences[1]
    assert "kd, the best, is not clearly better than dkd" in sentences[2]
    assert "kd ends where labels only does, with 1 seed: no spread" in said([0.5], [0.5])[0]


def test_a_phase_before_counts_among_steps_and_time(tmp_path, builder):
    """Of the method that has one, whichever is named first."""
    base = small(length=10)
    methods = {name: with_method(base, name) for name in ("ft", "labels")}
    found = compare(methods, (0,), tmp_path / "run", builder=builder)
    runs = {name: [json.loads((tmp_path / f"run/{name}/seed0/{phase.name}/result.json").read_text()) for phase in one.lineage]
            for name, one in methods.items()}  # fmt: skip
    assert (
        len(runs["ft"]) == 2 and found["steps"] == sum(one["steps"] for one in runs["ft"]) == runs["labels"][0]["steps"]
    )
    for name, results in runs.items():
        wanted = sum(one["seconds"] for one in results)
        assert found["methods"][name]["seconds"]["mean"] == pytest.approx(wanted)


def test_several_comparisons_are_corrected_for_being_several():
    # Holm (1979): the k-th smallest p times what is left, never below a smaller one.
    assert holm({"a": 0.04, "b": 0.01, "c": 0.03, "d": 0.9}) == pytest.approx(
        {"a": 0.09, "b": 0.04, "c": 0.09, "d": 0.9}
    )
    assert holm({"a": 0.7, "b": 0.8}) == {"a": 1.0, "b": 1.0} and holm({}) == {}
    gain = paired_gain([0.80, 0.83, 0.84], [0.79, 0.80, 0.80])
    # t = mean / (sd / sqrt 3) = 3.0237; two-sided at 2 degrees of freedom: 1 - t / sqrt(t² + 2)
    t = (0.08 / 3) / (0.0152753 / 3**0.5)
    assert gain["p"] == pytest.approx(1 - t / (t * t + 2) ** 0.5, rel=1e-4)
    assert paired_gain([1.0], [0.0])["p"] is None and paired_gain([1.0, 1.0], [0.5, 0.5])["p"] is None


LABELS = [0.50, 0.501, 0.502]


def said(kd, labels=LABELS, teacher=None, **others):
    """The sentences about methods with these accuracies."""
    methods = {
        name: {
            "metrics": {"top1": spread(values)},
            **({"gain": paired_gain(values, labels)} if name != "labels" else {}),
        }
        for name, values in {"labels": labels, "kd": kd, **others}.items()
    }
    return verdicts({"methods": methods, "teacher": teacher and {"metrics": {"top1": teacher}}}, TASK)


def test_verdicts_say_what_the_numbers_say():
    assert "kd gains 2.03 points" in said([0.52, 0.521, 0.523])[0]
    assert "kd loses 1.97 points" in said([0.48, 0.481, 0.483])[0]
    assert "no clear difference" in said([0.52, 0.49, 0.53])[0]
    assert "no verdict" in said([0.9], [0.1])[0]
    assert "closes 51 % of the gap" in said([0.52, 0.521, 0.523], teacher=0.541)[0]
    assert "gap" not in said([0.52, 0.521, 0.523], teacher=0.51)[0], "a student better than its teacher closes no gap"


def test_the_best_two_are_compared_with_each_other():
    assert "dkd, the best, is better than kd" in said([0.52, 0.521, 0.522], dkd=[0.54, 0.541, 0.543])[-1]
    assert "dkd, the best, is not clearly better than kd" in said([0.52, 0.521, 0.522], dkd=[0.53, 0.511, 0.54])[-1]


def test_fields_that_do_not_matter_for_compilation_share_a_program(builder):
    first = builder.program(EXPERIMENTS["kd"], EXPERIMENTS["kd"].student)
    often = {"log_every": 3, "evaluate_every": steps(2), "checkpoint_every": steps(5)}
    other = dataclasses.replace(EXPERIMENTS["kd"], seed=8, data_seed=9, name="other", **often)
    assert builder.program(other, other.student) is first
    loop = make_loop(first, other, first.feeding.pipeline(9), None)
    assert (loop.log_every, loop.evaluate_every, loop.checkpoint_every) == (3, 2, 5), "a run's own"

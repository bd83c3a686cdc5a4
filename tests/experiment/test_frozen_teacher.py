"""A phase whose teacher is frozen: the same run to rounding, the teacher itself untouched, refused where it cannot be."""

import json

import pytest

from kdjax.experiment import ExperimentError
from kdjax.experiment.run import run
from kdjax.objectives import KD, OFD, ControlVariate, CrossEntropy
from kdjax.tasks.classification import Classifier
from tests.experiment.conftest import small


@pytest.fixture(scope="module")
def results(tmp_path_factory, builder):
    """By precision; the teacher is trained once and taken by the others."""
    folder = tmp_path_factory.mktemp("runs")
    found = {"": run(small(), folder / "plain", builder=builder)}
    for precision in ("float32", "bfloat16"):
        experiment = small(student={"teacher_precision": precision}).replace_phase(
            "teacher", weights=str(folder / "plain" / "teacher")
        )
        found[precision] = run(experiment, folder / precision, builder=builder)
    return folder, found


def test_it_comes_to_the_same(results):
    _, found = results
    plain = found[""]["student"]["last"]["student"]
    assert found["float32"]["student"]["last"]["student"] == pytest.approx(plain, rel=1e-3)
    near = found["bfloat16"]["student"]["last"]["student"]
    assert near["nll"] == pytest.approx(plain["nll"], rel=0.02) and near != plain


def test_what_it_changes_is_said_and_the_teacher_is_evaluated_as_it_is(results):
    folder, found = results
    for precision in ("float32", "bfloat16"):
        said = found[precision]["student"]["teacher_frozen"]
        assert f"in {precision}: 2 normalisations folded" in said and "of the predictions are the same" in said
        assert found[precision]["student"]["teacher_hash"] == found[""]["teacher"]["hash"]
        rows = [json.loads(line) for line in (folder / precision / "student/metrics.jsonl").read_text().splitlines()]
        evaluated = [row["teacher_nll"] for row in rows if row["kind"] == "eval"]
        assert evaluated == pytest.approx([found[""]["teacher"]["last"]["student"]["nll"]] * len(evaluated), rel=1e-5)
    assert found[""]["student"]["teacher_frozen"] is None


@pytest.mark.parametrize(
    ("objective", "width", "why"),
    [
        (
            CrossEntropy() + OFD(),
            2,
            "wants the teacher's statistics to go on",
        ),
        (CrossEntropy() + KD() + ControlVariate(), 4, "wants the gradient at the teacher"),
    ],
)
def test_it_is_refused_where_the_teacher_is_needed_as_it_is(objective, width, why, builder):
    experiment = small(objective, student={"teacher_precision": "float32"})
    experiment = experiment.replace_phase("teacher", network=Classifier(width=4))
    experiment = experiment.replace_phase("student", network=Classifier(width=width))
    with pytest.raises(ExperimentError, match=why):
        builder.program(experiment, experiment.student)

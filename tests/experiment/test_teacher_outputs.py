"""A run whose teacher's outputs are kept is the run whose teacher runs at every step."""

import dataclasses

import pytest

from kdjax.experiment import ExperimentError
from kdjax.experiment.run import run
from kdjax.objectives import DKD, KD, CrossEntropy, FitNet
from kdjax.tasks.classification import Views
from kdjax.training.teacher_cache import CacheError
from tests.experiment.conftest import small

OBJECTIVE = CrossEntropy() + DKD(beta=2.0, temperature=2.0)


@pytest.fixture(scope="module")
def live(tmp_path_factory, builder):
    folder = tmp_path_factory.mktemp("live") / "run"
    return folder, run(small(OBJECTIVE), folder, builder=builder)["student"]


def cached(form, live, tmp_path, builder, name="run", **options):
    experiment = small(OBJECTIVE, student={"teacher_cache": form} | options, cache_dir=str(tmp_path / "cache"))
    experiment = experiment.replace_phase("teacher", weights=str(live[0] / "teacher"))
    return run(experiment, tmp_path / name, builder=builder)["student"]


def test_float32_is_the_live_run_and_a_second_one_asks_the_teacher_nothing(live, tmp_path, builder):
    first = cached("float32", live, tmp_path, builder)
    assert first["last"]["student"] == pytest.approx(live[1]["last"]["student"], rel=1e-4)
    assert first["teacher_cache"]["computed"] > 300 and first["teacher_cache"]["found"] == 0
    assert first["teacher_cache"]["largest_change"] == 0
    again = cached("float32", live, tmp_path, builder, "again")
    assert again["hash"] == first["hash"], "bit for bit"
    assert again["teacher_cache"] == {"storage": "float32", "found": first["teacher_cache"]["computed"], "computed": 0}
    assert again["teacher_share"] == 0 and live[1]["teacher_share"] > 0


@pytest.mark.parametrize(("form", "near"), [("float16", 1e-3), ("top9", 0.02)])
def test_shorter_forms_come_near_and_say_what_they_change(form, near, live, tmp_path, builder):
    found = cached(form, live, tmp_path, builder)
    assert found["last"]["student"]["nll"] == pytest.approx(live[1]["last"]["student"]["nll"], rel=near)
    facts = found["teacher_cache"]
    assert 0 < facts["largest_change"] < 0.01 if form == "float16" else 0.8 < facts["mass"] < 1


def test_a_frozen_teacher_has_outputs_of_its_own(live, tmp_path, builder):
    first = cached("float32", live, tmp_path, builder)
    other = cached("float32", live, tmp_path, builder, "short", teacher_precision="bfloat16")
    assert (
        other["teacher_cache"]["found"] == 0
        and other["teacher_cache"]["computed"] == first["teacher_cache"]["computed"]
    )
    assert len(list((tmp_path / "cache").iterdir())) == 2


def test_a_teacher_that_sees_its_inputs_otherwise_is_another(live, tmp_path, builder):
    """With the same weights, as after a mean that was forgotten."""
    cached("float32", live, tmp_path, builder)
    experiment = small(OBJECTIVE, student={"teacher_cache": "float32"}, cache_dir=str(tmp_path / "cache"))
    network = dataclasses.replace(experiment.phase("teacher").network, mean=(0.9,), std=(0.05,))
    experiment = experiment.replace_phase("teacher", weights=str(live[0] / "teacher"), network=network)
    with pytest.raises(
        CacheError, match="the same weights that says something else of the same inputs: another mean and std"
    ):
        run(experiment, tmp_path / "other", builder=builder)


@pytest.mark.parametrize(
    ("objective", "data", "form", "why"),
    [
        (
            OBJECTIVE + FitNet(stage=1),
            {},
            "float32",
            "reads teacher.features, teacher.logits, and only a teacher's logits",
        ),
        (KD(view="strong"), {}, "float32", "wants several views"),
        (KD(), {"views": Views(mixup=1.0)}, "float32", "mixup=1.0 mixes each view with a neighbour's"),
        (KD(), {}, "float8", "kept as float32, float16 or topK such as top16, not 'float8'"),
    ],
)
def test_what_cannot_be_kept_is_refused(objective, data, form, why, builder):
    experiment = small(objective, student={"teacher_cache": form}, data=data)
    with pytest.raises(ExperimentError, match=why):
        builder.program(experiment, experiment.student)
